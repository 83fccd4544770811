//! The sums of a group of processes: which of its ways a vector takes, and what goes where on each. Where
//! bytes move, and how ranks wait, is the mesh's business.

use super::frame::Length;
use super::link::Inbox;
use super::mesh::{Mesh, Outgoing};
use super::slots::SHOWN_BYTES_MAX;
use super::{ProcessCollective, coded};
use crate::collective::{Collective, CollectiveError, Operation, piece, sum_in_rank_order};
use flotilla_shared::WireFormat;
use std::ops::Range;

/// In memory, vectors up to this many elements (64 KiB) are given whole to every peer: two rounds cost more
/// than the reading that they spare. Measured for two ranks, 2026-11-28, 2-vCPU Sapphire Rapids, medians in µs,
/// whole / by pieces: 8192 elements 7.8 / 8.9, 16384 13.2 / 16.2, 32768 26.5 / 24.4, 65536 50.5 / 46.2.
const WHOLE_IN_MEMORY_MAX: usize = 16 << 10;
/// By wire, the same over the number of ranks: whole vectors send R / 2 times the bytes of pieces. Measured as
/// above, over loopback: 8192 13.7 / 19.7, 16384 24.4 / 27.2, 32768 43.9 / 49.2, 65536 80.3 / 81.9.
const WHOLE_BY_WIRE_MAX: usize = 64 << 10;
/// Groups up to this size give whole vectors as int8, however long: a piece's sum would go back as f32.
const WHOLE_CODED_RANKS_MAX: usize = 4;
/// Fewer values always go whole: so many leave something for each of 64 ranks.
const WHOLE_BY_WIRE_MIN: usize = 512;
/// What a rank can show at once.
const CHUNK_ELEMENTS: usize = SHOWN_BYTES_MAX / size_of::<f32>();

/// By wire, of so many ranks: what a plan told, which is 0 where it knows nothing of the link, within bounds.
pub(super) fn whole_values_max(told: Option<u32>, ranks: usize) -> usize {
    let most = WHOLE_BY_WIRE_MAX / ranks;
    match told {
        None | Some(0) => most,
        Some(values) => (values as usize).clamp(WHOLE_BY_WIRE_MIN.min(most), most),
    }
}

#[derive(Default)]
pub(super) struct Buffers {
    /// What the peers sent of a vector, one after the other in rank order.
    parts: Vec<f32>,
    /// The sums of this rank's piece.
    sums: Vec<f32>,
    /// int8: what goes to the peers, where each one's begins, and what came of them.
    code: Vec<u8>,
    coded_parts: Vec<u8>,
}

impl ProcessCollective {
    pub(super) fn sum(&mut self, x: &mut [f32]) -> Result<(), CollectiveError> {
        if !self.any_share || x.len() <= CHUNK_ELEMENTS {
            return self.sum_chunk(x);
        }
        x.chunks_mut(CHUNK_ELEMENTS).try_for_each(|x| self.sum_chunk(x))
    }

    fn sum_chunk(&mut self, x: &mut [f32]) -> Result<(), CollectiveError> {
        let is_coded = self.wire == WireFormat::Int8 && !self.all_share;
        let whole_max = match is_coded {
            true if self.size() <= WHOLE_CODED_RANKS_MAX => usize::MAX,
            _ if self.all_share => WHOLE_IN_MEMORY_MAX,
            // Where blocks begin is not to depend on a plan.
            true => whole_values_max(None, self.size()),
            false => self.whole_values_max,
        };
        match (x.len() > whole_max, is_coded) {
            (false, false) => self.sum_whole(x),
            (false, true) => self.sum_whole_coded(x),
            (true, false) => self.sum_pieces(x),
            (true, true) => self.sum_pieces_coded(x),
        }
    }

    /// x: f32 [n]
    fn sum_whole(&mut self, x: &mut [f32]) -> Result<(), CollectiveError> {
        let (n, size) = (x.len(), self.size());
        self.buffers.parts.resize(n * (size - 1), 0.0);
        for link in self.mesh.links_mut() {
            let at = n * link.slot();
            link.give(0..bytes(n), bytes(n), bytes(at)..bytes(at + n));
        }
        let inbox = Inbox::Ranges(bytemuck::cast_slice_mut(&mut self.buffers.parts));
        self.mesh.exchange(Operation::AllReduce, &Outgoing::plain(bytemuck::cast_slice(x)), inbox)?;
        add(&self.mesh, x, n, 0..n, &self.buffers.parts);
        Ok(())
    }

    /// x: f32 [n]
    fn sum_whole_coded(&mut self, x: &mut [f32]) -> Result<(), CollectiveError> {
        let (n, size, each) = (x.len(), self.size(), coded::bytes(x.len()));
        self.buffers.code.clear();
        coded::round(x, &mut self.buffers.code);
        self.buffers.coded_parts.resize(each * (size - 1), 0);
        for link in self.mesh.links_mut() {
            let at = each * link.slot();
            match link.place() {
                Some(_) => link.look(0..bytes(n), Length::Exactly(bytes(n) as u64)),
                None => link.expect(0..each, at..at + each),
            }
        }
        self.exchange_coded(x)?;
        self.read_parts(n);
        add(&self.mesh, x, n, 0..n, &self.buffers.parts);
        Ok(())
    }

    /// x: f32 [n]
    fn sum_pieces(&mut self, x: &mut [f32]) -> Result<(), CollectiveError> {
        let (n, size, rank) = (x.len(), self.size(), self.place());
        let mine = piece(n, rank, size);
        self.buffers.parts.resize(mine.len() * (size - 1), 0.0);
        for link in self.mesh.links_mut() {
            let (theirs, at) = (piece(n, link.position(), size), mine.len() * link.slot());
            link.give(in_bytes(&theirs), bytes(n), bytes(at)..bytes(at + mine.len()));
        }
        let inbox = Inbox::Ranges(bytemuck::cast_slice_mut(&mut self.buffers.parts));
        self.mesh.exchange(Operation::AllReduce, &Outgoing::plain(bytemuck::cast_slice(x)), inbox)?;
        self.spread_piece(x)
    }

    /// x: f32 [n]; each piece is coded for itself.
    fn sum_pieces_coded(&mut self, x: &mut [f32]) -> Result<(), CollectiveError> {
        let (n, size, rank) = (x.len(), self.size(), self.place());
        let each = coded::bytes(piece(n, rank, size).len());
        self.buffers.code.clear();
        let coded: Vec<Range<usize>> = (0..size)
            .map(|of| {
                let start = self.buffers.code.len();
                coded::round(&mut x[piece(n, of, size)], &mut self.buffers.code);
                start..self.buffers.code.len()
            })
            .collect();
        self.buffers.coded_parts.resize(each * (size - 1), 0);
        for link in self.mesh.links_mut() {
            let (of, at) = (link.position(), each * link.slot());
            match link.place() {
                Some(_) => link.look(in_bytes(&piece(n, of, size)), Length::Exactly(bytes(n) as u64)),
                None => link.expect(coded[of].clone(), at..at + each),
            }
        }
        self.exchange_coded(x)?;
        self.read_parts(piece(n, rank, size).len());
        self.spread_piece(x)
    }

    /// Sums this rank's piece of x, gives it to all, and takes theirs.
    fn spread_piece(&mut self, x: &mut [f32]) -> Result<(), CollectiveError> {
        let (n, size, rank) = (x.len(), self.size(), self.place());
        let mine = piece(n, rank, size);
        add(&self.mesh, &mut x[mine.clone()], n, mine.clone(), &self.buffers.parts);
        // The peers' sums land in x while this rank's are on their way out of it.
        self.buffers.sums.clear();
        self.buffers.sums.extend_from_slice(&x[mine.clone()]);
        for link in self.mesh.links_mut() {
            let theirs = in_bytes(&piece(n, link.position(), size));
            link.give(0..bytes(mine.len()), theirs.len(), theirs);
        }
        let out = Outgoing::plain(bytemuck::cast_slice(&self.buffers.sums));
        let inbox = Inbox::Ranges(bytemuck::cast_slice_mut(x));
        self.mesh.exchange(Operation::AllReduce, &out, inbox)?;
        for link in self.mesh.links() {
            let theirs = piece(n, link.position(), size);
            if let Some(shown) = self.mesh.shown(link, bytes(theirs.len())) {
                x[theirs].copy_from_slice(bytemuck::cast_slice(shown));
            }
        }
        Ok(())
    }

    fn exchange_coded(&mut self, x: &[f32]) -> Result<(), CollectiveError> {
        let (in_memory, announced) = (bytemuck::cast_slice(x), bytes(x.len()) as u64);
        let out = Outgoing { by_wire: &self.buffers.code, in_memory, announced };
        self.mesh.exchange(Operation::AllReduce, &out, Inbox::Ranges(&mut self.buffers.coded_parts))
    }

    /// Of `n` elements each.
    fn read_parts(&mut self, n: usize) {
        let Buffers { parts, coded_parts, .. } = &mut self.buffers;
        parts.resize(n * self.mesh.links().len(), 0.0);
        for link in self.mesh.links().iter().filter(|link| link.place().is_none()) {
            let (slot, each) = (link.slot(), coded::bytes(n));
            coded::read(&coded_parts[each * slot..][..each], &mut parts[n * slot..][..n]);
        }
    }
}

/// x: elements `range` of this rank's part of `n`, which becomes their sum. `parts`: of the peers on the wire.
fn add(mesh: &Mesh, x: &mut [f32], n: usize, range: Range<usize>, parts: &[f32]) {
    let (length, mine) = (x.len(), mesh.position());
    let part = |of: usize| {
        let slot = if of < mine { of } else { of - 1 };
        match mesh.shown(&mesh.links()[slot], bytes(n)) {
            Some(shown) => &bytemuck::cast_slice(shown)[range.clone()],
            None => &parts[length * slot..][..length],
        }
    };
    sum_in_rank_order(x, mine, mesh.links().len() + 1, part);
}

fn bytes(elements: usize) -> usize {
    elements * size_of::<f32>()
}

fn in_bytes(elements: &Range<usize>) -> Range<usize> {
    bytes(elements.start)..bytes(elements.end)
}
