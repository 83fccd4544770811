//! Figures of a run: a summary, its course over time, and how differences are told from noise.

mod bootstrap;
mod spread;
mod summary;
mod timeline;

pub use bootstrap::{Interval, difference};
pub use spread::{Bin, Spread, bins, histogram};
pub use summary::{Errors, Goodput, PromptLengths, Summary};
pub use timeline::Timeline;
