//! What this machine's devices do in a second, measured: for a worker's inventory, and for what `up` predicts.

use flotilla_engine::backend::cpu::kernels::Precision;
use flotilla_engine::backend::cpu::measure::{Bench, Compute};
use flotilla_worker::Device;
use std::time::Instant;
use tracing::info;

/// 0 where it is not known.
#[derive(Clone, Copy, Debug)]
pub struct Rates {
    pub bandwidth: f64,
    pub compute: Compute,
}

impl Rates {
    pub fn told(bandwidth: f64) -> Rates {
        Rates { bandwidth, compute: Compute { dense: 0.0, experts: 0.0 } }
    }

    /// Takes half a second on a processor; of a card only what it reads is measured.
    pub fn measure(device: &Device, threads: usize) -> Rates {
        let start = Instant::now();
        let rates = match device {
            Device::Cpu(cpu) => Rates::of_cpu(threads, cpu.activations),
            Device::Card(card) => {
                let read = flotilla_engine::cuda::measure::read(&card.card).ok();
                read.map(|rate| Rates::told(rate.bytes_per_second()))
            }
        };
        let rates = rates.unwrap_or(Rates::told(0.0));
        let Rates { bandwidth, compute: Compute { dense, experts } } = rates;
        info!(
            bandwidth = %format!("{:.1} GB/s", bandwidth / 1e9),
            dense = %format!("{:.1} Gop/s", dense / 1e9),
            experts = %format!("{:.1} Gop/s", experts / 1e9),
            seconds = %format!("{:.1}", start.elapsed().as_secs_f64()),
            "measured"
        );
        rates
    }

    /// Nothing where there is no memory to measure with.
    pub fn of_cpu(threads: usize, activations: Precision) -> Option<Rates> {
        const BYTES: usize = 128 << 20;
        let bench = Bench::new(threads, BYTES, true).ok()?;
        let bandwidth = (0..3).map(|_| bench.read()).fold(0.0, f64::max);
        Some(Rates { bandwidth, compute: bench.compute(activations) })
    }
}
