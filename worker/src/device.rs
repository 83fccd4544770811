//! What a worker computes with, its cores or a card, and how an executor is made of it. From here on the
//! two differ in nothing but speed and rounding.

use crate::executor::Executor;
use flotilla_engine::backend::cpu::{CpuBackend, CpuSettings, CpuWeights};
use flotilla_engine::backend::cuda::{CudaBackend, CudaSettings, CudaWeights};
use flotilla_engine::collective::card::{CardCollective, CardSettings, SumChoice, Wire};
use flotilla_engine::collective::{Collective, CollectiveError};
use flotilla_engine::cuda::{Card, CudaError};
use flotilla_engine::weights::RankWeights;
use flotilla_shared::{Assignment, BackendKind, KvDtype};
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;

/// What a worker computes with.
#[derive(Clone, Debug)]
pub enum Device {
    Cpu(CpuSettings),
    Card(CardUse),
}

/// A card and how it is used.
#[derive(Clone, Debug)]
pub struct CardUse {
    pub card: Card,
    /// How it sums with other ranks' cards.
    pub sum: SumChoice,
    pub wire: Wire,
}

impl Device {
    pub fn backend(&self) -> BackendKind {
        match self {
            Device::Cpu(_) => BackendKind::Cpu,
            Device::Card(_) => BackendKind::Cuda,
        }
    }

    /// What its cache holds.
    pub fn kv_dtype(&self) -> KvDtype {
        match self {
            Device::Cpu(settings) => settings.kv,
            Device::Card(_) => KvDtype::Bf16,
        }
    }
}

/// Why no executor could be made.
#[derive(Debug, Error)]
pub enum BuildError {
    #[error(transparent)]
    Card(#[from] CudaError),
    #[error(transparent)]
    Collective(#[from] CollectiveError),
}

/// Takes all memory of the rank. `link` joins it to the others.
pub fn on_cpu<L: Collective>(
    cpu: &CpuSettings,
    assignment: &Assignment,
    weights: RankWeights,
    link: L,
) -> Executor<CpuBackend, L> {
    Executor::new(assignment, CpuBackend::new(cpu, assignment, weights), link)
}

/// The same over weights of a group before.
pub fn again_on_cpu<L: Collective>(
    cpu: &CpuSettings,
    assignment: &Assignment,
    weights: Arc<CpuWeights>,
    link: L,
) -> Executor<CpuBackend, L> {
    Executor::new(assignment, CpuBackend::again(cpu, assignment, weights), link)
}

/// Agrees with the other ranks on how cards sum, and takes all memory of the rank. `deadline` is the longest
/// that a sum may wait for another rank.
pub fn on_card<L: Collective>(
    card: &CardUse,
    assignment: &Assignment,
    weights: CudaWeights,
    link: L,
    deadline: Duration,
) -> Result<Executor<CudaBackend, CardCollective<L>>, BuildError> {
    /// Sums whose time is measured at the start, of each length.
    const LATENCY_RUNS: u32 = 20;
    let settings = CardSettings {
        choice: card.sum,
        wire: card.wire,
        elements_max: assignment.step_tokens_max as usize * assignment.spec.hidden,
        deadline,
        latency_runs: LATENCY_RUNS,
    };
    let card = weights.card().clone();
    let collective = CardCollective::form(&card, link, &settings)?;
    // Sums that pass through the host cannot be part of a graph.
    let settings = CudaSettings { graphs: collective.capturable() };
    let backend = CudaBackend::new(&settings, assignment, weights)?;
    Ok(Executor::new(assignment, backend, collective))
}
