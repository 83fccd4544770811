//! The first process of a container has no default action for signals: the system drops those that it does not listen to.
//! What it does while nobody listens yet, such as opening a model, could not be ended otherwise than by force.

use anyhow::{Context, Result};
use std::process;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use tokio::signal::unix::{SignalKind, signal};

/// As a shell says of a program that these signals ended.
const INTERRUPTED: i32 = 130;
const TERMINATED: i32 = 143;

/// Whether somebody listens who knows better how to end.
static IS_HEARD: AtomicBool = AtomicBool::new(false);

/// From now on signals end this process, if it is the first one, until [`others_listen`].
pub fn guard() -> Result<()> {
    if process::id() != 1 {
        return Ok(());
    }
    let (begun, begins) = mpsc::channel();
    thread::spawn(move || listen(&begun));
    begins.recv().context("signals are not listened to")?.context("signals cannot be listened to")
}

/// Whoever calls it has begun to listen.
pub fn others_listen() {
    IS_HEARD.store(true, Ordering::SeqCst);
}

fn listen(begun: &mpsc::Sender<std::io::Result<()>>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build();
    let listens = runtime.and_then(|runtime| {
        let signals = {
            let _entered = runtime.enter();
            signal(SignalKind::terminate())
                .and_then(|terminate| signal(SignalKind::interrupt()).map(|interrupt| (terminate, interrupt)))
        };
        signals.map(|signals| (runtime, signals))
    });
    let (runtime, (mut terminate, mut interrupt)) = match listens {
        Ok(listens) => listens,
        Err(error) => return drop(begun.send(Err(error))),
    };
    let _ = begun.send(Ok(()));
    runtime.block_on(async {
        while !IS_HEARD.load(Ordering::SeqCst) {
            let status = tokio::select! {
                _ = terminate.recv() => TERMINATED,
                _ = interrupt.recv() => INTERRUPTED,
            };
            if !IS_HEARD.load(Ordering::SeqCst) {
                process::exit(status);
            }
        }
    });
}
