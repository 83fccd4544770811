//! How fast `up` should be, before anyone has asked: the planner's model of the plan that was formed, with this machine's
//! rates. For equal workers on one processor; of cards nothing was held against it yet.

use crate::rates::Rates;
use flotilla_planner::model::predict_prefill;
use flotilla_planner::{Costs, Fleet, Link, predict_decode};
use flotilla_shared::{Inventory, KvDtype, ModelSpec, Plan};

/// Weights from which a prediction is worth half a second of measuring. Below, as with the demo model, a step is mostly
/// what the planner knows least: starts and waits.
const WEIGHT_BYTES_MIN: u64 = 1 << 30;
/// A shorter step, likewise.
const STEP_S_MIN: f64 = 0.005;
/// What is predicted: so many tokens before one sequence's next, and a prompt of so many.
const CONTEXT: usize = 2048;

/// The rates of the whole processor, and among how many workers it is divided.
#[derive(Clone, Debug)]
pub struct Forecast {
    pub rates: Rates,
    pub workers: usize,
    pub kv: KvDtype,
    pub step_tokens: usize,
}

/// Whether it is worth measuring.
pub fn is_worth_it(spec: &ModelSpec) -> bool {
    let alone = Plan::even(spec, 1, 1);
    let bytes: u64 = alone.ranks().map(|share| alone.bytes(spec, share.rank).weights()).sum();
    bytes >= WEIGHT_BYTES_MIN
}

impl Forecast {
    /// A line for people; nothing where steps are short, or stages take turns on the same cores.
    pub fn line(&self, spec: &ModelSpec, plan: &Plan) -> Option<String> {
        let ranks = plan.rank_count();
        let devices: Vec<usize> = (0..ranks).collect();
        let fleet = self.fleet(ranks);
        let decode = |sequences| predict_decode(spec, &fleet, plan, &devices, sequences, CONTEXT);
        let (one, eight) = (decode(1), decode(8));
        if plan.stages.len() > 1 || one.token_s < STEP_S_MIN {
            return None;
        }
        let prompt = predict_prefill(spec, &fleet, plan, &devices, CONTEXT, self.step_tokens);
        Some(format!(
            "predicted, not measured: {:.1} tokens/s for one answer, {:.1} for eight at once, a prompt of {CONTEXT} tokens in \
             {:.1} s",
            one.tokens_per_s, eight.tokens_per_s, prompt.seconds
        ))
    }

    /// Workers of one processor share its memory and its cores.
    fn fleet(&self, ranks: usize) -> Fleet {
        let part = |rate: f64| rate / self.workers as f64;
        let device = |rank| Inventory {
            name: format!("worker-{rank:02}"),
            device: "cpu".into(),
            backend: Default::default(),
            kv: self.kv,
            memory_bytes: u64::MAX,
            bandwidth: part(self.rates.bandwidth),
            compute: part(self.rates.compute.dense),
            expert_compute: part(self.rates.compute.experts),
            threads: 1,
        };
        let shm = Link::preset("shm");
        Fleet {
            devices: (0..ranks).map(device).collect(),
            hosts: vec![0; ranks],
            within: shm,
            between: shm,
            ways: Default::default(),
            within_cards: None,
            int8: false,
            costs: Costs::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flotilla_engine::backend::cpu::measure::Compute;

    fn forecast(workers: usize) -> Forecast {
        let compute = Compute { dense: 2e11, experts: 3e11 };
        let rates = Rates { bandwidth: 3e10, compute };
        Forecast { rates, workers, kv: KvDtype::F16, step_tokens: 512 }
    }

    /// Of 3.8 GB a token at 30 GB/s: eight tokens a second at most, and not much less.
    #[test]
    fn the_published_model_is_predicted_and_a_small_one_is_not() {
        let spec = ModelSpec::published("gpt-oss-20b").unwrap();
        assert!(is_worth_it(&spec));
        let line = forecast(2).line(&spec, &Plan::even(&spec, 2, 1)).unwrap();
        assert!(line.starts_with("predicted, not measured: "), "{line}");
        let rate: f64 = line.split(' ').nth(3).unwrap().parse().unwrap();
        assert!((5.0..8.0).contains(&rate), "{line}");
        let alone = forecast(1).line(&spec, &Plan::even(&spec, 1, 1)).unwrap();
        let alone: f64 = alone.split(' ').nth(3).unwrap().parse().unwrap();
        assert!((alone / rate - 1.0).abs() < 0.1, "one processor, cut in two: {alone} and {rate}");
        assert_eq!(forecast(2).line(&spec, &Plan::even(&spec, 2, 2)), None);

        let layers = spec.layers[..1].to_vec();
        let tiny = ModelSpec { layers, vocab: 2000, experts: 4, experts_per_token: 1, ..spec };
        assert!(!is_worth_it(&tiny));
        assert_eq!(forecast(1).line(&tiny, &Plan::even(&tiny, 1, 1)), None);
    }
}
