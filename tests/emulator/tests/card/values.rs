//! The conversions of intrinsics.cuh, for all inputs where that is feasible. They are compared with the crate `half`
//! and with arithmetic in f64, neither of which shares code with them.

use crate::support::card;
use cudarc::driver::{LaunchConfig, PushKernelArg};
use half::{bf16, f16};

fn over(count: u32) -> LaunchConfig {
    LaunchConfig { grid_dim: (count.div_ceil(1024), 1, 1), block_dim: (32, 1, 1), shared_mem_bytes: 0 }
}

/// Runs `body` for each of `input`, 32 in one thread: in `v`, out `r`.
fn map(input: &[u32], body: &str) -> Option<Vec<u32>> {
    let card = card()?;
    let kernel = card.kernel(
        &format!(
            "#include \"intrinsics.cuh\"
            extern \"C\" __global__ void each(unsigned* out, const unsigned* in, unsigned count) {{
                const unsigned start = (blockIdx.x * 32 + threadIdx.x) * 32;
                for (unsigned i = start; i < start + 32 && i < count; i++) {{
                    const unsigned v = in[i];
                    unsigned r;
                    {body}
                    out[i] = r;
                }}
            }}"
        ),
        "each",
    );
    let a = card.stream.clone_htod(input).unwrap();
    let mut b = card.stream.alloc_zeros::<u32>(input.len()).unwrap();
    let count = input.len() as u32;
    // SAFETY: both buffers hold `count` values.
    unsafe { card.stream.launch_builder(&kernel).arg(&mut b).arg(&a).arg(&count).launch(over(count)) }
        .unwrap();
    Some(card.stream.clone_dtoh(&b).unwrap())
}

/// Every exponent and sign with mantissas around each place where rounding turns: dense, but not all 2^32.
fn floats() -> Vec<u32> {
    let mut all = Vec::new();
    for high in 0..1u32 << 16 {
        for low in [0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF, 0x0FFF, 0x1000, 0x1001, 0x2000, 0x3000] {
            all.push(high << 16 | low);
        }
    }
    all
}

#[test]
fn floats_round_to_bf16_to_nearest_even() {
    let input = floats();
    let Some(got) = map(
        &input,
        "r = to_bf16(__uint_as_float(v)).bits | pack_bf16(1.0f, __uint_as_float(v)) & 0xFFFF0000u;",
    ) else {
        return;
    };
    for (&bits, &got) in input.iter().zip(&got) {
        let value = f32::from_bits(bits);
        let expected = if value.is_nan() { 0x7FFF } else { bf16::from_f32(value).to_bits() };
        assert_eq!(got, u32::from(expected) * 0x10001, "{value:e} ({bits:08x})");
    }
}

#[test]
fn floats_round_to_f16_to_nearest_even_and_saturate() {
    let input = floats();
    let Some(got) = map(
        &input,
        "r = to_f16(__uint_as_float(v)).bits | pack_f16(1.0f, __uint_as_float(v)) & 0xFFFF0000u;",
    ) else {
        return;
    };
    for (&bits, &got) in input.iter().zip(&got) {
        let value = f32::from_bits(bits);
        let expected = match value {
            v if v.is_nan() => 0x7FFF,
            v => f16::from_f32(v.clamp(-65504.0, 65504.0)).to_bits(),
        };
        assert_eq!(got, u32::from(expected) * 0x10001, "{value:e} ({bits:08x})");
    }
}

#[test]
fn all_16_bit_floats_widen_exactly() {
    let input: Vec<u32> = (0..1 << 16).collect();
    let body = "r = __float_as_uint(to_float(f16{(unsigned short)v})) ^ __float_as_uint(lo_f16(v)) ^ __float_as_uint(hi_f16(v << 16));";
    let Some(from_f16) = map(&input, body) else { return };
    let Some(from_bf16) = map(&input, "r = __float_as_uint(to_float(bf16{(unsigned short)v}));") else {
        return;
    };
    for bits in 0..=u16::MAX {
        let (got, expected) = (f32::from_bits(from_f16[usize::from(bits)]), f16::from_bits(bits).to_f32());
        assert!(got.to_bits() == expected.to_bits() || (got.is_nan() && expected.is_nan()), "f16 {bits:04x}");
        assert_eq!(from_bf16[usize::from(bits)], u32::from(bits) << 16, "bf16 {bits:04x}");
    }
}

const FP4: [f32; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];

#[test]
fn mxfp4_nibbles_are_their_values_over_2_to_the_14() {
    // All 2^16 words of four nibbles in both halves: each place sees each nibble beside each neighbour.
    let input: Vec<u32> =
        (0..1u32 << 16).map(|low| low | low.rotate_left(5) << 16 | low >> 11 << 16).collect();
    for pair in 0..4u32 {
        let Some(ordered) = map(&input, &format!("unsigned d[4]; mxfp4_decode_8(d, v); r = d[{pair}];"))
        else {
            return;
        };
        let Some(unordered) =
            map(&input, &format!("unsigned d[4]; mxfp4_decode_8_unordered(d, v); r = d[{pair}];"))
        else {
            return;
        };
        for (at, &word) in input.iter().enumerate() {
            let value = |nibble: u32| {
                let code = word >> (4 * nibble) & 15;
                let value = FP4[code as usize & 7] / 16384.0;
                u32::from(f16::from_f32(if code & 8 != 0 { -value } else { value }).to_bits())
            };
            assert_eq!(
                ordered[at],
                value(2 * pair) | value(2 * pair + 1) << 16,
                "word {word:08x}, pair {pair}"
            );
            assert_eq!(unordered[at], value(pair) | value(pair + 4) << 16, "word {word:08x}, pair {pair}");
        }
    }
}

#[test]
fn every_mxfp4_scale_is_its_power_of_two() {
    let input: Vec<u32> = (0..256).collect();
    let Some(got) = map(&input, "r = __float_as_uint(mxfp4_scale((uint8_t)v));") else { return };
    for (scale, &bits) in got[..255].iter().enumerate() {
        assert_eq!(f64::from(f32::from_bits(bits)), 2f64.powi(scale as i32 - 127), "scale {scale}");
    }
    assert!(f32::from_bits(got[255]).is_nan());
}
