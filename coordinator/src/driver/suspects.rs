//! Which request is to blame when steps fail. After two failed steps in a row, or two that one of them was in, here or in
//! another replica, the sequences that were in them are let in one by one. One that fails alone is accused, and guilty as
//! soon as another goes on where it did not. Where nobody else is there to compare it with, three failures are enough; and
//! where everything fails, nobody is guilty.
//!
//! It knows ids only. That a worker is lost is not told here.

use std::collections::BTreeMap;

use flotilla_shared::SequenceId;

use crate::group::GroupError;

/// In a row; then sequences are tried one by one.
const TRIALS_FROM: u32 = 2;
/// In a row; then those that failed alone are given up, if nobody else is there.
const ALONE_MAX: u32 = 3;
/// In a row; then it is the fleet, and no request.
const FAILURES_MAX: u32 = 6;
/// Tokens after which a sequence is past what failed: one behind its prompt, and two by decodes.
const CLEARED_TOKENS: u32 = 3;
/// Good steps after which old failures count no more.
const CALM_STEPS: u32 = 16;
/// Verdicts in a row, with nothing that went well between them, for which no worker is blamed.
const ACQUITTALS_MAX: u32 = 2;

#[derive(Default)]
pub struct Suspects {
    /// Of failed steps, and not past them yet; or compared with those.
    suspects: BTreeMap<SequenceId, Suspect>,
    /// They are let in one by one, until none is left.
    trying: bool,
    on_trial: Option<SequenceId>,
    /// The oldest is tried next, not the newest: who made others fail came late, and who is sound was there before.
    oldest_next: bool,
    /// Failed steps in a row.
    failures: u32,
    /// Since the last of them.
    steps_well: u32,
    verdicts: u32,
}

#[derive(Default)]
struct Suspect {
    /// How it failed alone.
    accused: Option<GroupError>,
    /// Failed steps in a row that it was in, here or elsewhere.
    failures: u32,
    tokens: u32,
}

/// What comes of a failed step.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// All are tried again.
    Open,
    Guilty(SequenceId),
    /// These are given up without blame. `again`: that was so before, and nothing has gone well since.
    Fleet {
        ended: Vec<SequenceId>,
        again: bool,
    },
}

impl Suspects {
    /// A step of these sequences failed; `here` are all that have not ended. Says as well whether the workers are not to
    /// blame for it.
    pub fn failed(
        &mut self,
        step: &[SequenceId],
        error: &GroupError,
        here: &[SequenceId],
    ) -> (Verdict, bool) {
        self.failures += 1;
        self.steps_well = 0;
        match self.on_trial.filter(|tried| step.contains(tried)) {
            // The others in it were past what failed.
            Some(tried) => self.suspect(tried).failures += 1,
            None => {
                let here = step.iter().filter(|one| here.contains(one));
                here.for_each(|&one| self.suspect(one).failures += 1);
            }
        }
        if let &[alone] = step
            && here.contains(&alone)
        {
            self.suspects.entry(alone).or_default().accused = Some(error.clone());
            self.on_trial = None;
        }
        let in_a_row = self.suspects.values().map(|suspect| suspect.failures).fold(self.failures, u32::max);
        self.trying |= in_a_row >= TRIALS_FROM;
        let acquits = step.len() == 1 && self.failures < FAILURES_MAX && self.verdicts < ACQUITTALS_MAX;
        let is_hopeless = in_a_row >= ALONE_MAX
            && !here.is_empty()
            && here.iter().all(|&sequence| self.is_accused(sequence));
        let verdict = match () {
            () if is_hopeless => self.give_up_accused(),
            () if self.failures >= FAILURES_MAX => self.give_up_all(),
            () => Verdict::Open,
        };
        (verdict, acquits)
    }

    fn suspect(&mut self, sequence: SequenceId) -> &mut Suspect {
        let suspect = self.suspects.entry(sequence).or_default();
        suspect.tokens = 0;
        suspect
    }

    fn is_accused(&self, sequence: SequenceId) -> bool {
        self.suspects.get(&sequence).is_some_and(|suspect| suspect.accused.is_some())
    }

    /// What comes next is judged anew.
    fn give_up_accused(&mut self) -> Verdict {
        self.failures = 0;
        match self.give_up_all() {
            Verdict::Fleet { ended, .. } if ended.len() == 1 => Verdict::Guilty(ended[0]),
            verdict => verdict,
        }
    }

    fn give_up_all(&mut self) -> Verdict {
        let again = self.verdicts > 0;
        self.verdicts += 1;
        let ended = std::mem::take(&mut self.suspects).into_keys().collect();
        (self.trying, self.on_trial) = (false, None);
        Verdict::Fleet { ended, again }
    }

    /// A step was answered.
    pub fn went_well(&mut self) {
        self.steps_well = self.steps_well.saturating_add(1);
        if self.steps_well >= CALM_STEPS && self.suspects.is_empty() {
            (self.failures, self.verdicts) = (0, 0);
        }
    }

    /// A token of it came. Says who is guilty now: who failed alone where this one goes on.
    pub fn emitted(&mut self, sequence: SequenceId) -> Vec<(SequenceId, GroupError)> {
        let Some(suspect) = self.suspects.get_mut(&sequence) else { return Vec::new() };
        suspect.tokens += 1;
        if suspect.tokens < CLEARED_TOKENS { Vec::new() } else { self.clear(sequence) }
    }

    /// It came to its end. Says who is guilty now, likewise.
    pub fn finished(&mut self, sequence: SequenceId) -> Vec<(SequenceId, GroupError)> {
        if self.suspects.contains_key(&sequence) { self.clear(sequence) } else { Vec::new() }
    }

    fn clear(&mut self, sequence: SequenceId) -> Vec<(SequenceId, GroupError)> {
        let was_trying = self.trying;
        self.forget(sequence);
        (self.failures, self.verdicts) = (0, 0);
        if !was_trying {
            return Vec::new();
        }
        let accused = self.suspects.iter().filter_map(|(id, suspect)| Some((*id, suspect.accused.clone()?)));
        let guilty: Vec<_> = accused.collect();
        guilty.iter().for_each(|(sequence, _)| _ = self.forget(*sequence));
        guilty
    }

    /// It ended, or goes elsewhere with the failed steps that it was in.
    pub fn forget(&mut self, sequence: SequenceId) -> u32 {
        let suspect = self.suspects.remove(&sequence);
        self.on_trial.take_if(|tried| *tried == sequence);
        self.trying &= !self.suspects.is_empty();
        suspect.map_or(0, |suspect| suspect.failures)
    }

    /// It comes from elsewhere.
    pub fn adopt(&mut self, sequence: SequenceId, failures: u32) {
        if failures > 0 {
            self.suspect(sequence).failures = failures;
        }
    }

    /// Whether it must be tried here, and does not go on in another replica.
    pub fn holds(&self, sequence: SequenceId) -> bool {
        self.trying && self.suspects.contains_key(&sequence)
    }

    /// Who alone is let in now, of those that are here; nobody: all are.
    pub fn on_trial(&mut self, mut here: impl Iterator<Item = SequenceId>) -> Option<SequenceId> {
        if !self.trying || self.on_trial.is_some() {
            return self.on_trial;
        }
        let next = self.next_unaccused().or_else(|| {
            // All that is left has failed alone: somebody to compare them with.
            here.find(|sequence| !self.suspects.contains_key(sequence))
        });
        self.on_trial = next.or_else(|| self.suspects.keys().next().copied());
        self.on_trial.into_iter().for_each(|sequence| _ = self.suspect(sequence));
        self.on_trial
    }

    fn next_unaccused(&mut self) -> Option<SequenceId> {
        let mut open =
            self.suspects.iter().filter(|(_, suspect)| suspect.accused.is_none()).map(|(id, _)| *id);
        let next = if self.oldest_next { open.next() } else { open.next_back() };
        drop(open);
        self.oldest_next = !self.oldest_next;
        next
    }
}
