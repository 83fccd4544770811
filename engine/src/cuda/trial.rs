//! Ways that were built where no card was, and have run on the emulated card alone. They are taken where
//! [`TRIAL_VARIABLE`] names them, and tried beside the others by `tests/device/run.sh`; one that has shown there that it is
//! right and faster leaves this list.

use std::env;
use std::sync::OnceLock;

/// Names of ways, separated by commas, or `all`.
pub const TRIAL_VARIABLE: &str = "FLOTILLA_CUDA_TRY";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trial {
    /// Kernels begin before the one ahead has ended (`launch.rs`).
    Early,
    /// Experts of prompts by warpgroup products (`experts_wgmma.cu`).
    Warpgroups,
}

impl Trial {
    pub const ALL: [Trial; 2] = [Trial::Early, Trial::Warpgroups];

    pub fn name(self) -> &'static str {
        match self {
            Trial::Early => "early",
            Trial::Warpgroups => "warpgroups",
        }
    }

    pub fn is_wanted(self) -> bool {
        static WANTED: OnceLock<Vec<Trial>> = OnceLock::new();
        let read = || {
            let (wanted, unknown) = parse(&env::var(TRIAL_VARIABLE).unwrap_or_default());
            for name in unknown {
                let known = Trial::ALL.map(Trial::name).join(", ");
                tracing::warn!(
                    "{TRIAL_VARIABLE} names {name:?}, which there is not; there are {known}, and all"
                );
            }
            wanted
        };
        WANTED.get_or_init(read).contains(&self)
    }
}

/// Those that `text` names, and what it names that there is not.
fn parse(text: &str) -> (Vec<Trial>, Vec<String>) {
    let (mut wanted, mut unknown) = (Vec::new(), Vec::new());
    for name in text.split(',').map(str::trim).filter(|name| !name.is_empty()) {
        match Trial::ALL.into_iter().find(|trial| trial.name() == name) {
            Some(trial) => wanted.push(trial),
            None if name == "all" => wanted.extend(Trial::ALL),
            None => unknown.push(name.into()),
        }
    }
    (wanted, unknown)
}

#[cfg(test)]
mod tests {
    use super::{Trial, parse};

    #[test]
    fn a_list_names_ways_and_all_is_all() {
        assert_eq!(parse(""), (vec![], vec![]));
        assert_eq!(parse("early, warpgroups").0, Trial::ALL);
        assert_eq!(parse("all").0, Trial::ALL);
        assert_eq!(parse("late,early"), (vec![Trial::Early], vec!["late".into()]));
    }
}
