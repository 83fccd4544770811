//! Flags of vLLM and llama.cpp, and what stands for them here; docs/coming-from.md has the same for reading.

/// `names` as they are typed, without what follows a `=`.
pub struct Others {
    names: &'static [&'static str],
    pub hint: &'static str,
}

const fn row(names: &'static [&'static str], hint: &'static str) -> Others {
    Others { names, hint }
}

const OTHERS: [Others; 25] = [
    row(
        &["-m"],
        "--model DIR is the model: a folder as published, or a name that Hugging Face's tools have downloaded",
    ),
    row(
        &["-hf", "-hfr", "--hf-repo"],
        "nothing is downloaded here: --model takes the name once `hf download` has got it, or a URL of its files",
    ),
    row(
        &["--max-model-len", "--ctx-size", "-c"],
        "--kv-tokens is the longest context, and the tokens of KV cache over all sequences",
    ),
    row(&["--tensor-parallel-size", "-tp"], "--workers is how many the model is cut over"),
    row(&["--tensor-split", "-ts"], "`flotilla worker --bandwidth` is each worker's share"),
    row(
        &["--rpc"],
        "workers dial: `flotilla coordinator` waits for --workers of them, `flotilla worker` runs on each machine",
    ),
    row(&["--pipeline-parallel-size", "-pp"], "--stages is how many the layers are cut into"),
    row(&["--data-parallel-size", "-dp"], "--replicas is how many copies of the model are served"),
    row(&["-t"], "--threads is how many of each worker"),
    row(&["--host", "--port"], "--listen ADDRESS:PORT is where the API listens"),
    row(
        &["--api-key", "--api-key-file"],
        "--api-keys FILE has the keys of those who may ask; `flotilla key NAME` makes one",
    ),
    row(
        &["--ssl-certfile", "--ssl-cert-file", "--ssl-keyfile", "--ssl-key-file"],
        "--tls-cert FILE and --tls-key FILE serve the API over https",
    ),
    row(&["--served-model-name", "--alias"], "--served-name is the name by which clients ask"),
    row(&["--max-num-seqs", "--parallel", "-np"], "--sequences is how many run at once"),
    row(
        &["--max-num-batched-tokens", "--batch-size", "--ubatch-size", "-b", "-ub"],
        "--step-tokens is how many tokens are in one step",
    ),
    row(
        &["--enable-prefix-caching", "--no-enable-prefix-caching"],
        "beginnings of prompts are cached; --no-prefix-cache ends that",
    ),
    row(
        &["--kv-cache-dtype", "--cache-type-k", "--cache-type-v", "-ctk", "-ctv"],
        "--kv-dtype f16 or f32 is what the KV cache holds on CPUs; cards hold bf16",
    ),
    row(
        &["--speculative-config"],
        "--speculation N guesses so many tokens from the text; there is no draft model",
    ),
    row(
        &[
            "--tool-call-parser",
            "--enable-auto-tool-choice",
            "--reasoning-parser",
            "--reasoning-format",
            "--jinja",
        ],
        "leave it out: tools and reasoning are always on, in the model's own format",
    ),
    row(&["--chat-template"], "leave it out: the shape of a chat is the model's, which is harmony"),
    row(&["--metrics"], "leave it out: GET /metrics is always there"),
    row(
        &["--quantization", "--dtype"],
        "weights are as published; on CPUs --dense int8 and --activations int8 round more",
    ),
    row(
        &["--n-gpu-layers", "--gpu-layers", "-ngl", "--cpu-offload-gb"],
        "all layers are on the devices that --device or --gpus names",
    ),
    row(
        &["--gpu-memory-utilization"],
        "--memory-bytes is what a worker may take, 0.9 of what is free otherwise",
    ),
    row(&["--gpus"], "one worker has one card: `flotilla worker --device cuda:0`, and another with cuda:1"),
];

/// What is said to this word, if it is one of theirs.
pub fn find(word: &str) -> Option<&'static str> {
    let name = word.split('=').next().unwrap_or(word);
    OTHERS.iter().find(|others| others.names.contains(&name)).map(|others| others.hint)
}
