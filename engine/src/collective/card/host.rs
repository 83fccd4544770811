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
/// Values that share a flag: 16 KiB. Up to so many are summed by one block in one launch.
const CHUNK: usize = 4096;
/// Flags of a rank.
pub(super) const FLAGS: usize = 128;
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
    /// `ranks_on_card`: how many ranks have this card.
    pub fn new(
        card: &Card,
        rank: Rank,
        ground: Ground,
        source: &Source,
        elements_max: usize,
        ranks_on_card: usize,
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
        Ok(HostSum { card, rank, capacity, short, push, collect, collect_blocks_max, area, state })
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
        let (count, rank) = (n as u32, self.rank as u32);
        let (Registered { abort_word, flags, slots, told, .. }, capacity) =
            (&self.area, self.capacity as u32);
        let blocks = n.div_ceil(CHUNK) as u32;
        let shape = |blocks| LaunchConfig {
            grid_dim: (blocks, 1, 1),
            block_dim: (THREADS, 1, 1),
            shared_mem_bytes: 0,
        };
        if blocks == 1 {
            let mut launch = stream.launch_builder(&self.short);
            launch
                .arg(&y)
                .arg(&count)
                .arg(&rank)
                .arg(slots)
                .arg(&capacity)
                .arg(flags)
                .arg(abort_word)
                .arg(told)
                .arg(&mut self.state);
            // SAFETY: the arguments are those of `sum_short`; y has n values, and n is not more than a
            // chunk; the area, or the memory beside it, holds flags and slots of all ranks, and both live as
            // long as the stream is busy (see `drop`).
            unsafe { launch.launch(shape(1)) }.map_err(CudaError::doing("sum over ranks"))?;
            return Ok(());
        }
        let mut launch = stream.launch_builder(&self.push);
        launch
            .arg(&y)
            .arg(&count)
            .arg(&rank)
            .arg(slots)
            .arg(&capacity)
            .arg(flags)
            .arg(abort_word)
            .arg(told)
            .arg(&self.state);
        // SAFETY: as above, for `push`; n is not more than a slot holds.
        unsafe { launch.launch(shape(blocks)) }.map_err(CudaError::doing("push to other ranks"))?;
        let mut launch = stream.launch_builder(&self.collect);
        launch
            .arg(&y)
            .arg(&count)
            .arg(&rank)
            .arg(slots)
            .arg(&capacity)
            .arg(flags)
            .arg(abort_word)
            .arg(told)
            .arg(&mut self.state);
        // SAFETY: as above, for `collect`, which takes any number of blocks.
        unsafe { launch.launch(shape(blocks.min(self.collect_blocks_max))) }
            .map_err(CudaError::doing("collect from other ranks"))?;
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

    /// The ranks that this rank's card waits for.
    pub fn behind(&self) -> Vec<Rank> {
        self.area.area.behind(self.rank)
    }
}

/// A card that still works on the area keeps it.
impl Drop for HostSum {
    fn drop(&mut self) {
        if wait::is_quiet_within(self.card.stream(), LEAVE) {
            return;
        }
        self.area.area.abort();
        if !wait::is_quiet_within(self.card.stream(), LEAVE) {
            tracing::error!("card {} does not finish; its memory is left to it", self.card.facts().ordinal);
            self.area.keep = true;
        }
    }
}

/// The area, as a card sees it.
struct Registered {
    area: Arc<Area>,
    memory: Option<Arc<CardMemory>>,
    card: Card,
    abort_word: sys::CUdeviceptr,
    flags: sys::CUdeviceptr,
    slots: sys::CUdeviceptr,
    /// The rank's first flag in the area, if the flags that count are in `memory`; otherwise null.
    told: sys::CUdeviceptr,
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
        let theirs = (first + area.flags_offset() as u64, first + area.slots_offset() as u64);
        let (flags, slots) = memory.as_ref().map_or(theirs, |memory| memory.places());
        let told = memory.as_ref().map_or(0, |_| theirs.0 + (rank.index() * FLAGS * size_of::<u32>()) as u64);
        let card = card.clone();
        let registered = Registered {
            area: Arc::clone(&area),
            memory,
            card,
            abort_word: first,
            flags,
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
            tracing::warn!("{}", CudaError::doing("let go of the machine's memory")(error));
            std::mem::forget(Arc::clone(&self.area));
        }
    }
}
