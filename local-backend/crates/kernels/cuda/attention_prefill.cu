// Attention of many queries of one sequence over the paged cache, on the f16 tensor cores with sums in f32. A block of 128
// threads takes 64 queries of one head, 16 a warp; keys and values come through shared memory, `KEYS` positions at a time,
// always cut at the same places, so that a query's result does not depend on how its prompt was cut into chunks. Bytes (`E` is
// `i8`) become f16 with their scale on the way into shared memory.

struct PrefillArgs {
  const u16* queries;  // [tokens][heads][head_dim]
  const void* keys;    // [block][kv head][16][head_dim]
  const void* values;
  const float* key_scales;  // [block][kv head][16], where elements are bytes
  const float* value_scales;
  const uint4* tiles;  // first token, number of tokens (at most 64), position of the first, row of `tables`
  const u32* tables;   // [sequences][table_stride]
  float* out;          // [tokens][heads][head_dim]
  u32 heads, kv_heads, table_stride;
  u32 window;          // positions seen, the query's own among them; 0: all
  float scale;
};

// Eight elements as f16; `scales` has one for each row of the cache.
DEVICE void copy_eight(u16* to, const u16* from, const float*, u64) { copy_async(to, from); }
DEVICE void copy_eight(u16* to, const i8* from, const float* scales, u64 row) {
  const float scale = scales[row];
  float all[8];
  load_eight(from, all);
  u32 words[4];
#pragma unroll
  for (int pair = 0; pair < 4; ++pair) words[pair] = pack_half(all[2 * pair] * scale, all[2 * pair + 1] * scale);
  *reinterpret_cast<uint4*>(to) = make_uint4(words[0], words[1], words[2], words[3]);
}

// Positions `start..start + KEYS` into shared memory; zero where the last query does not see them.
template <class E, int DIM, int KEYS>
DEVICE void load_keys(const PrefillArgs& args, const uint4& tile, u32 kv_head, u32 start, u16* keys, u16* values) {
  constexpr u32 CHUNKS = DIM / 8, STRIDE = DIM + 8;
  const u32 last = tile.z + tile.y - 1;
  const u32* table = args.tables + static_cast<u64>(tile.w) * args.table_stride;
  for (u32 piece = threadIdx.x; piece < KEYS * CHUNKS; piece += 128) {
    const u32 row = piece / CHUNKS, column = piece % CHUNKS * 8, position = start + row;
    u16* key = keys + row * STRIDE + column;
    u16* value = values + row * STRIDE + column;
    if (position > last) {
      *reinterpret_cast<uint4*>(key) = make_uint4(0, 0, 0, 0);
      *reinterpret_cast<uint4*>(value) = make_uint4(0, 0, 0, 0);
      continue;
    }
    const u64 from = (static_cast<u64>(table[position / 16]) * args.kv_heads + kv_head) * 16 + position % 16;
    copy_eight(key, static_cast<const E*>(args.keys) + from * DIM + column, args.key_scales, from);
    copy_eight(value, static_cast<const E*>(args.values) + from * DIM + column, args.value_scales, from);
  }
  copies_commit();
  copies_wait<0>();
  __syncthreads();
}

struct Rows {
  const u16* query[2];  // of the lane's two rows, g and g + 8 of the warp's sixteen
  u32 position[2];
};

DEVICE u32 two(const u16* from) { return *reinterpret_cast<const u32*>(from); }

// Four registers of queries: columns 16 step.. of the warp's rows.
DEVICE void query_fragment(const Rows& rows, u32 step, u32 w, u32 (&out)[4]) {
  out[0] = two(rows.query[0] + step * 16 + 2 * w);
  out[1] = two(rows.query[1] + step * 16 + 2 * w);
  out[2] = two(rows.query[0] + step * 16 + 2 * w + 8);
  out[3] = two(rows.query[1] + step * 16 + 2 * w + 8);
}

// Weights of `KEYS` positions for the warp's rows: exp(score − largest), the sums and the outputs so far shrunk to match.
template <int DIM, int KEYS>
DEVICE void soften(const PrefillArgs& args, const Rows& rows, u32 start, float (&scores)[KEYS / 8][4], float (&largest)[2],
                   float (&sums)[2], float (&out)[DIM / 8][4]) {
  const u32 w = threadIdx.x & 3;
  float top[2] = {largest[0], largest[1]};
#pragma unroll
  for (int eight = 0; eight < KEYS / 8; ++eight) {
#pragma unroll
    for (int at = 0; at < 4; ++at) {
      const u32 key = start + eight * 8 + 2 * w + (at & 1), query = rows.position[at >> 1];
      const bool is_seen = key <= query && (args.window == 0 || key + args.window > query);
      scores[eight][at] = is_seen ? scores[eight][at] * args.scale : NEGATIVE_INFINITY;
      top[at >> 1] = fmaxf(top[at >> 1], scores[eight][at]);
    }
  }
#pragma unroll
  for (int row = 0; row < 2; ++row) {
    top[row] = fmaxf(top[row], __shfl_xor_sync(ALL_LANES, top[row], 1));
    top[row] = fmaxf(top[row], __shfl_xor_sync(ALL_LANES, top[row], 2));
    // A row that has seen nothing yet must not subtract infinity from infinity.
    const float base = top[row] == NEGATIVE_INFINITY ? 0.0f : top[row];
    const float shrink = expf(largest[row] - base);
    largest[row] = top[row];
    sums[row] *= shrink;
#pragma unroll
    for (int eight = 0; eight < DIM / 8; ++eight) {
      out[eight][2 * row] *= shrink;
      out[eight][2 * row + 1] *= shrink;
    }
#pragma unroll
    for (int eight = 0; eight < KEYS / 8; ++eight) {
#pragma unroll
      for (int at = 2 * row; at < 2 * row + 2; ++at) {
        scores[eight][at] = expf(scores[eight][at] - base);
        sums[row] += scores[eight][at];
      }
    }
  }
}

// Scores of the warp's rows against `KEYS` positions. `kept` holds the queries' registers; where they would be too many
// (`DIM` above 128) they are read again each time.
template <int DIM, int KEYS>
DEVICE void multiply_keys(const Rows& rows, const u32 (&kept)[DIM > 128 ? 1 : DIM / 16][4], const u16* keys,
                          float (&scores)[KEYS / 8][4]) {
  const u32 lane = threadIdx.x & 31, g = lane >> 2, w = lane & 3;
#pragma unroll
  for (u32 step = 0; step < DIM / 16; ++step) {
    u32 query[4];
    if (DIM > 128) {
      query_fragment(rows, step, w, query);
    } else {
#pragma unroll
      for (int at = 0; at < 4; ++at) query[at] = kept[DIM > 128 ? 0 : step][at];
    }
#pragma unroll
    for (int eight = 0; eight < KEYS / 8; ++eight) {
      const u16* key = keys + (eight * 8 + g) * (DIM + 8) + step * 16 + 2 * w;
      mma_f16(scores[eight], query, two(key), two(key + 8));
    }
  }
}

template <class E, int DIM, int KEYS> DEVICE void prefill(const PrefillArgs& args) {
  constexpr u32 STRIDE = DIM + 8;
  const u32 lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, w = lane & 3;
  const uint4 tile = args.tiles[blockIdx.x];
  const u32 head = blockIdx.y, kv_head = head / (args.heads / args.kv_heads);
  u16* keys = reinterpret_cast<u16*>(arena);  // [KEYS][STRIDE]
  u16* values = keys + KEYS * STRIDE;
  Rows rows;
#pragma unroll
  for (int row = 0; row < 2; ++row) {
    const u32 token = min(warp * 16 + g + row * 8, tile.y - 1);
    rows.query[row] = args.queries + (static_cast<u64>(tile.x + token) * args.heads + head) * DIM;
    rows.position[row] = tile.z + token;
  }
  u32 kept[DIM > 128 ? 1 : DIM / 16][4];
  if (DIM <= 128) {
#pragma unroll
    for (u32 step = 0; step < DIM / 16; ++step) query_fragment(rows, step, w, kept[DIM > 128 ? 0 : step]);
  }
  float out[DIM / 8][4] = {}, largest[2] = {NEGATIVE_INFINITY, NEGATIVE_INFINITY}, sums[2] = {};
  const u32 last = tile.z + tile.y - 1;
  const u32 first = args.window && tile.z + 1 > args.window ? (tile.z + 1 - args.window) / KEYS * KEYS : 0;
  for (u32 start = first; start <= last; start += KEYS) {
    load_keys<E, DIM, KEYS>(args, tile, kv_head, start, keys, values);
    float scores[KEYS / 8][4] = {};
    multiply_keys<DIM, KEYS>(rows, kept, keys, scores);
    soften<DIM, KEYS>(args, rows, start, scores, largest, sums, out);
#pragma unroll
    for (u32 step = 0; step < KEYS / 16; ++step) {
      const u32 weights[4] = {pack_half(scores[2 * step][0], scores[2 * step][1]), pack_half(scores[2 * step][2], scores[2 * step][3]),
                              pack_half(scores[2 * step + 1][0], scores[2 * step + 1][1]),
                              pack_half(scores[2 * step + 1][2], scores[2 * step + 1][3])};
#pragma unroll
      for (int eight = 0; eight < DIM / 8; ++eight) {
        u32 low, high;
        load_transposed(low, high, values + (step * 16 + (lane & 15)) * STRIDE + eight * 8);
        mma_f16(out[eight], weights, low, high);
      }
    }
    __syncthreads();
  }
#pragma unroll
  for (int row = 0; row < 2; ++row) {
    sums[row] += __shfl_xor_sync(ALL_LANES, sums[row], 1);
    sums[row] += __shfl_xor_sync(ALL_LANES, sums[row], 2);
    const u32 token = warp * 16 + g + row * 8;
    if (token >= tile.y) continue;
    float* to = args.out + (static_cast<u64>(tile.x + token) * args.heads + head) * DIM + 2 * w;
#pragma unroll
    for (int eight = 0; eight < DIM / 8; ++eight) {
      to[eight * 8] = out[eight][2 * row] / sums[row];
      to[eight * 8 + 1] = out[eight][2 * row + 1] / sums[row];
    }
  }
}

#define PREFILL(name, element, dim, keys)                                                \
  KERNEL(128) name##_##dim(PrefillArgs args) { prefill<element, dim, keys>(args); } \
  REGISTER(name##_##dim)
PREFILL(prefill, u16, 64, 64)
PREFILL(prefill, u16, 128, 64)
PREFILL(prefill, u16, 256, 32)
PREFILL(prefill_int8, i8, 64, 64)
PREFILL(prefill_int8, i8, 128, 64)
PREFILL(prefill_int8, i8, 256, 32)
