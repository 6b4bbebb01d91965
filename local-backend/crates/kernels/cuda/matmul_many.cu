// A quantized matrix times many tokens on the int8 tensor cores. A block of 256 threads owns 128 rows (16 a warp) and
// 16, 32 or 64 tokens. One multiply of depth 32 is one tile, so that its exact integer sum is scaled once. Activations come
// through shared memory, four tiles of columns at a time, the next four under way meanwhile; weights go straight to registers.

// Words of a token's 128 columns in shared memory; four more keep lanes in banks of their own.
#define X_WORDS 36

template <int TOKENS> struct Stage {
  u32 x[TOKENS * X_WORDS];
  float2 scales[TOKENS * 4];
};

template <int TOKENS> DEVICE void load_stage(const MatmulArgs& args, Stage<TOKENS>& stage, u32 first, u32 block) {
  const u32 blocks = args.columns / 32, count = min(blocks - block, 4u);
  for (u32 piece = threadIdx.x; piece < TOKENS * 8; piece += 256) {
    const u32 token = piece >> 3, part = piece & 7;
    const u64 from = static_cast<u64>(min(first + token, args.tokens - 1)) * args.columns + block * 32 + part * 16;
    if (part < count * 2) copy_async(stage.x + token * X_WORDS + part * 4, args.x + from);
  }
  for (u32 piece = threadIdx.x; piece < TOKENS * 4; piece += 256) {
    const u32 token = piece >> 2, part = piece & 3;
    const u64 from = static_cast<u64>(min(first + token, args.tokens - 1)) * blocks + block + part;
    if (part < count) stage.scales[piece] = args.x_scales[from];
  }
}

template <int KIND> DEVICE void add_tile(float (&sums)[4], const Fragment& weights, const float2 (&pairs)[2], u32 early, u32 late,
                                         const float2 (&scales)[2]) {
  if (KIND == W8X16) {
    int first[4] = {}, second[4] = {};
    mma_s8_k16(first, weights.a[0], weights.a[1], early);
    mma_s8_k16(second, weights.a[2], weights.a[3], late);
#pragma unroll
    for (int at = 0; at < 4; ++at) {
      const float2 pair = pairs[at >> 1];
      const float both = pair.x * static_cast<float>(first[at]) + pair.y * static_cast<float>(second[at]);
      sums[at] += scales[at & 1].x * both;
    }
    return;
  }
  int dots[4] = {};
  if (KIND == W4) {
    mma_u8(dots, weights.a, early, late);
  } else {
    mma_s8(dots, weights.a, early, late);
  }
#pragma unroll
  for (int at = 0; at < 4; ++at) {
    const float2 pair = pairs[at >> 1], scale = scales[at & 1];
    sums[at] += pair.x * scale.x * static_cast<float>(dots[at]) + pair.y * scale.y;
  }
}

template <int KIND, int TOKENS> DEVICE void matmul_many(const MatmulArgs& args) {
  const u32 lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, w = lane & 3;
  const u32 blocks = args.columns / 32, first = blockIdx.y * TOKENS, group = blockIdx.x * 8 + warp;
  const bool has_rows = group * 16 < args.rows;
  Stage<TOKENS>* stages = reinterpret_cast<Stage<TOKENS>*>(arena);
  float sums[TOKENS / 8][4] = {};
  load_stage(args, stages[0], first, 0);
  copies_commit();
  for (u32 block = 0, turn = 0; block < blocks; block += 4, turn ^= 1) {
    if (block + 4 < blocks) load_stage(args, stages[turn ^ 1], first, block + 4);
    copies_commit();
    copies_wait<1>();
    __syncthreads();
    const Stage<TOKENS>& stage = stages[turn];
    const u32 count = min(blocks - block, 4u);
    if (has_rows) {
      for (u32 part = 0; part < count; ++part) {
        const u64 tile = static_cast<u64>(group) * blocks + block + part;
        const Fragment weights = load_fragment<KIND>(args.tiles, tile, lane);
        const float2 pairs[2] = {halves(args.scales[tile * 16 + g]), halves(args.scales[tile * 16 + g + 8])};
#pragma unroll
        for (int eight = 0; eight < TOKENS / 8; ++eight) {
          const u32* x = stage.x + (eight * 8 + g) * X_WORDS + part * 8;
          const float2* near = stage.scales + (eight * 8 + 2 * w) * 4 + part;
          const float2 scales[2] = {near[0], near[4]};
          add_tile<KIND>(sums[eight], weights, pairs, x[w], x[4 + w], scales);
        }
      }
    }
    __syncthreads();
  }
  if (!has_rows) return;
#pragma unroll
  for (int eight = 0; eight < TOKENS / 8; ++eight) {
#pragma unroll
    for (int at = 0; at < 4; ++at) {
      const u32 token = first + eight * 8 + 2 * w + (at & 1), row = group * 16 + g + (at >> 1) * 8;
      if (token >= args.tokens) continue;
      float* out = args.out + static_cast<u64>(token) * args.stride + row;
      *out = args.adds ? *out + sums[eight][at] : sums[eight][at];
    }
  }
}

#define MANY(kind, name, tokens)                                                                   \
  KERNEL(256) matmul_##name##_##tokens(MatmulArgs args) { matmul_many<kind, tokens>(args); } \
  REGISTER(matmul_##name##_##tokens)
#define MANY_ALL(kind, name) MANY(kind, name, 16) MANY(kind, name, 32) MANY(kind, name, 64)
MANY_ALL(W4, w4)
MANY_ALL(W8, w8)
MANY_ALL(W8X16, w8x16)
