//! How far a forming group is: a bar for each worker in the terminal, a line for `/health`,
//! bytes for the board of the cluster.

use flotilla_coordinator::board::Board;
use flotilla_coordinator::driver::FleetHandle;
use flotilla_coordinator::fleet::Progress;
use flotilla_shared::Loading;
use flotilla_shared::units::Bytes;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use std::convert::Infallible;
use std::future::pending;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tracing::info;

/// A line of the log so often, for those who see no bars.
const SAY_EVERY: Duration = Duration::from_secs(10);

/// Shows every change until it is dropped.
pub async fn show_progress<G>(
    mut seen: watch::Receiver<Progress>,
    groups: &FleetHandle<G>,
    board: &Board,
) -> Infallible {
    let mut bars = Bars::default();
    let (mut said, mut bytes_before) = (Instant::now(), 0);
    loop {
        let progress = seen.borrow_and_update().clone();
        if let Progress::Loading(ranks) = &progress {
            bars.show(ranks);
            board.loading(ranks);
            let bytes: u64 = ranks.iter().map(|rank| rank.bytes_done).sum();
            if bytes > std::mem::replace(&mut bytes_before, bytes) {
                groups.gets_on();
            }
        }
        let line = line(&progress, board);
        if matches!(progress, Progress::Loading(_)) && said.elapsed() >= SAY_EVERY {
            said = Instant::now();
            info!("{line}");
        }
        if progress == Progress::FirstStep {
            groups.gets_on();
        }
        groups.loading(line);
        if seen.changed().await.is_err() {
            return pending().await;
        }
    }
}

/// Progress in words.
fn line(progress: &Progress, board: &Board) -> String {
    match progress {
        Progress::Waiting { joined, wanted } => format!("{joined} of {wanted} workers have joined"),
        Progress::FirstStep => "the group carries out its first step".into(),
        Progress::Ready => "the group is ready".into(),
        Progress::Loading(_) => {
            let (pace, now) = (board.pace().unwrap_or_default(), board.uptime());
            let mut line = format!("weights {} of {}", Bytes(pace.bytes_done()), Bytes(pace.bytes_total()));
            if let (Some(rate), Some(seconds)) = (pace.bytes_per_second(now), pace.seconds_left(now)) {
                line.push_str(&format!(", {}/s, {} s left", Bytes(rate as u64), seconds.ceil()));
            }
            line
        }
    }
}

/// One bar a rank, and one for all of them, cleared when dropped. indicatif draws nothing where there is no terminal.
#[derive(Default)]
struct Bars {
    all: MultiProgress,
    ranks: Vec<ProgressBar>,
    sum: Option<ProgressBar>,
}

impl Bars {
    fn show(&mut self, ranks: &[Loading]) {
        while self.ranks.len() < ranks.len() {
            let bar = self.bar(format!("rank {}", self.ranks.len()));
            self.ranks.push(bar);
        }
        if self.sum.is_none() && ranks.len() > 1 {
            self.sum = Some(self.bar("all".into()));
        }
        self.ranks.iter().zip(ranks).for_each(|(bar, loading)| set(bar, *loading));
        if let Some(bar) = &self.sum {
            let sum = |part: fn(&Loading) -> u64| ranks.iter().map(part).sum();
            let (bytes_done, bytes_total) = (sum(|rank| rank.bytes_done), sum(|rank| rank.bytes_total));
            set(bar, Loading { bytes_done, bytes_total, ..Loading::default() });
        }
    }

    fn bar(&self, name: String) -> ProgressBar {
        let style = "{msg:8} {bar:40} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
        let style = ProgressStyle::with_template(style).expect("the template is valid");
        self.all.add(ProgressBar::new(0).with_style(style).with_message(name))
    }
}

fn set(bar: &ProgressBar, loading: Loading) {
    bar.set_length(loading.bytes_total);
    bar.set_position(loading.bytes_done);
}

impl Drop for Bars {
    fn drop(&mut self) {
        self.ranks.iter().chain(&self.sum).for_each(ProgressBar::finish_and_clear);
    }
}
