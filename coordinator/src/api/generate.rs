//! From prompts to updates: every choice is a sequence of its own, and what comes of all of them is one
//! stream, in the order in which it comes.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use flotilla_scheduler::ClientId;
use flotilla_shared::sampling::mix;
use flotilla_shared::{Sampling, TokenId};
use futures::stream::{SelectAll, Stream, select_all};

use super::Api;
use super::choice::Choice;
use super::ending::Ending;
use super::error::ApiError;
use super::form::Bound;
use super::log::RequestLog;
use super::onward::Onward;
use super::options::{CHOICES_MAX, Options};
use super::reader::{Delta, Reader};
use super::trace::{ChoiceTimes, RequestTrace};
use crate::driver::Generation;
use crate::guide::{Guide, Pattern};

/// What happened to one choice.
#[derive(Clone, Debug)]
pub enum Update {
    /// With the usage of this choice so far.
    Delta {
        delta: Delta,
        usage: Usage,
    },
    Ended(Ended),
    Failed(ApiError),
}

#[derive(Clone, Copy, Debug)]
pub struct Ended {
    pub finish: Finish,
    pub usage: Usage,
}

/// As OpenAI's `finish_reason` tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    Stop,
    Length,
    ToolCalls,
}

impl Finish {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::ToolCalls => "tool_calls",
        }
    }
}

/// Token counts, of one choice or of all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub prompt_tokens: usize,
    pub cached_tokens: usize,
    pub completion_tokens: usize,
    pub reasoning_tokens: usize,
}

/// Index of the choice and what happened to it.
pub type Updates = SelectAll<Pin<Box<dyn Stream<Item = (usize, Update)> + Send>>>;

/// Submits `options.choices` sequences for each prompt. All are taken in, or none.
pub async fn generate(
    api: &Arc<Api>,
    log: &RequestLog,
    options: &Options,
    prompts: &[Vec<TokenId>],
    tokens_max: usize,
    reader: impl Fn() -> Box<dyn Reader>,
) -> Result<Updates, ApiError> {
    options.check_tokens(api.harmony.tokenizer())?;
    check_size(api, options, prompts)?;
    let longest = prompts.iter().map(Vec::len).max().unwrap_or(0);
    options.ending.check_least(tokens_max.min(api.settings.context_tokens_max - longest))?;
    let pattern = options.bound.pattern(api).await?;
    let prompt_tokens = prompts.iter().map(Vec::len).sum();
    log.note(|facts| {
        facts.stream = options.stream;
        facts.choices = prompts.len() * options.choices;
        facts.prompt_tokens = prompt_tokens;
    });
    if api.settings.log_prompts {
        prompts.iter().for_each(|prompt| log.show_prompt(prompt, api.harmony.tokenizer()));
    }
    if let Some(visit) = log.visit() {
        let over = |exceeded| ApiError::OverLimit { key: visit.key.name.clone(), exceeded };
        visit.open_choices(prompts.len() * options.choices).map_err(over)?;
        visit.spend_prompt(prompt_tokens).map_err(over)?;
    }
    let seed = options.seed.unwrap_or_else(|| api.ids.seed());
    let priority = priority(options.priority, log.visit().map(|visit| visit.key.priority));
    // More than there are is all, which costs less to find.
    let all = options.choosing.top_k as usize >= api.harmony.tokenizer().vocab_size();
    let top_k = if all { 0 } else { options.choosing.top_k };
    let mut streams = Vec::new();
    let from_behind = options.ending.tokens_min == 0 && is_followed(api, &options.bound);
    let ends_in_thought = pattern.is_none() && !options.ending.ignore_eos && reader().only_thought();
    let goes_on = from_behind || ends_in_thought;
    let kept: Vec<Arc<[TokenId]>> =
        prompts.iter().filter(|_| goes_on).map(|prompt| prompt.as_slice().into()).collect();
    for (index, prompt) in prompts.iter().flat_map(|prompt| vec![prompt; options.choices]).enumerate() {
        let guide = guide(api, options, pattern.as_ref());
        let (watch, guide) = if from_behind { (guide, None) } else { (None, guide) };
        let generation = Generation {
            prompt: prompt.clone(),
            said: None,
            sampling: Sampling { top_k, ..options.sampling(seed, index % options.choices) },
            tokens_max: tokens_max.min(api.settings.context_tokens_max - prompt.len()),
            stop_tokens: options.ending.stop_tokens(&api.stop_tokens),
            client: log.client(),
            guide,
            priority,
            timeout: api.settings.limits.request_timeout,
            salt: salt(log.client(), options.salt),
            trace: log.trace().map(RequestTrace::context),
        };
        let submitted = Instant::now();
        let onward = kept
            .get(index / options.choices)
            .map(|prompt| Onward::new(&generation, prompt, &options.ending, &api.stop_tokens, submitted));
        let tokens = api.replicas.submit(generation).await.inspect_err(|_| {
            // Clients come back with it. What was taken in of several choices may have been computed.
            if let Some(visit) = log.visit().filter(|_| streams.is_empty()) {
                visit.give_back_prompt(prompt_tokens);
            }
        })?;
        let times = times(index, submitted, prompt.len(), index % options.choices == 0);
        let choice = Choice::new(api, tokens, (onward, watch), reader(), times, log.clone());
        streams.push(choice.updates(index));
    }
    log.note(|facts| facts.taken_in = true);
    Ok(select_all(streams))
}

fn times(index: usize, submitted: Instant, prompt_tokens: usize, begins_prompt: bool) -> ChoiceTimes {
    ChoiceTimes {
        index,
        begins_prompt,
        submitted,
        ran: None,
        first_token: None,
        prompt_tokens,
        cached_tokens: 0,
        generated_tokens: 0,
    }
}

/// A client may step back behind what its key allows, never before it. Lower goes first.
fn priority(wanted: Option<i32>, key: Option<i32>) -> i32 {
    match (wanted, key) {
        (Some(wanted), Some(key)) => wanted.max(key),
        (wanted, key) => wanted.or(key).unwrap_or(0),
    }
}

/// Whether the guides of a turn are followed from behind, as far as nothing binds its text. What goes on has all that was said
/// as its prompt; where that is not found again, only a turn that does what is forbidden goes on.
fn is_followed(api: &Api, bound: &Bound) -> bool {
    bound.only_forbids() || matches!(bound, Bound::Turn(_)) && api.replicas.caches_prefixes()
}

/// What keeps a sequence to its form, and to its least length.
fn guide(api: &Api, options: &Options, pattern: Option<&Pattern>) -> Option<Box<dyn Guide>> {
    let form = pattern.map(Pattern::guide);
    let Ending { tokens_min, .. } = options.ending;
    if tokens_min == 0 {
        return form;
    }
    // Of the model's own as well where they do not count: they would be said in vain.
    let ends: Vec<TokenId> = api.stop_tokens.iter().chain(&options.ending.tokens).copied().collect();
    Some(api.guides.at_least(tokens_min, &ends, form))
}

/// Every choice has the prompt once more in memory. What eight choices of a full context take is enough for
/// any request, however many prompts it has.
fn check_size(api: &Api, options: &Options, prompts: &[Vec<TokenId>]) -> Result<(), ApiError> {
    let tokens = prompts.iter().map(Vec::len).sum::<usize>() * options.choices;
    let tokens_max = api.settings.context_tokens_max * CHOICES_MAX as usize;
    if tokens <= tokens_max { Ok(()) } else { Err(ApiError::PromptsTooLarge { tokens, tokens_max }) }
}

/// What was computed for one key is found by its own prompts only: how fast an answer comes, and what its
/// usage says, would tell others what was asked.
fn salt(client: ClientId, wanted: u64) -> u64 {
    if client == ClientId::default() { wanted } else { mix(wanted ^ mix(client.0)) }
}

pub fn check_prompt(api: &Api, prompt: &[TokenId]) -> Result<(), ApiError> {
    let context_tokens_max = api.settings.context_tokens_max;
    if prompt.len() < context_tokens_max {
        return Ok(());
    }
    Err(ApiError::ContextLength { prompt_tokens: prompt.len(), context_tokens_max })
}

/// What cannot fit is refused before it is made into tokens, which costs more than to count its bytes.
pub fn check_text(api: &Api, bytes: usize) -> Result<(), ApiError> {
    let (context_tokens_max, token_bytes_max) = (api.settings.context_tokens_max, api.token_bytes_max);
    if bytes <= context_tokens_max.saturating_mul(token_bytes_max) {
        return Ok(());
    }
    Err(ApiError::ContextBytes { bytes, context_tokens_max, token_bytes_max })
}

/// Prompts count once however many choices were made of each; all else adds up.
pub fn total(ended: &[Option<Usage>], choices_per_prompt: usize) -> Usage {
    let mut total = Usage::default();
    for (index, usage) in ended.iter().enumerate() {
        let Some(usage) = usage else { continue };
        if index % choices_per_prompt == 0 {
            total.prompt_tokens += usage.prompt_tokens;
            total.cached_tokens += usage.cached_tokens;
        }
        total.completion_tokens += usage.completion_tokens;
        total.reasoning_tokens += usage.reasoning_tokens;
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_says_nothing_has_the_priority_of_its_key() {
        let cases = [
            ((None, None), 0),
            ((None, Some(-5)), -5),
            ((None, Some(5)), 5),
            ((Some(-9), None), -9),
            ((Some(-9), Some(-5)), -5),
            ((Some(0), Some(-5)), 0),
        ];
        for ((wanted, key), expected) in cases {
            assert_eq!(priority(wanted, key), expected, "{wanted:?} of {key:?}");
        }
    }
}
