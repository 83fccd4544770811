//! The flags of how the model is cut.

use crate::sizes;
use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use flotilla_coordinator::fleet::Planning;
use flotilla_planner::{Aim, Goal, Link};

/// Their heading in the help.
const PLAN: &str = "The plan";
/// What auto plans for, where it is not told.
const GOAL_CLIENTS: usize = 16;
const GOAL_CONTEXT: usize = 2048;

#[derive(Clone, Debug, Args)]
pub struct PlanningArgs {
    /// How the model is cut: tensor (every layer over all workers), or auto (what is predicted to be the fastest, over all
    /// workers or some)
    #[arg(help_heading = PLAN, long, value_enum, default_value = "tensor")]
    plan: PlanKind,
    /// What auto makes fast: latency (a token of one sequence), or throughput:N (N sequences at once)
    /// [default: throughput:16]
    #[arg(help_heading = PLAN, long)]
    goal: Option<Aim>,
    /// Tokens that auto takes each sequence to have behind it [default: 2048]
    #[arg(help_heading = PLAN, long, value_parser = sizes::tokens)]
    goal_context: Option<usize>,
    /// Between workers of one host, for auto: shm, pcie3, pcie4, pcie5 or nvlink [default: measured]
    #[arg(help_heading = PLAN, long)]
    link_within: Option<Link>,
    /// Between hosts, for auto: 1gbe, 10gbe, 25gbe or 100gbe [default: measured]
    #[arg(help_heading = PLAN, long)]
    link_between: Option<Link>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum PlanKind {
    Tensor,
    Auto,
}

impl PlanningArgs {
    /// What is said of a goal, or of links, has no meaning where nothing is planned; nor has a number of stages where a plan
    /// chooses it.
    pub fn check(&self, stages: usize) -> Result<()> {
        let given = [
            ("--goal", self.goal.is_some()),
            ("--goal-context", self.goal_context.is_some()),
            ("--link-within", self.link_within.is_some()),
            ("--link-between", self.link_between.is_some()),
        ];
        let given = given.iter().find(|(_, is_given)| *is_given);
        match (self.plan, given) {
            (PlanKind::Tensor, Some((flag, _))) => {
                bail!(
                    "{flag} is given, and nothing is planned for it\nhint: add --plan auto, or leave {flag} out"
                )
            }
            (PlanKind::Auto, _) if stages > 1 => bail!(
                "--stages is {stages}, and --plan auto chooses how many there are\nhint: leave one of them out"
            ),
            _ => Ok(()),
        }
    }

    fn goal(&self) -> Goal {
        let aim = self.goal.unwrap_or(Aim::Throughput { clients: GOAL_CLIENTS });
        Goal { aim, context: self.goal_context.unwrap_or(GOAL_CONTEXT), stages_max: usize::MAX }
    }

    pub fn planning(&self) -> Planning {
        match self.plan {
            PlanKind::Tensor => Planning::Tensor,
            PlanKind::Auto => {
                Planning::Fastest { goal: self.goal(), within: self.link_within, between: self.link_between }
            }
        }
    }
}
