// A quantized matrix times a few tokens: bound by reading the weights once. A block of 256 threads owns 16 rows; its 8 warps
// take every eighth tile of 32 columns, and their sums are added in one order, so that a token's result does not depend on
// how many tokens share the call.

template <int KIND> DEVICE void add_products(float (&sums)[2], const Fragment& weights, const float2 (&pairs)[2], u32 early,
                                             u32 late, float2 scale, bool is_first) {
#pragma unroll
  for (int row = 0; row < 2; ++row) {
    if (KIND == W8X16) {
      const float dot_early = static_cast<float>(dot_signed(weights.a[row], early, 0));
      const float dot_late = static_cast<float>(dot_signed(weights.a[row + 2], late, 0));
      sums[row] += scale.x * (pairs[row].x * dot_early + pairs[row].y * dot_late);
      continue;
    }
    const int dot = KIND == W4 ? dot_unsigned(weights.a[row + 2], late, dot_unsigned(weights.a[row], early, 0))
                               : dot_signed(weights.a[row + 2], late, dot_signed(weights.a[row], early, 0));
    sums[row] += pairs[row].x * scale.x * static_cast<float>(dot) + (is_first ? pairs[row].y * scale.y : 0.0f);
  }
}

template <int KIND, int TOKENS> DEVICE void matmul_few(const MatmulArgs& args) {
  const u32 lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, w = lane & 3;
  const u32 blocks = args.columns / 32, first = blockIdx.y * TOKENS;
  float sums[TOKENS][2] = {};
#pragma unroll 4
  for (u32 block = warp; block < blocks; block += 8) {
    const u64 tile = static_cast<u64>(blockIdx.x) * blocks + block;
    const Fragment weights = load_fragment<KIND>(args.tiles, tile, lane);
    const float2 pairs[2] = {halves(args.scales[tile * 16 + g]), halves(args.scales[tile * 16 + g + 8])};
#pragma unroll
    for (int token = 0; token < TOKENS; ++token) {
      const u64 at = static_cast<u64>(min(first + token, args.tokens - 1)) * blocks + block;
      const u32* x = reinterpret_cast<const u32*>(args.x + at * 32);
      add_products<KIND>(sums[token], weights, pairs, x[w], x[4 + w], args.x_scales[at], w == 0);
    }
  }
  float* parts = reinterpret_cast<float*>(arena);  // [8 warps][TOKENS][16]
#pragma unroll
  for (int token = 0; token < TOKENS; ++token) {
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      float sum = sums[token][row];
      sum += __shfl_xor_sync(ALL_LANES, sum, 1);
      sum += __shfl_xor_sync(ALL_LANES, sum, 2);
      if (w == 0) parts[(warp * TOKENS + token) * 16 + g + row * 8] = sum;
    }
  }
  __syncthreads();
  if (threadIdx.x >= 16 * TOKENS) return;
  const u32 row = threadIdx.x & 15, token = threadIdx.x >> 4;
  if (first + token >= args.tokens) return;
  float sum = 0.0f;
#pragma unroll
  for (u32 other = 0; other < 8; ++other) sum += parts[(other * TOKENS + token) * 16 + row];
  float* out = args.out + static_cast<u64>(first + token) * args.stride + blockIdx.x * 16 + row;
  *out = args.adds ? *out + sum : sum;
}

#define FEW(kind, name, tokens)                                                                   \
  KERNEL(256) matmul_##name##_##tokens(MatmulArgs args) { matmul_few<kind, tokens>(args); } \
  REGISTER(matmul_##name##_##tokens)
#define FEW_ALL(kind, name) FEW(kind, name, 1) FEW(kind, name, 2) FEW(kind, name, 4) FEW(kind, name, 8)
FEW_ALL(W4, w4)
FEW_ALL(W8, w8)
FEW_ALL(W8X16, w8x16)
