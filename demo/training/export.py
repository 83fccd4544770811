"""usage: export.py CHECKPOINT.pt MODELDIR: writes config.json, generation_config.json, two safetensors shards and their index"""
import json, os, struct, sys
import torch
import model as M

def pack(w):
    """w [..., K], already on the MXFP4 grid -> blocks uint8 [..., K/32, 16], scales uint8 [..., K/32]; the low nibble is the even element"""
    g = w.unflatten(-1, (-1, 32))
    s = M.mx_scale(g)
    # a block whose rounded maximum fell below its own threshold has another scale than it was rounded with: any scale that holds it exactly will do
    code = torch.searchsorted(torch.tensor([0., .5, 1, 1.5, 2, 3, 4, 6]), (g / s).abs().contiguous())
    grid = torch.tensor([0., .5, 1, 1.5, 2, 3, 4, 6])
    assert torch.equal(grid[code.clamp_max(7)] * s * g.sign(), g), "not on the grid"
    code = (code + 8 * (g < 0)).to(torch.uint8)
    e = torch.log2(s[..., 0]).round().to(torch.int32) + 127
    return code[..., 0::2] | (code[..., 1::2] << 4), e.to(torch.uint8)

def tensors(m, raw):
    """`raw`: the trained module; experts are packed from their unrounded weights, with the scales the rounding used"""
    T = {"model.embed_tokens.weight": raw.emb}
    for i, b in enumerate(raw.layers):
        p = f"model.layers.{i}."
        T[p + "input_layernorm.weight"] = b.n1
        for x in "qkvo":
            T[f"{p}self_attn.{x}_proj.weight"], T[f"{p}self_attn.{x}_proj.bias"] = getattr(b, "w" + x), getattr(b, "b" + x)
        T[p + "self_attn.sinks"] = b.sinks
        T[p + "post_attention_layernorm.weight"] = b.n2
        T[p + "mlp.router.weight"], T[p + "mlp.router.bias"] = b.wr, b.br
        for n, w, bias in (("gate_up_proj", b.gu, b.gub), ("down_proj", b.dn, b.dnb)):
            T[f"{p}mlp.experts.{n}_blocks"], T[f"{p}mlp.experts.{n}_scales"] = pack(M.mx_round(w))
            T[f"{p}mlp.experts.{n}_bias"] = bias
    T["model.norm.weight"], T["lm_head.weight"] = raw.norm, raw.head
    return {k: v.detach() if v.dtype == torch.uint8 else v.detach().bfloat16() for k, v in T.items()}

def save(path, T):
    hdr, off, body = {"__metadata__": {"format": "pt"}}, 0, []
    for n, t in T.items():
        b = (t if t.dtype == torch.uint8 else t.contiguous().view(torch.uint16)).numpy().tobytes()
        hdr[n] = {"dtype": "U8" if t.dtype == torch.uint8 else "BF16", "shape": list(t.shape), "data_offsets": [off, off + len(b)]}
        off += len(b); body.append(b)
    h = json.dumps(hdr, separators=(",", ":")).encode()
    h += b" " * (-len(h) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(h)) + h + b"".join(body))

def main(ck, out):
    torch.set_num_threads(1)
    m = M.GptOss()
    m.load_state_dict(torch.load(ck, map_location="cpu")["model"])
    T = tensors(m, m)
    size = {k: v.numel() * v.element_size() for k, v in T.items()}
    total, acc, cut, wm = sum(size.values()), 0, [{}, {}], {}
    for k, v in T.items():
        i = min(1, acc * 2 // total)
        cut[i][k] = v; acc += size[k]
        wm[k] = f"model-{i:05d}-of-00001.safetensors"
    os.makedirs(out, exist_ok=True)
    for i in range(2): save(f"{out}/model-{i:05d}-of-00001.safetensors", cut[i])
    w = lambda f, d: open(f"{out}/{f}", "w").write(json.dumps(d, indent=2))
    w("model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": dict(sorted(wm.items()))})
    w("config.json", M.CFG)
    w("generation_config.json", {"bos_token_id": M.N_BASE, "do_sample": True, "eos_token_id": [M.N_BASE + 4, M.N_BASE + 1, M.N_BASE + 14], "pad_token_id": M.N_BASE + 1, "transformers_version": "4.55.0.dev0"})
    print("tensors", total, "bytes; parameters", sum(p.numel() for p in m.parameters()))

if __name__ == "__main__":
    main(*sys.argv[1:])
