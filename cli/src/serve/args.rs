//! The flags that `coordinator` and `up` share, and what they become: the model's and the scheduler's here,
//! those of the front in [`super::front`].

use super::front::FrontArgs;
use super::planning::PlanningArgs;
use super::replicas::ReplicaCount;
use super::steps::StepArgs;
use super::traces::TraceArgs;
use crate::address;
use crate::links::LinkArgs;
use crate::model::{Model, ModelArgs};
use crate::sizes;
use anyhow::{Result, ensure};
use clap::Args;
use clap::builder::NonEmptyStringValueParser;
use flotilla_coordinator::fleet::Formation;
use flotilla_coordinator::harmony::chat::shortest_prompt;
use flotilla_engine::backend::cuda::ROWS_MAX;
use flotilla_scheduler::{Scheduler, Settings};
use flotilla_shared::step::BLOCK_TOKENS;
use flotilla_shared::units::Bytes;
use flotilla_shared::{KvBlocks, Plan};
use std::net::SocketAddr;
use std::time::Duration;

/// Fewer leave little room for words.
const KV_TOKENS_HINT: usize = 512;
/// For all workers of a coordinator before this one to be back: those that are there try again within a second.
const RETURN_GRACE: Duration = Duration::from_secs(30);

#[derive(Clone, Debug, Args)]
pub struct ServeArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// Where the API listens
    #[arg(help_heading = "The API's front", long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:8000", value_parser = address::parse)]
    pub listen: SocketAddr,
    /// Name by which clients ask for the model [default: the folder's]
    #[arg(help_heading = "Model", long, value_parser = NonEmptyStringValueParser::new())]
    pub served_name: Option<String>,
    /// Tokens of KV cache over all sequences, and the longest context
    #[arg(help_heading = "Memory and batching", long, default_value = "16384", value_parser = sizes::tokens)]
    kv_tokens: usize,
    /// Tokens of one step, prompt chunks and decodes together
    #[arg(help_heading = "Memory and batching", long, default_value_t = 512)]
    pub step_tokens: usize,
    /// Sequences that run at once
    #[arg(help_heading = "Memory and batching", long, default_value_t = 64)]
    sequences: usize,
    /// The date that the model is told, such as 2026-11-23 [default: today, UTC]
    #[arg(help_heading = "Model", long, value_parser = parse_date)]
    pub current_date: Option<String>,
    /// Requests that may wait in each replica; one more gets 429, a client with a key earlier
    #[arg(help_heading = "Memory and batching", long, default_value_t = 1024)]
    pub queue: usize,
    /// Copies of the model, each on workers of its own: a number, or auto for as many as the workers make
    #[arg(help_heading = "Workers", long, default_value_t = ReplicaCount::Exactly(1))]
    pub replicas: ReplicaCount,
    /// Seconds that a lost worker is waited for before the group goes on with those that are left
    #[arg(help_heading = "Workers", long, default_value_t = 2.0, value_parser = parse_seconds)]
    regroup_grace: f64,
    /// Bytes of weights a second to all workers together, such as 500MB/s [default: as fast as it goes]
    #[arg(help_heading = "Weights", long, value_name = "RATE", value_parser = sizes::rate)]
    weight_rate: Option<Bytes>,
    /// Stages that the model's layers are cut into, of about equal numbers of workers
    #[arg(help_heading = "Workers", long, default_value_t = 1, value_name = "N")]
    stages: usize,
    #[command(flatten)]
    planning: PlanningArgs,
    #[command(flatten)]
    links: LinkArgs,
    #[command(flatten)]
    steps: StepArgs,
    #[command(flatten)]
    pub front: FrontArgs,
    #[command(flatten)]
    pub traces: TraceArgs,
    /// Say whether flags and files are right, and start nothing; status 2 if they are not. Not looked at: whether the
    /// model fits, whether there are such cards, cores and memory, and whether the addresses are free
    #[arg(long)]
    pub check: bool,
}

impl ServeArgs {
    /// What can be wrong before a port is bound and a worker has come; `ranks` make a group.
    pub fn check(&self, ranks: usize) -> Result<()> {
        let model = self.model.open()?;
        self.front.open()?;
        self.traces.check()?;
        self.check_settings(&model)?;
        self.check_stages(&model, ranks)?;
        println!("flags and files are right; nothing was started");
        Ok(())
    }

    /// Each stage has a layer and a worker at least.
    pub fn check_stages(&self, model: &Model, ranks: usize) -> Result<()> {
        let most = ranks.min(model.spec.layer_count());
        ensure!(
            (1..=most).contains(&self.stages),
            "--stages is {}, of {ranks} workers and {} layers\nhint: give 1 to {most}",
            self.stages,
            model.spec.layer_count()
        );
        Ok(())
    }

    pub fn formation(&self, model: &Model, ranks: usize) -> Formation {
        Formation {
            spec: model.spec.clone(),
            weights: model.weights.clone(),
            ranks,
            plan: (self.stages > 1).then(|| Plan::even(&model.spec, ranks, self.stages)),
            kv_blocks: self.kv_blocks(model),
            step_tokens_max: self.step_tokens,
            logit_rows_max: self.logit_rows_max(),
            sampleable: model.sampleable(),
            links: self.links.collective,
            wire: self.links.collective_wire,
            planning: self.planning.planning(),
            regroup_grace: Duration::from_secs_f64(self.regroup_grace),
            return_grace: Some(RETURN_GRACE.max(Duration::from_secs_f64(self.regroup_grace))),
            step_timeout: self.steps.timeout(),
            board: Default::default(),
        }
    }

    pub fn weight_rate(&self) -> Option<u64> {
        self.weight_rate.map(|rate| rate.0)
    }

    /// Of each sequence a row is sampled, and one for each guess.
    fn logit_rows_max(&self) -> usize {
        self.sequences.saturating_mul(1 + self.steps.drafts_max()).min(self.step_tokens)
    }

    fn kv_blocks(&self, model: &Model) -> KvBlocks {
        KvBlocks::for_tokens(self.kv_tokens, model.spec.window, self.sequences, self.step_tokens)
    }

    /// What no worker can mend.
    pub fn check_settings(&self, model: &Model) -> Result<()> {
        self.planning.check(self.stages)?;
        self.check_context(model)?;
        ensure!(
            self.step_tokens <= ROWS_MAX,
            "a step of {} tokens is more than one may have, which is {ROWS_MAX}\nhint: lower --step-tokens",
            self.step_tokens
        );
        Scheduler::new(self.scheduler(model, self.kv_blocks(model)))?;
        Ok(())
    }

    /// A context that holds no chat at all is a mistake, and is told before anything is loaded.
    fn check_context(&self, model: &Model) -> Result<()> {
        let context = self.scheduler(model, self.kv_blocks(model)).context_max;
        let needed = shortest_prompt(&model.harmony) + 1;
        ensure!(
            context >= needed,
            "a context of {context} tokens holds no chat: what goes before its first word takes {needed}\n\
             hint: give --kv-tokens {} or more",
            needed.next_multiple_of(BLOCK_TOKENS).max(KV_TOKENS_HINT)
        );
        Ok(())
    }

    pub fn scheduler(&self, model: &Model, kv_blocks: KvBlocks) -> Settings {
        self.steps.apply(Settings {
            tokens_per_step_max: self.step_tokens,
            sequences_max: self.sequences,
            waiting_max: self.queue,
            context_max: model.spec.context_max.min(kv_blocks.full as usize * BLOCK_TOKENS),
            window_tokens: model.spec.window,
            ..Settings::default()
        })
    }
}

fn parse_seconds(text: &str) -> std::result::Result<f64, String> {
    let seconds = text.parse().ok().filter(|seconds| (0.0..=86_400.0).contains(seconds));
    seconds.ok_or_else(|| format!("expected seconds from 0 to 86400, found {text:?}"))
}

/// `YYYY-MM-DD`, as text: it only reaches the prompt.
fn parse_date(text: &str) -> std::result::Result<String, String> {
    let shape: String = text.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
    if shape == "0000-00-00" { Ok(text.into()) } else { Err("expected a date such as 2026-11-23".into()) }
}
