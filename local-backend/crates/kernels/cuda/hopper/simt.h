// Hopper's asynchronous machinery on the CPU, for `simt.h`: barriers in shared memory that count bytes (mbarrier), copies of
// tiles described by a tensor map (cp.async.bulk.tensor, with its swizzle of 128 bytes), and the multiplies of a warpgroup
// (wgmma.mma_async) that read operands through descriptors of shared memory, as the PTX manual has them.
//
// What is asynchronous there happens here as early or as late as it may: a copy when it is asked for, or when nobody can go on
// without it; a multiply when it is issued, or when it is waited for. With order 0 both are early, with 1 both late, with 2 copies
// early and multiplies late. So a missing wait shows as NaN or as work left over, a stage given back too early as wrong sums.
// Not seen: a missing proxy fence, bank conflicts, registers of a multiply under way that are written.

struct alignas(128) TensorMap { u64 opaque[16]; };  // as `simt.rs` fills it: address; rank, bytes of an element; 5 sizes; 4 strides; 5 of the box

namespace simt {

struct Phase {
  int bytes;       // expected, less those that came
  u16 pending;     // arrivals
  u8 parity, count;
};
static_assert(sizeof(Phase) == 8, "an mbarrier has eight bytes");

static void fail(const char* what) {
  if (!machine.problem) machine.problem = what;
}
static u32 shared_at(const void* shared) {
  const long at = static_cast<const u8*>(shared) - reinterpret_cast<const u8*>(arena);
  if (at < 0 || at >= static_cast<long>(machine.shared)) fail("an address is not in the launch's shared memory");
  return static_cast<u32>(at);
}
static u8* shared_byte(u32 at) {
  if (at >= machine.shared) {
    fail("an operand lies beyond the launch's shared memory");
    at = 0;
  }
  return reinterpret_cast<u8*>(arena) + at;
}
// Sixteen-byte pieces of each 128 bytes, mixed by the row of 128 bytes that they lie in.
static u32 swizzled(u32 at) { return at ^ ((at >> 7 & 7) << 4); }

static void settle(Phase& phase) {
  if (phase.pending || phase.bytes) return;
  phase.parity ^= 1;
  phase.pending = phase.count;
}
static bool is_over(const void* barrier, u32 parity) { return static_cast<const Phase*>(barrier)->parity != parity; }

struct Bulk {
  TensorMap map;
  int at[5];
  u32 to, bytes;         // bytes: of a plain copy
  const void* from;      // null: by the map
  Phase* barrier;
};
static std::vector<Bulk> bulks;

static void land_tile(const Bulk& bulk) {
  const u64* map = bulk.map.opaque;
  const u32 rank = static_cast<u32>(map[1] & 255), element = static_cast<u32>(map[1] >> 8 & 255);
  const u64 *sizes = map + 2, *strides = map + 7, *box = map + 11;
  if (box[0] * element != 128) fail("with a swizzle of 128 bytes a box is 128 bytes wide");
  if (bulk.to % 1024) fail("a tile does not begin where its swizzle does");
  u64 rows = 1;
  for (u32 dim = 1; dim < rank; ++dim) rows *= box[dim];
  for (u64 row = 0; row < rows; ++row) {
    bool is_inside = true;
    u64 from = map[0], rest = row;
    for (u32 dim = 1; dim < rank; ++dim) {
      const long at = bulk.at[dim] + static_cast<long>(rest % box[dim]);
      rest /= box[dim];
      is_inside &= at >= 0 && at < static_cast<long>(sizes[dim]);
      from += static_cast<u64>(at) * strides[dim - 1];
    }
    for (u32 column = 0; column < box[0]; ++column) {
      const long at = bulk.at[0] + static_cast<long>(column);
      u8* to = shared_byte(swizzled(bulk.to + static_cast<u32>(row) * 128 + column * element));
      if (is_inside && at >= 0 && at < static_cast<long>(sizes[0])) {
        memcpy(to, reinterpret_cast<const u8*>(from) + at * element, element);
      } else {
        memset(to, 0, element);
      }
    }
  }
  bulk.barrier->bytes -= static_cast<int>(rows * 128);
}
static void land(const Bulk& bulk) {
  if (bulk.from) {
    shared_byte(bulk.to + bulk.bytes - 1);
    memcpy(shared_byte(bulk.to), bulk.from, bulk.bytes);
    bulk.barrier->bytes -= static_cast<int>(bulk.bytes);
  } else {
    land_tile(bulk);
  }
  settle(*bulk.barrier);
}
static bool land_one() {
  if (bulks.empty()) return false;
  const auto at = bulks.end() - 1;  // they do not come in the order they were asked for
  const Bulk bulk = *at;
  bulks.erase(at);
  land(bulk);
  return true;
}
static void begin(const Bulk& bulk) {
  if (bulk.to % 16 || bulk.bytes % 16) fail("a bulk copy is of whole 16 bytes");
  if (machine.order != 1) land(bulk);
  else bulks.push_back(bulk);
}

struct Multiply {
  bool has_registers, is_turned, is_half, adds;
  u32 n, group;
  float a[2][16];
  u64 a_from, b_from;
  float* d;
};
static std::vector<Multiply> multiplies[MAX_THREADS];
static u32 multiply_groups[MAX_THREADS];

static float element(const u8* from, bool is_half) {
  u16 bits;
  memcpy(&bits, from, 2);
  return is_half ? from_half(bits) : __uint_as_float(static_cast<u32>(bits) << 16);
}
struct Operand {
  u32 start, leading, stride;
  explicit Operand(u64 bits) {
    start = static_cast<u32>(bits & 0x3fff) << 4;
    leading = static_cast<u32>(bits >> 16 & 0x3fff) << 4;
    stride = static_cast<u32>(bits >> 32 & 0x3fff) << 4;
    if (bits >> 62 != 1) fail("only operands swizzled by 128 bytes are known here");
    if (bits >> 49 & 7) fail("a base offset is not known here");
  }
  // Columns of the depth lie together: eight rows of 128 bytes, the next eight a stride further.
  u32 by_depth(u32 row, u32 k) const { return swizzled(start + row / 8 * stride + row % 8 * 128 + k * 2); }
  // Rows lie together, 64 in 128 bytes: the next 64 a leading offset further, the next eight of the depth a stride.
  u32 by_rows(u32 row, u32 k) const { return swizzled(start + row / 64 * leading + row % 64 * 2 + k % 8 * 128 + k / 8 * stride); }
};

static void compute(u32 thread, const Multiply& multiply) {
  const u32 lane = thread % 32, warp = thread % GROUP / 32;
  float a[2][16];
  memcpy(a, multiply.a, sizeof a);
  if (!multiply.has_registers) {
    const Operand from(multiply.a_from);
    for (u32 row = 0; row < 2; ++row) {
      for (u32 k = 0; k < 16; ++k) a[row][k] = element(shared_byte(from.by_depth(warp * 16 + lane / 4 + row * 8, k)), multiply.is_half);
    }
  }
  const Operand from(multiply.b_from);
  for (u32 at = 0; at < multiply.n / 4; ++at) {
    const u32 column = at / 2 * 8 + lane % 4 * 2 + at % 2;
    float sums[2] = {};
    for (u32 k = 0; k < 16; ++k) {
      const u32 byte = multiply.is_turned ? from.by_rows(column, k) : from.by_depth(column, k);
      const float b = element(shared_byte(byte), multiply.is_half);
      sums[0] += a[0][k] * b;
      sums[1] += a[1][k] * b;
    }
    for (u32 row = 0; row < 2; ++row) {
      float& d = multiply.d[at / 2 * 4 + row * 2 + at % 2];
      d = multiply.adds ? d + sums[row] : sums[row];
    }
  }
}
static void issue(Multiply multiply) {
  const u32 thread = machine.current;
  wait(AT_GROUP);
  multiply.group = multiply_groups[thread];
  if (machine.order == 0) compute(thread, multiply);
  else multiplies[thread].push_back(multiply);
}
static void compute_until(u32 pending) {
  auto& mine = multiplies[machine.current];
  const u32 groups = multiply_groups[machine.current];
  while (!mine.empty() && mine.front().group + pending < groups) {
    compute(machine.current, mine.front());
    mine.erase(mine.begin());
  }
}
static void forget_asynchronous() {
  bulks.clear();
  for (auto& list : multiplies) list.clear();
}
static bool is_quiet() {
  bool is = bulks.empty();
  for (const auto& list : multiplies) is &= list.empty();
  return is;
}

}  // namespace simt

#define __grid_constant__
static inline u32 shared_address(const void* shared) { return simt::shared_at(shared); }
static inline void phase_init(u64* barrier, u32 count) {
  auto* phase = reinterpret_cast<simt::Phase*>(barrier);
  *phase = {0, static_cast<u16>(count), 0, static_cast<u8>(count)};
}
static inline void phase_arrive(u64* barrier) {
  auto& phase = *reinterpret_cast<simt::Phase*>(barrier);
  if (phase.pending == 0) simt::fail("more arrivals at a barrier than it counts");
  else --phase.pending;
  simt::settle(phase);
}
static inline void phase_expect(u64* barrier, u32 bytes) {
  reinterpret_cast<simt::Phase*>(barrier)->bytes += static_cast<int>(bytes);
  phase_arrive(barrier);
}
static inline void phase_wait(u64* barrier, u32 parity) {
  auto& fibre = simt::machine.fibres[simt::machine.current];
  fibre.barrier = barrier;
  fibre.parity = parity;
  if (!simt::is_over(barrier, parity)) simt::wait(simt::AT_PHASE);
}
static inline void fence_barriers() {}
static inline void fence_async() {}
template <int COUNT> static inline void more_registers() {}
template <int COUNT> static inline void fewer_registers() {}
static inline void sync_named(u32 name, u32 threads) {
  auto& fibre = simt::machine.fibres[simt::machine.current];
  fibre.name = name;
  fibre.members = threads;
  simt::wait(simt::AT_NAMED);
}
static inline void copy_bulk(void* to, const void* from, u32 bytes, u64* barrier) {
  simt::begin({{}, {}, simt::shared_at(to), bytes, from, reinterpret_cast<simt::Phase*>(barrier)});
}
static inline void copy_tile(void* to, const TensorMap& map, u64* barrier, int x, int y, int z = 0, int t = 0) {
  simt::begin({map, {x, y, z, t, 0}, simt::shared_at(to), 0, nullptr, reinterpret_cast<simt::Phase*>(barrier)});
}
static inline void group_fence() {}
static inline void group_commit() { ++simt::multiply_groups[simt::machine.current]; }
template <int PENDING> static inline void group_wait() { simt::compute_until(PENDING); }
template <int N, bool HALF, bool TURNED> static inline void group_multiply(float (&d)[N / 2], u64 a, u64 b, u32 adds) {
  simt::issue({false, TURNED, HALF, adds != 0, N, 0, {}, a, b, d});
}
template <int N, bool HALF, bool TURNED> static inline void group_multiply(float (&d)[N / 2], const u32 (&a)[4], u64 b, u32 adds) {
  simt::Multiply multiply = {true, TURNED, HALF, adds != 0, N, 0, {}, 0, b, d};
  const auto lanes = simt::exchange(Operands{{a[0], a[1], a[2], a[3]}, {0, 0}});
  const u32 first = threadIdx.x % 32 / 4 * 4;
  for (u32 k = 0; k < 16; ++k) {
    const Operands from = lanes[first + k % 8 / 2];
    for (u32 row = 0; row < 2; ++row) {
      const u32 word = from.a[k / 8 * 2 + row] >> (k % 2 * 16);
      const u16 bits = static_cast<u16>(word);
      multiply.a[row][k] = simt::element(reinterpret_cast<const u8*>(&bits), HALF);
    }
  }
  simt::issue(multiply);
}
