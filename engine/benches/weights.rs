//! How fast weights are made from a seed, and streamed with their digest: one thread.
//! `cargo bench -p flotilla-engine --bench weights`

use flotilla_engine::weights::{Extent, Synthetic, WeightSource, read_chunk};
use flotilla_shared::tensor::{LayerTensor, TensorId};
use flotilla_shared::{ModelSpec, TensorSlice};
use std::time::Instant;

fn main() {
    use LayerTensor::{DownBlocks, GateUpBlocks, GateUpScales};
    let spec = ModelSpec::published("gpt-oss-120b").expect("a published name");
    let model = Synthetic::new(spec, 1);
    let whole = |tensor| TensorSlice::whole(TensorId::Layer(0, tensor), model.spec());
    let quarter = TensorSlice::cut(TensorId::Layer(0, DownBlocks), model.spec(), 2, 23..46);
    let slices = [
        ("blocks", whole(GateUpBlocks)),
        ("a quarter of each row of blocks", quarter),
        ("scales", whole(GateUpScales)),
        ("bf16", TensorSlice::whole(TensorId::Embed, model.spec())),
    ];
    let mut buffer = vec![0; 8 << 20];
    for (name, slice) in slices {
        let (mut bytes, start) = (0, Instant::now());
        for offset in (0..slice.bytes()).step_by(buffer.len()).take(30) {
            let len = buffer.len().min(slice.bytes() - offset);
            model.read(&slice, offset, &mut buffer[..len]).expect("a seed can always be read");
            bytes += len;
        }
        println!("{name}: {:.2} GB/s", bytes as f64 / start.elapsed().as_secs_f64() / 1e9);
    }
    let (slice, start) = (whole(GateUpBlocks), Instant::now());
    let chunks = Extent::whole(0, &slice).chunks().take(200);
    let read = |chunk| read_chunk(&model, &slice, chunk).expect("a seed can always be read").0.len();
    let bytes: usize = chunks.map(read).sum();
    println!(
        "blocks, in chunks with digests: {:.2} GB/s",
        bytes as f64 / start.elapsed().as_secs_f64() / 1e9
    );
}
