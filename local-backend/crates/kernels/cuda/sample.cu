// From logits to token ids without leaving the device. A block of 512 threads for each row. The rules, the generator and the
// order of every sum are those of `src/draw.rs`, so that a request's tokens are the same to the bit wherever they are drawn.
// Cuts are found by halving over the bits of the weights: no sort, no atomics.

// How a row is drawn.
struct Draw {
  float inverse;  // of the temperature; 0: the likeliest is taken
  float top_p;
  float least;    // the least weight that is kept; the likeliest token's is 1
  float top_k;    // 0: all
  u64 seed, index;
};

struct SampleArgs {
  float* logits;  // [rows][vocabulary]; of a row that is drawn, weights are written over them
  u32* tokens;    // [rows]
  const Draw* draws;
  u32 vocabulary;
};

struct Best {
  float value;
  u32 id;
};

// The largest value and the first id that has it, known to every thread.
DEVICE Best block_best(Best best) {
  float* values = reinterpret_cast<float*>(arena);
  u32* ids = reinterpret_cast<u32*>(values + 32);
#pragma unroll
  for (int step = 16; step > 0; step >>= 1) {
    const float value = __shfl_xor_sync(ALL_LANES, best.value, step);
    const u32 id = __shfl_xor_sync(ALL_LANES, best.id, step);
    if (value > best.value || (value == best.value && id < best.id)) best = Best{value, id};
  }
  __syncthreads();
  if ((threadIdx.x & 31) == 0) {
    values[threadIdx.x >> 5] = best.value;
    ids[threadIdx.x >> 5] = best.id;
  }
  __syncthreads();
  for (u32 warp = 0; warp < blockDim.x >> 5; ++warp) {
    if (values[warp] > best.value || (values[warp] == best.value && ids[warp] < best.id)) best = Best{values[warp], ids[warp]};
  }
  return best;
}

DEVICE Best likeliest(const float* logits, u32 vocabulary) {
  Best best = {NEGATIVE_INFINITY, 0xffffffffu};
  for (u32 id = threadIdx.x; id < vocabulary; id += blockDim.x) {
    if (logits[id] > best.value || best.id == 0xffffffffu) best = Best{logits[id], id};
  }
  return block_best(best);
}

// How many weights, and how much together, are at least `least`, without those that are cut (negative).
DEVICE float2 at_least(const float* weights, u32 vocabulary, float least) {
  float* slots = reinterpret_cast<float*>(arena);
  float count = 0.0f, sum = 0.0f;
  for (u32 id = threadIdx.x; id < vocabulary; id += blockDim.x) {
    if (weights[id] >= least) {
      count += 1.0f;
      sum += weights[id];
    }
  }
  count = block_sum(count, slots);
  return make_float2(count, block_sum(sum, slots));
}

DEVICE float next_up(float value) { return __uint_as_float(__float_as_uint(value) + 1); }

// Cuts weights below `least`, and of those equal to it all but the first `keep`.
DEVICE void cut(float* weights, u32 vocabulary, float least, float keep) {
  float* slots = reinterpret_cast<float*>(arena);
  u32 low = 0, high = vocabulary;  // ids below the bound found hold the first `keep`
  while (low < high) {
    const u32 middle = low + (high - low) / 2;
    float count = 0.0f;
    for (u32 id = threadIdx.x; id <= middle; id += blockDim.x) count += weights[id] == least ? 1.0f : 0.0f;
    if (block_sum(count, slots) >= keep) high = middle;
    else low = middle + 1;
  }
  for (u32 id = threadIdx.x; id < vocabulary; id += blockDim.x) {
    if (weights[id] < least || (weights[id] == least && id > low)) weights[id] = -1.0f;
  }
  __syncthreads();
}

DEVICE void keep_top_k(float* weights, u32 vocabulary, float k) {
  if (at_least(weights, vocabulary, 0.0f).x <= k) return;
  u32 low = 0, high = __float_as_uint(1.0f);  // the largest bits with at least k weights at or above them
  while (low < high) {
    const u32 middle = low + (high - low + 1) / 2;
    if (at_least(weights, vocabulary, __uint_as_float(middle)).x >= k) low = middle;
    else high = middle - 1;
  }
  const float least = __uint_as_float(low);
  cut(weights, vocabulary, least, k - at_least(weights, vocabulary, next_up(least)).x);
}

DEVICE void keep_top_p(float* weights, u32 vocabulary, float p) {
  const float enough = at_least(weights, vocabulary, 0.0f).y * p;
  u32 low = 0, high = __float_as_uint(1.0f);  // the smallest bits with less than enough above them
  while (low < high) {
    const u32 middle = low + (high - low) / 2;
    if (at_least(weights, vocabulary, next_up(__uint_as_float(middle))).y < enough) high = middle;
    else low = middle + 1;
  }
  const float least = __uint_as_float(low);
  const float left = enough - at_least(weights, vocabulary, next_up(least)).y;
  cut(weights, vocabulary, least, least > 0.0f ? fmaxf(ceilf(left / least), 1.0f) : 1.0f);
}

// e to the power of `x`, which is at most 0, in the steps of the CPU's `exp`; no multiply is joined with an addition that the CPU
// does not join.
DEVICE float power(float x) {
  const float inside = fmaxf(x, -87.0f), whole = rintf(__fmul_rn(inside, 1.44269504088896340736f));
  const float rest = fmaf(whole, 2.1219444e-4f, fmaf(whole, -0.6933594f, inside));
  float sum = 1.9875691e-4f;
  sum = fmaf(sum, rest, 1.3981999e-3f);
  sum = fmaf(sum, rest, 8.333452e-3f);
  sum = fmaf(sum, rest, 4.1665796e-2f);
  sum = fmaf(sum, rest, 1.6666665e-1f);
  sum = fmaf(sum, rest, 0.5f);
  sum = fmaf(sum, rest, 1.0f);
  sum = fmaf(sum, rest, 1.0f);
  return x >= -87.0f ? __fmul_rn(sum, __int_as_float((static_cast<int>(whole) + 127) << 23)) : 0.0f;
}

DEVICE float uniform(u64 seed, u64 index) {
  u64 mixed = seed + (index + 1) * 0x9e3779b97f4a7c15ull;
  mixed = (mixed ^ mixed >> 30) * 0xbf58476d1ce4e5b9ull;
  mixed = (mixed ^ mixed >> 27) * 0x94d049bb133111ebull;
  return static_cast<float>(static_cast<u32>((mixed ^ mixed >> 31) >> 40)) / 16777216.0f;
}

// The token at a share of the kept weights, in order of ids; each thread owns a run of ids.
DEVICE u32 pick(const float* weights, u32 vocabulary, float share, u32 otherwise) {
  float* sums = reinterpret_cast<float*>(arena);
  u32* chosen = reinterpret_cast<u32*>(sums + blockDim.x);
  const u32 run = (vocabulary + blockDim.x - 1) / blockDim.x;
  const u32 first = min(threadIdx.x * run, vocabulary), end = min(first + run, vocabulary);
  float sum = 0.0f;
  for (u32 id = first; id < end; ++id) sum += weights[id] >= 0.0f ? weights[id] : 0.0f;
  __syncthreads();
  sums[threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.x == 0) {
    float total = 0.0f;
    for (u32 at = 0; at < blockDim.x; ++at) {
      const float before = total;
      total += sums[at];
      sums[at] = before;
    }
    sums[blockDim.x + 1] = total;
    *chosen = otherwise;
  }
  __syncthreads();
  const float point = share * sums[blockDim.x + 1], before = sums[threadIdx.x];
  const float after = threadIdx.x + 1 < blockDim.x ? sums[threadIdx.x + 1] : sums[blockDim.x + 1];
  if (point >= before && point < after) {
    float left = point - before;
    u32 last = otherwise;
    for (u32 id = first; id < end; ++id) {
      if (weights[id] < 0.0f) continue;
      left -= weights[id];
      last = id;
      if (left < 0.0f) break;
    }
    *chosen = last;
  }
  __syncthreads();
  return *chosen;
}

KERNEL_AT_LEAST(512, 2) sample(SampleArgs args) {
  const u64 row = blockIdx.x;
  float* logits = args.logits + row * args.vocabulary;
  const Draw draw = args.draws[row];
  const Best best = likeliest(logits, args.vocabulary);
  u32 token = best.id;
  if (draw.inverse > 0.0f) {
    for (u32 id = threadIdx.x; id < args.vocabulary; id += blockDim.x) {
      const float weight = power((logits[id] - best.value) * draw.inverse);
      logits[id] = weight >= draw.least ? weight : -1.0f;
    }
    __syncthreads();
    if (draw.top_k > 0.0f) keep_top_k(logits, args.vocabulary, draw.top_k);
    if (draw.top_p < 1.0f) keep_top_p(logits, args.vocabulary, draw.top_p);
    token = pick(logits, args.vocabulary, uniform(draw.seed, draw.index), best.id);
  }
  if (threadIdx.x == 0) args.tokens[row] = token;
}

// Moves every sequence on by the token just chosen.
struct AdvanceArgs {
  u32* positions;
  Draw* draws;
  u32 count;
};

KERNEL(256) advance(AdvanceArgs args) {
  const u32 at = blockIdx.x * 256 + threadIdx.x;
  if (at >= args.count) return;
  args.positions[at] += 1;
  args.draws[at].index += 1;
}

REGISTER(sample)
REGISTER(advance)
