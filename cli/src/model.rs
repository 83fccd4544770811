//! Which model: a checkpoint in a folder or on a server, or a shape whose weights are made from a seed.

use crate::origin::{Origin, folder_of, published_name};
use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::Args;
use flotilla_coordinator::fleet::Weights;
use flotilla_coordinator::harmony::Harmony;
use flotilla_coordinator::mirror::Mirror;
use flotilla_coordinator::tokenizer::{Tokenizer, TokenizerError};
use flotilla_engine::weights::{Checkpoint, Files, Folder, GenerationConfig, WeightSource, config_like};
use flotilla_shared::{ModelSpec, TokenId};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The demo model's folder, from the root of the repository.
const DEMO: &str = "demo/model";
const CONFIG: &str = "config.json";
const TOKENIZER: &str = "tokenizer.json";
/// The published one has 28 MB.
const TOKENIZER_BYTES_MAX: u64 = 256 << 20;

#[derive(Clone, Debug, Args)]
pub struct ModelArgs {
    /// Checkpoint as published on Hugging Face: a folder, a name such as openai/gpt-oss-20b that Hugging Face's tools
    /// have downloaded, or the http(s) URL of such a folder [default: the demo model]
    #[arg(help_heading = "Model", long, value_name = "MODEL")]
    model: Option<PathBuf>,
    /// `synthetic:SEED`: workers make random weights of this shape, no file is read
    #[arg(help_heading = "Model", long, value_parser = parse_synthetic)]
    weights: Option<Synthetic>,
}

#[derive(Clone, Copy, Debug)]
struct Synthetic {
    seed: u64,
}

fn parse_synthetic(text: &str) -> Result<Synthetic, String> {
    let seed = text.strip_prefix("synthetic:").ok_or("expected synthetic:SEED")?;
    let seed = seed.parse().map_err(|_| format!("the seed {seed:?} is not a number from 0 to 2^64 − 1"))?;
    Ok(Synthetic { seed })
}

/// A model, ready to be planned and served.
pub struct Model {
    pub name: String,
    pub spec: ModelSpec,
    pub weights: Weights,
    /// The message format, over the model's tokenizer.
    pub harmony: Harmony,
    pub eos_token_ids: Vec<u32>,
    /// Whether it is the demo model, which answers a greeting.
    pub is_demo: bool,
}

impl ModelArgs {
    pub fn open(&self) -> Result<Model> {
        let given = match &self.model {
            Some(given) => given.clone(),
            None => demo_dir()?,
        };
        if let Some(synthetic) = self.weights {
            return open_synthetic(folder_of(&given), synthetic.seed);
        }
        match Origin::find(&given)? {
            Origin::Folder { dir, name } => open(&Folder(dir), name, self.model.is_none()),
            Origin::Mirror { url, name } => open(&Mirror::new(&url)?, name, false),
        }
    }
}

/// The checkpoint that these files are.
fn open(files: &dyn Files, name: String, is_demo: bool) -> Result<Model> {
    let checkpoint = Checkpoint::open_in(files)?;
    Ok(Model {
        name,
        spec: checkpoint.spec().clone(),
        eos_token_ids: checkpoint.eos_token_ids().to_vec(),
        harmony: open_tokenizer(files, checkpoint.spec().vocab)?,
        weights: Weights::Stream(Arc::new(checkpoint)),
        is_demo,
    })
}

/// `dir` is a folder with config.json and tokenizer.json (weights are not looked at), or a published name.
fn open_synthetic(dir: &Path, seed: u64) -> Result<Model> {
    let name = name_of(dir);
    let weights = Weights::Synthetic { seed };
    if !dir.is_dir() {
        let spec = ModelSpec::published(&name).ok_or_else(|| {
            anyhow!("{} is neither a folder nor gpt-oss-120b or gpt-oss-20b", dir.display())
        })?;
        let tokenizer = Tokenizer::from_json(&crate::synth::tokenizer::json(spec.vocab)?)?;
        let harmony = Harmony::new(Arc::new(tokenizer))?;
        return Ok(Model { name, spec, weights, harmony, eos_token_ids: Vec::new(), is_demo: false });
    }
    let path = dir.join(CONFIG);
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let spec = ModelSpec::from_config_json(&text).with_context(|| format!("in {}", path.display()))?;
    let eos_token_ids = GenerationConfig::read(dir, &spec)?.eos_token_ids;
    let harmony = open_tokenizer(&Folder(dir.to_owned()), spec.vocab)?;
    Ok(Model { name, spec, weights, harmony, eos_token_ids, is_demo: false })
}

/// Their tokenizer, which must be of a model with `vocab` ids.
fn open_tokenizer(files: &dyn Files, vocab: usize) -> Result<Harmony> {
    let path = files.path(TOKENIZER);
    let text = files
        .text(TOKENIZER, TOKENIZER_BYTES_MAX)
        .with_context(|| format!("cannot load tokenizer {}", path.display()))?;
    let tokenizer = Tokenizer::from_json(text.as_bytes());
    let tokenizer = tokenizer.map_err(|fault| TokenizerError { path, fault })?;
    ensure!(
        tokenizer.vocab_size() <= vocab,
        "{}: tokenizer.json has ids up to {}, the model's vocabulary ends at {vocab}\nhint: they are not of one model",
        files.path("").display(),
        tokenizer.vocab_size()
    );
    Ok(Harmony::new(Arc::new(tokenizer))?)
}

impl Model {
    /// The ids that have a piece, as ranges: padding of the vocabulary is never sampled.
    pub fn sampleable(&self) -> Vec<Range<TokenId>> {
        let mut ranges: Vec<Range<TokenId>> = Vec::new();
        for id in self.harmony.tokenizer().piece_ids() {
            match ranges.last_mut() {
                Some(last) if last.end == id => last.end += 1,
                _ => ranges.push(id..id + 1),
            }
        }
        ranges
    }
}

/// The config.json text of a published name (`openai/` may stand before it), another name that Hugging Face's tools have
/// downloaded, a folder or a file, with `layers` layers if given.
pub fn config_text(like: &str, layers: Option<usize>) -> Result<String> {
    let (path, name) = (Path::new(like), published_name(like));
    let may_be_elsewhere = !path.exists() && ModelSpec::published(name).is_none();
    match (path.is_dir() || may_be_elsewhere).then(|| Origin::find(path)) {
        Some(Ok(Origin::Folder { dir, .. })) => Ok(config_like(&dir.join(CONFIG).to_string_lossy(), layers)?),
        Some(Ok(Origin::Mirror { url, .. })) => bail!(
            "{url} is a URL, and nothing is fetched here\nhint: curl -LO {url}/config.json, and give that file"
        ),
        Some(Err(error)) if path.is_dir() => Err(error),
        _ => Ok(config_like(name, layers)?),
    }
}

/// The folder's own name, wherever it is called from.
pub fn name_of(dir: &Path) -> String {
    let absolute = dir.canonicalize().unwrap_or_else(|_| dir.into());
    if absolute.ends_with(DEMO) {
        return "flotilla-demo".into();
    }
    absolute.file_name().map_or("model".into(), |name| name.to_string_lossy().into_owned())
}

/// The demo model: from the working folder, or from the source tree that this binary was built in.
fn demo_dir() -> Result<PathBuf> {
    let built_in = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(DEMO);
    for dir in [PathBuf::from(DEMO), built_in] {
        if dir.join("config.json").is_file() {
            return Ok(dir);
        }
    }
    bail!("the demo model is not at ./{DEMO}\nhint: run from the repository's root, or give --model DIR")
}
