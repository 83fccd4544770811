//! A Hugging Face gpt-oss folder: config.json, and the tensors in one safetensors file or in shards
//! under an index. Opening it checks that every tensor of the model is there, once, as the config
//! implies, and nothing else; no tensor's bytes are read until they are asked for.
//!
//! Not relied on: `__metadata__`, the index's total_size, the names of shards, layers lying in one file.

use super::config::{GenerationConfig, read_json, read_spec};
use super::error::WeightError;
use super::files::{Files, Folder};
use super::rectangle::ByteRuns;
use super::shard::Shard;
use super::{WeightSource, identity};
use flotilla_shared::tensor::TensorId;
use flotilla_shared::{ModelSpec, TensorInfo, TensorSlice, WeightsId};
use serde::Deserialize;
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::{Component, Path, PathBuf};
use std::sync::OnceLock;

const INDEX: &str = "model.safetensors.index.json";
const SINGLE: &str = "model.safetensors";

/// An open checkpoint folder.
pub struct Checkpoint {
    spec: ModelSpec,
    generation: GenerationConfig,
    shards: Vec<Shard>,
    tensors: HashMap<TensorId, Location>,
    /// Once it was asked for: far away, that is a thousand requests.
    identity: OnceLock<WeightsId>,
}

struct Location {
    /// Index into `Checkpoint::shards`.
    shard: usize,
    /// Of the tensor's first byte, in the file.
    start: usize,
}

#[derive(Deserialize)]
struct Index {
    /// File by tensor.
    weight_map: BTreeMap<String, String>,
}

impl Checkpoint {
    /// Opens and checks the folder `dir`.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self, WeightError> {
        Self::open_in(&Folder(dir.as_ref().to_owned()))
    }

    /// Opens and checks what lies elsewhere.
    pub fn open_in(files: &dyn Files) -> Result<Self, WeightError> {
        let spec = read_spec(files)?;
        let generation = GenerationConfig::read_in(files, &spec)?;
        let expected: BTreeMap<String, TensorInfo> = TensorId::all(&spec)
            .map(|tensor| tensor.info(&spec))
            .map(|info| (info.name.clone(), info))
            .collect();
        let index = read_index(files, &expected)?;
        let mut names: Vec<&str> = index.values().map(String::as_str).collect();
        names.sort_unstable();
        names.dedup();
        if index.is_empty() {
            names.push(SINGLE);
        }
        let open = |name: &str| Shard::open(files, name);
        let shards = names.into_iter().map(open).collect::<Result<Vec<_>, _>>()?;
        let tensors = locate(&shards, &expected, &index)?;
        Ok(Checkpoint { spec, generation, shards, tensors, identity: OnceLock::new() })
    }

    pub fn generation(&self) -> &GenerationConfig {
        &self.generation
    }

    /// Tokens that end the model's turn, as generation_config.json gives them; may be none.
    pub fn eos_token_ids(&self) -> &[u32] {
        &self.generation.eos_token_ids
    }
}

impl WeightSource for Checkpoint {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn read(&self, slice: &TensorSlice, offset: usize, out: &mut [u8]) -> Result<(), WeightError> {
        let runs = ByteRuns::new(slice, &self.spec);
        let location = &self.tensors[&slice.tensor];
        let file = &*self.shards[location.shard].bytes;
        let mut read = Ok(());
        runs.visit(offset, out.len(), |start, range| {
            if read.is_ok() {
                read = file.read(location.start + start, &mut out[range]);
            }
        });
        read
    }

    fn identity(&self) -> Result<WeightsId, WeightError> {
        if let Some(known) = self.identity.get() {
            return Ok(*known);
        }
        let read = |sample: identity::Sample, out: &mut [u8]| {
            let location = &self.tensors[&sample.tensor];
            self.shards[location.shard].bytes.read_alone(location.start + sample.offset, out)
        };
        let identity = identity::of_content(&self.spec, read)?;
        Ok(*self.identity.get_or_init(|| identity))
    }

    fn will_read(&self, slice: &TensorSlice, bytes: Range<usize>) {
        let span = ByteRuns::new(slice, &self.spec).span(bytes);
        let location = &self.tensors[&slice.tensor];
        let span = location.start + span.start..location.start + span.end;
        self.shards[location.shard].bytes.will_read(span);
    }
}

/// The index's weight_map, its names and files checked; empty where the folder has one file only.
fn read_index(
    files: &dyn Files,
    expected: &BTreeMap<String, TensorInfo>,
) -> Result<BTreeMap<String, String>, WeightError> {
    let path = files.path(INDEX);
    if !files.exists(INDEX)? {
        if !files.exists(SINGLE)? {
            return Err(WeightError::NoWeights { dir: files.path("") });
        }
        return Ok(BTreeMap::new());
    }
    let Index { weight_map } = read_json(files, INDEX, "an index of safetensors files")?;
    for (tensor, file) in &weight_map {
        if !is_plain_file_name(file) {
            return Err(WeightError::OutsideFolder {
                index: path,
                tensor: tensor.clone(),
                file: file.clone(),
            });
        }
        if !expected.contains_key(tensor) {
            return Err(WeightError::Unexpected { file: path, tensor: tensor.clone() });
        }
    }
    match expected.keys().find(|tensor| !weight_map.contains_key(*tensor)) {
        None => Ok(weight_map),
        Some(tensor) => Err(WeightError::Missing { file: path, tensor: tensor.clone(), elsewhere: None }),
    }
}

/// One component, and not `..`: the file lies in the folder. (It may be a symlink, as in Hugging Face's
/// own cache: what is in the folder was put there by its owner, what is in the index was not.)
fn is_plain_file_name(file: &str) -> bool {
    let mut components = Path::new(file).components();
    matches!((components.next(), components.next()), (Some(Component::Normal(name)), None) if name == file)
        && !file.contains(['\\', '\0'])
}

/// Where each expected tensor lies, once all the shards hold is compared with what they should.
fn locate(
    shards: &[Shard],
    expected: &BTreeMap<String, TensorInfo>,
    index: &BTreeMap<String, String>,
) -> Result<HashMap<TensorId, Location>, WeightError> {
    let mut tensors: HashMap<TensorId, Location> = HashMap::with_capacity(expected.len());
    for (shard, Shard { path, tensors: found, .. }) in shards.iter().enumerate() {
        for (name, entry) in found {
            let file = path.clone();
            let Some(info) = expected.get(name) else {
                return Err(WeightError::Unexpected { file, tensor: name.clone() });
            };
            compare(file, info, entry)?;
            let location = Location { shard, start: entry.data_offsets.0 };
            if let Some(other) = tensors.insert(info.id, location) {
                let other = file_name(&shards[other.shard].path);
                return Err(WeightError::Twice { file: path.clone(), tensor: name.clone(), other });
            }
        }
    }
    for (name, info) in expected {
        // Where it should be: the file that the index names, or the only one.
        let shard_of = |file: &String| shards.iter().position(|shard| file_name(&shard.path) == *file);
        let should = index.get(name).and_then(shard_of).unwrap_or(0);
        let is = tensors.get(&info.id).map(|location| location.shard);
        if is != Some(should) {
            let elsewhere = is.map(|shard| file_name(&shards[shard].path));
            return Err(WeightError::Missing {
                file: shards[should].path.clone(),
                tensor: name.clone(),
                elsewhere,
            });
        }
    }
    Ok(tensors)
}

fn compare(
    file: PathBuf,
    expected: &TensorInfo,
    found: &safetensors::tensor::TensorInfo,
) -> Result<(), WeightError> {
    let tensor = expected.name.clone();
    let (dtype, found_dtype) = (expected.dtype.name(), found.dtype.to_string());
    if found_dtype != dtype {
        return Err(WeightError::Dtype { file, tensor, expected: dtype, found: found_dtype });
    }
    if found.shape != expected.shape {
        let (expected, found) = (expected.shape.clone(), found.shape.clone());
        return Err(WeightError::Shape { file, tensor, expected, found });
    }
    Ok(())
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
