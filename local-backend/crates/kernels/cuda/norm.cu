// Root-mean-square norms and what the multiplies take: activations as int8 in blocks of 32 columns (scale, and scale times the
// sum of the block, which a minimum is multiplied by), or as bf16. One block of 256 threads for each output row.

struct NormArgs {
  const float* x;       // [*][columns]
  const float* weight;  // [columns]; null: no norm, x as it is
  const u32* rows;      // which row of x each output row comes from; null: its own
  void* out;            // [rows][columns]: i8, bf16, or f32 to be added to
  float2* scales;       // [rows][columns / 32], for int8
  u32 columns;
  float epsilon;
};

// The factor of a row's norm.
DEVICE float norm_factor(const NormArgs& args, const float* x) {
  float* slots = reinterpret_cast<float*>(arena);
  float sum = 0.0f;
  for (u32 column = threadIdx.x; column < args.columns; column += 256) sum += x[column] * x[column];
  return 1.0f / sqrtf(block_sum(sum, slots) / static_cast<float>(args.columns) + args.epsilon);
}

// A warp's 32 values as one int8 block.
DEVICE void emit_q8(float value, i8* out, float2* scale, u32 lane) {
  const float largest = warp_max(fabsf(value));
  const float step = largest / 127.0f;
  const float inverse = step > 0.0f ? 1.0f / step : 0.0f;
  const int quant = __float2int_rn(value * inverse);
  out[lane] = static_cast<i8>(quant);
  int sum = quant;
#pragma unroll
  for (int distance = 16; distance > 0; distance >>= 1) sum += __shfl_xor_sync(ALL_LANES, sum, distance);
  if (lane == 0) *scale = make_float2(step, step * static_cast<float>(sum));
}

enum Emit { Q8, BF16, ADD };

template <int EMIT> DEVICE void norm(const NormArgs& args) {
  const u32 row = blockIdx.x, lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const u64 from = args.rows ? args.rows[row] : row;
  const float* x = args.x + from * args.columns;
  const float factor = args.weight ? norm_factor(args, x) : 1.0f;
  const u32 blocks = args.columns / 32;
  for (u32 block = warp; block < blocks; block += 8) {
    const u32 column = block * 32 + lane;
    const float value = args.weight ? x[column] * factor * args.weight[column] : x[column];
    const u64 at = static_cast<u64>(row) * args.columns + column;
    if (EMIT == Q8) {
      emit_q8(value, static_cast<i8*>(args.out) + at - lane, args.scales + static_cast<u64>(row) * blocks + block, lane);
    } else if (EMIT == BF16) {
      static_cast<u16*>(args.out)[at] = to_bf16(value);
    } else {
      static_cast<float*>(args.out)[at] += value;
    }
  }
}

KERNEL(256) norm_q8(NormArgs args) { norm<Q8>(args); }
KERNEL(256) norm_bf16(NormArgs args) { norm<BF16>(args); }
KERNEL(256) norm_add(NormArgs args) { norm<ADD>(args); }

// The gated activation between the two halves of a feed-forward layer: act(gate) · up. Grid: tokens by blocks of 256 columns.
struct GluArgs {
  const float* gate_up;  // [tokens][2][columns]
  void* out;             // [tokens][columns]
  float2* scales;        // [tokens][columns / 32]
  u32 columns;
  u32 gelu;  // 0: silu; 1: gelu by tanh
};

template <int EMIT> DEVICE void glu(const GluArgs& args) {
  const u32 lane = threadIdx.x & 31, column = blockIdx.y * 256 + threadIdx.x;
  if (column - lane >= args.columns) return;  // a whole warp
  const u64 row = blockIdx.x;
  const float* gates = args.gate_up + row * 2 * args.columns;
  const float gate = gates[column], up = gates[args.columns + column];
  float value;
  if (args.gelu) {
    const float inner = 0.7978845608028654f * (gate + 0.044715f * gate * gate * gate);
    value = 0.5f * gate * (1.0f + tanhf(inner)) * up;
  } else {
    value = gate / (1.0f + expf(-gate)) * up;
  }
  const u64 at = row * args.columns + column;
  if (EMIT == Q8) {
    emit_q8(value, static_cast<i8*>(args.out) + at - lane, args.scales + at / 32, lane);
  } else {
    static_cast<u16*>(args.out)[at] = to_bf16(value);
  }
}

KERNEL(256) glu_q8(GluArgs args) { glu<Q8>(args); }
KERNEL(256) glu_bf16(GluArgs args) { glu<BF16>(args); }

REGISTER(norm_q8)
REGISTER(norm_bf16)
REGISTER(norm_add)
REGISTER(glu_q8)
REGISTER(glu_bf16)
