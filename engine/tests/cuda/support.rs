//! What the tests of this folder run on.

use flotilla_engine::cuda::{Card, keep_in, search_first};
use std::path::Path;
use std::sync::Once;

/// A card, and what tests call its kind: `cuda-emulated` or `cuda`.
#[derive(Clone, Debug)]
pub struct TestCard {
    pub name: &'static str,
    pub card: Card,
}

/// Is it the machine's own card that is tested?
pub fn is_real() -> bool {
    std::env::var("FLOTILLA_TEST_DEVICE").is_ok_and(|device| device == "cuda")
}

/// What to test on: the emulated card, or the machine's first one with FLOTILLA_TEST_DEVICE=cuda. Each call
/// opens it anew, with a stream of its own. It is one of the two, not both, because a process has one driver.
pub fn cards() -> Vec<TestCard> {
    let real = is_real();
    static READY: Once = Once::new();
    READY.call_once(|| {
        // SAFETY: this is the first thing that any test of this binary does with a card, and NCCL reads it later. Ranks of
        // these tests are threads.
        unsafe { std::env::set_var("NCCL_P2P_DIRECT_DISABLE", "1") };
        if !real {
            let folder = flotilla_emulator::folder().expect("the emulated card is built by the C++ compiler");
            search_first(&folder.join(flotilla_emulator::CUBLAS));
            search_first(&folder);
        }
        keep_in(&kept_in());
    });
    let name = if real { "cuda" } else { "cuda-emulated" };
    vec![TestCard { name, card: Card::open(0).unwrap_or_else(|error| panic!("{error}")) }]
}

/// Where the tests keep compiled kernels, so that the next run need not compile them.
pub fn kept_in() -> std::path::PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("cubin")
}
