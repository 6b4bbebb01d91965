//! AVX-512 with VNNI: sixteen rows to a register, four columns to an instruction.

#![expect(
    unsafe_op_in_unsafe_fn,
    reason = "every operation is one of an instruction set that the trait's callers have enabled"
)]

use super::Lanes;
use std::arch::x86_64::*;

/// The AVX-512 implementation.
pub(crate) struct Avx512;

// SAFETY: each function is one operation over whole registers, as the trait says.
unsafe impl Lanes for Avx512 {
    type F = __m512;
    type I = __m512i;
    type B = __m512i;
    const BATCH: usize = 8;
    const WIDE_ZERO: i32 = 128;

    #[inline(always)]
    unsafe fn splat(value: f32) -> __m512 {
        _mm512_set1_ps(value)
    }
    #[inline(always)]
    unsafe fn load(at: *const f32) -> __m512 {
        _mm512_loadu_ps(at)
    }
    #[inline(always)]
    unsafe fn store(at: *mut f32, value: __m512) {
        _mm512_storeu_ps(at, value)
    }
    #[inline(always)]
    unsafe fn load_f16(at: *const u16) -> __m512 {
        _mm512_cvtph_ps(_mm256_loadu_si256(at.cast()))
    }
    #[inline(always)]
    unsafe fn store_f16(at: *mut u16, value: __m512) {
        _mm256_storeu_si256(
            at.cast(),
            _mm512_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(value),
        );
    }
    #[inline(always)]
    unsafe fn load_i8(at: *const i8) -> __m512 {
        _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(at.cast())))
    }
    #[inline(always)]
    unsafe fn load_bf16(at: *const u16) -> __m512 {
        let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(at.cast()));
        _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
    }
    #[inline(always)]
    unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
        _mm512_fmadd_ps(a, b, c)
    }
    #[inline(always)]
    unsafe fn mul(a: __m512, b: __m512) -> __m512 {
        _mm512_mul_ps(a, b)
    }
    #[inline(always)]
    unsafe fn add(a: __m512, b: __m512) -> __m512 {
        _mm512_add_ps(a, b)
    }
    #[inline(always)]
    unsafe fn div(a: __m512, b: __m512) -> __m512 {
        _mm512_div_ps(a, b)
    }
    #[inline(always)]
    unsafe fn max(a: __m512, b: __m512) -> __m512 {
        _mm512_max_ps(a, b)
    }
    #[inline(always)]
    unsafe fn min(a: __m512, b: __m512) -> __m512 {
        _mm512_min_ps(a, b)
    }
    #[inline(always)]
    unsafe fn round(a: __m512) -> __m512 {
        _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a)
    }
    #[inline(always)]
    unsafe fn power_of_two(a: __m512) -> __m512 {
        let biased = _mm512_add_epi32(_mm512_cvtps_epi32(a), _mm512_set1_epi32(127));
        _mm512_castsi512_ps(_mm512_slli_epi32::<23>(biased))
    }
    #[inline(always)]
    unsafe fn keep_from(a: __m512, limit: __m512, value: __m512) -> __m512 {
        _mm512_maskz_mov_ps(_mm512_cmp_ps_mask::<_CMP_GE_OQ>(a, limit), value)
    }
    #[inline(always)]
    unsafe fn only(a: __m512, from: i32, to: i32) -> __m512 {
        let below = |end: i32| (1u32 << end.clamp(0, 16)) - 1;
        let mask = (below(to) & !below(from)) as u16;
        _mm512_mask_mov_ps(_mm512_set1_ps(f32::NEG_INFINITY), mask, a)
    }
    #[inline(always)]
    unsafe fn sum(a: __m512) -> f32 {
        let half = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps::<1>(a));
        super::avx2::sum(half)
    }
    #[inline(always)]
    unsafe fn largest(a: __m512) -> f32 {
        _mm512_reduce_max_ps(a)
    }

    #[inline(always)]
    unsafe fn splat_int(value: i32) -> __m512i {
        _mm512_set1_epi32(value)
    }
    #[inline(always)]
    unsafe fn to_float(a: __m512i) -> __m512 {
        _mm512_cvtepi32_ps(a)
    }

    #[inline(always)]
    unsafe fn store_bytes(at: *mut i8, a: __m512) {
        _mm_storeu_si128(at.cast(), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(a)));
    }
    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        _mm_prefetch::<_MM_HINT_T0>(at.cast());
    }
    #[inline(always)]
    unsafe fn load_bytes(at: *const u8) -> __m512i {
        _mm512_loadu_si512(at.cast())
    }
    #[inline(always)]
    unsafe fn or(a: __m512i, b: __m512i) -> __m512i {
        _mm512_or_si512(a, b)
    }
    #[inline(always)]
    unsafe fn left<const BY: u32>(a: __m512i, mask: u8) -> __m512i {
        _mm512_and_si512(_mm512_slli_epi16::<BY>(a), _mm512_set1_epi8(mask.cast_signed()))
    }
    #[inline(always)]
    unsafe fn right<const BY: u32>(a: __m512i, mask: u8) -> __m512i {
        _mm512_and_si512(_mm512_srli_epi16::<BY>(a), _mm512_set1_epi8(mask.cast_signed()))
    }
    #[inline(always)]
    unsafe fn dot(sums: __m512i, weights: __m512i, activations: i32) -> __m512i {
        _mm512_dpbusd_epi32(sums, weights, _mm512_set1_epi32(activations))
    }
    #[inline(always)]
    unsafe fn dot_wide(sums: __m512i, weights: __m512i, activations: i32) -> __m512i {
        _mm512_dpbusd_epi32(sums, weights, _mm512_set1_epi32(activations))
    }
}
