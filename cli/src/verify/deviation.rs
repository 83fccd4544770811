//! How far measured logits are from golden ones, and what is allowed.

use serde::Serialize;

/// Deviations of one prompt.
#[derive(Debug, Default, Serialize)]
pub struct Deviation {
    pub key: String,
    pub rows: usize,
    pub max_abs: f64,
    /// KL(golden || measured) in nats, over rows.
    pub kl_mean: f64,
    pub kl_max: f64,
    pub greedy_equal: usize,
    pub greedy_total: usize,
    /// (layer, row) pairs with the same set of experts.
    pub experts_equal: usize,
    pub experts_total: usize,
    /// What a reader of the figures must know.
    pub notes: Vec<String>,
    /// What is past its limit, in words; empty when all is well.
    pub faults: Vec<String>,
}

/// Limits of f32 activations. Longer sequences have the angles of the reference itself in f32.
#[derive(Clone, Copy, Debug)]
pub struct Tolerance {
    pub max_abs: f64,
    pub kl_max: f64,
}

/// Rows up to which the tight limit holds.
const SHORT_ROWS: usize = 400;

impl Tolerance {
    pub fn f32_activations(sequence_rows: usize) -> Self {
        let max_abs = if sequence_rows <= SHORT_ROWS { 1e-4 } else { 1e-3 };
        Tolerance { max_abs, kl_max: 1e-7 }
    }
}

impl Deviation {
    /// Adds one row of logits.
    pub fn add_row(&mut self, golden: &[f32], measured: &[f32]) {
        // A NaN anywhere must not hide behind max, which drops it.
        let mut max_abs = 0f64;
        for (&a, &b) in golden.iter().zip(measured) {
            let difference = (f64::from(a) - f64::from(b)).abs();
            max_abs = if difference.is_nan() { f64::INFINITY } else { max_abs.max(difference) };
        }
        let kl = kl_divergence(golden, measured);
        let kl = if kl.is_nan() { f64::INFINITY } else { kl };
        self.rows += 1;
        self.max_abs = self.max_abs.max(max_abs);
        self.kl_max = self.kl_max.max(kl);
        self.kl_mean += (kl - self.kl_mean) / self.rows as f64;
    }

    /// The last column of the table.
    pub fn verdict(&self) -> String {
        let faults = if self.faults.is_empty() { "ok".into() } else { self.faults.join(", ") };
        if self.notes.is_empty() { faults } else { format!("{faults} ({})", self.notes.join(", ")) }
    }

    /// Writes down what is past the limits.
    pub fn judge(&mut self, tolerance: Tolerance) {
        if self.max_abs > tolerance.max_abs {
            self.faults.push(format!("max abs {:.2e} > {:.0e}", self.max_abs, tolerance.max_abs));
        }
        if self.kl_max > tolerance.kl_max {
            self.faults.push(format!("max KL {:.2e} > {:.0e}", self.kl_max, tolerance.kl_max));
        }
        if self.greedy_equal < self.greedy_total {
            self.faults.push(format!("greedy {}/{}", self.greedy_equal, self.greedy_total));
        }
        if self.experts_equal < self.experts_total {
            self.faults.push(format!("expert sets {}/{}", self.experts_equal, self.experts_total));
        }
    }
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
        same.add_row(&[1.0, 2.0, 3.0], &[1.0, 2.0, 3.0]);
        same.judge(Tolerance::f32_activations(10));
        assert!(same.faults.is_empty() && same.kl_max.abs() < 1e-15);

        let mut off = Deviation { greedy_total: 2, greedy_equal: 1, ..Deviation::default() };
        off.add_row(&[1.0, 2.0, 3.0], &[1.0, 2.0, 3.1]);
        off.judge(Tolerance::f32_activations(10));
        assert_eq!(off.faults.len(), 3, "{:?}", off.faults);
    }

    #[test]
    fn a_nan_is_never_within_tolerance() {
        let mut nan = Deviation::default();
        nan.add_row(&[1.0, 2.0], &[f32::NAN, 2.0]);
        nan.judge(Tolerance::f32_activations(10));
        assert_eq!(nan.faults.len(), 2, "{:?}", nan.faults);
    }
}
