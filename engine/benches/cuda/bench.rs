//! What every family measures with.

use crate::report::Report;
use crate::shapes::{self, Model};
use crate::timing::Clock;
use flotilla_engine::cuda::Card;

pub struct Bench {
    pub card: Card,
    pub clock: Clock,
    pub quick: bool,
    /// Of whole steps: all of the model's, if none.
    pub layers: Option<usize>,
    /// Of whole steps.
    pub model_name: String,
    pub report: Report,
}

impl Bench {
    pub fn models(&self) -> Vec<Model> {
        shapes::models(self.quick)
    }

    /// The model whose steps are run.
    pub fn model(&self) -> Model {
        let mut models = self.models();
        let found = models.iter().position(|model| model.name == self.model_name);
        models.swap_remove(found.unwrap_or(0))
    }
}
