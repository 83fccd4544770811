//! Layers over stages: the fastest routes through the lattice, by dynamic programming over (state, layers done).
//!
//! A label is a route to a cell: its sum, its slowest stage. One that is no better in either is dropped. So what comes
//! out is the best there is, but for what depends on more than that: hand-overs are equal within a host and between
//! hosts, so a route is only dropped for one that is better by a hand-over, or ends on the same hosts.

use super::lattice::{Group, Lattice};
use super::table::StageTable;
use crate::choice::Kind;

/// Plans that take so many times the time of the best are of no interest.
pub(crate) const INTEREST: f64 = 3.0;

/// Labels of a cell at most.
const LABELS_MAX: usize = 8;
const LABELS_IN_A_ROW_MAX: usize = 16;

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
    /// Seconds until every micro-batch has made one step, of the best by kind.
    bounds: [f64; Kind::COUNT],
    /// What takes longer is not even a runner-up.
    of_interest_s: f64,
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
        let bounds = rules.bounds;
        let of_interest_s = INTEREST * bounds.iter().copied().fold(f64::INFINITY, f64::min);
        let mut routes =
            Routes { lattice, table, rules, labels: vec![], cells, layer_count, best, bounds, of_interest_s };
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
                if self.makes_room(cell, &self.labels[at].clone()) {
                    self.cells[cell].push(at);
                }
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
        if sum_s + self.table.rest_s(self.layer_count - done) >= bound {
            return;
        }
        let rest = self.table.rest_layers_max(to, bound / micro_batches);
        for end in (done + 1).max(self.layer_count - rest)..=self.layer_count {
            let rest_s = self.table.rest_s(self.layer_count - end);
            let sums = |stage_s: f64| sum_s + stage_s + rest_s >= bound;
            let slowest = |stage_s: f64| micro_batches * slowest_s.max(stage_s) >= bound;
            // More layers take longer, and do not fit where fewer did not.
            let floor_s = self.table.floor_s(&lattice.groups[group], done, end);
            if slowest(floor_s) {
                break;
            }
            if sums(floor_s) {
                continue;
            }
            let stage_s = self.table.stage_s(&lattice.groups[group], done, end);
            if slowest(stage_s) {
                break;
            }
            if sums(stage_s) {
                continue;
            }
            let (sum_s, slowest_s) = (sum_s + stage_s, slowest_s.max(stage_s));
            let leg = Leg { group, layers: end - done };
            let label = Label { sum_s, slowest_s, stages, several, first_group, leg, before };
            if end == self.layer_count {
                self.complete(label);
            } else if stages < self.rules.stages_max {
                let cell = self.cell(to, end);
                self.add(cell, label);
            }
        }
    }

    /// What a route must beat that has so many stages, or more.
    fn bound(&self, several: bool, stages: usize) -> f64 {
        let of = |kind: Kind| self.bounds[kind as usize].min(self.of_interest_s);
        let many = if several { of(Kind::Both) } else { of(Kind::Pipeline).max(of(Kind::Both)) };
        match (stages, several) {
            (1, true) => many.max(of(Kind::Tensor)),
            (1, false) => many.max(of(Kind::Alone)),
            _ => many,
        }
    }

    fn complete(&mut self, label: Label) {
        let kind = Kind::of(label.stages, label.several);
        let return_s =
            if label.stages == 1 { 0.0 } else { self.table.return_s(label.leg.group, label.first_group) };
        let period_s = (label.sum_s + return_s).max(self.rules.micro_batches as f64 * label.slowest_s);
        if period_s >= self.bounds[kind as usize].min(self.of_interest_s) {
            return;
        }
        // Of equal ones the last stays: it begins with the first host.
        self.bounds[kind as usize] = period_s * (1.0 + 1e-9);
        self.of_interest_s = self.of_interest_s.min(INTEREST * period_s);
        let mut legs = vec![label.leg];
        let mut before = label.before;
        while let Some(at) = before {
            legs.push(self.labels[at].leg);
            before = self.labels[at].before;
        }
        legs.reverse();
        self.best[kind as usize] = Some(Route { legs });
    }

    fn add(&mut self, cell: usize, label: Label) {
        if self.makes_room(cell, &label) {
            self.cells[cell].push(self.labels.len());
            self.labels.push(label);
        }
    }

    /// Whether a cell wants a label: none there is as good. Those that it makes useless go, and the worst where there
    /// are too many.
    fn makes_room(&mut self, cell: usize, new: &Label) -> bool {
        if self.cells[cell].iter().any(|&old| self.makes_useless(&self.labels[old], new)) {
            return false;
        }
        let mut kept = std::mem::take(&mut self.cells[cell]);
        kept.retain(|&old| !self.makes_useless(new, &self.labels[old]));
        let most = if self.lattice.in_a_row { LABELS_IN_A_ROW_MAX } else { LABELS_MAX };
        let worth = |label: &Label| label.sum_s + self.rules.micro_batches as f64 * label.slowest_s;
        let by_worth = |&(_, a): &(usize, f64), &(_, b): &(usize, f64)| a.total_cmp(&b);
        let worst = kept.iter().map(|&old| worth(&self.labels[old])).enumerate().max_by(by_worth);
        let worst = worst.filter(|_| kept.len() >= most);
        let wanted = worst.is_none_or(|(_, worst)| worth(new) < worst);
        if let Some((at, _)) = worst.filter(|_| wanted) {
            kept.swap_remove(at);
        }
        self.cells[cell] = kept;
        wanted
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
