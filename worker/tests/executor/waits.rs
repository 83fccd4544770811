//! When a step waits for other ranks: what it can do before, it does before.

use crate::echo::{Echo, executor_of, plan, work};
use flotilla_engine::collective::{AbortHandle, AllReduce, Collective, CollectiveError, Solo};
use flotilla_shared::{Rank, Sampling};
use std::sync::{Arc, Mutex};

/// A rank alone that says when it waits.
struct Heard(Solo, Arc<Mutex<Vec<String>>>);

impl AllReduce<[f32]> for Heard {
    fn all_reduce(&mut self, x: &mut [f32]) -> Result<(), CollectiveError> {
        self.0.all_reduce(x)
    }

    fn settle(&mut self) -> Result<(), CollectiveError> {
        self.1.lock().unwrap().push("waited".into());
        Ok(())
    }
}

impl Collective for Heard {
    fn rank(&self) -> Rank {
        self.0.rank()
    }

    fn size(&self) -> usize {
        self.0.size()
    }

    fn all_gather(&mut self, mine: &[u8], out: &mut Vec<u8>) -> Result<(), CollectiveError> {
        self.0.all_gather(mine, out)
    }

    fn barrier(&mut self) -> Result<(), CollectiveError> {
        self.0.barrier()
    }

    fn end(&mut self, error: CollectiveError) {
        self.0.end(error);
    }

    fn abort_handle(&self) -> AbortHandle {
        self.0.abort_handle()
    }
}

/// Of two rows one is cut, which the host looks at once all is there.
#[test]
fn a_card_is_asked_for_tokens_before_it_is_waited_for() {
    let echo = Echo::default();
    let heard = Arc::clone(&echo.heard);
    let mut executor = executor_of(echo, Heard(Solo::new(), Arc::clone(&heard)));
    let mut first = plan(1, &[7, 9], vec![work(7, 0, &[1, 2, 3], &[0]), work(9, 0, &[5], &[1])]);
    first.admit[0].sampling = Sampling { temperature: 1.0, top_p: 0.5, ..Sampling::GREEDY };
    first.admit[1].sampling = Sampling::GREEDY;
    assert_eq!(executor.execute(&first).unwrap().sampled.len(), 2);
    assert_eq!(*heard.lock().unwrap(), ["1 rows begun", "waited"]);
}
