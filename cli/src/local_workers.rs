//! Worker processes of this machine: this binary again, with the coordinator's address and token.

use anyhow::{Context, Result, anyhow};
use std::net::SocketAddr;
use std::process::Stdio;
use tokio::process::{Child, Command};

/// Children that end with this value.
pub struct LocalWorkers {
    children: Vec<Child>,
}

/// The join token travels by environment: a command line can be read by every user of the machine.
pub const TOKEN_VARIABLE: &str = "FLOTILLA_JOIN_TOKEN";

impl LocalWorkers {
    /// Starts `count` workers; `memory_bytes` is each one's limit.
    pub fn spawn(
        count: usize,
        coordinator: &SocketAddr,
        token: &str,
        threads: usize,
        memory_bytes: Option<u64>,
    ) -> Result<Self> {
        let program = std::env::current_exe().context("cannot find this program's own file")?;
        let mut children = Vec::new();
        for index in 0..count {
            let mut command = Command::new(&program);
            command.args(["worker", "--coordinator", &format!("http://{coordinator}")]);
            command.args(["--name", &format!("worker-{index:02}"), "--threads", &threads.to_string()]);
            if let Some(bytes) = memory_bytes {
                command.args(["--memory-bytes", &bytes.to_string()]);
            }
            command.env(TOKEN_VARIABLE, token).stdin(Stdio::null()).stdout(Stdio::null()).kill_on_drop(true);
            // A terminal's Ctrl-C goes to the whole process group; workers must outlive the answers under way.
            command.process_group(0);
            children.push(command.spawn().context("cannot start a worker process")?);
        }
        Ok(LocalWorkers { children })
    }

    /// Resolves when a worker has ended, which none should.
    pub async fn first_death(&mut self) -> anyhow::Error {
        let waits = self.children.iter_mut().enumerate().map(|(index, child)| {
            Box::pin(async move {
                match child.wait().await {
                    Ok(status) => anyhow!("worker {index} ended: {status}\nhint: its own message is above"),
                    Err(error) => anyhow!("worker {index} cannot be waited for: {error}"),
                }
            })
        });
        futures::future::select_all(waits).await.0
    }

    /// Process ids, in rank order.
    pub fn ids(&self) -> Vec<u32> {
        self.children.iter().filter_map(Child::id).collect()
    }
}

/// A join token for this run alone.
pub fn random_token() -> String {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).expect("the system gives random bytes");
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
