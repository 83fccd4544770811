//! How the model is cut over the workers that are there: over all of them alike, or as is fastest.

use super::form::Formation;
use super::known_links::{Measured, ends, place};
use flotilla_planner::{Collective, Fleet, Goal, LeftOut, Link, Reason, Ways, choose, collectives};
use flotilla_proto::Hello;
use flotilla_shared::held::seats;
use flotilla_shared::inventory::mixed;
use flotilla_shared::{
    BackendKind, Demand, Held, Inventory, LinkChoice, ModelSpec, Plan, PlanError, WeightsId, WireFormat,
};
use std::borrow::Borrow;
use std::collections::BTreeMap;
use tracing::{info, warn};

/// Bandwidths and compute rates that differ by less are taken for equal: measured ones always differ a little, and
/// equal workers should have equal shares, and keep them.
const EQUAL_WITHIN: f64 = 1.25;

/// How plans are made.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Planning {
    /// Every layer over all workers, by their bandwidth.
    #[default]
    Tensor,
    /// By the cost model: stages, ranks, shares and the placement of experts, over all workers or some.
    /// Links that are not told are measured.
    Fastest { goal: Goal, within: Option<Link>, between: Option<Link> },
}

/// Workers with a plan for them, in the order of its ranks, and those that it leaves out, with the reason. They need not be
/// at hand: what they said of themselves is enough to plan.
pub(super) struct Planned<W> {
    pub plan: Plan,
    pub workers: Vec<W>,
    pub left_out: Vec<(W, String)>,
    /// As [`flotilla_shared::Links`] has it.
    pub whole_values_max: Vec<u32>,
}

/// Cuts the model over `workers`; if it does not fit they come back.
pub(super) fn plan<W: Borrow<Hello>>(
    formation: &Formation,
    measured: &Measured,
    weights: WeightsId,
    workers: Vec<W>,
) -> Result<Planned<W>, (PlanError, Vec<W>)> {
    let (spec, demand) = (&formation.spec, formation.demand());
    match formation.planning {
        Planning::Tensor => over_all(spec, demand, weights, workers),
        Planning::Fastest { goal, within, between } => {
            let fleet = fleet(formation, measured, (within, between), &workers);
            match choose(spec, &fleet, goal, demand) {
                Err(error) => Err((error, workers)),
                Ok(choice) => {
                    let (kind, token_ms) = (choice.kind, 1e3 * choice.decode.token_s);
                    info!(%kind, predicted_token_ms = token_ms, left_out = choice.left_out.len(), "planned");
                    let reasons = reasons(&choice.left_out, &workers);
                    let known =
                        |a, b| between.is_some() || is_measured(formation, measured, &workers, (a, b));
                    let whole_values_max = lengths(&choice.plan, &choice.devices, &choice.collectives, known);
                    let planned = picked(spec, weights, choice.plan, &choice.devices, workers, reasons);
                    Ok(Planned { whole_values_max, ..planned })
                }
            }
        }
    }
}

/// As `plan` says, over just as many workers as it has ranks.
pub(super) fn given<W: Borrow<Hello>>(
    plan: &Plan,
    formation: &Formation,
    measured: &Measured,
    weights: WeightsId,
    workers: Vec<W>,
) -> Result<Planned<W>, (PlanError, Vec<W>)> {
    let spec = &formation.spec;
    match plan.clone().fitting(spec, &inventories(&workers), formation.demand()) {
        Err(error) => Err((error, workers)),
        Ok(plan) => {
            let order: Vec<usize> = (0..workers.len()).collect();
            let whole_values_max = match formation.planning {
                Planning::Tensor => Vec::new(),
                Planning::Fastest { within, between, .. } => {
                    let fleet = fleet(formation, measured, (within, between), &workers);
                    let known =
                        |a, b| between.is_some() || is_measured(formation, measured, &workers, (a, b));
                    lengths(&plan, &order, &collectives(spec, &fleet, &plan, &order), known)
                }
            };
            let planned = picked(spec, weights, plan, &order, workers, Vec::new());
            Ok(Planned { whole_values_max, ..planned })
        }
    }
}

/// What those who started the workers may not have meant. `devices`: by rank.
pub(super) fn warn_of_shares(plan: &Plan, devices: &[Inventory]) {
    if let Some((rate, share)) = mixed(devices) {
        warn!(
            rate = rate.name,
            share = share.name,
            "one worker's bandwidth is a rate and another's a share, so they are taken for equal: give all a rate, or all a share"
        );
    }
    for (share, device) in plan.ranks().zip(devices) {
        if share.kv_heads.is_empty() && share.experts.is_empty() && share.vocab.is_empty() {
            warn!(name = device.name, rank = %share.rank, "a worker has no part of the model, and the others wait for it all the same");
        }
    }
}

/// What there is, with links as they are told, or as they were measured.
fn fleet(
    formation: &Formation,
    measured: &Measured,
    (within, between): (Option<Link>, Option<Link>),
    workers: &[impl Borrow<Hello>],
) -> Fleet {
    let devices = leveled(inventories(workers));
    // Cards sum by ways of their own within a host, which nobody measures.
    let has = |backend| devices.iter().any(|device| device.backend == backend);
    let within_cards = (has(BackendKind::Cuda) && within.is_none()).then(|| Link::preset("pcie4"));
    let (hosts, numbers) = hosts(workers, formation.links);
    let ways = ways(measured, &numbers, (within.is_some() || !has(BackendKind::Cpu), between.is_some()));
    Fleet {
        hosts,
        devices,
        // Where nothing was measured there is no such link.
        within: within.or(measured.within).unwrap_or(Link::preset("shm")),
        between: between.or(measured.between).unwrap_or(Link::preset("10gbe")),
        within_cards,
        ways,
        int8: formation.wire == WireFormat::Int8,
        costs: Default::default(),
    }
}

/// By stage, as workers are told: 0 where they know better, as where a link between two of the stage's workers is not
/// `known` but assumed. `order`: the workers by rank.
fn lengths(
    plan: &Plan,
    order: &[usize],
    collectives: &[Collective],
    known: impl Fn(usize, usize) -> bool,
) -> Vec<u32> {
    let stages = plan.stages.iter().zip(collectives).map(|(stage, collective)| {
        let ranks: Vec<usize> = stage.ranks.iter().map(|share| order[share.rank.index()]).collect();
        let all_known = ranks.iter().all(|&a| ranks.iter().all(|&b| known(a, b)));
        if all_known { collective.whole_values_max.unwrap_or(0) as u32 } else { 0 }
    });
    stages.collect()
}

/// Whether the link between two workers was measured; memory that they share needs not be.
fn is_measured(
    formation: &Formation,
    measured: &Measured,
    workers: &[impl Borrow<Hello>],
    (a, b): (usize, usize),
) -> bool {
    let [a, b] = [a, b].map(|worker| place(workers[worker].borrow(), formation.links));
    let ends = ends(a, b);
    a == b || measured.ways.iter().any(|(of, link)| *of == ends && link.is_some())
}

fn inventories(workers: &[impl Borrow<Hello>]) -> Vec<Inventory> {
    workers.iter().map(|worker| worker.borrow().inventory.clone()).collect()
}

/// Each worker gets the rank for which it holds most.
fn over_all<W: Borrow<Hello>>(
    spec: &ModelSpec,
    demand: Demand,
    weights: WeightsId,
    workers: Vec<W>,
) -> Result<Planned<W>, (PlanError, Vec<W>)> {
    let cut = |workers: &[W]| Plan::tensor_parallel(spec, &leveled(inventories(workers)), demand);
    let plan = match cut(&workers) {
        Ok(plan) => plan,
        Err(error) => return Err((error, workers)),
    };
    let held: Vec<Option<Held>> = workers.iter().map(|worker| worker.borrow().held.clone()).collect();
    let order = seats(spec, &plan, weights, &held);
    let (workers, _) = in_order(&order, workers);
    // Unequal workers have other shares in another order.
    match cut(&workers) {
        Ok(plan) => Ok(Planned { plan, workers, left_out: Vec::new(), whole_values_max: Vec::new() }),
        Err(error) => Err((error, workers)),
    }
}

/// Those that `order` names, in that order, and the others.
fn in_order<W>(order: &[usize], workers: Vec<W>) -> (Vec<W>, Vec<W>) {
    let mut all: Vec<Option<W>> = workers.into_iter().map(Some).collect();
    let named = order.iter().filter_map(|&worker| all[worker].take()).collect();
    (named, all.into_iter().flatten().collect())
}

/// Those that a plan names, in the order of its ranks, and the others with the reason of each. Equal ones change places where one holds what the other is to have.
fn picked<W: Borrow<Hello>>(
    spec: &ModelSpec,
    weights: WeightsId,
    plan: Plan,
    order: &[usize],
    workers: Vec<W>,
    reasons: Vec<String>,
) -> Planned<W> {
    let (workers, left_out) = in_order(order, workers);
    let left_out = left_out.into_iter().zip(reasons).collect();
    let held: Vec<Option<Held>> = workers.iter().map(|worker| worker.borrow().held.clone()).collect();
    let better = seats(spec, &plan, weights, &held);
    let same = |a: &Hello, b: &Hello| {
        let rates = |inventory: &Inventory| (inventory.backend, inventory.memory_bytes, inventory.kv);
        let close = |a: f64, b: f64| a == b || (a.max(b) / a.min(b)) < EQUAL_WITHIN;
        a.host == b.host
            && rates(&a.inventory) == rates(&b.inventory)
            && close(a.inventory.bandwidth, b.inventory.bandwidth)
            && close(a.inventory.compute, b.inventory.compute)
            && close(a.inventory.expert_compute, b.inventory.expert_compute)
    };
    let whole_values_max = Vec::new();
    if !better.iter().zip(&workers).all(|(&other, worker)| same(workers[other].borrow(), worker.borrow())) {
        return Planned { plan, workers, left_out, whole_values_max };
    }
    let (workers, _) = in_order(&better, workers);
    Planned { plan, workers, left_out, whole_values_max }
}

/// Devices that are about alike are alike.
fn leveled(mut devices: Vec<Inventory>) -> Vec<Inventory> {
    level(&mut devices, |device| &mut device.bandwidth);
    level(&mut devices, |device| &mut device.compute);
    level(&mut devices, |device| &mut device.expert_compute);
    devices
}

/// Those that are faster, but not much faster, than one get the mean of their run. Neighbours are not compared: by many
/// small differences all would be alike.
fn level(devices: &mut [Inventory], rate: fn(&mut Inventory) -> &mut f64) {
    let mut order: Vec<usize> = (0..devices.len()).collect();
    let rates: Vec<f64> = devices.iter_mut().map(|device| *rate(device)).collect();
    order.sort_by(|&a, &b| rates[a].total_cmp(&rates[b]));
    let mut rest = order.as_slice();
    while let Some(&slowest) = rest.first() {
        let is_alike =
            |&device: &usize| rates[slowest] > 0.0 && rates[device] / rates[slowest] < EQUAL_WITHIN;
        let run = rest.iter().take_while(|device| is_alike(device)).count().max(1);
        let mean = rest[..run].iter().map(|&device| rates[device]).sum::<f64>() / run as f64;
        rest[..run].iter().for_each(|&device| *rate(&mut devices[device]) = mean);
        rest = &rest[run..];
    }
}

/// Workers of one place have one number.
fn hosts(workers: &[impl Borrow<Hello>], links: LinkChoice) -> (Vec<u16>, BTreeMap<String, u16>) {
    let mut numbers = BTreeMap::new();
    let number = |worker: &_| {
        let next = numbers.len() as u16;
        *numbers.entry(place(Borrow::borrow(worker), links).to_owned()).or_insert(next)
    };
    (workers.iter().map(number).collect(), numbers)
}

/// What was found out of single pairs, where it is not as of all; rates only of the kinds that were not `told`: within a
/// host, between hosts.
fn ways(measured: &Measured, numbers: &BTreeMap<String, u16>, told: (bool, bool)) -> Ways {
    let ways = measured.ways.iter().filter(|((a, b), link)| {
        let (told, usual) = if a == b { (told.0, measured.within) } else { (told.1, measured.between) };
        link.is_none() || !told && *link != usual
    });
    let numbered = ways.filter_map(|((a, b), link)| Some((*numbers.get(a)?, *numbers.get(b)?, *link)));
    numbered.collect()
}

/// Why each is left out.
fn reasons(left_out: &[LeftOut], workers: &[impl Borrow<Hello>]) -> Vec<String> {
    let reasons = left_out.iter().map(|left_out| match left_out.reason {
        Reason::OutOfReach { of } => {
            let name = |worker: usize| workers[worker].borrow().inventory.name.as_str();
            let (name, reason) = (name(left_out.device), format!("it does not reach {}", name(of)));
            warn!(name, reason, "a worker is left out");
            reason
        }
        reason => reason.to_string(),
    });
    reasons.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_little_is_equal() {
        let device = |bandwidth: f64| Inventory {
            name: "a".into(),
            backend: BackendKind::Cpu,
            kv: Default::default(),
            device: "cpu".into(),
            memory_bytes: 1,
            bandwidth,
            compute: 0.0,
            expert_compute: 0.0,
            threads: 1,
        };
        let bandwidths = |rates: &[f64]| -> Vec<f64> {
            leveled(rates.iter().map(|&rate| device(rate)).collect()).iter().map(|it| it.bandwidth).collect()
        };
        assert_eq!(bandwidths(&[29e9, 31e9, 100e9, 90e9]), [30e9, 30e9, 95e9, 95e9]);
        assert_eq!(bandwidths(&[0.0, 0.0, 5.0]), [0.0, 0.0, 5.0]);
        assert_eq!(bandwidths(&[24.0, 16.0, 12.0]), [24.0, 16.0, 12.0]);
        // Each a fifth faster than the one before.
        assert_eq!(bandwidths(&[10.0, 12.0, 14.4, 17.28, 20.7]), [11.0, 11.0, 15.84, 15.84, 20.7]);
    }
}
