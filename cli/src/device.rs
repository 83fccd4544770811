//! `--device`, `--gpus`, `--activations`, `--dense`, `--kv-dtype`, `--sum`, `--wire`: what a worker computes with, how
//! exactly, and how cards sum.

use crate::machine;
use anyhow::{Context, Result, bail};
use clap::Args;
use flotilla_engine::backend::cpu::kernels::{Isa, Precision};
use flotilla_engine::backend::cpu::{CpuSettings, DenseWidth};
use flotilla_engine::collective::card::{SumChoice, Wire};
use flotilla_engine::cuda::{Card, card_count};
use flotilla_shared::KvDtype;
use flotilla_worker::{CardUse, Device};
use std::fmt;
use std::str::FromStr;

/// Threads of one worker at most: a slip, where more are asked for.
pub const THREADS_MAX: i64 = 1024;

/// One device of this machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    #[default]
    Cpu,
    /// By its number among the cards that CUDA_VISIBLE_DEVICES leaves.
    Cuda(usize),
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let ordinal = match text {
            "cpu" => return Ok(DeviceChoice::Cpu),
            "cuda" => Some(0),
            _ => text.strip_prefix("cuda:").and_then(|ordinal| ordinal.parse().ok()),
        };
        ordinal.map(DeviceChoice::Cuda).ok_or_else(|| format!("expected cpu or cuda:N, found {text:?}"))
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceChoice::Cpu => f.write_str("cpu"),
            DeviceChoice::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
        }
    }
}

/// Cards of this machine, a worker each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Gpus {
    All,
    Numbers(Vec<usize>),
}

impl FromStr for Gpus {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "all" {
            return Ok(Gpus::All);
        }
        let numbers = text.split(',').map(str::parse).collect::<Result<_, _>>();
        numbers.map(Gpus::Numbers).map_err(|_| format!("expected all, or numbers as 0,1, found {text:?}"))
    }
}

impl Gpus {
    pub fn devices(&self) -> Result<Vec<DeviceChoice>> {
        let numbers = match self {
            Gpus::Numbers(numbers) => numbers.clone(),
            Gpus::All => (0..card_count().context("cannot use --gpus all")?).collect(),
        };
        if numbers.is_empty() {
            bail!(
                "cannot use --gpus all: the driver shows no card\nhint: `flotilla doctor` says what is there"
            );
        }
        Ok(numbers.into_iter().map(DeviceChoice::Cuda).collect())
    }
}

/// How exactly CPUs compute. On a card these have no meaning, and no effect: `up` refuses them.
#[derive(Clone, Debug, Default, Args)]
pub struct CpuArgs {
    /// How activations enter the experts' products on the CPU: int8x2 (15 bits and a sign), int8 (faster with many
    /// sequences, rounded), or f32 (exact, slower)
    #[arg(help_heading = "Workers", long)]
    pub activations: Option<Precision>,
    /// How the CPU holds dense weights: bf16 as published, or int8 (half the bytes to read, rounded)
    #[arg(help_heading = "Workers", long, default_value_t = DenseWidth::Bf16)]
    pub dense: DenseWidth,
    /// Cores to keep the threads on, one each, as 0-3,8; of several workers each takes its share [default: the
    /// system decides]
    #[arg(help_heading = "Workers", long, value_name = "CORES")]
    pub pin: Option<Cores>,
    /// What the KV cache holds on the CPU: f16, or f32 (twice the bytes; cards hold bf16)
    #[arg(help_heading = "Memory and batching", long, value_parser = kv_dtype, default_value = "f16")]
    pub kv_dtype: KvDtype,
}

/// What a CPU's cache may hold.
pub fn kv_dtype(text: &str) -> Result<KvDtype, String> {
    match text {
        "f16" => Ok(KvDtype::F16),
        "f32" => Ok(KvDtype::F32),
        _ => Err(format!("expected f16 or f32, found {text:?}")),
    }
}

/// Numbers of cores, in the order in which threads take them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cores(pub Vec<usize>);

impl FromStr for Cores {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let range = |part: &str| {
            let (from, to) = part.split_once('-').unwrap_or((part, part));
            let (from, to): (usize, usize) = (from.parse().ok()?, to.parse().ok()?);
            (from <= to && to < 4096).then_some(from..=to)
        };
        let ranges: Option<Vec<_>> = text.split(',').map(range).collect();
        let cores = ranges.map(|ranges| ranges.into_iter().flatten().collect::<Vec<_>>());
        cores.map(Cores).ok_or_else(|| format!("expected cores as 0-3,8, found {text:?}"))
    }
}

impl CpuArgs {
    /// Every core that is named is one that this process may use.
    pub fn check_pin(&self) -> Result<()> {
        let (Some(Cores(asked)), Some(Cores(allowed))) = (&self.pin, machine::cores_allowed()) else {
            return Ok(());
        };
        if let Some(core) = asked.iter().find(|core| !allowed.contains(core)) {
            let all: Vec<String> = allowed.iter().map(usize::to_string).collect();
            bail!("--pin names core {core}\nhint: this process may use the cores {}", all.join(","));
        }
        Ok(())
    }

    /// One of these flags that asks for something.
    pub fn asked(&self) -> Option<&'static str> {
        let asked = [
            ("--activations", self.activations.is_some()),
            ("--dense", self.dense != DenseWidth::Bf16),
            ("--pin", self.pin.is_some()),
            ("--kv-dtype", self.kv_dtype != KvDtype::F16),
        ];
        asked.into_iter().find_map(|(flag, is_asked)| is_asked.then_some(flag))
    }

    /// The same choices for worker number `index` of several with so many threads each.
    pub fn to_args(&self, index: usize, threads: usize) -> Vec<String> {
        let own = self.pin.iter().flat_map(|Cores(cores)| cores.iter().skip(index * threads).take(threads));
        let own: Vec<String> = own.map(usize::to_string).collect();
        let pin = (!own.is_empty()).then(|| ["--pin".into(), own.join(",")]).into_iter().flatten();
        let activations = self.activations.map(|precision| ["--activations".into(), precision.to_string()]);
        let dense = ["--dense".into(), self.dense.to_string()];
        let kv = if self.kv_dtype == KvDtype::F32 { "f32" } else { "f16" };
        let kv = ["--kv-dtype".into(), kv.into()];
        activations.into_iter().flatten().chain(dense).chain(kv).chain(pin).collect()
    }
}

/// How cards sum. Without a card these have no meaning, and no effect.
#[derive(Clone, Copy, Debug, Args)]
pub struct SumArgs {
    /// How cards sum over ranks: nccl, shared (ranks on one card, through its memory), host (through memory
    /// of this machine), staged (by the workers' own links), or auto
    #[arg(help_heading = "Cards", long, default_value_t = SumChoice::Auto)]
    pub sum: SumChoice,
    /// What NCCL carries: f32, or bf16 (half the bytes, rounded)
    #[arg(help_heading = "Cards", long, value_parser = wire, default_value = "f32")]
    pub wire: Wire,
}

fn wire(text: &str) -> Result<Wire, String> {
    match text {
        "f32" => Ok(Wire::F32),
        "bf16" => Ok(Wire::Bf16),
        _ => Err(format!("expected f32 or bf16, found {text:?}")),
    }
}

impl Default for SumArgs {
    fn default() -> Self {
        SumArgs { sum: SumChoice::Auto, wire: Wire::F32 }
    }
}

impl SumArgs {
    /// The same choices on another command line.
    pub fn to_args(self) -> [String; 4] {
        let wire = if self.wire == Wire::F32 { "f32" } else { "bf16" };
        ["--sum".into(), self.sum.to_string(), "--wire".into(), wire.into()]
    }
}

impl DeviceChoice {
    /// Opens the card, if it is one.
    pub fn open(self, threads: usize, cpu: &CpuArgs, sums: SumArgs) -> Result<Device> {
        match self {
            DeviceChoice::Cpu => {
                cpu.check_pin()?;
                let activations = cpu.activations.unwrap_or_default();
                Ok(Device::Cpu(CpuSettings {
                    threads,
                    activations,
                    dense: cpu.dense,
                    pin: cpu.pin.as_ref().map_or(Vec::new(), |cores| cores.0.clone()),
                    kv: cpu.kv_dtype,
                    ..CpuSettings::default()
                }))
            }
            DeviceChoice::Cuda(ordinal) => {
                let card = Card::open(ordinal).with_context(|| format!("cannot use --device {self}"))?;
                Ok(Device::Card(CardUse { card, sum: sums.sum, wire: sums.wire }))
            }
        }
    }
}

/// The device in words, for plans and logs.
pub fn describe(device: &Device) -> String {
    match device {
        Device::Cpu(_) => format!("cpu {:?}", Isa::detect()).to_lowercase(),
        Device::Card(card) => {
            let facts = card.card.facts();
            format!("cuda:{} {}", facts.ordinal, facts.name)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cores_are_read_and_shared_out() {
        assert_eq!("0-3,8".parse(), Ok(Cores(vec![0, 1, 2, 3, 8])));
        for text in ["", "a", "3-1", "1,", "0-99999999999", "-1"] {
            assert!(text.parse::<Cores>().is_err(), "{text}");
        }
        let cpu = CpuArgs { pin: Some(Cores(vec![4, 5, 6])), ..CpuArgs::default() };
        let pins = [0, 1, 2]
            .map(|index| cpu.to_args(index, 2).iter().skip_while(|arg| *arg != "--pin").nth(1).cloned());
        assert_eq!(pins, [Some("4,5".into()), Some("6".into()), None]);
    }

    #[test]
    fn devices_are_read_as_they_are_written() {
        for text in ["cpu", "cuda:0", "cuda:11"] {
            assert_eq!(text.parse::<DeviceChoice>().unwrap().to_string(), text);
        }
        for text in ["", "gpu", "cuda:", "cuda:-1", "cuda:x"] {
            assert!(text.parse::<DeviceChoice>().is_err(), "{text}");
        }
    }
}
