//! The times of stages, each found out once: of groups that are alike, and layers of the same kinds.

use super::cut::{Cutter, StageCutting};
use super::floor::Floor;
use super::lattice::{Group, Lattice};
use crate::model::{Layers, Spread, StageModel, Units, hand_over_s};
use flotilla_shared::Demand;
use std::collections::BTreeMap;

pub(crate) struct StageTable<'a> {
    model: &'a StageModel<'a>,
    demand: Demand,
    lattice: &'a Lattice,
    spreads: Vec<Spread>,
    /// By first and last layer: which shape these layers have.
    shapes: Vec<usize>,
    layers: Vec<Layers>,
    /// By alike groups and shape; NaN is not known yet, infinite does not fit.
    times_s: Vec<f64>,
    /// By alike groups.
    floors: Vec<Floor>,
    /// By alike groups, of which one is the last stage: how they share without a limit of memory.
    free: Vec<[Option<Vec<Units>>; 2]>,
    /// By state: what the devices that are left can do at most.
    rests: Vec<Rest>,
    /// Seconds of a layer, and of the unembedding, on the group that is fastest at it.
    least_layer_s: f64,
    least_vocabulary_s: f64,
}

/// What a state's unused devices can do at most.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rest {
    /// Of a layer that all of them share.
    layer_s: f64,
    layers_max: f64,
}

impl<'a> StageTable<'a> {
    pub fn new(model: &'a StageModel<'a>, demand: Demand, lattice: &'a Lattice) -> StageTable<'a> {
        let count = model.spec.layer_count();
        let mut numbers = BTreeMap::new();
        let mut layers = Vec::new();
        let mut shapes = vec![0; (count + 1) * (count + 1)];
        for start in 0..count {
            for end in start + 1..=count {
                let shape = Layers::of(model.spec, start..end);
                let number = *numbers.entry(shape).or_insert_with(|| {
                    layers.push(shape);
                    layers.len() - 1
                });
                shapes[start * (count + 1) + end] = number;
            }
        }
        let spread = |group: &Group| Spread::of(model.fleet, &lattice.devices(group));
        let spreads: Vec<Spread> = lattice.groups.iter().map(spread).collect();
        let times_s = vec![f64::NAN; lattice.alike.len() * layers.len()];
        let floors = lattice
            .alike
            .iter()
            .map(|&group| Floor::of(model, &lattice.devices(&lattice.groups[group]), &spreads[group]));
        let floors: Vec<Floor> = floors.collect();
        let least = |of: fn(&Floor) -> f64| floors.iter().map(of).fold(f64::INFINITY, f64::min);
        let (least_layer_s, least_vocabulary_s) = (least(Floor::least_layer_s), least(Floor::vocabulary_s));
        let rests = lattice.left.iter().map(|left| {
            let classes = left.iter().zip(&lattice.classes);
            let devices: Vec<usize> =
                classes.flat_map(|(&count, class)| &class.devices[..count]).copied().collect();
            let floor = Floor::of(model, &devices, &Spread::of(model.fleet, &[]));
            Rest { layer_s: floor.bare_layer_s(), layers_max: floor.layers_max() }
        });
        let rests = rests.collect();
        StageTable {
            model,
            demand,
            lattice,
            spreads,
            shapes,
            layers,
            times_s,
            floors,
            free: vec![[None, None]; lattice.alike.len()],
            rests,
            least_layer_s,
            least_vocabulary_s,
        }
    }

    pub fn layer_count(&self) -> usize {
        self.model.spec.layer_count()
    }

    /// Layers that may be left in a state, if each stage may take `stage_s` at most.
    pub fn rest_layers_max(&self, state: usize, stage_s: f64) -> usize {
        let Rest { layer_s, layers_max } = self.rests[state];
        let most = layers_max.min(stage_s / layer_s * (1.0 + 1e-9));
        if most >= self.layer_count() as f64 { self.layer_count() } else { most as usize }
    }

    /// Seconds that so many last layers take at least, one after the other.
    pub fn rest_s(&self, layers: usize) -> f64 {
        match layers {
            0 => 0.0,
            layers => layers as f64 * self.least_layer_s + self.least_vocabulary_s,
        }
    }

    /// No cut of these layers over this group takes less.
    pub fn floor_s(&self, group: &Group, start: usize, end: usize) -> f64 {
        let layers = self.layers[self.shapes[start * (self.layer_count() + 1) + end]];
        self.floors[group.alike].time_s(layers)
    }

    /// Layers `start..end` on a group; infinite where they do not fit.
    pub fn stage_s(&mut self, group: &Group, start: usize, end: usize) -> f64 {
        let shape = self.shapes[start * (self.layer_count() + 1) + end];
        let at = group.alike * self.layers.len() + shape;
        if self.times_s[at].is_nan() {
            let devices = self.lattice.devices(&self.lattice.groups[self.lattice.alike[group.alike]]);
            let layers = self.layers[shape];
            let free = self.free[group.alike][usize::from(layers.last)].take();
            let free = free.unwrap_or_else(|| self.share_freely(&devices, layers.last));
            let cutter = Cutter { free: Some(&free), ..self.cutter(&devices, layers) };
            let cutting = cutter.cut();
            self.free[group.alike][usize::from(layers.last)] = Some(free);
            self.times_s[at] = cutting.map_or(f64::INFINITY, |cutting| cutting.time.total_s());
        }
        self.times_s[at]
    }

    fn cutter<'b>(&'b self, devices: &'b [usize], layers: Layers) -> Cutter<'b> {
        Cutter { model: self.model, demand: self.demand, layers, devices, free: None }
    }

    /// Of a stage with as many layers of each kind as the model has: what differs with the kinds is little.
    fn share_freely(&self, devices: &[usize], last: bool) -> Vec<Units> {
        let layers = Layers { last, ..Layers::of(self.model.spec, 0..self.layer_count()) };
        self.cutter(devices, layers).share_freely()
    }

    /// The cutting itself, polished.
    pub fn cutting(&self, devices: &[usize], start: usize, end: usize) -> Option<StageCutting> {
        let shape = self.shapes[start * (self.layer_count() + 1) + end];
        let cutter = self.cutter(devices, self.layers[shape]);
        cutter.cut().map(|cutting| cutter.polish(cutting))
    }

    pub fn hand_over_s(&self, from: usize, to: usize) -> f64 {
        let values = self.model.work.rows * self.model.spec.hidden;
        hand_over_s(self.model.fleet, &self.spreads[from], &self.spreads[to], values)
    }

    pub fn return_s(&self, last: usize, first: usize) -> f64 {
        let values = 2 * self.model.work.logit_rows;
        hand_over_s(self.model.fleet, &self.spreads[last], &self.spreads[first], values)
    }

    /// What the place of a stage can cost: two ways over the slowest link instead of the fastest.
    pub fn slack_s(&self) -> f64 {
        let bytes = 4.0 * (self.model.work.rows * self.model.spec.hidden) as f64;
        let rounds = self.model.fleet.links().map(|link| link.round_s(1, bytes));
        let (least, most) =
            rounds.fold((f64::INFINITY, 0.0f64), |(least, most), s| (least.min(s), most.max(s)));
        2.0 * (most - least)
    }
}
