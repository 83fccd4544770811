//! What a plan must be, wherever it comes from.

use super::Plan;
use crate::spec::ModelSpec;
use std::ops::Range;

impl Plan {
    /// Checks a plan that came from outside: ranks in order from 0, and every layer, kv head, expert
    /// block and vocabulary row of `spec` owned exactly once. Says what is wrong.
    pub fn check(&self, spec: &ModelSpec) -> Result<(), String> {
        if !self.ranks().enumerate().all(|(at, share)| share.rank.index() == at) {
            return Err("does not number its ranks in order from 0".into());
        }
        covers(self.stages.iter().map(|stage| stage.layers.clone()), spec.layer_count(), "layers")?;
        for (at, stage) in self.stages.iter().enumerate() {
            if stage.layers.is_empty() {
                return Err(format!("has a stage {at} without layers"));
            }
            let shares = || stage.ranks.iter();
            covers(shares().map(|s| s.kv_heads.clone()), spec.kv_heads, "kv heads")?;
            covers(shares().map(|s| s.vocab.clone()), spec.vocab, "vocabulary rows")?;
            let (experts, blocks) = (spec.experts, spec.intermediate_blocks());
            if shares().all(|s| s.experts.experts == (0..experts)) {
                covers(shares().map(|s| s.experts.blocks.clone()), blocks, "expert blocks")?;
            } else if shares().all(|s| s.experts.blocks == (0..blocks)) {
                covers(shares().map(|s| s.experts.experts.clone()), experts, "experts")?;
            } else {
                return Err("cuts experts both whole and in slices".into());
            }
        }
        Ok(())
    }
}

/// The ranges, in order, must tile 0..units.
fn covers(ranges: impl Iterator<Item = Range<usize>>, units: usize, what: &str) -> Result<(), String> {
    let mut next = 0;
    for range in ranges {
        if range.start != next || range.end < range.start {
            return Err(format!("gives {what} {}..{} where {next} comes next", range.start, range.end));
        }
        next = range.end;
    }
    if next == units { Ok(()) } else { Err(format!("covers {next} of {units} {what}")) }
}
