//! A streamed answer, taken apart and checked: `events` makes events of bytes, `check` follows what they say.

mod check;
mod events;
mod violation;

pub use check::{Call, Checked, Checker, Endpoint, Expect, Usage};
pub use events::{Event, Events};
pub use violation::{Violation, ViolationKind};
