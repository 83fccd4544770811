//! What this process takes of its machine, from /proc. Of a worker's process nothing is known here.

use std::fmt::Error;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;

use super::series::{BYTES, Named, SECONDS, Series, only};

/// Of `/proc/self/stat`, on every Linux.
const TICKS_PER_SECOND: f64 = 100.0;

const CPU: Named = Named("process_cpu", "Processor time of the coordinator", SECONDS);
const MEMORY: Named = Named("process_resident_memory", "Memory of the coordinator that is in RAM", BYTES);
const FILES: Named = Named("process_open_fds", "Open files and sockets of the coordinator", None);

#[derive(Debug)]
pub struct ProcessMetrics;

impl Collector for ProcessMetrics {
    fn encode(&self, encoder: DescriptorEncoder) -> Result<(), Error> {
        let mut series = Series(encoder);
        series.counter(CPU, cpu_s().into_iter().flat_map(only))?;
        series.gauge(MEMORY, resident_bytes().into_iter().flat_map(only))?;
        series.gauge(FILES, open_files().into_iter().flat_map(only))
    }
}

fn cpu_s() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // Behind the name, which stands in brackets and may hold anything: the 12th and 13th are user and system.
    let mut behind = stat.rsplit(')').next()?.split_whitespace().skip(11);
    let mut ticks = || behind.next()?.parse::<f64>().ok();
    Some((ticks()? + ticks()?) / TICKS_PER_SECOND)
}

fn resident_bytes() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: f64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib * 1024.0)
}

fn open_files() -> Option<f64> {
    // The one that lists them is among them.
    Some(std::fs::read_dir("/proc/self/fd").ok()?.count() as f64 - 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_proc_says_is_read() {
        assert!(resident_bytes().unwrap() > 1e6);
        assert!((3.0..1e5).contains(&open_files().unwrap()));
        let before = cpu_s().unwrap();
        assert!((0.0..1e5).contains(&before) && cpu_s().unwrap() >= before);
    }
}
