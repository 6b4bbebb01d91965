// After the q/k/v multiply: bias, norm of each head, rotation; queries to f16, keys and values into the paged cache.
// A warp for each head of each token. Cache of a layer: [block][kv head][16 positions][head_dim] in f16, or in bytes between −127
// and 127 with a scale for each position of each head.

struct RopeArgs {
  const float* qkv;       // [tokens][(heads + 2 kv_heads) head_dim]
  const float* bias;      // [(heads + 2 kv_heads) head_dim], or null
  const float* q_norm;    // [head_dim], or null
  const float* k_norm;    // [head_dim], or null
  const float2* angles;   // [positions][head_dim / 2]: cosine, sine
  const u32* positions;   // [tokens]
  const u32* sequences;   // [tokens]: row of `tables`
  const u32* tables;      // [sequences][table_stride]: blocks
  u16* queries;           // [tokens][heads][head_dim]
  void* keys;
  void* values;
  float* key_scales;      // [block][kv head][16], or null: elements are f16
  float* value_scales;
  u32 heads, kv_heads, head_dim, table_stride;
  u32 neighbours;  // 1: pairs are columns 2i and 2i + 1; 0: i and i + head_dim / 2
  float epsilon;
};

DEVICE void store_halves(u16* out, u32 pairs, const u32 (&left)[4], const u32 (&right)[4], const float (&first)[4],
                         const float (&second)[4]) {
#pragma unroll
  for (u32 at = 0; at < 4; ++at) {
    if (at >= pairs) break;
    out[left[at]] = to_half(first[at]);
    out[right[at]] = to_half(second[at]);
  }
}

// Rounded to even; the largest of a head may round to a little more than 127.
DEVICE i8 to_byte(float value) { return static_cast<i8>(__float2int_rn(fminf(fmaxf(value, -127.0f), 127.0f))); }

KERNEL(256) rope_store(RopeArgs args) {
  const u32 token = blockIdx.x, lane = threadIdx.x & 31, head = blockIdx.y * 8 + (threadIdx.x >> 5);
  const u32 all = args.heads + 2 * args.kv_heads, dim = args.head_dim, pairs = dim / 64;
  if (head >= all) return;
  const bool is_query = head < args.heads, is_value = head >= args.heads + args.kv_heads;
  const float* x = args.qkv + (static_cast<u64>(token) * all + head) * dim;
  const float* bias = args.bias ? args.bias + static_cast<u64>(head) * dim : nullptr;
  const u32 position = args.positions[token];
  float first[4], second[4], square = 0.0f;
  u32 left[4], right[4];
#pragma unroll
  for (u32 at = 0; at < 4; ++at) {
    if (at >= pairs) break;
    const u32 pair = lane + 32 * at;
    left[at] = args.neighbours ? 2 * pair : pair;
    right[at] = args.neighbours ? 2 * pair + 1 : pair + dim / 2;
    first[at] = x[left[at]] + (bias ? bias[left[at]] : 0.0f);
    second[at] = x[right[at]] + (bias ? bias[right[at]] : 0.0f);
    square += first[at] * first[at] + second[at] * second[at];
  }
  const float* weight = is_value ? nullptr : is_query ? args.q_norm : args.k_norm;
  if (weight) {
    const float factor = 1.0f / sqrtf(warp_sum(square) / static_cast<float>(dim) + args.epsilon);
#pragma unroll
    for (u32 at = 0; at < 4; ++at) {
      if (at >= pairs) break;
      first[at] *= factor * weight[left[at]];
      second[at] *= factor * weight[right[at]];
    }
  }
  float largest = 0.0f;
#pragma unroll
  for (u32 at = 0; at < 4; ++at) {
    if (at >= pairs) break;
    if (!is_value) {
      const float2 angle = args.angles[static_cast<u64>(position) * (dim / 2) + lane + 32 * at];
      const float a = first[at], b = second[at];
      first[at] = a * angle.x - b * angle.y;
      second[at] = a * angle.y + b * angle.x;
    }
    largest = fmaxf(largest, fmaxf(fabsf(first[at]), fabsf(second[at])));
  }
  if (is_query) {
    store_halves(args.queries + (static_cast<u64>(token) * args.heads + head) * dim, pairs, left, right, first, second);
    return;
  }
  const u64 block = args.tables[static_cast<u64>(args.sequences[token]) * args.table_stride + position / 16];
  const u64 row = (block * args.kv_heads + (head - args.heads) % args.kv_heads) * 16 + position % 16;
  void* out = is_value ? args.values : args.keys;
  if (!args.key_scales) {
    store_halves(static_cast<u16*>(out) + row * dim, pairs, left, right, first, second);
    return;
  }
  const float scale = warp_max(largest) / 127.0f, inverse = scale > 0.0f ? 1.0f / scale : 0.0f;
  if (lane == 0) (is_value ? args.value_scales : args.key_scales)[row] = scale;
  i8* bytes = static_cast<i8*>(out) + row * dim;
#pragma unroll
  for (u32 at = 0; at < 4; ++at) {
    if (at >= pairs) break;
    bytes[left[at]] = to_byte(first[at] * inverse);
    bytes[right[at]] = to_byte(second[at] * inverse);
  }
}

REGISTER(rope_store)
