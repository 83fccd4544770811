"""Train the demo model's tokenizer: byte-level BPE, the o200k split, the harmony special tokens by name.
usage: make_tokenizer.py OUTDIR

The corpus is the training data itself. What has to be copied is written with the same tokens wherever it stands: digits never merge; no
merge joins a quote, or a space before a capital, to the letters behind; number words and weekdays are merged first, each to one token,
and never with a space. City names are cut out of the corpus, so that a name is several tokens and has to be copied piece by piece.
"""
import collections, json, os, random, sys
import regex
import data
from model import N_BASE, VOCAB

FIRST = 199998                                               # <|startoftext|> of the published vocabulary
NAMED = {0: "startoftext", 1: "endoftext", 4: "return", 5: "constrain", 7: "channel", 8: "start", 9: "end", 10: "message", 14: "call", 20: "endofprompt"}
PAT = "|".join([
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"\p{N}{1,3}", r" ?[^\s\p{L}\p{N}]+[\r\n/]*", r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+"])

def byte_chars():
    keep = [*range(33, 127), *range(161, 173), *range(174, 256)]
    m, n = {b: chr(b) for b in keep}, 0
    for b in range(256):
        if b not in m:
            m[b] = chr(256 + n); n += 1
    return m

class NoCity(data.Gen):
    def city(self):
        return "000"

def corpus(n):
    g = NoCity("bpe")
    for i in range(n):
        e, t, d = g.r.choice(["low", "medium", "high"]), g.r.random() < .4, data.random_date(g.r)
        dev = g.developer(t)
        c = g.conv(e, t, d, dev)
        if i % 3 == 0: yield data.developer_text(dev[0], dev[1])
        if i % 20 == 0: yield data.system_text(e, t, d)
        yield "".join(t for t, _ in c.segs)

def join(seqs, merge):
    a, b = merge
    for s, _ in seqs:
        i = 0
        while i < len(s) - 1:
            if s[i] == a and s[i + 1] == b: s[i:i + 2] = [a + b]
            i += 1

def best(seqs):
    pairs = collections.Counter()
    for s, c in seqs:
        for p in zip(s, s[1:]): pairs[p] += c
    return max(pairs, key=lambda p: (pairs[p], p)) if pairs else None

def train(n_tokens, n_conv=30000):
    """merges that make `n_tokens` tokens at most"""
    copied = {w for ws in data.WORDS for w in ws if w.isalpha()}
    split, special = regex.compile(PAT), regex.compile(r"<\|[a-z]+\|>")
    words = collections.Counter()
    for t in corpus(n_conv):
        for part in special.split(t):
            for w in split.findall(part):
                if regex.match(r"\p{N}", w): continue
                if len(w) > 1 and w[1].isalpha() and not w[0].isalpha() and (w[0] != " " or w[1].isupper() or w[1:] in copied): w = w[1:]
                words[w] += 1
    cut = lambda w: [bytes([b]) for b in w.encode()]
    merges, made = [], set()
    first = [(cut(w), 1) for w in sorted(copied)]
    seqs = [(cut(w), c ** .75) for w, c in words.items()]        # flattened, so that rare words get tokens too
    for part in (first, seqs):
        for m in merges: join(part, m)
        while len(made) < n_tokens:
            m = best(part)
            if not m: break
            join(part, m)
            merges.append(m); made.add(m[0] + m[1])
    print(len(made), "tokens;", len(copied), "words")
    return merges

def main(out):
    bc = byte_chars()
    s = lambda b: "".join(bc[x] for x in b)
    order = sorted(range(256), key=lambda b: ord(bc[b]))
    vocab = {s(bytes([b])): i for i, b in enumerate(order)}
    merges = []
    for a, b in train(N_BASE - 256):
        if len(vocab) == N_BASE: break
        if s(a + b) in vocab: continue
        vocab[s(a + b)] = len(vocab); merges.append([s(a), s(b)])
    assert len(vocab) == N_BASE and not any(len(k) > 1 and any(x.isdigit() for x in k) for k in vocab)
    sp = [(N_BASE + i, f"<|{NAMED.get(i, f'reserved_{N_BASE + i}')}|>") for i in range(21)]
    added = lambda t: {"content": t, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    tok = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [{"id": i, **added(t)} for i, t in sp], "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": PAT}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}]},
        "post_processor": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
                  "fuse_unk": False, "byte_fallback": False, "ignore_merges": True, "vocab": vocab, "merges": merges}}
    os.makedirs(out, exist_ok=True)
    w = lambda f, d: open(os.path.join(out, f), "w", encoding="utf-8").write(json.dumps(d, ensure_ascii=False, indent=2))
    w("tokenizer.json", tok)
    w("tokenizer_config.json", {"added_tokens_decoder": {str(i): {k: v for k, v in sorted(added(t).items())} for i, t in sp}, "bos_token": "<|startoftext|>",
        "clean_up_tokenization_spaces": False, "eos_token": "<|return|>", "extra_special_tokens": {}, "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": 1000000000000000019884624838656, "pad_token": "<|endoftext|>", "tokenizer_class": "PreTrainedTokenizerFast"})
    w("special_tokens_map.json", {"bos_token": "<|startoftext|>", "eos_token": "<|return|>", "pad_token": "<|endoftext|>"})

if __name__ == "__main__":
    main(sys.argv[1])
