//! Every kernel on every instruction set of the machine, against a plain calculation in f64.
//! A property that fails prints its shapes and seed; `Dice::new(seed)` replays the values.

mod activations;
mod attention;
mod elementwise;
mod int8;
mod mxfp4;
mod products;
mod replicated;
mod views;

use super::*;

/// splitmix64: values from a seed, the same on every machine.
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Dice {
        Dice(seed)
    }
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    /// In 0..n.
    pub fn below(&mut self, n: usize) -> usize {
        (self.bits() % n as u64) as usize
    }
    /// In −1..1.
    pub fn value(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }
    pub fn values(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.value()).collect()
    }
    pub fn bf16s(&mut self, n: usize) -> Vec<u16> {
        (0..n).map(|_| (self.value().to_bits() >> 16) as u16).collect()
    }
    pub fn bytes(&mut self, n: usize) -> Vec<u8> {
        (0..n).map(|_| self.bits() as u8).collect()
    }
}

pub fn widened(bits: u16) -> f64 {
    f32::from_bits((bits as u32) << 16) as f64
}

pub fn every_isa(mut check: impl FnMut(Kernels)) {
    for isa in Isa::available() {
        check(Kernels::new(isa));
    }
}
