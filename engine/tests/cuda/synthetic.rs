//! Synthetic weights made on the card: the bytes that the host makes, whatever is cut of what.

use crate::support::{self, TestCard};
use flotilla_engine::backend::cuda::CudaWeights;
use flotilla_engine::backend::cuda::synthetic::{self, SyntheticKernels};
use flotilla_engine::cuda::{Card, Source};
use flotilla_engine::weights::{Synthetic, WeightSink, WeightSource};
use flotilla_shared::sampling::mix;
use flotilla_shared::tensor::{LayerTensor, TensorId};
use flotilla_shared::{ModelSpec, Plan, TensorSlice};
use serde_json::json;
use std::collections::BTreeSet;

/// What lies around a slice, and must stay.
const AROUND: u8 = 0xa5;

/// One replace each in synthetic.cu that [`check`] must notice.
pub const PLANTED: [(&str, &str, &str); 4] = [
    (
        "a run that begins inside of a lane is made of that lane alone",
        "low | make(mix(n + 1)) << (64 - shift)",
        "low",
    ),
    ("a word where a run ends goes on behind it", "room < 8 - done;", "false;"),
    ("the next run is that after it", "past / run_bytes_32 + 1)", "past / run_bytes_32 + 2)"),
    ("a byte of what is no whole word is left", "(before ? head : bytes)", "(before ? head : bytes - 1)"),
];

/// Rows of scales of 3 bytes (H 96) and 5 (I 160); no width of anything is a multiple of 8 times the ranks.
fn small() -> ModelSpec {
    spec(&[
        ("hidden_size", 96),
        ("intermediate_size", 160),
        ("num_hidden_layers", 2),
        ("num_attention_heads", 15),
        ("num_key_value_heads", 5),
        ("head_dim", 6),
        ("num_local_experts", 7),
        ("vocab_size", 203),
    ])
}

/// The published widths, of one layer, few experts and few tokens: runs that are longer than a block's part.
fn wide() -> ModelSpec {
    spec(&[
        ("num_hidden_layers", 1),
        ("num_attention_heads", 8),
        ("num_key_value_heads", 2),
        ("num_local_experts", 2),
        ("num_experts_per_tok", 2),
        ("experts_per_token", 2),
        ("vocab_size", 300),
    ])
}

fn spec(sizes: &[(&str, usize)]) -> ModelSpec {
    let mut config: serde_json::Value = serde_json::from_str(flotilla_shared::spec::PUBLISHED[1].1).unwrap();
    for (field, size) in sizes {
        config[field] = json!(size);
    }
    let layers = config["num_hidden_layers"].as_u64().unwrap() as usize;
    config["layer_types"] = json!(["sliding_attention", "full_attention"][..layers]);
    ModelSpec::from_config_json(&config.to_string()).unwrap()
}

#[test]
fn a_card_makes_every_rank_of_every_plan_as_the_host_does() {
    let plans: [&[f64]; 5] =
        [&[1.0], &[1.0, 1.0, 1.0], &[5.0, 1.0, 2.0, 3.0], &[1.0, 0.0, 1.0, 3.0], &[1.0; 4]];
    for TestCard { card, .. } in support::cards() {
        let spec = small();
        let model = Synthetic::new(spec.clone(), 11);
        for shares in plans {
            let plan = Plan::with_shares(&spec, shares);
            let mut seen = BTreeSet::new();
            for share in plan.ranks() {
                let slices = plan.slices(&spec, share.rank);
                seen.extend(slices.iter().map(|slice| slice.tensor));
                same(&card, &model, slices, &format!("{shares:?}, rank {}", share.rank));
            }
            assert!(TensorId::all(&spec).all(|tensor| seen.contains(&tensor)));
        }
        let (spec, plan) = (wide(), Plan::with_shares(&wide(), &[2.0, 1.0]));
        let model = Synthetic::new(spec.clone(), 12);
        same(&card, &model, plan.slices(&spec, flotilla_shared::Rank(1)), "published widths");
    }
}

/// Makes `slices` on the card as a worker does, and compares each with the host's.
fn same(card: &Card, model: &Synthetic, slices: Vec<TensorSlice>, name: &str) {
    let mut weights = CudaWeights::new(card, slices.clone()).unwrap();
    let mut last = (0, 0);
    let sink: &mut dyn WeightSink = &mut weights;
    sink.make_from(model, &mut |done, total| {
        assert!(done > last.0 && done <= total, "{done} of {total} after {last:?}");
        last = (done, total);
    })
    .unwrap();
    assert_eq!((last.0, last.0), (last.1, slices.iter().map(|slice| slice.bytes() as u64).sum()));
    for slice in &slices {
        let mut expected = vec![0; slice.bytes()];
        model.read(slice, 0, &mut expected).unwrap();
        let found: Vec<u8> = match slice.tensor {
            TensorId::Layer(layer, tensor) => {
                card.stream().clone_dtoh(&weights.layer_bytes(layer.into(), tensor).unwrap()).unwrap()
            }
            tensor => {
                let values = card.stream().clone_dtoh(&weights.bf16(tensor).unwrap()).unwrap();
                values.into_iter().flat_map(u16::to_le_bytes).collect()
            }
        };
        let wrong = found.iter().zip(&expected).position(|(found, expected)| found != expected);
        assert_eq!((wrong, found.len()), (None, expected.len()), "{name}: {slice}");
    }
}

#[test]
fn any_rectangle_at_any_byte_is_made_and_nothing_around_it() {
    for TestCard { card, .. } in support::cards() {
        check(&card, &|source| source).unwrap();
    }
}

/// Rectangles of every kind of tensor, of plans and not, at odd places, with a source that `edit` may have changed.
pub fn check(card: &Card, edit: &dyn Fn(Source) -> Source) -> Result<(), String> {
    const SEED: u64 = 5;
    let spec = small();
    let model = Synthetic::new(spec.clone(), SEED);
    let kernels = SyntheticKernels::compiled(card, &edit(synthetic::source()), &model).unwrap();
    let mut random = SEED;
    let mut next = |n: usize| {
        random += 1;
        (mix(random << 20) >> 33) as usize % n
    };
    let layer = LayerTensor::ALL.map(|tensor| TensorId::Layer(1, tensor));
    for tensor in [TensorId::Embed, TensorId::FinalNorm, TensorId::Unembed].into_iter().chain(layer) {
        for round in 0..3 {
            let shape = tensor.shape(&spec);
            // Few of the outer dimensions: where no plan cuts so, each is a launch.
            let range = |(dimension, &size): (usize, &usize)| {
                let start = next(size);
                let longest = if dimension + 2 < shape.len() { 5 } else { size };
                start..start + 1 + next(longest.min(size - start))
            };
            let slice = TensorSlice { tensor, ranges: shape.iter().enumerate().map(range).collect() };
            let before = next(17);
            let len = slice.bytes();
            let mut bytes = card.upload(&vec![AROUND; before + len + 9]).unwrap();
            kernels.make(&slice, &mut bytes.slice_mut(before..before + len)).unwrap();
            let mut expected = vec![AROUND; before + len + 9];
            model.read(&slice, 0, &mut expected[before..before + len]).unwrap();
            let found = card.download(&bytes).unwrap();
            if let Some(at) = (0..found.len()).find(|&at| found[at] != expected[at]) {
                let (found, expected) = (found[at], expected[at]);
                return Err(format!(
                    "{slice} at byte {before}, round {round}, seed {SEED}: byte {at} is {found:#x}, expected {expected:#x}"
                ));
            }
        }
    }
    Ok(())
}
