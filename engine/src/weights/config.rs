//! The small JSON files of a checkpoint folder: config.json, which gives the model's shape, and
//! generation_config.json, which gives the tokens that end a turn.

use super::error::WeightError;
use super::files::{Files, Folder};
use flotilla_shared::spec::PUBLISHED;
use flotilla_shared::{LayerKind, ModelSpec};
use serde::Deserialize;
use serde_json::{Value, json};
use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

/// The longest small JSON file that is read; the published index has 60 kB.
const TEXT_BYTES_MAX: u64 = 16 << 20;

/// What generation_config.json says that the server heeds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GenerationConfig {
    /// Tokens after which the model's turn is over; none if the file does not say.
    pub eos_token_ids: Vec<u32>,
}

impl GenerationConfig {
    /// The published one (`<|return|>`, `<|endoftext|>`, `<|call|>`), or the last two ids of a smaller
    /// vocabulary.
    pub fn like_published(spec: &ModelSpec) -> Self {
        const PUBLISHED_EOS: [u32; 3] = [200_002, 199_999, 200_012];
        let vocab = spec.vocab as u32;
        if PUBLISHED_EOS.iter().all(|&id| id < vocab) {
            return GenerationConfig { eos_token_ids: PUBLISHED_EOS.to_vec() };
        }
        GenerationConfig { eos_token_ids: (vocab.saturating_sub(2)..vocab).collect() }
    }

    /// Reads the folder's generation_config.json; a folder need not have one.
    pub fn read(dir: &Path, spec: &ModelSpec) -> Result<Self, WeightError> {
        Self::read_in(&Folder(dir.to_owned()), spec)
    }

    /// The same of files that lie elsewhere.
    pub fn read_in(files: &dyn Files, spec: &ModelSpec) -> Result<Self, WeightError> {
        const NAME: &str = "generation_config.json";
        let path = files.path(NAME);
        if !files.exists(NAME)? {
            return Ok(GenerationConfig { eos_token_ids: Vec::new() });
        }
        #[derive(Deserialize)]
        struct File {
            eos_token_id: Option<OneOrMany>,
        }
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum OneOrMany {
            One(u32),
            Many(Vec<u32>),
        }
        let file: File =
            read_json(files, NAME, "a generation config (eos_token_id: a number or a list of them)")?;
        let eos_token_ids = match file.eos_token_id {
            None => Vec::new(),
            Some(OneOrMany::One(id)) => vec![id],
            Some(OneOrMany::Many(ids)) => ids,
        };
        match eos_token_ids.iter().find(|&&id| id as usize >= spec.vocab) {
            None => Ok(GenerationConfig { eos_token_ids }),
            Some(id) => Err(WeightError::Field {
                path,
                what: "eos_token_id is",
                found: id.to_string(),
                expected: format!("ids below vocab_size {}", spec.vocab),
                hint: "generation_config.json and config.json are not of the same model",
            }),
        }
    }

    pub fn to_json(&self) -> String {
        format!("{:#}\n", json!({ "do_sample": true, "eos_token_id": self.eos_token_ids }))
    }
}

/// The text of a config.json like that of `like` (`gpt-oss-120b`, `gpt-oss-20b`, or a file), with
/// another number of layers if `layers` is given: everything else is kept as it stands.
pub fn config_like(like: &str, layers: Option<usize>) -> Result<String, WeightError> {
    let path = Path::new(like);
    let text = match PUBLISHED.iter().find(|(name, _)| *name == like) {
        Some((_, text)) => text.to_string(),
        None if !path.exists() => {
            return Err(WeightError::UnknownModel { name: like.to_owned() });
        }
        None => read_text(path, TEXT_BYTES_MAX)?,
    };
    let refused = |source| WeightError::Config { path: path.to_owned(), source };
    let spec = ModelSpec::from_config_json(&text).map_err(refused)?;
    let Some(layers) = layers else { return Ok(text) };
    let mut config: Value = serde_json::from_str(&text).expect("it was read just before");
    config["num_hidden_layers"] = json!(layers);
    // More layers than there were go on in the same pattern.
    let kinds: Vec<LayerKind> = spec.layers.iter().copied().cycle().take(layers).collect();
    config["layer_types"] = json!(kinds);
    let text = format!("{config:#}\n");
    ModelSpec::from_config_json(&text).map_err(refused)?;
    Ok(text)
}

pub(super) fn read_spec(files: &dyn Files) -> Result<ModelSpec, WeightError> {
    let path = files.path("config.json");
    let text = files.text("config.json", TEXT_BYTES_MAX)?;
    let spec = ModelSpec::from_config_json(&text)
        .map_err(|source| WeightError::Config { path: path.clone(), source })?;
    // Layers are named by 16 bits, in tensor ids and on the wire.
    if spec.layer_count() > usize::from(u16::MAX) {
        return Err(WeightError::Field {
            path,
            what: "num_hidden_layers is",
            found: spec.layer_count().to_string(),
            expected: format!("at most {}", u16::MAX),
            hint: "only gpt-oss models as published are served",
        });
    }
    Ok(spec)
}

pub(super) fn read_json<T: for<'de> Deserialize<'de>>(
    files: &dyn Files,
    name: &str,
    what: &'static str,
) -> Result<T, WeightError> {
    let text = files.text(name, TEXT_BYTES_MAX)?;
    serde_json::from_str(&text).map_err(|source| WeightError::Json { path: files.path(name), what, source })
}

pub(super) fn read_text(path: &Path, bytes_max: u64) -> Result<String, WeightError> {
    let failed = |source| WeightError::Io { doing: "read", path: path.to_owned(), source };
    // Asked before opening: to open a pipe would wait for its other end.
    let metadata = fs::metadata(path).map_err(failed)?;
    if !metadata.is_file() {
        return Err(WeightError::NotAFile { path: path.to_owned() });
    }
    if metadata.len() > bytes_max {
        return Err(WeightError::TooLong { path: path.to_owned(), found: metadata.len(), max: bytes_max });
    }
    let mut text = String::new();
    File::open(path).and_then(|file| file.take(bytes_max).read_to_string(&mut text)).map_err(failed)?;
    Ok(text)
}
