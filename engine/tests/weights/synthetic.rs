//! A synthetic model is one model: whole or in parts, in memory or on disk.

use crate::small;
use flotilla_engine::weights::{
    CHUNK_BYTES, Checkpoint, Extent, GenerationConfig, Synthetic, WeightError, WeightSource, config_like,
    read_chunk, write_checkpoint,
};
use flotilla_shared::tensor::{LayerTensor, TensorId};
use flotilla_shared::{ModelSpec, TensorSlice};
use proptest::prelude::*;
use std::fs;

fn read(source: &dyn WeightSource, slice: &TensorSlice) -> Vec<u8> {
    let mut bytes = vec![0; slice.bytes()];
    source.read(slice, 0, &mut bytes).unwrap();
    bytes
}

/// The bytes of a slice, cut out of the whole tensor's by the shared crate's own arithmetic.
fn cut(source: &dyn WeightSource, slice: &TensorSlice) -> Vec<u8> {
    let whole = read(source, &TensorSlice::whole(slice.tensor, source.spec()));
    let element = slice.tensor.dtype().bytes();
    let runs = slice.runs(&slice.tensor.shape(source.spec()));
    runs.flat_map(|run| whole[run.start * element..run.end * element].to_vec()).collect()
}

fn any_slice() -> impl Strategy<Value = TensorSlice> {
    let spec = small::spec();
    let tensors: Vec<TensorId> = TensorId::all(&spec).collect();
    let ranges = move |tensor: TensorId| {
        let range = |n: usize| (0..n, 0..n).prop_map(|(a, b)| a.min(b)..a.max(b) + 1);
        let ranges: Vec<_> = tensor.shape(&spec).into_iter().map(range).collect();
        ranges.prop_map(move |ranges| TensorSlice { tensor, ranges })
    };
    prop::sample::select(tensors).prop_flat_map(ranges)
}

proptest! {
    #[test]
    fn any_part_equals_that_part_of_the_whole(slice in any_slice(), a in 0.0..1.0, b in 0.0..1.0) {
        let model = small::synthetic();
        let expected = cut(&model, &slice);
        let at = |part: f64| (part * (expected.len() + 1) as f64) as usize;
        let (from, to) = (at(f64::min(a, b)), at(f64::max(a, b)));
        let mut part = vec![0; to - from];
        model.read(&slice, from, &mut part).unwrap();
        prop_assert_eq!(&part, &expected[from..to]);
    }
}

#[test]
fn on_disk_it_is_what_the_seed_says() {
    let (dir, model, spec) = (tempfile::tempdir().unwrap(), small::synthetic(), small::spec());
    let out = dir.path().join("new/folder");
    let mut seen = Vec::new();
    let generation = GenerationConfig::like_published(&spec);
    let written =
        write_checkpoint(&out, &model, &small::config(), &generation, small::SHARD_BYTES, |done, total| {
            seen.push((done, total));
        });
    let written = written.unwrap();
    assert_eq!(written.shards, 7);
    assert_eq!(seen.last(), Some(&(written.bytes, written.bytes)));
    assert!(seen.is_sorted());
    assert!(out.join("model-00006-of-00006.safetensors").exists());
    let checkpoint = Checkpoint::open(&out).unwrap();
    assert_eq!(checkpoint.spec(), &spec);
    assert_eq!(checkpoint.eos_token_ids(), [201, 202]);
    for tensor in TensorId::all(&spec) {
        let slice = TensorSlice::whole(tensor, &spec);
        assert_eq!(read(&checkpoint, &slice), read(&model, &slice), "{tensor}");
    }
    let tensor = TensorId::Layer(1, LayerTensor::DownBlocks);
    let slice = TensorSlice { tensor, ranges: vec![1..5, 3..40, 1..4, 0..16] };
    assert_eq!(read(&checkpoint, &slice), cut(&model, &slice));
}

#[test]
fn one_file_without_index_or_metadata_opens() {
    let dir = tempfile::tempdir().unwrap();
    let (config, generation) = (small::config(), GenerationConfig { eos_token_ids: vec![7] });
    write_checkpoint(dir.path(), &small::synthetic(), &config, &generation, u64::MAX, |_, _| {}).unwrap();
    let single = dir.path().join("model.safetensors");
    fs::rename(dir.path().join("model-00000-of-00000.safetensors"), &single).unwrap();
    fs::remove_file(dir.path().join("model.safetensors.index.json")).unwrap();
    // Blanks of the same length keep the header's.
    let (mut bytes, metadata) = (fs::read(&single).unwrap(), br#""__metadata__":{"format":"pt"},"#);
    let at = bytes.windows(metadata.len()).position(|window| window == metadata).unwrap();
    bytes[at..at + metadata.len()].fill(b' ');
    fs::write(&single, bytes).unwrap();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    assert_eq!(checkpoint.eos_token_ids(), [7]);
    fs::write(dir.path().join("generation_config.json"), r#"{"eos_token_id": 9, "top_k": 1}"#).unwrap();
    assert_eq!(Checkpoint::open(dir.path()).unwrap().eos_token_ids(), [9]);
    fs::remove_file(dir.path().join("generation_config.json")).unwrap();
    assert!(Checkpoint::open(dir.path()).unwrap().eos_token_ids().is_empty());
    for tensor in TensorId::all(checkpoint.spec()) {
        let slice = TensorSlice::whole(tensor, checkpoint.spec());
        assert_eq!(read(&checkpoint, &slice), read(&small::synthetic(), &slice), "{tensor}");
    }
}

#[test]
fn nothing_is_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("keep"), "me").unwrap();
    let generation = GenerationConfig { eos_token_ids: Vec::new() };
    let result =
        write_checkpoint(dir.path(), &small::synthetic(), &small::config(), &generation, 1 << 20, |_, _| {});
    assert!(matches!(result, Err(WeightError::NotEmpty { .. })), "{result:?}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn a_config_like_the_published_with_other_layers() {
    let spec = ModelSpec::from_config_json(&config_like("gpt-oss-120b", Some(3)).unwrap()).unwrap();
    let published = ModelSpec::published("gpt-oss-120b").unwrap();
    assert_eq!(spec.layers, published.layers[..3]);
    assert_eq!(ModelSpec { layers: published.layers.clone(), ..spec }, published);
    let more = ModelSpec::from_config_json(&config_like("gpt-oss-20b", Some(40)).unwrap()).unwrap();
    assert_eq!(more.layers[..36], published.layers);
    assert_eq!(config_like("gpt-oss-20b", None).unwrap(), flotilla_shared::spec::PUBLISHED[1].1);

    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.json");
    fs::write(&file, small::config()).unwrap();
    let like = ModelSpec::from_config_json(&config_like(file.to_str().unwrap(), Some(5)).unwrap()).unwrap();
    assert_eq!((like.hidden, like.layer_count()), (64, 5));
    let error = config_like("gpt-oss-7b", None).unwrap_err().to_string();
    assert!(error.contains("no model is called \"gpt-oss-7b\""), "{error}");
    let error = config_like("gpt-oss-20b", Some(0)).unwrap_err().to_string();
    assert!(error.contains("num_hidden_layers is 0"), "{error}");
}

#[test]
fn chunks_are_the_slice_each_with_its_digest() {
    let model = Synthetic::new(ModelSpec::published("gpt-oss-20b").unwrap(), 1);
    let slice = TensorSlice::cut(TensorId::Embed, model.spec(), 0, 1000..1437);
    let expected = read(&model, &slice);
    let mut got = Vec::new();
    for chunk in Extent::whole(0, &slice).chunks() {
        assert_eq!(chunk.start, got.len());
        let (bytes, digest) = read_chunk(&model, &slice, chunk).unwrap();
        assert!((1..=CHUNK_BYTES).contains(&bytes.len()));
        assert_eq!(digest.0, *blake3::hash(&bytes).as_bytes());
        assert_eq!(digest.to_string(), blake3::hash(&bytes).to_hex().as_str());
        got.extend(bytes);
    }
    assert_eq!(got, expected);
}
