//! What a card does in this machine, measured: how fast it reads its memory, and how fast it and the
//! machine, or it and another card, copy to each other. Each figure is the median of several runs.

use super::card::Card;
use super::compile::Source;
use super::driver;
use super::error::CudaError;
use cudarc::driver::sys::{CUevent_flags, cuCtxEnablePeerAccess, cuDeviceCanAccessPeer};
use cudarc::driver::{CudaFunction, CudaSlice, DevicePtrMut, DriverError, LaunchConfig, PinnedHostSlice};
use cudarc::driver::{PushKernelArg, result, sys};
use std::time::{Duration, Instant};

/// Runs whose median is the figure, after one that is not counted.
const RUNS: usize = 7;
/// Of copies of [`SMALL_BYTES`].
const SMALL_RUNS: usize = 41;
/// One row of 2880 values of two bytes: what two all-reduces a layer carry for one token.
const SMALL_BYTES: usize = 5760;
const LARGE_BYTES: usize = 64 << 20;
/// A run that takes less tells more about its start than about the memory.
const LONG_ENOUGH: Duration = Duration::from_millis(2);
/// The buffer that is read grows from here, until reading it takes long enough and no cache holds it.
const READ_BYTES_MIN: usize = 16 << 20;
const READ_BYTES_MAX: usize = 2 << 30;
const READ_THREADS: u32 = 512;
const READ_BLOCKS_PER_MULTIPROCESSOR: u32 = 8;
/// What the buffer holds, byte by byte; read as words of four.
const READ_PATTERN: u8 = 0x2b;

/// Bytes and the time that they took.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    pub bytes: u64,
    pub time: Duration,
}

impl Rate {
    pub fn bytes_per_second(self) -> f64 {
        self.bytes as f64 / self.time.as_secs_f64().max(1e-9)
    }
}

/// Two ways between two memories: how long a small copy takes until the host sees it done, and how fast a
/// large one goes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Copies {
    pub small: Rate,
    pub large: Rate,
}

/// How two cards reach each other.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Link {
    /// One reads and writes the other's memory; if not, the driver copies through the machine's memory.
    pub peer_access: bool,
    pub copies: Copies,
}

/// The kernel that reads.
pub fn source() -> Source {
    Source { name: "bandwidth.cu", text: include_str!("bandwidth.cu"), defines: vec![] }
}

/// How fast the card reads its memory, from a buffer that is much larger than its cache, or as large as
/// what is free allows.
pub fn read(card: &Card) -> Result<Rate, CudaError> {
    let kernel = card.compile(&source())?.kernel("read_sum")?;
    let room = usize::try_from(card.memory_free_bytes()? / 2).unwrap_or(usize::MAX).min(READ_BYTES_MAX);
    let uncached = card.facts().l2_bytes.saturating_mul(8);
    let mut bytes = READ_BYTES_MIN;
    loop {
        let rate = read_buffer(card, &kernel, bytes)?;
        let enough = rate.time >= LONG_ENOUGH && rate.bytes >= uncached;
        if enough || bytes.saturating_mul(2) > room {
            return Ok(rate);
        }
        bytes *= 2;
    }
}

fn read_buffer(card: &Card, kernel: &CudaFunction, bytes: usize) -> Result<Rate, CudaError> {
    let stream = card.stream();
    // SAFETY: it is filled at once.
    let mut buffer = unsafe { card.unset::<u8>(bytes)? };
    fill(card, &mut buffer)?;
    let blocks = card.facts().multiprocessors.max(1) * READ_BLOCKS_PER_MULTIPROCESSOR;
    let mut sums = card.zeros::<u32>(blocks as usize)?;
    let count = (bytes / 16) as u64;
    let shape =
        LaunchConfig { grid_dim: (blocks, 1, 1), block_dim: (READ_THREADS, 1, 1), shared_mem_bytes: 0 };
    let time = median_on_card(card, || {
        let mut launch = stream.launch_builder(kernel);
        launch.arg(&buffer).arg(&count).arg(&mut sums);
        // SAFETY: the arguments are those of read_sum: `count` times 16 bytes are read, and one word a
        // block is written.
        unsafe { launch.launch(shape) }.map(|_| ())
    })?;

    let found = card.download(&sums)?.into_iter().fold(0, u32::wrapping_add);
    let expected = u32::from_ne_bytes([READ_PATTERN; 4]).wrapping_mul((bytes / 4) as u32);
    if found != expected {
        return Err(CudaError::Wrong {
            ordinal: card.facts().ordinal,
            what: "the sum of a buffer",
            found: format!("{found:#x}"),
            expected: format!("{expected:#x}"),
        });
    }
    Ok(Rate { bytes: bytes as u64, time })
}

fn fill(card: &Card, buffer: &mut CudaSlice<u8>) -> Result<(), CudaError> {
    let stream = card.stream();
    let bytes = buffer.len();
    let (to, _written) = buffer.device_ptr_mut(stream);
    // SAFETY: the buffer has so many bytes, and lives until the stream is waited for.
    let filled = unsafe { result::memset_d8_async(to, READ_PATTERN, bytes, stream.cu_stream()) };
    filled.map_err(CudaError::doing("fill a buffer"))?;
    card.synchronize()
}

/// From the machine's memory (pinned) to the card's, and back.
pub fn host(card: &Card) -> Result<(Copies, Copies), CudaError> {
    let large = LARGE_BYTES.min(card.memory_free_bytes()? as usize / 4).max(SMALL_BYTES);
    let mut on_card = card.zeros::<u8>(large)?;
    let pinned = |bytes| -> Result<PinnedHostSlice<u8>, CudaError> {
        // SAFETY: it is set to zero on the next line; no flags are asked for.
        let pinned = unsafe { card.stream().context().alloc_pinned_with_flags::<u8>(bytes, 0) };
        let mut pinned = pinned.map_err(CudaError::doing("pin memory of the machine"))?;
        pinned.as_mut_slice().map_err(CudaError::doing("wait"))?.fill(0);
        Ok(pinned)
    };
    let (mut on_host, mut small) = (pinned(large)?, pinned(SMALL_BYTES)?);
    let stream = card.stream();
    let to_card = Copies {
        small: seen(card, SMALL_BYTES, || stream.memcpy_htod(&small, &mut on_card))?,
        large: timed(card, large, || stream.memcpy_htod(&on_host, &mut on_card))?,
    };
    let to_host = Copies {
        small: seen(card, SMALL_BYTES, || stream.memcpy_dtoh(&on_card.slice(..SMALL_BYTES), &mut small))?,
        large: timed(card, large, || stream.memcpy_dtoh(&on_card, &mut on_host))?,
    };
    Ok((to_card, to_host))
}

/// From one card's memory to another's; nothing where the driver has no such copies.
pub fn link(from: &Card, to: &Card) -> Result<Option<Link>, CudaError> {
    if !["cuDeviceCanAccessPeer", "cuCtxEnablePeerAccess", "cuMemcpyPeerAsync"].into_iter().all(driver::has) {
        return Ok(None);
    }
    let peer_access = enable_peer_access(to, from)?;
    let free = from.memory_free_bytes()?.min(to.memory_free_bytes()?) as usize;
    let large = LARGE_BYTES.min(free / 4).max(SMALL_BYTES);
    let (source, target) = (Own::new(from, large)?, Own::new(to, large)?);
    let (from_context, to_context) = (from.stream().context().cu_ctx(), to.stream().context().cu_ctx());
    let copy = |bytes| {
        let stream = to.stream().cu_stream();
        to.stream().context().bind_to_thread()?;
        // SAFETY: both buffers have at least so many bytes and live until the stream was waited for, and
        // nothing else is done with either.
        unsafe { result::memcpy_peer_async(to_context, target.at, from_context, source.at, bytes, stream) }
    };
    let small = seen(to, SMALL_BYTES, || copy(SMALL_BYTES))?;
    let large = timed(to, large, || copy(large))?;
    to.synchronize()?;
    Ok(Some(Link { peer_access, copies: Copies { small, large } }))
}

/// Memory that peers reach once they have access; what is taken in a stream's order is of a pool, which they do not reach
/// by that.
struct Own {
    card: Card,
    at: sys::CUdeviceptr,
}

impl Own {
    fn new(card: &Card, bytes: usize) -> Result<Own, CudaError> {
        let taken = card.stream().context().bind_to_thread();
        // SAFETY: what is in it is copied, and never looked at.
        let taken = taken.and_then(|()| unsafe { result::malloc_sync(bytes) });
        let failed = CudaError::doing(format!("take memory on card {}", card.facts().ordinal));
        Ok(Own { card: card.clone(), at: taken.map_err(failed)? })
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        let bound = self.card.stream().context().bind_to_thread();
        // SAFETY: it was taken by `new`, and the driver waits for whoever still uses it.
        if let Err(error) = bound.and_then(|()| unsafe { result::free_sync(self.at) }) {
            tracing::warn!("{}", CudaError::doing("give memory back")(error));
        }
    }
}

/// Lets `card` reach the memory of `peer`, if it can.
fn enable_peer_access(card: &Card, peer: &Card) -> Result<bool, CudaError> {
    let failed =
        || CudaError::doing(format!("connect cards {} and {}", card.facts().ordinal, peer.facts().ordinal));
    let (mine, other) = (card.stream().context(), peer.stream().context());
    let mut possible = 0;
    // SAFETY: both functions are there (see `link`); the devices are open.
    unsafe { cuDeviceCanAccessPeer(&mut possible, mine.cu_device(), other.cu_device()) }
        .result()
        .map_err(failed())?;
    if possible == 0 {
        return Ok(false);
    }
    mine.bind_to_thread().map_err(failed())?;
    // SAFETY: as above; the context of `card` is this thread's.
    match unsafe { cuCtxEnablePeerAccess(other.cu_ctx(), 0) } {
        sys::CUresult::CUDA_SUCCESS | sys::CUresult::CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED => Ok(true),
        error => Err(failed()(DriverError(error))),
    }
}

/// By the host's clock, from the call until the host knows that it is done.
fn seen(
    card: &Card,
    bytes: usize,
    mut work: impl FnMut() -> Result<(), DriverError>,
) -> Result<Rate, CudaError> {
    let mut times = Vec::with_capacity(SMALL_RUNS);
    for _ in 0..=SMALL_RUNS {
        card.synchronize()?;
        let start = Instant::now();
        work().map_err(CudaError::doing("copy"))?;
        card.synchronize()?;
        times.push(start.elapsed());
    }
    Ok(Rate { bytes: bytes as u64, time: median(times.split_off(1)) })
}

/// By the card's clock.
fn timed(
    card: &Card,
    bytes: usize,
    work: impl FnMut() -> Result<(), DriverError>,
) -> Result<Rate, CudaError> {
    Ok(Rate { bytes: bytes as u64, time: median_on_card(card, work)? })
}

fn median_on_card(
    card: &Card,
    mut work: impl FnMut() -> Result<(), DriverError>,
) -> Result<Duration, CudaError> {
    let context = card.stream().context();
    let event = || {
        context.new_event(Some(CUevent_flags::CU_EVENT_DEFAULT)).map_err(CudaError::doing("make an event"))
    };
    let (start, end) = (event()?, event()?);
    let mut run = || -> Result<f32, DriverError> {
        start.record(card.stream())?;
        work()?;
        end.record(card.stream())?;
        start.elapsed_ms(&end)
    };
    let mut times = Vec::with_capacity(RUNS);
    for _ in 0..=RUNS {
        let ms = run().map_err(CudaError::doing("run what is measured"))?;
        times.push(Duration::from_secs_f64(f64::from(ms.max(0.0)) / 1e3));
    }
    Ok(median(times.split_off(1)))
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}
