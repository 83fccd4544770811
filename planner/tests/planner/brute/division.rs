//! What a device takes, and the best way to divide heads, experts and vocabulary over some of them.

use super::orders::compositions;
use flotilla_shared::plan::Placement;

/// Parts of the blocks and of the vocabulary, and of the experts where they are whole.
pub const PARTS: usize = 18;
pub const WHOLE_PARTS: usize = 16;

/// Seconds, and how much each rank has.
pub type Priced = (f64, Vec<usize>);

/// Seconds and bytes of a device by how much it has of each kind; bytes beside `empty_bytes`.
#[derive(Clone)]
pub struct Device {
    pub heads: Vec<(f64, u64)>,
    pub blocks: Vec<(f64, u64)>,
    /// Bytes only: a layer's time is that of all ranks together.
    pub whole: Vec<u64>,
    pub vocab: Vec<(f64, u64)>,
    pub empty_bytes: u64,
    pub memory_bytes: u64,
}

impl Device {
    pub fn room(&self, heads: usize, parts: usize, placement: Placement) -> Option<u64> {
        let experts = match placement {
            Placement::Slices => self.blocks[parts].1,
            Placement::Whole => self.whole[parts],
        };
        self.memory_bytes.checked_sub(self.empty_bytes + self.heads[heads].1 + experts)
    }
}

pub fn slowest(counts: &[usize], devices: &[Device], times: fn(&Device) -> &Vec<(f64, u64)>) -> f64 {
    let of = counts.iter().zip(devices).map(|(&count, device)| times(device)[count].0);
    of.fold(0.0, f64::max)
}

/// Every way to divide `units` over so many ranks, the fastest first.
pub fn priced(units: usize, ranks: usize, time: impl Fn(&[usize]) -> f64) -> Vec<Priced> {
    priced_by(1, units, ranks, time)
}

pub fn priced_by(step: usize, units: usize, ranks: usize, time: impl Fn(&[usize]) -> f64) -> Vec<Priced> {
    let all = compositions(units / step, ranks);
    let all = all.into_iter().map(|counts| counts.iter().map(|count| count * step).collect());
    let mut priced: Vec<Priced> = all.map(|counts: Vec<usize>| (time(&counts), counts)).collect();
    priced.sort_by(|a, b| a.0.total_cmp(&b.0));
    priced
}

/// The fastest division that fits, of heads, `experts` and vocabulary: slowest by slowest; none that takes
/// as long as `below`.
pub fn best_counts(
    kv_heads: usize,
    devices: &[Device],
    experts: &[Priced],
    placement: Placement,
    below: f64,
) -> Option<(f64, [Vec<usize>; 3])> {
    let ranks = devices.len();
    let heads = priced(kv_heads, ranks, |counts| slowest(counts, devices, |device| &device.heads));
    let rows = priced(PARTS, ranks, |counts| slowest(counts, devices, |device| &device.vocab));
    let mut best: Option<(f64, [Vec<usize>; 3])> = None;
    for (heads_s, heads) in &heads {
        let bound = best.as_ref().map_or(below, |(least, _)| *least);
        if heads_s + experts[0].0 + rows[0].0 >= bound {
            break;
        }
        for (parts_s, parts) in experts {
            let bound = best.as_ref().map_or(below, |(least, _)| *least);
            if heads_s + parts_s + rows[0].0 >= bound {
                break;
            }
            let all = heads.iter().zip(parts).zip(devices);
            let room: Option<Vec<u64>> =
                all.map(|((&heads, &parts), device)| device.room(heads, parts, placement)).collect();
            let Some(room) = room else { continue };
            let fits = |counts: &[usize]| {
                counts.iter().zip(devices).zip(&room).all(|((&n, device), room)| device.vocab[n].1 <= *room)
            };
            if let Some((rows_s, rows)) = rows.iter().find(|(_, counts)| fits(counts)) {
                let seconds = heads_s + parts_s + rows_s;
                if seconds < bound {
                    best = Some((seconds, [heads.clone(), parts.clone(), rows.clone()]));
                }
            }
        }
    }
    best
}
