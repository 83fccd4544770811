//! How far a forming group is: a bar for each worker in the terminal, a line for `/health`,
//! bytes for the board of the cluster.

use flotilla_coordinator::board::Board;
use flotilla_coordinator::driver::{FleetHandle, Nearness};
use flotilla_coordinator::fleet::Progress;
use flotilla_shared::units::Bytes;
use flotilla_shared::{Loading, Place};
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
    let mut said = Instant::now();
    loop {
        let progress = seen.borrow_and_update().clone();
        if let Progress::Loading(ranks) = &progress {
            bars.show(ranks);
            board.loading(ranks);
        }
        let line = line(&progress, board);
        if matches!(progress, Progress::Loading(_)) && said.elapsed() >= SAY_EVERY {
            said = Instant::now();
            info!("{line}");
        }
        groups.gets_on(nearness(&progress));
        groups.loading(line);
        if seen.changed().await.is_err() {
            return pending().await;
        }
    }
}

fn nearness(progress: &Progress) -> Nearness {
    match progress {
        Progress::Loading(ranks) => {
            let here = ranks.iter().map(|rank| rank.bytes_done).sum();
            let came = |rank: &Loading| rank.bytes_done.saturating_sub(rank.by_place.of(Place::Kept));
            Nearness { came: ranks.iter().map(came).sum(), here, is_linked: false }
        }
        Progress::FirstStep | Progress::Ready => Nearness { is_linked: true, ..Nearness::default() },
        Progress::Waiting { .. } => Nearness::default(),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_rank_held_before_did_not_come() {
        let (mut first, second) = (
            Loading { bytes_done: 40, bytes_total: 50, ..Loading::default() },
            Loading { bytes_done: 7, bytes_total: 50, ..Loading::default() },
        );
        first.by_place.add(Place::Kept, 30);
        first.by_place.add(Place::Cache, 10);
        let near = nearness(&Progress::Loading(vec![first, second]));
        assert_eq!(near, Nearness { came: 17, here: 47, is_linked: false });
        assert_eq!(nearness(&Progress::Waiting { joined: 1, wanted: 2 }), Nearness::default());
        assert!(nearness(&Progress::FirstStep).is_linked);
    }
}
