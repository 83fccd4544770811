//! A card that is open: its facts, its primary context, and the one stream on which everything is done in
//! order. Memory is taken here, so that a lack of it is said in one way.

use super::compile::{self, Module, Source};
use super::driver;
use super::error::CudaError;
use super::launch::Launcher;
use cudarc::driver::sys::CUdevice_attribute as Attribute;
use cudarc::driver::{
    CudaContext, CudaSlice, CudaStream, DeviceRepr, DriverError, ValidAsZeroBits, result, sys,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The oldest generation whose matrix units the kernels can use.
const OLDEST: (u32, u32) = (7, 5);

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CardFacts {
    /// Its number among the cards that CUDA_VISIBLE_DEVICES leaves.
    pub ordinal: usize,
    pub name: String,
    /// (8, 6) is sm_86.
    pub capability: (u32, u32),
    pub multiprocessors: u32,
    /// What a block may have if its kernel asks for it.
    pub shared_bytes_per_block_max: u32,
    pub l2_bytes: u64,
    pub memory_bytes: u64,
}

/// Clones share context and stream. Any thread may use them; cudarc binds the context to it.
#[derive(Clone, Debug)]
pub struct Card {
    facts: CardFacts,
    stream: Arc<CudaStream>,
    _counted: Arc<Counted>,
}

/// Cards that this process has open, clones not counted.
static OPEN: AtomicUsize = AtomicUsize::new(0);

#[derive(Debug)]
struct Counted;

impl Counted {
    fn new() -> Arc<Counted> {
        OPEN.fetch_add(1, Ordering::Relaxed);
        Arc::new(Counted)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        OPEN.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Card {
    /// Never panics, whatever is missing.
    pub fn open(ordinal: usize) -> Result<Card, CudaError> {
        let count = driver::card_count()?;
        if ordinal >= count {
            return Err(CudaError::NoSuchCard { ordinal, count, visible: driver::visible_devices() });
        }
        let context = CudaContext::new(ordinal).map_err(CudaError::doing(format!("open card {ordinal}")))?;
        // SAFETY: nothing has been allocated yet. All work of a card goes through one stream, which
        // orders it; who uses another one says so with events of his own.
        unsafe { context.disable_event_tracking() };
        let facts = facts(&context).map_err(CudaError::doing(format!("describe card {ordinal}")))?;
        if facts.capability < OLDEST {
            let CardFacts { name, capability, .. } = facts;
            return Err(CudaError::CardTooOld { ordinal, name, capability });
        }
        let stream = context.new_stream().map_err(CudaError::doing("make a stream"))?;
        Ok(Card { facts, stream, _counted: Counted::new() })
    }

    /// Whether this process has opened a card more than once: several ranks of a group may be in it.
    pub fn has_company(&self) -> bool {
        OPEN.load(Ordering::Relaxed) > 1
    }

    pub fn facts(&self) -> &CardFacts {
        &self.facts
    }

    pub fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }

    /// Starts kernels on the stream.
    pub fn launcher(&self) -> Launcher {
        Launcher::new(self.stream.clone(), self.facts.capability)
    }

    /// Compiles, or takes from the cache, and loads.
    pub fn compile(&self, source: &Source) -> Result<Module, CudaError> {
        compile::module(self, source)
    }

    /// Waits for the stream: what was given back in its order is free only after that. Not while it records.
    pub fn memory_free_bytes(&self) -> Result<u64, CudaError> {
        self.synchronize()?;
        self.memory_free_now()
    }

    fn memory_free_now(&self) -> Result<u64, CudaError> {
        let info = self.stream.context().mem_get_info();
        Ok(info.map_err(CudaError::doing("tell how much memory is free"))?.0 as u64)
    }

    /// Memory for `len` elements, all zero.
    pub fn zeros<T: DeviceRepr + ValidAsZeroBits>(&self, len: usize) -> Result<CudaSlice<T>, CudaError> {
        self.stream.alloc_zeros(len).map_err(|error| self.refused::<T>(len, error))
    }

    /// Memory for `len` elements that hold whatever was there.
    ///
    /// # Safety
    /// Nothing may be read from it before it was written.
    pub unsafe fn unset<T: DeviceRepr>(&self, len: usize) -> Result<CudaSlice<T>, CudaError> {
        // SAFETY: the caller's promise is the one that is asked for.
        unsafe { self.stream.alloc(len) }.map_err(|error| self.refused::<T>(len, error))
    }

    /// A copy of `values` in the card's memory; returns when `values` may change again.
    pub fn upload<T: DeviceRepr>(&self, values: &[T]) -> Result<CudaSlice<T>, CudaError> {
        let copied =
            self.stream.clone_htod(values).map_err(|error| self.refused::<T>(values.len(), error))?;
        self.synchronize()?;
        Ok(copied)
    }

    /// A copy in the machine's memory, after everything that was asked of the stream before.
    pub fn download<T: DeviceRepr>(&self, values: &CudaSlice<T>) -> Result<Vec<T>, CudaError> {
        let copied = self.stream.clone_dtoh(values).map_err(CudaError::doing("copy from the card"))?;
        self.synchronize()?;
        Ok(copied)
    }

    /// Waits for all that was asked of the stream.
    pub fn synchronize(&self) -> Result<(), CudaError> {
        self.stream.synchronize().map_err(CudaError::doing("finish what was asked of it"))
    }

    fn refused<T>(&self, len: usize, error: DriverError) -> CudaError {
        if error.0 != sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY {
            return CudaError::doing(format!("take memory on card {}", self.facts.ordinal))(error);
        }
        CudaError::OutOfMemory {
            ordinal: self.facts.ordinal,
            wanted_bytes: (len as u64).saturating_mul(size_of::<T>() as u64),
            free_bytes: self.memory_free_now().unwrap_or(0),
            memory_bytes: self.facts.memory_bytes,
        }
    }
}

fn facts(context: &Arc<CudaContext>) -> Result<CardFacts, DriverError> {
    let attribute = |attribute| Ok::<u32, DriverError>(context.attribute(attribute)?.max(0) as u32);
    Ok(CardFacts {
        ordinal: context.ordinal(),
        name: result::device::get_name(context.cu_device())?,
        capability: (
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        shared_bytes_per_block_max: attribute(
            Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN,
        )?,
        l2_bytes: attribute(Attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?.into(),
        memory_bytes: context.total_mem()? as u64,
    })
}
