//! The flags of how the model is cut.

use clap::{Args, ValueEnum};
use flotilla_coordinator::fleet::Planning;
use flotilla_planner::{Aim, Goal, Link};

/// Their heading in the help.
const PLAN: &str = "The plan";

#[derive(Clone, Debug, Args)]
pub struct PlanningArgs {
    /// How the model is cut: tensor (every layer over all workers), or auto (what is predicted to be the fastest, over all
    /// workers or some)
    #[arg(help_heading = PLAN, long, value_enum, default_value = "tensor")]
    plan: PlanKind,
    /// What auto makes fast: latency (a token of one sequence), or throughput:N (N sequences at once)
    #[arg(help_heading = PLAN, long, default_value = "throughput:16")]
    goal: Aim,
    /// Tokens that auto takes each sequence to have behind it
    #[arg(help_heading = PLAN, long, default_value_t = 2048)]
    goal_context: usize,
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
    pub fn planning(&self) -> Planning {
        match self.plan {
            PlanKind::Tensor => Planning::Tensor,
            PlanKind::Auto => Planning::Fastest {
                goal: Goal { aim: self.goal, context: self.goal_context, stages_max: usize::MAX },
                within: self.link_within,
                between: self.link_between,
            },
        }
    }
}
