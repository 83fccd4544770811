//! One step of attention on a card: its rows, cache and expected values in f64, and what a launch leaves of them. Which
//! steps are tried, and which faults must be noticed, is in `mod.rs`.

use super::*;

#[derive(Clone, Copy, PartialEq)]
pub(super) enum Logits {
    Usual,
    /// Thousands, of both signs: one key takes everything, and exp(s) alone would overflow.
    Extreme,
}

/// A step's rows, their cache and what is asked of them. Rows of a sequence lie behind each other.
pub(super) struct Case<'a> {
    pub(super) card: &'a Card,
    pub(super) shape: AttentionShape,
    pub(super) window: Option<u32>,
    pub(super) sequences: Vec<Range<usize>>,
    pub(super) positions: Vec<u32>,
    pub(super) table_start: Vec<u32>,
    pub(super) blocks: Vec<u32>,
    /// act [T, nq, D]
    pub(super) q: Vec<u16>,
    /// bf16 [blocks, nk, BLOCK_TOKENS, D]
    pub(super) keys: Vec<u16>,
    pub(super) values: Vec<u16>,
    /// bf16 [nq]
    pub(super) sinks: Vec<u16>,
}

pub(super) struct Random(u64);

impl Random {
    /// In −1..1.
    pub(super) fn even(&mut self) -> f32 {
        self.0 += 1;
        (mix(self.0) >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    /// About normal, of deviation 1.
    pub(super) fn normal(&mut self) -> f32 {
        (0..3).map(|_| self.even()).sum()
    }

    pub(super) fn shuffled(&mut self, count: usize) -> Vec<u32> {
        let mut order: Vec<u32> = (0..count as u32).collect();
        order.sort_by_key(|at| mix(self.0 + 7 + u64::from(*at)));
        order
    }
}

impl<'a> Case<'a> {
    pub(super) fn new(
        card: &'a Card,
        shape: AttentionShape,
        window: Option<u32>,
        sequences: &[Range<usize>],
        seed: u64,
        logits: Logits,
    ) -> Case<'a> {
        let mut random = Random(seed << 32);
        let block_count: usize = sequences.iter().map(|rows| rows.end.div_ceil(BLOCK_TOKENS)).sum();
        let free = random.shuffled(block_count + 3);
        let (mut positions, mut table_start, mut blocks) = (vec![], vec![], vec![NO_BLOCK]);
        let mut taken = 0;
        for rows in sequences {
            // What no row sees is gone: the entries before the table are another's, or none.
            let seen = window.map_or(0, |window| (rows.start + 1).saturating_sub(window as usize));
            let gone = seen / BLOCK_TOKENS;
            let table = rows.end.div_ceil(BLOCK_TOKENS) - gone;
            positions.extend(rows.clone().map(|position| position as u32));
            let start = (blocks.len() as u32).wrapping_sub(gone as u32);
            table_start.extend(rows.clone().map(|_| start));
            blocks.extend(&free[taken..taken + table]);
            blocks.push(NO_BLOCK);
            taken += table;
        }
        let cache = vec![POISON; (block_count + 3) * shape.block_values()];
        let mut case = Case {
            card,
            shape,
            window,
            sequences: sequences.to_vec(),
            q: vec![0; positions.len() * shape.q_width()],
            positions,
            table_start,
            blocks,
            keys: cache.clone(),
            values: cache,
            sinks: vec![],
        };
        case.fill(&mut random, logits);
        case
    }

    /// Scores with a deviation of 2 to 3 powers of two, so that several keys matter and none alone. Only
    /// positions that a row of the sequence sees are filled.
    pub(super) fn fill(&mut self, random: &mut Random, logits: Logits) {
        let (shape, extreme) = (self.shape, logits == Logits::Extreme);
        let q_size = if extreme { 40.0 } else { 2.5 / (shape.head_dim as f32).sqrt() };
        for at in 0..self.q.len() {
            self.q[at] = self.act(random.normal() * q_size);
        }
        for sequence in 0..self.sequences.len() {
            let rows = self.sequences[sequence].clone();
            let row = self.first_row(sequence) as usize;
            for position in self.visible(row).start..rows.end {
                for head in 0..shape.kv_heads {
                    let at = self.offset(row, head, position);
                    for d in at..at + shape.head_dim {
                        let (key, value) = (random.normal(), random.normal());
                        self.keys[d] = bf16::from_f32(if extreme { key * 10.0 } else { key }).to_bits();
                        self.values[d] = bf16::from_f32(value).to_bits();
                    }
                }
            }
        }
        // Sinks that take all, none, and their share.
        let sinks = (0..shape.q_heads()).map(|head| match head % 4 {
            1 => 12.0,
            3 => -90.0,
            _ => random.normal() * 2.0,
        });
        self.sinks = sinks.map(|sink| bf16::from_f32(sink).to_bits()).collect();
    }

    pub(super) fn is_f16(&self) -> bool {
        self.card.facts().capability.0 < 8
    }

    pub(super) fn act(&self, value: f32) -> u16 {
        if self.is_f16() { f16::from_f32(value).to_bits() } else { bf16::from_f32(value).to_bits() }
    }

    pub(super) fn act_value(&self, bits: u16) -> f64 {
        if self.is_f16() { f16::from_bits(bits).to_f64() } else { bf16::from_bits(bits).to_f64() }
    }

    /// Half a unit in the last place, of 1.
    pub(super) fn act_rounding(&self) -> f64 {
        if self.is_f16() { 2f64.powi(-11) } else { 2f64.powi(-8) }
    }

    pub(super) fn t(&self) -> usize {
        self.positions.len()
    }

    pub(super) fn first_row(&self, sequence: usize) -> u32 {
        self.sequences[..sequence].iter().map(|rows| rows.len() as u32).sum()
    }

    pub(super) fn rows_of(&self, sequence: usize) -> Range<usize> {
        let first = self.first_row(sequence) as usize;
        first..first + self.sequences[sequence].len()
    }

    /// The positions that a row sees.
    pub(super) fn visible(&self, row: usize) -> Range<usize> {
        let end = self.positions[row] as usize + 1;
        self.window.map_or(0, |window| end.saturating_sub(window as usize))..end
    }

    /// Where a row's sequence has the key (or value) of a position.
    pub(super) fn offset(&self, row: usize, head: usize, position: usize) -> usize {
        let entry = self.table_start[row].wrapping_add((position / BLOCK_TOKENS) as u32);
        let block = self.blocks[entry as usize] as usize;
        let shape = self.shape;
        ((block * shape.kv_heads + head) * BLOCK_TOKENS + position % BLOCK_TOKENS) * shape.head_dim
    }

    pub(super) fn poisoned_out(&self) -> CudaSlice<u16> {
        self.card.upload(&vec![POISON; self.q.len()]).unwrap()
    }

    /// All rows of the step in a bucket that is larger, or a list of them in another order.
    pub(super) fn decode(
        &self,
        kernels: &AttentionKernels,
        spare: Option<usize>,
        listed: bool,
    ) -> Result<(), String> {
        let mut out = self.poisoned_out();
        if listed {
            let rows: Vec<u32> = (0..self.t() as u32).rev().collect();
            self.launch_listed(kernels, spare.unwrap_or(0), &rows, &mut out)?;
        } else {
            self.launch_all(kernels, spare, &mut out)?;
        }
        self.compare(&out, &(0..self.t()).collect::<Vec<_>>())
    }

    /// Two rows of the bucket are not there: their positions are no positions.
    pub(super) fn launch_all(
        &self,
        kernels: &AttentionKernels,
        spare: Option<usize>,
        out: &mut CudaSlice<u16>,
    ) -> Result<(), String> {
        let bucket = self.t() + 2;
        let pad = |mut values: Vec<u32>| {
            values.resize(bucket, NO_BLOCK);
            values
        };
        let step = Uploaded::new(self, &pad(self.positions.clone()), &pad(self.table_start.clone()));
        let mut q = self.q.clone();
        q.resize(bucket * self.shape.q_width(), POISON);
        let q = self.card.upload(&q).unwrap();
        let mut padded = self.card.upload(&vec![POISON; q.len()]).unwrap();
        let attend = step.attend(self, &q);
        let rows = DecodeRows { launched: bucket, list: None };
        let parts = kernels.parts_max(bucket).max(bucket + spare.unwrap_or(0));
        let mut partials = Partials::new(self.card, self.shape, parts).unwrap();
        match spare {
            Some(spare) => {
                let mut to = padded.as_view_mut();
                kernels.attend_decode_in(spare, &rows, &step.rows(), &attend, &mut partials, &mut to)
            }
            None => {
                let mut to = padded.as_view_mut();
                kernels.attend_decode(&rows, &step.rows(), &attend, &mut partials, &mut to)
            }
        }
        .unwrap();
        let found = read(self.card, &padded)?;
        assert!(found[self.q.len()..].iter().all(|bits| *bits == POISON), "a row past the step was written");
        *out = self.card.upload(&found[..self.q.len()]).unwrap();
        Ok(())
    }

    /// The list is one longer than it says.
    pub(super) fn launch_listed(
        &self,
        kernels: &AttentionKernels,
        spare: usize,
        rows: &[u32],
        out: &mut CudaSlice<u16>,
    ) -> Result<(), String> {
        let step = Uploaded::new(self, &self.positions, &self.table_start);
        let q = self.card.upload(&self.q).unwrap();
        let mut listed = rows.to_vec();
        listed.push(NO_BLOCK);
        let (list, count) =
            (self.card.upload(&listed).unwrap(), self.card.upload(&[rows.len() as u32]).unwrap());
        let list = DecodeList { rows: list.as_view(), count: count.as_view() };
        let rows = DecodeRows { launched: listed.len(), list: Some(list) };
        let mut partials = Partials::new(self.card, self.shape, listed.len() + spare).unwrap();
        let (attend, mut to) = (step.attend(self, &q), out.as_view_mut());
        kernels.attend_decode_in(spare, &rows, &step.rows(), &attend, &mut partials, &mut to).unwrap();
        self.card.synchronize().map_err(|error| error.to_string())
    }

    pub(super) fn tiles(&self, kernels: &AttentionKernels, sequences: Range<usize>) -> Result<(), String> {
        let mut out = self.poisoned_out();
        self.launch_tiles(kernels, &sequences.collect::<Vec<_>>(), &mut out)?;
        self.compare(&out, &(0..self.t()).collect::<Vec<_>>())
    }

    /// The list is one longer than it says.
    pub(super) fn launch_tiles(
        &self,
        kernels: &AttentionKernels,
        sequences: &[usize],
        out: &mut CudaSlice<u16>,
    ) -> Result<(), String> {
        let mut tiles = vec![];
        for sequence in sequences {
            let rows = self.rows_of(*sequence);
            for first in rows.clone().step_by(self.shape.tile_rows()) {
                let count = (rows.end - first).min(self.shape.tile_rows());
                tiles.extend([first as u32, count as u32, 0, 0]);
            }
        }
        let count = tiles.len() as u32 / 4;
        tiles.extend([NO_BLOCK; 4]);
        let step = Uploaded::new(self, &self.positions, &self.table_start);
        let q = self.card.upload(&self.q).unwrap();
        let (tiles, count_there) = (self.card.upload(&tiles).unwrap(), self.card.upload(&[count]).unwrap());
        let tiles =
            Tiles { launched: count as usize + 1, tiles: tiles.as_view(), count: count_there.as_view() };
        let (attend, mut to) = (step.attend(self, &q), out.as_view_mut());
        kernels.attend_tiles(&tiles, &step.rows(), &attend, &mut to).unwrap();
        self.card.synchronize().map_err(|error| error.to_string())
    }

    /// `rows` are as f64 says; the others are as they were.
    pub(super) fn compare(&self, out: &CudaSlice<u16>, rows: &[usize]) -> Result<(), String> {
        let out = self.card.download(out).unwrap();
        for (row, out) in out.chunks(self.shape.q_width()).enumerate() {
            if !rows.contains(&row) {
                if out.iter().any(|bits| *bits != POISON) {
                    return Err(format!("row {row} was not asked for, and was written"));
                }
                continue;
            }
            for (head, out) in out.chunks(self.shape.head_dim).enumerate() {
                let expected = self.expected(row, head);
                for (d, (bits, (expected, bound))) in out.iter().zip(expected).enumerate() {
                    let found = self.act_value(*bits);
                    if (found - expected).abs() > bound || found.is_nan() {
                        let at = format!("row {row} (position {}), head {head}, d {d}", self.positions[row]);
                        return Err(format!("{at}: {found}, expected {expected} ± {bound:e}"));
                    }
                }
            }
        }
        Ok(())
    }

    /// [D] of a row's query head, each with how far it may be off: the weights of the values and the result
    /// itself are rounded to `act`; a score is a sum in f32, and an error in it is a relative one of its
    /// weight. On cards without bf16, weights and values below 2^-14 lose bits.
    pub(super) fn expected(&self, row: usize, q_head: usize) -> Vec<(f64, f64)> {
        let AttentionShape { head_dim, group, .. } = self.shape;
        let q = &self.q[row * self.shape.q_width() + q_head * head_dim..][..head_dim];
        let value = |bits: &u16| bf16::from_bits(*bits).to_f64();
        let (mut scores, mut score_size) = (vec![], 0f64);
        for position in self.visible(row) {
            let key = &self.keys[self.offset(row, q_head / group, position)..][..head_dim];
            let products = q.iter().zip(key).map(|(q, k)| self.act_value(*q) * value(k));
            score_size = score_size.max(products.clone().map(f64::abs).sum());
            scores.push(products.sum::<f64>());
        }
        let sink = value(&self.sinks[q_head]) * std::f64::consts::LOG2_E;
        let top = scores.iter().copied().fold(sink, f64::max);
        let total = scores.iter().map(|s| (s - top).exp2()).sum::<f64>() + (sink - top).exp2();
        let mut sums = vec![(0.0, 0.0, 0.0); head_dim];
        for (position, score) in self.visible(row).zip(&scores) {
            let weight = (score - top).exp2() / total;
            let values = &self.values[self.offset(row, q_head / group, position)..][..head_dim];
            for ((sum, size, all), v) in sums.iter_mut().zip(values) {
                *sum += weight * value(v);
                *size += weight * value(v).abs();
                *all += value(v).abs() + 1.0;
            }
        }
        let (rounding, lost) = (self.act_rounding(), if self.is_f16() { 2f64.powi(-24) } else { 1e-30 });
        let score_error = score_size * 2f64.powi(-20) + 2f64.powi(-18);
        sums.into_iter()
            .map(|(sum, size, all)| {
                (sum, rounding * (sum.abs() + size) * 1.01 + score_error * size + lost * all)
            })
            .collect()
    }
}

/// What a launch has left; an error where it touched memory that is not its own.
pub(super) fn read(card: &Card, values: &CudaSlice<u16>) -> Result<Vec<u16>, String> {
    card.download(values).map_err(|error| error.to_string())
}

/// A case's buffers in the card's memory.
pub(super) struct Uploaded {
    pub(super) rows: CudaSlice<u32>,
    pub(super) positions: CudaSlice<u32>,
    pub(super) table_start: CudaSlice<u32>,
    pub(super) blocks: CudaSlice<u32>,
    pub(super) keys: CudaSlice<u16>,
    pub(super) values: CudaSlice<u16>,
    pub(super) sinks: CudaSlice<u16>,
}

impl Uploaded {
    pub(super) fn new(case: &Case<'_>, positions: &[u32], table_start: &[u32]) -> Uploaded {
        let card = case.card;
        Uploaded {
            rows: card.upload(&[case.t() as u32]).unwrap(),
            positions: card.upload(positions).unwrap(),
            table_start: card.upload(table_start).unwrap(),
            blocks: card.upload(&case.blocks).unwrap(),
            keys: card.upload(&case.keys).unwrap(),
            values: card.upload(&case.values).unwrap(),
            sinks: card.upload(&case.sinks).unwrap(),
        }
    }

    pub(super) fn rows(&self) -> StepRows<'_> {
        StepRows {
            rows: self.rows.as_view(),
            positions: self.positions.as_view(),
            table_start: self.table_start.as_view(),
            blocks: self.blocks.as_view(),
        }
    }

    pub(super) fn attend<'a>(&'a self, case: &Case<'_>, q: &'a CudaSlice<u16>) -> Attend<'a> {
        let cache = Cache { keys: self.keys.as_view(), values: self.values.as_view() };
        Attend { q: q.as_view(), cache, sinks: self.sinks.as_view(), window: case.window }
    }
}

/// What `rope_store` is given beside a case's rows: two rows of the bucket are not there.
pub(super) struct Rotated<'a> {
    pub(super) case: &'a Case<'a>,
    /// f32 [T + 2, (nq + 2 nk) D]
    pub(super) qkv: Vec<f32>,
    /// f32 [T + 2, D/2]
    pub(super) cos: Vec<f32>,
    pub(super) sin: Vec<f32>,
}

impl<'a> Rotated<'a> {
    pub(super) fn new(case: &'a Case<'a>, seed: u64) -> Rotated<'a> {
        let (mut random, bucket) = (Random(seed << 32), case.t() + 2);
        let qkv = (0..bucket * case.shape.qkv_width()).map(|_| random.normal() * 3.0).collect();
        let angles: Vec<f32> = (0..bucket * case.shape.head_dim / 2).map(|_| random.even() * 3.2).collect();
        let cos = angles.iter().map(|angle| angle.cos() * 1.346_573_6).collect();
        let sin = angles.iter().map(|angle| angle.sin() * 1.346_573_6).collect();
        Rotated { case, qkv, cos, sin }
    }

    pub(super) fn check(&self, kernels: &AttentionKernels) -> Result<(), String> {
        let (case, card) = (self.case, self.case.card);
        let bucket = case.t() + 2;
        let pad = |values: &[u32]| [values, &[NO_BLOCK; 2]].concat();
        let step = Uploaded::new(case, &pad(&case.positions), &pad(&case.table_start));
        let (cos, sin) = (card.upload(&self.cos).unwrap(), card.upload(&self.sin).unwrap());
        let rotation = Rotation { cos: cos.as_view(), sin: sin.as_view() };
        let qkv = card.upload(&self.qkv).unwrap();
        let mut q = card.upload(&vec![POISON; bucket * case.shape.q_width()]).unwrap();
        let empty = vec![POISON; case.keys.len()];
        let (mut keys, mut values) = (card.upload(&empty).unwrap(), card.upload(&empty).unwrap());
        let mut cache = CacheMut { keys: keys.as_view_mut(), values: values.as_view_mut() };
        let mut q_view = q.as_view_mut();
        kernels.rope_store(bucket, &step.rows(), &rotation, &qkv.as_view(), &mut q_view, &mut cache).unwrap();
        self.check_q(&read(card, &q)?)?;
        self.check_cache(&read(card, &keys)?, &read(card, &values)?)
    }

    /// Head `head` of q, k, v together, rotated unless it is one of v's, with the size of what was summed.
    pub(super) fn head(&self, row: usize, head: usize) -> Vec<(f64, f64)> {
        let shape = self.case.shape;
        let (d, half) = (shape.head_dim, shape.head_dim / 2);
        let x = &self.qkv[row * shape.qkv_width() + head * d..][..d];
        if head >= shape.q_heads() + shape.kv_heads {
            return x.iter().map(|x| (f64::from(*x), 0.0)).collect();
        }
        let turned = |j: usize| {
            let (cos, sin) = (self.cos[row * half + j % half], self.sin[row * half + j % half]);
            let sign = if j < half { -1.0 } else { 1.0 };
            let straight = f64::from(x[j]) * f64::from(cos);
            let across = sign * f64::from(x[(j + half) % d]) * f64::from(sin);
            (straight + across, straight.abs() + across.abs())
        };
        (0..d).map(turned).collect()
    }

    pub(super) fn check_q(&self, q: &[u16]) -> Result<(), String> {
        let (case, shape) = (self.case, self.case.shape);
        let (d, scale) = (shape.head_dim, f64::from(shape.q_scale()));
        for row in 0..case.t() {
            for head in 0..shape.q_heads() {
                for (j, (expected, size)) in self.head(row, head).into_iter().enumerate() {
                    let found = case.act_value(q[row * shape.q_width() + head * d + j]);
                    // Rounded to `act`, and before that some times to f32.
                    let bound = (case.act_rounding() * expected.abs() + 2f64.powi(-22) * size) * scale + 1e-7;
                    if (found - expected * scale).abs() > bound || found.is_nan() {
                        return Err(format!(
                            "q[{row}, {head}, {j}] is {found}, expected {}",
                            expected * scale
                        ));
                    }
                }
            }
        }
        let past = q[case.t() * shape.q_width()..].iter().any(|bits| *bits != POISON);
        if past { Err("a row of q past the step was written".into()) } else { Ok(()) }
    }

    pub(super) fn check_cache(&self, keys: &[u16], values: &[u16]) -> Result<(), String> {
        let (case, shape) = (self.case, self.case.shape);
        let mut stored = 0;
        for row in 0..case.t() {
            for head in 0..shape.kv_heads {
                let at = case.offset(row, head, case.positions[row] as usize);
                stored += shape.head_dim;
                let key = self.head(row, shape.q_heads() + head);
                let value = self.head(row, shape.q_heads() + shape.kv_heads + head);
                for j in 0..shape.head_dim {
                    let (expected, size) = key[j];
                    let found = bf16::from_bits(keys[at + j]).to_f64();
                    let bound = 2f64.powi(-8) * expected.abs() + 2f64.powi(-22) * size;
                    if (found - expected).abs() > bound || found.is_nan() {
                        return Err(format!("k[{row}, {head}, {j}] is {found}, expected {expected}"));
                    }
                    if values[at + j] != bf16::from_f64(value[j].0).to_bits() {
                        return Err(format!("v[{row}, {head}, {j}] is not that of qkv"));
                    }
                }
            }
        }
        let written = |cache: &[u16]| cache.iter().filter(|bits| **bits != POISON).count();
        if written(keys) != stored || written(values) != stored {
            return Err(format!("{} keys were written, {stored} were to be", written(keys)));
        }
        Ok(())
    }
}
