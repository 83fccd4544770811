//! Weights read back from a card are the bytes that came, whole, in parts of any cut, and while others read and the card's
//! own stream is busy.

use crate::support::{self, TestCard};
use flotilla_engine::backend::cuda::CudaWeights;
use flotilla_engine::weights::{CHUNK_BYTES, Kept, Synthetic, WeightSink, WeightSource};
use flotilla_shared::{ModelSpec, Plan, Rank, TensorSlice};

/// A layer of some MB: its experts are longer than a chunk, and cuts have short runs.
fn spec() -> ModelSpec {
    let mut spec = ModelSpec::published("gpt-oss-20b").unwrap();
    (spec.hidden, spec.intermediate, spec.vocab, spec.experts) = (192, 2880, 503, 8);
    (spec.q_heads, spec.kv_heads, spec.head_dim) = (16, 8, 4);
    spec.layers.truncate(1);
    spec
}

fn expect_same(source: &Synthetic, kept: &dyn Kept, part: &TensorSlice) {
    for start in (0..part.bytes()).step_by(CHUNK_BYTES) {
        let [mut found, mut expected] = [0, 0].map(|_| vec![0; CHUNK_BYTES.min(part.bytes() - start)]);
        kept.read_back(part, start, &mut found).unwrap();
        source.read(part, start, &mut expected).unwrap();
        assert!(found == expected, "{part} from {start}");
    }
}

#[test]
fn what_is_on_a_card_is_read_back_beside_its_work() {
    for TestCard { card, .. } in support::cards() {
        let (spec, source) = (spec(), Synthetic::new(spec(), 7));
        let whole = Plan::with_shares(&spec, &[1.0]).slices(&spec, Rank(0));
        let thirds = Plan::with_shares(&spec, &[1.0; 3]).slices(&spec, Rank(1));
        assert!(whole.iter().any(|slice| slice.bytes() > 2 * CHUNK_BYTES));
        let mut weights = CudaWeights::new(&card, whole.clone()).unwrap();
        weights.load_from(&source, &mut |_, _| {}).unwrap();
        let reader = weights.reader().unwrap();
        assert!(whole.iter().chain(&thirds).all(|part| reader.has(part)));
        let reads = |parts: &[TensorSlice]| {
            parts.iter().for_each(|part| expect_same(&source, &reader, part));
        };
        std::thread::scope(|scope| {
            let readers = [scope.spawn(|| reads(&whole)), scope.spawn(|| reads(&thirds))];
            while readers.iter().any(|reader| !reader.is_finished()) {
                card.upload(&[1u32; 1000]).unwrap();
            }
        });
        // Whoever reads is not who keeps the memory: the weights go, and what is read is there still.
        drop(weights);
        expect_same(&source, &reader, &whole[0]);
    }
}
