//! What became of one request. Times are microseconds since the run began.

use crate::stream::Violation;
use serde::Serialize;
use std::fmt;

#[derive(Clone, Debug, Default)]
pub struct Record {
    pub conversation: u64,
    /// From 0; more than one request belongs to a conversation of several turns.
    pub turn: usize,
    /// When it was to be sent. Every latency counts from here.
    pub due_us: u64,
    pub sent_us: u64,
    pub ended_us: u64,
    /// When each piece of the answer came: text, reasoning or a part of a call.
    pub pieces_us: Vec<u64>,
    pub prompt_tokens_wanted: Option<u64>,
    /// As the server says, like the next three; without its word they are not known.
    pub prompt_tokens: Option<u64>,
    pub cached_tokens: Option<u64>,
    pub completion_tokens: Option<u64>,
    /// Of these, tokens of reasoning that the server does not show: they came before the first piece.
    pub hidden_tokens: u64,
    /// Tokens after the first piece, up to the last, where the server counted as it went.
    pub tokens_between: Option<u64>,
    /// Answers to the one prompt; 0 is one.
    pub choices: u64,
    pub finish_reason: Option<String>,
    pub outcome: Outcome,
    pub violations: Vec<Violation>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Outcome {
    #[default]
    Done,
    Failed {
        kind: ErrorKind,
        words: String,
    },
    /// The run was ended before it was.
    Stopped,
}

/// How a request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ErrorKind {
    /// No connection, or none that held until an answer began.
    Connect,
    /// Any status but 200.
    Status(u16),
    /// Not done within the time that a request may take.
    Timeout,
    /// The connection broke in the middle of an answer.
    Cut,
    /// The stream or body ended properly, before the answer did.
    Unfinished,
    /// The server sent an error in the stream.
    InStream,
    /// 200, and no stream of events.
    NoStream,
    /// 200, and no answer in the body.
    NoAnswer,
    /// 200, and an error in the body.
    InAnswer,
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ErrorKind::Connect => write!(f, "connect"),
            ErrorKind::Status(status) => write!(f, "status_{status}"),
            ErrorKind::Timeout => write!(f, "timeout"),
            ErrorKind::Cut => write!(f, "cut"),
            ErrorKind::Unfinished => write!(f, "unfinished"),
            ErrorKind::InStream => write!(f, "error_in_stream"),
            ErrorKind::NoStream => write!(f, "no_stream"),
            ErrorKind::NoAnswer => write!(f, "no_answer"),
            ErrorKind::InAnswer => write!(f, "error_in_answer"),
        }
    }
}

impl Serialize for ErrorKind {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Record {
    pub fn is_done(&self) -> bool {
        self.outcome == Outcome::Done
    }

    pub fn failure(&self) -> Option<(ErrorKind, &str)> {
        match &self.outcome {
            Outcome::Failed { kind, words } => Some((*kind, words)),
            _ => None,
        }
    }

    /// How much later than due the client sent it.
    pub fn lag_us(&self) -> u64 {
        self.sent_us.saturating_sub(self.due_us)
    }

    /// Like every time here, of a request that came to its end only: a server that begins and breaks off is not quick.
    pub fn ttft_us(&self) -> Option<u64> {
        Some(self.pieces().first()?.saturating_sub(self.due_us))
    }

    pub fn e2e_us(&self) -> Option<u64> {
        self.is_done().then(|| self.ended_us.saturating_sub(self.due_us))
    }

    /// Between two tokens on average: from the first piece to the last, over the tokens that came meanwhile. Where the server
    /// does not count as it goes these are all but one, and too many if some came before the first piece and show nothing, as
    /// the header of a harmony message; of several choices those of one, on average. An answer in one piece says nothing.
    pub fn itl_us(&self) -> Option<u64> {
        let [first, .., last] = self.pieces() else { return None };
        let shown = self.tokens().saturating_sub(self.hidden_tokens) / self.choices.max(1);
        let between = self.tokens_between.or(shown.checked_sub(1)).filter(|between| *between > 0)?;
        Some((last - first) / between)
    }

    /// Between pieces, one after the other.
    pub fn gaps_us(&self) -> impl Iterator<Item = u64> {
        self.pieces().windows(2).map(|pair| pair[1] - pair[0])
    }

    fn pieces(&self) -> &[u64] {
        if self.is_done() { &self.pieces_us } else { &[] }
    }

    pub fn pause_us(&self) -> Option<u64> {
        self.gaps_us().max()
    }

    /// By the server's word, or else as many as there were pieces.
    pub fn tokens(&self) -> u64 {
        self.completion_tokens.unwrap_or(self.pieces_us.len() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Due at 1 s, sent half a second late, and answered by five tokens in three pieces.
    fn late() -> Record {
        Record {
            due_us: 1_000_000,
            sent_us: 1_500_000,
            pieces_us: vec![1_700_000, 1_800_000, 2_100_000],
            ended_us: 2_200_000,
            completion_tokens: Some(5),
            ..Record::default()
        }
    }

    #[test]
    fn times_count_from_when_it_was_due() {
        let record = late();
        assert_eq!(
            (record.lag_us(), record.ttft_us(), record.e2e_us()),
            (500_000, Some(700_000), Some(1_200_000))
        );
        assert_eq!((record.itl_us(), record.pause_us()), (Some(100_000), Some(300_000)));
    }

    #[test]
    fn what_failed_has_no_times() {
        let failed = Outcome::Failed { kind: ErrorKind::Cut, words: String::new() };
        let record = Record { outcome: failed, ..late() };
        assert_eq!((record.ttft_us(), record.e2e_us(), record.itl_us()), (None, None, None));
        assert_eq!((record.pause_us(), record.gaps_us().count()), (None, 0));
        let silent = Record { pieces_us: Vec::new(), completion_tokens: Some(1), ..late() };
        assert_eq!((silent.ttft_us(), silent.itl_us(), silent.tokens()), (None, None, 1));
    }

    #[test]
    fn tokens_that_were_not_shown_are_not_between_pieces() {
        let record = Record { completion_tokens: Some(503), hidden_tokens: 500, ..late() };
        assert_eq!(record.itl_us(), Some(200_000));
        let whole = Record { pieces_us: vec![1_700_000], completion_tokens: Some(200), ..late() };
        assert_eq!((whole.ttft_us(), whole.itl_us()), (Some(700_000), None));
    }

    /// Ten tokens in three pieces: the first five came before the first piece could be shown, the last with nothing to show.
    #[test]
    fn where_the_server_counts_as_it_goes_only_what_lies_between_counts() {
        let record = Record { completion_tokens: Some(10), tokens_between: Some(4), ..late() };
        assert_eq!(record.itl_us(), Some(100_000));
        let none = Record { tokens_between: Some(0), ..late() };
        assert_eq!(none.itl_us(), None, "one token in two pieces");
    }

    #[test]
    fn tokens_of_several_choices_came_beside_each_other() {
        let record = Record { completion_tokens: Some(20), choices: 4, ..late() };
        assert_eq!(record.itl_us(), Some(100_000));
    }

    #[test]
    fn without_usage_pieces_are_counted() {
        assert_eq!(Record { completion_tokens: None, ..late() }.tokens(), 3);
    }
}
