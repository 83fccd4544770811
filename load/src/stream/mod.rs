//! An answer, taken apart and checked. Of a stream `events` makes events of bytes, and `check` and `responses` follow what they
//! say; `whole` reads one that came as one body.

mod answer;
mod check;
mod events;
mod responses;
mod violation;
mod whole;

pub use answer::{Call, Checked, Endpoint, Expect, Usage};
pub use check::Checker;
pub use events::{Event, Events};
pub use violation::{Violation, ViolationKind};
pub use whole::whole;
