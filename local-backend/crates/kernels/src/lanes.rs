//! Sixteen numbers at a time, on whatever the processor has: every kernel is written once, over [`Lanes`].
//!
//! Owns: which instruction set runs, and what each operation is in it. Refuses to know: what is computed. Invariant: an
//! operation gives the same bits in every implementation, so that the plain one is the reference of the others. To add
//! an instruction set, implement the trait and name it in [`Isa`] and [`dispatch!`](crate::lanes::dispatch).

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
pub(crate) mod plain;

use std::sync::atomic::{AtomicU8, Ordering};

/// An instruction set, the least first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// No vector instructions named; the reference.
    Plain,
    /// AVX2 with FMA and F16C.
    Avx2,
    /// AVX-512 with VNNI.
    Avx512,
}

/// What [`Isa::current`] has found; 0 before it has looked.
static CURRENT: AtomicU8 = AtomicU8::new(0);

impl Isa {
    /// The best this processor has.
    #[must_use]
    pub fn best() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            let all = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512vnni");
            let some = is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c");
            match (all, some) {
                (true, true) => Self::Avx512,
                (false, true) => Self::Avx2,
                _ => Self::Plain,
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        Self::Plain
    }

    /// The one in use.
    #[must_use]
    pub fn current() -> Self {
        match CURRENT.load(Ordering::Relaxed) {
            1 => Self::Plain,
            2 => Self::Avx2,
            3 => Self::Avx512,
            _ => Self::best().limit(),
        }
    }

    /// Uses this one from now on, or the best there is if the processor lacks it; returns what is in use.
    pub fn limit(self) -> Self {
        let used = self.min(Self::best());
        CURRENT.store(used as u8 + 1, Ordering::Relaxed);
        used
    }
}

/// Sixteen rows, or sixteen of anything. Bytes come as 64: four columns of each of sixteen rows.
///
/// # Safety
/// Every function may be called only where the instruction set is there, inside a function that has it enabled, and
/// with pointers to as much memory as it says it reads or writes.
pub(crate) unsafe trait Lanes {
    /// Sixteen f32.
    type F: Copy;
    /// Sixteen i32.
    type I: Copy;
    /// 64 bytes.
    type B: Copy;
    /// How many tokens' sums fit into the registers beside a tile.
    const BATCH: usize;
    /// What [`Lanes::dot_wide`] takes a weight of 128 for: 0 where it subtracts 128 itself.
    const WIDE_ZERO: i32;

    unsafe fn splat(value: f32) -> Self::F;
    /// Reads 16 floats.
    unsafe fn load(at: *const f32) -> Self::F;
    /// Writes 16 floats.
    unsafe fn store(at: *mut f32, value: Self::F);
    /// Reads 16 f16.
    unsafe fn load_f16(at: *const u16) -> Self::F;
    /// Writes 16 f16, rounded to even.
    unsafe fn store_f16(at: *mut u16, value: Self::F);
    /// Reads 16 signed bytes.
    unsafe fn load_i8(at: *const i8) -> Self::F;
    /// Reads 16 bf16.
    unsafe fn load_bf16(at: *const u16) -> Self::F;
    /// `a · b + c`, rounded once.
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F;
    /// To the nearest integer, ties to even.
    unsafe fn round(a: Self::F) -> Self::F;
    /// 2 to the power of integers between −126 and 127.
    unsafe fn power_of_two(a: Self::F) -> Self::F;
    /// `value` where `a >= limit`, 0 elsewhere.
    unsafe fn keep_from(a: Self::F, limit: Self::F, value: Self::F) -> Self::F;
    /// Lanes outside `from..to` become −∞.
    unsafe fn only(a: Self::F, from: i32, to: i32) -> Self::F;
    /// The sum, taken by halves.
    unsafe fn sum(a: Self::F) -> f32;
    unsafe fn largest(a: Self::F) -> f32;

    unsafe fn splat_int(value: i32) -> Self::I;
    unsafe fn to_float(a: Self::I) -> Self::F;

    /// Writes 16 numbers between −127 and 127 as bytes, rounded.
    unsafe fn store_bytes(at: *mut i8, a: Self::F);
    /// Asks for the cache line at an address that may be anything.
    unsafe fn prefetch(at: *const u8);
    /// Reads 64 bytes.
    unsafe fn load_bytes(at: *const u8) -> Self::B;
    unsafe fn or(a: Self::B, b: Self::B) -> Self::B;
    /// Each byte and `mask`, after the bytes were shifted to the left.
    unsafe fn left<const BY: u32>(a: Self::B, mask: u8) -> Self::B;
    /// Each byte and `mask`, after the bytes were shifted to the right.
    unsafe fn right<const BY: u32>(a: Self::B, mask: u8) -> Self::B;
    /// Adds to each row the products of its four weights below 64 with four activations.
    unsafe fn dot(sums: Self::I, weights: Self::B, activations: i32) -> Self::I;
    /// The same with weights below 256 that mean themselves less 128; see [`Lanes::WIDE_ZERO`].
    unsafe fn dot_wide(sums: Self::I, weights: Self::B, activations: i32) -> Self::I;
}

/// e to the power of `x`; 0 below −87, and as at 88 above it.
///
/// # Safety
/// See [`Lanes`].
#[inline(always)]
pub(crate) unsafe fn exp<L: Lanes>(x: L::F) -> L::F {
    // SAFETY: the caller's promise.
    unsafe {
        // Range reduction in two steps and the polynomial are those of Cephes' expf.
        let inside = L::min(L::max(x, L::splat(-87.0)), L::splat(88.0));
        let power = L::round(L::mul(inside, L::splat(std::f32::consts::LOG2_E)));
        let rest = L::fma(power, L::splat(-0.693_359_4), inside);
        let rest = L::fma(power, L::splat(2.121_944_4e-4), rest);
        let mut sum = L::splat(1.987_569_1e-4);
        for factor in [
            1.398_199_9e-3,
            8.333_452e-3,
            4.166_579_6e-2,
            1.666_666_5e-1,
            0.5,
            1.0,
            1.0,
        ] {
            sum = L::fma(sum, rest, L::splat(factor));
        }
        L::keep_from(x, L::splat(-87.0), L::mul(sum, L::power_of_two(power)))
    }
}

/// Runs a generic function with the instruction set in use: `dispatch!(isa, name(arguments…))`, where `name` is
/// `unsafe fn name<L: Lanes>(…)` and inlines.
macro_rules! dispatch {
    ($isa:expr, $name:ident ( $($argument:ident : $kind:ty),* )) => {{
        #[cfg(target_arch = "x86_64")]
        {
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,fma,f16c")]
            unsafe fn avx512($($argument: $kind),*) {
                // SAFETY: the features are enabled here.
                unsafe { $name::<$crate::lanes::avx512::Avx512>($($argument),*) }
            }
            #[target_feature(enable = "avx2,fma,f16c")]
            unsafe fn avx2($($argument: $kind),*) {
                // SAFETY: the features are enabled here.
                unsafe { $name::<$crate::lanes::avx2::Avx2>($($argument),*) }
            }
            // SAFETY: an `Isa` is only in use where the processor has it; pointers are the caller's to answer for.
            unsafe {
                match $isa {
                    $crate::lanes::Isa::Avx512 => avx512($($argument),*),
                    $crate::lanes::Isa::Avx2 => avx2($($argument),*),
                    $crate::lanes::Isa::Plain => $name::<$crate::lanes::plain::Plain>($($argument),*),
                }
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            let _ = $isa;
            // SAFETY: plain code runs everywhere; pointers are the caller's to answer for.
            unsafe { $name::<$crate::lanes::plain::Plain>($($argument),*) }
        }
    }};
}
pub(crate) use dispatch;
