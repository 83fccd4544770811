//! What requests ask. A conversation is made of its number and the seed alone, so that a run can be repeated whatever
//! order its requests came in.

mod file;
mod words;
mod writer;

use crate::chance::Chance;
use crate::lengths::Lengths;
use crate::schedule::Due;
use serde_json::{Value, json};

pub use file::{FileError, read_prompts};
pub use writer::{Measure, Writer, WriterError};

/// What one client says, turn by turn; the server's answers go between.
#[derive(Clone, Debug, PartialEq)]
pub struct Script {
    pub turns: Vec<Turn>,
    /// A function is offered, and its result is told when it is called.
    pub tools: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Turn {
    pub messages: Vec<Value>,
    pub max_tokens: Option<usize>,
    /// Of the whole prompt, by the server's count; only the first turn has a length of its own.
    pub prompt_tokens: Option<usize>,
}

#[derive(Debug)]
pub enum Prompts {
    Synthetic(Box<Synthetic>),
    /// One after the other, and again from the first.
    File {
        scripts: Vec<Script>,
        max_tokens: Lengths,
    },
}

/// Text of common words without a meaning.
#[derive(Debug)]
pub struct Synthetic {
    pub writer: Writer,
    /// Tokens of the prompt, what the server's template adds included.
    pub prompt_tokens: Lengths,
    pub max_tokens: Lengths,
    /// So many of a prompt's tokens are those that others begin with too.
    pub prefix_tokens: usize,
    /// How many different beginnings there are.
    pub prefixes: usize,
    pub turns: usize,
    pub tools: bool,
}

impl Prompts {
    /// `from`: of a file, which is asked first.
    pub fn script(&self, seed: u64, from: u64, number: u64, due: &Due) -> Script {
        let mut chance = Chance::of(seed, 2 * number + 1);
        match self {
            Prompts::Synthetic(synthetic) => synthetic.script(seed, &mut chance, due),
            Prompts::File { scripts, max_tokens } => {
                let mut script = scripts[((from + number) % scripts.len() as u64) as usize].clone();
                for turn in &mut script.turns {
                    let drawn = max_tokens.draw(&mut chance);
                    turn.max_tokens = due.max_tokens.or(turn.max_tokens).or(Some(drawn));
                }
                script
            }
        }
    }
}

impl Synthetic {
    fn script(&self, seed: u64, chance: &mut Chance, due: &Due) -> Script {
        let turn = |index: usize, chance: &mut Chance| {
            let drawn = (self.prompt_tokens.draw(chance), self.max_tokens.draw(chance));
            let tokens = due.prompt_tokens.unwrap_or(drawn.0);
            let (prefix, prompt_tokens) = match index {
                0 => (self.prefix(seed, tokens, chance), Some(tokens)),
                _ => (String::new(), None),
            };
            let text = self.writer.prompt(&prefix, tokens, chance);
            Turn {
                messages: vec![user(&text)],
                max_tokens: Some(due.max_tokens.unwrap_or(drawn.1)),
                prompt_tokens,
            }
        };
        Script { turns: (0..self.turns).map(|index| turn(index, chance)).collect(), tools: self.tools }
    }

    /// One of the beginnings, as much of it as the prompt has room for.
    fn prefix(&self, seed: u64, tokens: usize, chance: &mut Chance) -> String {
        let length = self.prefix_tokens.min(self.writer.room(tokens));
        if length == 0 {
            return String::new();
        }
        let which = chance.below(self.prefixes) as u64;
        self.writer.text(length, &mut Chance::of(seed, 2 * which))
    }
}

pub fn user(text: &str) -> Value {
    json!({ "role": "user", "content": text })
}

/// The function that is offered.
pub fn function() -> Value {
    json!({
        "name": "get_weather",
        "description": "The weather in a city",
        "parameters": {
            "type": "object",
            "properties": { "city": { "type": "string" } },
            "required": ["city"],
        },
    })
}

/// What it is said to have found.
pub const TOOL_RESULT: &str = r#"{"city": "Lyon", "temperature_c": 21, "sky": "clear"}"#;
