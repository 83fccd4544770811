//! Work on prompts that takes a while: off the threads that serve streams, and at most one for each core at
//! a time, so that long prompts delay each other and nothing else.

use std::sync::Arc;

use tokio::sync::Semaphore;

use super::Api;
use super::error::ApiError;

pub struct Desks(Semaphore);

impl Default for Desks {
    fn default() -> Desks {
        Desks(Semaphore::new(std::thread::available_parallelism().map_or(1, usize::from)))
    }
}

pub async fn at_desk<T: Send + 'static>(
    api: &Arc<Api>,
    work: impl FnOnce(&Api) -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let _desk = api.desks.0.acquire().await.expect("desks are never closed");
    let api = Arc::clone(api);
    // A client that leaves meanwhile frees the desk a little early: what has begun is finished.
    let done = tokio::task::spawn_blocking(move || work(&api)).await;
    done.map_err(|error| ApiError::Internal(error.to_string()))?
}
