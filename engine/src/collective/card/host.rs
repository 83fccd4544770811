//! Sums by the cards themselves, through memory of the machine, or of the one card that all ranks have: the
//! launcher of `host.cu`.

use super::SumPath;
use super::area::{Area, Invitation};
use super::memory::CardMemory;
use super::wait;
use crate::cuda::{Card, CudaError, Library, Opened, Source};
use cudarc::driver::{CudaFunction, CudaSlice, CudaStream, LaunchConfig, PushKernelArg, sys};
use flotilla_shared::Rank;
use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

/// Of a block.
const THREADS: u32 = 512;
/// Values that share a flag: 8 KiB.
const CHUNK: usize = 2048;
/// Flags of a rank.
pub(super) const FLAGS: usize = 256;
/// Up to so many values are summed by one block in one launch.
pub(super) const SHORT: usize = 4096;
/// Of such a block, at most; each has up to 2 times 2 values.
const SHORT_THREADS: usize = SHORT / 4;
/// Threads come by so many.
const WARP: usize = 32;
/// Values of a side of a slot, at most; longer vectors take several operations. 16 MiB for 4 ranks.
const CAPACITY_MAX: usize = FLAGS * CHUNK;
/// Operations are counted from here, just before the count starts anew: so every run shows that this
/// does no harm.
pub(super) const FIRST_OPERATION: u32 = u32::MAX - 40;

/// How long a card that has still to do is waited for when its rank leaves.
const LEAVE: Duration = Duration::from_secs(2);

/// The kernels, for a group of this size.
pub fn source(ranks: usize) -> Source {
    let defines = vec![
        ("RANKS", ranks as i64),
        ("THREADS", THREADS.into()),
        ("CHUNK", CHUNK as i64),
        ("FLAGS", FLAGS as i64),
        ("SHORT", SHORT as i64),
    ];
    Source { name: "host.cu", text: include_str!("host.cu"), defines }
}

fn capacity(elements_max: usize) -> usize {
    elements_max.clamp(1, CAPACITY_MAX).next_multiple_of(CHUNK)
}

pub(super) struct HostSum {
    card: Card,
    rank: usize,
    capacity: usize,
    short: CudaFunction,
    push: CudaFunction,
    collect: CudaFunction,
    /// Blocks of one `collect`, at most: all ranks on this card together leave it room for what they wait for.
    collect_blocks_max: u32,
    area: Registered,
    /// u32 [2]: see `host.cu`.
    state: CudaSlice<u32>,
    /// How long a kernel waits when nobody ends its waiting: longer than the host does, which knows whom it waits for.
    kernel_patience_ns: u64,
}

/// What rank 0 has to hold until the others have opened the area.
pub(super) struct Door(#[expect(dead_code, reason = "it is held")] File);

/// What all ranks reach. The abort word is in memory of the machine always: the host could write to a card's
/// only by a copy, in a stream of its own, and ranks that share a card have no queue to spare for one (a copy
/// that is queued behind kernels that wait ends nothing).
pub(super) struct Ground {
    area: Arc<Area>,
    /// With flags and slots, if they are not in the area.
    memory: Option<Arc<CardMemory>>,
}

/// Of an area, in which there are no slots if they are in a card's memory.
fn area_capacity(elements_max: usize, in_card: bool) -> usize {
    if in_card { 0 } else { capacity(elements_max) }
}

/// Rank 0's part of the beginning. `card`: whose memory it is to be, if not the machine's.
pub(super) fn create(
    ranks: usize,
    elements_max: usize,
    card: Option<&Card>,
) -> Result<(Ground, Door, Invitation), String> {
    let created = Area::create(ranks, area_capacity(elements_max, card.is_some()));
    let (area, file, invitation) =
        created.map_err(|error| format!("cannot make memory that all ranks share: {error}"))?;
    let memory = card.map(|card| CardMemory::create(card, invitation.nonce, ranks, capacity(elements_max)));
    let memory = memory.transpose().map_err(|error| error.to_string())?;
    Ok((Ground { area: Arc::new(area), memory }, Door(file), invitation))
}

/// The other ranks' part.
pub(super) fn open(
    invitation: &Invitation,
    ranks: usize,
    elements_max: usize,
    in_card: bool,
) -> Result<Ground, String> {
    let area = Area::open(invitation, ranks, area_capacity(elements_max, in_card));
    let area = area.map_err(|error| format!("cannot open rank 0's shared memory: {error}"))?;
    let memory = in_card.then(|| {
        CardMemory::find(&invitation.nonce)
            .ok_or_else(|| "cannot find rank 0's memory on the card".to_owned())
    });
    Ok(Ground { area: Arc::new(area), memory: memory.transpose()? })
}

impl HostSum {
    /// `ranks_on_card`: how many ranks have this card; `deadline`: when the host gives up.
    pub fn new(
        card: &Card,
        rank: Rank,
        ground: Ground,
        source: &Source,
        elements_max: usize,
        ranks_on_card: usize,
        deadline: Duration,
    ) -> Result<Self, CudaError> {
        let module = card.compile(source)?;
        let (short, push, collect) =
            (module.kernel("sum_short")?, module.kernel("push")?, module.kernel("collect")?);
        for kernel in [&short, &push, &collect] {
            // Asked so that it is loaded now: at its first launch, the driver might have to wait until no
            // other kernel runs, such as one that waits for this.
            kernel.num_regs().map_err(CudaError::doing("load a kernel"))?;
        }
        let state = card.upload(&[FIRST_OPERATION, 0])?;
        let area = Registered::new(card, rank, ground)?;
        let collect_blocks_max = (card.facts().multiprocessors / ranks_on_card as u32).max(1);
        let (rank, capacity) = (rank.index(), capacity(elements_max));
        let card = card.clone();
        let kernel_patience_ns =
            u64::try_from(deadline.saturating_mul(2).as_nanos()).unwrap_or(u64::MAX).min(i64::MAX as u64);
        Ok(HostSum {
            card,
            rank,
            capacity,
            short,
            push,
            collect,
            collect_blocks_max,
            area,
            state,
            kernel_patience_ns,
        })
    }

    /// y: f32 [n] on the card, summed in the stream's order. May be captured.
    pub fn enqueue(&mut self, stream: &CudaStream, y: sys::CUdeviceptr, n: usize) -> Result<(), CudaError> {
        for start in (0..n).step_by(self.capacity) {
            let part = y + (start * size_of::<f32>()) as u64;
            self.enqueue_part(stream, part, (n - start).min(self.capacity))?;
        }
        Ok(())
    }

    fn enqueue_part(&mut self, stream: &CudaStream, y: sys::CUdeviceptr, n: usize) -> Result<(), CudaError> {
        if n <= SHORT {
            return self.enqueue_short(stream, y, n);
        }
        let (count, rank, capacity) = (n as u32, self.rank as u32, self.capacity as u32);
        let Registered { gone, flags, slots, told_in_card, .. } = &self.area;
        let blocks = n.div_ceil(CHUNK) as u32;
        let mut launch = stream.launch_builder(&self.push);
        launch.arg(&y).arg(&count).arg(&rank).arg(slots).arg(&capacity);
        launch.arg(flags).arg(told_in_card).arg(&self.state);
        // SAFETY: the arguments are those of `push`; y has n values, and n is not more than a slot holds; the
        // area, or the memory beside it, holds flags and slots of all ranks, and both live as long as the
        // stream is busy (see `drop`).
        unsafe { launch.launch(shape(blocks, THREADS)) }.map_err(CudaError::doing("push to other ranks"))?;
        let mut launch = stream.launch_builder(&self.collect);
        launch.arg(&y).arg(&count).arg(&rank).arg(slots).arg(&capacity);
        launch.arg(flags).arg(gone).arg(told_in_card).arg(&mut self.state).arg(&self.kernel_patience_ns);
        // SAFETY: as above, for `collect`, which takes any number of blocks; it may write this rank's word.
        unsafe { launch.launch(shape(blocks.min(self.collect_blocks_max), THREADS)) }
            .map_err(CudaError::doing("collect from other ranks"))?;
        Ok(())
    }

    fn enqueue_short(&mut self, stream: &CudaStream, y: sys::CUdeviceptr, n: usize) -> Result<(), CudaError> {
        let (count, rank) = (n as u32, self.rank as u32);
        let Registered { gone, pairs, told, .. } = &self.area;
        // No more than there are pairs of values: then each thread has one, and all are under way at once.
        let threads = n.div_ceil(2).next_multiple_of(WARP).min(SHORT_THREADS) as u32;
        let mut launch = stream.launch_builder(&self.short);
        launch.arg(&y).arg(&count).arg(&rank).arg(pairs).arg(gone).arg(told);
        launch.arg(&mut self.state).arg(&self.kernel_patience_ns);
        // SAFETY: the arguments are those of `sum_short`; y has n values, and n is not more than SHORT; the
        // area, or the memory beside it, holds pairs of all ranks, and both live as long as the stream is
        // busy (see `drop`).
        unsafe { launch.launch(shape(1, threads)) }.map_err(CudaError::doing("sum over ranks"))?;
        Ok(())
    }

    pub fn path(&self) -> SumPath {
        if self.area.memory.is_some() { SumPath::Shared } else { SumPath::Host }
    }

    pub fn area(&self) -> &Arc<Area> {
        &self.area.area
    }

    /// Rises with every operation that this rank's card has begun.
    pub fn progress(&self) -> u32 {
        self.area.area.pushed(self.rank)
    }

    /// Whether this rank's sums have ended, by an abort or because a rank that they need gives nothing more.
    pub fn has_ended(&self) -> bool {
        self.area.area.is_gone(self.rank)
    }

    /// The ranks that this rank's card waits for.
    pub fn behind(&self) -> Vec<Rank> {
        self.area.area.behind(self.rank)
    }
}

/// A card that still works on the area keeps it.
impl Drop for HostSum {
    fn drop(&mut self) {
        if wait::is_quiet_within(self.card.stream(), LEAVE) {
            // Before anything is let go of: the driver does that when no kernel of the whole context runs,
            // and what others ask of it may wait as long. A kernel of another rank that waited for this one
            // would keep all of them waiting.
            self.area.area.leave(self.rank);
            return;
        }
        self.area.area.abort();
        if !wait::is_quiet_within(self.card.stream(), LEAVE) {
            tracing::error!("card {} does not finish; its memory is left to it", self.card.facts().ordinal);
            self.area.keep = true;
        }
    }
}

fn shape(blocks: u32, threads: u32) -> LaunchConfig {
    LaunchConfig { grid_dim: (blocks, 1, 1), block_dim: (threads, 1, 1), shared_mem_bytes: 0 }
}

/// The area, as a card sees it.
struct Registered {
    area: Arc<Area>,
    memory: Option<Arc<CardMemory>>,
    card: Card,
    /// A word of each rank: not 0 if it gives nothing more.
    gone: sys::CUdeviceptr,
    flags: sys::CUdeviceptr,
    pairs: sys::CUdeviceptr,
    slots: sys::CUdeviceptr,
    /// The rank's first flag in the area: its progress.
    told: sys::CUdeviceptr,
    /// The same, if the flags that count are in `memory`; otherwise null.
    told_in_card: sys::CUdeviceptr,
    /// It can no longer be taken from the card.
    keep: bool,
}

/// Of the driver; not every engine needs these.
const NEEDED: [&str; 3] = ["cuMemHostRegister_v2", "cuMemHostGetDevicePointer_v2", "cuMemHostUnregister"];

impl Registered {
    fn new(card: &Card, rank: Rank, ground: Ground) -> Result<Self, CudaError> {
        let Ground { area, memory } = ground;
        let failed = || CudaError::doing(format!("reach {} of the machine's memory", area.bytes()));
        let driver = Opened::open(Library::Driver)?;
        if let Some(symbol) = NEEDED.into_iter().find(|symbol| !driver.has(symbol)) {
            let (library, path) = (Library::Driver, driver.path().to_owned());
            return Err(CudaError::NoSymbol { library, path, symbol });
        }
        let context = card.stream().context();
        context.bind_to_thread().map_err(failed())?;
        let start = area.start().as_ptr().cast();
        let how = sys::CU_MEMHOSTREGISTER_PORTABLE | sys::CU_MEMHOSTREGISTER_DEVICEMAP;
        // SAFETY: the mapping is as long as it says, and outlives the registration (`drop`).
        unsafe { sys::cuMemHostRegister_v2(start, area.bytes(), how) }.result().map_err(failed())?;
        let mut first = 0;
        // SAFETY: the pointer is of memory that has just been registered.
        let found = unsafe { sys::cuMemHostGetDevicePointer_v2(&mut first, start, 0) }.result();
        let flags = first + area.flags_offset() as u64;
        let told = flags + (rank.index() * FLAGS * size_of::<u32>()) as u64;
        let in_area = (flags, first + area.pairs_offset() as u64, first + area.slots_offset() as u64);
        let (flags, pairs, slots) = memory.as_ref().map_or(in_area, |memory| memory.places());
        let registered = Registered {
            area: Arc::clone(&area),
            told_in_card: if memory.is_some() { told } else { 0 },
            memory,
            card: card.clone(),
            gone: first,
            flags,
            pairs,
            slots,
            told,
            keep: false,
        };
        found.map_err(failed())?;
        Ok(registered)
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        if self.keep {
            return std::mem::forget((Arc::clone(&self.area), self.memory.clone()));
        }
        let context = self.card.stream().context();
        // SAFETY: it is registered, by `new`, and the card has finished with it.
        let gone = context
            .bind_to_thread()
            .and_then(|()| unsafe { sys::cuMemHostUnregister(self.area.start().as_ptr().cast()) }.result());
        if let Err(error) = gone {
            // A driver that has ended with its process has let go of everything.
            if error.0 != sys::CUresult::CUDA_ERROR_DEINITIALIZED {
                tracing::warn!("{}", CudaError::doing("let go of the machine's memory")(error));
            }
            std::mem::forget(Arc::clone(&self.area));
        }
    }
}
