// Weights apart from multiplies: rows of an embedding, tiles as a plain bf16 matrix for the library's GEMM, a bf16 matrix times
// a few tokens, and values made up on the device for measuring speed.

struct EmbedArgs {
  const void* weights;  // tiles, or bf16 [rows][columns]
  const u32* scales;
  const u32* tokens;
  float* out;  // [tokens][columns]
  u32 columns;
  float factor;
};

template <int KIND> DEVICE void embed_tiles(const EmbedArgs& args) {
  const u32 row = args.tokens[blockIdx.x], blocks = args.columns / 32, words = KIND == W4 ? 2 : 4;
  const u32 g = row % 8, is_lower = row / 8 % 2;
  for (u32 column = threadIdx.x; column < args.columns; column += 256) {
    const u64 tile = static_cast<u64>(row / 16) * blocks + column / 32;
    const u32 late = column % 32 / 16, lane = g * 4 + column % 16 / 4;
    const u32 part = KIND == W4 ? is_lower : late * 2 + is_lower;
    const u32 word = static_cast<const u32*>(args.weights)[(tile * 32 + lane) * words + part];
    const u32 plain = KIND == W4 ? (word >> (4 * late)) & 0x0f0f0f0fu : word;
    const float2 pair = halves(args.scales[tile * 16 + row % 16]);
    const float value = fragment_value<KIND>(plain, column % 4, pair, late != 0);
    args.out[static_cast<u64>(blockIdx.x) * args.columns + column] = value * args.factor;
  }
}

KERNEL(256) embed_w4(EmbedArgs args) { embed_tiles<W4>(args); }
KERNEL(256) embed_w8(EmbedArgs args) { embed_tiles<W8>(args); }
KERNEL(256) embed_w8x16(EmbedArgs args) { embed_tiles<W8X16>(args); }
KERNEL(256) embed_bf16(EmbedArgs args) {
  const u64 row = args.tokens[blockIdx.x];
  for (u32 column = threadIdx.x; column < args.columns; column += 256) {
    const float value = from_bf16(static_cast<const u16*>(args.weights)[row * args.columns + column]);
    args.out[static_cast<u64>(blockIdx.x) * args.columns + column] = value * args.factor;
  }
}

// Tiles to bf16 by rows; a warp for each tile.
struct UnpackArgs {
  const void* tiles;
  const u32* scales;
  u16* out;  // [rows][columns]
  u32 columns;
  u32 count;  // tiles
};

template <int KIND> DEVICE void unpack(const UnpackArgs& args) {
  const u32 lane = threadIdx.x & 31, g = lane >> 2, w = lane & 3, blocks = args.columns / 32;
  const u32 tile = blockIdx.x * 8 + (threadIdx.x >> 5);
  if (tile >= args.count) return;
  const Fragment weights = load_fragment<KIND>(args.tiles, tile, lane);
#pragma unroll
  for (int part = 0; part < 4; ++part) {
    const u32 row = g + (part & 1) * 8, column = (part >> 1) * 16 + w * 4;
    const float2 pair = halves(args.scales[static_cast<u64>(tile) * 16 + row]);
    u32 packed[2] = {};
#pragma unroll
    for (u32 byte = 0; byte < 4; ++byte) {
      const u32 bits = to_bf16(fragment_value<KIND>(weights.a[part], byte, pair, part >= 2));
      packed[byte >> 1] |= bits << (byte & 1) * 16;
    }
    const u64 at = (static_cast<u64>(tile / blocks) * 16 + row) * args.columns + tile % blocks * 32 + column;
    *reinterpret_cast<uint2*>(args.out + at) = make_uint2(packed[0], packed[1]);
  }
}

KERNEL(256) unpack_w4(UnpackArgs args) { unpack<W4>(args); }
KERNEL(256) unpack_w8(UnpackArgs args) { unpack<W8>(args); }
KERNEL(256) unpack_w8x16(UnpackArgs args) { unpack<W8X16>(args); }

// bf16 weights times a few bf16 tokens; a warp for each row, eight columns a lane at a time.
struct Bf16Args {
  const u16* weights;  // [rows][columns]
  const u16* x;        // [tokens][columns]
  float* out;
  u32 rows, columns, tokens, stride;
  u32 adds;
};

DEVICE void add_eight(float& sum, uint4 a, uint4 b) {
  const u32 left[4] = {a.x, a.y, a.z, a.w}, right[4] = {b.x, b.y, b.z, b.w};
#pragma unroll
  for (int pair = 0; pair < 4; ++pair) {
    sum += from_bf16(static_cast<u16>(left[pair])) * from_bf16(static_cast<u16>(right[pair]));
    sum += __uint_as_float(left[pair] & 0xffff0000u) * __uint_as_float(right[pair] & 0xffff0000u);
  }
}

template <int TOKENS> DEVICE void matmul_bf16(const Bf16Args& args) {
  const u32 lane = threadIdx.x & 31, row = blockIdx.x * 8 + (threadIdx.x >> 5), first = blockIdx.y * TOKENS;
  if (row >= args.rows) return;
  const u16* weights = args.weights + static_cast<u64>(row) * args.columns;
  float sums[TOKENS] = {};
#pragma unroll 4
  for (u32 column = lane * 8; column < args.columns; column += 256) {
    const uint4 eight = *reinterpret_cast<const uint4*>(weights + column);
#pragma unroll
    for (int token = 0; token < TOKENS; ++token) {
      const u64 from = static_cast<u64>(min(first + token, args.tokens - 1)) * args.columns + column;
      add_eight(sums[token], eight, *reinterpret_cast<const uint4*>(args.x + from));
    }
  }
#pragma unroll
  for (int token = 0; token < TOKENS; ++token) {
    const float sum = warp_sum(sums[token]);
    if (lane != 0 || first + token >= args.tokens) continue;
    float* out = args.out + static_cast<u64>(first + token) * args.stride + row;
    *out = args.adds ? *out + sum : sum;
  }
}

KERNEL(256) matmul_bf16_1(Bf16Args args) { matmul_bf16<1>(args); }
KERNEL(256) matmul_bf16_2(Bf16Args args) { matmul_bf16<2>(args); }
KERNEL(256) matmul_bf16_4(Bf16Args args) { matmul_bf16<4>(args); }
KERNEL(256) matmul_bf16_8(Bf16Args args) { matmul_bf16<8>(args); }

// Made-up weights: a counter's hash for each word.
struct FillArgs {
  u32* out;
  u64 count;  // words
  u32 seed;
  u32 mode;       // 0: any bits; 1: two bf16 in ±amplitude; 2: `bits` everywhere
  u32 bits;
  float amplitude;
};

DEVICE u32 mix(u32 value) {
  value = (value ^ value >> 16) * 0x7feb352du;
  value = (value ^ value >> 15) * 0x846ca68bu;
  return value ^ value >> 16;
}

KERNEL(256) fill(FillArgs args) {
  const u64 step = static_cast<u64>(gridDim.x) * 256;
  for (u64 at = static_cast<u64>(blockIdx.x) * 256 + threadIdx.x; at < args.count; at += step) {
    const u32 word = mix(static_cast<u32>(at) ^ mix(static_cast<u32>(at >> 32) + args.seed));
    u32 out = word;
    if (args.mode == 1) {
      const float low = (static_cast<float>(word & 0xffffu) / 32768.0f - 1.0f) * args.amplitude;
      const float high = (static_cast<float>(word >> 16) / 32768.0f - 1.0f) * args.amplitude;
      out = static_cast<u32>(to_bf16(low)) | static_cast<u32>(to_bf16(high)) << 16;
    } else if (args.mode == 2) {
      out = args.bits;
    }
    args.out[at] = out;
  }
}

REGISTER(embed_w4)
REGISTER(embed_w8)
REGISTER(embed_w8x16)
REGISTER(embed_bf16)
REGISTER(unpack_w4)
REGISTER(unpack_w8)
REGISTER(unpack_w8x16)
REGISTER(matmul_bf16_1)
REGISTER(matmul_bf16_2)
REGISTER(matmul_bf16_4)
REGISTER(matmul_bf16_8)
REGISTER(fill)
