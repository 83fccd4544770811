//! From a grammar's text to what llguidance follows it with, within limits: nothing that a client sends costs
//! more than these.

use std::collections::BTreeMap;
use std::sync::Arc;

use llguidance::api::{GrammarWithLexer, ParserLimits, TopLevelGrammar};
use llguidance::earley::SlicedBiasComputer;
use llguidance::toktrie::InferenceCapabilities;
use llguidance::{JsonCompileOptions, Matcher, ParserFactory, TokenParser};
use serde_json::Value;
use toktrie::TokEnv;

use super::form::{Complaint, Fault, Grammar};
use super::lax;
use super::nullable::admit_null;
use super::vocabulary::Vocabulary;

/// Longest part of llguidance's complaint that a client is told.
const COMPLAINT_CHARS_MAX: usize = 300;
/// White space between two words of JSON. Without a bound, a model that finds nothing to say may write blanks
/// to the end of its tokens. As much as a line break takes sixteen levels deep.
const JSON_SPACE: &str = r"[ \n\r\t]{1,65}";

pub struct Compiler {
    pub vocabulary: Arc<Vocabulary>,
    factory: ParserFactory,
}

/// The start of a grammar. Each sequence goes on from a copy of its own.
pub struct Compiled {
    start: Matcher,
}

impl Compiled {
    /// A copy that shares nothing that a step changes.
    pub fn start(&self) -> Matcher {
        self.start.deep_clone()
    }
}

impl Compiler {
    /// Takes more than a second with the published vocabulary.
    pub fn new(vocabulary: Vocabulary) -> Compiler {
        let vocabulary = Arc::new(vocabulary);
        let env: TokEnv = vocabulary.clone();
        let slices = SlicedBiasComputer::json_slices();
        let mut factory = ParserFactory::new(&env, InferenceCapabilities::default(), &slices)
            .expect("the slices are llguidance's own");
        factory.quiet();
        *factory.limits_mut() = limits();
        Compiler { vocabulary, factory }
    }

    /// What is wrong with it, if it cannot be kept to. `awaited`: somebody still waits for it; where that can take long, it
    /// is asked in between.
    pub fn compile(&self, grammar: &Grammar, awaited: &dyn Fn() -> bool) -> Result<Compiled, Complaint> {
        match grammar {
            Grammar::Json { schema, strict: false } => self.compile_lax(schema, awaited),
            Grammar::Arguments(schema) => self.compile_lax(schema, awaited).or_else(|complaint| {
                if complaint.fault == Fault::Server {
                    return Err(complaint);
                }
                self.compile_whole(&Grammar::json_object())
            }),
            Grammar::Json { .. } | Grammar::Regex(_) | Grammar::Lark(_) | Grammar::Choice(_) => {
                self.compile_whole(grammar)
            }
        }
    }

    /// Without its patterns that are none here, such as those that look ahead.
    fn compile_lax(&self, schema: &Value, awaited: &dyn Fn() -> bool) -> Result<Compiled, Complaint> {
        let lax = |schema| Grammar::Json { schema, strict: false };
        self.compile_whole(&lax(schema.clone())).or_else(|complaint| {
            let mut schema = schema.clone();
            let mut known: BTreeMap<String, bool> = BTreeMap::new();
            let mut reads = |pattern: &str| match known.get(pattern) {
                Some(reads) => *reads,
                // What it says then is for nobody.
                None if !awaited() => false,
                None => *known.entry(pattern.to_owned()).or_insert(self.reads(pattern)),
            };
            match lax::drop_patterns(&mut schema, &mut reads) {
                _ if !awaited() => Err(Complaint::given_up()),
                0 => Err(complaint),
                _ => self.compile_whole(&lax(schema)),
            }
        })
    }

    fn reads(&self, pattern: &str) -> bool {
        let schema = serde_json::json!({"type": "string", "pattern": pattern});
        self.factory.create_parser(TopLevelGrammar::from_grammar(json(&schema, false))).is_ok()
    }

    fn compile_whole(&self, grammar: &Grammar) -> Result<Compiled, Complaint> {
        grammar.check()?;
        let parser = self.factory.create_parser(top_level(grammar)).map_err(complaint)?;
        check(&parser)?;
        let mut start = Matcher::new(Ok(parser));
        // A grammar of nothing, such as two words that exclude each other, is known by its first mask.
        if !start.is_stopped() {
            start.deep_clone().compute_mask().map_err(of_first_mask)?;
        }
        start.invalidate_bias_cache();
        Ok(Compiled { start })
    }
}

/// Lower than llguidance's own where those would let one sequence take hundreds of megabytes.
fn limits() -> ParserLimits {
    ParserLimits {
        // About 2 kB each.
        max_lexer_states: 20_000,
        max_grammar_size: 200_000,
        verbose_errors: false,
        ..ParserLimits::default()
    }
}

fn top_level(grammar: &Grammar) -> TopLevelGrammar {
    TopLevelGrammar::from_grammar(match grammar {
        Grammar::Json { schema, strict } => json(schema, *strict),
        Grammar::Arguments(schema) => json(schema, false),
        Grammar::Regex(regex) => GrammarWithLexer::from_regex(regex),
        Grammar::Lark(grammar) => GrammarWithLexer::from_lark(grammar.clone()),
        Grammar::Choice(texts) => GrammarWithLexer::from_lark(choice(texts)),
    })
}

fn json(schema: &Value, strict: bool) -> GrammarWithLexer {
    let mut schema = schema.clone();
    admit_null(&mut schema);
    let space = Some(JSON_SPACE.to_owned());
    JsonCompileOptions { lenient: !strict, whitespace_pattern: space, ..JsonCompileOptions::default() }
        .apply_to(&mut schema);
    GrammarWithLexer::from_json_schema(schema)
}

/// Texts as Lark's strings, which are JSON's but for one control character.
fn choice(texts: &[String]) -> String {
    let quoted = |text: &String| Value::from(text.as_str()).to_string().replace('\x7f', "\\u007f");
    format!("start: {}", texts.iter().map(quoted).collect::<Vec<_>>().join(" | "))
}

/// What llguidance would take, and this server does not do.
fn check(parser: &TokenParser) -> Result<(), Complaint> {
    let lexer = parser.parser.grammar().lexer_spec();
    if lexer.special_token_rx.is_some() {
        return Err(Complaint::malformed("it names special tokens, which stand in no text"));
    }
    Ok(())
}

/// What llguidance calls a limit of its own, and a form that no text is of. It has no other words for
/// either (1.9).
const LIMITS: [&str; 7] = [
    "too big",
    "too large",
    "too many",
    "too deeply nested",
    "level exceeded",
    "precomputation failed",
    "exceeds the supported range",
];
const NOTHING: [&str; 1] = ["nsatisfiable"];

/// A panic of llguidance's, which it catches itself.
const PANIC: &str = "panic";
/// Its complaint of a `oneOf` whose schemas overlap names a switch that clients do not have.
const OVERLAP: &str = "coerce_one_of";

fn complaint(error: impl std::fmt::Display) -> Complaint {
    let what = in_one_line(error);
    let says = |words: &[&str]| words.iter().any(|word| what.contains(word));
    let fault = match () {
        () if what.starts_with(PANIC) => {
            tracing::warn!(what, "the library that compiles forms failed on one, which was refused");
            return Complaint::malformed("it could not be read");
        }
        () if what.contains(OVERLAP) => {
            return Complaint::malformed(
                "one value may fit several schemas of a oneOf; anyOf takes such schemas",
            );
        }
        () if says(&NOTHING) => Fault::Unsatisfiable,
        () if says(&LIMITS) => Fault::TooComplex,
        () => Fault::Malformed,
    };
    Complaint { fault, what }
}

/// It was understood; so it is too much, or it is nothing.
fn of_first_mask(error: impl std::fmt::Display) -> Complaint {
    match in_one_line(error) {
        what if what.contains("lexer error") || what.contains("parser error") => Complaint::too_complex(what),
        _ => Complaint { fault: Fault::Unsatisfiable, what: "no text fits it".to_owned() },
    }
}

/// What it says: without backtraces, the grammar itself, and arrows that point into it.
fn in_one_line(error: impl std::fmt::Display) -> String {
    let said = format!("{error:#}");
    let lines = said.lines().map(str::trim).take_while(|line| !line.starts_with('<'));
    let quotes = |line: &str| line.trim_start_matches(|c: char| c.is_ascii_digit()).starts_with(" | ");
    let tells = |line: &&str| !line.trim_matches('^').is_empty() && !quotes(line);
    let said = lines.filter(tells).collect::<Vec<_>>().join("; ");
    said.chars().take(COMPLAINT_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use serde_json::json;

    use super::*;
    use crate::harmony::Harmony;
    use crate::tokenizer::Tokenizer;

    fn compiler() -> Compiler {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/small_tokenizer.json");
        let harmony = Harmony::new(Arc::new(Tokenizer::from_file(path).unwrap())).unwrap();
        Compiler::new(Vocabulary::new(&harmony))
    }

    fn refused(schema: Value) -> Complaint {
        match compiler().compile(&Grammar::Json { schema, strict: true }, &|| true) {
            Ok(_) => panic!("it was compiled"),
            Err(complaint) => complaint,
        }
    }

    /// It cuts what it quotes at a byte, whatever character is there.
    #[test]
    fn what_llguidance_fails_at_is_told_in_our_words() {
        let complaint = refused(json!({"type": "object", "required": "é".repeat(60)}));
        assert_eq!(complaint, Complaint::malformed("it could not be read"));
    }

    #[test]
    fn what_cannot_be_told_of_a_one_of_is_said_without_switches() {
        let complaint = refused(json!({"oneOf": [{"type": "integer"}, {"type": "number"}]}));
        assert_eq!(complaint.fault, Fault::Malformed);
        assert!(complaint.what.contains("oneOf") && !complaint.what.contains("coerce"), "{complaint:?}");
    }

    #[test]
    fn patterns_are_tried_once_each_and_only_as_long_as_somebody_waits() {
        let compiler = compiler();
        let text = |pattern: &str| json!({"type": "string", "pattern": pattern});
        let schema = json!({"type": "array", "prefixItems": vec![text("^(?!x)"); 9], "items": text("^a$")});
        let asked = Cell::new(0);
        let grammar = Grammar::Arguments(schema);
        let compile = |times: usize| {
            asked.set(0);
            compiler.compile(&grammar, &|| asked.replace(asked.get() + 1) < times)
        };
        assert!(compile(usize::MAX).is_ok());
        assert_eq!(asked.get(), 3, "before each of the two patterns, and behind them");
        for times in 0..3 {
            assert_eq!(compile(times).err(), Some(Complaint::given_up()), "and it is not any object");
        }
    }
}
