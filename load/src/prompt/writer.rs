//! Writes text that has a given number of tokens. With a tokenizer.json it is exact, and checked; without one, a word
//! counts as many tokens as the server was found to count.

use super::words::WORDS;
use crate::chance::Chance;
use std::path::Path;
use tokenizers::Tokenizer;

#[derive(Debug)]
pub struct Writer {
    words: Vec<&'static str>,
    /// What a text can begin with: no space stands before it.
    firsts: Vec<&'static str>,
    measure: Measure,
    tokenizer: Option<Tokenizer>,
}

/// How the server counts, found by asking it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Measure {
    pub tokens_per_word: f64,
    /// What its template puts around a text.
    pub overhead_tokens: f64,
}

#[derive(Debug, thiserror::Error)]
pub enum WriterError {
    #[error(
        "cannot read the tokenizer {path}: {reason}\nhint: --tokenizer takes the tokenizer.json of the model that is served"
    )]
    Unreadable { path: String, reason: String },
    #[error(
        "no common English word is one token of {path}, so text of exact lengths cannot be made of them\nhint: leave --tokenizer out, and lengths are only near"
    )]
    NoWords { path: String },
}

impl Writer {
    pub fn by_words() -> Writer {
        let measure = Measure { tokens_per_word: 1.0, overhead_tokens: 0.0 };
        let words: Vec<_> = WORDS.split(' ').collect();
        Writer { firsts: words.clone(), words, measure, tokenizer: None }
    }

    pub fn by_tokenizer(path: &Path) -> Result<Writer, WriterError> {
        let name = path.display().to_string();
        let unreadable = |error: tokenizers::Error| WriterError::Unreadable {
            path: name.clone(),
            reason: error.to_string(),
        };
        let tokenizer = Tokenizer::from_file(path).map_err(unreadable)?;
        let alone = |word: &&str| count(&tokenizer, word) == 1;
        let behind = |word: &&str| count(&tokenizer, &format!("a {word} {word}")) == 3;
        let words: Vec<_> = WORDS.split(' ').filter(behind).collect();
        // A letter is a token of every vocabulary that is made of bytes.
        let firsts: Vec<_> = WORDS.split(' ').chain(["a"]).filter(alone).collect();
        if words.is_empty() || firsts.is_empty() {
            return Err(WriterError::NoWords { path: name });
        }
        Ok(Writer { words, firsts, tokenizer: Some(tokenizer), ..Writer::by_words() })
    }

    pub fn is_exact(&self) -> bool {
        self.tokenizer.is_some()
    }

    /// From what the server counted: prompts of so many words, and their tokens. With a tokenizer only the overhead is new.
    pub fn learn(&mut self, found: &[(usize, u64)]) {
        let (Some(&(few, few_tokens)), Some(&(many, many_tokens))) = (found.first(), found.last()) else {
            return;
        };
        if many > few && self.tokenizer.is_none() {
            self.measure.tokens_per_word =
                ((many_tokens as f64 - few_tokens as f64) / (many - few) as f64).max(0.1);
        }
        self.measure.overhead_tokens =
            (few_tokens as f64 - few as f64 * self.measure.tokens_per_word).max(0.0);
    }

    pub fn measure(&self) -> Measure {
        self.measure
    }

    /// Tokens of text in a prompt of so many; at least one.
    pub fn room(&self, prompt_tokens: usize) -> usize {
        (prompt_tokens as f64 - self.measure.overhead_tokens).round().max(1.0) as usize
    }

    /// The text of a prompt of so many tokens that begins with `prefix`.
    pub fn prompt(&self, prefix: &str, prompt_tokens: usize, chance: &mut Chance) -> String {
        let room = self.room(prompt_tokens);
        match prefix {
            "" => self.text(room, chance),
            _ => self.continued(prefix.to_owned(), room, chance),
        }
    }

    pub fn text(&self, tokens: usize, chance: &mut Chance) -> String {
        self.continued(String::new(), tokens, chance)
    }

    fn continued(&self, mut text: String, tokens: usize, chance: &mut Chance) -> String {
        let have = if text.is_empty() { 0 } else { self.count(&text) };
        let mut lacking = tokens.saturating_sub(have);
        while lacking > 0 {
            for _ in 0..((lacking as f64 / self.measure.tokens_per_word).round() as usize).max(1) {
                let among = if text.is_empty() { &self.firsts } else { &self.words };
                text += if text.is_empty() { "" } else { " " };
                text += among[chance.below(among.len())];
            }
            // What a tokenizer merges may count otherwise than word by word.
            lacking = match self.tokenizer {
                Some(_) => tokens.saturating_sub(self.count(&text)),
                None => 0,
            };
        }
        self.shortened(text, tokens)
    }

    fn shortened(&self, mut text: String, tokens: usize) -> String {
        while self.tokenizer.is_some() && self.count(&text) > tokens {
            let Some(space) = text.rfind(' ') else { break };
            text.truncate(space);
        }
        text
    }

    fn count(&self, text: &str) -> usize {
        match &self.tokenizer {
            Some(tokenizer) => count(tokenizer, text),
            None => (text.split(' ').count() as f64 * self.measure.tokens_per_word).round() as usize,
        }
    }
}

fn count(tokenizer: &Tokenizer, text: &str) -> usize {
    tokenizer.encode_fast(text, false).map_or(0, |encoding| encoding.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn demo() -> Writer {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../demo/model/tokenizer.json");
        Writer::by_tokenizer(Path::new(path)).unwrap()
    }

    #[test]
    fn with_a_tokenizer_lengths_are_exact() {
        let mut writer = demo();
        for tokens in [1, 2, 17, 300] {
            let text = writer.text(tokens, &mut Chance::new(tokens as u64));
            assert_eq!(writer.count(&text), tokens, "{text:?}");
        }
        writer.learn(&[(16, 46)]);
        let prefix = writer.text(20, &mut Chance::new(1));
        let text = writer.prompt(&prefix, 100, &mut Chance::new(2));
        assert!(text.starts_with(&prefix));
        assert_eq!((writer.count(&text), writer.measure().overhead_tokens), (70, 30.0));
    }

    #[test]
    fn without_one_the_servers_count_is_learned() {
        let mut writer = Writer::by_words();
        // 1.5 tokens a word, and 10 around them.
        writer.learn(&[(32, 58), (96, 154)]);
        assert_eq!(writer.measure(), Measure { tokens_per_word: 1.5, overhead_tokens: 10.0 });
        let text = writer.prompt("", 100, &mut Chance::new(3));
        assert_eq!(text.split(' ').count(), 60);
    }

    #[test]
    fn a_file_that_is_no_tokenizer_is_refused_with_its_name() {
        let error = Writer::by_tokenizer(Path::new("/nowhere/tokenizer.json")).unwrap_err().to_string();
        assert!(error.contains("/nowhere/tokenizer.json") && error.contains("hint: "), "{error}");
    }
}
