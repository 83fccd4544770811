//! `flotilla verify`: a checkpoint's golden files through the real workers, as threads or processes.

mod deviation;
mod golden;
mod plan_file;

use crate::device::{CpuArgs, DeviceChoice, SumArgs, THREADS_MAX, kv_dtype};
use crate::links::LinkArgs;
use crate::local_group::LocalGroup;
use crate::local_workers::{LocalWorkers, WorkerSettings};
use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use deviation::{Activations, Deviation, Row};
use flotilla_coordinator::fleet::{Formation, Weights};
use flotilla_coordinator::group::Group;
use flotilla_engine::backend::cpu::DenseWidth;
use flotilla_engine::backend::cpu::kernels::Precision;
use flotilla_engine::weights::{Checkpoint, WeightSource};
use flotilla_shared::plan::RANKS_MAX;
use flotilla_shared::step::{Admission, BLOCK_TOKENS, CapturedRow, SequenceWork};
use flotilla_shared::{
    Assignment, BlockId, Epoch, ModelSpec, Plan, Rank, SequenceId, StepId, StepPlan, TokenId, WeightOrigin,
};
use flotilla_shared::{KvBlocks, KvDtype};
use golden::GoldenPrompt;
use serde::Serialize;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

/// Rows of one step while verifying: captured logits of a step travel in one message.
const STEP_ROWS: usize = 128;
/// Bytes of captured logits of a step at most.
const CAPTURE_BYTES: usize = 16 << 20;

/// Run a checkpoint that has golden files beside it through real workers, and compare.
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// Checkpoint folder with golden.json and golden.safetensors
    dir: PathBuf,
    /// Tensor-parallel ranks
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=RANKS_MAX as i64))]
    ranks: u16,
    /// Stages that the ranks are cut into
    #[arg(long, default_value_t = 1, value_name = "N", conflicts_with = "plan_file")]
    stages: usize,
    /// Cut the model as this file says, of `flotilla plan --json`, instead of by --ranks and --stages
    #[arg(long, value_name = "FILE", conflicts_with = "ranks")]
    plan_file: Option<PathBuf>,
    /// Ranks as processes over gRPC and their own links, instead of threads
    #[arg(long)]
    processes: bool,
    /// What the ranks compute with, in turn: cpu, or cards as cuda:0,cuda:1
    #[arg(long, value_delimiter = ',', default_value = "cpu")]
    device: Vec<DeviceChoice>,
    /// How activations enter the experts' products on the CPU: f32, int8x2 or int8; each has its own limits
    #[arg(long, default_value_t = Precision::F32)]
    activations: Precision,
    /// How the CPU holds dense weights: bf16, or int8, with the limits of int8
    #[arg(long, default_value_t = DenseWidth::Bf16)]
    dense: DenseWidth,
    /// What the KV cache holds on the CPU: f32, or f16 as it is served with, with the limits of rounded activations
    #[arg(long, value_parser = kv_dtype, default_value = "f32")]
    kv_dtype: KvDtype,
    #[command(flatten)]
    sums: SumArgs,
    #[command(flatten)]
    links: LinkArgs,
    /// Threads of each rank
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=THREADS_MAX))]
    threads: u16,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
}

impl VerifyArgs {
    /// What the devices compute with: one that rounds decides what is allowed.
    fn rounding(&self) -> Activations {
        let on_cards = self.device.iter().any(|device| *device != DeviceChoice::Cpu);
        match self.activations {
            _ if on_cards => Activations::Bf16,
            _ if self.dense == DenseWidth::Int8 => Activations::Int8,
            Precision::OnePlane => Activations::Int8,
            _ if self.kv_dtype == KvDtype::F16 => Activations::Bf16,
            Precision::F32 => Activations::F32,
            Precision::TwoPlanes => Activations::Int8x2,
        }
    }

    /// How the model is cut.
    fn cut(&self, spec: &ModelSpec) -> Result<Plan> {
        let Some(path) = &self.plan_file else {
            let (ranks, layers) = (usize::from(self.ranks), spec.layer_count());
            let most = ranks.min(layers);
            ensure!(
                (1..=most).contains(&self.stages),
                "--stages is {}, of {ranks} ranks and {layers} layers\nhint: give 1 to {most}",
                self.stages
            );
            return Ok(Plan::even(spec, ranks, self.stages));
        };
        plan_file::read(path, spec)
    }

    fn cpu(&self) -> CpuArgs {
        CpuArgs { activations: Some(self.activations), dense: self.dense, kv_dtype: self.kv_dtype, pin: None }
    }
}

#[derive(Serialize)]
struct Report {
    checkpoint: String,
    ranks: usize,
    stages: usize,
    processes: bool,
    activations: Activations,
    pass: bool,
    prompts: Vec<Deviation>,
}

/// Exit status 1 where anything is past its tolerance.
pub fn run(args: &VerifyArgs) -> Result<ExitCode> {
    let checkpoint = Arc::new(Checkpoint::open(&args.dir)?);
    let spec = checkpoint.spec().clone();
    let prompts = golden::read(&args.dir, spec.layer_count(), spec.experts_per_token, spec.vocab)?;
    let plan = args.cut(&spec)?;
    let runtime = tokio::runtime::Runtime::new().context("cannot start the async runtime")?;
    let prompts = runtime.block_on(verify(args, checkpoint, &spec, &plan, &prompts))?;
    let report = Report {
        checkpoint: args.dir.display().to_string(),
        ranks: plan.rank_count(),
        stages: plan.stages.len(),
        processes: args.processes,
        activations: args.rounding(),
        pass: prompts.iter().all(|prompt| prompt.faults.is_empty()),
        prompts,
    };
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print_table(&report);
    }
    Ok(if report.pass { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn verify(
    args: &VerifyArgs,
    checkpoint: Arc<Checkpoint>,
    spec: &ModelSpec,
    plan: &Plan,
    prompts: &[GoldenPrompt],
) -> Result<Vec<Deviation>> {
    let is_cpu = |device: &&DeviceChoice| **device == DeviceChoice::Cpu;
    if let (Some(_), Some(card)) = (args.device.iter().find(is_cpu), args.device.iter().find(|d| !is_cpu(d)))
    {
        bail!("cpu and {card} cannot be ranks of one group\nhint: give cards only, or cpu alone");
    }
    let ranks = plan.rank_count();
    let rows_max = prompts.iter().map(|prompt| prompt.sequence().len() + 1).max().unwrap_or(1);
    let formation = Formation {
        spec: spec.clone(),
        weights: Weights::Stream(checkpoint.clone()),
        ranks,
        plan: Some(plan.clone()),
        kv_blocks: KvBlocks::plain(rows_max.div_ceil(BLOCK_TOKENS) as u32),
        step_tokens_max: STEP_ROWS,
        logit_rows_max: 64,
        sampleable: vec![0..spec.vocab as TokenId],
        links: args.links.collective,
        wire: args.links.collective_wire,
        planning: Default::default(),
        regroup_grace: Default::default(),
        return_grace: None,
        step_timeout: Default::default(),
        board: Default::default(),
    };
    let epoch = Epoch(1);
    if args.processes {
        let settings = |coordinator, token| WorkerSettings {
            coordinator,
            token,
            threads: args.threads.into(),
            memory_bytes: None,
            memory_shared: None,
            devices: args.device.clone(),
            cpu: args.cpu(),
            sums: args.sums,
            cache: Default::default(),
            doors: Vec::new(),
        };
        let (group, _workers) = LocalWorkers::form(&formation, settings).await?;
        verify_all(&mut Verifier::new(group, epoch, spec, args.rounding()), prompts).await
    } else {
        let assignment = Assignment {
            epoch,
            rank: Rank(0),
            spec: spec.clone(),
            plan: plan.clone(),
            weights: WeightOrigin::Stream,
            weights_id: checkpoint.identity()?,
            kv_blocks: formation.kv_blocks,
            step_tokens_max: STEP_ROWS as u32,
            logit_rows_max: 64,
            sampleable: formation.sampleable,
            peers: vec![String::new(); formation.ranks],
            links: Default::default(),
            group_key: [0; 32],
            holders: Vec::new(),
            lends: false,
        };
        let devices = args.device.iter().cycle().take(formation.ranks);
        let devices = devices.map(|device| device.open(args.threads.into(), &args.cpu(), args.sums));
        let group = LocalGroup::start(&*checkpoint, &assignment, devices.collect::<Result<_>>()?)?;
        verify_all(&mut Verifier::new(group, epoch, spec, args.rounding()), prompts).await
    }
}

async fn verify_all<G: Group>(
    verifier: &mut Verifier<G>,
    prompts: &[GoldenPrompt],
) -> Result<Vec<Deviation>> {
    let mut deviations = Vec::new();
    for prompt in prompts {
        deviations.push(verifier.prompt(prompt).await?);
    }
    Ok(deviations)
}

/// Drives a group by hand, one sequence at a time over all of its blocks.
struct Verifier<G> {
    group: G,
    spec: ModelSpec,
    activations: Activations,
    epoch: Epoch,
    step: StepId,
    sequence: SequenceId,
    release: Vec<SequenceId>,
}

impl<G: Group> Verifier<G> {
    fn new(group: G, epoch: Epoch, spec: &ModelSpec, activations: Activations) -> Self {
        let (step, sequence) = (StepId(0), SequenceId(0));
        Verifier { group, spec: spec.clone(), activations, epoch, step, sequence, release: Vec::new() }
    }

    async fn prompt(&mut self, golden: &GoldenPrompt) -> Result<Deviation> {
        let mut deviation = Deviation { key: golden.key.clone(), ..Deviation::default() };
        let rows = self.teacher_forced(golden).await?;
        let first_change = self.compare_experts(golden, &rows, &mut deviation);
        for (position, logits) in golden.positions.iter().zip(golden.logits.chunks_exact(self.spec.vocab)) {
            let rerouted = first_change.is_some_and(|first| *position >= first);
            deviation.add_row(&Row { golden: logits, measured: &rows[*position].logits, rerouted });
        }
        let greedy = self.greedy(golden).await?;
        deviation.greedy_total = golden.greedy.len();
        deviation.greedy_equal = greedy.iter().zip(&golden.greedy).take_while(|(a, b)| a == b).count();
        deviation.margin = golden.margin_of_greedy(deviation.greedy_equal, self.spec.vocab);
        deviation.judge(self.activations, rows.len());
        Ok(deviation)
    }

    /// Counts (layer, row) pairs with the golden set of experts; the first row that has another one.
    ///
    /// Files whose `router_experts` hold only the last rows were written from a view of [L, rows, K]
    /// without a copy by some versions of the generator: layer 0 is right, and what follows is whatever
    /// came next in memory. Both readings are exact comparisons; the better one counts, and is named.
    fn compare_experts(
        &self,
        golden: &GoldenPrompt,
        rows: &[CapturedRow],
        deviation: &mut Deviation,
    ) -> Option<usize> {
        let (rows_all, rows_kept) = (rows.len(), golden.expert_rows);
        let first = rows_all - rows_kept;
        let as_documented = |index: usize| (index / rows_kept, first + index % rows_kept);
        let as_uncopied = |index: usize| ((first + index) / rows_all, (first + index) % rows_all);
        deviation.experts_total = golden.experts.len() / self.spec.experts_per_token;
        let mut first_change;
        (deviation.experts_equal, first_change) = self.equal_experts(golden, rows, as_documented);
        if deviation.experts_equal < deviation.experts_total && first > 0 {
            let (equal, change) = self.equal_experts(golden, rows, as_uncopied);
            if equal > deviation.experts_equal {
                (deviation.experts_equal, first_change) = (equal, change);
                deviation.notes.push("router_experts read as an uncopied view".into());
            }
        }
        first_change
    }

    /// How many are equal, and the first row where one is not.
    fn equal_experts(
        &self,
        golden: &GoldenPrompt,
        rows: &[CapturedRow],
        layer_and_row: impl Fn(usize) -> (usize, usize),
    ) -> (usize, Option<usize>) {
        let per_token = self.spec.experts_per_token;
        let (mut equal, mut first_change) = (0, None);
        for (index, expected) in golden.experts.chunks_exact(per_token).enumerate() {
            let (layer, row) = layer_and_row(index);
            if sorted(&rows[row].experts[layer * per_token..][..per_token]) == sorted(expected) {
                equal += 1;
            } else {
                first_change = Some(first_change.map_or(row, |first: usize| first.min(row)));
            }
        }
        (equal, first_change)
    }

    /// Every row of prompt + greedy[..-1], captured.
    async fn teacher_forced(&mut self, golden: &GoldenPrompt) -> Result<Vec<CapturedRow>> {
        let sequence = golden.sequence();
        let rows_of_step = (CAPTURE_BYTES / (4 * self.spec.vocab)).clamp(1, STEP_ROWS);
        let mut rows = Vec::new();
        for (index, tokens) in sequence.chunks(rows_of_step).enumerate() {
            let work = self.work(index * rows_of_step, tokens);
            rows.extend(self.run(SequenceWork { capture: true, ..work }).await?.1);
        }
        self.release.push(self.sequence);
        Ok(rows)
    }

    /// The tokens that greedy decoding adds, by the workers' own sampling.
    async fn greedy(&mut self, golden: &GoldenPrompt) -> Result<Vec<TokenId>> {
        let mut tokens = golden.prompt.clone();
        let mut done = 0;
        while tokens.len() < golden.prompt.len() + golden.greedy.len() {
            let next = &tokens[done..tokens.len().min(done + STEP_ROWS)];
            let last = done + next.len() == tokens.len();
            let work = SequenceWork { sample: last, ..self.work(done, next) };
            done += next.len();
            tokens.extend(self.run(work).await?.0);
        }
        self.release.push(self.sequence);
        Ok(tokens.split_off(golden.prompt.len()))
    }

    fn work(&mut self, position: usize, tokens: &[TokenId]) -> SequenceWork {
        if position == 0 {
            self.sequence.0 += 1;
        }
        let blocks = position.div_ceil(BLOCK_TOKENS)..(position + tokens.len()).div_ceil(BLOCK_TOKENS);
        let blocks: Vec<BlockId> = blocks.map(|block| BlockId(block as u32)).collect();
        SequenceWork {
            sequence: self.sequence,
            position: position as u32,
            tokens: tokens.to_vec(),
            window_blocks: blocks.clone(),
            blocks,
            ..SequenceWork::default()
        }
    }

    async fn run(&mut self, work: SequenceWork) -> Result<(Option<TokenId>, Vec<CapturedRow>)> {
        self.step.0 += 1;
        let admission = Admission { sequence: work.sequence, ..Admission::default() };
        let plan = StepPlan {
            epoch: self.epoch,
            step: self.step,
            release: std::mem::take(&mut self.release),
            admit: if work.position == 0 { vec![admission] } else { Vec::new() },
            work: vec![work],
        };
        self.group.send(&plan)?;
        let outcome = self.group.outcome().await?;
        Ok((outcome.sampled.first().map(|sampled| sampled.token), outcome.captured))
    }
}

fn sorted(experts: &[u16]) -> Vec<u16> {
    let mut sorted = experts.to_vec();
    sorted.sort_unstable();
    sorted
}

fn print_table(report: &Report) {
    let kind = if report.processes { "processes" } else { "threads" };
    let stages = if report.stages > 1 { format!(" in {} stages", report.stages) } else { String::new() };
    println!("{}: {} ranks{stages} as {kind}", report.checkpoint, report.ranks);
    println!(
        "{:<6} {:>6} {:>10} {:>10} {:>10} {:>10} {:>13}",
        "prompt", "rows", "max abs", "mean KL", "max KL", "greedy", "expert sets"
    );
    for prompt in &report.prompts {
        println!(
            "{:<6} {:>6} {:>10.2e} {:>10.1e} {:>10.1e} {:>10} {:>13}  {}",
            prompt.key,
            prompt.rows,
            prompt.max_abs,
            prompt.kl_mean,
            prompt.kl_max,
            format!("{}/{}", prompt.greedy_equal, prompt.greedy_total),
            format!("{}/{}", prompt.experts_equal, prompt.experts_total),
            prompt.verdict(),
        );
    }
    println!("{}", if report.pass { "pass" } else { "FAIL" });
}
