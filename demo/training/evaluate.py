"""usage: evaluate.py MODELDIR [N]: greedy decoding of the exported checkpoint, exact match of the whole answer per skill
       evaluate.py MODELDIR --hf [N]: the same texts from transformers' GptOssForCausalLM, token by token
       evaluate.py MODELDIR --cities: "What is the weather in X?" for every listed city, and for 60 invented names never trained

Reads the safetensors files by itself. A weather conversation counts when the call and the final answer are both exact."""
import collections, json, os, random, struct, sys, time
import torch
from tokenizers import Tokenizer
import data, model as M

def load(path):
    """the exported checkpoint as the training module, dequantised to float32"""
    idx = json.load(open(f"{path}/model.safetensors.index.json"))["weight_map"]
    T = {}
    for f in sorted(set(idx.values())):
        b = open(f"{path}/{f}", "rb").read()
        n = struct.unpack("<Q", b[:8])[0]
        for k, h in json.loads(b[8:8 + n]).items():
            if k == "__metadata__": continue
            lo, hi = h["data_offsets"]
            raw = bytearray(b[8 + n + lo:8 + n + hi])
            t = torch.frombuffer(raw, dtype=torch.uint8 if h["dtype"] == "U8" else torch.bfloat16).view(h["shape"])
            T[k] = t if h["dtype"] == "U8" else t.float()
    def mx(n):
        fp4 = torch.tensor([0, .5, 1, 1.5, 2, 3, 4, 6, -0., -.5, -1, -1.5, -2, -3, -4, -6])
        b, s = T[n + "_blocks"].long(), T[n + "_scales"].float()
        v = torch.stack([fp4[b & 15], fp4[b >> 4]], -1).flatten(-2)
        return (v * torch.exp2(s - 127)[..., None]).flatten(-2)
    m = M.GptOss(json.load(open(f"{path}/config.json"))).eval()
    m.quant = False
    with torch.no_grad():
        m.emb.copy_(T["model.embed_tokens.weight"]); m.head.copy_(T["lm_head.weight"]); m.norm.copy_(T["model.norm.weight"])
        for i, b in enumerate(m.layers):
            p = f"model.layers.{i}."
            for x in "qkvo":
                getattr(b, "w" + x).copy_(T[f"{p}self_attn.{x}_proj.weight"]); getattr(b, "b" + x).copy_(T[f"{p}self_attn.{x}_proj.bias"])
            for d, n in (("n1", "input_layernorm.weight"), ("n2", "post_attention_layernorm.weight"), ("sinks", "self_attn.sinks"), ("wr", "mlp.router.weight"), ("br", "mlp.router.bias"),
                         ("gub", "mlp.experts.gate_up_proj_bias"), ("dnb", "mlp.experts.down_proj_bias")):
                getattr(b, d).copy_(T[p + n])
            b.gu.copy_(mx(p + "mlp.experts.gate_up_proj")); b.dn.copy_(mx(p + "mlp.experts.down_proj"))
    return m

class Runner:
    def __init__(self, path):
        self.m, self.tok = load(path), Tokenizer.from_file(f"{path}/tokenizer.json")
        self.stop = {self.tok.token_to_id("<|return|>"), self.tok.token_to_id("<|call|>"), self.tok.token_to_id("<|endoftext|>")}
    def ids(self, t):
        return self.tok.encode(t, add_special_tokens=False).ids
    def __call__(self, prompts, n=150, batch=48):
        """prompts: rendered texts that end with <|start|>assistant -> the texts the model writes, stop token included"""
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        out = [None] * len(prompts)
        for a in range(0, len(order), batch):
            ix = order[a:a + batch]
            for i, o in zip(ix, self.m.generate([self.ids(prompts[i]) for i in ix], self.stop, n)):
                out[i] = self.tok.decode(o, skip_special_tokens=False)
        return out

def cases(split, n, seed=77, per=None):
    """n conversations a skill, as [(skill, [(prompt, expected), ...])]"""
    g = data.Gen(seed, split)
    got = collections.Counter()
    want = ["add", "weather", "translate", "talk", "code", "unknown", "arith", "notool", "follow", "echo"]
    out, tries = [], 0
    while any(got[s] < n for s in want) and tries < 200 * n:
        tries += 1
        need = [s for s in want if got[s] < n]
        s = g.r.choice(need)
        e = g.r.choice(["low", "medium", "medium", "high"])
        on = s == "weather" or (s != "notool" and g.r.random() < .2)
        d, dev = data.random_date(g.r), g.developer(on)
        if s == "weather" and not dev[2]: continue
        if s == "notool" and dev[2]: continue
        if s == "follow": c = g.conv(e, on, d, dev, skill="follow", turns=0)
        else: c = g.conv(e, on, d, dev, skill="weather" if s == "notool" else s, turns=None)
        if c.skill not in want or got[c.skill] >= n: continue
        got[c.skill] += 1
        text, parts = data.system_text(e, on, d) + data.developer_text(dev[0], dev[1]), []
        for t, l in c.segs:
            if l: parts.append((text, t))
            text += t
        out.append((c.skill, e, parts))
    return out

def table(run, n, show=3):
    for split in ("train", "held"):
        cs = cases(split, n)
        flat = [(i, p, x) for i, (_, _, ps) in enumerate(cs) for p, x in ps]
        got = run([p for _, p, _ in flat])
        good, bad = collections.defaultdict(lambda: True), collections.defaultdict(list)
        for (i, p, x), y in zip(flat, got):
            if x != y:
                good[i] = False
                bad[cs[i][0]].append((p[p.rfind("<|start|>user"):], x, y))
        tot, ok = collections.Counter(), collections.Counter()
        for i, (s, e, _) in enumerate(cs):
            tot[s] += 1; ok[s] += good[i]
        for s in tot:
            print(f"{split:6} {s:10} {ok[s]:4}/{tot[s]:4} {100 * ok[s] / tot[s]:6.1f} %")
        print(f"{split:6} {'all':10} {sum(ok.values()):4}/{sum(tot.values()):4} {100 * sum(ok.values()) / sum(tot.values()):6.1f} %")
        for s in bad:
            for b in bad[s][:show]: print(f"    miss {split} {s}: {b[0]!r}\n      want {b[1]!r}\n      got  {b[2]!r}")

def hf(path, n):
    os.environ["HF_HUB_OFFLINE"] = "1"
    from transformers import GptOssForCausalLM, Mxfp4Config, AutoTokenizer
    ref = GptOssForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager", quantization_config=Mxfp4Config(dequantize=True)).eval()
    tk, run = AutoTokenizer.from_pretrained(path), Runner(path)
    flat = [(p, x) for s in ("train", "held") for _, _, ps in cases(s, max(1, n // 20), seed=5) for p, x in ps]
    same, worst = 0, 0.
    for (p, _), y in zip(flat, run([p for p, _ in flat])):
        ids = run.ids(p)
        assert ids == tk.encode(p, add_special_tokens=False), "tokenizers differ"
        o = ref.generate(torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long), do_sample=False, max_new_tokens=150, eos_token_id=sorted(run.stop), pad_token_id=M.N_BASE + 1)[0, len(ids):].tolist()
        same += tk.decode(o) == y
        if tk.decode(o) != y: print("differs", repr(p[-200:]), repr(y), repr(tk.decode(o)))
    print(f"transformers writes the same greedy text for {same} of {len(flat)} prompts")

def cities(run):
    from expected import TOOL, U, render
    r = random.Random(9)
    for name, cs in (("trained", data.CITIES), ("held out", data.HELD_CITIES), ("invented, held out", [data.pseudo_city(r, True) for _ in range(60)])):
        got = run([render(U(f"What is the weather in {c}?"), [TOOL], "medium") for c in cs])
        bad = [c for c, x in zip(cs, got) if not x.endswith(data.call_text("", "get_weather", json.dumps({"city": c}, ensure_ascii=False, separators=(",", ":"))))]
        print(f"{name}: {len(cs) - len(bad)} of {len(cs)}; wrong: {', '.join(bad)}")

if __name__ == "__main__":
    torch.set_num_threads(1)
    a = [x for x in sys.argv[2:] if x[:2] != "--"]
    t = time.time()
    if "--hf" in sys.argv: hf(sys.argv[1], int(a[0]) if a else 40)
    elif "--cities" in sys.argv: cities(Runner(sys.argv[1]))
    else: table(Runner(sys.argv[1]), int(a[0]) if a else 100)
    print(f"{time.time() - t:.0f} s")
