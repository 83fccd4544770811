//! Collectives over their public interface: the same sums by every way, and an end in bounded time
//! when a rank fails. Loopback only.

mod failures;
mod groups;
mod meeting;
mod processes;
mod stages;
mod sums;
