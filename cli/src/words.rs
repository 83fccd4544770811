//! What was typed, and what is said to words that are not known here: whoever comes from vLLM or llama.cpp has theirs.

use clap::Parser;
use clap::error::{ContextKind, ContextValue, ErrorKind};

/// Flags of others, and what stands for them here.
const OTHERS: [(&str, &str); 22] = [
    ("--max-model-len", "--kv-tokens is the longest context, and the tokens of KV cache over all sequences"),
    ("--ctx-size", "--kv-tokens is the longest context, and the tokens of KV cache over all sequences"),
    ("-c", "--kv-tokens is the longest context, and the tokens of KV cache over all sequences"),
    ("--tensor-parallel-size", "--workers is how many the model is cut over"),
    (
        "-t",
        "--threads is how many of each worker; of vLLM's -tp: --workers is how many the model is cut over",
    ),
    ("--tensor-split", "--bandwidth of each worker is its share"),
    ("--pipeline-parallel-size", "--stages is how many the layers are cut into"),
    ("--data-parallel-size", "--replicas is how many copies of the model are served"),
    ("--host", "--listen ADDRESS:PORT is where the API listens"),
    ("--port", "--listen ADDRESS:PORT is where the API listens"),
    ("--api-key", "--api-keys FILE has the keys of those who may ask; `flotilla key NAME` makes one"),
    ("--api-key-file", "--api-keys FILE has the keys of those who may ask; `flotilla key NAME` makes one"),
    ("--served-model-name", "--served-name is the name by which clients ask"),
    ("--alias", "--served-name is the name by which clients ask"),
    ("--max-num-seqs", "--sequences is how many run at once"),
    ("--parallel", "--sequences is how many run at once"),
    ("-np", "--sequences is how many run at once"),
    ("--max-num-batched-tokens", "--step-tokens is how many tokens are in one step"),
    ("--ubatch-size", "--step-tokens is how many tokens are in one step"),
    ("--n-gpu-layers", "all layers are on the devices that --device or --gpus names"),
    ("--gpu-memory-utilization", "--memory-bytes is what a worker may take, 0.9 of what is free otherwise"),
    ("--ssl-certfile", "--tls-cert FILE and --tls-key FILE serve the API over https"),
];

const TOKEN: &str = "export FLOTILLA_JOIN_TOKEN=$(openssl rand -hex 16), the same on coordinator and workers";

/// As [`Parser::parse`], with hints.
pub fn parse<C: Parser>() -> C {
    C::try_parse().unwrap_or_else(|error| {
        // Of a stderr that is gone nobody reads it.
        let _ = error.print();
        if let Some(hint) = hint(&error) {
            eprintln!("hint: {hint}");
        }
        std::process::exit(error.exit_code())
    })
}

fn hint(error: &clap::Error) -> Option<&'static str> {
    let named = match error.get(ContextKind::InvalidArg)? {
        ContextValue::String(name) => std::slice::from_ref(name),
        ContextValue::Strings(names) => names,
        _ => return None,
    };
    match error.kind() {
        ErrorKind::UnknownArgument => named.iter().find_map(|name| of_others(name)),
        ErrorKind::MissingRequiredArgument => {
            named.iter().any(|name| name.starts_with("--join-token")).then_some(TOKEN)
        }
        _ => None,
    }
}

fn of_others(name: &str) -> Option<&'static str> {
    // Of `-ngl 99` the first letter is not known.
    let name = match name {
        "-n" | "-g" => "--n-gpu-layers",
        name => name.split('=').next().unwrap_or(name),
    };
    OTHERS.iter().find(|(other, _)| *other == name).map(|(_, ours)| *ours)
}
