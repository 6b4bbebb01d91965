//! Arrays: the reference of the other instruction sets, and what runs where there is none of them.

#![expect(
    unsafe_op_in_unsafe_fn,
    reason = "only pointers are read or written, as the trait says"
)]

use super::Lanes;
use half::{bf16, f16};

/// The plain implementation.
pub(crate) struct Plain;

type F = [f32; 16];

#[inline(always)]
fn each(work: impl Fn(usize) -> f32) -> F {
    std::array::from_fn(work)
}

// SAFETY: no instruction set is asked for.
unsafe impl Lanes for Plain {
    type F = F;
    type I = [i32; 16];
    type B = [u8; 64];
    const BATCH: usize = 1;
    const WIDE_ZERO: i32 = 0;

    #[inline(always)]
    unsafe fn splat(value: f32) -> F {
        [value; 16]
    }
    #[inline(always)]
    unsafe fn load(at: *const f32) -> F {
        at.cast::<F>().read_unaligned()
    }
    #[inline(always)]
    unsafe fn store(at: *mut f32, value: F) {
        at.cast::<F>().write_unaligned(value)
    }
    #[inline(always)]
    unsafe fn load_f16(at: *const u16) -> F {
        let bits = at.cast::<[u16; 16]>().read_unaligned();
        each(|lane| f16::from_bits(bits[lane]).to_f32())
    }
    #[inline(always)]
    unsafe fn store_f16(at: *mut u16, value: F) {
        at.cast::<[u16; 16]>()
            .write_unaligned(value.map(|value| f16::from_f32(value).to_bits()));
    }
    #[inline(always)]
    unsafe fn load_i8(at: *const i8) -> F {
        let bytes = at.cast::<[i8; 16]>().read_unaligned();
        each(|lane| f32::from(bytes[lane]))
    }
    #[inline(always)]
    unsafe fn load_bf16(at: *const u16) -> F {
        let bits = at.cast::<[u16; 16]>().read_unaligned();
        each(|lane| bf16::from_bits(bits[lane]).to_f32())
    }
    #[inline(always)]
    unsafe fn fma(a: F, b: F, c: F) -> F {
        each(|lane| a[lane].mul_add(b[lane], c[lane]))
    }
    #[inline(always)]
    unsafe fn mul(a: F, b: F) -> F {
        each(|lane| a[lane] * b[lane])
    }
    #[inline(always)]
    unsafe fn add(a: F, b: F) -> F {
        each(|lane| a[lane] + b[lane])
    }
    #[inline(always)]
    unsafe fn div(a: F, b: F) -> F {
        each(|lane| a[lane] / b[lane])
    }
    #[inline(always)]
    unsafe fn max(a: F, b: F) -> F {
        each(|lane| if a[lane] > b[lane] { a[lane] } else { b[lane] })
    }
    #[inline(always)]
    unsafe fn min(a: F, b: F) -> F {
        each(|lane| if a[lane] < b[lane] { a[lane] } else { b[lane] })
    }
    #[inline(always)]
    unsafe fn round(a: F) -> F {
        each(|lane| a[lane].round_ties_even())
    }
    #[inline(always)]
    unsafe fn power_of_two(a: F) -> F {
        each(|lane| f32::from_bits(((a[lane] as i32 + 127) << 23).cast_unsigned()))
    }
    #[inline(always)]
    unsafe fn keep_from(a: F, limit: F, value: F) -> F {
        each(|lane| if a[lane] >= limit[lane] { value[lane] } else { 0.0 })
    }
    #[inline(always)]
    unsafe fn only(a: F, from: i32, to: i32) -> F {
        each(|lane| {
            if (from..to).contains(&(lane as i32)) {
                a[lane]
            } else {
                f32::NEG_INFINITY
            }
        })
    }
    #[inline(always)]
    unsafe fn sum(mut a: F) -> f32 {
        for half in [8, 4, 2, 1] {
            for lane in 0..half {
                a[lane] += a[lane + half];
            }
        }
        a[0]
    }
    #[inline(always)]
    unsafe fn largest(a: F) -> f32 {
        a.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }

    #[inline(always)]
    unsafe fn splat_int(value: i32) -> [i32; 16] {
        [value; 16]
    }
    #[inline(always)]
    unsafe fn to_float(a: [i32; 16]) -> F {
        each(|lane| a[lane] as f32)
    }

    #[inline(always)]
    unsafe fn store_bytes(at: *mut i8, a: F) {
        at.cast::<[i8; 16]>()
            .write_unaligned(a.map(|value| value.round_ties_even() as i8));
    }
    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        let _ = at;
    }
    #[inline(always)]
    unsafe fn load_bytes(at: *const u8) -> [u8; 64] {
        at.cast::<[u8; 64]>().read_unaligned()
    }
    #[inline(always)]
    unsafe fn or(a: [u8; 64], b: [u8; 64]) -> [u8; 64] {
        std::array::from_fn(|at| a[at] | b[at])
    }
    #[inline(always)]
    unsafe fn left<const BY: u32>(a: [u8; 64], mask: u8) -> [u8; 64] {
        a.map(|byte| (byte << BY) & mask)
    }
    #[inline(always)]
    unsafe fn right<const BY: u32>(a: [u8; 64], mask: u8) -> [u8; 64] {
        a.map(|byte| (byte >> BY) & mask)
    }
    #[inline(always)]
    unsafe fn dot(sums: [i32; 16], weights: [u8; 64], activations: i32) -> [i32; 16] {
        let x = activations
            .to_le_bytes()
            .map(|byte| i32::from(byte.cast_signed()));
        std::array::from_fn(|row| {
            (0..4).fold(sums[row], |sum, at| {
                sum + i32::from(weights[row * 4 + at]) * x[at]
            })
        })
    }
    #[inline(always)]
    unsafe fn dot_wide(sums: [i32; 16], weights: [u8; 64], activations: i32) -> [i32; 16] {
        let x = activations
            .to_le_bytes()
            .map(|byte| i32::from(byte.cast_signed()));
        std::array::from_fn(|row| {
            let weight = |at: usize| i32::from(weights[row * 4 + at]) - 128;
            (0..4).fold(sums[row], |sum, at| sum + weight(at) * x[at])
        })
    }
}
