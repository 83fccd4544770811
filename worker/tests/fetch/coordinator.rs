//! A coordinator for one worker: it assigns the whole of a small model, and serves its weights with faults. Another worker
//! may stand beside it, which hands on weights with faults of its own.

use flotilla_engine::backend::cpu::CpuSettings;
use flotilla_engine::weights::{Extent, Synthetic, WeightSource, read_chunk};
use flotilla_proto::wire::fleet_server::{Fleet, FleetServer};
use flotilla_proto::wire::weights_server::{Weights, WeightsServer};
use flotilla_proto::wire::{FromWorker, ToWorker, from_worker, to_worker};
use flotilla_proto::{Hello, MESSAGE_BYTES_MAX, wire};
use flotilla_shared::{
    Assignment, BackendKind, Epoch, Held, Holder, Inventory, KvBlocks, KvDtype, LayerKind, Loading,
    ModelSpec, Plan, Rank, TensorSlice, WeightOrigin,
};
use flotilla_worker::{Device, Settings};
use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::{TcpListenerStream, UnboundedReceiverStream};
use tokio_stream::{Stream, StreamExt};
use tonic::service::interceptor::InterceptedService;
use tonic::{Request, Response, Status, Streaming};

/// Only a hang reaches it.
const PATIENCE: Duration = Duration::from_secs(60);

/// What happens to a chunk, so many times.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// A bit of it is another.
    Damaged(u32),
    /// The stream ends before it.
    Breaks(u32),
    /// So it does, for too many fetch there.
    Busy(u32),
    /// So it does, for the chunk cannot be read.
    Unread(u32),
    /// Nothing more comes, and nobody is told.
    Silent(u32),
    /// It is said not to be there.
    Lacking(u32),
}

/// Slice, and first byte.
pub type Place = (usize, usize);

struct Service {
    assignment: Assignment,
    giver: Giver,
    heard: mpsc::UnboundedSender<from_worker::Message>,
    /// To the worker, once it has joined.
    orders: Mutex<Option<mpsc::UnboundedSender<Result<ToWorker, Status>>>>,
}

/// Who has weights, with its faults.
struct Giver {
    source: Synthetic,
    slices: Vec<TensorSlice>,
    faults: Mutex<BTreeMap<Place, Fault>>,
    sent: Mutex<Vec<Place>>,
    bytes_sent: Mutex<usize>,
    proven: bool,
    /// Before each chunk.
    pause: Mutex<Duration>,
}

pub struct Coordinator {
    service: Arc<Service>,
    heard: mpsc::UnboundedReceiver<from_worker::Message>,
    /// Where the worker hands on weights, once it has said so.
    pub door: Option<(String, [u8; 32])>,
    /// What it said last.
    pub loading: Loading,
    tasks: Tasks,
}

/// They end with it.
#[derive(Default)]
struct Tasks(Vec<JoinHandle<()>>);

impl Drop for Tasks {
    fn drop(&mut self) {
        self.0.iter().for_each(JoinHandle::abort);
    }
}

/// Another worker, which is not ours.
pub struct FakePeer {
    giver: Arc<Giver>,
    pub holder: Holder,
    _tasks: Tasks,
}

impl FakePeer {
    /// It holds everything, and lets in who shows its key.
    pub async fn start(faults: Vec<(Place, Fault)>) -> FakePeer {
        Self::giving(Giver::new(faults)).await
    }

    /// The same, but its digests say nothing of its memory.
    pub async fn without_proof() -> FakePeer {
        Self::giving(Giver { proven: false, ..Giver::new(Vec::new()) }).await
    }

    /// It has the share of this rank of so many.
    pub async fn of_rank(rank: u16, count: usize, faults: Vec<(Place, Fault)>) -> FakePeer {
        let plan = Plan::with_shares(&spec(), &vec![1.0; count]);
        let mut peer = Self::start(faults).await;
        peer.holder.held.share = plan.share(Rank(rank)).1.clone();
        peer
    }

    async fn giving(giver: Giver) -> FakePeer {
        let giver = Arc::new(giver);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let server = WeightsServer::from_arc(giver.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        let expected = format!("Bearer {}", "07".repeat(32));
        let admit = move |request: Request<()>| match request.metadata().get("authorization") {
            Some(given) if given.as_encoded_bytes() == expected.as_bytes() => Ok(request),
            _ => Err(Status::unauthenticated("wrong or missing key")),
        };
        let served = tonic::transport::Server::builder()
            .add_service(InterceptedService::new(server, admit))
            .serve_with_incoming(TcpListenerStream::new(listener));
        let tasks = Tasks(vec![tokio::spawn(async move { served.await.unwrap() })]);
        FakePeer { giver, holder: holder(address, [7; 32]), _tasks: tasks }
    }

    /// The chunks that were sent, damaged or not.
    pub fn sent(&self) -> Vec<Place> {
        self.giver.sent.lock().unwrap().clone()
    }

    pub fn bytes_sent(&self) -> usize {
        *self.giver.bytes_sent.lock().unwrap()
    }
}

/// Of everything.
pub fn holder(address: String, key: [u8; 32]) -> Holder {
    let plan = Plan::with_shares(&spec(), &[1.0]);
    let share = plan.share(Rank(0)).1.clone();
    let held = Held { weights: source().identity().unwrap(), layers: 0..spec().layer_count(), share };
    Holder { address, key, held }
}

/// What everybody has.
pub fn source() -> Synthetic {
    Synthetic::new(spec(), 4)
}

/// 12 MB.
pub fn spec() -> ModelSpec {
    ModelSpec {
        hidden: 64,
        intermediate: 160,
        layers: vec![LayerKind::Window, LayerKind::Full],
        q_heads: 16,
        kv_heads: 8,
        head_dim: 4,
        experts: 6,
        vocab: 40_000,
        ..ModelSpec::published("gpt-oss-20b").unwrap()
    }
}

impl Coordinator {
    /// With a worker, which begins to load at once.
    pub async fn start(faults: impl FnOnce(&Coordinator) -> Vec<(Place, Fault)>) -> Coordinator {
        Self::start_beside(Vec::new(), |_| {}, faults).await
    }

    /// The same, of a worker that is told of `holders`, and has other settings.
    pub async fn start_beside(
        holders: Vec<Holder>,
        adjust: impl FnOnce(&mut Settings),
        faults: impl FnOnce(&Coordinator) -> Vec<(Place, Fault)>,
    ) -> Coordinator {
        Self::start_rank((0, 1), holders, adjust, faults).await
    }

    /// The same, of a worker that is this rank of so many. The others never have their weights, so that it is not told to meet
    /// them.
    pub async fn start_rank(
        (rank, count): (u16, usize),
        holders: Vec<Holder>,
        adjust: impl FnOnce(&mut Settings),
        faults: impl FnOnce(&Coordinator) -> Vec<(Place, Fault)>,
    ) -> Coordinator {
        let plan = Plan::with_shares(&spec(), &vec![1.0; count]);
        let (hear, heard) = mpsc::unbounded_channel();
        let service = Service {
            assignment: Assignment {
                epoch: Epoch(1),
                rank: Rank(rank),
                spec: spec(),
                plan,
                weights: WeightOrigin::Stream,
                weights_id: source().identity().unwrap(),
                kv_blocks: KvBlocks::plain(4),
                step_tokens_max: 16,
                logit_rows_max: 64,
                sampleable: vec![0..40_000],
                peers: vec!["127.0.0.1:1".into(); count],
                links: Default::default(),
                group_key: [0; 32],
                holders,
                lends: false,
            },
            giver: Giver::new(Vec::new()),
            heard: hear,
            orders: Mutex::default(),
        };
        let service = Arc::new(service);
        let (door, loading, tasks) = Default::default();
        let mut coordinator = Coordinator { service, heard, door, loading, tasks };
        *coordinator.service.giver.faults.lock().unwrap() = faults(&coordinator).into_iter().collect();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = FleetServer::from_arc(coordinator.service.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        let served = tonic::transport::Server::builder()
            .add_service(server)
            .serve_with_incoming(TcpListenerStream::new(listener));
        coordinator.tasks.0.push(tokio::spawn(async move { served.await.unwrap() }));
        let mut settings = settings(format!("http://{address}"));
        adjust(&mut settings);
        let worker = flotilla_worker::run(settings, std::future::pending());
        coordinator.tasks.0.push(tokio::spawn(async move { drop(worker.await) }));
        coordinator
    }

    /// Sends no chunk sooner than this after the one before.
    pub fn slow_down(&self, pause: Duration) {
        *self.service.giver.pause.lock().unwrap() = pause;
    }

    /// Waits until the worker has said where it hands on weights.
    pub async fn hear_hello(&mut self) {
        match self.heard.recv().await {
            Some(from_worker::Message::Hello(hello)) => self.door = Hello::try_from(hello).unwrap().hands_on,
            other => panic!("not Hello: {other:?}"),
        }
    }

    pub fn assignment(&self) -> &Assignment {
        &self.service.assignment
    }

    pub fn slices(&self) -> &[TensorSlice] {
        &self.service.giver.slices
    }

    /// The chunks that were sent, damaged or not.
    pub fn sent(&self) -> Vec<Place> {
        self.service.giver.sent.lock().unwrap().clone()
    }

    pub async fn expect_ready(&mut self) {
        match self.end_of_loading().await {
            from_worker::Message::Ready(_) => {}
            other => panic!("not ready: {other:?}"),
        }
    }

    /// Waits until one of several ranks has everything; what that is.
    pub async fn expect_loaded(&mut self) -> Vec<TensorSlice> {
        match self.end_of_loading().await {
            from_worker::Message::Loaded(_) => {}
            other => panic!("not loaded: {other:?}"),
        }
        let Assignment { plan, spec, rank, .. } = &self.service.assignment;
        plan.slices(spec, *rank)
    }

    /// The worker, as others are told of it.
    pub fn holder(&self) -> Holder {
        let Assignment { plan, rank, .. } = &self.service.assignment;
        let (address, key) = self.door.clone().expect("it hands on");
        let whole = holder(address, key);
        Holder { held: Held { share: plan.share(*rank).1.clone(), ..whole.held }, ..whole }
    }

    /// Why.
    pub async fn expect_failed(&mut self) -> String {
        self.expect_failure().await.reason
    }

    pub async fn expect_failure(&mut self) -> wire::Failed {
        match self.end_of_loading().await {
            from_worker::Message::Failed(failed) => failed,
            other => panic!("not failed: {other:?}"),
        }
    }

    pub fn order(&self, message: to_worker::Message) {
        let orders = self.service.orders.lock().unwrap();
        orders.as_ref().expect("it has joined").send(Ok(ToWorker { message: Some(message) })).unwrap();
    }

    /// The next that it says, whatever that is.
    pub async fn hear(&mut self) -> Option<from_worker::Message> {
        tokio::time::timeout(PATIENCE, self.heard.recv()).await.expect("it says something")
    }

    /// Waits until the worker has ended, without another word.
    pub async fn expect_gone(&mut self) {
        let worker = self.tasks.0.pop().expect("it was started");
        tokio::time::timeout(PATIENCE, worker).await.expect("it ends").unwrap();
        assert!(self.heard.try_recv().is_err(), "it said something");
    }

    async fn end_of_loading(&mut self) -> from_worker::Message {
        let heard = async {
            loop {
                match self.heard.recv().await.expect("the service is there") {
                    from_worker::Message::Hello(hello) => {
                        self.door = Hello::try_from(hello).unwrap().hands_on;
                    }
                    from_worker::Message::Loading(loading) => self.loading = loading.into(),
                    other => return other,
                }
            }
        };
        tokio::time::timeout(PATIENCE, heard).await.expect("the worker comes to an end")
    }
}

fn settings(coordinator: String) -> Settings {
    Settings {
        tls: None,
        coordinator,
        join_token: "any".into(),
        inventory: Inventory {
            name: "worker".into(),
            device: "cpu".into(),
            memory_bytes: 1 << 30,
            bandwidth: 0.0,
            compute: 0.0,
            expert_compute: 0.0,
            threads: 1,
            backend: BackendKind::Cpu,
            kv: KvDtype::F16,
        },
        collective_listen: "127.0.0.1:0".parse().unwrap(),
        advertise_host: "127.0.0.1".into(),
        device: Device::Cpu(CpuSettings::default()),
        weight_cache: None,
        weights_listen: None,
        weight_rate_max: None,
        join_timeout: Duration::from_secs(10),
        rejoin_timeout: Duration::ZERO,
        collective_timeout: Duration::from_secs(10),
        standing: Default::default(),
    }
}

type Chunks = Pin<Box<dyn Stream<Item = Result<wire::SliceChunk, Status>> + Send>>;

#[tonic::async_trait]
impl Fleet for Service {
    type JoinStream = UnboundedReceiverStream<Result<ToWorker, Status>>;
    type FetchStream = Chunks;

    async fn join(
        &self,
        request: Request<Streaming<FromWorker>>,
    ) -> Result<Response<Self::JoinStream>, Status> {
        let (orders, outbox) = mpsc::unbounded_channel();
        let assignment = to_worker::Message::Assignment((&self.assignment).into());
        orders.send(Ok(ToWorker { message: Some(assignment) })).expect("the receiver is here");
        *self.orders.lock().unwrap() = Some(orders.clone());
        let (mut says, heard) = (request.into_inner(), self.heard.clone());
        let is_alone = self.assignment.peers.len() == 1;
        tokio::spawn(async move {
            while let Some(Ok(FromWorker { message: Some(message) })) = says.next().await {
                match message {
                    from_worker::Message::Loaded(wire::Loaded { epoch }) if is_alone => {
                        let meet = to_worker::Message::Meet(wire::Meet { epoch });
                        let _ = orders.send(Ok(ToWorker { message: Some(meet) }));
                    }
                    message => drop(heard.send(message)),
                }
            }
        });
        Ok(Response::new(UnboundedReceiverStream::new(outbox)))
    }

    async fn fetch(
        &self,
        request: Request<wire::FetchRequest>,
    ) -> Result<Response<Self::FetchStream>, Status> {
        Ok(Response::new(self.giver.give(request.into_inner())))
    }
}

#[tonic::async_trait]
impl Weights for Giver {
    type FetchStream = Chunks;

    async fn fetch(
        &self,
        request: Request<wire::FetchRequest>,
    ) -> Result<Response<Self::FetchStream>, Status> {
        Ok(Response::new(self.give(request.into_inner())))
    }
}

impl Giver {
    fn new(faults: Vec<(Place, Fault)>) -> Giver {
        let slices = Plan::with_shares(&spec(), &[1.0]).slices(&spec(), Rank(0));
        let (faults, sent) = (Mutex::new(faults.into_iter().collect()), Mutex::default());
        let (bytes_sent, pause) = Default::default();
        Giver { source: source(), slices, faults, sent, bytes_sent, proven: true, pause }
    }

    fn give(&self, request: wire::FetchRequest) -> Chunks {
        let wire::FetchRequest { slices, extents, .. } = request;
        let slices: Vec<TensorSlice> = slices.into_iter().map(|slice| slice.try_into().unwrap()).collect();
        let mut chunks = Vec::new();
        for wire::Extent { slice: index, start, end } in extents {
            let extent = Extent { slice: index as usize, bytes: start as usize..end as usize };
            let slice = &slices[extent.slice];
            for chunk in extent.chunks() {
                // Of a part of a slice, the slice.
                let place = (self.slices.iter().position(|own| own.covers(slice)).unwrap(), chunk.start);
                let fault = self.fault(place);
                let offset = chunk.start as u64;
                match fault {
                    Some(Fault::Breaks(_)) => {
                        chunks.push(Err(Status::unavailable("the stream was cut")));
                        return Box::pin(tokio_stream::iter(chunks));
                    }
                    Some(Fault::Busy(_)) => {
                        chunks.push(Err(Status::resource_exhausted("others fetch here")));
                        return Box::pin(tokio_stream::iter(chunks));
                    }
                    Some(Fault::Unread(_)) => {
                        chunks.push(Err(Status::data_loss("model.safetensors: Input/output error")));
                        return Box::pin(tokio_stream::iter(chunks));
                    }
                    Some(Fault::Silent(_)) => {
                        return Box::pin(tokio_stream::iter(chunks).chain(tokio_stream::pending()));
                    }
                    Some(Fault::Lacking(_)) => {
                        chunks.push(Ok(wire::SliceChunk { slice: index, offset, ..Default::default() }));
                        break;
                    }
                    Some(Fault::Damaged(_)) | None => {}
                }
                self.sent.lock().unwrap().push(place);
                *self.bytes_sent.lock().unwrap() += chunk.len();
                let (mut bytes, digest) = read_chunk(&self.source, slice, chunk).unwrap();
                if fault.is_some() {
                    bytes[100] ^= 8;
                }
                let (data, digest, proven) = (bytes.into(), digest.0.to_vec().into(), self.proven);
                chunks.push(Ok(wire::SliceChunk { slice: index, offset, data, digest, proven }));
            }
        }
        let pause = *self.pause.lock().unwrap();
        Box::pin(tokio_stream::iter(chunks).then(move |chunk| async move {
            tokio::time::sleep(pause).await;
            chunk
        }))
    }

    /// What happens to the chunk this time.
    fn fault(&self, place: Place) -> Option<Fault> {
        let mut faults = self.faults.lock().unwrap();
        let fault = faults.get_mut(&place)?;
        match fault {
            Fault::Damaged(left)
            | Fault::Breaks(left)
            | Fault::Busy(left)
            | Fault::Unread(left)
            | Fault::Silent(left)
            | Fault::Lacking(left) => {
                *left = left.checked_sub(1)?;
                Some(*fault)
            }
        }
    }
}
