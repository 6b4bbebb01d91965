// The shim's entry: one launch, block after block. After `simt.h` and `hopper/simt.h`.

extern "C" void simt_order(u32 order) { simt::machine.order = order; }

// Runs a kernel over a grid; null, or what went wrong.
extern "C" const char* simt_launch(const char* name, const u32* grid, u32 threads, u32 shared, const void* args) {
  auto& machine = simt::machine;
  const auto found = simt::registry().find(name);
  const auto fail = [&](const char* what) {
    snprintf(machine.error, sizeof machine.error, "%s at block (%u, %u, %u): %s", name, blockIdx.x, blockIdx.y, blockIdx.z, what);
    for (auto& fibre : machine.fibres) fibre.is_begun = false;
    for (auto& list : copies) list.clear();
    simt::forget_asynchronous();
    return machine.error;
  };
  if (found == simt::registry().end()) return fail("no such kernel");
  if (threads == 0 || threads > simt::MAX_THREADS || threads % 32) return fail("threads must be whole warps, up to 1,024");
  if (shared + 256 > simt::ARENA) return fail("more shared memory than there is");
  machine.shared = shared;
  machine.problem = nullptr;
  machine.kernel = found->second.call;
  machine.args = args;
  blockDim = {threads, 1, 1};
  gridDim = {grid[0], grid[1], grid[2]};
  u8* bytes = reinterpret_cast<u8*>(arena);
  for (u32 z = 0; z < grid[2]; ++z) {
    for (u32 y = 0; y < grid[1]; ++y) {
      for (u32 x = 0; x < grid[0]; ++x) {
        blockIdx = {x, y, z};
        memset(bytes, 0xff, shared + 256);
        if (!simt::run_block(threads)) {
          return fail(machine.problem ? machine.problem : "some threads wait in a barrier or collective that others never reach");
        }
        if (!simt::is_quiet()) return fail("copies or multiplies were under way when the block ended");
        for (u32 at = shared; at < shared + 256; ++at) {
          if (bytes[at] != 0xff) return fail("shared memory was written beyond what the launch asked for");
        }
      }
    }
  }
  return nullptr;
}
