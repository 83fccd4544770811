//! What a kernel reads and writes: borrowed views, checked once when they are made, so that the kernels
//! may walk them by pointer. They own nothing and know nothing of files or of the model.

use std::marker::PhantomData;
use std::ops::Range;

/// A row-major matrix: row r begins at `data[r · stride]`.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a, T> {
    data: &'a [T],
    rows: usize,
    columns: usize,
    stride: usize,
}

impl<'a, T> Matrix<'a, T> {
    /// data: T [rows, columns], rows without a gap.
    pub fn new(data: &'a [T], rows: usize, columns: usize) -> Matrix<'a, T> {
        Self::with_stride(data, rows, columns, columns)
    }

    /// data: T [rows, columns], `stride` values from row to row.
    pub fn with_stride(data: &'a [T], rows: usize, columns: usize, stride: usize) -> Matrix<'a, T> {
        check_extent(data.len(), rows, columns, stride);
        Matrix { data, rows, columns, stride }
    }

    pub fn rows(&self) -> usize {
        self.rows
    }
    pub fn columns(&self) -> usize {
        self.columns
    }
    pub fn stride(&self) -> usize {
        self.stride
    }
    pub fn row(&self, row: usize) -> &'a [T] {
        assert!(row < self.rows);
        let data: &'a [T] = self.data;
        &data[row * self.stride..][..self.columns]
    }
    /// Rows r of `row_ptr(r)` are readable for `columns` values while r < `rows`.
    pub(super) fn row_ptr(&self, row: usize) -> *const T {
        self.data.as_ptr().wrapping_add(row * self.stride)
    }
}

/// The one place where views are checked: rows do not overlap and the last ends within the data.
fn check_extent(len: usize, rows: usize, columns: usize, stride: usize) {
    assert!(stride >= columns, "a stride of {stride} is less than the {columns} columns");
    let end = match rows {
        0 => Some(0),
        _ => (rows - 1).checked_mul(stride).and_then(|last| last.checked_add(columns)),
    };
    assert!(
        end.is_some_and(|end| end <= len),
        "{rows} rows of {columns}, {stride} apart, do not fit in {len} values"
    );
}

/// The columns n0..n1 of a row-major f32 matrix y [T, N], to be written by one thread.
///
/// Output column n belongs to weight row n, so the tile tells a product which rows to compute, and
/// splitting the tile splits the work. Tiles of one matrix interleave in memory, hence pointers and not
/// slices; they never share a column.
#[derive(Debug)]
pub struct TileMut<'a> {
    base: *mut f32,
    tokens: usize,
    stride: usize,
    columns: Range<usize>,
    owner: PhantomData<&'a mut [f32]>,
}

// SAFETY: a tile is the only holder of its columns: `new` borrows the whole matrix mutably, and the only
// ways to a further tile are `split_at` and `chunks`, which consume this one and hand out disjoint ranges, and
// `reborrow`, which locks this one meanwhile. Columns of two disjoint ranges never share an element,
// as columns < stride. So sending a tile is like sending the `&mut` parts of `split_at_mut`.
unsafe impl Send for TileMut<'_> {}

impl<'a> TileMut<'a> {
    /// y: f32 [tokens, columns], rows without a gap.
    pub fn new(y: &'a mut [f32], tokens: usize, columns: usize) -> TileMut<'a> {
        Self::with_stride(y, tokens, columns, columns)
    }

    /// y: f32 [tokens, columns], `stride` values from token to token.
    pub fn with_stride(y: &'a mut [f32], tokens: usize, columns: usize, stride: usize) -> TileMut<'a> {
        check_extent(y.len(), tokens, columns, stride);
        TileMut { base: y.as_mut_ptr(), tokens, stride, columns: 0..columns, owner: PhantomData }
    }

    pub fn tokens(&self) -> usize {
        self.tokens
    }
    pub fn columns(&self) -> Range<usize> {
        self.columns.clone()
    }

    /// The columns below `column` and those from it on.
    pub fn split_at(self, column: usize) -> (TileMut<'a>, TileMut<'a>) {
        let Range { start, end } = self.columns;
        assert!((start..=end).contains(&column), "column {column} is not in {start}..{end}");
        let part = |columns| TileMut { columns, ..self };
        (part(start..column), part(column..end))
    }

    /// Tiles of `width` columns, the last maybe narrower.
    pub fn chunks(self, width: usize) -> impl Iterator<Item = TileMut<'a>> {
        assert!(width > 0);
        let mut rest = Some(self);
        std::iter::from_fn(move || {
            let tile = rest.take().filter(|tile| !tile.columns.is_empty())?;
            let cut = tile.columns.end.min(tile.columns.start + width);
            let (head, tail) = tile.split_at(cut);
            rest = Some(tail);
            Some(head)
        })
    }

    /// To be handed out in parts, to several threads.
    pub fn shared(self) -> SharedTile<'a> {
        SharedTile(self)
    }

    pub fn reborrow(&mut self) -> TileMut<'_> {
        TileMut { columns: self.columns.clone(), ..*self }
    }

    /// This tile's columns of one token.
    pub fn token_mut(&mut self, token: usize) -> &mut [f32] {
        assert!(token < self.tokens);
        // SAFETY: within the matrix by `check_extent`, and these columns are this tile's alone.
        unsafe { std::slice::from_raw_parts_mut(self.ptr(token, self.columns.start), self.columns.len()) }
    }

    /// y[token, column]; may be written through while token < `tokens` and the column is in `columns`.
    pub(super) fn ptr(&self, token: usize, column: usize) -> *mut f32 {
        self.base.wrapping_add(token * self.stride + column)
    }
}

/// A tile of which parts are handed out.
#[derive(Debug)]
pub struct SharedTile<'a>(TileMut<'a>);

// SAFETY: through `&self` nothing is reached but `part`, whose caller answers for parts that do not overlap.
unsafe impl Sync for SharedTile<'_> {}

impl SharedTile<'_> {
    /// The tile of some of its columns.
    ///
    /// # Safety
    /// No two parts that live at the same time share a column.
    pub unsafe fn part(&self, columns: Range<usize>) -> TileMut<'_> {
        let all = self.0.columns();
        assert!(all.start <= columns.start && columns.start <= columns.end && columns.end <= all.end);
        TileMut { columns, ..self.0 }
    }
}
