//! `flotilla plan --devices`: the fastest plan that is found, its predicted speed, and what it beat.

use super::devices::Devices;
use super::table::{PARTS, parts, placement, range};
use super::{PlanArgs, cut, svg};
use crate::fit;
use anyhow::{Context, Error, Result, ensure};
use flotilla_planner::{
    Aim, Choice, Collective, Costs, Decode, Fleet, Goal, Link, SumWay, choose, kv_tokens_max, predict_decode,
};
use flotilla_shared::plan::Placement;
use flotilla_shared::units::Bytes;
use flotilla_shared::{BackendKind, Demand, KvBlocks, ModelSpec, Plan, RankShare, Stage};
use serde_json::json;

const CONTEXT: usize = 8192;

/// A choice with what it was made for.
pub struct Chosen<'a> {
    pub model: &'a str,
    pub spec: &'a ModelSpec,
    pub fleet: Fleet,
    pub goal: Goal,
    pub demand: Demand,
    pub choice: Choice,
    /// Tokens of cache that fit in all.
    pub kv_tokens_max: usize,
}

pub fn run(args: &PlanArgs, spec: &ModelSpec, devices: &Devices) -> Result<()> {
    let chosen = chosen(args, spec, devices)?;
    if let Some(path) = &args.svg {
        std::fs::write(path, svg::picture(&chosen))
            .with_context(|| format!("cannot write {}\nhint: --svg takes a file's path", path.display()))?;
    }
    if args.json {
        println!("{}", serde_json::to_string_pretty(&chosen.document())?);
    } else {
        chosen.print();
    }
    Ok(())
}

fn chosen<'a>(args: &'a PlanArgs, spec: &'a ModelSpec, devices: &Devices) -> Result<Chosen<'a>> {
    let fleet = fleet(args, devices);
    let stages_max = args.stages_max.unwrap_or(usize::MAX);
    let context = args.context.unwrap_or(CONTEXT.min(spec.context_max));
    ensure!(
        context <= spec.context_max,
        "--context is {context} tokens, and the model's is {} at most",
        spec.context_max
    );
    let goal = Goal { aim: args.goal, context, stages_max };
    let sequences = args.sequences.max(goal.aim.sequences());
    let kv_tokens = args.kv_tokens.unwrap_or(goal.aim.sequences().saturating_mul(context));
    let kv_blocks = KvBlocks::for_tokens(kv_tokens, spec.window, sequences, args.step_tokens);
    let demand = Demand { kv_blocks, step_tokens_max: args.step_tokens, logit_rows_max: sequences };
    let choice = choose(spec, &fleet, goal, demand).map_err(|error| misfit(args, &fleet, error.into()))?;
    let memory = choice.devices.iter().map(|&device| fleet.devices[device].memory_bytes);
    let memory: Vec<u64> = memory.collect();
    let kv_tokens_max = kv_tokens_max(spec, &choice.plan, &memory, sequences, args.step_tokens);
    Ok(Chosen { model: &args.model, spec, fleet, goal, demand, choice, kv_tokens_max })
}

/// With what can be done about it, and, where there are both kinds, of which it is said: of the one with the most memory.
fn misfit(args: &PlanArgs, fleet: &Fleet, error: Error) -> Error {
    let error = fit::advise(error, |error| match args.kv_tokens {
        _ if error.is_of_activations() => "more or larger --devices, or lower --step-tokens",
        Some(_) => "more or larger --devices, or lower --kv-tokens",
        None => "more or larger --devices, or lower --context",
    });
    let memory = |backend| -> u64 {
        let devices = fleet.devices.iter().filter(|device| device.backend == backend);
        devices.fold(0, |sum, device| sum.saturating_add(device.memory_bytes))
    };
    let (cpus, cards) = (memory(BackendKind::Cpu), memory(BackendKind::Cuda));
    if cpus == 0 || cards == 0 {
        return error;
    }
    let most = if cpus > cards { "CPUs" } else { "cards" };
    error.context(format!("cards and CPUs are never in one plan; of the {most} alone"))
}

fn fleet(args: &PlanArgs, devices: &Devices) -> Fleet {
    let mut inventories = Vec::new();
    for (device, _) in &devices.0 {
        let mut device = device.clone();
        if device.backend == BackendKind::Cpu {
            device.kv = args.kv_dtype;
        }
        inventories.push(device);
    }
    let has = |backend| inventories.iter().any(|device| device.backend == backend);
    let usual = Link::preset(if has(BackendKind::Cpu) { "shm" } else { "pcie4" });
    let is_mixed = has(BackendKind::Cpu) && has(BackendKind::Cuda);
    let within_cards = (is_mixed && args.link.is_none()).then(|| Link::preset("pcie4"));
    Fleet {
        devices: inventories,
        hosts: devices.0.iter().map(|(_, host)| *host).collect(),
        within: args.link.unwrap_or(usual),
        between: args.between,
        within_cards,
        ways: Default::default(),
        int8: false,
        costs: Costs::default(),
    }
}

impl Chosen<'_> {
    fn document(&self) -> serde_json::Value {
        let mut document = cut::document(self.spec, &self.choice.plan, self.demand);
        let Choice { kind, devices, decode, prediction, left_out, runner_up, .. } = &self.choice;
        let chosen = json!({
            "kind": kind, "devices": devices, "goal": self.goal, "fleet": self.fleet, "predicted_at_goal": decode,
            "predicted": prediction, "collectives": self.choice.collectives, "left_out": left_out,
            "runner_up": runner_up, "kv_tokens_max": self.kv_tokens_max,
        });
        if let (Some(document), serde_json::Value::Object(chosen)) = (document.as_object_mut(), chosen) {
            document.extend(chosen);
        }
        document
    }

    fn print(&self) {
        println!("{}", self.head());
        let (mut at, stages) = (0, &self.choice.plan.stages);
        let names = self.choice.devices.iter().map(|&device| self.device(device).len());
        let wide = names.max().unwrap_or(0);
        for (number, stage) in stages.iter().enumerate() {
            println!("\nstage {number}: {}", self.stage(stage));
            println!("{:<5} {:<wide$} {PARTS}  of memory", "rank", "device");
            for share in &stage.ranks {
                println!("{}", self.rank(share, self.choice.devices[at], wide));
                at += 1;
            }
            if let Some(sums) = self.sums(number) {
                println!("sums over ranks: {sums}");
            }
        }
        println!("\nKV cache: {}", self.cache());
        for left_out in &self.choice.left_out {
            println!("left out: {}: {}", self.device(left_out.device), left_out.reason);
        }
        println!("\npredicted, not measured (docs/planning.md says what is counted):");
        self.speeds().iter().for_each(|line| println!("  {line}"));
        println!("\n{}", self.runner_up());
    }

    pub fn head(&self) -> String {
        let weights: u64 = self
            .choice
            .plan
            .ranks()
            .map(|share| self.choice.plan.bytes(self.spec, share.rank).weights())
            .sum();
        let goal = match self.goal.aim {
            Aim::Latency => "one sequence".to_owned(),
            Aim::Throughput { clients } => format!("{clients} sequences"),
        };
        format!(
            "{}: {} layers, {} experts, {} of weights fit on {} of {} devices: {}, fastest for {goal} at {} tokens",
            self.model,
            self.spec.layer_count(),
            self.spec.experts,
            Bytes(weights),
            self.choice.devices.len(),
            self.fleet.devices.len(),
            self.choice.kind,
            self.goal.context,
        )
    }

    pub fn stage(&self, stage: &Stage) -> String {
        let whole = stage.ranks.iter().any(|share| placement(self.spec, share) == Placement::Whole);
        let experts = if whole { ", experts whole (so \"blocks\" are experts)" } else { "" };
        format!("layers {} ({}){experts}", range(&stage.layers), stage.layers.len())
    }

    /// How a stage sums, and what it takes of a step at the goal.
    pub fn sums(&self, stage: usize) -> Option<String> {
        let Collective { way, whole_values_max, row_s } = self.choice.collectives[stage];
        let step_ms = 1e3 * self.choice.decode.step.stages[stage].sums_s;
        let lengths = whole_values_max.map(|values| format!(", in pieces from {} values on", values + 1));
        let lengths = lengths.unwrap_or_default();
        let row_us = 1e6 * row_s;
        (way != SumWay::Alone)
            .then(|| format!("{way}{lengths}; one of a row {row_us:.1} µs, all of a step {step_ms:.2} ms"))
    }

    /// What rounding would bring, where ranks on CPUs sum between hosts: it is never chosen.
    fn rounded(&self) -> Option<String> {
        let by_tcp = |stage: &Collective| matches!(stage.way, SumWay::Tcp | SumWay::MemoryAndTcp);
        if !self.choice.collectives.iter().any(by_tcp) {
            return None;
        }
        let fleet = Fleet { int8: true, ..self.fleet.clone() };
        let (sequences, context) = (self.goal.aim.sequences(), self.goal.context);
        let decode =
            predict_decode(self.spec, &fleet, &self.choice.plan, &self.choice.devices, sequences, context);
        let (ms, now_ms) = (1e3 * decode.token_s, 1e3 * self.choice.decode.token_s);
        Some(format!(
            "with --collective-wire int8, which rounds what passes between hosts: {ms:.2} ms a token of {sequences} \
             instead of {now_ms:.2} ms"
        ))
    }

    /// A device and its host.
    pub fn device(&self, device: usize) -> String {
        format!("{} on host {}", self.fleet.devices[device].device, self.fleet.hosts[device])
    }

    fn rank(&self, share: &RankShare, device: usize, wide: usize) -> String {
        let plan: &Plan = &self.choice.plan;
        let used = plan.total_bytes(self.spec, share.rank, self.demand) as f64;
        let part = 100.0 * used / self.fleet.devices[device].memory_bytes as f64;
        let parts = parts(self.spec, plan, share, self.demand);
        format!("{:<5} {:<wide$} {parts}  {part:>7.0} %", share.rank.index(), self.device(device))
    }

    pub fn cache(&self) -> String {
        format!(
            "{} tokens were asked for, {} fit",
            self.demand.kv_blocks.full as usize * flotilla_shared::step::BLOCK_TOKENS,
            self.kv_tokens_max
        )
    }

    pub fn speeds(&self) -> Vec<String> {
        let prefill = &self.choice.prediction.prefill;
        let mut lines = vec![format!(
            "prompt of {:>4}: {:>9.1} tokens/s, {:.2} s",
            prefill.tokens, prefill.tokens_per_s, prefill.seconds
        )];
        let sequences = self.goal.aim.sequences();
        let mut decodes: Vec<&Decode> = self.choice.prediction.decode.iter().collect();
        if !decodes.iter().any(|decode| decode.sequences == sequences) {
            decodes.push(&self.choice.decode);
        }
        lines.extend(decodes.into_iter().map(|decode| {
            let batches = match decode.micro_batches {
                1 => String::new(),
                batches => format!(", in {batches} micro-batches"),
            };
            let Decode { sequences, tokens_per_s, token_s, .. } = decode;
            let ms = 1e3 * token_s;
            format!("decode of {sequences:>4}: {tokens_per_s:>9.1} tokens/s, {ms:.2} ms a token{batches}")
        }));
        let parts = flotilla_planner::parts(&self.choice.decode);
        let parts = parts.map(|(part, seconds)| format!("{part} {:.2} ms", 1e3 * seconds));
        lines.push(format!("a token of {sequences}: {}", parts.join(", ")));
        lines.extend(self.rounded());
        lines
    }

    pub fn runner_up(&self) -> String {
        match &self.choice.runner_up {
            None => "second best: no plan of another kind fits and takes less than 3 times as long".into(),
            Some(other) => {
                let stages = other.plan.stages.iter();
                let stages = stages.map(|stage| format!("{}x{}", stage.layers.len(), stage.ranks.len()));
                let stages: Vec<String> = stages.collect();
                format!(
                    "second best: {} (layers x ranks: {}), {:.2} ms a token: {}",
                    other.kind,
                    stages.join(" + "),
                    1e3 * other.decode.token_s,
                    other.lost
                )
            }
        }
    }
}
