//! A real card, through the driver's interface. Never run yet.

use super::cache::DiskCache;
use super::driver::{Gemm, Hopper, Launch, TensorMap, TensorShape};
use super::{
    Arch, Compiled, Compiler, CudaError, Driver, Facts, GraphId, HOPPER_MODULES, Libraries, MODULES, Module,
    gemm,
};
use cudarc::driver::{result, sys};
use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

fn failed(what: &str) -> impl Fn(result::DriverError) -> CudaError + '_ {
    move |error| {
        let name = error.error_name().map_or_else(
            |_| format!("{error:?}"),
            |name| name.to_string_lossy().into_owned(),
        );
        CudaError::device(what, name)
    }
}

/// Recordings since memory was last freed, and how many there were before.
#[derive(Default)]
struct Graphs {
    forgotten: usize,
    all: Vec<(sys::CUgraph, sys::CUgraphExec)>,
}

/// A card with its kernels loaded and one stream of work.
pub struct Card {
    device: sys::CUdevice,
    context: sys::CUcontext,
    stream: sys::CUstream,
    functions: HashMap<&'static str, sys::CUfunction>,
    modules: Vec<sys::CUmodule>,
    facts: Facts,
    graphs: Mutex<Graphs>,
    library: Option<gemm::Library>,
}

// SAFETY: the handles are the driver's, which may be called from any thread once the context is made current there, and every
// method does that first.
unsafe impl Send for Card {}
// SAFETY: as above; the driver locks what it shares.
unsafe impl Sync for Card {}

impl Card {
    /// Opens card number `ordinal`. `kernels` is a folder for compiled kernels.
    ///
    /// # Errors
    /// No driver, no such card, one too old, or no compiler for the kernels.
    pub fn open(
        ordinal: u32,
        libraries: &Libraries,
        kernels: Option<&Path>,
    ) -> Result<Arc<dyn Driver>, CudaError> {
        libraries.driver()?;
        let nothing = |error: result::DriverError| {
            CudaError::NoDevice(format!("the driver says {}", failed("start")(error)))
        };
        result::init().map_err(nothing)?;
        let count = result::device::get_count().map_err(nothing)?;
        let number = i32::try_from(ordinal).unwrap_or(i32::MAX);
        if number >= count {
            return Err(CudaError::NoDevice(format!(
                "card {ordinal} was asked for, the driver knows {count}"
            )));
        }
        let device = result::device::get(number).map_err(nothing)?;
        // SAFETY: the device was just given by the driver; the context is kept until `drop`.
        let context = unsafe {
            let context = result::primary_ctx::retain(device).map_err(failed("taking the card"))?;
            result::ctx::set_current(context).map_err(failed("taking the card"))?;
            context
        };
        let mut card = Self {
            device,
            context,
            stream: result::stream::create(result::stream::StreamKind::NonBlocking)
                .map_err(failed("making a stream"))?,
            functions: HashMap::new(),
            modules: Vec::new(),
            facts: facts(device)?,
            graphs: Mutex::default(),
            library: None,
        };
        card.load(libraries, kernels)?;
        if libraries.has_cublaslt() {
            card.library = Some(gemm::Library::new(card.allocate(gemm::WORKSPACE)?)?);
            card.facts.has_gemm = true;
        }
        Ok(Arc::new(card))
    }

    fn load(&mut self, libraries: &Libraries, kernels: Option<&Path>) -> Result<(), CudaError> {
        let Some(arch) = Arch::of_capability(self.facts.capability) else {
            return Err(CudaError::NoDevice(format!(
                "{} has compute capability {}.{}; 8.0 or newer is needed",
                self.facts.name,
                self.facts.capability / 10,
                self.facts.capability % 10
            )));
        };
        let compiler = Compiler::new(libraries)?;
        let cache = kernels.map(DiskCache::new);
        for (module, compiled) in MODULES
            .iter()
            .zip(compile(&compiler, &MODULES, arch, cache.as_ref()))
        {
            self.take(module, &compiled?, 0)?;
        }
        self.facts.hopper = if arch == Arch::HOPPER {
            // Without these everything still runs, so that an error only has its reason kept.
            match self.load_hopper(&compiler, cache.as_ref()) {
                Ok(()) => Hopper::Loaded,
                Err(error) => Hopper::Absent(format!("since Hopper's cannot be loaded: {error}")),
            }
        } else {
            Hopper::Absent(format!(
                "since the card is {arch} and the others are for {}",
                Arch::HOPPER
            ))
        };
        Ok(())
    }

    fn load_hopper(&mut self, compiler: &Compiler, cache: Option<&DiskCache>) -> Result<(), CudaError> {
        let attribute = sys::CUdevice_attribute_enum::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN;
        // SAFETY: the device was given by the driver.
        let shared = unsafe { result::device::get_attribute(self.device, attribute) }
            .map_err(failed("asking the card"))?;
        let compiled = compile(compiler, &HOPPER_MODULES, Arch::HOPPER, cache);
        for (module, compiled) in HOPPER_MODULES.iter().zip(compiled) {
            self.take(module, &compiled?, shared)?;
        }
        Ok(())
    }

    /// Loads a module's kernels, allowed so many bytes of shared memory beyond what all are (0: no more).
    fn take(&mut self, module: &Module, compiled: &Compiled, shared: i32) -> Result<(), CudaError> {
        // SAFETY: machine code that the compiler made for this card; the module is kept until `drop`.
        let loaded = unsafe { result::module::load_data(compiled.cubin.as_ptr().cast()) }
            .map_err(failed("loading kernels"))?;
        self.modules.push(loaded);
        for kernel in module.kernels {
            let name = CString::new(*kernel).map_err(|error| CudaError::device("a kernel's name", error))?;
            // SAFETY: the module was just loaded.
            let function = unsafe { result::module::get_function(loaded, name) }.map_err(failed(kernel))?;
            if shared > 0 {
                let most = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
                // SAFETY: the function was just given by the driver.
                unsafe { result::function::set_function_attribute(function, most, shared) }
                    .map_err(failed(kernel))?;
            }
            self.functions.insert(kernel, function);
        }
        Ok(())
    }

    /// Makes the context this thread's.
    fn enter(&self) -> Result<(), CudaError> {
        // SAFETY: the context is retained until `drop`.
        unsafe { result::ctx::set_current(self.context) }.map_err(failed("entering the card's context"))
    }

    /// Forgets every recording, once the work that uses them is done.
    fn forget(&self) {
        let mut graphs = self.graphs();
        if graphs.all.is_empty() || self.synchronize().is_err() {
            return;
        }
        graphs.forgotten += graphs.all.len();
        for (graph, runnable) in graphs.all.drain(..) {
            // SAFETY: made by the driver and destroyed only here. Nothing can be done about an error.
            unsafe {
                let _ = result::graph::exec_destroy(runnable);
                let _ = result::graph::destroy(graph);
            }
        }
    }

    fn graphs(&self) -> MutexGuard<'_, Graphs> {
        self.graphs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Machine code of each module. The compiler takes about a second for the larger files; all at once.
fn compile(
    compiler: &Compiler,
    modules: &[Module],
    arch: Arch,
    cache: Option<&DiskCache>,
) -> Vec<Result<Compiled, CudaError>> {
    std::thread::scope(|scope| {
        let work: Vec<_> = modules
            .iter()
            .map(|module| scope.spawn(move || compiler.compile_cached(module, arch, cache)))
            .collect();
        work.into_iter()
            .map(|work| {
                work.join()
                    .unwrap_or_else(|_| Err(CudaError::device("compiling kernels", "a thread ended")))
            })
            .collect()
    })
}

fn facts(device: sys::CUdevice) -> Result<Facts, CudaError> {
    use sys::CUdevice_attribute_enum as Attribute;
    let ask = |attribute| {
        // SAFETY: the device was given by the driver.
        unsafe { result::device::get_attribute(device, attribute) }.map_err(failed("asking the card"))
    };
    let major = ask(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    let minor = ask(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
    // Kilohertz and bits; two transfers a cycle.
    let clock = ask(Attribute::CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE).unwrap_or(0);
    let bus = ask(Attribute::CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH).unwrap_or(0);
    let (free, total) = result::mem_get_info().map_err(failed("asking for memory"))?;
    Ok(Facts {
        name: result::device::get_name(device).map_err(failed("asking the card"))?,
        capability: (major * 10 + minor).unsigned_abs(),
        free_bytes: free as u64,
        total_bytes: total as u64,
        bandwidth: u64::from(clock.unsigned_abs()) * 1000 * u64::from(bus.unsigned_abs()) / 8 * 2,
        has_gemm: false,
        processors: ask(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?.unsigned_abs(),
        hopper: Hopper::default(),
    })
}

// SAFETY: the driver gives each allocation an address of its own until it is freed.
unsafe impl Driver for Card {
    fn facts(&self) -> Facts {
        let mut facts = self.facts.clone();
        if self.enter().is_ok()
            && let Ok((free, _)) = result::mem_get_info()
        {
            facts.free_bytes = free as u64;
        }
        facts
    }

    fn allocate(&self, bytes: usize) -> Result<u64, CudaError> {
        self.enter()?;
        // SAFETY: the context is current.
        unsafe { result::malloc_sync(bytes) }.map_err(|error| {
            let problem = failed("memory")(error);
            CudaError::device(&format!("{bytes} bytes of the card's memory"), problem)
        })
    }

    unsafe fn free(&self, at: u64) {
        self.forget();
        if self.enter().is_ok() {
            // SAFETY: the caller's promise; freeing waits for work that may use it. Nothing can be done about an error.
            let _ = unsafe { result::free_sync(at) };
        }
    }

    unsafe fn upload(&self, to: u64, from: &[u8]) -> Result<(), CudaError> {
        self.enter()?;
        // SAFETY: the caller's promise. Memory that is not pinned is copied out before the call returns.
        unsafe { result::memcpy_htod_async(to, from, self.stream) }.map_err(failed("copying to the card"))
    }

    unsafe fn download(&self, from: u64, to: &mut [u8]) -> Result<(), CudaError> {
        self.enter()?;
        // SAFETY: the caller's promise, and `to` is not touched before the stream has been waited for.
        unsafe { result::memcpy_dtoh_async(to, from, self.stream) }
            .map_err(failed("copying from the card"))?;
        self.synchronize()
    }

    unsafe fn launch(&self, launch: &Launch<'_>) -> Result<(), CudaError> {
        self.enter()?;
        let Some(function) = self.functions.get(launch.kernel) else {
            return Err(CudaError::device(launch.kernel, "no such kernel"));
        };
        let [x, y, z] = launch.grid;
        // The driver copies the one argument out before it returns, and does not write to it.
        let mut args = [launch.args.as_ptr().cast_mut().cast::<c_void>()];
        // SAFETY: the caller's promise about the argument.
        unsafe {
            result::launch_kernel(
                *function,
                (x, y, z),
                (launch.threads, 1, 1),
                launch.shared,
                self.stream,
                &mut args,
            )
        }
        .map_err(failed(launch.kernel))
    }

    unsafe fn gemm(&self, gemm: &Gemm) -> Result<bool, CudaError> {
        self.enter()?;
        let Some(library) = &self.library else {
            return Ok(false);
        };
        // SAFETY: the caller's promise.
        unsafe { library.multiply(gemm, self.stream.cast()) }.map(|()| true)
    }

    fn tensor_map(&self, shape: &TensorShape) -> Result<TensorMap, CudaError> {
        self.enter()?;
        let rank = shape.sizes.len();
        if !(1..=5).contains(&rank) || shape.strides.len() + 1 != rank || shape.extent.len() != rank {
            return Err(CudaError::Shape(format!("no tensor map describes {shape:?}")));
        }
        let mut map = TensorMap::default();
        let steps = [1u32; 5];
        // SAFETY: the lists have as many numbers as the rank says, just checked; the map is as large and aligned as the driver's.
        unsafe {
            sys::cuTensorMapEncodeTiled(
                (&raw mut map).cast(),
                // The bits are copied as they are, so that f16 goes by the same name.
                sys::CUtensorMapDataType_enum::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                rank as u32,
                shape.at as *mut c_void,
                shape.sizes.as_ptr(),
                shape.strides.as_ptr(),
                shape.extent.as_ptr(),
                steps.as_ptr(),
                sys::CUtensorMapInterleave_enum::CU_TENSOR_MAP_INTERLEAVE_NONE,
                sys::CUtensorMapSwizzle_enum::CU_TENSOR_MAP_SWIZZLE_128B,
                sys::CUtensorMapL2promotion_enum::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                sys::CUtensorMapFloatOOBfill_enum::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
            .result()
        }
        .map_err(failed("describing a tensor"))?;
        Ok(map)
    }

    fn synchronize(&self) -> Result<(), CudaError> {
        self.enter()?;
        // SAFETY: the stream lives until `drop`.
        unsafe { result::stream::synchronize(self.stream) }.map_err(failed("the card's work"))
    }

    fn record(&self) -> Result<(), CudaError> {
        self.enter()?;
        let mode = sys::CUstreamCaptureMode_enum::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: as above.
        unsafe { result::stream::begin_capture(self.stream, mode) }.map_err(failed("recording"))
    }

    fn recorded(&self) -> Result<GraphId, CudaError> {
        self.enter()?;
        // SAFETY: the stream lives; the graph is the driver's, kept until `forget`.
        let (graph, runnable) = unsafe {
            let graph = result::stream::end_capture(self.stream).map_err(failed("recording"))?;
            let flags = sys::CUgraphInstantiate_flags(0);
            let runnable = result::graph::instantiate(graph, flags).map_err(failed("making a graph"))?;
            (graph, runnable)
        };
        let mut graphs = self.graphs();
        graphs.all.push((graph, runnable));
        Ok(GraphId(graphs.forgotten + graphs.all.len() - 1))
    }

    fn replay(&self, graph: GraphId) -> Result<bool, CudaError> {
        self.enter()?;
        let graphs = self.graphs();
        let index = graph.0.checked_sub(graphs.forgotten);
        let Some((_, runnable)) = index.and_then(|index| graphs.all.get(index)) else {
            return Ok(false);
        };
        // SAFETY: the graph is kept until `forget`, and so is the memory it uses: freeing any forgets it.
        unsafe { result::graph::launch(*runnable, self.stream) }.map_err(failed("a graph"))?;
        Ok(true)
    }
}

impl Drop for Card {
    fn drop(&mut self) {
        self.forget();
        self.library = None;
        // SAFETY: each was made in `open` and is given back only here. Nothing can be done about an error.
        unsafe {
            for module in &self.modules {
                let _ = result::module::unload(*module);
            }
            let _ = result::stream::destroy(self.stream);
            let _ = result::primary_ctx::release(self.device);
        }
    }
}
