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
use tokio::sync::watch;

/// Shows every change until it is dropped.
pub async fn show_progress<G>(
    mut seen: watch::Receiver<Progress>,
    groups: &FleetHandle<G>,
    board: &Board,
) -> Infallible {
    let mut bars = Bars::default();
    loop {
        let progress = seen.borrow_and_update().clone();
        groups.loading(line(&progress));
        if let Progress::Loading(ranks) = &progress {
            bars.show(ranks);
            board.loading(ranks);
        }
        if seen.changed().await.is_err() {
            return pending().await;
        }
    }
}

/// Progress in words.
fn line(progress: &Progress) -> String {
    match progress {
        Progress::Waiting { joined, wanted } => format!("{joined} of {wanted} workers have joined"),
        Progress::Ready => "the group is ready".into(),
        Progress::Loading(ranks) => {
            let sum = |part: fn(&Loading) -> u64| Bytes(ranks.iter().map(part).sum());
            format!("weights {} of {}", sum(|rank| rank.bytes_done), sum(|rank| rank.bytes_total))
        }
    }
}

/// One bar a rank, cleared when dropped. indicatif draws nothing where there is no terminal.
#[derive(Default)]
struct Bars {
    all: MultiProgress,
    ranks: Vec<ProgressBar>,
}

impl Bars {
    fn show(&mut self, ranks: &[Loading]) {
        while self.ranks.len() < ranks.len() {
            let style = "rank {msg} {bar:40} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
            let style = ProgressStyle::with_template(style).expect("the template is valid");
            let bar = ProgressBar::new(0).with_style(style).with_message(self.ranks.len().to_string());
            self.ranks.push(self.all.add(bar));
        }
        for (bar, loading) in self.ranks.iter().zip(ranks) {
            bar.set_length(loading.bytes_total);
            bar.set_position(loading.bytes_done);
        }
    }
}

impl Drop for Bars {
    fn drop(&mut self) {
        self.ranks.iter().for_each(ProgressBar::finish_and_clear);
    }
}
