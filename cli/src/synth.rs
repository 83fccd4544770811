//! `flotilla synth`: a random checkpoint of a published shape, to load-test before weights are here.

use crate::model::config_text;
use anyhow::{Context, Result, ensure};
use clap::Args;
use flotilla_coordinator::tokenizer::{Tokenizer, TokenizerError};
use flotilla_engine::weights::{GenerationConfig, SHARD_BYTES_MAX, Synthetic, write_checkpoint};
use flotilla_shared::ModelSpec;
use flotilla_shared::units::Bytes;
use indicatif::{ProgressBar, ProgressStyle};
use std::path::{Path, PathBuf};

pub mod tokenizer;

/// Write a checkpoint with random weights, in the published format.
#[derive(Debug, Args)]
pub struct SynthArgs {
    /// gpt-oss-120b, gpt-oss-20b, or a checkpoint's folder or config.json
    #[arg(long)]
    like: String,
    /// So many layers [default: as many as it has]; more of them go on in the same pattern
    #[arg(long)]
    layers: Option<usize>,
    /// Same seed, same bytes; workers make the same with --weights synthetic:SEED
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Folder to write; it must be empty or new
    #[arg(long)]
    out: PathBuf,
    /// Copy this tokenizer.json instead of writing one of made-up words
    #[arg(long)]
    tokenizer: Option<PathBuf>,
}

pub fn run(args: &SynthArgs) -> Result<()> {
    ensure!(args.layers != Some(0), "--layers must be at least 1");
    let config = config_text(&args.like, args.layers)?;
    let spec = ModelSpec::from_config_json(&config).with_context(|| format!("in {}", args.like))?;
    let source = Synthetic::new(spec.clone(), args.seed);
    let tokenizer = match &args.tokenizer {
        Some(path) => read_tokenizer(path)?,
        None => tokenizer::json(spec.vocab)?,
    };
    let cannot =
        || format!("cannot make {}\nhint: --out is a folder to write, empty or new", args.out.display());
    std::fs::create_dir_all(&args.out).with_context(cannot)?;
    let style = ProgressStyle::with_template("{bar:40} {bytes}/{total_bytes} {bytes_per_sec} {eta}");
    let bar = ProgressBar::new(0).with_style(style.expect("the template is valid"));
    let written = write_checkpoint(
        &args.out,
        &source,
        &config,
        &GenerationConfig::like_published(&spec),
        SHARD_BYTES_MAX,
        |done, total| {
            bar.set_length(total);
            bar.set_position(done);
        },
    )?;
    bar.finish_and_clear();
    let path = args.out.join("tokenizer.json");
    std::fs::write(&path, tokenizer).with_context(|| format!("cannot write {}", path.display()))?;
    println!("{}: {} of weights in {} shards", args.out.display(), Bytes(written.bytes), written.shards);
    Ok(())
}

/// The file's bytes, if it is one that a server can load.
fn read_tokenizer(path: &Path) -> Result<Vec<u8>> {
    let text = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let path = path.to_owned();
    Tokenizer::from_json(&text).map_err(|fault| TokenizerError { path, fault })?;
    Ok(text)
}
