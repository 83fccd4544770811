//! The best cut of one stage: every division of its heads, of its experts by blocks and whole, and of its vocabulary, in
//! steps. A rank's times and bytes are those of a plan of that rank alone; what whole experts take, of a plan of one layer.

use super::Brute;
use super::division::{Device, PARTS, Priced, WHOLE_PARTS, best_counts, priced, priced_by, slowest};
use flotilla_planner::{Work, predict_step};
use flotilla_shared::ids::Rank;
use flotilla_shared::plan::{ExpertShare, Placement, StageCut};
use flotilla_shared::{LayerKind, Plan, RankShare, Stage};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;

/// Stages of more ranks are cut by bandwidth alone.
const RANKS_MAX: usize = 4;

pub struct Cuts<'a> {
    brute: &'a Brute<'a>,
    known: BTreeMap<(Vec<usize>, Range2, usize), Option<StageCut>>,
    devices: BTreeMap<(usize, Range2, usize), Device>,
}

type Range2 = (usize, usize);

/// What was counted once, for all fleets of one model and one demand.
#[derive(Default)]
pub struct Known {
    bytes: RefCell<BTreeMap<Shape, Rc<Bytes>>>,
    whole: RefCell<BTreeMap<Whole, Rc<Vec<Priced>>>>,
}

/// Divisions of whole experts over ranks that differ in their rates at most: backend and bandwidths, sequences, and the factor
/// of their cost.
type Whole = (u8, Vec<u64>, usize, u64);

/// Of bytes: backend, full layers, layers, and whether they are the first and the last.
type Shape = (u8, usize, usize, (bool, bool));

/// By how much there is of each kind, beside `empty`.
struct Bytes {
    heads: Vec<u64>,
    blocks: Vec<u64>,
    whole: Vec<u64>,
    vocab: Vec<u64>,
    empty: u64,
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
            let mut best: Option<(f64, StageCut)> = None;
            for placement in &[Placement::Slices, Placement::Whole][..stage.len().min(2)] {
                let below = best.as_ref().map_or(f64::INFINITY, |(least, _)| *least);
                let found = self.counts(stage, &devices, layers.len(), sequences, *placement, below);
                let found =
                    found.map(|(seconds, counts)| (seconds, stage_cut(layers.len(), *placement, counts)));
                best = found.filter(|(seconds, _)| *seconds < below).or(best);
            }
            self.known.insert(key.clone(), best.map(|(_, cut)| cut));
        }
        self.known[&key].clone()
    }

    /// The best of one placement that takes less than `below`, with what its phases take.
    fn counts(
        &self,
        stage: &[usize],
        devices: &[Device],
        layers: usize,
        sequences: usize,
        placement: Placement,
        below: f64,
    ) -> Option<(f64, [Vec<usize>; 3])> {
        let blocks_s = |counts: &[usize]| slowest(counts, devices, |device| &device.blocks);
        let experts = match placement {
            Placement::Slices if stage.len() > RANKS_MAX => {
                let counts = self.in_proportion(stage, PARTS);
                vec![(blocks_s(&counts), counts)]
            }
            Placement::Slices => priced(PARTS, devices.len(), blocks_s),
            Placement::Whole => {
                let a_layer = self.whole(stage, sequences);
                a_layer.iter().map(|(seconds, counts)| (layers as f64 * seconds, counts.clone())).collect()
            }
        };
        if stage.len() > RANKS_MAX {
            return self.by_bandwidth(stage, devices, &experts, placement);
        }
        best_counts(self.brute.spec.kv_heads, devices, &experts, placement, below)
    }

    /// Every division of whole experts in steps, the fastest first, with seconds of one layer.
    fn whole(&self, stage: &[usize], sequences: usize) -> Rc<Vec<Priced>> {
        let Brute { spec, fleet, goal, known, .. } = *self.brute;
        let bits = |&device: &usize| fleet.devices[device].bandwidth.to_bits();
        let backend = fleet.devices[stage[0]].backend as u8;
        let key = (backend, stage.iter().map(bits).collect(), sequences, fleet.costs.whole_factor.to_bits());
        let work = Work::decode(sequences, goal.context);
        let each = spec.experts / WHOLE_PARTS;
        let time = |counts: &[usize]| {
            let mut start = 0;
            let ranks = stage.iter().zip(counts).enumerate().map(|(rank, (&device, &count))| {
                start += count * each;
                RankShare {
                    rank: Rank(rank as u16),
                    experts: ExpertShare {
                        experts: start - count * each..start,
                        blocks: 0..spec.intermediate_blocks(),
                    },
                    ..self.nothing(device)
                }
            });
            let plan = Plan { stages: vec![Stage { layers: 1..2, ranks: ranks.collect() }] };
            predict_step(spec, fleet, &plan, stage, work).stages[0].experts_s
        };
        let divisions = || match stage.len() > RANKS_MAX {
            true => {
                vec![(time(&self.in_proportion(stage, WHOLE_PARTS)), self.in_proportion(stage, WHOLE_PARTS))]
            }
            // Four ranks have them in double steps.
            false => priced_by(1 + usize::from(stage.len() > 3), WHOLE_PARTS, stage.len(), time),
        };
        known.whole.borrow_mut().entry(key).or_insert_with(|| Rc::new(divisions())).clone()
    }

    fn in_proportion(&self, stage: &[usize], units: usize) -> Vec<usize> {
        let weights: Vec<f64> =
            stage.iter().map(|&device| self.brute.fleet.devices[device].bandwidth).collect();
        flotilla_shared::plan::apportion(units, &weights).iter().map(ExactSizeIterator::len).collect()
    }

    fn by_bandwidth(
        &self,
        stage: &[usize],
        devices: &[Device],
        experts: &[Priced],
        placement: Placement,
    ) -> Option<(f64, [Vec<usize>; 3])> {
        let [heads, rows] = [self.brute.spec.kv_heads, PARTS].map(|units| self.in_proportion(stage, units));
        let parts = match placement {
            Placement::Slices => self.in_proportion(stage, PARTS),
            Placement::Whole => self.in_proportion(stage, WHOLE_PARTS),
        };
        let fits = (0..stage.len()).all(|rank| {
            let room = devices[rank].room(heads[rank], parts[rank], placement);
            room.is_some_and(|room| room >= devices[rank].vocab[rows[rank]].1)
        });
        let (parts_s, _) = experts.iter().find(|(_, counts)| *counts == parts)?;
        let seconds = slowest(&heads, devices, |device| &device.heads)
            + parts_s
            + slowest(&rows, devices, |device| &device.vocab);
        fits.then_some((seconds, [heads, parts, rows]))
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
            whole: bytes.whole.clone(),
            vocab: with(vocab, &bytes.vocab),
            empty_bytes: bytes.empty,
            memory_bytes: fleet.devices[device].memory_bytes,
        }
    }

    /// So many heads, parts of the blocks and parts of the vocabulary of some layers, and nothing else.
    fn alone(&self, device: usize, layers: &Range<usize>, [heads, parts, rows]: [usize; 3]) -> Plan {
        let spec = self.brute.spec;
        let blocks = spec.intermediate_blocks() / PARTS;
        let share = RankShare {
            kv_heads: 0..heads,
            experts: ExpertShare { experts: 0..spec.experts, blocks: 0..parts * blocks },
            vocab: 0..rows * spec.vocab / PARTS,
            ..self.nothing(device)
        };
        Plan { stages: vec![Stage { layers: layers.clone(), ranks: vec![share] }] }
    }

    fn nothing(&self, device: usize) -> RankShare {
        let device = &self.brute.fleet.devices[device];
        RankShare {
            rank: Rank(0),
            backend: device.backend,
            kv: device.kv,
            kv_heads: 0..0,
            experts: ExpertShare { experts: 0..0, blocks: 0..0 },
            vocab: 0..0,
        }
    }

    /// Bytes of so many parts of whole experts.
    fn whole_bytes(&self, device: usize, layers: &Range<usize>, parts: usize) -> u64 {
        let Brute { spec, demand, .. } = *self.brute;
        let experts = 0..parts * spec.experts / WHOLE_PARTS;
        let share = RankShare {
            experts: ExpertShare { experts, blocks: 0..spec.intermediate_blocks() },
            ..self.nothing(device)
        };
        Plan { stages: vec![Stage { layers: layers.clone(), ranks: vec![share] }] }.total_bytes(
            spec,
            Rank(0),
            demand,
        )
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
                whole: (0..=WHOLE_PARTS)
                    .map(|n| self.whole_bytes(device, layers, n).saturating_sub(empty))
                    .collect(),
                vocab: (0..=PARTS).map(|n| beside([0, 0, n])).collect(),
            })
        };
        known.bytes.borrow_mut().entry(key).or_insert_with(make).clone()
    }
}

fn stage_cut(layers: usize, placement: Placement, [heads, experts, vocab]: [Vec<usize>; 3]) -> StageCut {
    let shares = |counts: Vec<usize>| counts.into_iter().map(|count| count as f64).collect();
    StageCut { layers, placement, kv_heads: shares(heads), experts: shares(experts), vocab: shares(vocab) }
}
