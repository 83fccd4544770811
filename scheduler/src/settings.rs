//! What an operator may choose. Each has a unit, a default and its reason; [`Settings::validate`] says
//! which combinations cannot work.

use crate::drafts::Speculation;
use flotilla_shared::step::STEPS_AHEAD_MAX;

/// More than any group has: for so many there is room from the start.
const SEQUENCES_MOST: usize = 65_536;
/// Workers count rows in 32 bits.
const ROWS_MOST: usize = u32::MAX as usize;

/// Limits of the scheduler.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Tokens in one step, decodes and prompt chunks together. Default 512: enough rows to make a
    /// prompt bound by arithmetic rather than by reading weights, few enough that the decodes beside it
    /// do not stutter. At least `sequences_max`, so that every sequence can have a row.
    pub tokens_per_step_max: usize,
    /// Sequences that run at once. Default 64: where small devices stop to gain from a larger batch, and
    /// what the workers lay their tables out for. At most 65536.
    pub sequences_max: usize,
    /// Requests that wait; one more is rejected. Default 1024: some minutes of work, beyond which a
    /// client is better told to come back. Sequences that go back to the line after a preemption or the
    /// loss of a group are never rejected, so up to `sequences_max` more may stand there.
    pub waiting_max: usize,
    /// Tokens of a sequence, prompt and completion together. Default 131072: the context of gpt-oss.
    pub context_max: usize,
    /// Positions that a window layer sees. Default 128: of gpt-oss.
    pub window_tokens: usize,
    /// Steps that workers are sent before they have answered the first of them. Default 2: while one runs,
    /// the next is there, and the way to the coordinator and back costs nothing as long as it is shorter than
    /// a step. With several stages, one more for each stage after the first.
    pub steps_in_flight_max: usize,
    /// Whether prompts that begin alike share what was computed. Default yes.
    pub prefix_cache: bool,
    /// Whether next tokens are guessed. Default no: it gains where answers repeat their prompts, and costs
    /// rows, and running ahead, where they do not.
    pub speculation: Option<Speculation>,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            tokens_per_step_max: 512,
            sequences_max: 64,
            waiting_max: 1024,
            context_max: 131_072,
            window_tokens: 128,
            steps_in_flight_max: 2,
            prefix_cache: true,
            speculation: None,
        }
    }
}

/// Why settings cannot work, in the words of the flags that set them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    #[error("{name} is {value}, below its least value {least}")]
    TooSmall { name: &'static str, value: usize, least: usize },
    #[error("{name} is {value}, above its greatest value {most}")]
    TooLarge { name: &'static str, value: usize, most: usize },
    #[error(
        "--step-tokens is {tokens_per_step_max}, below --sequences {sequences_max}: a step could not \
         hold one token of each sequence\nhint: raise --step-tokens or lower --sequences"
    )]
    StepTooSmall { tokens_per_step_max: usize, sequences_max: usize },
    #[error("{found} steps in flight are too many: workers take {STEPS_AHEAD_MAX} at most")]
    TooManySteps { found: usize },
    #[error("speculation with ngrams of {min} to {max} tokens and {drafts} drafts guesses nothing")]
    Speculation { min: usize, max: usize, drafts: usize },
    #[error("a context of {context_max} tokens is too long: positions are 32-bit numbers")]
    ContextTooLong { context_max: usize },
}

impl Settings {
    pub fn validate(&self) -> Result<(), SettingsError> {
        at_least("--sequences", self.sequences_max, 1)?;
        at_most("--sequences", self.sequences_max, SEQUENCES_MOST)?;
        at_most("--step-tokens", self.tokens_per_step_max, ROWS_MOST)?;
        at_least("--queue", self.waiting_max, 1)?;
        // One token of prompt, one of completion.
        at_least("the context", self.context_max, 2)?;
        at_least("the window", self.window_tokens, 1)?;
        at_least("steps in flight", self.steps_in_flight_max, 1)?;
        if self.steps_in_flight_max > STEPS_AHEAD_MAX {
            return Err(SettingsError::TooManySteps { found: self.steps_in_flight_max });
        }
        if let Some(Speculation { drafts_max: drafts, ngram_max: max, ngram_min: min }) = self.speculation
            && (min == 0 || max < min || drafts == 0)
        {
            return Err(SettingsError::Speculation { min, max, drafts });
        }
        let Settings { tokens_per_step_max, sequences_max, context_max, .. } = *self;
        if tokens_per_step_max < sequences_max {
            return Err(SettingsError::StepTooSmall { tokens_per_step_max, sequences_max });
        }
        if u32::try_from(context_max).is_err() {
            return Err(SettingsError::ContextTooLong { context_max });
        }
        Ok(())
    }
}

fn at_least(name: &'static str, value: usize, least: usize) -> Result<(), SettingsError> {
    if value < least { Err(SettingsError::TooSmall { name, value, least }) } else { Ok(()) }
}

fn at_most(name: &'static str, value: usize, most: usize) -> Result<(), SettingsError> {
    if value > most { Err(SettingsError::TooLarge { name, value, most }) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(change: impl FnOnce(&mut Settings)) -> String {
        let mut settings = Settings::default();
        change(&mut settings);
        settings.validate().unwrap_err().to_string()
    }

    #[test]
    fn the_defaults_work() {
        assert_eq!(Settings::default().validate(), Ok(()));
    }

    #[test]
    fn what_cannot_work_is_refused_by_name() {
        assert!(error(|s| s.sequences_max = 0).starts_with("--sequences is 0"));
        assert!(error(|s| s.waiting_max = 0).starts_with("--queue is 0"));
        assert!(error(|s| s.context_max = 1).starts_with("the context is 1"));
        assert!(error(|s| s.tokens_per_step_max = 63).contains("63, below --sequences 64"));
        assert!(error(|s| s.window_tokens = 0).starts_with("the window is 0"));
        assert!(error(|s| s.steps_in_flight_max = 9).contains("4 at most"));
        let (most, rows) = (usize::MAX, 1 << 32);
        let many = |s: &mut Settings| (s.sequences_max, s.tokens_per_step_max) = (most, most);
        assert!(
            error(many).starts_with("--sequences is 18446744073709551615, above its greatest value 65536")
        );
        assert!(error(|s| s.tokens_per_step_max = rows).starts_with("--step-tokens is 4294967296, above"));
        let nothing = Speculation { drafts_max: 0, ..Speculation::default() };
        assert!(error(|s| s.speculation = Some(nothing)).contains("0 drafts"));
        assert!(error(|s| s.context_max = 1 << 32).contains("4294967296"));
    }
}
