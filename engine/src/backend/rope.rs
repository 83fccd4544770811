//! Cos and sin of a step's rows, for every layer alike. Angles in f64: at position 131071 an f32 angle
//! is wrong in the third digit.

use flotilla_shared::ModelSpec;

/// Rotation of each row's position.
#[derive(Debug)]
pub struct RopeTable {
    /// f64 [D/2]
    inv_freq: Vec<f64>,
    concentration: f64,
    /// f32 [T, D/2], with the concentration in them.
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl RopeTable {
    pub fn new(spec: &ModelSpec) -> Self {
        RopeTable {
            inv_freq: spec.rope.inv_freq(spec.head_dim),
            concentration: spec.rope.concentration(),
            cos: Vec::new(),
            sin: Vec::new(),
        }
    }

    pub fn set_positions(&mut self, positions: &[u32]) {
        self.cos.clear();
        self.sin.clear();
        for position in positions {
            for inv_freq in &self.inv_freq {
                let (sin, cos) = (f64::from(*position) * inv_freq).sin_cos();
                self.cos.push((cos * self.concentration) as f32);
                self.sin.push((sin * self.concentration) as f32);
            }
        }
    }

    /// f32 [T, D/2]
    pub fn cos(&self) -> &[f32] {
        &self.cos
    }

    /// f32 [T, D/2]
    pub fn sin(&self) -> &[f32] {
        &self.sin
    }

    /// (cos, sin) of a row, f32 [D/2] each.
    pub fn row(&self, row: usize) -> (&[f32], &[f32]) {
        let half = self.inv_freq.len();
        (&self.cos[row * half..][..half], &self.sin[row * half..][..half])
    }
}
