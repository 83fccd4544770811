//! How far a thread is that compiles a form, and who waits for it, for so long and no longer. What is compiled,
//! and how, is not known here.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::timeout;

use super::form::{Complaint, Fault, FormError};
use super::turn::Pattern;

type Made = Result<Pattern, FormError>;

/// The thread's end.
pub(super) struct Progress {
    /// Of the parameter whose grammar is compiled.
    path: Arc<Mutex<String>>,
    started: Mutex<Option<oneshot::Sender<()>>>,
    done: oneshot::Sender<Made>,
}

/// The request's end.
pub(super) struct Watch {
    path: Arc<Mutex<String>>,
    started: oneshot::Receiver<()>,
    done: oneshot::Receiver<Made>,
}

pub(super) fn watched() -> (Progress, Watch) {
    let path = Arc::new(Mutex::default());
    let (start, started) = oneshot::channel();
    let (done, made) = oneshot::channel();
    let progress = Progress { path: Arc::clone(&path), started: Mutex::new(Some(start)), done };
    (progress, Watch { path, started, done: made })
}

/// There was no place among those that are compiled.
pub(super) fn busy() -> FormError {
    let what = "the server is compiling as many forms of answers as it has room for".to_owned();
    FormError { path: String::new(), fault: Fault::Busy, what }
}

impl Progress {
    /// Before each grammar of the form, from the first of which on it is on the form's time; an error when nobody
    /// waits any more.
    pub fn begin(&self, path: &str) -> Result<(), FormError> {
        path.clone_into(&mut self.path.lock().unwrap_or_else(PoisonError::into_inner));
        self.start();
        if self.is_awaited() { Ok(()) } else { Err(Complaint::given_up().of(path)) }
    }

    pub fn is_awaited(&self) -> bool {
        !self.done.is_closed()
    }

    fn start(&self) {
        let started = self.started.lock().unwrap_or_else(PoisonError::into_inner).take();
        // The request may be gone by now, here as below.
        started.into_iter().for_each(|started| _ = started.send(()));
    }

    pub fn done(self, made: Made) {
        self.start();
        let _ = self.done.send(made);
    }
}

impl Watch {
    pub async fn pattern(self, time_max: Duration) -> Made {
        let unmade = || Err(FormError::unmade("its thread ended".to_owned()));
        if self.started.await.is_err() {
            return unmade();
        }
        match timeout(time_max, self.done).await {
            Ok(made) => made.unwrap_or_else(|_| unmade()),
            Err(_) => {
                let path = self.path.lock().unwrap_or_else(PoisonError::into_inner);
                let what = format!("it was not compiled within {} s", time_max.as_secs_f64());
                Err(Complaint::too_complex(what).of(&path))
            }
        }
    }
}
