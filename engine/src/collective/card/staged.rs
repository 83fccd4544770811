//! Sums by the ranks' link, through memory of the host: a copy, a sum, a copy back.

use super::wait::{self, Ended};
use crate::collective::{AllReduce, CollectiveError, Operation};
use crate::cuda::{Card, CudaError};
use cudarc::driver::{CudaEvent, PinnedHostSlice, result, sys};
use std::time::Duration;

/// How long a sum is waited for without sleeping: it comes after the kernels of half a layer, which take some tens of
/// microseconds, and there are two of a layer. Only this rank's thread has anything of it.
const AWAKE: Duration = Duration::from_micros(300);

pub(super) struct Staged {
    card: Card,
    /// f32 [elements_max]; only the stream and this rank's thread know it.
    pinned: PinnedHostSlice<f32>,
    copied: CudaEvent,
}

impl Staged {
    pub fn new(card: &Card, elements_max: usize) -> Result<Self, CudaError> {
        let context = card.stream().context();
        // SAFETY: it is filled at once. Not write-combined, which is slow to read.
        let pinned = unsafe { context.alloc_pinned_with_flags::<f32>(elements_max.max(1), 0) };
        let mut pinned = pinned.map_err(CudaError::doing("pin memory of the machine"))?;
        pinned.as_mut_slice().map_err(CudaError::doing("wait"))?.fill(0.0);
        let copied = context.new_event(None).map_err(CudaError::doing("make an event"))?;
        Ok(Staged { card: card.clone(), pinned, copied })
    }

    /// y: f32 [n] on the card. `is_vain` is asked while the card is not yet there.
    pub fn sum(
        &mut self,
        link: &mut impl AllReduce<[f32]>,
        y: sys::CUdeviceptr,
        n: usize,
        deadline: Duration,
        is_vain: impl Fn() -> bool,
    ) -> Result<(), CollectiveError> {
        let stream = self.card.stream();
        let card = |error| CollectiveError::Card { operation: Operation::AllReduce, error };
        let failed = |doing: &'static str| move |error| card(CudaError::doing(doing)(error));
        let pinned = &mut self.pinned.as_mut_slice().map_err(failed("wait"))?[..n];
        stream.context().bind_to_thread().map_err(failed("bind the card"))?;
        // SAFETY: y has n values; the buffer is read only after the copy is done, and the copies of sums
        // before are done before this one, which is behind them in the stream.
        unsafe { result::memcpy_dtoh_async(pinned, y, stream.cu_stream()) }
            .map_err(failed("copy from the card"))?;
        self.copied.record(stream).map_err(failed("record an event"))?;
        let look = || if is_vain() { Err(CollectiveError::Aborted) } else { Ok(0) };
        wait::until_done(|| self.copied.try_is_complete(), AWAKE, deadline, look).map_err(
            |ended| match ended {
                Ended::Driver(error) => card(CudaError::doing("finish what was asked of it")(error)),
                Ended::Seen(error) => error,
                Ended::Late(waited) => card(late(waited)),
            },
        )?;
        link.all_reduce(pinned)?;
        // SAFETY: as above; the buffer is not written before the next sum's copy, which is behind this one.
        unsafe { result::memcpy_htod_async(y, pinned, stream.cu_stream()) }
            .map_err(failed("copy to the card"))
    }
}

/// The pinned memory is given back when the card has finished with it.
impl Drop for Staged {
    fn drop(&mut self) {
        wait::is_quiet_within(self.card.stream(), Duration::from_secs(2));
    }
}

/// A card that does not finish, and waits for no other rank.
pub(super) fn late(waited: Duration) -> CudaError {
    CudaError::Driver {
        doing: "finish what was asked of it".into(),
        reason: format!("it has worked for {waited:?} without an end"),
    }
}
