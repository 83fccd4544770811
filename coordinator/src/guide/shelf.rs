//! Grammars that were compiled lately. Agents send the same tools with every request.

use std::sync::Arc;

use super::compiler::Compiled;
use super::form::Grammar;

const GRAMMARS_MAX: usize = 64;

/// The latest used stand at the end.
#[derive(Default)]
pub struct Shelf {
    kept: Vec<(Grammar, Arc<Compiled>)>,
}

impl Shelf {
    pub fn get(&mut self, grammar: &Grammar) -> Option<Arc<Compiled>> {
        let at = self.kept.iter().position(|(kept, _)| kept == grammar)?;
        let found = self.kept.remove(at);
        let compiled = Arc::clone(&found.1);
        self.kept.push(found);
        Some(compiled)
    }

    pub fn put(&mut self, grammar: Grammar, compiled: Arc<Compiled>) {
        if self.kept.len() == GRAMMARS_MAX {
            self.kept.remove(0);
        }
        self.kept.push((grammar, compiled));
    }
}
