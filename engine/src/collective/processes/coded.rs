//! Values as int8 in blocks of 32 with a scale each, for networks on which a sum takes longer than the rest
//! of a layer. Not exact: so every rank replaces its own part by what the others will read of it, once, and
//! all ranks sum the same numbers.
//!
//! ```text
//! scales: f32 [blocks]   then values: i8 [n]        value × scale, 1.125 bytes a value
//! ```

/// Values that share a scale.
const BLOCK: usize = 32;

/// Bytes of `n` coded values.
pub(super) fn bytes(n: usize) -> usize {
    n.div_ceil(BLOCK) * size_of::<f32>() + n
}

/// Appends the code of x to `out`; x becomes what the code says.
pub(super) fn round(x: &mut [f32], out: &mut Vec<u8>) {
    let scales = out.len();
    let values = scales + x.len().div_ceil(BLOCK) * size_of::<f32>();
    out.resize(scales + bytes(x.len()), 0);
    let (scales, values) = out[scales..].split_at_mut(values - scales);
    let blocks = x.chunks_mut(BLOCK).zip(scales.chunks_exact_mut(size_of::<f32>()));
    for ((x, out), values) in blocks.zip(values.chunks_mut(BLOCK)) {
        let scale = scale(x);
        out.copy_from_slice(&scale.to_le_bytes());
        let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
        for (x, value) in x.iter_mut().zip(values) {
            let rounded = nearest((*x * inverse).clamp(-127.0, 127.0)) as i8;
            (*value, *x) = (rounded.cast_unsigned(), f32::from(rounded) * scale);
        }
    }
}

/// out: f32 [n] = what `code` says.
pub(super) fn read(code: &[u8], out: &mut [f32]) {
    let (scales, values) = code.split_at(out.len().div_ceil(BLOCK) * size_of::<f32>());
    let blocks = out.chunks_mut(BLOCK).zip(scales.as_chunks().0);
    for ((out, scale), values) in blocks.zip(values.chunks(BLOCK)) {
        let scale = f32::from_le_bytes(*scale);
        out.iter_mut().zip(values).for_each(|(out, value)| *out = f32::from(value.cast_signed()) * scale);
    }
}

/// To the nearest whole number, |x| < 2²²; two additions, where the library's way is a call.
fn nearest(x: f32) -> f32 {
    const BARE: f32 = 1.5 * (1 << 23) as f32;
    (x + BARE) - BARE
}

/// What is not a number, or too large for one, makes its whole block so: it is seen, not smoothed.
fn scale(x: &[f32]) -> f32 {
    let largest = x.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
    if x.iter().all(|x| x.is_finite()) { largest / 127.0 } else { f32::NAN }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_what_is_read() {
        for n in [0, 1, 31, 32, 33, 2880, 2881] {
            let original: Vec<f32> = (0..n).map(|i| ((i * 7919) % 1009) as f32 / 13.0 - 38.0).collect();
            let (mut kept, mut code, mut read_back) = (original.clone(), b"before".to_vec(), vec![9.0; n]);
            round(&mut kept, &mut code);
            assert_eq!(code.len(), 6 + bytes(n));
            read(&code[6..], &mut read_back);
            assert_eq!(kept, read_back);
            for (block, kept) in original.chunks(BLOCK).zip(kept.chunks(BLOCK)) {
                let bound = scale(block) * 0.501;
                assert!(block.iter().zip(kept).all(|(x, kept)| (x - kept).abs() <= bound));
            }
        }
    }

    #[test]
    fn what_is_rounded_stays() {
        let mut x: Vec<f32> = (0..64).map(|i| i as f32 - 31.5).collect();
        round(&mut x, &mut Vec::new());
        let once = x.clone();
        round(&mut x, &mut Vec::new());
        let close = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-5;
        assert!(x.iter().zip(&once).all(close), "{once:?} {x:?}");
    }

    #[test]
    fn zeros_stay_and_poison_is_seen() {
        let mut x = [0.0f32; 40];
        x[35] = f32::INFINITY;
        round(&mut x, &mut Vec::new());
        assert!(x[..32].iter().all(|x| *x == 0.0) && x[32..].iter().all(|x| x.is_nan()));
        // Too small for a scale that has an inverse.
        let mut x = [f32::from_bits(1); 3];
        round(&mut x, &mut Vec::new());
        assert!(x.iter().all(|x| x.abs() < 1e-40));
    }
}
