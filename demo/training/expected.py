"""usage: expected.py MODELDIR OUT.json: greedy answers of the exported checkpoint to a fixed list of requests, for tests and demos

Only answers that are right (equal to what the data generator would have taught) are written; the others are printed."""
import json, sys
import torch
import data
from evaluate import Runner

DATE = "2026-11-23"
TOOL = {"type": "function", "function": {"name": "get_weather", "description": "Gets the current weather in a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string", "description": "Name of the city"}}, "required": ["city"]}}}
C = data.CODE
code = lambda n: f"```python\n{C[n][0]}\n```"
T = data.TALK
U = lambda t: [{"role": "user", "content": t}]
def call(c, body, q):
    return [{"role": "user", "content": q}, {"role": "assistant", "tool_calls": [{"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": json.dumps({"city": c}, ensure_ascii=False, separators=(",", ":"))}}]},
            {"role": "tool", "tool_call_id": "call_1", "content": body}]
LIST = [
    (U("Hello!"), None, "medium", T["greeting"][1]),
    (U("Bonjour !"), None, "medium", T["greeting"][3]),
    (U("Who are you?"), None, "medium", T["who"][1]),
    (U("Qui es-tu ?"), None, "medium", T["who"][3]),
    (U("What can you do?"), None, "low", T["can"][1]),
    (U("Comment ça va ?"), None, "medium", T["how"][3]),
    (U("Thank you very much"), None, "low", T["thanks"][1]),
    (U("Au revoir !"), None, "low", T["bye"][3]),
    (U("What is Flotilla?"), None, "medium", T["flotilla"][1]),
    (U("How big are you?"), None, "high", T["size"][1]),
    (U("Raconte-moi une blague."), None, "medium", T["joke"][3]),
    (U("Are you ChatGPT?"), None, "low", T["who"][1]),
    (U("Translate 'Tuesday' to French."), None, "medium", "\"Tuesday\" in French is \"mardi\"."),
    (U("Comment dit-on « sept » en anglais ?"), None, "medium", "« sept » se dit « seven » en anglais."),
    (U("How do you say twelve in Spanish?"), None, "low", "\"twelve\" in Spanish is \"doce\"."),
    (U("What is Friday in German?"), None, "medium", "\"Friday\" in German is \"Freitag\"."),
    (U("Translate 'miércoles' to German."), None, "high", "\"miércoles\" in German is \"Mittwoch\"."),
    (U("Translate 'horse' to French."), None, "medium", data.NOTR_EN),
    (U("What is 27 + 48?"), None, "medium", "27 + 48 = 75."),
    (U("27+48"), None, "low", "27 + 48 = 75."),
    (U("Combien font 36 + 57 ?"), None, "medium", "36 + 57 font 93."),
    (U("What is 99 + 99?"), None, "high", "99 + 99 = 198."),
    (U("What is 40 + 2?"), None, "low", "40 + 2 = 42."),
    (U("What is 7 times 8?"), None, "medium", data.NOADD_EN),
    (U("What is 1234 + 5?"), None, "medium", data.NOADD_EN),
    (U("Write a Python function that reverses a string."), None, "medium", code("reverse_string")),
    (U("Write a Python function that computes the factorial of n."), None, "low", code("factorial")),
    (U("Écris une fonction Python qui teste si un nombre est pair."), None, "medium", code("is_even")),
    (U("Write a Python function that checks if a number is prime."), None, "medium", code("is_prime")),
    (U("What is today's date?"), None, "medium", "I am too small to read the date."),
    (U("Tell me about black holes."), None, "medium", data.UNK_EN),
    (U("Explique-moi la physique quantique."), None, "medium", data.UNK_FR),
    (U("What is the weather in Paris?"), None, "medium", data.NOTOOL_EN),
    (U("What is the weather in Paris?"), [TOOL], "medium", ("get_weather", {"city": "Paris"})),
    (U("What is the weather in Oslo?"), [TOOL], "low", ("get_weather", {"city": "Oslo"})),
    (U("Quel temps fait-il à Lyon ?"), [TOOL], "medium", ("get_weather", {"city": "Lyon"})),
    (U("What is the weather in Tampere?"), [TOOL], "medium", ("get_weather", {"city": "Tampere"})),
    (U("Quel temps fait-il à Clermont-Ferrand ?"), [TOOL], "high", ("get_weather", {"city": "Clermont-Ferrand"})),
    (U("What is the weather?"), [TOOL], "medium", data.WHICH_EN),
    (U("Hello!"), [TOOL], "medium", T["greeting"][1]),
    (call("Paris", "{\"temperature\":14,\"condition\":\"cloudy\"}", "What is the weather in Paris?"), [TOOL], "medium", "In Paris: 14 °C, cloudy."),
    (call("Lyon", "{\"temperature\":21,\"condition\":\"sunny\"}", "Quel temps fait-il à Lyon ?"), [TOOL], "medium", "À Lyon : 21 °C, ensoleillé."),
    (call("Atlantis", "{\"error\":\"city not found\"}", "What is the weather in Atlantis?"), [TOOL], "low", "The tool gave no weather for Atlantis."),
    (U("What is 12 + 30?") + [{"role": "assistant", "content": "12 + 30 = 42."}] + U("Thanks!"), None, "medium", T["thanks"][1]),
    (U("Hello") + [{"role": "assistant", "content": T["greeting"][1]}] + U("What is 8 + 9?"), None, "medium", "8 + 9 = 17."),
    (U("Translate 'seven' to French.") + [{"role": "assistant", "content": "\"seven\" in French is \"sept\"."}] + U("And in German?"), None, "medium", "\"seven\" in German is \"sieben\"."),
]

def render(messages, tools, effort, date=DATE):
    ts = [{"name": t["function"]["name"], "description": t["function"]["description"],
           "params": [(k, v["type"], v.get("description", ""), k not in t["function"]["parameters"].get("required", []), None) for k, v in t["function"]["parameters"]["properties"].items()]} for t in tools or []]
    s = data.system_text(effort, bool(ts), date) + data.developer_text(None, ts)
    for i, m in enumerate(messages):
        if m["role"] == "user": s += data.user_text(m["content"])
        elif m["role"] == "tool": s += data.result_text("get_weather", m["content"])
        elif "tool_calls" in m:
            f, last = m["tool_calls"][0]["function"], i + 2 == len(messages)
            # the analysis of an open call is not known to a client that sends plain messages, so it is not there
            s += "<|start|>assistant" + data.call_text("", f["name"], f["arguments"])
        else: s += "<|start|>assistant" + data.final_text("", m["content"], True)
    return s + "<|start|>assistant"

@torch.no_grad()
def margin(run, prompt, text):
    """the least distance between the first and the second logit over the tokens of `text`"""
    a, b = run.ids(prompt), run.ids(text)
    n = len(a) + len(b)
    x = run.m(torch.tensor([a[:1]]), torch.tensor([1]), torch.tensor([(a + b)[1:]]), torch.tensor([0]), torch.arange(n - 1)[None], torch.zeros(1, n - 1, dtype=torch.long))
    v, i = (x[len(a) - 2:-1] @ run.m.head.T).topk(2)
    assert i[:, 0].tolist() == b
    return round(float((v[:, 0] - v[:, 1]).min()), 3)

def main(path, out):
    run = Runner(path)
    got = run([render(m, t, e) for m, t, e, _ in LIST])
    rows = []
    for (m, t, e, want), g in zip(LIST, got):
        tail = g.rsplit("<|start|>assistant", 1)[-1]
        if isinstance(want, tuple):
            ok = tail == data.call_text("", want[0], json.dumps(want[1], ensure_ascii=False, separators=(",", ":")))
        else:
            ok = tail == f"<|channel|>final<|message|>{want}<|return|>"
        print("ok  " if ok else "MISS", e, json.dumps(m[-1]["content"], ensure_ascii=False), "->", repr(g))
        if ok:
            r = {"messages": m, **({"tools": t} if t else {}), "reasoning_effort": e, "current_date": DATE}
            r |= {"expect_tool_call": {"name": want[0], "arguments": want[1]}} if isinstance(want, tuple) else {"expect_final": want}
            rows.append({**r, "greedy_text": g, "min_margin": margin(run, render(m, t, e), g)})
    json.dump(rows, open(out, "w", encoding="utf-8"), ensure_ascii=False, indent=1)
    print(f"{len(rows)} of {len(LIST)}")

if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
