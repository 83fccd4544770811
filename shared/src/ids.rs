//! Ids that cross a boundary, each its own type so that none is taken for another.

use serde::{Deserialize, Serialize};
use std::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl $name {
            /// As an index into a table kept in this id's order.
            pub fn index(self) -> usize {
                self.0 as usize
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }
    };
}

id!(
    /// A worker's place in its tensor-parallel group, from 0; sums run in this order.
    Rank(u16)
);
id!(
    /// One life of a group: a new one begins whenever its members change.
    Epoch(u64)
);
id!(
    /// Counts the steps of an epoch from 1.
    StepId(u64)
);
id!(
    /// One sequence in flight: a prompt and what was generated for it.
    SequenceId(u64)
);
id!(
    /// One KV block of [`crate::step::BLOCK_TOKENS`] positions, in every layer of one kind.
    BlockId(u32)
);

/// An id of the model's vocabulary.
pub type TokenId = u32;
