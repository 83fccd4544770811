//! Sampling on shards: what a plain calculation over the whole vocabulary gives, for every number of ranks.

mod distribution;
mod logprobs;
mod ranks;
mod reference;
mod shards;
