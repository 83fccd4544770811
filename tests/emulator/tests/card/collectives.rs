//! NCCL between threads and between processes, in graphs, and when a rank does not come.

use crate::support::{Card, card_on, nccl_library};
use cudarc::driver::sys::{CUgraphInstantiate_flags, CUresult, CUstreamCaptureMode};
use cudarc::driver::{CudaSlice, DevicePtr, DevicePtrMut};
use cudarc::nccl::sys::{self as nccl, ncclComm_t, ncclDataType_t, ncclRedOp_t, ncclResult_t, ncclUniqueId};
use std::time::{Duration, Instant};

const OK: ncclResult_t = ncclResult_t::ncclSuccess;
const F32: ncclDataType_t = ncclDataType_t::ncclFloat32;
const SUM: ncclRedOp_t = ncclRedOp_t::ncclSum;

fn unique_id() -> Option<ncclUniqueId> {
    nccl_library()?;
    let mut id = ncclUniqueId { internal: [0; 128] };
    // SAFETY: the id is ours to be written.
    assert_eq!(unsafe { nccl::ncclGetUniqueId(&mut id) }, OK);
    Some(id)
}

/// A rank with a card of its own.
struct Member {
    card: Card,
    comm: ncclComm_t,
    rank: usize,
    count: usize,
}

impl Member {
    fn join(id: ncclUniqueId, rank: usize, count: usize) -> Member {
        let card = card_on(rank).expect("a card for each rank");
        let mut comm = std::ptr::null_mut();
        // SAFETY: the context of the card is current on this thread.
        let joined = unsafe { nccl::ncclCommInitRank(&mut comm, count as i32, id, rank as i32) };
        assert_eq!(joined, OK, "rank {rank} of {count}");
        Member { card, comm, rank, count }
    }

    fn all_reduce(&self, x: &mut CudaSlice<f32>) -> ncclResult_t {
        let len = x.len();
        let pointer = x.device_ptr_mut(&self.card.stream).0;
        // SAFETY: in place, within the buffer.
        unsafe {
            nccl::ncclAllReduce(
                pointer as _,
                pointer as _,
                len,
                F32,
                SUM,
                self.comm,
                self.card.stream.cu_stream() as _,
            )
        }
    }

    fn contribution(&self, len: usize) -> Vec<f32> {
        (0..len).map(|i| (self.rank + 1) as f32 * 0.1 + i as f32).collect()
    }

    /// All-reduce, all-gather and a ring of sends, each checked.
    fn check_all(&self) {
        let stream = &self.card.stream;
        let len = 40_000; // more than a chunk
        let mut x = stream.clone_htod(&self.contribution(len)).unwrap();
        assert_eq!(self.all_reduce(&mut x), OK);
        let expected: Vec<f32> = (0..len)
            .map(|i| {
                (1..self.count).fold(0.1 + i as f32, |sum, rank| sum + ((rank + 1) as f32 * 0.1 + i as f32))
            })
            .collect();
        assert_eq!(stream.clone_dtoh(&x).unwrap(), expected, "sums are in rank order");

        let own = stream.clone_htod(&self.contribution(5)).unwrap();
        let mut all = stream.alloc_zeros::<f32>(5 * self.count).unwrap();
        let (from, to) = (own.device_ptr(stream).0, all.device_ptr_mut(stream).0);
        // SAFETY: 5 values from each rank.
        let gathered =
            unsafe { nccl::ncclAllGather(from as _, to as _, 5, F32, self.comm, stream.cu_stream() as _) };
        assert_eq!(gathered, OK);
        let all = stream.clone_dtoh(&all).unwrap();
        assert_eq!(all[5 * (self.count - 1)], self.count as f32 * 0.1);

        let (next, previous) = ((self.rank + 1) % self.count, (self.rank + self.count - 1) % self.count);
        let mut got = stream.alloc_zeros::<f32>(len).unwrap();
        let sent = stream.clone_htod(&self.contribution(len)).unwrap();
        let (from, to) = (sent.device_ptr(stream).0, got.device_ptr_mut(stream).0);
        // SAFETY: `len` values each way, in one group.
        unsafe {
            assert_eq!(nccl::ncclGroupStart(), OK);
            assert_eq!(
                nccl::ncclSend(from as _, len, F32, next as i32, self.comm, stream.cu_stream() as _),
                OK
            );
            assert_eq!(
                nccl::ncclRecv(to as _, len, F32, previous as i32, self.comm, stream.cu_stream() as _),
                OK
            );
            assert_eq!(nccl::ncclGroupEnd(), OK);
        }
        assert_eq!(stream.clone_dtoh(&got).unwrap()[7], (previous + 1) as f32 * 0.1 + 7.0);
    }
}

fn with_members(count: usize, body: impl Fn(&Member) + Sync) {
    let Some(id) = unique_id() else { return };
    std::thread::scope(|scope| {
        for rank in 0..count {
            let body = &body;
            scope.spawn(move || body(&Member::join(id, rank, count)));
        }
    });
}

#[test]
fn three_threads_sum_gather_and_send() {
    with_members(3, |member| {
        member.check_all();
        // SAFETY: the communicator is ours.
        assert_eq!(unsafe { nccl::ncclCommDestroy(member.comm) }, OK);
    });
}

#[test]
fn collectives_are_nodes_of_a_graph() {
    with_members(2, |member| {
        let stream = &member.card.stream;
        let mut x = stream.clone_htod(&[1.0f32; 8]).unwrap();
        stream.synchronize().unwrap();
        stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).unwrap();
        assert_eq!(member.all_reduce(&mut x), OK);
        assert_eq!(member.all_reduce(&mut x), OK);
        let graph = stream.end_capture(CUgraphInstantiate_flags(0)).unwrap().unwrap();
        graph.launch().unwrap();
        graph.launch().unwrap();
        assert_eq!(stream.clone_dtoh(&x).unwrap(), [16.0; 8]);
        drop(graph);
        // SAFETY: the communicator is ours.
        assert_eq!(unsafe { nccl::ncclCommDestroy(member.comm) }, OK);
    });
}

#[test]
fn a_rank_that_does_not_come_hangs_the_others_until_they_abort() {
    with_members(2, |member| {
        let mut x = member.card.stream.clone_htod(&[1.0f32; 8]).unwrap();
        member.card.stream.synchronize().unwrap();
        if member.rank == 0 {
            assert_eq!(member.all_reduce(&mut x), OK, "queued");
            std::thread::sleep(Duration::from_millis(100));
            // SAFETY: the stream is ours.
            let state = unsafe { cudarc::driver::sys::cuStreamQuery(member.card.stream.cu_stream()) };
            assert_eq!(state, CUresult::CUDA_ERROR_NOT_READY);
            let mut error = ncclResult_t::ncclInternalError;
            // SAFETY: the communicator is ours.
            assert_eq!(unsafe { nccl::ncclCommGetAsyncError(member.comm, &mut error) }, OK);
            assert_eq!(error, OK, "nobody says that anything is wrong");
        }
        let start = Instant::now();
        // SAFETY: the communicator is ours.
        assert_eq!(unsafe { nccl::ncclCommAbort(member.comm) }, OK);
        member.card.stream.synchronize().unwrap();
        assert!(start.elapsed() < Duration::from_secs(2));
    });
}

#[test]
fn ranks_that_differ_in_their_counts_are_told() {
    with_members(2, |member| {
        let mut x = member.card.stream.clone_htod(&vec![1.0f32; 8 + member.rank]).unwrap();
        assert_eq!(member.all_reduce(&mut x), OK);
        member.card.stream.synchronize().unwrap();
        let mut error = OK;
        // SAFETY: the communicator is ours.
        unsafe {
            assert_eq!(nccl::ncclCommGetAsyncError(member.comm, &mut error), OK);
            assert_eq!(nccl::ncclCommAbort(member.comm), OK);
        }
        assert_eq!(error, ncclResult_t::ncclInvalidUsage);
    });
}

fn does_not_block() -> nccl::ncclConfig_t {
    // SAFETY: all zero is a valid value of a struct of integers and pointers; what NCCL reads is set below.
    let mut config: nccl::ncclConfig_t = unsafe { std::mem::zeroed() };
    config.size = size_of::<nccl::ncclConfig_t>();
    config.blocking = 0;
    config
}

#[test]
fn a_communicator_that_does_not_block_can_be_aborted_while_ranks_are_missing() {
    let Some(id) = unique_id() else { return };
    let _card = card_on(0).unwrap();
    let mut config = does_not_block();
    let mut comm = std::ptr::null_mut();
    // SAFETY: the context of the card is current on this thread.
    unsafe {
        assert_eq!(
            nccl::ncclCommInitRankConfig(&mut comm, 2, id, 0, &mut config),
            ncclResult_t::ncclInProgress
        );
        let mut state = OK;
        assert_eq!(nccl::ncclCommGetAsyncError(comm, &mut state), OK);
        assert_eq!(state, ncclResult_t::ncclInProgress);
        assert_eq!(nccl::ncclCommAbort(comm), OK);
    }
}

impl Member {
    fn join_without_blocking(id: ncclUniqueId, rank: usize, count: usize) -> Member {
        let card = card_on(rank).expect("a card for each rank");
        let (mut comm, mut config) = (std::ptr::null_mut(), does_not_block());
        // SAFETY: the context of the card is current on this thread.
        let joining =
            unsafe { nccl::ncclCommInitRankConfig(&mut comm, count as i32, id, rank as i32, &mut config) };
        assert_eq!(joining, ncclResult_t::ncclInProgress);
        let member = Member { card, comm, rank, count };
        assert_eq!(member.end_of_call(), OK);
        member
    }

    fn state(&self) -> ncclResult_t {
        let mut state = OK;
        // SAFETY: the communicator is ours.
        assert_eq!(unsafe { nccl::ncclCommGetAsyncError(self.comm, &mut state) }, OK);
        state
    }

    fn end_of_call(&self) -> ncclResult_t {
        while self.state() == ncclResult_t::ncclInProgress {
            std::thread::yield_now();
        }
        self.state()
    }
}

/// What does not block is in progress until all ranks have come, takes no second call before, and may be recorded meanwhile.
#[test]
fn a_sum_that_does_not_block_is_in_progress_until_all_ranks_call() {
    let Some(id) = unique_id() else { return };
    let (go, may_go) = std::sync::mpsc::channel();
    let (mut go, mut may_go) = (Some(go), Some(may_go));
    std::thread::scope(|scope| {
        for rank in 0..2 {
            // Of each one end: a rank that fails lets the other go.
            let go = go.take().filter(|_| rank == 0);
            let may_go = if rank == 1 { may_go.take() } else { None };
            scope.spawn(move || {
                let member = Member::join_without_blocking(id, rank, 2);
                let stream = &member.card.stream;
                let mut x = stream.clone_htod(&[1.0f32; 8]).unwrap();
                stream.synchronize().unwrap();
                may_go.iter().for_each(|may_go| may_go.recv().expect("the other has called"));
                stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).unwrap();
                assert_eq!(member.all_reduce(&mut x), ncclResult_t::ncclInProgress);
                if rank == 0 {
                    assert_eq!(member.state(), ncclResult_t::ncclInProgress, "nobody else has come");
                    assert_eq!(member.all_reduce(&mut x), ncclResult_t::ncclInvalidArgument);
                    go.iter().for_each(|go| go.send(()).unwrap());
                }
                assert_eq!(member.end_of_call(), OK);
                let graph = stream.end_capture(CUgraphInstantiate_flags(0)).unwrap().unwrap();
                graph.launch().unwrap();
                graph.launch().unwrap();
                assert_eq!(stream.clone_dtoh(&x).unwrap(), [4.0; 8]);
                drop(graph);
                // SAFETY: the communicator is ours.
                assert_eq!(unsafe { nccl::ncclCommDestroy(member.comm) }, OK);
            });
        }
    });
}

#[test]
fn a_sum_that_waits_for_ranks_can_be_aborted() {
    let Some(id) = unique_id() else { return };
    std::thread::scope(|scope| {
        for rank in 0..2 {
            scope.spawn(move || {
                let member = Member::join_without_blocking(id, rank, 2);
                let mut x = member.card.stream.clone_htod(&[1.0f32; 8]).unwrap();
                if rank == 0 {
                    assert_eq!(member.all_reduce(&mut x), ncclResult_t::ncclInProgress);
                }
                // SAFETY: the communicator is ours.
                assert_eq!(unsafe { nccl::ncclCommAbort(member.comm) }, OK);
                assert_eq!(member.card.stream.clone_dtoh(&x).unwrap(), [1.0; 8], "it never began");
            });
        }
    });
}

#[test]
fn two_ranks_on_one_card_are_refused_as_nccl_refuses_them() {
    let Some(id) = unique_id() else { return };
    std::thread::scope(|scope| {
        for rank in 0..2 {
            scope.spawn(move || {
                let _card = card_on(0).unwrap();
                let mut comm = std::ptr::null_mut();
                // SAFETY: the context of the card is current on this thread.
                let joined = unsafe { nccl::ncclCommInitRank(&mut comm, 2, id, rank) };
                assert_eq!(joined, ncclResult_t::ncclInvalidUsage);
            });
        }
    });
}

const CHILD_RANK: &str = "FLOTILLA_EMULATOR_TEST_RANK";
const CHILD_ID: &str = "FLOTILLA_EMULATOR_TEST_ID";

/// Not a test of its own: what the processes of the next test do.
#[test]
fn child_process_of_two_processes() {
    let Ok(rank) = std::env::var(CHILD_RANK) else { return };
    let text = std::env::var(CHILD_ID).unwrap();
    let mut id = unique_id().unwrap();
    id.internal = [0; 128];
    for (to, from) in id.internal.iter_mut().zip(text.bytes()) {
        *to = from as _;
    }
    let member = Member::join(id, rank.parse().unwrap(), 2);
    member.check_all();
}

#[test]
fn two_processes_sum_gather_and_send() {
    let Some(id) = unique_id() else { return };
    let id: String = id.internal.iter().map(|&c| c as u8 as char).take_while(|&c| c != '\0').collect();
    let children: Vec<_> = (0..2)
        .map(|rank| {
            std::process::Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "collectives::child_process_of_two_processes"])
                .env(CHILD_RANK, rank.to_string())
                .env(CHILD_ID, &id)
                .stdout(std::process::Stdio::piped())
                .stderr(std::process::Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    for child in children {
        let output = child.wait_with_output().unwrap();
        assert!(
            output.status.success(),
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    assert!(!std::path::Path::new("/dev/shm").join(&id[1..]).exists(), "nothing stays behind");
}
