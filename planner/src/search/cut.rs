//! How the devices of a stage share its layers: each kind is levelled on its own, within the memory of each device.

use super::level::{Taker, level};
use super::room::Room;
use crate::model::{Layers, StageModel, StageTime, Units};
use flotilla_shared::plan::Placement;
use flotilla_shared::{Demand, LayerKind};

/// A stage as it is cut.
#[derive(Clone, Debug)]
pub(crate) struct StageCutting {
    pub units: Vec<Units>,
    pub placement: Placement,
    pub time: StageTime,
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Heads,
    Experts,
    Vocabulary,
}

/// Where memory binds, who is served first has what it wants; no order is always the best.
const ORDERS: [[Kind; 3]; 3] = [
    [Kind::Heads, Kind::Experts, Kind::Vocabulary],
    [Kind::Heads, Kind::Vocabulary, Kind::Experts],
    [Kind::Experts, Kind::Heads, Kind::Vocabulary],
];

/// Stages of more ranks are not polished: their heads are too few to matter.
const POLISHED_RANKS_MAX: usize = 8;

pub(crate) struct Cutter<'a> {
    pub model: &'a StageModel<'a>,
    pub demand: Demand,
    pub layers: Layers,
    /// By rank.
    pub devices: &'a [usize],
    /// How these devices would share if memory were no limit: slices, found out before.
    pub free: Option<&'a [Units]>,
}

impl Cutter<'_> {
    /// The fastest way that fits.
    pub fn cut(&self) -> Option<StageCutting> {
        let slices = self.cut_as(Placement::Slices);
        if self.devices.len() == 1 {
            return slices;
        }
        let bound = slices.as_ref().map_or(f64::INFINITY, |slices| slices.time.experts_s);
        if self.least_whole_s() >= bound {
            return slices;
        }
        let both = [slices, self.cut_as(Placement::Whole)];
        both.into_iter().flatten().min_by(|a, b| a.time.total_s().total_cmp(&b.time.total_s()))
    }

    /// Whole experts cannot take less, however the drawn ones fall.
    fn least_whole_s(&self) -> f64 {
        let rate: f64 = self.devices.iter().map(|&device| 1.0 / self.model.expert_s(device)).sum();
        self.layers.count() as f64 * self.model.fleet.costs.whole_factor * self.model.touched / rate
    }

    fn cut_as(&self, placement: Placement) -> Option<StageCutting> {
        if self.is_hopeless() {
            return None;
        }
        if let Some(free) = self.free.filter(|free| placement == Placement::Slices && self.fit(free)) {
            let time = self.model.stage(self.devices, free, placement, self.layers);
            return Some(StageCutting { units: free.to_vec(), placement, time });
        }
        let cuts = ORDERS.iter().filter_map(|order| self.fill(order, placement, None));
        let mut best: Option<StageCutting> = None;
        for (units, bound) in cuts {
            let time = self.model.stage(self.devices, &units, placement, self.layers);
            if best.as_ref().is_none_or(|best| time.total_s() < best.time.total_s()) {
                best = Some(StageCutting { units, placement, time });
            }
            if !bound {
                break;
            }
        }
        best
    }

    /// Moves kv heads where memory binds, as long as that helps.
    pub fn polish(&self, mut best: StageCutting) -> StageCutting {
        if self.devices.len() > POLISHED_RANKS_MAX {
            return best;
        }
        while let Some(better) = self.better_neighbour(&best) {
            best = better;
        }
        best
    }

    fn better_neighbour(&self, cutting: &StageCutting) -> Option<StageCutting> {
        let ranks = self.devices.len();
        let mut best: Option<StageCutting> = None;
        for (from, to) in (0..ranks).flat_map(|from| (0..ranks).map(move |to| (from, to))) {
            if from == to || cutting.units[from].kv_heads == 0 {
                continue;
            }
            let mut heads: Vec<usize> = cutting.units.iter().map(|units| units.kv_heads).collect();
            heads[from] -= 1;
            heads[to] += 1;
            for order in &ORDERS[..2] {
                let Some((units, _)) = self.fill(order, cutting.placement, Some(&heads)) else { continue };
                let time = self.model.stage(self.devices, &units, cutting.placement, self.layers);
                let least = best.as_ref().unwrap_or(cutting).time.total_s();
                if time.total_s() < least * (1.0 - 1e-9) {
                    best = Some(StageCutting { units, placement: cutting.placement, time });
                }
            }
        }
        best
    }

    /// All devices together have too little memory, or one of them has too little even for what every rank holds.
    fn is_hopeless(&self) -> bool {
        let spec = self.model.spec;
        let blocks = (self.layers.count() * spec.experts * spec.intermediate_blocks()) as u64;
        let memory = self.devices.iter().map(|&device| self.model.fleet.devices[device].memory_bytes);
        memory.fold(0, u64::saturating_add) < blocks * self.model.sizes.block_bytes
            || !self.fit(&vec![self.nothing(Placement::Slices); self.devices.len()])
    }

    fn fit(&self, units: &[Units]) -> bool {
        let mut ranks = units.iter().zip(self.devices);
        ranks.all(|(&units, &device)| {
            self.room(device).needed(units) <= self.model.fleet.devices[device].memory_bytes
        })
    }

    fn room(&self, device: usize) -> Room<'_> {
        let Cutter { model, demand, layers, .. } = *self;
        Room { model, demand, layers, device }
    }

    /// Units by rank as if memory were no limit.
    pub fn share_freely(&self) -> Vec<Units> {
        let mut units = vec![self.nothing(Placement::Slices); self.devices.len()];
        for kind in ORDERS[0] {
            let whole = self.whole(kind, Placement::Slices);
            let takers = self.devices.iter().map(|&device| {
                let (base_s, unit_s) = self.unit_s(kind, Placement::Slices, device, whole);
                Taker { base_s, unit_s, most: whole }
            });
            let counts = level(whole, &takers.collect::<Vec<_>>()).expect("there is room without a limit");
            units
                .iter_mut()
                .zip(counts)
                .for_each(|(units, count)| *units = with(kind, Placement::Slices, *units, count));
        }
        units
    }

    /// Units by rank, and whether memory was in the way; `heads` are given or found.
    fn fill(
        &self,
        order: &[Kind; 3],
        placement: Placement,
        heads: Option<&[usize]>,
    ) -> Option<(Vec<Units>, bool)> {
        let mut units = vec![self.nothing(placement); self.devices.len()];
        let mut bound = false;
        for &kind in order {
            let counts = match (kind, heads) {
                (Kind::Heads, Some(heads)) => {
                    let fit = |rank: usize| {
                        heads[rank] <= self.most(rank, units[rank], kind, heads[rank], placement)
                    };
                    if !(0..heads.len()).all(fit) {
                        return None;
                    }
                    heads.to_vec()
                }
                _ => self.share_out(kind, placement, &units, &mut bound)?,
            };
            units
                .iter_mut()
                .zip(counts)
                .for_each(|(units, count)| *units = with(kind, placement, *units, count));
        }
        Some((units, bound))
    }

    fn nothing(&self, placement: Placement) -> Units {
        let spec = self.model.spec;
        match placement {
            Placement::Slices => Units { experts: spec.experts, ..Units::default() },
            Placement::Whole => Units { blocks: spec.intermediate_blocks(), ..Units::default() },
        }
    }

    fn share_out(
        &self,
        kind: Kind,
        placement: Placement,
        units: &[Units],
        bound: &mut bool,
    ) -> Option<Vec<usize>> {
        let whole = self.whole(kind, placement);
        let takers = self.devices.iter().enumerate().map(|(rank, &device)| {
            let most = self.most(rank, units[rank], kind, whole, placement);
            let (base_s, unit_s) = self.unit_s(kind, placement, device, most);
            Taker { base_s, unit_s, most }
        });
        let takers: Vec<Taker> = takers.collect();
        let counts = level(whole, &takers)?;
        *bound |= counts.iter().zip(&takers).any(|(&count, taker)| count == taker.most && count < whole);
        Some(counts)
    }

    fn whole(&self, kind: Kind, placement: Placement) -> usize {
        let spec = self.model.spec;
        match (kind, placement) {
            (Kind::Heads, _) => spec.kv_heads,
            (Kind::Experts, Placement::Slices) => spec.intermediate_blocks(),
            (Kind::Experts, Placement::Whole) => spec.experts,
            (Kind::Vocabulary, _) => spec.vocab,
        }
    }

    fn most(&self, rank: usize, units: Units, kind: Kind, whole: usize, placement: Placement) -> usize {
        let room = self.room(self.devices[rank]);
        room.most(units, whole, |units, count| with(kind, placement, units, count))
    }

    fn unit_s(&self, kind: Kind, placement: Placement, device: usize, most: usize) -> (f64, f64) {
        let (model, layers) = (self.model, self.layers);
        let count = layers.count() as f64;
        match (kind, placement) {
            (Kind::Heads, _) => {
                let head = |kind| model.attention_s(device, 1, kind);
                let full = layers.full as f64 * head(LayerKind::Full);
                (0.0, full + layers.window as f64 * head(LayerKind::Window))
            }
            (Kind::Experts, Placement::Slices) => {
                (count * model.router_s(device), count * model.block_s(device))
            }
            (Kind::Experts, Placement::Whole) => {
                let touched = model.touched / model.spec.experts as f64;
                (0.0, count * touched * model.expert_s(device))
            }
            (Kind::Vocabulary, _) if layers.last => (0.0, model.vocabulary_row_s(device)),
            // Only memory is asked for, so its room is the measure.
            (Kind::Vocabulary, _) => (0.0, 1.0 / (most as f64 + 1.0)),
        }
    }
}

fn with(kind: Kind, placement: Placement, units: Units, count: usize) -> Units {
    match (kind, placement) {
        (Kind::Heads, _) => Units { kv_heads: count, ..units },
        (Kind::Experts, Placement::Slices) => Units { blocks: count, ..units },
        (Kind::Experts, Placement::Whole) => Units { experts: count, ..units },
        (Kind::Vocabulary, _) => Units { vocab: count, ..units },
    }
}
