//! A device that is the CPU: the kernels compiled by a C++ compiler after `cuda/simt.h`, for tests.
//!
//! Beside what the shim itself finds, memory begins as NaN, and a write outside of an allocation is found after the launch that did
//! it. Recordings are lists of launches.

use super::driver::{ELEMENT, Gemm, Hopper, Launch, TensorMap, TensorShape};
use super::{CudaError, Driver, Facts, GraphId, check, source};
use libloading::Library;
use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_char};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Bytes around each allocation that nobody may write.
const GUARD: usize = 256;
const GUARD_BYTE: u8 = 0xa5;

/// In which order the threads of a block run between barriers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    Forwards,
    Backwards,
    Mixed,
}

type LaunchFn = unsafe extern "C" fn(*const c_char, *const u32, u32, u32, *const u8) -> *const c_char;

/// Compiled kernels in this process.
pub struct Simt {
    launch: LaunchFn,
    state: Mutex<State>,
    /// Keeps `launch` valid.
    _library: Library,
}

#[derive(Default)]
struct State {
    /// By address of what the caller sees; the guards lie around it.
    allocations: BTreeMap<u64, Box<[Aligned]>>,
    sizes: BTreeMap<u64, usize>,
    recording: Option<Vec<Recorded>>,
    recordings: Vec<Vec<Recorded>>,
    /// How many recordings were forgotten.
    forgotten: usize,
}

#[derive(Clone, Copy)]
#[repr(C, align(256))]
struct Aligned([u8; 256]);

#[derive(Clone)]
struct Recorded {
    kernel: String,
    grid: [u32; 3],
    threads: u32,
    shared: u32,
    args: Vec<u8>,
}

impl Simt {
    /// Compiles the kernels with `g++` into `folder` (once; found there by the source's sum) and opens them.
    ///
    /// # Errors
    /// There is no compiler, it refuses, or its product cannot be opened.
    pub fn build(folder: &Path, order: Order) -> Result<Arc<dyn Driver>, CudaError> {
        Self::build_changed(folder, order, &[])
    }

    /// As [`Simt::build`], with kernels in which each first text is replaced by the second: to see that a mistake is found.
    ///
    /// # Errors
    /// As there, or a text is not in the kernels.
    pub fn build_changed(
        folder: &Path,
        order: Order,
        changes: &[(&str, &str)],
    ) -> Result<Arc<dyn Driver>, CudaError> {
        let mut text = source::for_simt();
        for (from, to) in changes {
            check(text.contains(from), || format!("`{from}` is not in the kernels"))?;
            text = text.replace(from, to);
        }
        let file = folder.join(format!("simt-{}.so", &super::cache::sum(&[&text])[..24]));
        if !file.exists() {
            // One compiler is enough for several processes that start at once.
            let failed = |error| CudaError::device("waiting for the kernels to be compiled", error);
            std::fs::create_dir_all(folder).map_err(failed)?;
            let turn = std::fs::File::create(folder.join("simt.lock")).map_err(failed)?;
            turn.lock().map_err(failed)?;
            if !file.exists() {
                compile(&text, folder, &file)?;
            }
        }
        Self::open(&file, order)
    }

    fn open(file: &Path, order: Order) -> Result<Arc<dyn Driver>, CudaError> {
        let failed = |error: libloading::Error| CudaError::device("opening the kernels for the CPU", error);
        // SAFETY: it was compiled from this crate's own source; its initializers fill a table.
        let library = unsafe { Library::new(file) }.map_err(failed)?;
        // SAFETY: the types are those of the two functions in `simt.h`.
        let (launch, set_order) = unsafe {
            let launch = *library.get::<LaunchFn>(b"simt_launch\0").map_err(failed)?;
            let order = *library
                .get::<unsafe extern "C" fn(u32)>(b"simt_order\0")
                .map_err(failed)?;
            (launch, order)
        };
        let _one = one_at_a_time();
        // SAFETY: it sets a number; nobody else is inside, see `one_at_a_time`.
        unsafe { set_order(order as u32) };
        Ok(Arc::new(Self {
            launch,
            state: Mutex::default(),
            _library: library,
        }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self, state: &State, launch: &Recorded) -> Result<(), CudaError> {
        let _one = one_at_a_time();
        let name =
            CString::new(launch.kernel.as_str()).map_err(|error| CudaError::device("launch", error))?;
        // SAFETY: the caller of `Driver::launch` vouches for the arguments; the shim copies them out before it returns, and its
        // message is a static buffer that nobody else writes meanwhile, see `one_at_a_time`.
        let problem = unsafe {
            let message = (self.launch)(
                name.as_ptr(),
                launch.grid.as_ptr(),
                launch.threads,
                launch.shared,
                launch.args.as_ptr(),
            );
            (!message.is_null()).then(|| CStr::from_ptr(message).to_string_lossy().into_owned())
        };
        if let Some(problem) = problem {
            return Err(CudaError::device("on the CPU", problem));
        }
        state.check_guards(&launch.kernel)
    }
}

/// The shim's fibres and tables are one to a process.
fn one_at_a_time() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn compile(text: &str, folder: &Path, file: &Path) -> Result<(), CudaError> {
    let failed = |what: &str, error: &dyn std::fmt::Display| CudaError::device(what, error);
    // Under a name of this process, and moved when it is whole.
    let own = |end: &str| -> PathBuf { folder.join(format!("simt-{}.{end}", std::process::id())) };
    let (source, built) = (own("cpp"), own("so"));
    std::fs::write(&source, text).map_err(|error| failed("writing the kernels", &error))?;
    let output = Command::new("g++")
        .args([
            "-std=c++17",
            "-O2",
            "-march=native",
            "-shared",
            "-fPIC",
            "-ffp-contract=off",
        ])
        .args([
            "-U_FORTIFY_SOURCE",
            "-fno-stack-protector",
            "-Wall",
            "-Wno-unknown-pragmas",
        ])
        .arg(&source)
        .arg("-o")
        .arg(&built)
        .output()
        .map_err(|error| failed("g++ (Debian: apt-get install g++)", &error))?;
    let _ = std::fs::remove_file(&source);
    if !output.status.success() {
        let log = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(CudaError::Compile {
            file: "the kernels for the CPU".into(),
            arch: "g++".into(),
            log,
        });
    }
    std::fs::rename(&built, file).map_err(|error| failed("keeping the kernels", &error))
}

impl State {
    fn check_guards(&self, kernel: &str) -> Result<(), CudaError> {
        for (at, memory) in &self.allocations {
            let size = self.sizes[at];
            let bytes = memory.as_flattened_bytes();
            let is_whole = |range: &[u8]| range.iter().all(|byte| *byte == GUARD_BYTE);
            if !is_whole(&bytes[..GUARD]) || !is_whole(&bytes[GUARD + size..]) {
                let problem = format!("{kernel} wrote outside of an allocation of {size} bytes");
                return Err(CudaError::device("on the CPU", problem));
            }
        }
        Ok(())
    }
}

trait Flattened {
    fn as_flattened_bytes(&self) -> &[u8];
}

impl Flattened for Box<[Aligned]> {
    fn as_flattened_bytes(&self) -> &[u8] {
        // SAFETY: an array of arrays of bytes without holes.
        unsafe { std::slice::from_raw_parts(self.as_ptr().cast(), self.len() * 256) }
    }
}

// SAFETY: an allocation is a box of its own, kept until `free`.
unsafe impl Driver for Simt {
    fn facts(&self) -> Facts {
        Facts {
            name: "the CPU, through the SIMT shim".into(),
            free_bytes: 1 << 30,
            total_bytes: 1 << 30,
            processors: 3,
            hopper: Hopper::Loaded,
            ..Facts::default()
        }
    }

    fn allocate(&self, bytes: usize) -> Result<u64, CudaError> {
        // Contents begin as NaN, and the rest of the last row belongs to the guard.
        let rows = bytes.div_ceil(256) + 2;
        let mut memory = vec![Aligned([GUARD_BYTE; 256]); rows].into_boxed_slice();
        let start = memory.as_mut_ptr().cast::<u8>();
        // SAFETY: `rows` was reckoned to hold the guard and so many bytes.
        let at = unsafe {
            std::ptr::write_bytes(start.add(GUARD), 0xff, bytes);
            start.add(GUARD) as u64
        };
        let mut state = self.state();
        state.allocations.insert(at, memory);
        state.sizes.insert(at, bytes);
        Ok(at)
    }

    unsafe fn free(&self, at: u64) {
        let mut state = self.state();
        state.allocations.remove(&at);
        state.sizes.remove(&at);
        state.forgotten += state.recordings.len();
        state.recordings.clear();
    }

    unsafe fn upload(&self, to: u64, from: &[u8]) -> Result<(), CudaError> {
        if self.state().recording.is_some() {
            return Err(CudaError::device(
                "upload",
                "a recording is made of launches only",
            ));
        }
        // SAFETY: the caller says that the bytes are allocated.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to as *mut u8, from.len()) };
        Ok(())
    }

    unsafe fn download(&self, from: u64, to: &mut [u8]) -> Result<(), CudaError> {
        // SAFETY: the caller says that the bytes are allocated.
        unsafe { std::ptr::copy_nonoverlapping(from as *const u8, to.as_mut_ptr(), to.len()) };
        Ok(())
    }

    unsafe fn launch(&self, launch: &Launch<'_>) -> Result<(), CudaError> {
        let launch = Recorded {
            kernel: launch.kernel.to_owned(),
            grid: launch.grid,
            threads: launch.threads,
            shared: launch.shared,
            args: launch.args.to_vec(),
        };
        let mut state = self.state();
        if let Some(recording) = &mut state.recording {
            recording.push(launch);
            return Ok(());
        }
        self.run(&state, &launch)
    }

    unsafe fn gemm(&self, _gemm: &Gemm) -> Result<bool, CudaError> {
        Ok(false)
    }

    /// As `hopper/simt.h` reads it; what a card would refuse is refused.
    fn tensor_map(&self, shape: &TensorShape) -> Result<TensorMap, CudaError> {
        let rank = shape.sizes.len();
        let is_sound = (1..=5).contains(&rank)
            && shape.strides.len() + 1 == rank
            && shape.extent.len() == rank
            && shape.at.is_multiple_of(16)
            && shape.strides.iter().all(|stride| stride.is_multiple_of(16))
            && shape.extent.iter().all(|extent| (1..=256).contains(extent))
            && u64::from(shape.extent[0]) * ELEMENT <= 128;
        check(is_sound, || format!("no tensor map describes {shape:?}"))?;
        let mut map = TensorMap::default();
        map.0[0] = shape.at;
        map.0[1] = rank as u64 | ELEMENT << 8;
        map.0[2..2 + rank].copy_from_slice(&shape.sizes);
        map.0[7..6 + rank].copy_from_slice(&shape.strides);
        for (at, extent) in shape.extent.iter().enumerate() {
            map.0[11 + at] = u64::from(*extent);
        }
        Ok(map)
    }

    fn synchronize(&self) -> Result<(), CudaError> {
        Ok(())
    }

    fn record(&self) -> Result<(), CudaError> {
        self.state().recording = Some(Vec::new());
        Ok(())
    }

    fn recorded(&self) -> Result<GraphId, CudaError> {
        let mut state = self.state();
        let recording = state.recording.take().unwrap_or_default();
        state.recordings.push(recording);
        Ok(GraphId(state.forgotten + state.recordings.len() - 1))
    }

    fn replay(&self, graph: GraphId) -> Result<bool, CudaError> {
        let state = self.state();
        let index = graph.0.checked_sub(state.forgotten);
        let Some(launches) = index.and_then(|index| state.recordings.get(index)) else {
            return Ok(false);
        };
        launches.iter().try_for_each(|launch| self.run(&state, launch))?;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn launch(shared: u32, words: u64) -> Result<(), CudaError> {
        let folder = std::env::temp_dir().join("tollgate-simt");
        let driver = Simt::build(&folder, Order::Forwards).unwrap_or_else(|error| panic!("{error}"));
        let at = driver.allocate(4 * 1000).unwrap();
        // `FillArgs` and `NormArgs` as bytes.
        let mut fill = Vec::new();
        fill.extend([at, words].iter().flat_map(|number| number.to_le_bytes()));
        fill.extend([1u32, 2, 7, 0].iter().flat_map(|number| number.to_le_bytes()));
        let mut norm = Vec::new();
        norm.extend([at, at, 0, at, at].iter().flat_map(|number| number.to_le_bytes()));
        norm.extend([32u32, 0].iter().flat_map(|number| number.to_le_bytes()));
        let (kernel, args) = if shared > 0 {
            ("fill", &fill)
        } else {
            ("norm_add", &norm)
        };
        let launch = Launch {
            kernel,
            grid: [1, 1, 1],
            threads: 256,
            shared,
            args,
        };
        // SAFETY: writes outside of the allocation stay within its guards.
        let done = unsafe { driver.launch(&launch) };
        // SAFETY: nobody uses it any more.
        unsafe { driver.free(at) };
        done
    }

    #[test]
    fn writes_outside_of_an_allocation_are_found() {
        launch(128, 1000).unwrap();
        let error = launch(128, 1001).unwrap_err().to_string();
        assert!(error.contains("fill wrote outside"), "{error}");
    }

    #[test]
    fn more_shared_memory_than_asked_for_is_found() {
        let error = launch(0, 0).unwrap_err().to_string();
        assert!(error.contains("beyond what the launch asked for"), "{error}");
    }
}
