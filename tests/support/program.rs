//! The program under test, as its users run it: one process, its exit status, its words.

use std::ffi::OsStr;
use std::process::Stdio;
use std::time::Duration;
use tokio::process::Command;

/// How long a command may take that is not a server. Only a hang reaches it.
pub const PATIENCE: Duration = Duration::from_secs(300);

/// The user's settings.
const VARIABLES: [&str; 17] = [
    "FLOTILLA_LOG",
    "FLOTILLA_LOG_FORMAT",
    "FLOTILLA_JOIN_TOKEN",
    "FLOTILLA_COORDINATOR",
    "FLOTILLA_API_KEY",
    "RUST_LOG",
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_HEADERS",
    "OTEL_SERVICE_NAME",
    "OTEL_TRACES_SAMPLER",
    "OTEL_TRACES_SAMPLER_ARG",
    "OPENAI_API_KEY",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "NO_PROXY",
    "NO_COLOR",
];

/// What a command left behind.
#[derive(Debug)]
pub struct Ran {
    /// None: a signal ended it.
    pub status: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

/// `flotilla ARGS`, without the user's settings; it is killed when the value is dropped.
pub fn flotilla<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_flotilla"));
    command.args(args).stdin(Stdio::null()).kill_on_drop(true);
    for variable in VARIABLES {
        command.env_remove(variable);
        command.env_remove(variable.to_lowercase());
    }
    command
}

/// Runs `flotilla ARGS` to its end.
pub async fn run<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Ran {
    let mut command = flotilla(args);
    let output = tokio::time::timeout(PATIENCE, command.output()).await;
    let output = output.unwrap_or_else(|_| panic!("{command:?} has not ended after {PATIENCE:?}"));
    let output = output.expect("the program can be started");
    Ran {
        status: output.status.code(),
        stdout: String::from_utf8(output.stdout).expect("stdout is UTF-8"),
        stderr: String::from_utf8(output.stderr).expect("stderr is UTF-8"),
    }
}

impl Ran {
    /// It ended with `status`, and without a panic.
    #[track_caller]
    pub fn expect_status(&self, status: i32) -> &Self {
        assert_eq!(self.status, Some(status), "{self:#?}");
        assert!(!self.stderr.contains("panicked"), "{}", self.stderr);
        self
    }

    /// It failed with all of `words` on stderr.
    #[track_caller]
    pub fn expect_refusal(&self, status: i32, words: &[&str]) -> &Self {
        self.expect_status(status);
        for word in words {
            assert!(self.stderr.contains(word), "{word:?} is not in: {}", self.stderr);
        }
        self
    }
}
