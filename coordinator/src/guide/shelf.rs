//! Grammars that were compiled lately. Agents send the same tools with every request.

use std::sync::Arc;

use super::compiler::Compiled;
use super::form::Grammar;

const GRAMMARS_MAX: usize = 64;
/// Of their texts: what is compiled grows with them, to some hundred times as much. All of one request have room.
const SOURCE_BYTES_MAX: usize = 512 << 10;

/// The latest used stand at the end.
#[derive(Default)]
pub struct Shelf {
    kept: Vec<Kept>,
}

struct Kept {
    key: blake3::Hash,
    source_bytes: usize,
    compiled: Arc<Compiled>,
}

impl Shelf {
    pub fn get(&mut self, grammar: &Grammar) -> Option<Arc<Compiled>> {
        let key = grammar.key();
        let at = self.kept.iter().position(|kept| kept.key == key)?;
        let found = self.kept.remove(at);
        let compiled = Arc::clone(&found.compiled);
        self.kept.push(found);
        Some(compiled)
    }

    pub fn put(&mut self, grammar: &Grammar, compiled: Arc<Compiled>) {
        let key = grammar.key();
        // Two requests may have compiled the same.
        self.kept.retain(|kept| kept.key != key);
        self.kept.push(Kept { key, source_bytes: grammar.source().len(), compiled });
        while self.kept.len() > GRAMMARS_MAX || self.source_bytes() > SOURCE_BYTES_MAX {
            self.kept.remove(0);
        }
    }

    fn source_bytes(&self) -> usize {
        self.kept.iter().map(|kept| kept.source_bytes).sum()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::guide::compiler::Compiler;
    use crate::guide::vocabulary::Vocabulary;
    use crate::harmony::Harmony;
    use crate::tokenizer::Tokenizer;

    /// What is kept is told apart by its grammar; what it was compiled to is one here.
    fn compiled() -> Arc<Compiled> {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/small_tokenizer.json");
        let harmony = Harmony::new(Arc::new(Tokenizer::from_file(path).unwrap())).unwrap();
        let compiler = Compiler::new(Vocabulary::new(&harmony));
        Arc::new(compiler.compile(&Grammar::Regex("a".to_owned()), &|| true).unwrap())
    }

    /// The oldest first.
    fn kept_of(grammars: &[Grammar]) -> Vec<bool> {
        let (mut shelf, compiled) = (Shelf::default(), compiled());
        grammars.iter().for_each(|grammar| shelf.put(grammar, Arc::clone(&compiled)));
        grammars.iter().map(|grammar| shelf.get(grammar).is_some()).collect()
    }

    #[test]
    fn a_schema_in_another_order_is_another() {
        let (mut shelf, compiled) = (Shelf::default(), compiled());
        let text = || json!({"type": "string"});
        let schema = |properties: Value| json!({"type": "object", "properties": properties});
        let (ab, ba) = (schema(json!({"a": text(), "b": text()})), schema(json!({"b": text(), "a": text()})));
        assert_eq!(ab, ba, "as values they are the same");
        let strict = |schema: &Value, strict| Grammar::Json { schema: schema.clone(), strict };
        shelf.put(&strict(&ab, true), compiled);
        assert!(shelf.get(&strict(&ab, true)).is_some());
        for other in [strict(&ba, true), strict(&ab, false), Grammar::Arguments(ab.clone())] {
            assert!(shelf.get(&other).is_none(), "{other:?}");
        }
        assert!(shelf.get(&Grammar::Lark(ab.to_string())).is_none());
    }

    #[test]
    fn it_is_full_by_number_and_by_bytes() {
        let numbered =
            |bytes: usize| move |n: usize| Grammar::Regex(format!("{n:09}{}", "x".repeat(bytes - 9)));
        let short: Vec<Grammar> = (0..GRAMMARS_MAX + 3).map(numbered(9)).collect();
        let kept = kept_of(&short);
        assert!(kept[..3].iter().all(|kept| !kept) && kept[3..].iter().all(|kept| *kept), "{kept:?}");
        let long: Vec<Grammar> = (0..10).map(numbered(SOURCE_BYTES_MAX / 8)).collect();
        assert_eq!(kept_of(&long), [vec![false; 2], vec![true; 8]].concat());
    }

    #[test]
    fn what_is_used_stays_and_what_is_there_twice_counts_once() {
        let (mut shelf, compiled) = (Shelf::default(), compiled());
        let grammar = |n: usize| Grammar::Regex(n.to_string());
        for n in 0..3 * GRAMMARS_MAX {
            shelf.put(&grammar(n), Arc::clone(&compiled));
            shelf.put(&grammar(n), Arc::clone(&compiled));
            assert!(shelf.get(&grammar(0)).is_some(), "{n}");
        }
        assert!(shelf.get(&grammar(2 * GRAMMARS_MAX + 2)).is_some());
    }
}
