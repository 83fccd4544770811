//! Workers that were in a forming that failed. One that dies whenever its group meets would end a group that serves
//! again and again, for it loads well; so none ends for such a one before it has rested, each time twice as long.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

const REST: Duration = Duration::from_secs(30);
const REST_MAX: Duration = Duration::from_secs(15 * 60);
/// Then nobody remembers.
const FORGOTTEN: Duration = Duration::from_secs(3600);

/// By name, for a worker that is started again is another to the pool. Cheap to clone; all clones are one list.
#[derive(Clone, Default)]
pub struct Rests(Arc<Mutex<BTreeMap<String, Rest>>>);

struct Rest {
    until: Instant,
    long: Duration,
}

impl Rests {
    /// Their group did not come to be: who is named in the complaint is often a sound one, so it is all of them.
    pub fn failed<'a>(&self, names: impl Iterator<Item = &'a str>) {
        let (now, mut all) = (Instant::now(), self.lock());
        all.retain(|_, rest| now < rest.until + FORGOTTEN);
        for name in names {
            let before = all.get(name).map(|rest| rest.long);
            let long = before.map_or(REST, |long| (2 * long).min(REST_MAX));
            all.insert(name.to_owned(), Rest { until: now + long, long });
        }
    }

    /// Their group stands.
    pub fn stand<'a>(&self, names: impl Iterator<Item = &'a str>) {
        let mut all = self.lock();
        names.for_each(|name| _ = all.remove(name));
    }

    pub fn has(&self, name: &str) -> bool {
        self.lock().get(name).is_some_and(|rest| Instant::now() < rest.until)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Rest>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::advance;

    #[tokio::test(start_paused = true)]
    async fn who_fails_again_rests_longer_until_a_group_stands() {
        let rests = Rests::default();
        for long in [REST, 2 * REST, 4 * REST] {
            rests.failed(["a", "b"].into_iter());
            assert!(rests.has("a") && rests.has("b") && !rests.has("c"));
            rests.stand(["b"].into_iter());
            advance(long - Duration::from_secs(1)).await;
            assert!(rests.has("a") && !rests.has("b"));
            advance(Duration::from_secs(1)).await;
            assert!(!rests.has("a"));
        }
        rests.stand(["a"].into_iter());
        rests.failed(["a"].into_iter());
        advance(REST).await;
        assert!(!rests.has("a"), "it begins anew");
    }
}
