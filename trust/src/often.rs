//! What strangers can have written again and again is written so many times a minute, and counted beyond: a log that one
//! of them fills tells nothing of the others, nor of what came before.

use crate::audit::Act;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Of one address and one reason.
const LINES_MAX: u64 = 10;
pub const MINUTE: Duration = Duration::from_secs(60);
/// Counted apart; all others are counted together, under no address.
const APART_MAX: usize = 1024;
const OTHERS: &str = "others, for various reasons";

/// What was refused, to whom, and why.
pub type Refused = (Act, IpAddr, String);

#[derive(Default)]
pub struct Often(BTreeMap<Refused, Minute>);

struct Minute {
    began: Instant,
    lines: u64,
}

/// What is to be written.
#[derive(Debug, PartialEq, Eq)]
pub struct Words {
    pub this: bool,
    /// It is the last one for this minute.
    pub last: bool,
    /// How often those were refused further whose minute is over.
    pub more: Vec<(Refused, u64)>,
}

impl Often {
    pub const fn new() -> Often {
        Often(BTreeMap::new())
    }

    pub fn hear(&mut self, refused: Refused, now: Instant) -> Words {
        let more = self.over(now);
        let is_counted = self.0.contains_key(&refused) || self.0.len() < APART_MAX;
        let apart = if is_counted { refused } else { (refused.0, IpAddr::from([0; 4]), OTHERS.to_owned()) };
        let minute = self.0.entry(apart).or_insert(Minute { began: now, lines: 0 });
        minute.lines += 1;
        Words { this: minute.lines <= LINES_MAX, last: minute.lines == LINES_MAX, more }
    }

    /// Those whose minute is over, as far as something was left out. They are told once.
    pub fn over(&mut self, now: Instant) -> Vec<(Refused, u64)> {
        let is_over = |minute: &Minute| now.saturating_duration_since(minute.began) >= MINUTE;
        let mut more = Vec::new();
        self.0.retain(|refused, minute| {
            if is_over(minute) && minute.lines > LINES_MAX {
                more.push((refused.clone(), minute.lines - LINES_MAX));
            }
            !is_over(minute)
        });
        more
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(last: u8, why: &str) -> Refused {
        (Act::AdmitWorker, [10, 0, 0, last].into(), why.into())
    }

    #[test]
    fn who_is_refused_again_and_again_is_told_of_ten_times_a_minute() {
        let (mut often, now) = (Often::default(), Instant::now());
        let told: Vec<Words> = (0..100_000).map(|_| often.hear(refused(1, "token"), now)).collect();
        assert_eq!(told.iter().filter(|words| words.this).count(), 10);
        assert!(told[9].last && !told[8].last && told.iter().all(|words| words.more.is_empty()));
        // Neither another nor another reason is hidden by it.
        assert!(often.hear(refused(2, "token"), now).this && often.hear(refused(1, "late"), now).this);
        let later = often.hear(refused(1, "token"), now + MINUTE);
        assert!(later.this && !later.last);
        assert_eq!(later.more, [(refused(1, "token"), 99_990)]);
        assert_eq!(often.hear(refused(1, "token"), now + MINUTE).more, []);
        assert_eq!(often.over(now + 2 * MINUTE), []);
    }

    #[test]
    fn ever_new_addresses_and_reasons_take_neither_log_nor_memory() {
        let (mut often, now) = (Often::default(), Instant::now());
        let reasons = (0..2 * APART_MAX).map(|number| refused(1, &number.to_string()));
        let told = reasons.filter(|reason| often.hear(reason.clone(), now).this).count();
        assert_eq!((told as u64, often.0.len()), (APART_MAX as u64 + LINES_MAX, APART_MAX + 1));
        let nobody = (Act::AdmitWorker, IpAddr::from([0; 4]), OTHERS.to_owned());
        assert_eq!(often.over(now + MINUTE), [(nobody, APART_MAX as u64 - LINES_MAX)]);
    }
}
