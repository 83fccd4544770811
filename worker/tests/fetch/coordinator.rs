//! A coordinator for one worker: it assigns the whole of a small model, and serves its weights with faults.

use flotilla_engine::backend::cpu::CpuSettings;
use flotilla_engine::weights::{Extent, Synthetic, WeightSource, read_chunk};
use flotilla_proto::wire::fleet_server::{Fleet, FleetServer};
use flotilla_proto::wire::{FromWorker, ToWorker, from_worker, to_worker};
use flotilla_proto::{MESSAGE_BYTES_MAX, wire};
use flotilla_shared::{
    Assignment, BackendKind, Epoch, Inventory, KvBlocks, KvDtype, LayerKind, ModelSpec, Plan, Rank,
    TensorSlice, WeightOrigin,
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
}

type Place = (usize, usize);

struct Service {
    assignment: Assignment,
    source: Synthetic,
    slices: Vec<TensorSlice>,
    faults: Mutex<BTreeMap<Place, Fault>>,
    sent: Mutex<Vec<Place>>,
    heard: mpsc::UnboundedSender<from_worker::Message>,
}

pub struct Coordinator {
    service: Arc<Service>,
    heard: mpsc::UnboundedReceiver<from_worker::Message>,
    tasks: Vec<JoinHandle<()>>,
}

impl Drop for Coordinator {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// 12 MB.
fn spec() -> ModelSpec {
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
        let (source, plan) = (Synthetic::new(spec(), 4), Plan::with_shares(&spec(), &[1.0]));
        let (hear, heard) = mpsc::unbounded_channel();
        let service = Service {
            slices: plan.slices(&spec(), Rank(0)),
            assignment: Assignment {
                epoch: Epoch(1),
                rank: Rank(0),
                spec: spec(),
                plan,
                weights: WeightOrigin::Stream,
                weights_id: source.identity().unwrap(),
                kv_blocks: KvBlocks::plain(4),
                step_tokens_max: 16,
                sampleable: vec![0..40_000],
                peers: vec!["127.0.0.1:1".into()],
                links: Default::default(),
                group_key: [0; 32],
                holders: Vec::new(),
            },
            source,
            faults: Mutex::default(),
            sent: Mutex::default(),
            heard: hear,
        };
        let mut coordinator = Coordinator { service: Arc::new(service), heard, tasks: Vec::new() };
        *coordinator.service.faults.lock().unwrap() = faults(&coordinator).into_iter().collect();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = FleetServer::from_arc(coordinator.service.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        let served = tonic::transport::Server::builder()
            .add_service(server)
            .serve_with_incoming(TcpListenerStream::new(listener));
        coordinator.tasks.push(tokio::spawn(async move { served.await.unwrap() }));
        let worker = flotilla_worker::run(settings(format!("http://{address}")), std::future::pending());
        coordinator.tasks.push(tokio::spawn(async move { drop(worker.await) }));
        coordinator
    }

    pub fn slices(&self) -> &[TensorSlice] {
        &self.service.slices
    }

    /// The chunks that were sent, damaged or not.
    pub fn sent(&self) -> Vec<Place> {
        self.service.sent.lock().unwrap().clone()
    }

    pub async fn expect_ready(&mut self) {
        match self.end_of_loading().await {
            from_worker::Message::Ready(_) => {}
            other => panic!("not ready: {other:?}"),
        }
    }

    /// Why.
    pub async fn expect_failed(&mut self) -> String {
        match self.end_of_loading().await {
            from_worker::Message::Failed(failed) => failed.reason,
            other => panic!("not failed: {other:?}"),
        }
    }

    async fn end_of_loading(&mut self) -> from_worker::Message {
        let heard = async {
            loop {
                match self.heard.recv().await.expect("the service is there") {
                    from_worker::Message::Hello(_) | from_worker::Message::Loading(_) => {}
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
        let (mut says, heard) = (request.into_inner(), self.heard.clone());
        tokio::spawn(async move {
            while let Some(Ok(FromWorker { message: Some(message) })) = says.next().await {
                let _ = heard.send(message);
            }
            drop(orders);
        });
        Ok(Response::new(UnboundedReceiverStream::new(outbox)))
    }

    async fn fetch(
        &self,
        request: Request<wire::FetchRequest>,
    ) -> Result<Response<Self::FetchStream>, Status> {
        let wire::FetchRequest { slices, extents, .. } = request.into_inner();
        let slices: Vec<TensorSlice> = slices.into_iter().map(|slice| slice.try_into().unwrap()).collect();
        let extents = extents
            .into_iter()
            .map(|wire| Extent { slice: wire.slice as usize, bytes: wire.start as usize..wire.end as usize });
        let wanted = extents.flat_map(|extent| extent.chunks().map(move |chunk| (extent.slice, chunk)));
        let mut chunks = Vec::new();
        for (index, chunk) in wanted {
            let slice = &slices[index];
            let place = (self.slices.iter().position(|own| own == slice).unwrap(), chunk.start);
            let fault = self.fault(place);
            if let Some(Fault::Breaks(_)) = fault {
                chunks.push(Err(Status::unavailable("the stream was cut")));
                break;
            }
            self.sent.lock().unwrap().push(place);
            let (mut bytes, digest) = read_chunk(&self.source, slice, chunk).unwrap();
            if fault.is_some() {
                bytes[100] ^= 8;
            }
            let (data, digest) = (bytes.into(), digest.0.to_vec().into());
            chunks.push(Ok(wire::SliceChunk { slice: index as u32, offset: place.1 as u64, data, digest }));
        }
        Ok(Response::new(Box::pin(tokio_stream::iter(chunks))))
    }
}

impl Service {
    /// What happens to the chunk this time.
    fn fault(&self, place: Place) -> Option<Fault> {
        let mut faults = self.faults.lock().unwrap();
        let fault = faults.get_mut(&place)?;
        match fault {
            Fault::Damaged(0) | Fault::Breaks(0) => None,
            Fault::Damaged(left) | Fault::Breaks(left) => {
                *left -= 1;
                Some(*fault)
            }
        }
    }
}
