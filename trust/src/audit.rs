//! The audit log: one line for each act that changes who is served, by whom, or with what. Always the same fields:
//! `act`, `who`, `outcome` and `what`; never a secret, and never a word of a prompt. Its target is `flotilla::audit`,
//! so that `FLOTILLA_LOG=warn,flotilla::audit=info` gives it alone.

use crate::door::origin;
use crate::often::{MINUTE, Often, Refused};
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Of all doors of this process: they have one log.
static OFTEN: Mutex<Often> = Mutex::new(Often::new());

/// What was done, or tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Act {
    /// `who`: the worker's name and address.
    AdmitWorker,
    WorkerLeft,
    /// `who`: the group's epoch.
    FormGroup,
    DissolveGroup,
    /// By order of `who`, the name of a key.
    DissolveReplica,
    /// `who`: the files.
    ReadKeys,
    ReadCertificates,
    /// `who`: why the process ends.
    Drain,
    /// `who`: for whom.
    MakeKey,
    MakeCertificate,
}

impl Act {
    const ALL: [Act; 10] = [
        Act::AdmitWorker,
        Act::WorkerLeft,
        Act::FormGroup,
        Act::DissolveGroup,
        Act::DissolveReplica,
        Act::ReadKeys,
        Act::ReadCertificates,
        Act::Drain,
        Act::MakeKey,
        Act::MakeCertificate,
    ];

    /// As the log has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Act::AdmitWorker => "admit-worker",
            Act::WorkerLeft => "worker-left",
            Act::FormGroup => "form-group",
            Act::DissolveGroup => "dissolve-group",
            Act::DissolveReplica => "dissolve-replica",
            Act::ReadKeys => "read-keys",
            Act::ReadCertificates => "read-certificates",
            Act::Drain => "drain",
            Act::MakeKey => "make-key",
            Act::MakeCertificate => "make-certificate",
        }
    }

    pub fn all() -> impl Iterator<Item = Act> {
        Act::ALL.into_iter()
    }
}

/// It was done. Strings are logged in quotes and escaped: what others say of themselves stays on its line.
pub fn done(act: Act, who: impl fmt::Display, what: impl fmt::Display) {
    let (act, who, what) = (act.as_str(), who.to_string(), what.to_string());
    tracing::info!(target: "flotilla::audit", act, who, outcome = "done", what, "audit");
}

/// It begins, and may take its time.
pub fn begun(act: Act, who: impl fmt::Display, what: impl fmt::Display) {
    let (act, who, what) = (act.as_str(), who.to_string(), what.to_string());
    tracing::info!(target: "flotilla::audit", act, who, outcome = "begun", what, "audit");
}

/// It was not to be, and why.
pub fn refused(act: Act, who: impl fmt::Display, what: impl fmt::Display) {
    let (act, who, what) = (act.as_str(), who.to_string(), what.to_string());
    tracing::warn!(target: "flotilla::audit", act, who, outcome = "refused", what, "audit");
}

/// The same of a stranger, who may come again at once: so many lines a minute of one address and reason.
pub fn refused_at_the_door(act: Act, from: SocketAddr, what: impl fmt::Display) {
    let what = what.to_string();
    let reason = (act, origin(from.ip()), what.chars().take(200).collect());
    let words = often().hear(reason, now());
    tell(words.more);
    match (words.this, words.last) {
        (true, true) => refused(act, from, format!("{what} (further ones are counted for a minute)")),
        (true, false) => refused(act, from, what),
        (false, _) => {}
    }
}

/// How often strangers were refused beyond these lines is told also where none comes any more. Never ends.
pub async fn tell_what_is_over() {
    loop {
        tokio::time::sleep(MINUTE).await;
        let more = often().over(now());
        tell(more);
    }
}

fn tell(more: Vec<(Refused, u64)>) {
    for ((act, address, what), more) in more {
        refused(act, address, format!("{more} times more within a minute: {what}"));
    }
}

fn often() -> MutexGuard<'static, Often> {
    OFTEN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// By the clock that is slept by.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// It went wrong, and things stay as they were.
pub fn failed(act: Act, who: impl fmt::Display, what: impl fmt::Display) {
    let (act, who, what) = (act.as_str(), who.to_string(), what.to_string());
    tracing::warn!(target: "flotilla::audit", act, who, outcome = "failed", what, "audit");
}
