//! What came after the plain line, one story each: stages, one step ahead, shared beginnings, windows, clients that
//! share a group, the order of who waits, masks, guesses and deadlines. The world checks in every story that no token is lost,
//! repeated or computed from another's blocks.

mod beginnings;
mod clients;
mod guesses;
mod order;
mod stages;
#[path = "../world/mod.rs"]
mod world;

use flotilla_scheduler::{Request, Settings};
use world::{End, World, request};

fn small() -> Settings {
    Settings {
        tokens_per_step_max: 8,
        sequences_max: 4,
        waiting_max: 8,
        context_max: 400,
        window_tokens: 32,
        ..Settings::default()
    }
}

const PLENTY: usize = 100;

/// The request of another id with the prompt of `id`, and `more` tokens of its own.
fn beginning_like(id: u64, prompt_tokens: usize, other: u64, more: usize) -> Request {
    let mut prompt = request(id, prompt_tokens, 0).prompt;
    prompt.extend(request(other, more, 0).prompt);
    Request { prompt, ..request(other, 0, 4) }
}

fn cached(world: &World, id: u64) -> usize {
    match world.client(id).end {
        Some(End::Finished(_, usage)) => usage.cached_tokens,
        _ => panic!("{id} has not finished"),
    }
}
