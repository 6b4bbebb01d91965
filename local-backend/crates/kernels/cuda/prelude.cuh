// What every kernel is compiled after: number types, conversions, and the few machine instructions used, each as a function
// with one meaning. On a card they are PTX; `simt.h` has the same functions in plain C++, so that the unchanged kernels run on
// the CPU. No toolkit header is needed.
//
// Never run on a GPU yet: compiled to machine code, and run on the CPU.
//
// Rules kept by every kernel, and checked by the shim: collectives are called by whole warps, barriers by whole blocks; all
// shared memory is the launch's own `arena`; no atomics, so every sum has one order.

#ifndef SIMT
typedef unsigned char u8;
typedef signed char i8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define KERNEL(threads) extern "C" __global__ void __launch_bounds__(threads)
// For at least so many blocks on a multiprocessor: where the compiler, left alone, spills to have more.
#define KERNEL_AT_LEAST(threads, blocks) extern "C" __global__ void __launch_bounds__(threads, blocks)
#define DEVICE __device__ __forceinline__
#define METHOD __device__ __forceinline__
#define REGISTER(name)

DEVICE float from_half(u16 bits) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
  return value;
}
DEVICE u16 to_half(float value) {
  u16 bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
}
DEVICE u16 to_bf16(float value) {
  u16 bits;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
}
// Four bytes by four signed bytes, added to `sum`; of `a` the bytes are unsigned or signed.
DEVICE int dot_unsigned(u32 a, u32 b, int sum) {
  int out;
  asm("dp4a.u32.s32 %0, %1, %2, %3;" : "=r"(out) : "r"(a), "r"(b), "r"(sum));
  return out;
}
DEVICE int dot_signed(u32 a, u32 b, int sum) {
  int out;
  asm("dp4a.s32.s32 %0, %1, %2, %3;" : "=r"(out) : "r"(a), "r"(b), "r"(sum));
  return out;
}
// c (16 × 8) += a (16 × k, by rows) · b (k × 8, by columns), over a warp; registers as in the PTX manual.
DEVICE void mma_u8(int (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
DEVICE void mma_s8(int (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
DEVICE void mma_s8_k16(int (&c)[4], u32 a0, u32 a1, u32 b0) {
  asm("mma.sync.aligned.m16n8k16.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a0), "r"(a1), "r"(b0));
}
DEVICE void mma_f16(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
// Two 8 × 8 matrices of 16-bit values out of shared memory, transposed: lanes 0 to 15 each give the address of a row.
DEVICE void load_transposed(u32& r0, u32& r1, const void* row) {
  const u32 address = static_cast<u32>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
               : "=r"(r0), "=r"(r1) : "r"(address) : "memory");
}
// Sixteen bytes from global into shared memory, there after `copies_wait`.
DEVICE void copy_async(void* shared, const void* global) {
  const u32 address = static_cast<u32>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" : : "r"(address), "l"(global) : "memory");
}
DEVICE void copies_commit() { asm volatile("cp.async.commit_group;" : : : "memory"); }
// Waits until at most `PENDING` of the last committed groups are under way.
template <int PENDING> DEVICE void copies_wait() {
  asm volatile("cp.async.wait_group %0;" : : "n"(PENDING) : "memory");
}
#endif

extern __shared__ float4 arena[];

#define ALL_LANES 0xffffffffu
#define NEGATIVE_INFINITY __int_as_float(0xff800000)

DEVICE float from_bf16(u16 bits) { return __uint_as_float(static_cast<u32>(bits) << 16); }
DEVICE u32 pack_half(float low, float high) {
  return static_cast<u32>(to_half(low)) | static_cast<u32>(to_half(high)) << 16;
}
DEVICE float2 halves(u32 pair) {
  return make_float2(from_half(static_cast<u16>(pair)), from_half(static_cast<u16>(pair >> 16)));
}

// Eight elements of the cache of keys and values: f16, or bytes without their position's scale.
DEVICE void load_eight(const u16* at, float (&out)[8]) {
  const uint4 words = *reinterpret_cast<const uint4*>(at);
  const u32 all[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
  for (int pair = 0; pair < 4; ++pair) {
    const float2 two = halves(all[pair]);
    out[2 * pair] = two.x;
    out[2 * pair + 1] = two.y;
  }
}
DEVICE void load_eight(const i8* at, float (&out)[8]) {
  const uint2 words = *reinterpret_cast<const uint2*>(at);
#pragma unroll
  for (int byte = 0; byte < 8; ++byte) {
    const u32 word = byte < 4 ? words.x : words.y;
    out[byte] = static_cast<float>(static_cast<i8>(word >> (8 * (byte & 3)) & 255u));
  }
}

DEVICE float warp_sum(float value) {
#pragma unroll
  for (int step = 16; step > 0; step >>= 1) value += __shfl_xor_sync(ALL_LANES, value, step);
  return value;
}
DEVICE float warp_max(float value) {
#pragma unroll
  for (int step = 16; step > 0; step >>= 1) value = fmaxf(value, __shfl_xor_sync(ALL_LANES, value, step));
  return value;
}
// The sum over a block, known to every thread. `slots` is one float of shared memory for each warp; a barrier stands at both ends.
DEVICE float block_sum(float value, float* slots) {
  value = warp_sum(value);
  __syncthreads();
  if ((threadIdx.x & 31) == 0) slots[threadIdx.x >> 5] = value;
  __syncthreads();
  float total = 0.0f;
  for (u32 warp = 0; warp < blockDim.x >> 5; ++warp) total += slots[warp];
  return total;
}

// Weights: tiles of 16 rows by 32 columns in the order in which a warp's lanes take them for a tensor-core multiply. Lane
// (g, w) = (lane / 4, lane % 4) has columns 4w.. and 16 + 4w.. of rows g and g + 8.
//   W4     8 bytes a lane: a word of nibbles of each row, low nibbles are the first columns; scale and minimum per row
//   W8     16 bytes a lane: rows g and g + 8, then the same of the later columns, signed; scale and minimum per row
//   W8X16  as W8, but the pair per row is the scale of columns 0 to 15 and the scale of 16 to 31
// Scales: two f16 in a word, 16 words a tile.
enum Kind { W4, W8, W8X16 };

struct Fragment {
  u32 a[4];
};

template <int KIND> DEVICE Fragment load_fragment(const void* tiles, u64 tile, u32 lane) {
  Fragment out;
  if (KIND == W4) {
    const uint2 words = static_cast<const uint2*>(tiles)[tile * 32 + lane];
    out.a[0] = words.x & 0x0f0f0f0fu;
    out.a[1] = words.y & 0x0f0f0f0fu;
    out.a[2] = words.x >> 4 & 0x0f0f0f0fu;
    out.a[3] = words.y >> 4 & 0x0f0f0f0fu;
  } else {
    const uint4 words = static_cast<const uint4*>(tiles)[tile * 32 + lane];
    out.a[0] = words.x;
    out.a[1] = words.y;
    out.a[2] = words.z;
    out.a[3] = words.w;
  }
  return out;
}

// Weight `byte` of register `part` of a fragment as a float.
template <int KIND> DEVICE float fragment_value(u32 word, u32 byte, float2 pair, bool is_late) {
  if (KIND == W4) return pair.x * static_cast<float>(word >> (8 * byte) & 255u) + pair.y;
  const float quant = static_cast<float>(static_cast<i8>(word >> (8 * byte) & 255u));
  if (KIND == W8) return pair.x * quant + pair.y;
  return (is_late ? pair.y : pair.x) * quant;
}

// A quantized matrix times tokens.
struct MatmulArgs {
  const void* tiles;
  const u32* scales;
  const i8* x;              // [tokens][columns]
  const float2* x_scales;   // [tokens][columns / 32]
  float* out;               // row of `stride` floats for each token
  u32 rows, columns, tokens, stride;
  u32 adds;                 // 1: added to what is there
};
