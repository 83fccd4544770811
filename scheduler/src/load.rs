//! How busy the scheduler is, and what it has done: for metrics, for the page of the cluster, and for
//! routing between replicas.

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
