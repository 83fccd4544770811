//! Checkpoints of an independent writer open: the golden sets of the repository.

use flotilla_engine::weights::{Checkpoint, WeightSource};
use flotilla_shared::TensorSlice;
use flotilla_shared::tensor::TensorId;
use std::path::PathBuf;

#[test]
fn golden_checkpoints_open() {
    for name in ["smoke", "stress", "long"] {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(name);
        let checkpoint = Checkpoint::open(&folder).unwrap();
        assert_eq!(checkpoint.eos_token_ids().len(), 2, "{name}");
        // gen_tiny.py: norms are 1 + .25 N.
        let slice = TensorSlice::whole(TensorId::FinalNorm, checkpoint.spec());
        let mut bytes = vec![0; slice.bytes()];
        checkpoint.read(&slice, 0, &mut bytes).unwrap();
        let values = bytes.chunks(2).map(|b| half::bf16::from_le_bytes([b[0], b[1]]).to_f32());
        let mean = values.sum::<f32>() / (bytes.len() / 2) as f32;
        assert!((mean - 1.0).abs() < 0.15, "{name}: mean of the final norm {mean}");
    }
}
