//! Views refuse what does not fit, and tiles of one matrix never meet.

use super::*;

#[test]
fn tiles_cover_each_column_once_and_threads_may_write_them() {
    let (tokens, columns, stride) = (5, 23, 29);
    let mut y = vec![0.0; tokens * stride];
    let tile = TileMut::with_stride(&mut y, tokens, columns, stride);
    std::thread::scope(|scope| {
        for mut tile in tile.chunks(4) {
            scope.spawn(move || {
                for token in 0..tokens {
                    tile.reborrow().token_mut(token).iter_mut().for_each(|y| *y += 1.0);
                }
            });
        }
    });
    for (i, y) in y.into_iter().enumerate() {
        assert_eq!(y, (i % stride < columns) as u8 as f32, "{} {}", i / stride, i % stride);
    }
}

#[test]
fn no_columns_no_tiles() {
    assert_eq!(TileMut::new(&mut [], 3, 0).chunks(4).count(), 0);
    assert_eq!(TileMut::new(&mut [], 0, 9).chunks(4).count(), 3);
}

#[test]
#[should_panic(expected = "do not fit")]
fn a_matrix_must_fit() {
    Matrix::with_stride(&[0u16; 20], 3, 7, 7);
}

#[test]
#[should_panic(expected = "do not fit")]
fn an_overflowing_matrix_does_not_fit() {
    Matrix::with_stride(&[0u16; 20], usize::MAX, 7, 8);
}

#[test]
#[should_panic(expected = "is less than")]
fn rows_must_not_overlap() {
    TileMut::with_stride(&mut [0.0; 20], 3, 7, 5);
}

#[test]
#[should_panic(expected = "not in 0..4")]
fn a_cut_lies_within() {
    TileMut::new(&mut [0.0; 4], 1, 4).split_at(5);
}

#[test]
#[should_panic(expected = "scales")]
fn mxfp4_needs_its_scales() {
    GroupedMxfp4::new(Kernels::detect(), &[0; 64], &[0; 3], (2, 64), true);
}
