//! What the workers of one epoch are told, each of its part.

use super::form::{Formation, Weights};
use super::holders::Sent;
use super::service::Fleet;
use super::weights::Serving;
use flotilla_proto::Hello;
use flotilla_shared::{Assignment, Epoch, Links, Plan, Rank, WeightOrigin, WeightsId};
use std::borrow::Borrow;

/// A plan, and who has which rank in it.
pub(super) struct Parts<'a> {
    epoch: Epoch,
    formation: &'a Formation,
    plan: &'a Plan,
    origin: WeightOrigin,
    weights_id: WeightsId,
    links: Links,
    peers: Vec<String>,
    group_key: [u8; 32],
}

impl<'a> Parts<'a> {
    /// `workers` are in the order of the ranks; `whole_values_max` as [`Links`] has it.
    pub fn new(
        epoch: Epoch,
        formation: &'a Formation,
        weights_id: WeightsId,
        plan: &'a Plan,
        workers: &[impl Borrow<Hello>],
        whole_values_max: Vec<u32>,
    ) -> Parts<'a> {
        let hosts = workers.iter().map(|worker| worker.borrow().host.as_str());
        let links = Links::between(hosts, formation.links, formation.wire);
        let origin = match formation.weights {
            Weights::Synthetic { seed } => WeightOrigin::Synthetic { seed },
            Weights::Stream(_) => WeightOrigin::Stream,
        };
        Parts {
            epoch,
            formation,
            plan,
            origin,
            weights_id,
            links: Links { whole_values_max, ..links },
            peers: workers.iter().map(|worker| worker.borrow().collective_address.clone()).collect(),
            group_key: random_key(),
        }
    }

    /// Of one rank, which asks holders for weights before the coordinator.
    pub fn assignment(&self, rank: Rank, sent: Sent) -> Assignment {
        let (formation, Sent { holders, lends }) = (self.formation, sent);
        Assignment {
            epoch: self.epoch,
            rank,
            spec: formation.spec.clone(),
            plan: self.plan.clone(),
            weights: self.origin,
            kv_blocks: formation.kv_blocks,
            step_tokens_max: formation.step_tokens_max as u32,
            logit_rows_max: formation.logit_rows_max as u32,
            sampleable: formation.sampleable.clone(),
            peers: self.peers.clone(),
            links: self.links.clone(),
            group_key: self.group_key,
            holders,
            lends,
            weights_id: self.weights_id,
        }
    }
}

impl Fleet {
    /// The workers of an epoch may fetch from here, until it is closed.
    pub(super) fn serve_weights(&self, epoch: Epoch, weights: &Weights) {
        if let Weights::Stream(source) = weights {
            self.serve(Serving { epoch, source: source.clone() });
        }
    }
}

/// 32 bytes that only this epoch's members learn.
pub(super) fn random_key() -> [u8; 32] {
    let mut key = [0; 32];
    getrandom::fill(&mut key).expect("the system gives random bytes");
    key
}
