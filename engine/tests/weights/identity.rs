//! Equal weights are known as equal wherever they lie, and others are not taken for them.

use crate::small;
use flotilla_engine::weights::{Checkpoint, GenerationConfig, Synthetic, WeightSource, write_checkpoint};
use flotilla_shared::tensor::{LayerTensor, TensorId};
use flotilla_shared::{TensorSlice, WeightsId};
use std::path::Path;

fn identity(dir: &Path) -> WeightsId {
    Checkpoint::open(dir).unwrap().identity().unwrap()
}

/// The folder's file that holds `tensor`, with the tensor's last byte another.
fn change_last_byte(dir: &Path, tensor: TensorId) {
    let checkpoint = Checkpoint::open(dir).unwrap();
    let slice = TensorSlice::whole(tensor, checkpoint.spec());
    let mut wanted = vec![0; slice.bytes()];
    checkpoint.read(&slice, 0, &mut wanted).unwrap();
    for file in std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
        let mut bytes = std::fs::read(&file).unwrap();
        if let Some(start) = bytes.windows(wanted.len()).position(|window| window == wanted) {
            bytes[start + wanted.len() - 1] ^= 1;
            return std::fs::write(file, bytes).unwrap();
        }
    }
    panic!("{tensor} is in no file");
}

#[test]
fn the_same_weights_in_other_files_are_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let (many, one) = (dir.path().join("many"), dir.path().join("one"));
    small::write(&many);
    let generation = GenerationConfig::like_published(&small::spec());
    write_checkpoint(&one, &small::synthetic(), &small::config(), &generation, u64::MAX, |_, _| {}).unwrap();
    assert_eq!(identity(&many), identity(&one));
    assert_eq!(identity(&many).to_string().len(), 16);
}

#[test]
fn a_seed_is_its_own_identity() {
    let of = |seed| Synthetic::new(small::spec(), seed).identity().unwrap();
    assert_eq!(of(1), of(1));
    assert_ne!(of(1), of(2));
    let mut wider = small::spec();
    wider.window += 1;
    assert_ne!(of(1), Synthetic::new(wider, 1).identity().unwrap());
}

#[test]
fn another_byte_at_a_tensors_end_is_another_model() {
    for tensor in [TensorId::Embed, TensorId::Layer(1, LayerTensor::DownBlocks), TensorId::Unembed] {
        let dir = tempfile::tempdir().unwrap();
        small::write(dir.path());
        let before = identity(dir.path());
        change_last_byte(dir.path(), tensor);
        assert_ne!(identity(dir.path()), before, "{tensor}");
    }
}
