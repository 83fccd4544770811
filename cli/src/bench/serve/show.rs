//! How far a run is, in one line of the terminal. indicatif draws nothing where there is none.

use flotilla_load::run::{Live, Seen};
use indicatif::{ProgressBar, ProgressStyle};
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

const EVERY: Duration = Duration::from_millis(500);

/// Shown until it is dropped.
pub struct Shown {
    bar: ProgressBar,
    task: JoinHandle<()>,
}

impl Shown {
    pub fn start(what: &'static str, live: Arc<Live>) -> Shown {
        let style =
            ProgressStyle::with_template("{prefix} {elapsed_precise} {msg}").expect("the template is valid");
        let bar = ProgressBar::new_spinner().with_style(style).with_prefix(what);
        let task = tokio::spawn(show(bar.clone(), live));
        Shown { bar, task }
    }
}

async fn show(bar: ProgressBar, live: Arc<Live>) {
    let (mut before, mut at) = (Seen::default(), Instant::now());
    loop {
        sleep(EVERY).await;
        let seen = live.seen();
        let rate = (seen.pieces - before.pieces) as f64 / at.elapsed().as_secs_f64();
        (before, at) = (seen, Instant::now());
        let (running, done, failed) = (seen.in_flight(), seen.done, seen.failed);
        bar.set_message(format!("{running} running, {done} done, {failed} failed, {rate:.0} tokens/s"));
        bar.tick();
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        self.task.abort();
        self.bar.finish_and_clear();
    }
}
