//! What can be done about a model that does not fit: each command has other means. The coordinator's are in the error itself.

use anyhow::{Error, anyhow};
use flotilla_coordinator::fleet::FormError;
use flotilla_shared::plan::PlanError;

/// The same error, with `hint` in place of the coordinator's, if it is that a model does not fit.
pub fn advise(error: Error, hint: impl FnOnce(&PlanError) -> &'static str) -> Error {
    let of_group = error.downcast_ref::<FormError>().and_then(|error| match error {
        FormError::Plan(error) => Some(error),
        _ => None,
    });
    let Some(too_large @ PlanError::TooLarge { .. }) = of_group.or(error.downcast_ref()) else {
        return error;
    };
    let words = too_large.to_string();
    let words = words.split("\nhint: ").next().unwrap_or_default();
    anyhow!("{words}\nhint: {}", hint(too_large))
}
