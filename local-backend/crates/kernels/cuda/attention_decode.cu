// Attention of single queries over the paged cache. The positions are cut into splits of 128, always at the same places, one
// block each; a second kernel joins the splits in order. So the result does not depend on what shares the call.
// A block takes all queries that share a key head, up to `GROUP`, and reads keys and values once for them. Where these are bytes
// (`E` is `i8`), a key's scale is multiplied into its scores and a value's into its weights.

#define SPLIT 128

struct DecodeArgs {
  const u16* queries;    // [tokens][heads][head_dim]
  const void* keys;      // [block][kv head][16][head_dim]
  const void* values;
  const float* key_scales;  // [block][kv head][16], where elements are bytes
  const float* value_scales;
  const u32* positions;  // [tokens]
  const u32* sequences;  // [tokens]: row of `tables`
  const u32* tables;     // [sequences][table_stride]
  float* partial;        // [tokens][heads][splits][head_dim]
  float2* sums;          // [tokens][heads][splits]: largest score, sum of weights
  u32 heads, kv_heads, table_stride, splits;
  u32 window;            // positions seen, the query's own among them; 0: all
  float scale;
};

// First position that a query sees.
DEVICE u32 first_seen(u32 position, u32 window) { return window && position + 1 > window ? position + 1 - window : 0; }

struct Span {
  u32 start, first, last;  // the split's first position; first and last position seen
  const u32* table;
};

// A position of a head in the cache.
DEVICE u64 row_of(const DecodeArgs& args, const Span& span, u32 kv_head, u32 position) {
  return (static_cast<u64>(span.table[position / 16]) * args.kv_heads + kv_head) * 16 + position % 16;
}

template <class E> DEVICE float scale_of(const float* scales, u64 row) { return sizeof(E) == 1 ? scales[row] : 1.0f; }

// Eight lanes for each position, sixteen positions (one cache block) at a time.
template <class E, int DIM, int GROUP>
DEVICE void score(const DecodeArgs& args, const Span& span, u32 kv_head, u32 members, const float* queries, float* scores) {
  const u32 part = threadIdx.x & 7, slot = threadIdx.x >> 3;
  for (u32 block = 0; block < SPLIT / 16; ++block) {
    const u32 position = span.start + block * 16 + slot;
    if (span.start + block * 16 > span.last) break;
    const u64 row = row_of(args, span, kv_head, position);
    const E* keys = static_cast<const E*>(args.keys) + row * DIM;
    float sums[GROUP] = {};
#pragma unroll
    for (u32 chunk = 0; chunk < DIM / 64; ++chunk) {
      const u32 column = (chunk * 8 + part) * 8;
      float key[8];
      load_eight(keys + column, key);
#pragma unroll
      for (u32 member = 0; member < GROUP; ++member) {
        if (member >= members) break;
#pragma unroll
        for (u32 at = 0; at < 8; ++at) sums[member] += queries[member * DIM + column + at] * key[at];
      }
    }
    const bool is_seen = position >= span.first && position <= span.last;
#pragma unroll
    for (u32 member = 0; member < GROUP; ++member) {
      float sum = sums[member];
      sum += __shfl_xor_sync(ALL_LANES, sum, 1);
      sum += __shfl_xor_sync(ALL_LANES, sum, 2);
      sum += __shfl_xor_sync(ALL_LANES, sum, 4);
      if (part == 0 && is_seen && member < members) {
        scores[member * SPLIT + block * 16 + slot] = sum * args.scale * scale_of<E>(args.key_scales, row);
      }
    }
  }
}

template <class E, int DIM, int GROUP> DEVICE void decode(const DecodeArgs& args) {
  const u32 split = blockIdx.x, token = blockIdx.z, lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const u32 shared_by = args.heads / args.kv_heads, turns = (shared_by + GROUP - 1) / GROUP;
  const u32 kv_head = blockIdx.y / turns, turn = blockIdx.y % turns;
  const u32 members = min(shared_by - turn * GROUP, static_cast<u32>(GROUP));
  const u64 head = static_cast<u64>(token) * args.heads + kv_head * shared_by + turn * GROUP;
  Span span;
  span.last = args.positions[token];
  span.first = first_seen(span.last, args.window);
  span.start = split * SPLIT;
  span.table = args.tables + static_cast<u64>(args.sequences[token]) * args.table_stride;
  if (span.start > span.last || span.start + SPLIT <= span.first) return;  // the whole block

  float* queries = reinterpret_cast<float*>(arena);  // [GROUP][DIM]
  float* scores = queries + GROUP * DIM;             // [GROUP][SPLIT]
  float* parts = scores + GROUP * SPLIT;             // [1024 / DIM][GROUP][DIM]
  for (u32 at = threadIdx.x; at < members * DIM; at += 128) queries[at] = from_half(args.queries[head * DIM + at]);
  for (u32 at = threadIdx.x; at < GROUP * SPLIT; at += 128) scores[at] = NEGATIVE_INFINITY;
  __syncthreads();
  score<E, DIM, GROUP>(args, span, kv_head, members, queries, scores);
  __syncthreads();

  for (u32 member = warp; member < members; member += 4) {
    float largest = NEGATIVE_INFINITY, sum = 0.0f;
    for (u32 at = lane; at < SPLIT; at += 32) largest = fmaxf(largest, scores[member * SPLIT + at]);
    largest = warp_max(largest);
    for (u32 at = lane; at < SPLIT; at += 32) {
      const float weight = expf(scores[member * SPLIT + at] - largest);
      scores[member * SPLIT + at] = weight;
      sum += weight;
    }
    sum = warp_sum(sum);
    if (lane == 0) args.sums[(head + member) * args.splits + split] = make_float2(largest, sum);
  }
  __syncthreads();

  constexpr u32 CHUNKS = DIM / 8, SUBSETS = 128 / CHUNKS;
  const u32 chunk = threadIdx.x % CHUNKS, subset = threadIdx.x / CHUNKS;
  const u32 count = min(span.last - span.start + 1, static_cast<u32>(SPLIT));
  float out[GROUP][8] = {};
  for (u32 at = subset; at < count; at += SUBSETS) {
    const u64 row = row_of(args, span, kv_head, span.start + at);
    const float scale = scale_of<E>(args.value_scales, row);
    float value[8];
    load_eight(static_cast<const E*>(args.values) + row * DIM + chunk * 8, value);
#pragma unroll
    for (u32 member = 0; member < GROUP; ++member) {
      if (member >= members) break;
      const float weight = scores[member * SPLIT + at] * scale;
#pragma unroll
      for (u32 column = 0; column < 8; ++column) out[member][column] += weight * value[column];
    }
  }
#pragma unroll
  for (u32 member = 0; member < GROUP; ++member) {
#pragma unroll
    for (u32 column = 0; column < 8; ++column) parts[(subset * GROUP + member) * DIM + chunk * 8 + column] = out[member][column];
  }
  __syncthreads();
  for (u32 at = threadIdx.x; at < members * DIM; at += 128) {
    float sum = 0.0f;
    for (u32 other = 0; other < SUBSETS; ++other) sum += parts[other * GROUP * DIM + at];
    args.partial[((head + at / DIM) * args.splits + split) * DIM + at % DIM] = sum;
  }
}

#define DECODE(name, element, dim, group)                                              \
  KERNEL(128) name##_##dim##_##group(DecodeArgs args) { decode<element, dim, group>(args); } \
  REGISTER(name##_##dim##_##group)
#define DECODES(name, element)   \
  DECODE(name, element, 64, 4)   \
  DECODE(name, element, 64, 8)   \
  DECODE(name, element, 128, 4)  \
  DECODE(name, element, 128, 8)  \
  DECODE(name, element, 256, 4)  \
  DECODE(name, element, 256, 8)
DECODES(decode, u16)
DECODES(decode_int8, i8)

// Joins the splits. Grid: heads by tokens; a thread for each column of the head.
struct JoinArgs {
  const float* partial;
  const float2* sums;
  const u32* positions;
  float* out;  // [tokens][heads][head_dim]
  u32 heads, head_dim, splits, window;
};

KERNEL(256) decode_join(JoinArgs args) {
  const u32 position = args.positions[blockIdx.y];
  const u32 first = first_seen(position, args.window) / SPLIT, last = position / SPLIT;
  const u64 head = static_cast<u64>(blockIdx.y) * args.heads + blockIdx.x;
  const float2* sums = args.sums + head * args.splits;
  float largest = NEGATIVE_INFINITY;
  for (u32 split = first; split <= last; ++split) largest = fmaxf(largest, sums[split].x);
  float total = 0.0f, out = 0.0f;
  for (u32 split = first; split <= last; ++split) {
    const float factor = expf(sums[split].x - largest);
    total += factor * sums[split].y;
    out += factor * args.partial[(head * args.splits + split) * args.head_dim + threadIdx.x];
  }
  args.out[head * args.head_dim + threadIdx.x] = out / total;
}
REGISTER(decode_join)
