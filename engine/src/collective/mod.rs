//! Sums and gathers over the ranks of a group. Sums are in f32, in rank order, so that every rank
//! holds the same bits, from run to run.

use flotilla_shared::Rank;

/// What the forward needs of the other ranks. Every rank of the group calls the same operations in
/// the same order.
pub trait Collective: Send {
    fn rank(&self) -> Rank;

    fn size(&self) -> usize;

    /// x: f32 [n], the rank's partial sum in, the whole sum out: ((x₀ + x₁) + x₂) + … on every rank.
    fn all_reduce(&mut self, x: &mut [f32]) -> Result<(), CollectiveError>;

    /// Every rank's bytes, in rank order, behind each other in `out`. Lengths may differ by rank.
    fn all_gather(&mut self, mine: &[u8], out: &mut Vec<u8>) -> Result<(), CollectiveError>;

    /// Returns on every rank once all have called it.
    fn barrier(&mut self) -> Result<(), CollectiveError>;
}

/// Why an operation ended without its result. The group is unusable afterwards.
#[derive(Debug, thiserror::Error)]
pub enum CollectiveError {}
