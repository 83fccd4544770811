//! The best cut of one stage: every division of its heads, blocks and vocabulary, in steps. A rank's times and bytes are
//! those of a plan of that rank alone.

use super::Brute;
use super::orders::compositions;
use flotilla_planner::{Work, predict_step};
use flotilla_shared::ids::Rank;
use flotilla_shared::plan::{ExpertShare, Placement, StageCut};
use flotilla_shared::{LayerKind, Plan, RankShare, Stage};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;

/// Parts of the blocks and of the vocabulary.
const PARTS: usize = 18;
/// Stages of more ranks are cut by bandwidth alone.
const RANKS_MAX: usize = 4;

pub struct Cuts<'a> {
    brute: &'a Brute<'a>,
    known: BTreeMap<(Vec<usize>, Range2, usize), Option<StageCut>>,
    devices: BTreeMap<(usize, Range2, usize), Device>,
}

type Range2 = (usize, usize);

/// Bytes of layers that were counted once, for all fleets of one model and one demand: by backend, full layers, layers, and
/// whether they are the first and the last.
#[derive(Default)]
pub struct Known(RefCell<BTreeMap<Shape, Rc<Bytes>>>);

type Shape = (u8, usize, usize, (bool, bool));

/// By how much there is of each kind, beside `empty`.
struct Bytes {
    heads: Vec<u64>,
    blocks: Vec<u64>,
    vocab: Vec<u64>,
    empty: u64,
}

/// Seconds and bytes of a device by how much it has of each kind; bytes beside `empty_bytes`.
#[derive(Clone)]
struct Device {
    heads: Vec<(f64, u64)>,
    blocks: Vec<(f64, u64)>,
    vocab: Vec<(f64, u64)>,
    empty_bytes: u64,
    memory_bytes: u64,
}

impl<'a> Cuts<'a> {
    pub fn new(brute: &'a Brute<'a>) -> Cuts<'a> {
        Cuts { brute, known: BTreeMap::new(), devices: BTreeMap::new() }
    }

    /// Of `layers` over the devices of `stage`, one of so many stages.
    pub fn cut(&mut self, stage: &[usize], layers: Range<usize>, stages: usize) -> Option<StageCut> {
        let sequences = self.brute.goal.aim.sequences().div_ceil(stages);
        let key = (stage.to_vec(), (layers.start, layers.end), sequences);
        if !self.known.contains_key(&key) {
            let devices: Vec<Device> =
                stage.iter().map(|&device| self.device(device, layers.clone(), sequences)).collect();
            let counts = if stage.len() > RANKS_MAX {
                self.by_bandwidth(stage, &devices)
            } else {
                best_counts(self.brute.spec.kv_heads, &devices)
            };
            self.known.insert(key.clone(), counts.map(|counts| self.stage_cut(layers.len(), counts)));
        }
        self.known[&key].clone()
    }

    fn stage_cut(&self, layers: usize, [heads, blocks, vocab]: [Vec<usize>; 3]) -> StageCut {
        let shares = |counts: Vec<usize>| counts.into_iter().map(|count| count as f64).collect();
        StageCut {
            layers,
            placement: Placement::Slices,
            kv_heads: shares(heads),
            experts: shares(blocks),
            vocab: shares(vocab),
        }
    }

    fn by_bandwidth(&self, stage: &[usize], devices: &[Device]) -> Option<[Vec<usize>; 3]> {
        let weights: Vec<f64> =
            stage.iter().map(|&device| self.brute.fleet.devices[device].bandwidth).collect();
        let divide = |units: usize| -> Vec<usize> {
            flotilla_shared::plan::apportion(units, &weights).iter().map(ExactSizeIterator::len).collect()
        };
        let counts = [divide(self.brute.spec.kv_heads), divide(PARTS), divide(PARTS)];
        let fits = (0..stage.len())
            .all(|rank| devices[rank].fits(counts[0][rank], counts[1][rank], counts[2][rank]));
        fits.then_some(counts)
    }

    fn device(&mut self, device: usize, layers: Range<usize>, sequences: usize) -> Device {
        let key = (device, (layers.start, layers.end), sequences);
        if !self.devices.contains_key(&key) {
            let made = self.measure(device, &layers, sequences);
            self.devices.insert(key, made);
        }
        self.devices[&key].clone()
    }

    fn measure(&self, device: usize, layers: &Range<usize>, sequences: usize) -> Device {
        let Brute { spec, fleet, goal, .. } = *self.brute;
        let work = Work::decode(sequences, goal.context);
        let time = |counts| {
            let plan = self.alone(device, layers, counts);
            predict_step(spec, fleet, &plan, &[device], work).stages[0].ranks[0]
        };
        let bytes = self.bytes(device, layers);
        let with = |times: Vec<f64>, bytes: &[u64]| times.into_iter().zip(bytes.iter().copied()).collect();
        let heads = (0..=spec.kv_heads).map(|n| time([n, 0, 0]).attention_s).collect();
        let blocks = (0..=PARTS).map(|n| time([0, n, 0]).experts_s).collect();
        let vocab = (0..=PARTS).map(|n| time([0, 0, n]).vocabulary_s).collect();
        Device {
            heads: with(heads, &bytes.heads),
            blocks: with(blocks, &bytes.blocks),
            vocab: with(vocab, &bytes.vocab),
            empty_bytes: bytes.empty,
            memory_bytes: fleet.devices[device].memory_bytes,
        }
    }

    /// So many heads, parts of the blocks and parts of the vocabulary of some layers, and nothing else.
    fn alone(&self, device: usize, layers: &Range<usize>, [heads, parts, rows]: [usize; 3]) -> Plan {
        let Brute { spec, fleet, .. } = *self.brute;
        let blocks = spec.intermediate_blocks() / PARTS;
        let share = RankShare {
            rank: Rank(0),
            backend: fleet.devices[device].backend,
            kv: fleet.devices[device].kv,
            kv_heads: 0..heads,
            experts: ExpertShare { experts: 0..spec.experts, blocks: 0..parts * blocks },
            vocab: 0..rows * spec.vocab / PARTS,
        };
        Plan { stages: vec![Stage { layers: layers.clone(), ranks: vec![share] }] }
    }

    fn bytes(&self, device: usize, layers: &Range<usize>) -> Rc<Bytes> {
        let Brute { spec, fleet, demand, known, .. } = *self.brute;
        let full = spec.layers[layers.clone()].iter().filter(|kind| **kind == LayerKind::Full).count();
        let ends = (layers.start == 0, layers.end == spec.layer_count());
        let key = (fleet.devices[device].backend as u8, full, layers.len(), ends);
        let make = || {
            let of = |counts| self.alone(device, layers, counts).total_bytes(spec, Rank(0), demand);
            let empty = of([0, 0, 0]);
            let beside = |counts| of(counts).saturating_sub(empty);
            Rc::new(Bytes {
                empty,
                heads: (0..=spec.kv_heads).map(|n| beside([n, 0, 0])).collect(),
                blocks: (0..=PARTS).map(|n| beside([0, n, 0])).collect(),
                vocab: (0..=PARTS).map(|n| beside([0, 0, n])).collect(),
            })
        };
        known.0.borrow_mut().entry(key).or_insert_with(make).clone()
    }
}

impl Device {
    fn room(&self, heads: usize, parts: usize) -> Option<u64> {
        self.memory_bytes.checked_sub(self.empty_bytes + self.heads[heads].1 + self.blocks[parts].1)
    }

    fn fits(&self, heads: usize, parts: usize, rows: usize) -> bool {
        self.room(heads, parts).is_some_and(|room| room >= self.vocab[rows].1)
    }
}

/// The fastest division that fits, of heads, blocks and vocabulary: slowest by slowest.
fn best_counts(kv_heads: usize, devices: &[Device]) -> Option<[Vec<usize>; 3]> {
    let slowest = |counts: &[usize], times: fn(&Device) -> &Vec<(f64, u64)>| {
        let of = counts.iter().zip(devices).map(|(&count, device)| times(device)[count].0);
        of.fold(0.0, f64::max)
    };
    let priced = |units: usize, times: fn(&Device) -> &Vec<(f64, u64)>| {
        let all = compositions(units, devices.len());
        let mut priced: Vec<(f64, Vec<usize>)> =
            all.into_iter().map(|counts| (slowest(&counts, times), counts)).collect();
        priced.sort_by(|a, b| a.0.total_cmp(&b.0));
        priced
    };
    let heads = priced(kv_heads, |device| &device.heads);
    let parts = priced(PARTS, |device| &device.blocks);
    let rows = priced(PARTS, |device| &device.vocab);
    let mut best: Option<(f64, [Vec<usize>; 3])> = None;
    for (heads_s, heads) in &heads {
        if best.as_ref().is_some_and(|(least, _)| heads_s + parts[0].0 + rows[0].0 >= *least) {
            break;
        }
        for (parts_s, parts) in &parts {
            let bound = best.as_ref().map_or(f64::INFINITY, |(least, _)| *least);
            if heads_s + parts_s + rows[0].0 >= bound {
                break;
            }
            let all = heads.iter().zip(parts).zip(devices);
            let room: Option<Vec<u64>> =
                all.map(|((&heads, &parts), device)| device.room(heads, parts)).collect();
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
    best.map(|(_, counts)| counts)
}
