//! What a key has used of its allowance. Pure: the time is an argument.
//!
//! Rates are buckets: full with a minute's worth at the start, filled at the rate, emptied by use. So a
//! client may use its minute at once, and then waits until there is enough again; how long is known
//! exactly, and said.

use std::time::Duration;

/// What a key may use; `None` is without a limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Allowance {
    pub requests_per_minute: Option<u32>,
    /// Of prompts and answers together.
    pub tokens_per_minute: Option<u32>,
    /// Answers at once: choices, of all requests.
    pub concurrent: Option<u32>,
}

/// Which limit is reached, and when there is room again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Exceeded {
    #[error("it may make {per_minute} requests a minute")]
    Requests { per_minute: u32, wait: Duration },
    #[error("it may use {per_minute} tokens a minute")]
    Tokens { per_minute: u32, wait: Duration },
    /// Nobody knows when one of them ends.
    #[error("it may have {concurrent} answers made at once")]
    Concurrent { concurrent: u32 },
}

#[derive(Clone, Debug)]
pub(super) struct Account {
    requests: Bucket,
    tokens: Bucket,
    open: u32,
}

impl Account {
    pub fn new(allowance: &Allowance) -> Account {
        Account {
            requests: Bucket::full(allowance.requests_per_minute),
            tokens: Bucket::full(allowance.tokens_per_minute),
            open: 0,
        }
    }

    /// A request that is refused has used nothing.
    pub fn open(&mut self, allowance: &Allowance, now: Duration) -> Result<(), Exceeded> {
        if let Some(concurrent) = allowance.concurrent.filter(|&concurrent| self.open >= concurrent) {
            return Err(Exceeded::Concurrent { concurrent });
        }
        if let Some(per_minute) = allowance.tokens_per_minute {
            // Who owes tokens makes no request.
            self.tokens.wait(per_minute, now, 1.0).map_err(|wait| Exceeded::Tokens { per_minute, wait })?;
        }
        if let Some(per_minute) = allowance.requests_per_minute {
            let wait = |wait| Exceeded::Requests { per_minute, wait };
            self.requests.wait(per_minute, now, 1.0).map_err(wait)?;
            self.requests.level -= 1.0;
        }
        self.open += 1;
        Ok(())
    }

    /// So many choices more of a request that is open, all or none.
    pub fn open_more(&mut self, allowance: &Allowance, more: u32) -> Result<(), Exceeded> {
        let open = self.open.saturating_add(more);
        if let Some(concurrent) = allowance.concurrent.filter(|&concurrent| open > concurrent) {
            return Err(Exceeded::Concurrent { concurrent });
        }
        self.open = open;
        Ok(())
    }

    pub fn close(&mut self, choices: u32) {
        self.open -= choices;
    }

    pub fn prompt(&mut self, allowance: &Allowance, now: Duration, tokens: usize) -> Result<(), Exceeded> {
        let Some(per_minute) = allowance.tokens_per_minute else {
            return Ok(());
        };
        let needed = (tokens as f64).min(per_minute.into());
        self.tokens.wait(per_minute, now, needed).map_err(|wait| Exceeded::Tokens { per_minute, wait })?;
        self.tokens.level -= tokens as f64;
        Ok(())
    }

    /// Of a prompt that was refused after all.
    pub fn give_back(&mut self, allowance: &Allowance, tokens: usize) {
        if let Some(per_minute) = allowance.tokens_per_minute {
            self.tokens.level = (self.tokens.level + tokens as f64).min(per_minute.into());
        }
    }

    pub fn token(&mut self, allowance: &Allowance, now: Duration) {
        if let Some(per_minute) = allowance.tokens_per_minute {
            self.tokens.fill(per_minute, now);
            self.tokens.level -= 1.0;
        }
    }
}

#[derive(Clone, Debug)]
struct Bucket {
    /// Below 0: owed.
    level: f64,
    filled: Duration,
}

impl Bucket {
    fn full(per_minute: Option<u32>) -> Bucket {
        Bucket { level: per_minute.unwrap_or_default().into(), filled: Duration::ZERO }
    }

    fn fill(&mut self, per_minute: u32, now: Duration) {
        let passed = now.saturating_sub(self.filled).as_secs_f64();
        self.level = (self.level + passed * f64::from(per_minute) / 60.0).min(per_minute.into());
        self.filled = now;
    }

    /// How long until so much is there, if it is not.
    fn wait(&mut self, per_minute: u32, now: Duration, needed: f64) -> Result<(), Duration> {
        self.fill(per_minute, now);
        let missing = needed - self.level;
        // Sums of fractions may end a hair below what they should.
        if missing <= 1e-6 {
            return Ok(());
        }
        Err(Duration::from_secs_f64(missing * 60.0 / f64::from(per_minute)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_minutes_requests_may_come_at_once_and_then_at_the_rate() {
        let allowance = Allowance { requests_per_minute: Some(6), ..Allowance::default() };
        let mut account = Account::new(&allowance);
        for _ in 0..6 {
            assert_eq!(account.open(&allowance, s(1)), Ok(()));
        }
        let refused = |wait| Err(Exceeded::Requests { per_minute: 6, wait });
        assert_eq!(account.open(&allowance, s(1)), refused(s(10)));
        assert_eq!(account.open(&allowance, s(7)), refused(s(4)), "what is refused costs nothing");
        assert_eq!(account.open(&allowance, s(11)), Ok(()), "the wait that was told was true");
        assert_eq!(account.open(&allowance, s(11)), refused(s(10)));
        for _ in 0..6 {
            assert_eq!(account.open(&allowance, s(10_000)), Ok(()));
        }
        assert!(account.open(&allowance, s(10_000)).is_err(), "a pause saves up one minute, no more");
    }

    #[test]
    fn tokens_are_owed_and_paid_back_before_the_next_request() {
        let allowance = Allowance { tokens_per_minute: Some(60), ..Allowance::default() };
        let mut account = Account::new(&allowance);
        assert_eq!(account.open(&allowance, s(0)), Ok(()));
        assert_eq!(account.prompt(&allowance, s(0), 50), Ok(()));
        for _ in 0..20 {
            account.token(&allowance, s(0));
        }
        // 10 owed, and one must be there.
        let refused = |wait| Err(Exceeded::Tokens { per_minute: 60, wait });
        assert_eq!(account.open(&allowance, s(0)), refused(s(11)));
        assert_eq!(account.open(&allowance, s(11)), Ok(()));
        assert_eq!(account.prompt(&allowance, s(11), 31), refused(s(30)));
        assert_eq!(account.prompt(&allowance, s(41), 31), Ok(()));
    }

    #[test]
    fn a_prompt_beyond_a_minutes_allowance_waits_for_a_full_minute() {
        let allowance = Allowance { tokens_per_minute: Some(60), ..Allowance::default() };
        let mut account = Account::new(&allowance);
        assert_eq!(account.prompt(&allowance, s(0), 600), Ok(()));
        assert!(account.prompt(&allowance, s(539), 1).is_err(), "540 are owed");
        assert_eq!(account.prompt(&allowance, s(541), 1), Ok(()));
    }

    #[test]
    fn what_is_given_back_can_be_used_and_no_more() {
        let allowance = Allowance { tokens_per_minute: Some(60), ..Allowance::default() };
        let mut account = Account::new(&allowance);
        assert_eq!(account.prompt(&allowance, s(0), 600), Ok(()));
        account.give_back(&allowance, 600);
        assert_eq!(account.prompt(&allowance, s(0), 30), Ok(()));
        account.give_back(&allowance, 31);
        assert_eq!(account.prompt(&allowance, s(0), 60), Ok(()));
        assert!(account.prompt(&allowance, s(0), 1).is_err(), "a minute's worth is the most");
    }

    #[test]
    fn so_many_at_once() {
        let allowance = Allowance { concurrent: Some(2), ..Allowance::default() };
        let mut account = Account::new(&allowance);
        assert_eq!(account.open(&allowance, s(0)), Ok(()));
        assert_eq!(account.open(&allowance, s(0)), Ok(()));
        assert_eq!(account.open(&allowance, s(0)), Err(Exceeded::Concurrent { concurrent: 2 }));
        account.close(1);
        assert_eq!(account.open(&allowance, s(0)), Ok(()));
    }

    #[test]
    fn choices_are_places_as_requests_are() {
        let allowance = Allowance { concurrent: Some(4), ..Allowance::default() };
        let mut account = Account::new(&allowance);
        assert_eq!(account.open(&allowance, s(0)), Ok(()));
        assert_eq!(account.open_more(&allowance, 4), Err(Exceeded::Concurrent { concurrent: 4 }));
        assert_eq!(account.open_more(&allowance, 3), Ok(()), "what was refused took none");
        assert_eq!(account.open(&allowance, s(0)), Err(Exceeded::Concurrent { concurrent: 4 }));
        account.close(4);
        assert_eq!(account.open(&allowance, s(0)), Ok(()));
    }

    #[test]
    fn without_limits_nothing_is_refused() {
        let mut account = Account::new(&Allowance::default());
        for _ in 0..1000 {
            assert_eq!(account.open(&Allowance::default(), s(0)), Ok(()));
            assert_eq!(account.prompt(&Allowance::default(), s(0), 1 << 20), Ok(()));
        }
    }
}
