//! Worker processes of this machine: this binary again, with the coordinator's address and token.

use crate::cache::CacheArgs;
use crate::device::{CpuArgs, DeviceChoice, SumArgs};
use crate::log;
use anyhow::{Context, Result, anyhow};
use flotilla_coordinator::fleet::{After, Fleet, Formation, Progress, RemoteGroup};
use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, watch};
use tracing::warn;

/// Children that end with this value.
pub struct LocalWorkers {
    settings: WorkerSettings,
    children: Vec<Child>,
}

/// Between the end of a worker and the start of the next in its place: twice as long each time, while they die young.
const RESTART_PAUSE: Duration = Duration::from_millis(300);
const RESTART_PAUSE_MAX: Duration = Duration::from_secs(30);
/// Who lived so long had a reason of its own to die.
const LIVED: Duration = Duration::from_secs(60);

/// How each worker is started.
pub struct WorkerSettings {
    pub coordinator: SocketAddr,
    pub token: String,
    pub threads: usize,
    /// Each one's limit, on whatever device [default: of what is free there].
    pub memory_bytes: Option<u64>,
    /// The limit of those that compute on processors where none is told: they share one memory.
    pub memory_shared: Option<u64>,
    /// In turn; at least one.
    pub devices: Vec<DeviceChoice>,
    pub cpu: CpuArgs,
    pub sums: SumArgs,
    pub cache: CacheArgs,
    /// By worker: where it listens for the others, and where they find it. Anywhere on loopback, if it is empty.
    pub doors: Vec<(SocketAddr, SocketAddr)>,
}

/// The join token travels by environment: a command line can be read by every user of the machine.
pub const TOKEN_VARIABLE: &str = "FLOTILLA_JOIN_TOKEN";

impl LocalWorkers {
    /// Starts as many as `formation` has ranks, and forms them into a group that the caller drives by hand, at epoch 1.
    /// `settings`: for the coordinator's address and its join token.
    pub async fn form(
        formation: &Formation,
        settings: impl FnOnce(SocketAddr, String) -> WorkerSettings,
    ) -> Result<(RemoteGroup, LocalWorkers)> {
        let mut local = LocalFleet::start(formation.ranks, settings).await?;
        let group = local.form(formation).await?;
        Ok((group, local.workers))
    }

    pub fn spawn(count: usize, settings: WorkerSettings) -> Result<Self> {
        let children = (0..count).map(|index| settings.spawn(index)).collect::<Result<_>>()?;
        Ok(LocalWorkers { settings, children })
    }

    /// Resolves when a worker has ended, which none should; says which, and how.
    pub async fn first_death(&mut self) -> (usize, anyhow::Error) {
        self.first_death_among(|_| true).await
    }

    /// Of those that still count.
    async fn first_death_among(&mut self, counts: impl Fn(usize) -> bool) -> (usize, anyhow::Error) {
        let counted = self.children.iter_mut().enumerate().filter(|(index, _)| counts(*index));
        let waits: Vec<_> = counted
            .map(|(index, child)| {
                Box::pin(async move {
                    let error = match child.wait().await {
                        Ok(status) => {
                            anyhow!("worker {index} ended: {status}\nhint: its own message is above")
                        }
                        Err(error) => anyhow!("worker {index} cannot be waited for: {error}"),
                    };
                    (index, error)
                })
            })
            .collect();
        if waits.is_empty() {
            return std::future::pending().await;
        }
        futures::future::select_all(waits).await.0
    }

    /// Starts every worker again that ends while `may_restart`; resolves with the end of one that may not.
    /// A worker that `lost` names is ended first: it hangs, if it still runs.
    pub async fn supervise(
        &mut self,
        may_restart: &AtomicBool,
        mut lost: mpsc::UnboundedReceiver<String>,
    ) -> anyhow::Error {
        let mut young = vec![Young::default(); self.children.len()];
        loop {
            // Nobody waits for another's pause.
            let due = young.iter().enumerate().filter_map(|(index, young)| Some((young.due?, index))).min();
            let index = tokio::select! {
                (index, error) = self.first_death_among(|index| young[index].due.is_none()) => {
                    if !may_restart.load(Ordering::Relaxed) {
                        return error;
                    }
                    let pause = young[index].pause();
                    warn!(worker = index, "a worker ended, starting another in its place in {pause:?}: {error:#}");
                    young[index].due = Some(Instant::now() + pause);
                    continue;
                }
                Some(lost) = lost.recv() => {
                    self.end(&lost, None);
                    continue;
                }
                index = passed(due) => index,
            };
            // What was said of its name meanwhile was said of the one that has ended.
            while let Ok(lost) = lost.try_recv() {
                self.end(&lost, Some(index));
            }
            match self.settings.spawn(index) {
                Ok(child) => {
                    self.children[index] = child;
                    (young[index].began, young[index].due) = (Some(Instant::now()), None);
                }
                Err(error) => return error,
            }
        }
    }

    fn end(&mut self, lost: &str, unless: Option<usize>) {
        let index = (0..self.children.len()).find(|index| name(*index) == lost);
        if let Some(index) = index.filter(|index| Some(*index) != unless) {
            // A child that cannot be killed has ended already.
            let _ = self.children[index].start_kill();
        }
    }

    /// Process ids, in rank order.
    pub fn ids(&self) -> Vec<u32> {
        self.children.iter().filter_map(Child::id).collect()
    }
}

/// How often in a row the workers of a place died young.
#[derive(Clone, Copy, Default)]
struct Young {
    deaths: u32,
    /// When the last one began that was started in another's place.
    began: Option<Instant>,
    /// When the next one is to be started.
    due: Option<Instant>,
}

/// Whose time has come.
async fn passed(due: Option<(Instant, usize)>) -> usize {
    match due {
        Some((at, index)) => {
            tokio::time::sleep_until(at.into()).await;
            index
        }
        None => std::future::pending().await,
    }
}

impl Young {
    /// After a death: how long to wait before the next is started.
    fn pause(&mut self) -> Duration {
        let died_young = self.began.is_some_and(|began| began.elapsed() < LIVED);
        self.deaths = if died_young { self.deaths + 1 } else { 0 };
        (RESTART_PAUSE * 2u32.pow(self.deaths.min(10))).min(RESTART_PAUSE_MAX)
    }
}

/// Workers that are formed into one group after another, each driven by hand.
pub struct LocalFleet {
    fleet: Fleet,
    workers: LocalWorkers,
}

impl LocalFleet {
    /// `settings`: for the coordinator's address and its join token.
    pub async fn start(
        count: usize,
        settings: impl FnOnce(SocketAddr, String) -> WorkerSettings,
    ) -> Result<LocalFleet> {
        let token = random_token();
        let fleet = Fleet::listen(([127, 0, 0, 1], 0).into(), &token, None, None).await?;
        let workers = LocalWorkers::spawn(count, settings(fleet.address(), token))?;
        Ok(LocalFleet { fleet, workers })
    }

    /// Of all workers; the group before is dropped by then.
    pub async fn form(&mut self, formation: &Formation) -> Result<RemoteGroup> {
        let (progress, _) = watch::channel(Progress::Waiting { joined: 0, wanted: formation.ranks });
        let epoch = self.fleet.next_epoch();
        tokio::select! {
            group = self.fleet.form(epoch, formation, After::Nothing, &progress) => Ok(group?),
            (_, died) = self.workers.first_death() => Err(died),
        }
    }
}

impl WorkerSettings {
    fn spawn(&self, index: usize) -> Result<Child> {
        // The program that runs, also where its file was replaced by a newer one meanwhile.
        let running = Path::new("/proc/self/exe");
        let program = if running.exists() { Ok(running.to_owned()) } else { std::env::current_exe() };
        let program = program.context("cannot find this program's own file")?;
        let mut command = Command::new(program);
        command.arg("worker").args(self.to_args(index));
        command.env(TOKEN_VARIABLE, &self.token).stdin(Stdio::null()).stdout(Stdio::null());
        command.env(log::FORMAT_VARIABLE, log::format().as_str());
        if std::env::var_os(log::VARIABLE).is_none_or(|told| told.is_empty()) {
            command.env(log::VARIABLE, crate::QUIET);
        }
        // A group of its own: Ctrl-C is for this process, which lets answers under way end first.
        command.process_group(0).kill_on_drop(true).spawn().context("cannot start a worker process")
    }

    /// The command line of worker `index`.
    fn to_args(&self, index: usize) -> Vec<String> {
        let device = self.devices[index % self.devices.len()];
        let mut flags = vec![
            ("--coordinator", format!("http://{}", self.coordinator)),
            // It ends with this process.
            ("--rejoin-timeout", "0".into()),
            ("--name", name(index)),
            ("--threads", self.threads.to_string()),
            ("--device", device.to_string()),
        ];
        if let Some((listen, found)) = self.doors.get(index) {
            flags.extend([
                ("--collective-listen", listen.to_string()),
                ("--advertise-host", found.to_string()),
            ]);
        }
        if device == DeviceChoice::Cpu {
            // All share one memory, and measure it at once: they would only find how the system takes turns.
            flags.push(("--bandwidth", "1".into()));
        }
        let shared = self.memory_shared.filter(|_| device == DeviceChoice::Cpu);
        flags.extend(self.memory_bytes.or(shared).map(|bytes| ("--memory-bytes", bytes.to_string())));
        let flags = flags.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]);
        let choices = self.cpu.to_args(index, self.threads).into_iter().chain(self.sums.to_args());
        flags.chain(choices).chain(self.cache.to_args()).collect()
    }
}

fn name(index: usize) -> String {
    format!("worker-{index:02}")
}

/// A join token for this run alone.
pub fn random_token() -> String {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).expect("the system gives random bytes");
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// On cards it was dropped: who shares a card with a desktop could not limit it.
    #[test]
    fn a_limit_of_memory_is_handed_on_whatever_computes() {
        let mut settings = WorkerSettings {
            coordinator: ([127, 0, 0, 1], 7070).into(),
            token: "t".into(),
            threads: 1,
            memory_bytes: Some(200_000),
            memory_shared: Some(300_000),
            devices: vec![DeviceChoice::Cpu, DeviceChoice::Cuda(0)],
            cpu: CpuArgs::default(),
            sums: SumArgs::default(),
            cache: CacheArgs::default(),
            doors: Vec::new(),
        };
        for index in [0, 1] {
            let args = settings.to_args(index).join(" ");
            assert!(args.contains(" --memory-bytes 200000 "), "{args}");
        }
        // Without one a card has its own, and processors have their parts of what they share.
        settings.memory_bytes = None;
        let limit = |index| settings.to_args(index).join(" ").contains(" --memory-bytes 300000 ");
        assert!(limit(0) && !settings.to_args(1).contains(&"--memory-bytes".into()));
        assert_eq!(
            [0, 1].map(|index| settings.to_args(index).join(" ").contains("--bandwidth")),
            [true, false]
        );
    }

    #[test]
    fn who_dies_young_is_started_later_and_later() {
        let mut young = Young::default();
        assert_eq!(young.pause(), RESTART_PAUSE);
        young.began = Some(Instant::now());
        let pauses: Vec<u128> = (0..9).map(|_| young.pause().as_millis()).collect();
        assert_eq!(pauses, [600, 1200, 2400, 4800, 9600, 19200, 30000, 30000, 30000]);
        young.began = Instant::now().checked_sub(LIVED);
        assert_eq!(young.pause(), RESTART_PAUSE);
    }
}
