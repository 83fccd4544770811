//! Which parts of which slices are kept, as the names of the files say.

use super::file::{PartName, range};
use flotilla_engine::weights::lies_within;
use flotilla_shared::tensor::TensorId;
use flotilla_shared::{ModelSpec, TensorSlice};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

/// What is kept of some weights.
#[derive(Debug, Default)]
pub struct Kept(HashMap<TensorId, Vec<KeptSlice>>);

/// A slice of which some parts are kept.
#[derive(Debug)]
pub struct KeptSlice {
    pub slice: TensorSlice,
    folder: PathBuf,
    /// End by start.
    parts: BTreeMap<usize, usize>,
}

impl Kept {
    /// A folder that cannot be read keeps nothing.
    pub fn list(folder: &Path, spec: &ModelSpec) -> Kept {
        let names: HashMap<String, TensorId> =
            TensorId::all(spec).map(|tensor| (tensor.to_string(), tensor)).collect();
        let mut kept = Kept::default();
        for file in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let part = file.file_name().to_str().and_then(|name| parse(name, &names));
            if let Some(part) = part.filter(|part| lies_within(&part.slice, spec) && part.is_whole()) {
                kept.add(folder, part);
            }
        }
        kept
    }

    fn add(&mut self, folder: &Path, PartName { slice, bytes }: PartName) {
        let slices = self.0.entry(slice.tensor).or_default();
        let at = slices.iter().position(|kept| kept.slice == slice).unwrap_or_else(|| {
            slices.push(KeptSlice { slice, folder: folder.to_owned(), parts: BTreeMap::new() });
            slices.len() - 1
        });
        slices[at].parts.insert(bytes.start, bytes.end);
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The slices of `tensor` of which everything is kept.
    pub fn whole(&self, tensor: TensorId) -> impl Iterator<Item = &TensorSlice> {
        let kept = self.0.get(&tensor).into_iter().flatten();
        kept.filter(|kept| kept.is_whole()).map(|kept| &kept.slice)
    }

    /// Those that `slice` lies in, the smallest first: it may be itself.
    pub fn around(&self, slice: &TensorSlice) -> Vec<&KeptSlice> {
        let same = self.0.get(&slice.tensor).into_iter().flatten();
        let mut around: Vec<_> = same.filter(|kept| kept.slice.covers(slice)).collect();
        around.sort_by_key(|kept| kept.slice.bytes());
        around
    }
}

impl KeptSlice {
    fn is_whole(&self) -> bool {
        self.parts.iter().map(|(start, end)| end - start).sum::<usize>() == self.slice.bytes()
    }

    /// The part that has byte `offset` of the slice, and its file.
    pub fn part_at(&self, offset: usize) -> Option<(PartName, PathBuf)> {
        let (&start, &end) = self.parts.range(..=offset).next_back().filter(|(_, end)| offset < **end)?;
        let part = PartName { slice: self.slice.clone(), bytes: start..end };
        let path = self.folder.join(part.file_name());
        Some((part, path))
    }
}

fn parse(name: &str, tensors: &HashMap<String, TensorId>) -> Option<PartName> {
    let mut words = name.split('~');
    let tensor = *tensors.get(words.next()?)?;
    let ranges = words.next()?.split(',').map(range).collect::<Option<Vec<_>>>()?;
    let (bytes, slice) = (range(words.next()?)?, TensorSlice { tensor, ranges });
    let part = PartName { slice, bytes };
    // Only what would be written: no other spelling, no other words behind.
    (part.file_name() == name && !part.bytes.is_empty()).then_some(part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_what_files_are() {
        let spec = ModelSpec::published("gpt-oss-20b").unwrap();
        let names = TensorId::all(&spec).map(|tensor| (tensor.to_string(), tensor)).collect();
        let slice = TensorSlice::cut(TensorId::Embed, &spec, 0, 5..900);
        let part = PartName { slice, bytes: 0..1 << 20 };
        assert_eq!(part.file_name(), "model.embed_tokens.weight~5-900,0-2880~0-1048576");
        assert_eq!(parse(&part.file_name(), &names), Some(part));
        for other in [
            "model.embed_tokens.weight~5-900,0-2880~0-0",
            "model.embed_tokens.weight~5-900,0-2880~0-01",
            "model.embed_tokens.weight~5-900,0-2880~0-1~",
            "model.embed_tokens.weight~5-900,0-2880",
            "lm_tail.weight~0-1~0-1",
            "x.tmp",
        ] {
            assert_eq!(parse(other, &names), None, "{other}");
        }
    }
}
