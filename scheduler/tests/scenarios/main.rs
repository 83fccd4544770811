//! What the scheduler does, one story each. The world checks in every story that no token is lost,
//! repeated or wrong, and that the workers are never asked for what the contract forbids.

mod batching;
mod blocks;
mod ends;
mod groups;
#[path = "../world/mod.rs"]
mod world;

use flotilla_scheduler::Settings;

/// Small numbers that a reader can follow: steps of 8 tokens, one at a time, 4 sequences, a queue of 4.
fn small() -> Settings {
    Settings {
        tokens_per_step_max: 8,
        sequences_max: 4,
        waiting_max: 4,
        context_max: 200,
        window_tokens: 32,
        steps_in_flight_max: 1,
        prefix_cache: false,
        speculation: None,
    }
}

const PLENTY: usize = 100;
