//! Which replica a request goes to: the one that has most of its prompt in its cache, as far as is known here, unless
//! that one has much more to do than another; else the one with the least to do.
//!
//! What a replica has is guessed by what was sent to it: prompts are remembered by hashes of their beginnings. A wrong
//! guess costs time and changes nothing.

use crate::driver::{
    Coming, DriverHandle, Generation, NotDissolved, Readiness, Refusal, Replicas, Stats, TokenStream,
};
use crate::group::GroupError;
use flotilla_shared::TokenId;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Beginnings are looked at in steps of so many tokens.
const STEP_TOKENS: usize = 64;
/// Beginnings that are remembered, in each of two generations.
const REMEMBERED_MAX: usize = 1 << 16;
/// Sequences that the one with the prefix may have more than the idlest, beyond twice as many.
const BUSIER_MAX: usize = 4;

/// The replicas as one. Cheap to clone.
#[derive(Clone)]
pub struct ReplicaRouter {
    replicas: Replicas,
    sent: Arc<Mutex<Sent>>,
}

impl From<DriverHandle> for ReplicaRouter {
    fn from(driver: DriverHandle) -> ReplicaRouter {
        let replicas = Replicas::default();
        replicas.add(driver);
        ReplicaRouter::new(replicas)
    }
}

impl ReplicaRouter {
    pub fn new(replicas: Replicas) -> ReplicaRouter {
        ReplicaRouter { replicas, sent: Arc::default() }
    }

    /// See [`DriverHandle::submit`]. What goes on waits with a replica that waits for a group, where none serves.
    pub async fn submit(&self, generation: Generation) -> Result<TokenStream, Refusal> {
        let all = self.replicas.all();
        let serving: Vec<usize> = (0..all.len()).filter(|&at| all[at].serves()).collect();
        match serving.as_slice() {
            [] => match all.iter().find(|driver| generation.said.is_some() && driver.awaits_group()) {
                Some(driver) => driver.submit(generation).await,
                None => Err(Refusal::NotReady(self.why_not())),
            },
            &[only] => all[only].submit(generation).await,
            serving => {
                let names = beginnings(&generation.prompt, generation.salt);
                let (chosen, _coming) = self.choose(&names, serving, &all);
                all[chosen].submit(generation).await
            }
        }
    }

    /// Of two that choose at once, the second counts what the first has chosen.
    fn choose(&self, names: &[u64], serving: &[usize], all: &[DriverHandle]) -> (usize, Coming) {
        let mut sent = self.sent.lock().unwrap_or_else(PoisonError::into_inner);
        let busy: Vec<(usize, usize)> = serving.iter().map(|&at| (at, all[at].busy())).collect();
        let chosen = sent.choose(names, &busy);
        (chosen, all[chosen].expect_one())
    }

    /// Where none takes requests in: a replica that is ready all the same is being dissolved.
    fn why_not(&self) -> Readiness {
        match self.readiness() {
            Readiness::Ready { .. } => Readiness::Lost { error: GroupError::Dissolved },
            readiness => readiness,
        }
    }

    /// Ready while one serves; else what the first says that was not dissolved.
    pub fn readiness(&self) -> Readiness {
        let rank = |readiness: &Readiness| match readiness {
            Readiness::Ready { .. } => 0,
            Readiness::Lost { error: GroupError::Dissolved } => 2,
            _ => 1,
        };
        self.each().into_iter().min_by_key(rank).unwrap_or(Readiness::Stopped)
    }

    /// All of them, in the order of their numbers.
    pub fn drivers(&self) -> Vec<DriverHandle> {
        self.replicas.all()
    }

    /// See [`Replicas::dissolve`].
    pub fn dissolve(&self, number: usize, force: bool) -> Result<(), NotDissolved> {
        self.replicas.dissolve(number, force)
    }

    /// See [`DriverHandle::stop`]: all of them.
    pub fn stop(&self) {
        self.replicas.all().iter().for_each(DriverHandle::stop);
    }

    /// Whether what was computed of a prompt is found again, in every replica.
    pub fn caches_prefixes(&self) -> bool {
        self.replicas.all().iter().all(DriverHandle::caches_prefixes)
    }

    /// Of each replica.
    pub fn each(&self) -> Vec<Readiness> {
        self.replicas.all().iter().map(DriverHandle::readiness).collect()
    }

    /// Of all together.
    pub fn stats(&self) -> Stats {
        self.replicas.all().iter().map(DriverHandle::stats).fold(Stats::default(), |all, one| all + one)
    }
}

/// What was sent where.
#[derive(Default)]
struct Sent {
    /// By the hash of a beginning: the replica that had it last.
    young: HashMap<u64, usize>,
    old: HashMap<u64, usize>,
    /// Ties go round.
    turn: usize,
}

impl Sent {
    /// One of `busy`, which are replicas with what each has to do.
    fn choose(&mut self, names: &[u64], busy: &[(usize, usize)]) -> usize {
        let least = busy.iter().map(|&(_, busy)| busy).min().unwrap_or(0);
        let has = |name: &u64| self.young.get(name).or_else(|| self.old.get(name)).copied();
        let longest = names.iter().rev().find_map(has);
        let known = busy.iter().find(|(at, busy)| Some(*at) == longest && *busy <= 2 * least + BUSIER_MAX);
        let chosen = match known {
            Some(&(at, _)) => at,
            None => {
                self.turn += 1;
                let idle: Vec<usize> = busy.iter().filter(|it| it.1 == least).map(|it| it.0).collect();
                idle[self.turn % idle.len()]
            }
        };
        if self.young.len() + names.len() > REMEMBERED_MAX {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.extend(names.iter().map(|&name| (name, chosen)));
        chosen
    }
}

/// Hashes of the beginnings of a prompt, the shortest first.
fn beginnings(prompt: &[TokenId], salt: u64) -> Vec<u64> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&salt.to_le_bytes());
    let name = |step: &[TokenId]| {
        step.iter().for_each(|token| _ = hasher.update(&token.to_le_bytes()));
        let hash = *hasher.finalize().as_bytes();
        u64::from_le_bytes(hash[..8].try_into().expect("eight bytes"))
    };
    prompt.chunks_exact(STEP_TOKENS).take(REMEMBERED_MAX / 4).map(name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_the_beginning_gets_the_request_unless_it_is_much_busier() {
        let mut sent = Sent::default();
        let prompt: Vec<TokenId> = (0..200).collect();
        let longer: Vec<TokenId> = (0..1000).collect();
        let (names, more) = (beginnings(&prompt, 1), beginnings(&longer, 1));
        assert_eq!((names.len(), more.len()), (3, 15));
        assert_eq!(names, more[..3]);
        assert_eq!(sent.choose(&names, &[(0, 3), (2, 1)]), 2, "the idlest");
        assert_eq!(sent.choose(&more, &[(0, 0), (2, 4)]), 2, "the one that has it");
        assert_eq!(sent.choose(&more, &[(0, 0), (2, 5)]), 0, "not where it would wait");
        assert_eq!(sent.choose(&more, &[(0, 1), (2, 1)]), 0, "it has been there since");
        // Another's prompts are nobody's business.
        let others = beginnings(&prompt, 2);
        let first = sent.choose(&others, &[(0, 1), (2, 1)]);
        assert_ne!(first, sent.choose(&beginnings(&prompt, 3), &[(0, 1), (2, 1)]), "ties go round");
    }

    #[test]
    fn little_is_remembered() {
        let mut sent = Sent::default();
        for salt in 0..40 {
            sent.choose(&(0..5000).map(|n| n + (salt << 32)).collect::<Vec<_>>(), &[(0, 0), (1, 0)]);
        }
        assert!(sent.young.len() + sent.old.len() <= 2 * REMEMBERED_MAX);
    }
}
