//! How far measured logits are from golden ones, and what is allowed.

use flotilla_shared::sampling::mix;
use serde::Serialize;

/// Deviations of one prompt.
#[derive(Debug, Default, Serialize)]
pub struct Deviation {
    pub key: String,
    pub rows: usize,
    pub max_abs: f64,
    /// Of all bits of all measured logits: equal in two runs only if they are.
    pub logits_digest: u64,
    /// KL(golden || measured) in nats, over rows.
    pub kl_mean: f64,
    pub kl_max: f64,
    pub argmax_equal: usize,
    /// Rows up to the first that took other experts, and how far they are.
    pub rows_as_routed: usize,
    pub max_abs_as_routed: f64,
    pub kl_max_as_routed: f64,
    /// Greedy tokens up to the first that differs.
    pub greedy_equal: usize,
    pub greedy_total: usize,
    /// By how much the golden logits prefer the first greedy token that differs.
    pub margin: Option<f64>,
    /// (layer, row) pairs with the same set of experts.
    pub experts_equal: usize,
    pub experts_total: usize,
    /// What a reader of the figures must know.
    pub notes: Vec<String>,
    /// What is past its limit, in words; empty when all is well.
    pub faults: Vec<String>,
}

/// What activations are computed in, and with it what is allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Activations {
    F32,
    /// Whole numbers of fifteen bits and a sign for the experts, f32 elsewhere.
    Int8x2,
    /// Whole numbers of seven bits and a sign for the experts, f32 elsewhere.
    Int8,
    /// Or f16, if only in the cache. A token whose last chosen and first other expert are nearly equal may take another one; its
    /// logits then move by 1 to 4, and those of the rows after it by a little.
    Bf16,
}

/// What is allowed where activations are rounded.
struct Limits {
    /// Of rows before the first that took other experts.
    max_abs: f64,
    kl_max: f64,
    /// Of all rows.
    kl_mean: f64,
    /// Share of rows with the same largest logit.
    argmax: f64,
    /// By how much the golden logits may prefer a greedy token that was not taken.
    margin: f64,
}

const BF16: Limits = Limits { max_abs: 0.5, kl_max: 0.02, kl_mean: 0.03, argmax: 0.9, margin: 0.3 };
/// Of activations, or of dense weights.
const INT8: Limits = Limits { max_abs: 1.5, kl_max: 0.1, argmax: 0.85, ..BF16 };
const INT8X2: Limits = Limits { max_abs: 1e-2, kl_max: 1e-5, kl_mean: 3e-4, argmax: 0.99, margin: 0.01 };
/// A longer reference may hide a change of expert in rows whose routing it does not hold.
const INT8X2_LONG: Limits = Limits { max_abs: 0.5, kl_max: 0.01, kl_mean: 3e-4, argmax: 0.98, margin: 0.05 };

/// Rows up to which the tight limit of f32 holds: longer references have their own angles in f32.
const SHORT_ROWS: usize = 400;

/// One row of logits, f32 [V] each.
#[derive(Clone, Copy, Debug)]
pub struct Row<'a> {
    pub golden: &'a [f32],
    pub measured: &'a [f32],
    /// It, or a row before it, took other experts than the golden one.
    pub rerouted: bool,
}

impl Deviation {
    pub fn add_row(&mut self, row: &Row<'_>) {
        let Row { golden, measured, rerouted } = *row;
        // A NaN anywhere must not hide behind max, which drops it.
        let mut max_abs = 0f64;
        for (&a, &b) in golden.iter().zip(measured) {
            let difference = (f64::from(a) - f64::from(b)).abs();
            max_abs = if difference.is_nan() { f64::INFINITY } else { max_abs.max(difference) };
        }
        let digest =
            measured.iter().fold(self.logits_digest, |digest, x| mix(digest ^ u64::from(x.to_bits())));
        self.logits_digest = digest;
        let kl = kl_divergence(golden, measured);
        let kl = if kl.is_nan() { f64::INFINITY } else { kl };
        self.rows += 1;
        self.max_abs = self.max_abs.max(max_abs);
        self.kl_max = self.kl_max.max(kl);
        self.kl_mean += (kl - self.kl_mean) / self.rows as f64;
        self.argmax_equal += usize::from(argmax(golden) == argmax(measured));
        if !rerouted {
            self.rows_as_routed += 1;
            self.max_abs_as_routed = self.max_abs_as_routed.max(max_abs);
            self.kl_max_as_routed = self.kl_max_as_routed.max(kl);
        }
    }

    /// The last column of the table.
    pub fn verdict(&self) -> String {
        let faults = if self.faults.is_empty() { "ok".into() } else { self.faults.join(", ") };
        if self.notes.is_empty() { faults } else { format!("{faults} ({})", self.notes.join(", ")) }
    }

    /// Writes down what is past the limits.
    pub fn judge(&mut self, activations: Activations, sequence_rows: usize) {
        match activations {
            Activations::F32 => self.judge_f32(sequence_rows),
            Activations::Int8x2 if sequence_rows <= SHORT_ROWS => self.judge_rounded(&INT8X2),
            Activations::Int8x2 => self.judge_rounded(&INT8X2_LONG),
            Activations::Int8 => self.judge_rounded(&INT8),
            Activations::Bf16 => self.judge_rounded(&BF16),
        }
    }

    fn judge_f32(&mut self, sequence_rows: usize) {
        let max_abs = if sequence_rows <= SHORT_ROWS { 1e-4 } else { 1e-3 };
        self.limit("max abs", self.max_abs, max_abs);
        self.limit("max KL", self.kl_max, 1e-7);
        if self.greedy_equal < self.greedy_total {
            self.faults.push(format!("greedy {}/{}", self.greedy_equal, self.greedy_total));
        }
        if self.experts_equal < self.experts_total {
            self.faults.push(format!("expert sets {}/{}", self.experts_equal, self.experts_total));
        }
    }

    fn judge_rounded(&mut self, limits: &Limits) {
        self.limit("max abs before a change of expert", self.max_abs_as_routed, limits.max_abs);
        self.limit("max KL before a change of expert", self.kl_max_as_routed, limits.kl_max);
        self.limit("mean KL", self.kl_mean, limits.kl_mean);
        if (self.argmax_equal as f64) < limits.argmax * self.rows as f64 {
            self.faults.push(format!("argmax {}/{}", self.argmax_equal, self.rows));
        }
        // Greedy goes its own way only where the golden logits hardly decide.
        if self.greedy_equal < self.greedy_total && self.margin.is_none_or(|margin| margin > limits.margin) {
            let margin = self.margin.unwrap_or(f64::NAN);
            self.faults
                .push(format!("greedy leaves at {} where the margin is {margin:.2}", self.greedy_equal));
        }
    }

    fn limit(&mut self, what: &str, found: f64, limit: f64) {
        // A mean over what is infinite is no number.
        if found.is_nan() || found > limit {
            self.faults.push(format!("{what} {found:.2e} > {limit:.0e}"));
        }
    }
}

/// The first of the largest; a NaN never is.
fn argmax(x: &[f32]) -> usize {
    (0..x.len()).fold(0, |best, i| if x[i] > x[best] || x[best].is_nan() { i } else { best })
}

/// KL(softmax(p) || softmax(q)), in f64.
fn kl_divergence(p: &[f32], q: &[f32]) -> f64 {
    let (lp, lq) = (log_sum_exp(p), log_sum_exp(q));
    let terms = p.iter().zip(q).map(|(&p, &q)| {
        let (p, q) = (f64::from(p) - lp, f64::from(q) - lq);
        p.exp() * (p - q)
    });
    terms.sum()
}

fn log_sum_exp(x: &[f32]) -> f64 {
    let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = x.iter().map(|&x| f64::from(x - max).exp()).sum();
    f64::from(max) + sum.ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_rows_pass_and_others_say_what_is_wrong() {
        let mut same = Deviation::default();
        same.add_row(&row(&[1.0, 2.0, 3.0], &[1.0, 2.0, 3.0]));
        same.judge(Activations::F32, 10);
        assert!(same.faults.is_empty() && same.kl_max.abs() < 1e-15);

        let mut off = Deviation { greedy_total: 2, greedy_equal: 1, ..Deviation::default() };
        off.add_row(&row(&[1.0, 2.0, 3.0], &[1.0, 2.0, 3.1]));
        off.judge(Activations::F32, 10);
        assert_eq!(off.faults.len(), 3, "{:?}", off.faults);
    }

    #[test]
    fn a_nan_is_never_within_tolerance() {
        for (activations, faults) in [(Activations::F32, 2), (Activations::Bf16, 3)] {
            let mut nan = Deviation::default();
            nan.add_row(&row(&[1.0, 2.0], &[f32::NAN, 2.0]));
            nan.judge(activations, 10);
            assert_eq!(nan.faults.len(), faults, "{:?}", nan.faults);
        }
    }

    /// Rows behind a change of expert are judged by their mean alone.
    #[test]
    fn a_nan_among_many_rows_is_seen_in_their_mean() {
        let mut rows = Deviation::default();
        for at in 0..40 {
            let measured = if at == 3 { [f32::NAN, 2.0] } else { [1.0, 2.0] };
            rows.add_row(&Row { golden: &[1.0, 2.0], measured: &measured, rerouted: true });
        }
        rows.judge(Activations::Bf16, 10);
        assert_eq!(rows.faults.len(), 1, "{:?}", rows.faults);
    }

    #[test]
    fn rounded_activations_may_leave_the_golden_way_only_where_it_hardly_decides() {
        let judged = |margin| {
            let mut leaves = Deviation { greedy_total: 9, greedy_equal: 4, margin, ..Deviation::default() };
            leaves.add_row(&row(&[1.0, 2.0], &[1.1, 1.9]));
            leaves.judge(Activations::Bf16, 10);
            leaves.faults.len()
        };
        assert_eq!((judged(Some(0.2)), judged(Some(0.4)), judged(None)), (0, 1, 1));

        // A row of other experts may be far off; one before it may not.
        let far = Row { golden: &[0.0, 9.0], measured: &[2.0, 9.0], rerouted: true };
        let mut rerouted = Deviation::default();
        rerouted.add_row(&far);
        rerouted.judge(Activations::Bf16, 10);
        assert!(rerouted.faults.is_empty(), "{:?}", rerouted.faults);
        let mut early = Deviation::default();
        early.add_row(&Row { rerouted: false, ..far });
        early.judge(Activations::Bf16, 10);
        assert!(!early.faults.is_empty());
    }

    fn row<'a>(golden: &'a [f32], measured: &'a [f32]) -> Row<'a> {
        Row { golden, measured, rerouted: false }
    }
}
