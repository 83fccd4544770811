//! Chance from a seed, the same on every machine (splitmix64).

pub struct Dice(u64);

impl Dice {
    /// The seed is mixed too: what is thrown by one would be that of the next, one throw later.
    pub fn new(seed: u64) -> Dice {
        Dice(mixed(seed))
    }

    /// 0 to `end`, without `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mixed(self.0) % end
    }
}

fn mixed(mut bits: u64) -> u64 {
    bits = (bits ^ bits >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ bits >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ bits >> 31
}
