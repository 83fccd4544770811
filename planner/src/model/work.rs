//! What one step has to do.

use flotilla_shared::LayerKind;

/// Rows and what they look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Work {
    /// T
    pub rows: usize,
    /// Caches that are read: one a sequence.
    pub sequences: usize,
    /// Keys that a row sees in full layers, on average.
    pub context: usize,
    /// Rows whose logits are wanted.
    pub logit_rows: usize,
}

impl Work {
    /// One token more of each sequence, `context` tokens behind each.
    pub fn decode(sequences: usize, context: usize) -> Work {
        Work { rows: sequences, sequences, context: context.max(1), logit_rows: sequences }
    }

    /// `tokens` of one prompt, so many before them.
    pub fn prefill(tokens: usize, before: usize) -> Work {
        Work { rows: tokens, sequences: 1, context: before + tokens.div_ceil(2), logit_rows: 1 }
    }

    /// Keys that a row sees in a layer of that kind.
    pub fn keys(&self, kind: LayerKind, window: usize) -> usize {
        match kind {
            LayerKind::Full => self.context,
            LayerKind::Window => self.context.min(window),
        }
    }
}
