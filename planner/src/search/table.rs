//! The times of stages, each found out once: of groups that are alike, and layers of the same kinds.

use super::cut::{Cutter, StageCutting};
use super::lattice::{Group, Lattice};
use crate::model::{Layers, Spread, StageModel, hand_over_s};
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
        let hosts = |group: &Group| {
            let host = |&class: &usize| model.fleet.hosts[lattice.classes[class].devices[0]];
            Spread::of(group.classes.iter().map(host))
        };
        let spreads = lattice.groups.iter().map(hosts).collect();
        let times_s = vec![f64::NAN; lattice.alike.len() * layers.len()];
        StageTable { model, demand, lattice, spreads, shapes, layers, times_s }
    }

    pub fn layer_count(&self) -> usize {
        self.model.spec.layer_count()
    }

    /// Layers `start..end` on a group; infinite where they do not fit.
    pub fn stage_s(&mut self, group: &Group, start: usize, end: usize) -> f64 {
        let shape = self.shapes[start * (self.layer_count() + 1) + end];
        let at = group.alike * self.layers.len() + shape;
        if self.times_s[at].is_nan() {
            let example = &self.lattice.groups[self.lattice.alike[group.alike]];
            let first = |&class: &usize| self.lattice.classes[class].devices[0];
            let devices: Vec<usize> = example.classes.iter().map(first).collect();
            let cutting = self.cutter(&devices, self.layers[shape]).cut();
            self.times_s[at] = cutting.map_or(f64::INFINITY, |cutting| cutting.time.total_s());
        }
        self.times_s[at]
    }

    fn cutter<'b>(&'b self, devices: &'b [usize], layers: Layers) -> Cutter<'b> {
        Cutter { model: self.model, demand: self.demand, layers, devices }
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

    /// What the place of a stage can cost: two ways over the slower link instead of the faster one.
    pub fn slack_s(&self) -> f64 {
        let values = (self.model.work.rows * self.model.spec.hidden) as f64;
        let one = |link: &crate::link::Link| link.latency_s + 4.0 * values / link.bytes_per_s;
        let (within, between) = (one(&self.model.fleet.within), one(&self.model.fleet.between));
        2.0 * (between - within).abs()
    }
}
