//! Random inputs in a card's memory. Never zeros: products of them can be faster.

use cudarc::driver::{CudaSlice, DeviceRepr};
use flotilla_engine::cuda::{Card, CudaError};
use flotilla_shared::sampling::mix;

/// Values that are made on the host; longer buffers have them again and again.
const CHUNK: usize = 1 << 22;

fn fill<T: DeviceRepr>(
    card: &Card,
    len: usize,
    seed: u64,
    value: impl Fn(u64) -> T,
) -> Result<CudaSlice<T>, CudaError> {
    let chunk: Vec<T> = (0..len.min(CHUNK) as u64).map(|i| value(mix(seed << 32 ^ i))).collect();
    // SAFETY: every element is written below.
    let mut buffer = unsafe { card.unset::<T>(len)? };
    for start in (0..len).step_by(CHUNK) {
        let end = len.min(start + CHUNK);
        let mut part = buffer.slice_mut(start..end);
        let copied = card.stream().memcpy_htod(&chunk[..end - start], &mut part);
        copied.map_err(CudaError::doing("copy to the card"))?;
    }
    card.synchronize()?;
    Ok(buffer)
}

/// bf16 from 2^-7 to 2^-3, of both signs; as f16 they are finite, too.
pub fn bf16s(card: &Card, len: usize, seed: u64) -> Result<CudaSlice<u16>, CudaError> {
    fill(card, len, seed, |bits| {
        let exponent = 120 + (bits >> 40) as u16 % 4;
        (bits as u16 & 0x807f) | exponent << 7
    })
}

/// From −1 to 1.
pub fn f32s(card: &Card, len: usize, seed: u64) -> Result<CudaSlice<f32>, CudaError> {
    fill(card, len, seed, |bits| (bits >> 40) as f32 / (1u64 << 23) as f32 - 1.0)
}

/// Eight bits of any kind.
pub fn bytes(card: &Card, len: usize, seed: u64) -> Result<CudaSlice<u8>, CudaError> {
    fill(card, len, seed, |bits| bits as u8)
}

/// Scales of MXFP4 as a model has them: about 2^-7.
pub fn scales(card: &Card, len: usize, seed: u64) -> Result<CudaSlice<u8>, CudaError> {
    fill(card, len, seed, |bits| 116 + bits as u8 % 8)
}

/// Sets of so many bytes that no cache holds them all, if memory and `most` allow it.
pub fn sets(card: &Card, bytes: usize, most: usize) -> Result<usize, CudaError> {
    let room = (card.memory_free_bytes()? as usize / 2 / bytes.max(1)).max(1);
    let wanted = (3 * card.facts().l2_bytes as usize).div_ceil(bytes.max(1)) + 1;
    Ok(wanted.min(room).clamp(1, most))
}
