//! Rooms for logits that are not the model's: as many as threads work at once, kept from step to step, because
//! memory that is new costs more than what is written into it. Which thread gets which does not matter.

use std::sync::Mutex;

#[derive(Debug, Default)]
pub(super) struct Rooms(Mutex<Vec<Vec<f32>>>);

impl Rooms {
    /// Lends a room to `work`, with whatever was left in it.
    pub fn lend<T>(&self, work: impl FnOnce(&mut Vec<f32>) -> T) -> T {
        let mut room = self.rooms().pop().unwrap_or_default();
        let found = work(&mut room);
        self.rooms().push(room);
        found
    }

    fn rooms(&self) -> std::sync::MutexGuard<'_, Vec<Vec<f32>>> {
        self.0.lock().expect("nothing panics while it holds the list")
    }
}
