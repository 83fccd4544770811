//! What an op is tested on: a rank of a model on the CPU or on a card, behind one face.

use crate::model::Model;
use crate::reference::{Act, Rounding};
use flotilla_engine::backend::cpu::kernels::Precision;
use flotilla_engine::backend::cpu::{CpuBackend, CpuSettings, DenseWidth};
use flotilla_engine::backend::cuda::{CudaBackend, CudaSettings, CudaWeights};
use flotilla_engine::backend::{Backend, BackendError, Norm};
use flotilla_engine::batch::Batch;
use flotilla_engine::collective::{AllReduce, CollectiveError, Solo};
use flotilla_engine::cuda::{Card, DeviceSum, keep_in, search_first};
use flotilla_engine::model::{Part, forward};
use flotilla_engine::sample::{Candidate, Chosen, SampleRow, Sampleable, Sampler, Shard};
use flotilla_engine::weights::{RankWeights, WeightSink, WeightSource};
use flotilla_shared::{Assignment, Epoch, Plan, TokenId, WeightOrigin, WeightsId};
use flotilla_shared::{KvBlocks, KvDtype};
use std::ops::Range;
use std::path::Path;
use std::sync::Once;

/// Blocks of cache of every rank. Windows are short, and their blocks go from one sequence to the next.
pub const KV_BLOCKS: KvBlocks = KvBlocks { full: 40, window: 24 };
/// Rows of a step at most.
pub const ROWS_MAX: usize = 84;

#[derive(Clone)]
pub enum Subject {
    /// With what its cache holds.
    Cpu(KvDtype),
    /// With int8 for all that can be: dense weights, and activations of all products.
    CpuInt8,
    /// With what tests call its kind: `cuda-emulated` or `cuda`.
    Card(&'static str, Card),
}

/// Everything that there is to test on. A card has a stream of its own each time.
pub fn subjects() -> Vec<Subject> {
    [KvDtype::F32, KvDtype::F16].map(Subject::Cpu).into_iter().chain(card()).collect()
}

/// One of the two kinds of card, not both, because a process has one driver.
pub fn card() -> Option<Subject> {
    let real = std::env::var("FLOTILLA_TEST_DEVICE").is_ok_and(|device| device == "cuda");
    if !real {
        let folder = flotilla_emulator::folder_or_skip()?;
        search_first(&folder);
    }
    static READY: Once = Once::new();
    READY.call_once(|| keep_in(&Path::new(env!("CARGO_TARGET_TMPDIR")).join("cubin")));
    let name = if real { "cuda" } else { "cuda-emulated" };
    Some(Subject::Card(name, Card::open(0).unwrap_or_else(|error| panic!("{error}"))))
}

/// How a rank is made, beside its part of the model.
#[derive(Clone)]
pub struct Settings {
    pub rows_max: usize,
    /// Of a processor.
    pub threads: usize,
    /// Record decode steps, where a backend can.
    pub graphs: bool,
    pub sampleable: Vec<Range<TokenId>>,
}

impl Default for Settings {
    fn default() -> Self {
        Settings { rows_max: ROWS_MAX, threads: 3, graphs: false, sampleable: vec![0..TokenId::MAX] }
    }
}

impl Subject {
    pub fn name(&self) -> &'static str {
        match self {
            Subject::Cpu(KvDtype::F32) => "cpu",
            Subject::Cpu(_) => "cpu, a cache of f16",
            Subject::CpuInt8 => "cpu, int8",
            Subject::Card(name, _) => name,
        }
    }

    /// What this subject rounds on purpose.
    pub fn rounding(&self) -> Rounding {
        match self {
            Subject::Cpu(KvDtype::F32) => Rounding::None,
            Subject::Cpu(_) => Rounding::Cache,
            Subject::CpuInt8 => unreachable!("it is compared with itself only"),
            Subject::Card(_, card) if card.facts().capability < (8, 0) => Rounding::Card(Act::F16),
            Subject::Card(..) => Rounding::Card(Act::Bf16),
        }
    }

    /// Every rank of a plan.
    pub fn ranks(&self, model: &Model, plan: &Plan, settings: &Settings) -> Vec<Ranked> {
        (0..plan.rank_count()).map(|rank| self.rank(model, plan, rank, settings)).collect()
    }

    pub fn rank(&self, model: &Model, plan: &Plan, rank: usize, settings: &Settings) -> Ranked {
        let spec = model.spec().clone();
        let rank = flotilla_shared::Rank(rank as u16);
        let assignment = Assignment {
            epoch: Epoch(1),
            rank,
            spec: spec.clone(),
            plan: plan.clone(),
            weights: WeightOrigin::Stream,
            weights_id: WeightsId([0; 32]),
            kv_blocks: KV_BLOCKS,
            step_tokens_max: settings.rows_max as u32,
            logit_rows_max: 64,
            sampleable: settings.sampleable.clone(),
            peers: vec![String::new(); plan.rank_count()],
            links: Default::default(),
            group_key: [0; 32],
            holders: Vec::new(),
            lends: false,
        };
        let vocab = plan.share(rank).1.vocab.clone();
        let sampleable = Sampleable::new(vocab, &settings.sampleable);
        let on = match self {
            Subject::Cpu(_) | Subject::CpuInt8 => {
                let mut weights = RankWeights::new(&spec, plan, rank).unwrap();
                load(&mut weights, model);
                On::Cpu(Box::new(CpuBackend::new(&self.cpu_settings(settings.threads), &assignment, weights)))
            }
            Subject::Card(_, card) => {
                let mut weights = CudaWeights::new(card, plan.slices(&spec, rank)).unwrap();
                load(&mut weights, model);
                let settings = CudaSettings { graphs: settings.graphs };
                On::Card(Box::new(CudaBackend::new(&settings, &assignment, weights).unwrap()))
            }
        };
        Ranked { on, sampleable }
    }

    fn cpu_settings(&self, threads: usize) -> CpuSettings {
        let settings = CpuSettings { threads, ..CpuSettings::default() };
        match self {
            Subject::Cpu(kv) => CpuSettings { kv: *kv, activations: Precision::F32, ..settings },
            // The cache in f32, so that it adds nothing to what is rounded.
            _ => CpuSettings {
                dense: DenseWidth::Int8,
                activations: Precision::TwoPlanes,
                kv: KvDtype::F32,
                ..settings
            },
        }
    }
}

fn load(weights: &mut impl WeightSink, model: &dyn WeightSource) {
    weights.load_from(model, &mut |_, _| {}).unwrap();
}

/// An op of [`Backend`], to be said as data.
#[derive(Clone, Copy, Debug)]
pub enum Op {
    AddNorm(Norm),
    Qkv(usize),
    Attend(usize),
    Project(usize),
    Route(usize),
    Experts(usize),
    Unembed,
}

/// One rank of a model on a backend.
pub struct Ranked {
    on: On,
    sampleable: Sampleable,
}

enum On {
    Cpu(Box<CpuBackend>),
    Card(Box<CudaBackend>),
}

/// Does the same with whichever backend it is.
macro_rules! on {
    ($ranked:expr, $backend:ident => $does:expr) => {
        match &mut $ranked.on {
            On::Cpu($backend) => $does,
            On::Card($backend) => $does,
        }
    };
}

impl Ranked {
    /// y of the embedding.
    pub fn embed(&mut self, batch: &Batch) -> Vec<f32> {
        on!(self, backend => play(&mut **backend, batch, None, &[]))
    }

    /// x is `x`, f32 [T, H], and the ops follow; y of the last that leaves one.
    pub fn play(&mut self, batch: &Batch, x: &[f32], ops: &[Op]) -> Vec<f32> {
        on!(self, backend => play(&mut **backend, batch, Some(x), ops))
    }

    /// The whole forward, as one rank of one.
    pub fn forward(&mut self, model: &Model, batch: &Batch) -> Result<(), BackendError> {
        let mut alone = Alone;
        on!(self, backend => {
            let run = forward(&Part::whole(model.spec()), &mut **backend, &mut alone, batch);
            run.expect("a sum of one rank's does not fail");
            backend.finish()
        })
    }

    /// What a stage of one rank does: begins with what is carried, if it is not the first, and leaves what it hands on.
    pub fn forward_part(
        &mut self,
        part: &Part,
        carried: &mut Vec<f32>,
        batch: &Batch,
    ) -> Result<(), BackendError> {
        let mut carry = Carry(carried);
        on!(self, backend => {
            let run = forward(part, &mut **backend, &mut carry, batch);
            run.expect("nothing that is carried is lost");
            backend.finish()
        })
    }

    pub fn logits(&mut self, row: usize) -> Vec<f32> {
        on!(self, backend => backend.logits(row).unwrap().to_vec())
    }

    pub fn best(&mut self, rows: &[SampleRow]) -> Vec<Candidate> {
        on!(self, backend => backend.best(rows, &self.sampleable).unwrap())
    }

    pub fn sample(&mut self, rows: &[SampleRow]) -> Vec<Option<Chosen>> {
        let mut sampler = Sampler::new(self.sampleable.clone());
        on!(self, backend => sampler.sample(rows, &mut **backend, &mut Solo::new()).unwrap())
    }

    pub fn routing(&mut self, row: usize) -> Vec<u16> {
        on!(self, backend => backend.routing(row).unwrap())
    }
}

/// Activations that a test reads and writes.
trait Sums {
    fn read(&self) -> Vec<f32>;
    fn write(&mut self, values: &[f32]);
}

impl Sums for [f32] {
    fn read(&self) -> Vec<f32> {
        self.to_vec()
    }

    fn write(&mut self, values: &[f32]) {
        self.copy_from_slice(values);
    }
}

impl Sums for DeviceSum {
    fn read(&self) -> Vec<f32> {
        let mut values = vec![0.0; self.len];
        self.stream.memcpy_dtoh(&self.values.slice(..self.len), &mut values).unwrap();
        self.stream.synchronize().unwrap();
        values
    }

    fn write(&mut self, values: &[f32]) {
        assert_eq!(values.len(), self.len);
        self.stream.memcpy_htod(values, &mut self.values.slice_mut(..values.len())).unwrap();
        self.stream.synchronize().unwrap();
    }
}

fn play<B: Backend>(backend: &mut B, batch: &Batch, x: Option<&[f32]>, ops: &[Op]) -> Vec<f32>
where
    B::Activations: Sums,
{
    let mut last = Vec::new();
    let run = backend.run(batch, |backend| {
        let y = backend.embed(batch);
        last = y.read();
        if let Some(x) = x {
            y.write(x);
        }
        for op in ops {
            let y = match *op {
                Op::AddNorm(norm) => {
                    backend.add_norm(norm, batch);
                    continue;
                }
                Op::Qkv(layer) => {
                    backend.qkv(layer, batch);
                    continue;
                }
                Op::Attend(layer) => {
                    backend.attend(layer, batch);
                    continue;
                }
                Op::Route(layer) => {
                    backend.route(layer, batch);
                    continue;
                }
                Op::Unembed => {
                    backend.unembed(batch);
                    continue;
                }
                Op::Project(layer) => backend.project(layer, batch),
                Op::Experts(layer) => backend.experts(layer, batch),
            };
            last = y.read();
        }
        Ok::<(), BackendError>(())
    });
    run.and_then(|()| backend.finish()).unwrap();
    last
}

/// The sum of one rank's values.
struct Alone;

impl<A: ?Sized> AllReduce<A> for Alone {
    fn all_reduce(&mut self, _: &mut A) -> Result<(), CollectiveError> {
        Ok(())
    }
}

/// The only rank of a stage, which hands on by leaving it here.
struct Carry<'a>(&'a mut Vec<f32>);

impl<A: ?Sized + Sums> AllReduce<A> for Carry<'_> {
    fn all_reduce(&mut self, _: &mut A) -> Result<(), CollectiveError> {
        Ok(())
    }

    fn hand_on(&mut self, x: &mut A) -> Result<(), CollectiveError> {
        *self.0 = x.read();
        Ok(())
    }

    fn take_over(&mut self, x: &mut A) -> Result<(), CollectiveError> {
        x.write(self.0);
        Ok(())
    }
}
