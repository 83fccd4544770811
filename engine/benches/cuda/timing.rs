//! Times on a card, by its own clock: launches are recorded as a graph, so that the gaps between them are a
//! card's and not the host's, and the graph is replayed; the figure is the median of the replays.

use cudarc::driver::sys;
use flotilla_engine::cuda::{Card, CudaError};

/// A replay lasts about so long, so that its start and its end do not count.
const REPLAY_SECONDS: f64 = 4e-3;
const LAUNCHES_MAX: usize = 256;

/// How often things are done.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    replays: usize,
    quick: bool,
}

impl Clock {
    pub fn new(quick: bool) -> Clock {
        Clock { replays: if quick { 2 } else { 15 }, quick }
    }

    /// Seconds of one launch. `work(i)` launches for the i-th of `sets` of inputs: so many that together they
    /// are more than the card's cache holds.
    pub fn launch(
        &self,
        card: &Card,
        sets: usize,
        mut work: impl FnMut(usize) -> Result<(), CudaError>,
    ) -> Result<f64, CudaError> {
        // Everything once, as it is: what is wrong is said here, and how long it takes is seen.
        let seconds = elapsed(card, || (0..sets).try_for_each(&mut work))? / sets as f64;
        let wanted = (REPLAY_SECONDS / seconds.max(1e-7)) as usize;
        let launches = if self.quick { sets } else { wanted.clamp(sets, LAUNCHES_MAX.max(sets)) };
        let stream = card.stream();
        const MODE: sys::CUstreamCaptureMode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        stream.begin_capture(MODE).map_err(CudaError::doing("begin to record launches"))?;
        let recorded = (0..launches).try_for_each(|launch| work(launch % sets));
        let graph = stream.end_capture(sys::CUgraphInstantiate_flags(0));
        recorded?;
        let graph = graph.map_err(CudaError::doing("record launches"))?.expect("there are launches in it");
        let replay = || graph.launch().map_err(CudaError::doing("replay launches"));
        replay()?;
        let times = (0..self.replays).map(|_| elapsed(card, replay));
        Ok(median(times.collect::<Result<_, _>>()?) / launches as f64)
    }
}

/// Seconds between two events around `work`.
pub fn elapsed(card: &Card, work: impl FnOnce() -> Result<(), CudaError>) -> Result<f64, CudaError> {
    let event = || {
        let event = card.stream().context().new_event(Some(sys::CUevent_flags::CU_EVENT_DEFAULT));
        event.map_err(CudaError::doing("make an event"))
    };
    let (start, end) = (event()?, event()?);
    start.record(card.stream()).map_err(CudaError::doing("record an event"))?;
    work()?;
    end.record(card.stream()).map_err(CudaError::doing("record an event"))?;
    let ms = start.elapsed_ms(&end).map_err(CudaError::doing("run what is measured"))?;
    Ok(f64::from(ms) / 1e3)
}

pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
