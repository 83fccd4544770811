//! The flags that say how steps are made of what waits.

use clap::Args;
use flotilla_scheduler::{Settings, Speculation};
use flotilla_shared::step::STEPS_AHEAD_MAX;
use std::time::Duration;

#[derive(Clone, Debug, Args)]
pub struct StepArgs {
    /// Steps that workers have before them while one runs; 0 waits for each outcome
    #[arg(help_heading = "Memory and batching", long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(0..STEPS_AHEAD_MAX as i64))]
    steps_ahead: u8,
    /// Compute every prompt anew, also where another began alike
    #[arg(help_heading = "Memory and batching", long)]
    no_prefix_cache: bool,
    /// Guess so many next tokens at a time by looking up what followed in the text; exact, 0 is off
    #[arg(help_heading = "Memory and batching", long, value_name = "TOKENS", default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=16))]
    speculation: u8,
    /// Seconds that a step may take before a worker that does not answer it is given up, though its link is alive; 0 is
    /// without end
    #[arg(help_heading = "Memory and batching", long, value_name = "SECONDS", default_value_t = 300, value_parser = clap::value_parser!(u32).range(..=86_400))]
    step_timeout: u32,
}

impl StepArgs {
    /// Guesses at one sequence's tokens in a step.
    pub fn drafts_max(&self) -> usize {
        self.speculation.into()
    }

    /// Zero is without end.
    pub fn timeout(&self) -> Duration {
        Duration::from_secs(self.step_timeout.into())
    }

    pub fn apply(&self, settings: Settings) -> Settings {
        let drafts_max = self.drafts_max();
        Settings {
            steps_in_flight_max: 1 + usize::from(self.steps_ahead),
            prefix_cache: !self.no_prefix_cache,
            speculation: (drafts_max > 0).then(|| Speculation { drafts_max, ..Speculation::default() }),
            ..settings
        }
    }
}
