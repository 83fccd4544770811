//! A model of every kind of tensor in 0.3 MB, on disk in several shards.

use flotilla_engine::weights::{GenerationConfig, Synthetic, write_checkpoint};
use flotilla_shared::ModelSpec;
use serde_json::json;
use std::path::Path;

pub fn config() -> String {
    let mut config: serde_json::Value = serde_json::from_str(flotilla_shared::spec::PUBLISHED[1].1).unwrap();
    let sizes = [
        ("hidden_size", 64),
        ("intermediate_size", 160),
        ("num_hidden_layers", 2),
        ("num_attention_heads", 16),
        ("num_key_value_heads", 8),
        ("head_dim", 4),
        ("num_local_experts", 6),
        ("vocab_size", 203),
    ];
    for (field, size) in sizes {
        config[field] = json!(size);
    }
    config["layer_types"] = json!(["sliding_attention", "full_attention"]);
    config.to_string()
}

pub fn spec() -> ModelSpec {
    ModelSpec::from_config_json(&config()).unwrap()
}

pub fn synthetic() -> Synthetic {
    Synthetic::new(spec(), 11)
}

pub const SHARD_BYTES: u64 = 60_000;

/// Writes it into `dir`, in several shards.
pub fn write(dir: &Path) {
    let generation = GenerationConfig::like_published(&spec());
    write_checkpoint(dir, &synthetic(), &config(), &generation, SHARD_BYTES, |_, _| {}).unwrap();
}
