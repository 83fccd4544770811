//! The search: stages × ranks × which device where × shares × placement, for the least time of a token.
//!
//! Stages are cut one by one (`cut`), and put together by dynamic programming (`route`) over what can follow what
//! (`lattice`), once for each number of micro-batches. The best route of each kind becomes a plan, whose time is
//! predicted by the model that anybody can ask.

mod cut;
mod floor;
mod islands;
mod lattice;
mod level;
mod room;
mod route;
mod table;

use crate::choice::{Choice, Kind, Lost, RunnerUp, left_out};
use crate::collective::collectives;
use crate::fleet::Fleet;
use crate::goal::Goal;
use crate::model::{Decode, Prediction, StageModel, Work, predict_decode, predict_prefill};
use cut::StageCutting;
use flotilla_shared::plan::{Placement, RANKS_MAX, StageCut};
use flotilla_shared::{BackendKind, Demand, Inventory, ModelSpec, Plan, PlanError};
use islands::islands;
use lattice::Lattice;
use route::{Route, Routes, Rules, members};
use table::StageTable;

/// Numbers of micro-batches that are tried, up to twice the devices; the powers of two alone where those are many.
const MICRO_BATCHES: [usize; 16] = [1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 24, 32, 48, 64, 128];

/// Batches for which a plan's decoding is predicted, and the longest prompt.
const DECODE_BATCHES: [usize; 3] = [1, 8, 32];
const PROMPT_TOKENS: usize = 2048;

/// The fastest plan for `goal` in which `demand` fits, over all or some of the fleet's devices.
pub fn choose(spec: &ModelSpec, fleet: &Fleet, goal: Goal, demand: Demand) -> Result<Choice, PlanError> {
    assert_eq!(fleet.devices.len(), fleet.hosts.len(), "every device is in a host");
    if fleet.devices.is_empty() || fleet.devices.len() > RANKS_MAX {
        return Err(PlanError::Ranks(fleet.devices.len()));
    }
    let mut finalists: Vec<Finalist> = Vec::new();
    for backend in [BackendKind::Cpu, BackendKind::Cuda] {
        let of = |device: &usize| fleet.devices[*device].backend == backend;
        let devices: Vec<usize> = (0..fleet.devices.len()).filter(of).collect();
        for together in islands(fleet, &devices).iter().filter(|together| !together.is_empty()) {
            finalists.extend(Search { spec, fleet, goal, demand }.finalists(together));
        }
    }
    finalists.sort_by(|a, b| a.decode.token_s.total_cmp(&b.decode.token_s));
    let mut finalists = finalists.into_iter();
    let Some(best) = finalists.next() else {
        return Err(misfit(spec, fleet, demand));
    };
    let runner_up = finalists.find(|other| other.kind != best.kind);
    Ok(best.chosen(spec, fleet, goal, demand, runner_up))
}

/// A plan that is the best of its kind.
struct Finalist {
    kind: Kind,
    plan: Plan,
    devices: Vec<usize>,
    decode: Decode,
}

impl Finalist {
    fn chosen(
        self,
        spec: &ModelSpec,
        fleet: &Fleet,
        goal: Goal,
        demand: Demand,
        runner_up: Option<Finalist>,
    ) -> Choice {
        let Finalist { kind, plan, devices, decode } = self;
        let batches = DECODE_BATCHES.iter();
        let predicted =
            batches.map(|&batch| predict_decode(spec, fleet, &plan, &devices, batch, goal.context));
        let tokens = PROMPT_TOKENS.min(goal.context.max(1));
        let prefill = predict_prefill(spec, fleet, &plan, &devices, tokens, demand.step_tokens_max);
        let prediction = Prediction { decode: predicted.collect(), prefill };
        let runner_up = runner_up.map(|other| RunnerUp {
            lost: Lost::against(&decode, &other.decode),
            kind: other.kind,
            plan: other.plan,
            devices: other.devices,
            decode: other.decode,
        });
        let collectives = collectives(spec, fleet, &plan, &devices);
        let left_out = left_out(fleet, &devices);
        Choice { kind, left_out, plan, devices, decode, prediction, collectives, runner_up }
    }
}

#[derive(Clone, Copy)]
struct Search<'a> {
    spec: &'a ModelSpec,
    fleet: &'a Fleet,
    goal: Goal,
    demand: Demand,
}

impl Search<'_> {
    /// The best plan of each kind over devices of one backend.
    fn finalists(&self, devices: &[usize]) -> Vec<Finalist> {
        let lattice = Lattice::new(self.fleet, devices);
        let sequences = self.goal.aim.sequences();
        let most = if self.goal.stages_max == 1 { 1 } else { sequences.min(2 * devices.len()) };
        let mut bounds = [f64::INFINITY; Kind::COUNT];
        let mut best: [Option<Finalist>; Kind::COUNT] = [const { None }; Kind::COUNT];
        for micro_batches in micro_batches(most.max(1), lattice.in_a_row) {
            let work = Work::decode(sequences.div_ceil(micro_batches), self.goal.context);
            let model = StageModel::new(self.spec, self.fleet, work);
            let mut table = StageTable::new(&model, self.demand, &lattice);
            let rules = Rules { micro_batches, stages_max: self.goal.stages_max.max(1), bounds };
            let routes = Routes::best(&lattice, &mut table, rules);
            for (kind, route) in routes.into_iter().enumerate() {
                let Some(finalist) = route.and_then(|route| self.finish(&lattice, &table, &route)) else {
                    continue;
                };
                bounds[kind] = bounds[kind].min(finalist.decode.token_s);
                if best[kind].as_ref().is_none_or(|best| finalist.decode.token_s < best.decode.token_s) {
                    best[kind] = Some(finalist);
                }
            }
        }
        best.into_iter().flatten().collect()
    }

    /// The plan of a route.
    fn finish(&self, lattice: &Lattice, table: &StageTable, route: &Route) -> Option<Finalist> {
        let mut used = vec![0; lattice.classes.len()];
        let (mut devices, mut cuts, mut layer) = (Vec::new(), Vec::new(), 0);
        for leg in &route.legs {
            let mine = members(lattice, &lattice.groups[leg.group], &mut used);
            let cutting = table.cutting(&mine, layer, layer + leg.layers)?;
            layer += leg.layers;
            cuts.push(stage_cut(leg.layers, &cutting));
            devices.extend(mine);
        }
        let inventories: Vec<Inventory> =
            devices.iter().map(|&device| self.fleet.devices[device].clone()).collect();
        let plan = Plan::with_stages(self.spec, &cuts).on(&inventories);
        let fits = plan.ranks().zip(&inventories).all(|(share, device)| {
            plan.total_bytes(self.spec, share.rank, self.demand) <= device.memory_bytes
        });
        debug_assert!(fits, "the search counts at most too much");
        let (sequences, context) = (self.goal.aim.sequences(), self.goal.context);
        let decode = predict_decode(self.spec, self.fleet, &plan, &devices, sequences, context);
        let several = plan.stages.iter().any(|stage| stage.ranks.len() > 1);
        let kind = Kind::of(plan.stages.len(), several);
        fits.then_some(Finalist { kind, plan, devices, decode })
    }
}

fn micro_batches(most: usize, few: bool) -> impl Iterator<Item = usize> {
    MICRO_BATCHES.into_iter().filter(move |count| *count <= most && (!few || count.is_power_of_two()))
}

/// Whole units are shares that come out as they are.
fn stage_cut(layers: usize, cutting: &StageCutting) -> StageCut {
    let shares = |of: fn(&crate::model::Units) -> usize| cutting.units.iter().map(|u| of(u) as f64).collect();
    StageCut {
        layers,
        placement: cutting.placement,
        kv_heads: shares(|units| units.kv_heads),
        experts: match cutting.placement {
            Placement::Slices => shares(|units| units.blocks),
            Placement::Whole => shares(|units| units.experts),
        },
        vocab: shares(|units| units.vocab),
    }
}

/// What is missing on the kind of device that has the most memory, of those that reach each other.
fn misfit(spec: &ModelSpec, fleet: &Fleet, demand: Demand) -> PlanError {
    let of = |backend| -> Vec<usize> {
        (0..fleet.devices.len()).filter(|&device| fleet.devices[device].backend == backend).collect()
    };
    let memory = |devices: &[usize]| {
        devices.iter().fold(0u64, |sum, &device| sum.saturating_add(fleet.devices[device].memory_bytes))
    };
    let (cpus, cards) = (of(BackendKind::Cpu), of(BackendKind::Cuda));
    let is_of_cpus = cards.is_empty() || memory(&cpus) > memory(&cards);
    let most = if is_of_cpus { cpus } else { cards };
    let together = islands(fleet, &most).into_iter().next().unwrap_or_default();
    let inventories: Vec<Inventory> = together.iter().map(|&device| fleet.devices[device].clone()).collect();
    let fit = Plan::misfit(spec, &inventories, demand);
    let name = |device: usize| fleet.devices[device].name.clone();
    let mut pairs = most.iter().flat_map(|&a| most.iter().map(move |&b| (a, b)));
    match pairs.find(|&(a, b)| a < b && !fleet.reaches(a, b)) {
        Some((a, b)) => PlanError::Apart { a: name(a), b: name(b), fit: Box::new(fit) },
        None => fit,
    }
}
