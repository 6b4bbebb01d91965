//! AVX2 with FMA and F16C: two registers of eight rows.

#![expect(
    unsafe_op_in_unsafe_fn,
    reason = "every operation is one of an instruction set that the trait's callers have enabled"
)]

use super::Lanes;
use std::arch::x86_64::*;

/// The AVX2 implementation.
pub(crate) struct Avx2;

/// The sum of eight floats, by halves.
///
/// # Safety
/// AVX must be there.
#[inline(always)]
pub(super) unsafe fn sum(a: __m256) -> f32 {
    let four = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
    let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
}

/// Products of bytes summed by fours; `weights` unsigned, and no sum of two products beyond 16 bits.
#[inline(always)]
unsafe fn fours(sums: __m256i, weights: __m256i, activations: __m256i) -> __m256i {
    let pairs = _mm256_maddubs_epi16(weights, activations);
    _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
}

#[inline(always)]
unsafe fn wide(sums: __m256i, weights: __m256i, activations: __m256i) -> __m256i {
    // The sign goes over to the activation, since unsigned bytes up to 255 would overflow the sums of two.
    let signed = _mm256_xor_si256(weights, _mm256_set1_epi8(-128));
    fours(
        sums,
        _mm256_abs_epi8(signed),
        _mm256_sign_epi8(activations, signed),
    )
}

#[inline(always)]
unsafe fn eight_bf16(at: *const u16) -> __m256 {
    let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(at.cast()));
    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
}

#[inline(always)]
unsafe fn nearest(a: __m256) -> __m256 {
    _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a)
}

#[inline(always)]
unsafe fn power(a: __m256) -> __m256 {
    let biased = _mm256_add_epi32(_mm256_cvtps_epi32(a), _mm256_set1_epi32(127));
    _mm256_castsi256_ps(_mm256_slli_epi32::<23>(biased))
}

#[inline(always)]
unsafe fn inside(a: __m256, from: i32, to: i32) -> __m256 {
    let lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    let after = _mm256_cmpgt_epi32(lanes, _mm256_set1_epi32(from - 1));
    let before = _mm256_cmpgt_epi32(_mm256_set1_epi32(to), lanes);
    let kept = _mm256_castsi256_ps(_mm256_and_si256(after, before));
    _mm256_blendv_ps(_mm256_set1_ps(f32::NEG_INFINITY), a, kept)
}

type F = [__m256; 2];
type I = [__m256i; 2];

// SAFETY: each function is one operation over both registers, as the trait says.
unsafe impl Lanes for Avx2 {
    type F = F;
    type I = I;
    type B = I;
    const BATCH: usize = 2;
    const WIDE_ZERO: i32 = 0;

    #[inline(always)]
    unsafe fn splat(value: f32) -> F {
        [_mm256_set1_ps(value); 2]
    }
    #[inline(always)]
    unsafe fn load(at: *const f32) -> F {
        [_mm256_loadu_ps(at), _mm256_loadu_ps(at.add(8))]
    }
    #[inline(always)]
    unsafe fn store(at: *mut f32, value: F) {
        _mm256_storeu_ps(at, value[0]);
        _mm256_storeu_ps(at.add(8), value[1]);
    }
    #[inline(always)]
    unsafe fn load_f16(at: *const u16) -> F {
        [
            _mm256_cvtph_ps(_mm_loadu_si128(at.cast())),
            _mm256_cvtph_ps(_mm_loadu_si128(at.add(8).cast())),
        ]
    }
    #[inline(always)]
    unsafe fn store_f16(at: *mut u16, value: F) {
        _mm_storeu_si128(at.cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(value[0]));
        _mm_storeu_si128(
            at.add(8).cast(),
            _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(value[1]),
        );
    }
    #[inline(always)]
    unsafe fn load_i8(at: *const i8) -> F {
        let eight = |at: *const i8| _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(at.cast())));
        [eight(at), eight(at.add(8))]
    }
    #[inline(always)]
    unsafe fn load_bf16(at: *const u16) -> F {
        [eight_bf16(at), eight_bf16(at.add(8))]
    }
    #[inline(always)]
    unsafe fn fma(a: F, b: F, c: F) -> F {
        [
            _mm256_fmadd_ps(a[0], b[0], c[0]),
            _mm256_fmadd_ps(a[1], b[1], c[1]),
        ]
    }
    #[inline(always)]
    unsafe fn mul(a: F, b: F) -> F {
        [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])]
    }
    #[inline(always)]
    unsafe fn add(a: F, b: F) -> F {
        [_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])]
    }
    #[inline(always)]
    unsafe fn div(a: F, b: F) -> F {
        [_mm256_div_ps(a[0], b[0]), _mm256_div_ps(a[1], b[1])]
    }
    #[inline(always)]
    unsafe fn max(a: F, b: F) -> F {
        [_mm256_max_ps(a[0], b[0]), _mm256_max_ps(a[1], b[1])]
    }
    #[inline(always)]
    unsafe fn min(a: F, b: F) -> F {
        [_mm256_min_ps(a[0], b[0]), _mm256_min_ps(a[1], b[1])]
    }
    #[inline(always)]
    unsafe fn round(a: F) -> F {
        [nearest(a[0]), nearest(a[1])]
    }
    #[inline(always)]
    unsafe fn power_of_two(a: F) -> F {
        [power(a[0]), power(a[1])]
    }
    #[inline(always)]
    unsafe fn keep_from(a: F, limit: F, value: F) -> F {
        [
            _mm256_and_ps(_mm256_cmp_ps::<_CMP_GE_OQ>(a[0], limit[0]), value[0]),
            _mm256_and_ps(_mm256_cmp_ps::<_CMP_GE_OQ>(a[1], limit[1]), value[1]),
        ]
    }
    #[inline(always)]
    unsafe fn only(a: F, from: i32, to: i32) -> F {
        [inside(a[0], from, to), inside(a[1], from - 8, to - 8)]
    }
    #[inline(always)]
    unsafe fn sum(a: F) -> f32 {
        sum(_mm256_add_ps(a[0], a[1]))
    }
    #[inline(always)]
    unsafe fn largest(a: F) -> f32 {
        let eight = _mm256_max_ps(a[0], a[1]);
        let four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
        let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps::<1>(two, two)))
    }

    #[inline(always)]
    unsafe fn splat_int(value: i32) -> I {
        [_mm256_set1_epi32(value); 2]
    }
    #[inline(always)]
    unsafe fn to_float(a: I) -> F {
        [_mm256_cvtepi32_ps(a[0]), _mm256_cvtepi32_ps(a[1])]
    }

    #[inline(always)]
    unsafe fn store_bytes(at: *mut i8, a: F) {
        let words = _mm256_packs_epi32(_mm256_cvtps_epi32(a[0]), _mm256_cvtps_epi32(a[1]));
        let ordered = _mm256_permute4x64_epi64::<0b11_01_10_00>(words);
        let (low, high) = (
            _mm256_castsi256_si128(ordered),
            _mm256_extracti128_si256::<1>(ordered),
        );
        _mm_storeu_si128(at.cast(), _mm_packs_epi16(low, high));
    }
    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        _mm_prefetch::<_MM_HINT_T0>(at.cast());
    }
    #[inline(always)]
    unsafe fn load_bytes(at: *const u8) -> I {
        [
            _mm256_loadu_si256(at.cast()),
            _mm256_loadu_si256(at.add(32).cast()),
        ]
    }
    #[inline(always)]
    unsafe fn or(a: I, b: I) -> I {
        [_mm256_or_si256(a[0], b[0]), _mm256_or_si256(a[1], b[1])]
    }
    #[inline(always)]
    unsafe fn left<const BY: u32>(a: I, mask: u8) -> I {
        let mask = _mm256_set1_epi8(mask.cast_signed());
        let count = _mm_cvtsi32_si128(BY.cast_signed());
        [
            _mm256_and_si256(_mm256_sll_epi16(a[0], count), mask),
            _mm256_and_si256(_mm256_sll_epi16(a[1], count), mask),
        ]
    }
    #[inline(always)]
    unsafe fn right<const BY: u32>(a: I, mask: u8) -> I {
        let mask = _mm256_set1_epi8(mask.cast_signed());
        let count = _mm_cvtsi32_si128(BY.cast_signed());
        [
            _mm256_and_si256(_mm256_srl_epi16(a[0], count), mask),
            _mm256_and_si256(_mm256_srl_epi16(a[1], count), mask),
        ]
    }
    #[inline(always)]
    unsafe fn dot(sums: I, weights: I, activations: i32) -> I {
        let x = _mm256_set1_epi32(activations);
        [fours(sums[0], weights[0], x), fours(sums[1], weights[1], x)]
    }
    #[inline(always)]
    unsafe fn dot_wide(sums: I, weights: I, activations: i32) -> I {
        let x = _mm256_set1_epi32(activations);
        [wide(sums[0], weights[0], x), wide(sums[1], weights[1], x)]
    }
}
