//! Checkpoints of an independent writer open, where they are at hand: `FLOTILLA_GOLDEN` names the
//! folder of folders.

use flotilla_engine::weights::{Checkpoint, WeightSource};
use flotilla_shared::TensorSlice;
use flotilla_shared::tensor::TensorId;
use std::path::PathBuf;

#[test]
fn golden_checkpoints_open() {
    let beside = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/checkpoints");
    let golden = std::env::var_os("FLOTILLA_GOLDEN").map_or(beside, PathBuf::from);
    let Ok(folders) = std::fs::read_dir(&golden) else {
        eprintln!("skipped: no golden checkpoints in {}", golden.display());
        return;
    };
    for folder in folders.map(|entry| entry.unwrap().path()).filter(|path| path.join("config.json").exists())
    {
        let checkpoint = Checkpoint::open(&folder).unwrap();
        assert!(!checkpoint.eos_token_ids().is_empty(), "{}", folder.display());
        // gen_tiny.py: norms are 1 + .25 N.
        let slice = TensorSlice::whole(TensorId::FinalNorm, checkpoint.spec());
        let mut bytes = vec![0; slice.bytes()];
        checkpoint.read(&slice, 0, &mut bytes).unwrap();
        let values = bytes.chunks(2).map(|b| half::bf16::from_le_bytes([b[0], b[1]]).to_f32());
        let mean = values.sum::<f32>() / (bytes.len() / 2) as f32;
        assert!((mean - 1.0).abs() < 0.15, "{}: mean of the final norm {mean}", folder.display());
    }
}
