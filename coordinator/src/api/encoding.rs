//! Work on bodies and prompts that takes a while: off the threads that serve streams, and at most so many at a time,
//! so that long prompts delay each other and nothing else. What has begun keeps its desk until it is done, and
//! whatever it holds, though its client may leave meanwhile: nothing stops a thread.

use std::sync::Arc;

use tokio::sync::Semaphore;

use super::Api;
use super::body::SHORT_BYTES_MAX;
use super::error::ApiError;

/// At desks for long ones: the JSON of one may take more than a hundred megabytes (`body.rs`).
const LONG_MAX: usize = 4;

pub struct Desks {
    /// One for each core, and for work that is done in some milliseconds.
    short: Arc<Semaphore>,
    long: Arc<Semaphore>,
}

impl Default for Desks {
    fn default() -> Desks {
        Desks::of(std::thread::available_parallelism().map_or(1, usize::from))
    }
}

impl Desks {
    fn of(cores: usize) -> Desks {
        Desks { short: Arc::new(Semaphore::new(cores)), long: Arc::new(Semaphore::new(cores.min(LONG_MAX))) }
    }

    /// `bytes`: how much there is to work on.
    async fn work<T: Send + 'static>(
        &self,
        bytes: usize,
        work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let desks = if bytes <= SHORT_BYTES_MAX { &self.short } else { &self.long };
        let desk = Arc::clone(desks).acquire_owned().await.expect("desks are never closed");
        let done = tokio::task::spawn_blocking(move || {
            let _desk = desk;
            work()
        });
        done.await.map_err(|error| ApiError::Internal(error.to_string()))?
    }
}

/// `work` takes the room of its body with it.
pub async fn at_desk<T: Send + 'static>(
    api: &Arc<Api>,
    bytes: usize,
    work: impl FnOnce(&Api) -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let at_work = Arc::clone(api);
    api.desks.work(bytes, move || work(&at_work)).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    const LONG: usize = SHORT_BYTES_MAX + 1;

    /// Its client leaves while the work goes on: the desk is taken until it is done, and so is what the work holds.
    #[tokio::test]
    async fn who_leaves_frees_nothing_before_the_work_is_done() {
        let desks = Arc::new(Desks::of(1));
        let (began, has_begun) = tokio::sync::oneshot::channel();
        let (end, ends) = channel::<()>();
        let room = Arc::new(());
        let (desk, held) = (Arc::clone(&desks), Arc::clone(&room));
        let client = tokio::spawn(async move {
            let work = move || {
                let _ = began.send(());
                let _ = ends.recv();
                drop(held);
                Ok(())
            };
            desk.work(LONG, work).await
        });
        has_begun.await.unwrap();
        client.abort();
        assert!(client.await.unwrap_err().is_cancelled());
        assert_eq!((desks.long.available_permits(), Arc::strong_count(&room)), (0, 2));
        assert!(desks.work(LONG - 1, || Ok(())).await.is_ok(), "short ones have desks of their own");
        end.send(()).unwrap();
        assert!(desks.work(LONG, || Ok(())).await.is_ok());
        assert_eq!(Arc::strong_count(&room), 1);
    }
}
