//! Layers over stages: the fastest routes through the lattice, by dynamic programming over (state, layers done).
//!
//! A label is a route to a cell: its sum, its slowest stage. One that is no better in either is dropped. So what comes
//! out is the best there is, but for what depends on more than that: hand-overs are equal within a host and between
//! hosts, so a route is only dropped for one that is better by a hand-over, or ends on the same hosts.

use super::lattice::{Group, Lattice};
use super::table::StageTable;
use crate::choice::Kind;

/// Labels of a cell at most.
const LABELS_MAX: usize = 12;

/// A stage of a route: which group, and how many layers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Leg {
    pub group: usize,
    pub layers: usize,
}

#[derive(Clone, Copy, Debug)]
struct Label {
    sum_s: f64,
    slowest_s: f64,
    stages: usize,
    /// Whether a stage has several ranks.
    several: bool,
    first_group: usize,
    leg: Leg,
    /// Where it came from.
    before: Option<usize>,
}

/// The best complete route of one kind.
#[derive(Clone, Debug)]
pub(crate) struct Route {
    /// Seconds until every micro-batch has made one step.
    pub period_s: f64,
    pub legs: Vec<Leg>,
}

/// What a route is judged by.
#[derive(Clone, Copy)]
pub(crate) struct Rules {
    pub micro_batches: usize,
    pub stages_max: usize,
    /// Routes slower than this by kind are of no interest.
    pub bounds: [f64; Kind::COUNT],
}

pub(crate) struct Routes<'a, 'b> {
    lattice: &'a Lattice,
    table: &'a mut StageTable<'b>,
    rules: Rules,
    labels: Vec<Label>,
    /// By state and layers done.
    cells: Vec<Vec<usize>>,
    layer_count: usize,
    best: [Option<Route>; Kind::COUNT],
}

impl<'a, 'b> Routes<'a, 'b> {
    pub fn best(
        lattice: &'a Lattice,
        table: &'a mut StageTable<'b>,
        rules: Rules,
    ) -> [Option<Route>; Kind::COUNT] {
        let layer_count = table.layer_count();
        let cells = vec![Vec::new(); lattice.moves.len() * (layer_count + 1)];
        let best = [const { None }; Kind::COUNT];
        let mut routes = Routes { lattice, table, rules, labels: vec![], cells, layer_count, best };
        for state in 0..lattice.moves.len() {
            routes.leave(state);
        }
        routes.best
    }

    fn cell(&self, state: usize, layers: usize) -> usize {
        state * (self.layer_count + 1) + layers
    }

    /// Makes every move from a state, of which all routes are known.
    fn leave(&mut self, state: usize) {
        let lattice = self.lattice;
        for step in &lattice.moves[state] {
            let Some(group) = step.group else {
                self.pass_over(state, step.to);
                continue;
            };
            // In a row the first devices may be passed over; by counts no state is like the first.
            if state == 0 || lattice.in_a_row {
                self.extend(None, 0, step.to, group);
            }
            for layers in 1..self.layer_count {
                for at in self.cells[self.cell(state, layers)].clone() {
                    self.extend(Some(at), layers, step.to, group);
                }
            }
        }
    }

    fn pass_over(&mut self, state: usize, to: usize) {
        for layers in 1..self.layer_count {
            for at in self.cells[self.cell(state, layers)].clone() {
                let cell = self.cell(to, layers);
                self.keep(cell, at);
            }
        }
    }

    /// A stage of `group` after the route `before`, which has done `done` layers.
    fn extend(&mut self, before: Option<usize>, done: usize, to: usize, group: usize) {
        let lattice = self.lattice;
        let old = before.map(|at| self.labels[at]);
        let stages = old.map_or(0, |old| old.stages) + 1;
        if stages > self.rules.stages_max {
            return;
        }
        let several = old.is_some_and(|old| old.several) || lattice.groups[group].classes.len() > 1;
        let hand_over_s = old.map_or(0.0, |old| self.table.hand_over_s(old.leg.group, group));
        let (sum_s, slowest_s) =
            old.map_or((0.0, 0.0), |old| (old.sum_s + hand_over_s, old.slowest_s.max(hand_over_s)));
        let first_group = old.map_or(group, |old| old.first_group);
        let bound = self.bound(several, stages);
        let micro_batches = self.rules.micro_batches as f64;
        for end in done + 1..=self.layer_count {
            let stage_s = self.table.stage_s(&lattice.groups[group], done, end);
            let (sum_s, slowest_s) = (sum_s + stage_s, slowest_s.max(stage_s));
            let least = sum_s.max(micro_batches * slowest_s);
            // More layers take longer, and do not fit where fewer did not.
            if least >= bound {
                break;
            }
            let leg = Leg { group, layers: end - done };
            let label = Label { sum_s, slowest_s, stages, several, first_group, leg, before };
            if end == self.layer_count {
                self.complete(label);
            } else if stages < self.rules.stages_max {
                self.labels.push(label);
                let cell = self.cell(to, end);
                self.keep(cell, self.labels.len() - 1);
            }
        }
    }

    /// What a route must beat that has so many stages, or more.
    fn bound(&self, several: bool, stages: usize) -> f64 {
        let of = |kind: Kind| {
            let best = self.best[kind as usize].as_ref().map_or(f64::INFINITY, |route| route.period_s);
            best.min(self.rules.bounds[kind as usize])
        };
        let many = if several { of(Kind::Both) } else { of(Kind::Pipeline).max(of(Kind::Both)) };
        match (stages, several) {
            (1, true) => many.max(of(Kind::Tensor)),
            (1, false) => many.max(of(Kind::Alone)),
            _ => many,
        }
    }

    fn complete(&mut self, label: Label) {
        let kind = Kind::of(label.stages, label.several);
        let return_s = if label.stages == 1 {
            0.0
        } else {
            self.table.return_s(label.leg.group, label.first_group)
        };
        let period_s =
            (label.sum_s + return_s).max(self.rules.micro_batches as f64 * label.slowest_s);
        let best = &mut self.best[kind as usize];
        let bound = best.as_ref().map_or(f64::INFINITY, |best| best.period_s);
        if period_s >= bound.min(self.rules.bounds[kind as usize]) {
            return;
        }
        let mut legs = vec![label.leg];
        let mut before = label.before;
        while let Some(at) = before {
            legs.push(self.labels[at].leg);
            before = self.labels[at].before;
        }
        legs.reverse();
        *best = Some(Route { period_s, legs });
    }

    /// Puts a label into a cell, unless one there is as good; those that it makes useless go.
    fn keep(&mut self, cell: usize, at: usize) {
        let new = self.labels[at];
        if self.cells[cell].iter().any(|&old| self.makes_useless(&self.labels[old], &new)) {
            return;
        }
        let mut kept = std::mem::take(&mut self.cells[cell]);
        kept.retain(|&old| !self.makes_useless(&new, &self.labels[old]));
        kept.push(at);
        if kept.len() > LABELS_MAX {
            kept.sort_by(|&a, &b| self.labels[a].sum_s.total_cmp(&self.labels[b].sum_s));
            kept.truncate(LABELS_MAX);
        }
        self.cells[cell] = kept;
    }

    fn makes_useless(&self, a: &Label, b: &Label) -> bool {
        let hosts = |label: &Label| {
            let of = |group: usize| self.lattice.groups[group].hosts;
            (of(label.leg.group), of(label.first_group))
        };
        let slack = if hosts(a) == hosts(b) { 0.0 } else { self.table.slack_s() };
        let by_slowest = self.rules.micro_batches == 1 || a.slowest_s <= b.slowest_s;
        let by_stages = self.rules.stages_max >= self.layer_count || a.stages <= b.stages;
        a.several == b.several && a.sum_s + slack <= b.sum_s && by_slowest && by_stages
    }
}

/// A group's devices, each class giving its next unused ones.
pub(crate) fn members(lattice: &Lattice, group: &Group, used: &mut [usize]) -> Vec<usize> {
    let devices = group.classes.iter().map(|&class| {
        used[class] += 1;
        lattice.classes[class].devices[used[class] - 1]
    });
    devices.collect()
}
