//! Rotary embedding, and how YaRN stretches it.

use serde::{Deserialize, Serialize};

/// Rotary embedding with YaRN; a factor of 1 is plain rotary.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rope {
    pub theta: f64,
    pub factor: f64,
    pub beta_fast: f64,
    pub beta_slow: f64,
    /// Context length before extension, L0.
    pub original_context: f64,
    /// Round the ends of the ramp to whole dimensions; gpt-oss does not.
    pub truncate: bool,
}

impl Rope {
    /// Angle per position of each pair (j, j + D/2), [D/2]; model-card formula "YaRN", not rounded unless asked.
    pub fn inv_freq(&self, head_dim: usize) -> Vec<f64> {
        let half = head_dim / 2;
        let theta_j = |j: usize| self.theta.powf(-(j as f64) / half as f64);
        if self.factor <= 1.0 {
            return (0..half).map(theta_j).collect();
        }
        let (low, high) = self.ramp_range(head_dim);
        let ramp = |j: usize| ((j as f64 - low) / (high - low)).clamp(0.0, 1.0);
        (0..half).map(|j| theta_j(j) / self.factor * ramp(j) + theta_j(j) * (1.0 - ramp(j))).collect()
    }

    /// Factor on both cos and sin, at every length: 0.1 ln(factor) + 1.
    pub fn concentration(&self) -> f64 {
        if self.factor <= 1.0 { 1.0 } else { 0.1 * self.factor.ln() + 1.0 }
    }

    /// Dimensions between which extrapolation turns into interpolation.
    fn ramp_range(&self, head_dim: usize) -> (f64, f64) {
        let half = (head_dim / 2) as f64;
        let dim_of = |rotations: f64| {
            half * (self.original_context / (rotations * 2.0 * std::f64::consts::PI)).ln() / self.theta.ln()
        };
        let (mut low, mut high) = (dim_of(self.beta_fast), dim_of(self.beta_slow));
        if self.truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        let (low, high) = (low.max(0.0), high.min(head_dim as f64 - 1.0));
        if low == high { (low, high + 0.001) } else { (low, high) }
    }
}

#[cfg(test)]
mod tests {
    use crate::spec::ModelSpec;

    #[test]
    fn yarn_range_is_not_rounded() {
        let rope = ModelSpec::published("gpt-oss-120b").unwrap().rope;
        let (low, high) = rope.ramp_range(64);
        assert!((low - 8.0927791).abs() < 1e-6 && (high - 17.3980245).abs() < 1e-6, "{low} {high}");
        assert!((rope.concentration() - 1.3465735902799727).abs() < 1e-15);
    }
}
