//! Answers that go on, once, from what was said of them, which is in the prefix cache: little is computed again.
//!
//! One that ended inside its thought: gpt-oss at times says `<|return|>` where its answer should begin, and its client
//! would hear of nothing. It goes on as if the model had opened its final message. Only where nothing binds the turn:
//! a guide lets none end there. Raw text ends where the model ends it, and a client that counts a token among its own
//! stops means it.
//!
//! One whose guide is followed from behind: in thoughts, headers and free text its tokens are sampled ahead, without masks, and
//! few turns do what they may not. One that does goes on before that token, with its guide; one that opens a text that a form
//! binds goes on behind that token, likewise.

use std::sync::Arc;
use std::time::Instant;

use flotilla_shared::TokenId;

use super::ending::Ending;
use crate::driver::Generation;
use crate::guide::Guide;
use crate::harmony::Harmony;

/// What a sequence needs to go on.
pub struct Onward {
    prompt: Arc<[TokenId]>,
    said: Vec<TokenId>,
    /// Without a prompt.
    rest: Generation,
    /// The ends behind which it goes on.
    ends: Vec<TokenId>,
    began: Instant,
}

impl Onward {
    /// `eos`: the model's own stop tokens. `began`: since when its time runs.
    pub fn new(
        generation: &Generation,
        prompt: &Arc<[TokenId]>,
        ending: &Ending,
        eos: &[TokenId],
        began: Instant,
    ) -> Onward {
        let rest = Generation {
            sampling: generation.sampling.clone(),
            stop_tokens: generation.stop_tokens.clone(),
            prompt: Vec::new(),
            guide: None,
            ..*generation
        };
        let ends = eos.iter().copied().filter(|token| !ending.tokens.contains(token)).collect();
        Onward { prompt: Arc::clone(prompt), said: Vec::new(), rest, ends, began }
    }

    pub fn push(&mut self, token: TokenId) {
        self.said.push(token);
    }

    /// With an answer behind `end`. None: it does not go on, or there is no room or no time for a token.
    pub fn answer(mut self, harmony: &Harmony, end: TokenId, now: Instant) -> Option<Generation> {
        self.said.pop_if(|last| *last == end && self.ends.contains(last))?;
        self.said.extend(harmony.final_header(&self.said));
        self.generation(None, now)
    }

    /// Whether a token may follow what was said; else it ends there.
    pub fn has_room(&self) -> bool {
        let ended = self.said.last().is_some_and(|last| self.rest.stop_tokens.contains(last));
        self.said.len() < self.rest.tokens_max && !ended
    }

    /// With the guide that has taken in what was said. None: there is no time.
    pub fn guided(self, guide: Box<dyn Guide>, now: Instant) -> Option<Generation> {
        self.generation(Some(guide), now)
    }

    fn generation(self, guide: Option<Box<dyn Guide>>, now: Instant) -> Option<Generation> {
        let timeout = self.rest.timeout.map(|timeout| timeout.saturating_sub(now - self.began));
        if self.said.len() >= self.rest.tokens_max || timeout.is_some_and(|timeout| timeout.is_zero()) {
            return None;
        }
        let prompt = [&self.prompt[..], &self.said].concat();
        Some(Generation { prompt, said: Some(self.said.len()), guide, timeout, ..self.rest })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::tokenizer::Tokenizer;

    fn harmony() -> Harmony {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/small_tokenizer.json");
        Harmony::new(Arc::new(Tokenizer::from_file(path).unwrap())).unwrap()
    }

    /// What goes on as text, behind the prompt "?", and how many of its tokens were said.
    fn goes_on(said: &str, change: impl FnOnce(&mut Generation, &mut Ending)) -> Option<(String, usize)> {
        let harmony = harmony();
        let mut generation = Generation { tokens_max: 100, ..Generation::default() };
        let mut ending = Ending::default();
        change(&mut generation, &mut ending);
        let prompt: Arc<[TokenId]> = harmony.tokenizer().encode_plain("?").into();
        let eos = [harmony.special().return_];
        let began = Instant::now();
        let mut onward = Onward::new(&generation, &prompt, &ending, &eos, began);
        let tokens = harmony.tokenizer().encode_special(said);
        tokens.iter().for_each(|token| onward.push(*token));
        let next = onward.answer(&harmony, *tokens.last()?, began + Duration::from_secs(10))?;
        let said = next.said?;
        assert_eq!(next.prompt.len(), prompt.len() + said);
        Some((harmony.tokenizer().decode(&next.prompt), said))
    }

    const FINAL: &str = "<|start|>assistant<|channel|>final<|message|>";

    #[test]
    fn a_thought_is_closed_and_the_answer_opened() {
        for (said, expected) in [
            ("<|channel|>analysis<|message|>Hm<|return|>", "?<|channel|>analysis<|message|>Hm<|end|>"),
            ("<|channel|>analysis<|message|>Hm<|end|><|return|>", "?<|channel|>analysis<|message|>Hm<|end|>"),
        ] {
            assert_eq!(goes_on(said, |_, _| {}).unwrap().0, format!("{expected}{FINAL}"));
        }
        // Right behind the prompt's own <|start|>assistant.
        assert_eq!(goes_on("<|return|>", |_, _| {}).unwrap().0, "?<|channel|>final<|message|>");
    }

    #[test]
    fn it_needs_an_end_of_the_models_own_and_room_and_time() {
        let said = "<|channel|>analysis<|message|>Hm<|return|>";
        let count = goes_on(said, |_, _| {}).unwrap().1;
        let with_room = |tokens_max| goes_on(said, |generation, _| generation.tokens_max = tokens_max);
        assert!(with_room(count + 1).is_some() && with_room(count).is_none());
        let with_time =
            |seconds| goes_on(said, |generation, _| generation.timeout = Some(Duration::from_secs(seconds)));
        assert!(with_time(11).is_some() && with_time(10).is_none());
        let asked_for = harmony().special().return_;
        assert!(goes_on(said, |_, ending| ending.tokens.push(asked_for)).is_none(), "the client's stop");
        assert!(
            goes_on("<|channel|>analysis<|message|>Hm<|call|>", |_, _| {}).is_none(),
            "not one of these ends"
        );
    }
}
