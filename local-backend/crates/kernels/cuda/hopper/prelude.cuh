// Hopper's own instructions (sm_90a), each as a function with one meaning: barriers in shared memory that count bytes, bulk copies
// by tensor maps, the multiplies of a warpgroup. `simt.h` beside this has the same functions for the CPU.
//
// **Never run on a GPU yet**: compiled to machine code, and run on the CPU.

#ifndef SIMT
struct alignas(128) TensorMap { u64 opaque[16]; };

DEVICE u32 shared_address(const void* shared) { return static_cast<u32>(__cvta_generic_to_shared(shared)); }
DEVICE void phase_init(u64* barrier, u32 count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" : : "r"(shared_address(barrier)), "r"(count) : "memory");
}
DEVICE void phase_arrive(u64* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" : : "r"(shared_address(barrier)) : "memory");
}
// One arrival, and so many bytes that are to come before the phase is over.
DEVICE void phase_expect(u64* barrier, u32 bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" : : "r"(shared_address(barrier)), "r"(bytes) : "memory");
}
DEVICE bool phase_is_over(u32 address, u32 parity) {
  u32 is_over;
  asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
               : "=r"(is_over) : "r"(address), "r"(parity) : "memory");
  return is_over != 0;
}
// Waits until the phase of this parity is over. After ten seconds the launch fails, rather than the process standing still.
DEVICE void phase_wait(u64* barrier, u32 parity) {
  const u32 address = shared_address(barrier);
  u64 began = 0;
  while (!phase_is_over(address, parity)) {
    u64 now;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
    if (began == 0) began = now;
    if (now - began > 10000000000ull) asm volatile("trap;");
  }
}
// Barriers just initialized are seen by the copy engine.
DEVICE void fence_barriers() { asm volatile("fence.mbarrier_init.release.cluster;" : : : "memory"); }
// Ordinary writes to shared memory are seen by the tensor cores and the copy engine.
DEVICE void fence_async() { asm volatile("fence.proxy.async.shared::cta;" : : : "memory"); }
template <int COUNT> DEVICE void more_registers() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" : : "n"(COUNT)); }
template <int COUNT> DEVICE void fewer_registers() { asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" : : "n"(COUNT)); }
DEVICE void sync_named(u32 name, u32 threads) { asm volatile("bar.sync %0, %1;" : : "r"(name), "r"(threads) : "memory"); }
DEVICE void copy_bulk(void* to, const void* from, u32 bytes, u64* barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
               : : "r"(shared_address(to)), "l"(from), "r"(bytes), "r"(shared_address(barrier)) : "memory");
}
// A box of a tensor of two, three or four dimensions; zero where it lies outside.
DEVICE void copy_tile(void* to, const TensorMap& map, u64* barrier, int x, int y) {
  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];"
               : : "r"(shared_address(to)), "l"(&map), "r"(shared_address(barrier)), "r"(x), "r"(y) : "memory");
}
DEVICE void copy_tile(void* to, const TensorMap& map, u64* barrier, int x, int y, int z) {
  asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], [%2];"
               : : "r"(shared_address(to)), "l"(&map), "r"(shared_address(barrier)), "r"(x), "r"(y), "r"(z) : "memory");
}
DEVICE void copy_tile(void* to, const TensorMap& map, u64* barrier, int x, int y, int z, int t) {
  asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6}], [%2];"
               : : "r"(shared_address(to)), "l"(&map), "r"(shared_address(barrier)), "r"(x), "r"(y), "r"(z), "r"(t) : "memory");
}
// Registers and shared memory written before are those that the next multiplies take.
DEVICE void group_fence() { asm volatile("wgmma.fence.sync.aligned;" : : : "memory"); }
DEVICE void group_commit() { asm volatile("wgmma.commit_group.sync.aligned;" : : : "memory"); }
template <int PENDING> DEVICE void group_wait() { asm volatile("wgmma.wait_group.sync.aligned %0;" : : "n"(PENDING) : "memory"); }

// d (64 × N) = a (64 × 16) · b (16 × N), with `adds` on top of what is there, by a warpgroup, bf16 or f16 in and f32 out; `b` by descriptor, TURNED if its columns lie
// together, `a` by descriptor or in registers as for a warp's multiply. Not done before `group_wait`.
template <int N, bool HALF, bool TURNED> DEVICE void group_multiply(float (&d)[N / 2], u64 a, u64 b, u32 adds);
template <int N, bool HALF, bool TURNED> DEVICE void group_multiply(float (&d)[N / 2], const u32 (&a)[4], u64 b, u32 adds);
#define D4(o) "+f"(d[o]), "+f"(d[o + 1]), "+f"(d[o + 2]), "+f"(d[o + 3])
#define D16(o) D4(o), D4(o + 4), D4(o + 8), D4(o + 12)
#define D32(o) D16(o), D16(o + 16)
#define D64(o) D32(o), D32(o + 32)
#define R32 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15," \
       "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define R64 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15," \
       "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31," \
       "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47," \
       "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define R128 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15," \
       "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31," \
       "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47," \
       "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63," \
       "%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79," \
       "%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95," \
       "%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111," \
       "%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127"
#define MULTIPLY(n, regs, results, type, half, turned, i0, i1, i2, i3, i4, i5)                                          \
  template <> DEVICE void group_multiply<n, half, turned>(float (&d)[n / 2], u64 a, u64 b, u32 adds) {                  \
    asm volatile("{ .reg .pred p; setp.ne.b32 p, %" #i2 ", 0; wgmma.mma_async.sync.aligned.m64n" #n "k16.f32." type "." type " " \
                 "{" regs "}, %" #i0 ", %" #i1 ", p, 1, 1, 0, " #turned "; }" : results : "l"(a), "l"(b), "r"(adds));  \
  }                                                                                                                     \
  template <> DEVICE void group_multiply<n, half, turned>(float (&d)[n / 2], const u32 (&a)[4], u64 b, u32 adds) {      \
    asm volatile("{ .reg .pred p; setp.ne.b32 p, %" #i5 ", 0; wgmma.mma_async.sync.aligned.m64n" #n "k16.f32." type "." type " " \
                 "{" regs "}, {%" #i0 ",%" #i1 ",%" #i2 ",%" #i3 "}, %" #i4 ", p, 1, 1, " #turned "; }"                \
                 : results : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(adds));                            \
  }
#define RESULTS128 D64(0)
MULTIPLY(128, R64, RESULTS128, "bf16", 0, 0, 64, 65, 66, 67, 68, 69)
#define RESULTS256 D64(0), D64(64)
MULTIPLY(256, R128, RESULTS256, "bf16", 0, 0, 128, 129, 130, 131, 132, 133)
#define RESULTS64 D32(0)
MULTIPLY(64, R32, RESULTS64, "f16", 1, 0, 32, 33, 34, 35, 36, 37)
MULTIPLY(128, R64, RESULTS128, "f16", 1, 0, 64, 65, 66, 67, 68, 69)
MULTIPLY(64, R32, RESULTS64, "f16", 1, 1, 32, 33, 34, 35, 36, 37)
MULTIPLY(128, R64, RESULTS128, "f16", 1, 1, 64, 65, 66, 67, 68, 69)
MULTIPLY(256, R128, RESULTS256, "f16", 1, 1, 128, 129, 130, 131, 132, 133)
#endif

// What a multiply is told of an operand in shared memory that lies in rows of 128 bytes, swizzled: its address, and how far apart
// eight rows (1,024 bytes), and for a turned operand 64 columns, lie.
DEVICE u64 operand(const void* shared, u32 leading) {
  const u64 start = (shared_address(shared) & 0x3ffff) >> 4;
  return start | static_cast<u64>(leading >> 4) << 16 | static_cast<u64>(1024 >> 4) << 32 | static_cast<u64>(1) << 62;
}

// Where swizzled rows may begin; a launch asks for as many bytes more.
#define SWIZZLE_BYTES 1024
DEVICE u8* aligned_arena() {
  u8* bytes = reinterpret_cast<u8*>(arena);
  return bytes + (SWIZZLE_BYTES - (shared_address(bytes) & (SWIZZLE_BYTES - 1))) % SWIZZLE_BYTES;
}
