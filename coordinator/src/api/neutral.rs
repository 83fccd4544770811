//! Parameters of OpenAI's API, and of vLLM's beside it, that this server does not have. A client that
//! sets one to the value at which it changes nothing is served; any other value is refused by name,
//! since an answer that silently ignores what was asked for is worse than none.

use super::fields::{Fields, Node, Result};
use serde_json::{Value, json};

/// At which values a parameter changes nothing.
#[derive(Clone, Copy, Debug)]
pub enum Neutral {
    /// It never changes the answer: whom it is for, how it is billed, where it is cached.
    Always,
    /// Only when it is not set.
    Unset,
    Bool(bool),
    Numbers(&'static [f64]),
    Words(&'static [&'static str]),
    /// `[]` or `{}`.
    Empty,
    /// `["text"]`
    ListOfText,
}

use Neutral::{Always, Bool, Empty, ListOfText, Numbers, Unset, Words};

pub const BOTH: &[(&str, Neutral)] = &[
    ("metadata", Always),
    ("prompt_cache_key", Always),
    ("safety_identifier", Always),
    // There is one tier.
    ("service_tier", Words(&["auto", "default"])),
    ("user", Always),
    // llama.cpp's: beginnings of prompts are always cached.
    ("cache_prompt", Bool(true)),
    // vLLM's
    ("add_special_tokens", Always),
    ("allowed_token_ids", Unset),
    ("bad_words", Empty),
    ("best_of", Numbers(&[1.0])),
    ("detokenize", Bool(true)),
    ("kv_transfer_params", Unset),
    ("length_penalty", Numbers(&[1.0])),
    ("logits_processors", Empty),
    ("prompt_logprobs", Unset),
    ("request_id", Always),
    ("return_token_ids", Bool(false)),
    ("return_tokens_as_token_ids", Bool(false)),
    ("spaces_between_special_tokens", Always),
    ("truncate_prompt_tokens", Unset),
    ("use_beam_search", Bool(false)),
    ("vllm_xargs", Empty),
];

/// The API of responses has no field for the end of an answer.
pub const RESPONSES: &[(&str, Neutral)] = &[("min_tokens", Numbers(&[0.0]))];

const CHAT: &[(&str, Neutral)] = &[
    ("audio", Unset),
    ("function_call", Unset),
    ("functions", Empty),
    ("modalities", ListOfText),
    ("moderation", Unset),
    ("prediction", Unset),
    ("prompt_cache_options", Always),
    ("prompt_cache_retention", Always),
    ("store", Bool(false)),
    ("verbosity", Words(&["medium"])),
    ("web_search_options", Unset),
    // vLLM's
    ("add_generation_prompt", Bool(true)),
    ("chat_template", Unset),
    ("continue_final_message", Bool(false)),
    ("documents", Empty),
    ("echo", Bool(false)),
    ("include_reasoning", Bool(true)),
    ("mm_processor_kwargs", Empty),
    ("skip_special_tokens", Bool(true)),
];

const COMPLETIONS: &[(&str, Neutral)] = &[("prompt_embeds", Unset), ("suffix", Unset)];

/// llama.cpp's names of what goes by another here.
const RENAMED: &[(&str, &str)] = &[("n_predict", "max_tokens"), ("repeat_penalty", "repetition_penalty")];

/// Where prompts are to be cached: they are, whatever clients mark.
const MARKS: &[&str] = &["cache_control", "prompt_cache_breakpoint"];

/// What servers, and libraries between a client and its server, add to what a model said, and clients send back
/// with it. None of it is for the model.
const ADDED: &[&str] = &[
    "annotations",
    // LiteLLM's
    "provider_specific_fields",
    "thinking_blocks",
    // OpenRouter's; the reasoning stands beside it.
    "reasoning_details",
    // Google's
    "extra_content",
    // Of the parse() of OpenAI's Python library.
    "parsed",
    "parsed_arguments",
];

pub fn drop_marks(fields: &mut Fields) {
    MARKS.iter().for_each(|name| _ = fields.take(name));
}

pub fn drop_added(fields: &mut Fields) {
    ADDED.iter().for_each(|name| _ = fields.take(name));
}

pub fn take_chat(fields: &mut Fields) -> Result<()> {
    renamed(fields)?;
    take(fields, BOTH)?;
    take(fields, CHAT)
}

pub fn take_completions(fields: &mut Fields) -> Result<()> {
    renamed(fields)?;
    take(fields, BOTH)?;
    take(fields, COMPLETIONS)
}

fn renamed(fields: &mut Fields) -> Result<()> {
    RENAMED.iter().try_for_each(|(name, here)| match fields.take(name) {
        Some(node) => {
            Err(node.invalid(format!("no parameter of this name is known\nhint: here it is {here}")))
        }
        None => Ok(()),
    })
}

pub fn take(fields: &mut Fields, table: &[(&str, Neutral)]) -> Result<()> {
    for (name, neutral) in table {
        match fields.take(name) {
            Some(node) if !neutral.holds(&node.value) => return Err(node.not_supported(neutral.to_string())),
            Some(_) | None => {}
        }
    }
    Ok(())
}

impl Neutral {
    fn holds(self, value: &Value) -> bool {
        match self {
            Always => true,
            Unset => false,
            Bool(neutral) => value.as_bool() == Some(neutral),
            Numbers(neutral) => value.as_f64().is_some_and(|number| neutral.contains(&number)),
            Words(neutral) => value.as_str().is_some_and(|word| neutral.contains(&word)),
            Empty => {
                value.as_object().is_some_and(|object| object.is_empty())
                    || value.as_array().is_some_and(Vec::is_empty)
            }
            ListOfText => *value == json!(["text"]),
        }
    }
}

impl std::fmt::Display for Neutral {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Always => f.write_str("anything"),
            Unset => f.write_str("null"),
            Bool(neutral) => write!(f, "{neutral}"),
            Numbers(neutral) => {
                let words: Vec<String> = neutral.iter().map(f64::to_string).collect();
                f.write_str(&words.join(" or "))
            }
            Words(neutral) => write!(f, "\"{}\"", neutral.join("\" or \"")),
            Empty => f.write_str("an empty one"),
            ListOfText => f.write_str("[\"text\"]"),
        }
    }
}

/// For parameters that are read elsewhere, of whose known values only some are supported.
pub fn supported_word(
    node: Node,
    supported: &[&'static str],
    known: &[&'static str],
) -> Result<&'static str> {
    if node.value.as_str().is_some_and(|word| known.contains(&word)) {
        return Err(node.not_supported(format!("\"{}\"", supported.join("\" or \""))));
    }
    node.word(supported)
}
