//! Ranks of the golden model on the CPU, each on its own thread, in stages as a plan says, and the steps that they are
//! given together.

use flotilla_engine::backend::cpu::CpuSettings;
use flotilla_engine::collective::{Collective, Peers, ProcessCollective, Stop, threads};
use flotilla_engine::weights::{Checkpoint, RankWeights, WeightSink, WeightSource};
use flotilla_shared::step::Sampled;
use flotilla_shared::{
    Assignment, Epoch, KvBlocks, Links, ModelSpec, Plan, Rank, StepOutcome, StepPlan, TokenId, WeightOrigin,
    WeightsId,
};
use flotilla_worker::device::on_cpu;
use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

pub const EPOCH: Epoch = Epoch(1);
pub const KV_BLOCKS: KvBlocks = KvBlocks { full: 16, window: 16 };

/// How ranks reach each other.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    Threads,
    Tcp,
    /// All of one host.
    Shm,
}

pub struct Group {
    plan: Plan,
    steps: Vec<Sender<StepPlan>>,
    outcomes: Vec<Receiver<StepOutcome>>,
}

pub fn checkpoint() -> Arc<Checkpoint> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/smoke");
    Arc::new(Checkpoint::open(&folder).unwrap())
}

impl Group {
    pub fn start(kind: Kind, plan: &Plan) -> Group {
        let checkpoint = checkpoint();
        plan.check(checkpoint.spec()).unwrap();
        let mut group = Group { plan: plan.clone(), steps: Vec::new(), outcomes: Vec::new() };
        match kind {
            Kind::Threads => {
                for (rank, member) in threads::stages(&plan.stage_sizes()).into_iter().enumerate() {
                    group.add(&checkpoint, rank, move || member);
                }
            }
            Kind::Tcp | Kind::Shm => {
                let listeners: Vec<_> =
                    plan.ranks().map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
                let address = |listener: &TcpListener| listener.local_addr().unwrap().to_string();
                let peers: Vec<String> = listeners.iter().map(address).collect();
                for (rank, listener) in listeners.into_iter().enumerate() {
                    let (stages, peers) = (plan.stage_sizes(), peers.clone());
                    group.add(&checkpoint, rank, move || connect(kind, rank, &stages, listener, &peers));
                }
            }
        }
        group
    }

    fn add<L: Collective>(
        &mut self,
        checkpoint: &Arc<Checkpoint>,
        rank: usize,
        join: impl FnOnce() -> L + Send + 'static,
    ) {
        let (steps, inbox) = channel::<StepPlan>();
        let (outbox, outcomes) = channel();
        self.steps.push(steps);
        self.outcomes.push(outcomes);
        let (checkpoint, assignment) = (checkpoint.clone(), assignment(checkpoint.spec(), &self.plan, rank));
        std::thread::spawn(move || {
            let mut weights = RankWeights::new(&assignment.spec, &assignment.plan, assignment.rank).unwrap();
            weights.load_from(&*checkpoint, &mut |_, _| {}).unwrap();
            let mut executor = on_cpu(&CpuSettings::default(), &assignment, weights, join());
            for plan in inbox {
                if outbox.send(executor.execute(&plan).unwrap()).is_err() {
                    return;
                }
            }
        });
    }

    /// To every rank; nobody waits for it.
    pub fn send(&self, plan: &StepPlan) {
        self.steps.iter().for_each(|steps| steps.send(plan.clone()).unwrap());
    }

    /// Every rank's outcome of the oldest step that was not asked for.
    pub fn answers(&self) -> Vec<StepOutcome> {
        let patience = Duration::from_secs(60);
        let answers = self.outcomes.iter().map(|outcomes| outcomes.recv_timeout(patience));
        answers.map(|answer| answer.expect("an outcome in time")).collect()
    }

    /// Of the oldest step that was not asked for: the tokens, on which the ranks of the last stage agree, and nobody
    /// else says any.
    pub fn sampled(&self) -> Vec<Sampled> {
        let last = self.plan.stages.last().unwrap().ranks[0].rank.index();
        let mut found = None;
        for (rank, outcome) in self.answers().into_iter().enumerate() {
            match (rank < last, &found) {
                (true, _) => assert!(outcome.sampled.is_empty(), "rank {rank} samples"),
                (false, None) => found = Some(outcome.sampled),
                (false, Some(found)) => assert_eq!(&outcome.sampled, found, "rank {rank}"),
            }
        }
        found.expect("there is a last stage")
    }
}

fn connect(
    kind: Kind,
    rank: usize,
    stages: &[usize],
    listener: TcpListener,
    peers: &[String],
) -> ProcessCollective {
    let (us, deadline) = (Rank(rank as u16), Duration::from_secs(20));
    let addressed = Peers { addresses: peers, stages };
    let stop = Stop::default();
    let group = ProcessCollective::connect_unless(&stop, us, listener, addressed, &[1; 32], EPOCH, deadline);
    let hosts = if let Kind::Shm = kind { vec![0; peers.len()] } else { Vec::new() };
    let links = Links { hosts, must_share: true, ..Links::default() };
    let mut group = group.unwrap();
    group.link(&links).unwrap();
    group
}

fn assignment(spec: &ModelSpec, plan: &Plan, rank: usize) -> Assignment {
    Assignment {
        epoch: EPOCH,
        rank: Rank(rank as u16),
        plan: plan.clone(),
        weights: WeightOrigin::Stream,
        weights_id: WeightsId([0; 32]),
        kv_blocks: KV_BLOCKS,
        step_tokens_max: 32,
        logit_rows_max: 64,
        sampleable: vec![0..spec.vocab as TokenId],
        peers: vec![String::new(); plan.rank_count()],
        links: Default::default(),
        group_key: [0; 32],
        holders: Vec::new(),
        lends: false,
        spec: spec.clone(),
    }
}
