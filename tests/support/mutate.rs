//! Inputs that are nearly right: seeds with bytes changed, cut, doubled and mixed, from a number, the same on every
//! machine. The same entries are fuzzed with coverage by `fuzz/`; this is what every test run has time for.

/// Calls `entry` with `count` inputs made of `seeds`; a panic of it is a failure, and the input is printed.
pub fn each(seeds: &[&[u8]], count: u64, entry: impl Fn(&[u8]) + std::panic::RefUnwindSafe) {
    for number in 0..count {
        let input = mutated(seeds, number);
        if std::panic::catch_unwind(|| entry(&input)).is_err() {
            let hex: String = input.iter().map(|byte| format!("{byte:02x}")).collect();
            panic!("input number {number} fails, {:?}, in hex {hex}", String::from_utf8_lossy(&input));
        }
    }
}

fn mutated(seeds: &[&[u8]], number: u64) -> Vec<u8> {
    let mut dice = Dice(number);
    let mut input = seeds[dice.below(seeds.len())].to_vec();
    for _ in 0..dice.below(6) {
        let at = dice.below(input.len() + 1);
        match dice.below(8) {
            0 => input.truncate(at),
            1 => input.insert(at, dice.below(256) as u8),
            2 if at < input.len() => input[at] ^= 1 << dice.below(8),
            3 if at < input.len() => drop(input.remove(at)),
            4 => {
                // A piece of another, or of itself.
                let other = seeds[dice.below(seeds.len())];
                let from = dice.below(other.len() + 1);
                let piece = other[from..].iter().copied().take(dice.below(64)).collect::<Vec<_>>();
                input.splice(at..at, piece);
            }
            5 => {
                let numbers: [&[u8]; 6] =
                    [b"-1", b"1e999", b"18446744073709551616", b"null", b"\xff\xff\xff\xff", b"0"];
                let end = (at + dice.below(4)).min(input.len());
                input.splice(at..end, numbers[dice.below(6)].iter().copied());
            }
            6 if at + 8 <= input.len() => {
                let extreme = [0, 1, u64::MAX, 1 << 63, u64::MAX >> 1, 0xffff_ffff][dice.below(6)];
                input[at..at + 8].copy_from_slice(&u64::to_le_bytes(extreme));
            }
            _ => {
                // Deep nesting.
                let bracket = [b'[', b'{', b'"', b'\\'][dice.below(4)];
                input.splice(at..at, std::iter::repeat_n(bracket, dice.below(300)));
            }
        }
    }
    input
}

/// splitmix64
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ bits >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ bits >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((bits ^ bits >> 31) % end.max(1) as u64) as usize
    }
}
