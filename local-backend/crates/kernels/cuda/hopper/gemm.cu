// Large multiplies on Hopper's tensor cores: out (tokens × rows) = x (bf16) · weights, which are bf16 or quantized tiles. A block
// of three warpgroups owns 128 rows and 128 tokens (256 of bf16 weights): the first warpgroup only copies, 64 columns at a time, into a ring of
// four stages; each of the others multiplies 64 rows. Quantized tiles come into shared memory as they are and are unpacked into
// the multiply's registers, to the very bf16 values that `unpack` gives, so that no unpacked matrix goes through memory.
// Every sum has one order, whatever the other tokens are.

#define GEMM_STAGES 4
#define GEMM_THREADS 384
#define BF16 3  // beside the kinds of tiles

struct GemmArgs {
  TensorMap x;        // [tokens][columns] bf16, boxes of 64 columns by the block's tokens
  TensorMap weights;  // [rows][columns] bf16, boxes of 64 columns by 128 rows; unused for tiles
  const u8* tiles;
  const u32* scales;
  float* out;
  u32 rows, columns, tokens, stride;
  u32 adds;
};

template <int KIND, int TOKENS> struct Stages {
  static constexpr u32 TILE = KIND == W4 ? 256 : 512;
  static constexpr u32 X = TOKENS * 128, WEIGHTS = KIND == BF16 ? 128 * 128 : 16 * TILE, SCALES = KIND == BF16 ? 0 : 1024;
  static constexpr u32 BYTES = X + WEIGHTS + SCALES;
};

// Everything of one stage on its way; by one thread.
template <int KIND, int TOKENS>
DEVICE void gemm_copy(const GemmArgs& args, u8* stage, u64* full, u32 step) {
  typedef Stages<KIND, TOKENS> S;
  const u32 group = blockIdx.y * 8;
  if (KIND == BF16) {
    phase_expect(full, S::X + S::WEIGHTS);
    copy_tile(stage + S::X, args.weights, full, static_cast<int>(step * 64), static_cast<int>(group * 16));
  } else {
    const u32 blocks = args.columns / 32, tiles = min(blocks - step * 2, 2u), groups = min(args.rows / 16 - group, 8u);
    phase_expect(full, S::X + groups * tiles * (S::TILE + 64));
    for (u32 at = 0; at < groups; ++at) {
      const u64 tile = static_cast<u64>(group + at) * blocks + step * 2;
      copy_bulk(stage + S::X + at * 2 * S::TILE, args.tiles + tile * S::TILE, tiles * S::TILE, full);
      copy_bulk(stage + S::X + S::WEIGHTS + at * 128, args.scales + tile * 16, tiles * 64, full);
    }
  }
  copy_tile(stage, args.x, full, static_cast<int>(step * 64), static_cast<int>(blockIdx.x * TOKENS));
}

// Two weights of a word as bf16.
template <int KIND> DEVICE u32 two_weights(u32 word, u32 shift, float2 pair, bool is_late) {
  const u32 plain = KIND == W4 ? (word >> (is_late ? 4 : 0) & 0x0f0f0f0fu) >> shift : word >> shift;
  const u32 low = to_bf16(fragment_value<KIND>(plain, 0, pair, is_late));
  return low | static_cast<u32>(to_bf16(fragment_value<KIND>(plain, 1, pair, is_late))) << 16;
}

// A tile of 32 columns as the registers of two multiplies. A multiply's lane wants columns 2w, 2w + 1 and those eight further; in
// the tile they lie with lanes w / 2 and w / 2 + 2.
template <int KIND> DEVICE void unpack_tile(const u8* tile, const u32* scales, u32 (&out)[2][4]) {
  const u32 lane = threadIdx.x & 31, g = lane >> 2, w = lane & 3, from = g * 4 + w / 2, shift = 16 * (w & 1);
  const float2 pairs[2] = {halves(scales[g]), halves(scales[g + 8])};
#pragma unroll
  for (u32 far = 0; far < 2; ++far) {
    u32 words[2][2];  // by columns, by rows
    if (KIND == W4) {
      const uint2 both = reinterpret_cast<const uint2*>(tile)[from + 2 * far];
      words[0][0] = words[1][0] = both.x;
      words[0][1] = words[1][1] = both.y;
    } else {
      const uint4 all = reinterpret_cast<const uint4*>(tile)[from + 2 * far];
      words[0][0] = all.x;
      words[0][1] = all.y;
      words[1][0] = all.z;
      words[1][1] = all.w;
    }
#pragma unroll
    for (u32 late = 0; late < 2; ++late) {
#pragma unroll
      for (u32 row = 0; row < 2; ++row) out[late][far * 2 + row] = two_weights<KIND>(words[late][row], shift, pairs[row], late != 0);
    }
  }
}

template <int KIND, int TOKENS> struct Ring {
  u64 *full, *empty;
  u8* stages;
  METHOD u8* stage(u32 step) const { return stages + step % GEMM_STAGES * Stages<KIND, TOKENS>::BYTES; }
  METHOD void wait_full(u32 step) const { phase_wait(full + step % GEMM_STAGES, step / GEMM_STAGES & 1); }
  // The warp is done with a stage.
  METHOD void give_back(u32 step) const {
    if ((threadIdx.x & 31) == 0) phase_arrive(empty + step % GEMM_STAGES);
  }
};

// A stage of bf16 weights; the stage before is given back once its multiplies are done.
template <int TOKENS> DEVICE void gemm_step(const Ring<BF16, TOKENS>& ring, u32 step, u32 half, float (&sums)[TOKENS / 2]) {
  ring.wait_full(step);
  const u64 x = operand(ring.stage(step), 16);
  const u64 weights = operand(ring.stage(step) + Stages<BF16, TOKENS>::X + half * 64 * 128, 16);
  group_fence();
#pragma unroll
  for (u32 part = 0; part < 4; ++part) group_multiply<TOKENS, false, false>(sums, weights + part * 2, x + part * 2, step | part);
  group_commit();
  group_wait<1>();
  if (step > 0) ring.give_back(step - 1);
}

// A stage of tiles: unpacked while the multiplies of the stage before are under way.
template <int KIND, int TOKENS>
DEVICE void gemm_step(const Ring<KIND, TOKENS>& ring, u32 step, u32 tiles, u32 (&a)[4][4], float (&sums)[TOKENS / 2]) {
  typedef Stages<KIND, TOKENS> S;
  ring.wait_full(step);
  const u8* stage = ring.stage(step);
  const u32 group = (threadIdx.x - 128) / 32;
  const u32* scales = reinterpret_cast<const u32*>(stage + S::X + S::WEIGHTS) + group * 32;
#pragma unroll
  for (u32 tile = 0; tile < 2; ++tile) {
    u32 two[2][4] = {};
    if (tile < tiles) unpack_tile<KIND>(stage + S::X + (group * 2 + tile) * S::TILE, scales + tile * 16, two);
#pragma unroll
    for (u32 at = 0; at < 4; ++at) {
      a[tile * 2][at] = two[0][at];
      a[tile * 2 + 1][at] = two[1][at];
    }
  }
  group_wait<0>();
  if (step > 0) ring.give_back(step - 1);
  const u64 x = operand(stage, 16);
  group_fence();
#pragma unroll
  for (u32 part = 0; part < 4; ++part) group_multiply<TOKENS, false, false>(sums, a[part], x + part * 2, step | part);
  group_commit();
}

template <int KIND, int TOKENS> DEVICE void gemm_store(const GemmArgs& args, u32 half, const float (&sums)[TOKENS / 2]) {
  const u32 lane = threadIdx.x & 31, warp = threadIdx.x / 32 & 3;
  const u32 row = blockIdx.y * 128 + half * 64 + warp * 16 + (lane >> 2), token = blockIdx.x * TOKENS + 2 * (lane & 3);
#pragma unroll
  for (u32 at = 0; at < TOKENS / 2; ++at) {
    const u32 to_row = row + at / 2 % 2 * 8, to_token = token + at / 4 * 8 + at % 2;
    if (to_row >= args.rows || to_token >= args.tokens) continue;
    float* out = args.out + static_cast<u64>(to_token) * args.stride + to_row;
    *out = args.adds ? *out + sums[at] : sums[at];
  }
}

template <int KIND, int TOKENS> struct Consumer {
  METHOD static void run(const GemmArgs& args, const Ring<KIND, TOKENS>& ring, u32 steps, u32, float (&sums)[TOKENS / 2]) {
    const u32 blocks = args.columns / 32;
    u32 even[4][4], odd[4][4];
    for (u32 step = 0; step < steps; step += 2) {
      gemm_step<KIND, TOKENS>(ring, step, blocks - step * 2, even, sums);
      if (step + 1 < steps) gemm_step<KIND, TOKENS>(ring, step + 1, blocks - step * 2 - 2, odd, sums);
    }
  }
};
template <int TOKENS> struct Consumer<BF16, TOKENS> {
  METHOD static void run(const GemmArgs&, const Ring<BF16, TOKENS>& ring, u32 steps, u32 half, float (&sums)[TOKENS / 2]) {
    for (u32 step = 0; step < steps; ++step) gemm_step<TOKENS>(ring, step, half, sums);
  }
};

template <int KIND, int TOKENS> DEVICE void gemm(const GemmArgs& args) {
  u8* base = aligned_arena();
  Ring<KIND, TOKENS> ring;
  ring.full = reinterpret_cast<u64*>(base);
  ring.empty = ring.full + GEMM_STAGES;
  ring.stages = base + SWIZZLE_BYTES;
  const u32 steps = (args.columns + 63) / 64, group = threadIdx.x / 128;
  if (threadIdx.x == 0) {
    for (u32 at = 0; at < GEMM_STAGES; ++at) {
      phase_init(ring.full + at, 1);
      phase_init(ring.empty + at, 8);
    }
    fence_barriers();
  }
  __syncthreads();
  if (group == 0) {
    fewer_registers<40>();
    if (threadIdx.x != 0) return;
    for (u32 step = 0; step < steps; ++step) {
      phase_wait(ring.empty + step % GEMM_STAGES, (step / GEMM_STAGES & 1) ^ 1);
      gemm_copy<KIND, TOKENS>(args, ring.stage(step), ring.full + step % GEMM_STAGES, step);
    }
  } else {
    more_registers<232>();
    float sums[TOKENS / 2];
    Consumer<KIND, TOKENS>::run(args, ring, steps, group - 1, sums);
    group_wait<0>();
    gemm_store<KIND, TOKENS>(args, group - 1, sums);
  }
}

#define GEMM(kind, name, tokens)                                                                                              \
  KERNEL_AT_LEAST(GEMM_THREADS, 1) gemm_##name##_##tokens(const __grid_constant__ GemmArgs args) { gemm<kind, tokens>(args); } \
  REGISTER(gemm_##name##_##tokens)
GEMM(BF16, bf16, 128)
GEMM(BF16, bf16, 256)
// With 256 tokens the unpacked weights find no registers beside the sums, and the compiler makes the multiplies wait for each other.
GEMM(W4, w4, 128)
GEMM(W8, w8, 128)
GEMM(W8X16, w8x16, 128)
