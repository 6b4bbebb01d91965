// Runs the kernels on the CPU, so that their logic is tested where there is no GPU. Every thread of a block is a fibre; fibres
// are switched only in barriers and collectives, blocks run one after the other. The order of the fibres can be turned round or
// mixed, which brings a missing barrier to light. Found and reported: divergence in a barrier or collective, more shared memory
// used than asked for, shared memory read before it was written (it begins as NaN).
//
// It says nothing of speed, of memory ordering within a warp between collectives, or of what a real compiler makes of PTX.

#define SIMT 1
#include <csetjmp>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>
#include <ucontext.h>
#include <vector>

typedef uint8_t u8;
typedef int8_t i8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef unsigned long long u64;

#define __shared__
#define DEVICE static inline
#define METHOD inline
#define KERNEL(threads) static void
#define KERNEL_AT_LEAST(threads, blocks) static void
struct alignas(8) uint2 { u32 x, y; };
struct alignas(8) float2 { float x, y; };
struct alignas(16) uint4 { u32 x, y, z, w; };
struct alignas(16) float4 { float x, y, z, w; };
static inline uint2 make_uint2(u32 x, u32 y) { return {x, y}; }
static inline uint4 make_uint4(u32 x, u32 y, u32 z, u32 w) { return {x, y, z, w}; }
static inline float2 make_float2(float x, float y) { return {x, y}; }

struct Place { u32 x, y, z; };
static Place threadIdx, blockIdx, blockDim, gridDim;

namespace simt {

constexpr u32 LANES = 32, MAX_THREADS = 1024, STACK = 128 << 10, ARENA = 228 << 10, SLOT = 32;
enum State { READY, AT_WARP, AT_GROUP, AT_NAMED, AT_PHASE, AT_BLOCK, DONE };
constexpr u32 GROUP = 128;  // threads of a warpgroup

struct Fibre {
  ucontext_t context;
  jmp_buf resume;
  bool is_begun = false;
  State state = DONE;
  u32 turn = 0;  // parity of the warp's collectives
  u32 name = 0, members = 0;  // of the named barrier waited for
  const void* barrier = nullptr;  // and of an mbarrier, with the parity of the phase
  u32 parity = 0;
  std::vector<char> stack;
};

struct Machine {
  std::vector<Fibre> fibres = std::vector<Fibre>(MAX_THREADS);
  ucontext_t home_context;
  jmp_buf home;
  u32 current = 0, order = 0;
  void (*kernel)(const void*) = nullptr;
  const void* args = nullptr;
  alignas(16) u8 slots[2][MAX_THREADS][SLOT];
  char error[256];
  u32 shared = 0;                 // bytes that the launch asked for
  const char* problem = nullptr;  // found inside of a kernel
};
static Machine machine;

static void wait(State state) {
  Fibre& fibre = machine.fibres[machine.current];
  fibre.state = state;
  if (!_setjmp(fibre.resume)) _longjmp(machine.home, 1);
}

static void body() {
  for (;;) {
    machine.kernel(machine.args);
    wait(DONE);
  }
}

static void run(u32 at) {
  Fibre& fibre = machine.fibres[at];
  machine.current = at;
  threadIdx = {at, 0, 0};
  if (_setjmp(machine.home)) return;
  if (fibre.is_begun) _longjmp(fibre.resume, 1);
  fibre.is_begun = true;
  fibre.stack.resize(STACK);
  getcontext(&fibre.context);
  fibre.context.uc_stack.ss_sp = fibre.stack.data();
  fibre.context.uc_stack.ss_size = STACK;
  fibre.context.uc_link = nullptr;
  makecontext(&fibre.context, body, 0);
  swapcontext(&machine.home_context, &fibre.context);
}

// What a value of every lane of the warp looks like from one of them.
template <class T> struct Lanes {
  u32 first, parity;
  T operator[](u32 lane) const {
    T out;
    memcpy(&out, machine.slots[parity][first + lane], sizeof(T));
    return out;
  }
};

template <class T> static Lanes<T> exchange(const T& value) {
  static_assert(sizeof(T) <= SLOT, "a slot is too small");
  Fibre& fibre = machine.fibres[machine.current];
  const u32 at = machine.current, parity = fibre.turn++ & 1;
  memcpy(machine.slots[parity][at], &value, sizeof(T));
  wait(AT_WARP);
  return {at / LANES * LANES, parity};
}

struct Entry {
  void (*call)(const void*);
};
static std::map<std::string, Entry>& registry() {
  static std::map<std::string, Entry> all;
  return all;
}
template <auto FUNCTION> struct Unpack;
template <class Args, void (*FUNCTION)(Args)> struct Unpack<FUNCTION> {
  static void call(const void* args) {
    Args own;  // aligned
    memcpy(&own, args, sizeof own);
    FUNCTION(own);
  }
};
struct Registered {
  Registered(const char* name, Entry entry) { registry()[name] = entry; }
};

// Of Hopper's asynchronous copies and barriers, see `hopper/simt.h`.
static bool is_over(const void* barrier, u32 parity);
static bool land_one();

// Lets go what waits together among `at..at + count`.
static bool let_go(u32 at, u32 count, State state) {
  for (u32 other = at; other < at + count; ++other) {
    if (machine.fibres[other].state != state) return false;
  }
  for (u32 other = at; other < at + count; ++other) machine.fibres[other].state = READY;
  return true;
}

static bool release_named(u32 threads) {
  bool any = false;
  for (u32 at = 0; at < threads; ++at) {
    Fibre& fibre = machine.fibres[at];
    if (fibre.state == AT_PHASE && is_over(fibre.barrier, fibre.parity)) {
      fibre.state = READY;
      any = true;
    }
    if (fibre.state != AT_NAMED) continue;
    u32 there = 0;
    const auto same = [&](const Fibre& other) { return other.state == AT_NAMED && other.name == fibre.name; };
    for (u32 other = 0; other < threads; ++other) there += same(machine.fibres[other]);
    if (there < fibre.members) continue;
    const u32 name = fibre.name;
    for (u32 other = 0; other < threads; ++other) {
      Fibre& waiting = machine.fibres[other];
      if (waiting.state == AT_NAMED && waiting.name == name) waiting.state = READY;
    }
    any = true;
  }
  return any;
}

// Lets go what waits together; false where nothing can go on.
static bool release(u32 threads) {
  bool any = false;
  for (u32 at = 0; at < threads; at += LANES) any |= let_go(at, LANES, AT_WARP);
  for (u32 at = 0; at + GROUP <= threads; at += GROUP) any |= let_go(at, GROUP, AT_GROUP);
  any |= release_named(threads);
  any |= let_go(0, threads, AT_BLOCK);
  // A copy lands only when nobody can go on without it.
  return any || land_one();
}

static bool run_block(u32 threads) {
  for (u32 at = 0; at < threads; ++at) machine.fibres[at].state = READY;
  for (;;) {
    u32 done = 0;
    for (u32 index = 0; index < threads; ++index) {
      // Forwards, backwards, or by a stride that meets each thread once.
      const u32 at = machine.order == 0 ? index : machine.order == 1 ? threads - 1 - index : (index * 37 + 11) % threads;
      if (machine.fibres[at].state == READY) run(at);
    }
    for (u32 at = 0; at < threads; ++at) done += machine.fibres[at].state == DONE;
    if (machine.problem) return false;
    if (done == threads) return true;
    if (!release(threads)) return false;
  }
}

}  // namespace simt

#define REGISTER(name) static const simt::Registered registered_##name(#name, {simt::Unpack<name>::call});

alignas(1024) float4 arena[simt::ARENA / sizeof(float4)];

static inline void __syncthreads() { simt::wait(simt::AT_BLOCK); }
static inline void __syncwarp() { simt::wait(simt::AT_WARP); }
template <class T> static inline T __shfl_xor_sync(u32, T value, u32 mask) {
  const u32 lane = threadIdx.x % 32;
  return simt::exchange(value)[lane ^ mask];
}
static inline float __int_as_float(int bits) { float out; memcpy(&out, &bits, 4); return out; }
static inline float __uint_as_float(u32 bits) { float out; memcpy(&out, &bits, 4); return out; }
static inline u32 __float_as_uint(float value) { u32 out; memcpy(&out, &value, 4); return out; }
static inline int __float2int_rn(float value) { return static_cast<int>(rintf(value)); }
static inline float __fdividef(float a, float b) { return a / b; }
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline u32 min(u32 a, u32 b) { return a < b ? a : b; }

static inline float from_half(u16 bits) { _Float16 out; memcpy(&out, &bits, 2); return static_cast<float>(out); }
static inline u16 to_half(float value) { const _Float16 half = static_cast<_Float16>(value); u16 out; memcpy(&out, &half, 2); return out; }
static inline u16 to_bf16(float value) {
  const u32 bits = __float_as_uint(value);
  if (value != value) return 0x7fff;
  return static_cast<u16>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
static inline int dot_unsigned(u32 a, u32 b, int sum) {
  for (int at = 0; at < 32; at += 8) sum += static_cast<u8>(a >> at) * static_cast<i8>(b >> at);
  return sum;
}
static inline int dot_signed(u32 a, u32 b, int sum) {
  for (int at = 0; at < 32; at += 8) sum += static_cast<i8>(a >> at) * static_cast<i8>(b >> at);
  return sum;
}

// The registers of a warp's multiply, and where each element lies in them, as the PTX manual has it: of a, row g or g + 8 by
// the register's first bit, the later half of the columns by its second; of b, the later half by the register.
struct Operands { u32 a[4], b[2]; };
template <class C, class F> static inline void multiply(C (&c)[4], const Operands& mine, u32 halves, F dot) {
  const auto lanes = simt::exchange(mine);
  const u32 lane = threadIdx.x % 32;
  for (u32 at = 0; at < 4; ++at) {
    const u32 row = lane / 4 + at / 2 * 8, column = lane % 4 * 2 + at % 2;
    for (u32 half = 0; half < halves; ++half) {
      for (u32 word = 0; word < 4; ++word) {
        const Operands left = lanes[row % 8 * 4 + word], right = lanes[column * 4 + word];
        c[at] = dot(left.a[half * 2 + row / 8], right.b[half], c[at]);
      }
    }
  }
}
static inline void mma_u8(int (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
  multiply(c, {{a[0], a[1], a[2], a[3]}, {b0, b1}}, 2, dot_unsigned);
}
static inline void mma_s8(int (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
  multiply(c, {{a[0], a[1], a[2], a[3]}, {b0, b1}}, 2, dot_signed);
}
static inline void mma_s8_k16(int (&c)[4], u32 a0, u32 a1, u32 b0) {
  multiply(c, {{a0, a1, 0, 0}, {b0, 0}}, 1, dot_signed);
}
static inline void mma_f16(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
  multiply(c, {{a[0], a[1], a[2], a[3]}, {b0, b1}}, 2, [](u32 x, u32 y, float sum) {
    sum += from_half(static_cast<u16>(x)) * from_half(static_cast<u16>(y));
    return sum + from_half(static_cast<u16>(x >> 16)) * from_half(static_cast<u16>(y >> 16));
  });
}
static inline void load_transposed(u32& r0, u32& r1, const void* row) {
  const auto rows = simt::exchange(row);
  const u32 lane = threadIdx.x % 32;
  const auto element = [&](u32 matrix, u32 at) {
    return static_cast<u32>(static_cast<const u16*>(rows[matrix * 8 + at])[lane / 4]);
  };
  r0 = element(0, lane % 4 * 2) | element(0, lane % 4 * 2 + 1) << 16;
  r1 = element(1, lane % 4 * 2) | element(1, lane % 4 * 2 + 1) << 16;
}
// A copy is late: done when it is waited for, so that reading too early shows. One list for each thread.
struct Copy { void* to; const void* from; u32 group; };
static std::vector<Copy> copies[simt::MAX_THREADS];
static u32 groups[simt::MAX_THREADS];
static inline void copy_async(void* to, const void* from) { copies[threadIdx.x].push_back({to, from, groups[threadIdx.x]}); }
static inline void copies_commit() { ++groups[threadIdx.x]; }
template <int PENDING> static inline void copies_wait() {
  auto& mine = copies[threadIdx.x];
  std::vector<Copy> later;
  for (const Copy& copy : mine) {
    if (copy.group + PENDING < groups[threadIdx.x]) memcpy(copy.to, copy.from, 16);
    else later.push_back(copy);
  }
  mine.swap(later);
}
