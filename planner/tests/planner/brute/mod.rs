//! Every plan of a coarse grid: every order of every choice of devices into stages, every range of layers in steps, every
//! division of kv heads, and of blocks or whole experts and the vocabulary in steps. Priced by the model that the search has, and fitted
//! by the plan's own count of bytes; no code of the search is used.

mod division;
mod orders;
mod stage;

use flotilla_planner::{Fleet, Goal, predict_decode};
use flotilla_shared::plan::StageCut;
use flotilla_shared::{Demand, Inventory, ModelSpec, Plan};
use orders::{compositions, orders};
use stage::Cuts;
pub use stage::Known;

pub struct Brute<'a> {
    pub spec: &'a ModelSpec,
    pub fleet: &'a Fleet,
    pub goal: Goal,
    pub demand: Demand,
    pub known: &'a Known,
}

/// Stages at most, with few devices and with many.
const STAGES_MAX: [usize; 2] = [4, 3];

impl Brute<'_> {
    /// The least time of a token, and whose it is.
    pub fn best(&self) -> Option<(f64, String)> {
        let mut cuts = Cuts::new(self);
        let mut best: Option<(f64, String)> = None;
        let stages_max = STAGES_MAX[usize::from(self.fleet.devices.len() > 4)];
        for stages in orders(self.fleet, stages_max) {
            let devices = stages.concat();
            if devices.iter().any(|&a| devices.iter().any(|&b| a != b && !self.fleet.reaches(a, b))) {
                continue;
            }
            for layers in self.layers(stages.len()) {
                let Some(token_s) = self.token_s(&mut cuts, &stages, &layers) else { continue };
                if best.as_ref().is_none_or(|(least, _)| token_s < *least) {
                    best = Some((token_s, format!("layers {layers:?} on devices {stages:?}")));
                }
            }
        }
        best
    }

    /// Layers by stage, in steps that are the longer the more stages there are.
    fn layers(&self, stages: usize) -> Vec<Vec<usize>> {
        let step = match (stages, self.fleet.devices.len() > 4) {
            (1 | 2, _) => 1,
            (3, false) => 2,
            (4, false) => 3,
            _ => 4,
        };
        let parts = compositions(self.spec.layer_count() / step, stages);
        parts.into_iter().map(|parts| parts.iter().map(|part| part * step).collect()).collect()
    }

    fn token_s(&self, cuts: &mut Cuts, stages: &[Vec<usize>], layers: &[usize]) -> Option<f64> {
        if layers.contains(&0) {
            return None;
        }
        let mut start = 0;
        let mut plan_cuts: Vec<StageCut> = Vec::new();
        for (stage, layers) in stages.iter().zip(layers) {
            plan_cuts.push(cuts.cut(stage, start..start + layers, stages.len())?);
            start += layers;
        }
        let devices = stages.concat();
        let inventories: Vec<Inventory> =
            devices.iter().map(|&device| self.fleet.devices[device].clone()).collect();
        let plan = Plan::with_stages(self.spec, &plan_cuts).on(&inventories);
        let sequences = self.goal.aim.sequences();
        let decode = predict_decode(self.spec, self.fleet, &plan, &devices, sequences, self.goal.context);
        Some(decode.token_s)
    }
}
