//! How busy the scheduler is, and what it has done: for metrics, for the page of the cluster, and for
//! routing between replicas.

use std::ops::Add;

/// As it is now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    pub sequences_running: usize,
    pub sequences_waiting: usize,
    pub steps_in_flight: usize,
    /// Blocks of full and of window layers; 0 without a group.
    pub kv_blocks: usize,
    pub window_blocks: usize,
    /// Held by nobody.
    pub kv_blocks_free: usize,
    pub window_blocks_free: usize,
    /// Of these, what a later prompt may find.
    pub kv_blocks_cached: usize,
    pub window_blocks_cached: usize,
}

/// Since the scheduler's start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    pub steps: u64,
    /// Of requests that were taken in.
    pub prompt_tokens: u64,
    pub generated_tokens: u64,
    pub preemptions: u64,
    /// Tokens of sequences as they were admitted, and how many of them were found in the cache.
    pub prefix_queried_tokens: u64,
    pub prefix_cached_tokens: u64,
    /// Guesses that were tried, and those that were right.
    pub drafted_tokens: u64,
    pub accepted_tokens: u64,
}

/// Of two replicas together.
impl Add for Load {
    type Output = Load;

    fn add(self, other: Load) -> Load {
        Load {
            sequences_running: self.sequences_running + other.sequences_running,
            sequences_waiting: self.sequences_waiting + other.sequences_waiting,
            steps_in_flight: self.steps_in_flight + other.steps_in_flight,
            kv_blocks: self.kv_blocks + other.kv_blocks,
            window_blocks: self.window_blocks + other.window_blocks,
            kv_blocks_free: self.kv_blocks_free + other.kv_blocks_free,
            window_blocks_free: self.window_blocks_free + other.window_blocks_free,
            kv_blocks_cached: self.kv_blocks_cached + other.kv_blocks_cached,
            window_blocks_cached: self.window_blocks_cached + other.window_blocks_cached,
        }
    }
}

/// Of two replicas together.
impl Add for Counters {
    type Output = Counters;

    fn add(self, other: Counters) -> Counters {
        Counters {
            steps: self.steps + other.steps,
            prompt_tokens: self.prompt_tokens + other.prompt_tokens,
            generated_tokens: self.generated_tokens + other.generated_tokens,
            preemptions: self.preemptions + other.preemptions,
            prefix_queried_tokens: self.prefix_queried_tokens + other.prefix_queried_tokens,
            prefix_cached_tokens: self.prefix_cached_tokens + other.prefix_cached_tokens,
            drafted_tokens: self.drafted_tokens + other.drafted_tokens,
            accepted_tokens: self.accepted_tokens + other.accepted_tokens,
        }
    }
}
