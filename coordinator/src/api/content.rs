//! An answer's text on its way to the client: held back where a stop string may have begun, and, beside
//! it, how likely its tokens were. Each likelihood goes out with the first of its token's text.

use std::collections::VecDeque;

use flotilla_shared::TokenId;
use flotilla_shared::step::Logprobs;

use super::ending::Ending;
use super::logprobs::Likelihood;
use super::reader::Delta;
use super::stop::StopStrings;

pub struct Content {
    stops: StopStrings,
    /// So many tokens must come before a stop string counts.
    tokens_min: usize,
    likelihoods: VecDeque<Likelihood>,
    /// Characters that came in, and that were given out.
    came: usize,
    gone: usize,
}

impl Content {
    pub fn new(ending: &Ending) -> Content {
        let stops = StopStrings::new(ending.stops.clone(), ending.include);
        let tokens_min = ending.tokens_min;
        Content { stops, tokens_min, likelihoods: VecDeque::new(), came: 0, gone: 0 }
    }

    /// A token of the answer comes, whatever it turns out to be.
    pub fn count(&mut self) {
        self.tokens_min = self.tokens_min.saturating_sub(1);
    }

    /// A token whose text comes next: now, or, of half a character, with a later token.
    pub fn expect(&mut self, token: TokenId, logprobs: Option<Logprobs>) {
        let offset = self.came;
        self.likelihoods.extend(logprobs.map(|logprobs| Likelihood { token, logprobs, offset }));
    }

    pub fn push(&mut self, text: &str) -> Option<Delta> {
        self.came += text.chars().count();
        // The token that makes it enough is in time itself.
        let text = if self.tokens_min > 0 { text.to_owned() } else { self.stops.push(text) };
        self.give(text)
    }

    pub fn finish(&mut self) -> Option<Delta> {
        let text = self.stops.finish();
        self.give(text)
    }

    /// Whether a stop string came; nothing follows then.
    pub fn is_over(&self) -> bool {
        self.stops.hit()
    }

    fn give(&mut self, text: String) -> Option<Delta> {
        if text.is_empty() {
            return None;
        }
        self.gone += text.chars().count();
        let count = self.likelihoods.iter().take_while(|one| one.offset < self.gone).count();
        let logprobs = self.likelihoods.drain(..count).collect();
        Some(Delta::Content { text, logprobs })
    }
}
