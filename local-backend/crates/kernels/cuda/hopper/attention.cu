// Attention of many queries of one sequence over the paged cache, on Hopper's tensor cores: f16 in, sums in f32. A block of three
// warpgroups takes 64 queries of two heads that share a key head: the first warpgroup only copies, pages by tensor maps into a ring
// of two stages of `KEYS` positions; each of the others attends with one head, its scores and weights in registers. Positions are
// always cut at the same places.

#define PREFILL_STAGES 2
#define PREFILL_THREADS 384

struct HopperPrefillArgs {
  TensorMap queries;  // [tokens][heads][head_dim], boxes of 64 columns by 64 tokens
  TensorMap keys;     // [block][kv head][16][head_dim], boxes of 64 columns by 16 positions
  TensorMap values;
  const uint4* tiles;  // first token, number of tokens (at most 64), position of the first, row of `tables`
  const u32* tables;   // [sequences][table_stride]
  float* out;          // [tokens][heads][head_dim]
  u32 heads, kv_heads, table_stride;
  u32 window;          // positions seen, the query's own among them; 0: all
  float scale;
};

template <int DIM, int KEYS> struct Places {
  static constexpr u32 QUERIES = 64 * DIM * 2, STAGE = KEYS * DIM * 2;
  u64 *queries_full, *keys_full, *values_full, *keys_empty, *values_empty;
  u8 *queries, *keys, *values;
  METHOD explicit Places(u8* base) {
    queries_full = reinterpret_cast<u64*>(base);
    keys_full = queries_full + 1;
    values_full = keys_full + PREFILL_STAGES;
    keys_empty = values_full + PREFILL_STAGES;
    values_empty = keys_empty + PREFILL_STAGES;
    queries = base + SWIZZLE_BYTES;
    keys = queries + 2 * QUERIES;
    values = keys + PREFILL_STAGES * STAGE;
  }
};

struct Sweep {
  uint4 tile;
  u32 head, is_own, kv_head;  // the warpgroup's head; 0: another's, for which nothing is written
  u32 first, last;
};

DEVICE Sweep sweep(const HopperPrefillArgs& args, u32 member, u32 keys) {
  Sweep out;
  out.tile = args.tiles[gridDim.x - 1 - blockIdx.x];  // those that see most begin first
  const u32 shared_by = args.heads / args.kv_heads, pairs = (shared_by + 1) / 2;
  out.kv_head = blockIdx.y / pairs;
  const u32 at = blockIdx.y % pairs * 2 + member;
  out.is_own = at < shared_by;
  out.head = out.kv_head * shared_by + min(at, shared_by - 1);
  out.last = out.tile.z + out.tile.y - 1;
  out.first = args.window && out.tile.z + 1 > args.window ? (out.tile.z + 1 - args.window) / keys * keys : 0;
  return out;
}

// Pages of `KEYS` positions from `start` on, as far as the last one seen; by a warp.
template <int DIM, int KEYS>
DEVICE void copy_pages(const HopperPrefillArgs& args, const TensorMap& map, const Sweep& sweep, u32 start, u8* to, u64* full) {
  const u32 lane = threadIdx.x & 31, pages = min(sweep.last / 16 - start / 16 + 1, static_cast<u32>(KEYS / 16));
  const u32* table = args.tables + static_cast<u64>(sweep.tile.w) * args.table_stride + start / 16;
  if (lane == 0) phase_expect(full, pages * 16 * DIM * 2);
  __syncwarp();
  for (u32 piece = lane; piece < pages * (DIM / 64); piece += 32) {
    const u32 page = piece % pages, chunk = piece / pages;
    copy_tile(to + chunk * KEYS * 128 + page * 2048, map, full, static_cast<int>(chunk * 64), 0, static_cast<int>(sweep.kv_head),
              static_cast<int>(table[page]));
  }
}

template <int DIM, int KEYS> DEVICE void copy_all(const HopperPrefillArgs& args, const Places<DIM, KEYS>& places) {
  const Sweep both[2] = {sweep(args, 0, KEYS), sweep(args, 1, KEYS)};
  if ((threadIdx.x & 31) == 0) {
    phase_expect(places.queries_full, 2 * Places<DIM, KEYS>::QUERIES);
#pragma unroll
    for (u32 member = 0; member < 2; ++member) {
      for (u32 chunk = 0; chunk < DIM / 64; ++chunk) {
        copy_tile(places.queries + member * Places<DIM, KEYS>::QUERIES + chunk * 64 * 128, args.queries, places.queries_full,
                  static_cast<int>(chunk * 64), static_cast<int>(both[member].head), static_cast<int>(both[0].tile.x));
      }
    }
  }
  u32 turn = 0;
  for (u32 start = both[0].first; start <= both[0].last; start += KEYS, ++turn) {
    const u32 slot = turn % PREFILL_STAGES, parity = (turn / PREFILL_STAGES & 1) ^ 1;
    phase_wait(places.keys_empty + slot, parity);
    copy_pages<DIM, KEYS>(args, args.keys, both[0], start, places.keys + slot * Places<DIM, KEYS>::STAGE, places.keys_full + slot);
    phase_wait(places.values_empty + slot, parity);
    copy_pages<DIM, KEYS>(args, args.values, both[0], start, places.values + slot * Places<DIM, KEYS>::STAGE, places.values_full + slot);
  }
}

// Scores become weights, exp(score − largest); the sums and the outputs so far shrink to match.
template <int DIM, int KEYS>
DEVICE void weigh(const HopperPrefillArgs& args, const u32 (&position)[2], u32 start, float (&scores)[KEYS / 2], float (&largest)[2],
                  float (&sums)[2], float (&out)[DIM / 2]) {
  const u32 w = threadIdx.x & 3;
  float top[2] = {largest[0], largest[1]};
#pragma unroll
  for (u32 at = 0; at < KEYS / 2; ++at) {
    const u32 key = start + at / 4 * 8 + 2 * w + at % 2, query = position[at / 2 % 2];
    const bool is_seen = key <= query && (args.window == 0 || key + args.window > query);
    scores[at] = is_seen ? scores[at] * args.scale : NEGATIVE_INFINITY;
    top[at / 2 % 2] = fmaxf(top[at / 2 % 2], scores[at]);
  }
  float base[2];
#pragma unroll
  for (u32 row = 0; row < 2; ++row) {
    top[row] = fmaxf(top[row], __shfl_xor_sync(ALL_LANES, top[row], 1));
    top[row] = fmaxf(top[row], __shfl_xor_sync(ALL_LANES, top[row], 2));
    // A row that has seen nothing yet must not subtract infinity from infinity.
    base[row] = top[row] == NEGATIVE_INFINITY ? 0.0f : top[row];
    const float shrink = expf(largest[row] - base[row]);
    largest[row] = top[row];
    sums[row] *= shrink;
#pragma unroll
    for (u32 at = row * 2; at < DIM / 2; at += 4) {
      out[at] *= shrink;
      out[at + 1] *= shrink;
    }
  }
#pragma unroll
  for (u32 at = 0; at < KEYS / 2; ++at) {
    scores[at] = expf(scores[at] - base[at / 2 % 2]);
    sums[at / 2 % 2] += scores[at];
  }
}

// What lies in the last page after the last position may be anything, and nothing times NaN is NaN. Both warpgroups write the
// same zeros, each before its own multiplies.
template <int DIM, int KEYS> DEVICE void clear_unseen(u8* values, u32 seen, u32 member) {
  for (u32 piece = threadIdx.x & 127; piece < (KEYS - seen) * (DIM / 8); piece += 128) {
    const u32 row = seen + piece / (DIM / 8), part = piece % (DIM / 8);
    *reinterpret_cast<uint4*>(values + part / 8 * KEYS * 128 + row * 128 + part % 8 * 16) = make_uint4(0, 0, 0, 0);
  }
  fence_async();
  sync_named(1 + member, 128);
}

DEVICE void give_back(u64* barrier) {
  if ((threadIdx.x & 31) == 0) phase_arrive(barrier);
}

template <int DIM, int KEYS>
DEVICE void store_head(const HopperPrefillArgs& args, const Sweep& sweep, float (&sums)[2], const float (&out)[DIM / 2]) {
  const u32 lane = threadIdx.x & 31, row = (threadIdx.x / 32 & 3) * 16 + (lane >> 2);
#pragma unroll
  for (u32 half = 0; half < 2; ++half) {
    sums[half] += __shfl_xor_sync(ALL_LANES, sums[half], 1);
    sums[half] += __shfl_xor_sync(ALL_LANES, sums[half], 2);
    const u32 token = row + half * 8;
    if (token >= sweep.tile.y || !sweep.is_own) continue;
    float* to = args.out + (static_cast<u64>(sweep.tile.x + token) * args.heads + sweep.head) * DIM + 2 * (lane & 3);
#pragma unroll
    for (u32 eight = 0; eight < DIM / 8; ++eight) {
      *reinterpret_cast<float2*>(to + eight * 8) =
          make_float2(out[eight * 4 + half * 2] / sums[half], out[eight * 4 + half * 2 + 1] / sums[half]);
    }
  }
}

template <int DIM, int KEYS> DEVICE void attend(const HopperPrefillArgs& args, const Places<DIM, KEYS>& places, u32 member) {
  const Sweep sweep = ::sweep(args, member, KEYS);
  const u32 row = (threadIdx.x / 32 & 3) * 16 + (threadIdx.x & 31) / 4;
  const u32 position[2] = {sweep.tile.z + min(row, sweep.tile.y - 1), sweep.tile.z + min(row + 8, sweep.tile.y - 1)};
  float out[DIM / 2] = {}, largest[2] = {NEGATIVE_INFINITY, NEGATIVE_INFINITY}, sums[2] = {};
  const u8* queries = places.queries + member * Places<DIM, KEYS>::QUERIES;
  phase_wait(places.queries_full, 0);
  u32 turn = 0;
  for (u32 start = sweep.first; start <= sweep.last; start += KEYS, ++turn) {
    const u32 slot = turn % PREFILL_STAGES, parity = turn / PREFILL_STAGES & 1;
    const u8* keys = places.keys + slot * Places<DIM, KEYS>::STAGE;
    u8* values = places.values + slot * Places<DIM, KEYS>::STAGE;
    float scores[KEYS / 2];
    phase_wait(places.keys_full + slot, parity);
    group_fence();
#pragma unroll
    for (u32 step = 0; step < DIM / 16; ++step) {
      const u64 query = operand(queries + step / 4 * 64 * 128, 16) + step % 4 * 2;
      group_multiply<KEYS, true, false>(scores, query, operand(keys + step / 4 * KEYS * 128, 16) + step % 4 * 2, step);
    }
    group_commit();
    group_wait<0>();
    give_back(places.keys_empty + slot);
    weigh<DIM, KEYS>(args, position, start, scores, largest, sums, out);
    u32 weights[KEYS / 16][4];
#pragma unroll
    for (u32 at = 0; at < KEYS / 4; ++at) weights[at / 4][at % 4] = pack_half(scores[at * 2], scores[at * 2 + 1]);
    phase_wait(places.values_full + slot, parity);
    if (sweep.last < start + KEYS - 1) clear_unseen<DIM, KEYS>(values, sweep.last + 1 - start, member);
    group_fence();
#pragma unroll
    for (u32 step = 0; step < KEYS / 16; ++step) {
      group_multiply<DIM, true, true>(out, weights[step], operand(values + step * 2048, KEYS * 128), 1);
    }
    group_commit();
    // While one warpgroup waits or weighs, the other one multiplies.
    group_wait<0>();
    give_back(places.values_empty + slot);
  }
  store_head<DIM, KEYS>(args, sweep, sums, out);
}

template <int DIM, int KEYS> DEVICE void hopper_prefill(const HopperPrefillArgs& args) {
  const Places<DIM, KEYS> places(aligned_arena());
  if (threadIdx.x == 0) {
    phase_init(places.queries_full, 1);
    for (u32 at = 0; at < PREFILL_STAGES; ++at) {
      phase_init(places.keys_full + at, 1);
      phase_init(places.values_full + at, 1);
      phase_init(places.keys_empty + at, 8);
      phase_init(places.values_empty + at, 8);
    }
    fence_barriers();
  }
  __syncthreads();
  if (threadIdx.x < 128) {
    fewer_registers<40>();
    if (threadIdx.x < 32) copy_all<DIM, KEYS>(args, places);
  } else {
    more_registers<232>();
    attend<DIM, KEYS>(args, places, threadIdx.x / 128 - 1);
  }
}

#define HOPPER_PREFILL(dim, keys)                                                                            \
  KERNEL_AT_LEAST(PREFILL_THREADS, 1) hopper_prefill_##dim(const __grid_constant__ HopperPrefillArgs args) { \
    hopper_prefill<dim, keys>(args);                                                                         \
  }                                                                                                          \
  REGISTER(hopper_prefill_##dim)
HOPPER_PREFILL(64, 128)
HOPPER_PREFILL(128, 128)
HOPPER_PREFILL(256, 64)
