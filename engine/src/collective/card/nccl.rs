//! One NCCL communicator, of one group in one epoch. Nothing here waits for NCCL without a deadline: it is
//! told not to block, and is asked again and again. (What is public here is so for tests: one rank alone, and two on
//! one card, are groups that [`super::CardCollective`] never makes.)

use super::wait;
use crate::cuda::{Card, CudaError, Nccl, Source, Version, nccl};
use cudarc::driver::{CudaFunction, CudaSlice, CudaStream, DevicePtrMut, LaunchConfig, PushKernelArg, sys};
use flotilla_shared::Rank;
use std::ptr;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

/// Between two questions to a communicator that is at work.
const ASK_EVERY: Duration = Duration::from_micros(200);
/// How long a call may be in progress that should only hand work to the card.
const ENQUEUE: Duration = Duration::from_secs(10);
/// How long an abort is waited for.
const ABORT: Duration = Duration::from_secs(2);
/// How long a call is asked about without a pause: handing a sum to the card takes less.
const ASK_AT_ONCE: Duration = Duration::from_millis(2);
/// How long the other ranks are waited for when this one leaves in peace.
const LEAVE: Duration = Duration::from_secs(2);
/// NCCL takes several ranks on one card from here on, if it is told to.
const SHARES_CARDS: Version = Version { major: 2, minor: 30, patch: 0 };
const BLOCKS_MAX: u32 = 256;
const BLOCK_THREADS: u32 = 256;

/// By which the ranks of a communicator find each other.
pub type Id = nccl::sys::ncclUniqueId;

/// A communicator on its way to its end.
struct Ending(nccl::sys::ncclComm_t);

// SAFETY: a communicator may be used by any thread, one at a time; this one has one owner.
unsafe impl Send for Ending {}

#[doc(hidden)]
pub struct Communicator {
    nccl: Nccl,
    card: Card,
    /// Null once it is aborted or destroyed.
    comm: nccl::sys::ncclComm_t,
    narrow: Option<Narrow>,
    /// Where an abort that is under way says that it is done.
    ending: Option<mpsc::Receiver<()>>,
}

// SAFETY: a communicator belongs to no thread; it is used by one at a time, since all its uses are by
// `&mut self` or its owner's.
unsafe impl Send for Communicator {}

/// What sums in bf16 need.
struct Narrow {
    /// bf16 [elements_max]
    values: CudaSlice<u16>,
    to_wire: CudaFunction,
    from_wire: CudaFunction,
}

/// The kernels of [`super::Wire::Bf16`].
pub fn wire_source() -> Source {
    Source { name: "wire.cu", text: include_str!("wire.cu"), defines: vec![] }
}

pub(super) fn shares_cards(version: Version) -> bool {
    version >= SHARES_CARDS && std::env::var("NCCL_MULTI_RANK_GPU_ENABLE").as_deref() == Ok("1")
}

/// Whether it leaves the buffers of its process's other cards alone.
pub(super) fn keeps_to_itself() -> bool {
    std::env::var("NCCL_P2P_DIRECT_DISABLE").as_deref() == Ok("1")
}

/// Rank 0's, for all.
#[doc(hidden)]
pub fn make_id(nccl: &Nccl) -> Result<Id, String> {
    let mut id = Id { internal: [0; 128] };
    // SAFETY: NCCL writes one id.
    match unsafe { (nccl.get_unique_id)(&mut id) } {
        nccl::SUCCESS => Ok(id),
        code => Err(format!("cannot make an id: {}", nccl.words(code))),
    }
}

/// As it goes over the ranks' link.
pub(super) fn id_bytes(id: &Id) -> Vec<u8> {
    id.internal.iter().map(|byte| *byte as u8).collect()
}

pub(super) fn id_of(bytes: &[u8]) -> Option<Id> {
    let bytes: [u8; 128] = bytes.try_into().ok()?;
    Some(Id { internal: bytes.map(|byte| byte as std::ffi::c_char) })
}

impl Communicator {
    /// Meets the other ranks. `is_vain` is asked while they are waited for.
    pub fn meet(
        nccl: Nccl,
        card: &Card,
        id: Id,
        (rank, size): (Rank, usize),
        deadline: Duration,
        is_vain: impl FnMut() -> bool,
    ) -> Result<Self, String> {
        let context = card.stream().context();
        context.bind_to_thread().map_err(|error| CudaError::from(error).to_string())?;
        let (card, comm) = (card.clone(), ptr::null_mut());
        let mut this = Communicator { nccl, card, comm, narrow: None, ending: None };
        let mut config = nccl::config(false);
        let (ranks, rank) = (size as i32, i32::from(rank.0));
        // SAFETY: the configuration is complete (`nccl::config`); the communicator is where NCCL writes it.
        let code = unsafe { (nccl.comm_init_rank_config)(&mut this.comm, ranks, id, rank, &mut config) };
        match this.finish(code, deadline, is_vain) {
            Ok(()) => Ok(this),
            Err(reason) => {
                // There is nothing to leave in peace: what has not begun can only be broken off.
                this.abort();
                Err(format!("cannot form the group: {reason}"))
            }
        }
    }

    /// Sums in bf16 from now on, of up to so many values.
    pub fn narrow(&mut self, elements_max: usize) -> Result<(), CudaError> {
        let module = self.card.compile(&wire_source())?;
        let (to_wire, from_wire) = (module.kernel("to_wire")?, module.kernel("from_wire")?);
        let values = self.card.zeros(elements_max.max(1))?;
        self.narrow = Some(Narrow { values, to_wire, from_wire });
        Ok(())
    }

    /// y: f32 [n] on the card, summed in the stream's order. May be captured. `is_vain` is asked where the call takes long,
    /// as where NCCL connects the ranks first, which waits for all of them.
    pub fn enqueue(
        &mut self,
        stream: &CudaStream,
        y: sys::CUdeviceptr,
        n: usize,
        is_vain: impl FnMut() -> bool,
    ) -> Result<(), String> {
        let Some(mut narrow) = self.narrow.take() else {
            return self.sum(stream, y, n, nccl::sys::ncclDataType_t::ncclFloat32, is_vain);
        };
        let result = self.sum_narrow(&mut narrow, stream, y, n, is_vain);
        self.narrow = Some(narrow);
        result
    }

    fn sum_narrow(
        &mut self,
        narrow: &mut Narrow,
        stream: &CudaStream,
        y: sys::CUdeviceptr,
        n: usize,
        is_vain: impl FnMut() -> bool,
    ) -> Result<(), String> {
        let count = n as u32;
        let shape = LaunchConfig {
            grid_dim: (count.div_ceil(BLOCK_THREADS).min(BLOCKS_MAX), 1, 1),
            block_dim: (BLOCK_THREADS, 1, 1),
            shared_mem_bytes: 0,
        };
        let failed = |error| CudaError::doing("convert sums")(error).to_string();
        assert!(n <= narrow.values.len(), "a sum of {n}, {} were announced", narrow.values.len());
        let mut launch = stream.launch_builder(&narrow.to_wire);
        launch.arg(&y).arg(&count).arg(&mut narrow.values);
        // SAFETY: the arguments are those of `to_wire`; both buffers have n values.
        unsafe { launch.launch(shape) }.map_err(failed)?;
        let (wire, _record) = narrow.values.device_ptr_mut(stream);
        self.sum(stream, wire, n, nccl::sys::ncclDataType_t::ncclBfloat16, is_vain)?;
        let mut launch = stream.launch_builder(&narrow.from_wire);
        launch.arg(&wire).arg(&count).arg(&y);
        // SAFETY: as above, for `from_wire`.
        unsafe { launch.launch(shape) }.map_err(failed)?;
        Ok(())
    }

    fn sum(
        &mut self,
        stream: &CudaStream,
        values: sys::CUdeviceptr,
        n: usize,
        kind: nccl::sys::ncclDataType_t,
        is_vain: impl FnMut() -> bool,
    ) -> Result<(), String> {
        if self.comm.is_null() {
            return Err("the communicator has ended".into());
        }
        stream.context().bind_to_thread().map_err(|error| CudaError::from(error).to_string())?;
        let add = nccl::sys::ncclRedOp_t::ncclSum;
        // SAFETY: the values are n of this kind, on the communicator's card; in place is allowed.
        let code = unsafe {
            let at = values as *mut std::ffi::c_void;
            (self.nccl.all_reduce)(at, at, n, kind, add, self.comm, stream.cu_stream().cast())
        };
        self.finish(code, ENQUEUE, is_vain)
    }

    /// Waits until a call is no longer in progress. `is_vain` is asked only of one that is so for longer than most.
    fn finish(
        &mut self,
        mut code: nccl::Code,
        deadline: Duration,
        mut is_vain: impl FnMut() -> bool,
    ) -> Result<(), String> {
        let start = Instant::now();
        while code == nccl::IN_PROGRESS {
            if start.elapsed() <= ASK_AT_ONCE {
                thread::yield_now();
            } else if is_vain() {
                return Err("another rank has ended the group".into());
            } else if start.elapsed() > deadline {
                return Err(format!("not done within {deadline:?}"));
            } else {
                thread::sleep(ASK_EVERY);
            }
            code = self.state();
        }
        if code == nccl::SUCCESS { Ok(()) } else { Err(self.nccl.words(code)) }
    }

    fn state(&self) -> nccl::Code {
        if self.comm.is_null() {
            return nccl::SUCCESS;
        }
        let mut state = nccl::SUCCESS;
        // SAFETY: the communicator is there; NCCL writes one code.
        match unsafe { (self.nccl.comm_get_async_error)(self.comm, &mut state) } {
            nccl::SUCCESS => state,
            code => code,
        }
    }

    /// What has gone wrong behind the scenes, such as a broken connection.
    pub fn trouble(&self) -> Option<String> {
        match self.state() {
            nccl::SUCCESS | nccl::IN_PROGRESS => None,
            code => Some(self.nccl.words(code)),
        }
    }

    /// Ends this rank's kernels, wherever they wait.
    ///
    /// NCCL tells them to end at once, but returns only when no recorded step holds the communicator any
    /// more; and those belong to the backend. So it is waited for when this is dropped, which is when they are gone.
    pub fn abort(&mut self) {
        let comm = std::mem::replace(&mut self.comm, ptr::null_mut());
        if comm.is_null() {
            return;
        }
        let (nccl, card, comm) = (self.nccl, self.card.clone(), Ending(comm));
        let (done, on_done) = mpsc::channel();
        let abort = move || {
            let comm = comm;
            if let Err(error) = card.stream().context().bind_to_thread() {
                tracing::warn!("{}", CudaError::from(error));
            }
            // SAFETY: the communicator is there, and nobody else has it any more.
            let code = unsafe { (nccl.comm_abort)(comm.0) };
            if code != nccl::SUCCESS && code != nccl::IN_PROGRESS {
                tracing::warn!("NCCL cannot abort: {}", nccl.words(code));
            }
            // Nobody listens once the time is up.
            let _ = done.send(());
        };
        if let Err(error) = thread::Builder::new().name("nccl-abort".into()).spawn(abort) {
            tracing::warn!("NCCL is not told to abort: {error}");
        } else {
            self.ending = Some(on_done);
        }
    }

    /// Leaves when the others leave; whoever stays away is not waited for long.
    fn leave(&mut self) -> Result<(), String> {
        if !wait::is_quiet_within(self.card.stream(), LEAVE) {
            return Err("the card is still at work".into());
        }
        self.card.stream().context().bind_to_thread().map_err(|error| CudaError::from(error).to_string())?;
        // SAFETY: the communicator is there, and nothing of it is under way.
        let code = unsafe { (self.nccl.comm_finalize)(self.comm) };
        self.finish(code, LEAVE, || false)?;
        let comm = std::mem::replace(&mut self.comm, ptr::null_mut());
        // SAFETY: it is finalized, and is forgotten by this.
        match unsafe { (self.nccl.comm_destroy)(comm) } {
            nccl::SUCCESS | nccl::IN_PROGRESS => Ok(()),
            code => Err(self.nccl.words(code)),
        }
    }
}

impl Drop for Communicator {
    fn drop(&mut self) {
        if !self.comm.is_null()
            && let Err(reason) = self.leave()
        {
            tracing::debug!("leaving NCCL's group: {reason}");
            self.abort();
        }
        if self.ending.take().is_some_and(|done| done.recv_timeout(ABORT).is_err()) {
            tracing::debug!("NCCL still aborts");
        }
    }
}
