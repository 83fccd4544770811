//! Service levels: what a request must keep to count as good.

use crate::record::Record;
use crate::span;
use serde::Serialize;
use std::fmt;
use std::str::FromStr;

/// Each in microseconds, where it is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Goal {
    /// To the first token, from when the request was due.
    pub ttft_us: Option<u64>,
    /// Between tokens, on the request's average.
    pub itl_us: Option<u64>,
    /// The longest time without a token, after the first.
    pub pause_us: Option<u64>,
    /// To the end.
    pub e2e_us: Option<u64>,
}

impl Goal {
    /// Whether a request came to its end within it. One that failed never did, nor one without a piece where a level of
    /// pieces is asked for; where one piece was all, there is nothing between.
    pub fn holds(&self, record: &Record) -> bool {
        let within = |limit: Option<u64>, found: Option<u64>| {
            limit.is_none_or(|limit| found.is_none_or(|found| found <= limit))
        };
        record.is_done()
            && !(self.is_of_streams() && record.pieces_us.is_empty())
            && within(self.ttft_us, record.ttft_us())
            && within(self.itl_us, record.itl_us())
            && within(self.pause_us, record.pause_us())
            && within(self.e2e_us, record.e2e_us())
    }

    /// Whether it asks for what only streams have.
    pub fn is_of_streams(&self) -> bool {
        self.ttft_us.or(self.itl_us).or(self.pause_us).is_some()
    }
}

impl FromStr for Goal {
    type Err = String;

    fn from_str(text: &str) -> Result<Goal, String> {
        let mut goal = Goal::default();
        for part in text.split(',') {
            let wrong = || {
                format!(
                    "{part:?} is no service level\nhint: ttft=500ms, itl=50ms, pause=1s, e2e=10s, with commas between"
                )
            };
            let (name, limit) = part.split_once('=').ok_or_else(wrong)?;
            let place = match name.trim() {
                "ttft" => &mut goal.ttft_us,
                // vLLM's name of the same.
                "itl" | "tpot" => &mut goal.itl_us,
                "pause" => &mut goal.pause_us,
                "e2e" => &mut goal.e2e_us,
                _ => return Err(wrong()),
            };
            *place = Some(span::us(span::parse(limit.trim())?));
        }
        Ok(goal)
    }
}

impl fmt::Display for Goal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let levels =
            [("ttft", self.ttft_us), ("itl", self.itl_us), ("pause", self.pause_us), ("e2e", self.e2e_us)];
        let levels =
            levels.iter().filter_map(|(name, us)| us.map(|us| format!("{name}={}ms", us as f64 / 1e3)));
        write!(f, "{}", levels.collect::<Vec<_>>().join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{ErrorKind, Outcome};

    #[test]
    fn a_goal_is_held_at_its_limits_and_not_beyond() {
        let record = Record {
            pieces_us: vec![500_000, 540_000, 600_000],
            ended_us: 610_000,
            completion_tokens: Some(3),
            ..Record::default()
        };
        let holds = |goal: &str, record: &Record| goal.parse::<Goal>().unwrap().holds(record);
        assert!(holds("ttft=500ms,itl=50ms,pause=60ms,e2e=610ms", &record));
        for goal in ["ttft=499ms", "itl=49ms", "tpot=49ms", "pause=59ms", "e2e=609ms", "ttft=1s,e2e=609ms"] {
            assert!(!holds(goal, &record), "{goal}");
        }
        let empty = Record { pieces_us: Vec::new(), ..record.clone() };
        assert!(holds("e2e=1s", &empty) && !holds("ttft=1s", &empty) && !holds("itl=1s,e2e=1s", &empty));
        let failed = Outcome::Failed { kind: ErrorKind::Cut, words: String::new() };
        assert!(!holds("ttft=1s", &Record { outcome: failed, ..record }));
    }

    #[test]
    fn what_is_no_goal_is_refused() {
        for wrong in ["", "ttft", "ttft=5", "speed=3ms", "ttft=1s;itl=2s"] {
            assert!(wrong.parse::<Goal>().is_err(), "{wrong}");
        }
        assert_eq!("e2e=10s, ttft=0.5s".parse::<Goal>().unwrap().to_string(), "ttft=500ms,e2e=10000ms");
    }
}
