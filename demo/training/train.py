"""usage: train.py OUTDIR MINUTES [THREADS]: trains for so long, writes OUTDIR/last.pt and OUTDIR/log.txt"""
import os, sys, time, math, random
import torch, torch.nn.functional as F
from tokenizers import Tokenizer
import data, model as M

out, minutes = sys.argv[1], float(sys.argv[2])
torch.set_num_threads(int(sys.argv[3]) if len(sys.argv) > 3 else 1)
FLAT = float(os.environ.get("FLAT", .35))
LR, WARM = float(os.environ.get("LR", 4e-3)), 40
MUON = os.environ.get("MUON", "1") == "1"
os.makedirs(out, exist_ok=True)
torch.manual_seed(0)
tok = Tokenizer.from_file(os.path.join(os.path.dirname(__file__), "../model/tokenizer.json"))
cache = {}
def enc(t):
    r = cache.get(t)
    if r is None:
        if len(cache) > 100000: cache.clear()
        r = cache[t] = tok.encode(t, add_special_tokens=False).ids
    return r

def batches(gen, T=224):
    """endless batches of rows of T tokens; a row holds conversations of one prefix, a batch a few prefixes, all with tools or all without"""
    up = lambda n, k: -(-n // k) * k                                                 # few shapes, as in the experts
    while True:
        rows = {}
        for p, tools, c in data.pool(gen, 768):
            ids, tg = [], []
            for t, l in c.segs:
                e = enc(t); ids += e; tg += [l] * len(e)
            if len(ids) > T: continue
            rs = rows.setdefault((tools, p), [])
            fit = [r for r in rs if len(r[0]) + len(ids) <= T]
            if not fit: rs.append(([], [], [], [])); fit = rs[-1:]
            r = max(fit, key=lambda r: len(r[0]))
            r[3].extend([r[3][-1] + 1 if r[3] else 0] * len(ids)); r[2].extend(range(len(ids))); r[0].extend(ids); r[1].extend(tg)
        rows = {k: [r for r in rs if len(r[0]) > .7 * T] for k, rs in rows.items()}  # what is left over at the end is dropped
        cut = []
        for tools, G, n in ((False, 3, 4), (True, 3, 3)):                            # G prefixes, n rows of each
            left = {p: rs for (t, p), rs in rows.items() if t == tools}
            while True:
                ps = sorted((p for p in left if len(left[p]) >= n), key=lambda p: -len(left[p]))[:G]
                if len(ps) < G: break
                cut.append([(p, left[p].pop()) for p in ps for _ in range(n)])
        gen.r.shuffle(cut)
        for rs in cut:
            pre = sorted({p for p, _ in rs})
            pi = [enc(p) for p in pre]
            P = up(max(map(len, pi)), 32)
            pad = lambda x, n, v: x + [v] * (n - len(x))
            col = lambda k, v: torch.tensor([pad(r[k], T, v) for _, r in rs])
            yield (torch.tensor([pad(p, P, M.N_BASE + 1) for p in pi]), torch.tensor([len(p) for p in pi]), col(0, M.N_BASE + 1), torch.tensor([pre.index(p) for p, _ in rs]),
                   col(2, 0), col(3, 99), col(1, False), sum(len(r[0]) for _, r in rs))

def loss_of(m, b):
    pre, plen, ids, grp, off, seg, tg, _ = b
    with torch.autocast("cpu", dtype=torch.bfloat16):
        x = m(pre, plen, ids, grp, off, seg)
        keep = tg[:, 1:].flatten().nonzero()[:, 0]
        T = ids.shape[1]
        rows = keep // (T - 1) * T + keep % (T - 1)
        lg = F.linear(x[rows], m.head).float()
    return lg, ids[:, 1:].flatten()[keep]

m = M.GptOss()
if os.environ.get("FROM"):
    w = torch.load(os.environ["FROM"])["model"]
    if os.environ.get("FROM_TOKENIZER"):                                             # the weights are those of another vocabulary: a token starts as the mean of its pieces
        old = Tokenizer.from_file(os.environ["FROM_TOKENIZER"])
        special = old.token_to_id("<|startoftext|>") - M.N_BASE
        pieces = lambda i: old.encode(tok.decode([i]), add_special_tokens=False).ids if i < M.N_BASE else [i + special]
        p = [torch.tensor(pieces(i) or [0]) for i in range(M.N_BASE + 21)] + [torch.tensor([0])] * (M.VOCAB - M.N_BASE - 21)
        for n in ("emb", "head"): w[n] = torch.stack([w[n][x].mean(0) for x in p])
    m.load_state_dict(w)
try:
    q = torch.compile(M.mx_round); q(m.layers[0].gu.detach()); M._Fake.fn = staticmethod(q)
    if os.environ.get("COMPILE", "1") == "1":
        M.GptOss.act = staticmethod(torch.compile(M.act, dynamic=True)); M.GptOss.rms = staticmethod(torch.compile(M.rms, dynamic=True)); M.GptOss.sink_softmax = staticmethod(torch.compile(M.sink_softmax, dynamic=True))
except Exception as e:
    print("no compiler:", str(e)[:200])
mu = [p for n, p in m.named_parameters() if n.rsplit(".", 1)[-1] in ("wq", "wk", "wv", "wo", "gu", "dn")] if MUON else []
ad = [p for p in m.parameters() if not any(p is x for x in mu)]
adam = torch.optim.AdamW([{"params": [p for p in ad if p.ndim > 1], "weight_decay": .01}, {"params": [p for p in ad if p.ndim == 1], "weight_decay": 0.}],
                         lr=LR, betas=(.9, .98), fused=True)
groups = {}
for p in mu: groups.setdefault(tuple(sorted(p.shape[-2:])), []).append(p)
mom = {id(p): torch.zeros_like(p) for p in mu}

@torch.no_grad()
def muon(lr):
    """momentum, made orthogonal by Newton-Schulz (bf16, batched over every matrix of a shape), RMS of a step like Adam's"""
    for sh, ps in groups.items():
        X = []
        for p in ps:
            g = mom[id(p)].lerp_(p.grad, .05)
            u = p.grad.lerp(g, .95)
            u = u.view(-1, *u.shape[-2:])
            X.append(u.mT if u.shape[-2] > u.shape[-1] else u)
        n = [len(x) for x in X]
        X = torch.cat(X).bfloat16()
        X = X / (X.flatten(1).float().norm(dim=1)[:, None, None] + 1e-12).bfloat16()
        for _ in range(5):
            A = X @ X.mT
            X = torch.baddbmm(X, torch.baddbmm(A, A, A, beta=-4.7750, alpha=2.0315), X, beta=3.4445)
        for p, u in zip(ps, X.float().split(n)):
            u = u.mT if p.shape[-2] > p.shape[-1] else u
            p.mul_(1 - lr * .02).add_(u.reshape(p.shape), alpha=-lr * .2 * max(p.shape[-2:]) ** .5)

gen = data.Gen(int(os.environ.get("SEED", 1)))
held = next(batches(data.Gen(2, "held")))
t0, step, seen, tgt, tl = time.time(), 0, 0, 0, 0.
log = open(f"{out}/log.txt", "a")
say = lambda s: (print(s, flush=True), log.write(s + "\n"), log.flush())
say(f"parameters {sum(p.numel() for p in m.parameters())} muon {sum(p.numel() for p in mu)}")
m.train()
lp = [0., 0., 0.]
for b in batches(gen):
    f = (time.time() - t0) / 60 / minutes
    if f >= 1: break
    lr = LR * min(1, (step + 1) / WARM) * (1 if f < FLAT else (1 - f) / (1 - FLAT))          # flat, then linear to zero by the clock
    for g in adam.param_groups: g["lr"] = lr
    a = time.time()
    lg, y = loss_of(m, b)
    loss = F.cross_entropy(lg, y)
    c = time.time()
    (loss + .01 * m.aux).backward()
    d = time.time()
    gn = torch.nn.utils.clip_grad_norm_(ad, 1.0)
    adam.step()
    if MUON: muon(2 * lr)
    m.zero_grad(set_to_none=True)
    e = time.time()
    lp = [x + y for x, y in zip(lp, (c - a, d - c, e - d))]
    step += 1; seen += b[7]; tgt += len(y); tl += loss.item() * len(y)
    if step % 20 == 0:
        acc = (lg.argmax(-1) == y).float().mean().item()
        say(f"step {step} min {f * minutes:.1f} lr {lr:.1e} loss {tl / tgt:.4f} acc {acc:.4f} tokens {seen / 1e6:.2f}M tok/s {seen / (time.time() - t0):.0f} gn {gn:.2f} "
            f"load {min(l.min().item() for l in m.load):.3f}-{max(l.max().item() for l in m.load):.2f} fwd/bwd/opt {lp[0] / 20:.2f} {lp[1] / 20:.2f} {lp[2] / 20:.2f}")
        tgt, tl, lp = 0, 0., [0., 0., 0.]
    if step % 100 == 0:
        m.eval()
        with torch.no_grad():
            lg, y = loss_of(m, held)
        say(f"  held-out loss {F.cross_entropy(lg, y):.4f} acc {(lg.argmax(-1) == y).float().mean():.4f}")
        m.train()
        torch.save({"model": m.state_dict(), "step": step, "tokens": seen, "minutes": f * minutes}, f"{out}/last.tmp"); os.replace(f"{out}/last.tmp", f"{out}/last.pt")
torch.save({"model": m.state_dict(), "step": step, "tokens": seen, "minutes": (time.time() - t0) / 60}, f"{out}/last.pt")
say(f"done: {step} steps, {seen} tokens, {(time.time() - t0) / 60:.1f} minutes")
