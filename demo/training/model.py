"""The gpt-oss forward pass, written for training on a CPU: the same mathematics as transformers' GptOssForCausalLM.

Conversations of a batch that share a system message share its keys and values too (`batch` holds each system message once). Expert
weights pass through MXFP4 in the forward pass and are trained straight through it, so what is exported is what was trained.
"""
import math
import torch
import torch.nn.functional as F
from torch import nn

N_BASE, VOCAB = 1536, 1568                                   # tokens of bytes and merges; with the 21 special ones behind them, padded to 49 * 32

CFG = {
    "architectures": ["GptOssForCausalLM"], "attention_bias": True, "attention_dropout": 0.0, "eos_token_id": N_BASE + 4,
    "experts_per_token": 2, "head_dim": 32, "hidden_act": "silu", "hidden_size": 128, "initial_context_length": 4096,
    "initializer_range": 0.02, "intermediate_size": 128, "layer_types": ["sliding_attention", "full_attention"] * 2,
    "max_position_embeddings": 131072, "model_type": "gpt_oss", "num_attention_heads": 8, "num_experts_per_tok": 2,
    "num_hidden_layers": 4, "num_key_value_heads": 4, "num_local_experts": 8, "output_router_logits": False, "pad_token_id": N_BASE + 1,
    "quantization_config": {"modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"],
                            "quant_method": "mxfp4"},
    "rms_norm_eps": 1e-05,
    "rope_scaling": {"beta_fast": 32.0, "beta_slow": 1.0, "factor": 32.0, "original_max_position_embeddings": 4096, "rope_type": "yarn", "truncate": False},
    "rope_theta": 150000, "router_aux_loss_coef": 0.9, "sliding_window": 64, "swiglu_limit": 7.0, "tie_word_embeddings": False,
    "transformers_version": "4.55.0.dev0", "use_cache": True, "vocab_size": VOCAB,
}

def mx_scale(w):
    """w [..., K/32, 32] -> 2^e per block: the largest element lands in (3.5, 7], where 6 is the largest value of FP4"""
    a = w.abs().amax(-1, keepdim=True).clamp_min(1e-20)
    return torch.exp2(torch.floor(torch.log2(a * (8 / 7))) - 2)

def mx_round(w):
    """w [..., K] -> the same, rounded to MXFP4 (blocks of 32 along the last dimension)"""
    g = w.unflatten(-1, (-1, 32))
    s = mx_scale(g)
    x = (g / s).abs()
    step = torch.where(x < 2, 0.5, torch.where(x < 4, 1.0, 2.0))
    q = (torch.round(x / step) * step).clamp_max(6.0) * s
    return torch.where(g < 0, -q, q).flatten(-2)

class _Fake(torch.autograd.Function):
    fn = staticmethod(mx_round)
    @staticmethod
    def forward(ctx, w):
        return _Fake.fn(w).to(torch.bfloat16)                       # exact: FP4 times a power of two
    @staticmethod
    def backward(ctx, g):
        return g.float()

def yarn(c):
    r, d, base = c["rope_scaling"], c["head_dim"], float(c["rope_theta"])
    half, L0 = d // 2, r["original_max_position_embeddings"]
    cut = lambda rot: half * math.log(L0 / (rot * 2 * math.pi)) / math.log(base)
    low, high = max(cut(r["beta_fast"]), 0), min(cut(r["beta_slow"]), d - 1)
    j = torch.arange(half, dtype=torch.float64)
    f = base ** (-j / half)
    ramp = ((j - low) / (high - low)).clamp(0, 1)
    return (f / r["factor"] * ramp + f * (1 - ramp)), 0.1 * math.log(r["factor"]) + 1.0

def rms(x, w):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * w

def act(h):
    g, u = h[..., 0::2].float().clamp(max=7.0), h[..., 1::2].float().clamp(-7.0, 7.0)
    return (u + 1) * g * torch.sigmoid(1.702 * g)

def sink_softmax(s, mask, sink):
    s = torch.where(mask, s.float(), float("-inf"))
    m = torch.maximum(s.amax(-1, keepdim=True), sink).detach()
    e = torch.exp(s - m)
    return (e / (e.sum(-1, keepdim=True) + torch.exp(sink - m))).to(torch.bfloat16 if torch.is_autocast_enabled("cpu") else torch.float32)

class Block(nn.Module):
    def __init__(self, c, i):
        super().__init__()
        H, I, E, D, nq, nk = (c[k] for k in ("hidden_size", "intermediate_size", "num_local_experts", "head_dim", "num_attention_heads", "num_key_value_heads"))
        self.c, self.window = c, c["sliding_window"] if c["layer_types"][i] == "sliding_attention" else None
        P = lambda *s, std=None: nn.Parameter(torch.randn(*s) * (std or s[-1] ** -.5))
        Z = lambda *s: nn.Parameter(torch.zeros(*s))
        self.n1, self.n2 = nn.Parameter(torch.ones(H)), nn.Parameter(torch.ones(H))
        self.wq, self.wk, self.wv, self.wo = P(nq * D, H), P(nk * D, H), P(nk * D, H), P(H, nq * D, std=.3 * (nq * D) ** -.5)
        self.bq, self.bk, self.bv, self.bo, self.sinks = Z(nq * D), Z(nk * D), Z(nk * D), Z(H), Z(nq)
        self.wr, self.br = P(E, H), Z(E)
        self.gu, self.gub = P(E, 2 * I, H), Z(E, 2 * I)
        self.dn, self.dnb = P(E, H, I, std=.3 * I ** -.5), Z(E, H)

class GptOss(nn.Module):
    def __init__(self, c=CFG):
        super().__init__()
        self.c = c
        self.emb = nn.Parameter(torch.randn(c["vocab_size"], c["hidden_size"]) * .5)
        self.head = nn.Parameter(torch.randn(c["vocab_size"], c["hidden_size"]) * .02)
        self.norm = nn.Parameter(torch.ones(c["hidden_size"]))
        self.layers = nn.ModuleList(Block(c, i) for i in range(c["num_hidden_layers"]))
        f, conc = yarn(c)
        a = torch.arange(4096, dtype=torch.float64)[:, None] * f
        self.register_buffer("cos", (a.cos() * conc).float(), persistent=False)
        self.register_buffer("sin", (a.sin() * conc).float(), persistent=False)
        self.quant = True

    def qkv(self, b, h, pos):
        c, D = self.c, self.c["head_dim"]
        w, bias = torch.cat([b.wq, b.wk, b.wv]), torch.cat([b.bq, b.bk, b.bv])
        nq, nk = c["num_attention_heads"], c["num_key_value_heads"]
        y = F.linear(h, w, bias).view(len(h), nq + 2 * nk, D)
        r, v = y[:, :nq + nk].float(), y[:, nq + nk:]
        cs, sn, m = self.cos[pos][:, None], self.sin[pos][:, None], D // 2
        r = torch.cat([r[..., :m] * cs - r[..., m:] * sn, r[..., m:] * cs + r[..., :m] * sn], -1)
        return r[:, :nq], r[:, nq:], v

    def attend(self, b, q, k, v, mask):
        """q [B, T, nq, D], k, v [B, S, nk, D], mask [B, T, S] -> [B, T, nq * D]"""
        B, T, nq, D = q.shape
        nk = k.shape[2]
        g, dt = nq // nk, v.dtype
        q = (q * D ** -.5).to(dt).view(B, T, nk, g, D).permute(0, 2, 3, 1, 4).reshape(B * nk, g * T, D)
        k, v = (t.to(dt).transpose(1, 2).reshape(B * nk, -1, D) for t in (k, v))
        s = torch.bmm(q, k.mT).view(B, nk, g, T, -1)
        p = self.sink_softmax(s, mask[:, None, None], b.sinks.view(1, nk, g, 1, 1))
        o = torch.bmm(p.to(dt).view(B * nk, g * T, -1), v)
        return o.view(B, nk, g, T, D).permute(0, 3, 1, 2, 4).reshape(B, T, nq * D)
    sink_softmax = staticmethod(sink_softmax)

    def moe(self, b, x):
        c = self.c
        K, E = c["num_experts_per_tok"], c["num_local_experts"]
        with torch.autocast("cpu", enabled=False):
            lg = F.linear(x.float(), b.wr, b.br)
            tv, ti = lg.topk(K, -1)
            w = tv.softmax(-1)
        if self.training:
            p = lg.softmax(-1).mean(0)
            load = F.one_hot(ti, E).float().mean((0, 1))
            self.aux = self.aux + E * (p * load).sum()
            self.load.append(load.detach())
        gu, dn = (_Fake.apply(b.gu), _Fake.apply(b.dn)) if self.quant else (b.gu, b.dn)
        # group the tokens by expert; pad each group to a multiple of 64 with rows of weight zero, so that the matrix products
        # come in few shapes (a new shape costs oneDNN more than the product itself)
        flat = ti.flatten()
        order = flat.argsort()
        n = torch.bincount(flat, minlength=E)
        np_ = (n + 63) // 64 * 64
        shift = (np_ - n).cumsum(0) - (np_ - n)
        at = torch.arange(len(flat)) + shift[flat[order]]
        tok = torch.zeros(int(np_.sum()), dtype=torch.long).index_copy(0, at, order // K)
        ws = torch.zeros(len(tok)).index_copy(0, at, w.flatten()[order])
        n = np_.tolist()
        xs = x.to(gu.dtype)[tok].split(n)
        hs = torch.cat([F.linear(xs[e], gu[e], b.gub[e].to(gu.dtype)) for e in range(E)])
        a = self.act(hs).to(gu.dtype).split(n)
        ys = torch.cat([F.linear(a[e], dn[e], b.dnb[e].to(gu.dtype)) for e in range(E)])
        return torch.zeros_like(x).index_add(0, tok, ys.float() * ws[:, None])
    act = staticmethod(act)
    rms = staticmethod(rms)

    def forward(self, pre, plen, ids, grp, off, seg):
        """pre [G, P] prefixes (right-padded), plen [G]; ids [B, T] what follows: several conversations a row, `seg` [B, T] says which and
        `off` [B, T] how far into it; grp [B] whose prefix -> logits' input [B*T, H]"""
        G, P = pre.shape
        B, T = ids.shape
        self.aux, self.load = 0., []
        nk, nq, D = self.c["num_key_value_heads"], self.c["num_attention_heads"], self.c["head_dim"]
        jp, jt = torch.arange(P), torch.arange(T)
        pos = torch.cat([jp.expand(G, P).flatten(), (plen[grp][:, None] + off).flatten()])
        full_p = (jp[None] <= jp[:, None]).expand(G, P, P)
        qp = plen[grp][:, None] + off                                                      # [B, T]
        kp = torch.cat([jp.expand(B, P), qp], 1)                                           # [B, P + T]
        ok = torch.cat([(jp[None] < plen[grp][:, None])[:, None].expand(B, T, P), (jt[None] <= jt[:, None]) & (seg[:, None] == seg[:, :, None])], 2)
        W = self.c["sliding_window"]
        slide_p = full_p & (jp[None] > jp[:, None] - W)
        full_c, slide_c = ok, ok & (kp[:, None] > qp[:, :, None] - W)
        x = self.emb[torch.cat([pre.flatten(), ids.flatten()])]
        for b in self.layers:
            q, k, v = self.qkv(b, self.rms(x, b.n1), pos)
            cut = lambda t, n: (t[:G * P].view(G, P, n, D), t[G * P:].view(B, T, n, D))
            (q0, q1), (k0, k1), (v0, v1) = cut(q, nq), cut(k, nk), cut(v, nk)
            o0 = self.attend(b, q0, k0, v0, slide_p if b.window else full_p)
            o1 = self.attend(b, q1, torch.cat([k0[grp], k1], 1), torch.cat([v0[grp], v1], 1), slide_c if b.window else full_c)
            o = torch.cat([o0.reshape(G * P, -1), o1.reshape(B * T, -1)])
            x = x + F.linear(o, b.wo, b.bo).float()
            x = x + self.moe(b, self.rms(x, b.n2))
        return self.rms(x[G * P:], self.norm)

    # ---- inference, in float32 on rounded weights (`quant` off)

    @torch.no_grad()
    def generate(self, prompts, stop, n_new):
        """greedy; left-padded batch with a KV cache. Returns a list of id lists, the stop token last"""
        B, T = len(prompts), max(map(len, prompts))
        D, nk, W = self.c["head_dim"], self.c["num_key_value_heads"], self.c["sliding_window"]
        nq = self.c["num_attention_heads"]
        ids = torch.tensor([[N_BASE + 1] * (T - len(p)) + list(p) for p in prompts])
        first = torch.tensor([T - len(p) for p in prompts])
        K = [torch.zeros(B, T + n_new, nk, D) for _ in self.layers]; V = [t.clone() for t in K]
        out, done, at = [[] for _ in prompts], [False] * B, 0
        while at < T + n_new - 1:
            n = ids.shape[1]
            qi = torch.arange(at, at + n); ki = torch.arange(at + n)
            ok = (ki[None, None] <= qi[None, :, None]) & (ki[None, None] >= first[:, None, None])
            ok = ok | (ki[None, None] == qi[None, :, None])
            sl = ok & (ki[None, None] > qi[None, :, None] - W)
            pos = (qi[None] - first[:, None]).clamp_min(0).flatten()
            x = self.emb[ids.flatten()]
            for i, b in enumerate(self.layers):
                q, k, v = self.qkv(b, rms(x, b.n1), pos)
                K[i][:, at:at + n], V[i][:, at:at + n] = k.view(B, n, nk, D), v.view(B, n, nk, D)
                o = self.attend(b, q.view(B, n, nq, D), K[i][:, :at + n], V[i][:, :at + n], sl if b.window else ok)
                x = x + F.linear(o.reshape(B * n, -1), b.wo, b.bo)
                x = x + self.moe(b, rms(x, b.n2))
            lg = F.linear(rms(x.view(B, n, -1)[:, -1], self.norm), self.head)
            nxt = lg.argmax(-1).tolist()
            at += n
            for j, t in enumerate(nxt):
                if not done[j]:
                    out[j].append(t); done[j] = t in stop
            if all(done): break
            ids = torch.tensor(nxt)[:, None]
        return out

    def rounded(self):
        """a copy with the weights as they are exported: experts through MXFP4, everything else through bfloat16"""
        m = GptOss(self.c).eval()
        m.quant = False
        with torch.no_grad():
            for (n, p), q in zip(self.named_parameters(), m.parameters()):
                q.copy_(mx_round(p) if n.endswith((".gu", ".dn")) else p.bfloat16().float())
        return m
