//! Finding NVIDIA's libraries. The driver's own comes with the driver; the compiler (NVRTC) and cuBLASLt may lie anywhere.

use super::CudaError;
use cudarc::{cublaslt, driver, nvrtc};
use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
use std::path::{Path, PathBuf};

const NVRTC: [&str; 4] = [
    "libnvrtc-builtins.so.13.0",
    "libnvrtc.so.13",
    "libnvrtc-builtins.so.12.9",
    "libnvrtc.so.12",
];
const CUBLASLT: [&str; 2] = ["libcublasLt.so.13", "libcublasLt.so.12"];
const HINT: &str = "`deploy/fetch-nvrtc.sh` fetches it; give the folder it prints as --cuda-root, or install CUDA 12.9 or 13";

/// Where libraries are looked for.
#[derive(Clone, Debug)]
pub struct Libraries {
    folders: Vec<PathBuf>,
}

impl Libraries {
    /// In `root` or its `lib` if given; else, after the loader's own places, where CUDA's installer puts them.
    #[must_use]
    pub fn new(root: Option<&Path>) -> Self {
        let roots = match root {
            Some(root) => vec![root.to_owned()],
            None => vec![PathBuf::from("/usr/local/cuda")],
        };
        let ends = ["lib", "lib64", "."];
        let folders = roots
            .iter()
            .flat_map(|root| ends.map(|end| root.join(end)))
            .filter(|folder| folder.is_dir())
            .collect();
        Self { folders }
    }

    /// Opens what is there of `names` so that later opening by name alone finds it.
    fn open(&self, names: &[&str]) {
        for folder in &self.folders {
            for file in names
                .iter()
                .map(|name| folder.join(name))
                .filter(|file| file.is_file())
            {
                // SAFETY: NVIDIA's libraries, from a folder that the operator named or the system's; their initializers ask
                // nothing of us. Kept open, since functions of theirs are used as long as the process runs.
                if let Ok(library) = unsafe { Library::open(Some(&file), RTLD_NOW | RTLD_GLOBAL) } {
                    std::mem::forget(library);
                }
            }
        }
    }

    /// # Errors
    /// The driver is not installed.
    pub(super) fn driver(&self) -> Result<(), CudaError> {
        // SAFETY: it only tries to open the library.
        if unsafe { driver::sys::is_culib_present() } {
            return Ok(());
        }
        Err(CudaError::NoDevice(
            "the driver's library (libcuda.so.1) was not found; install NVIDIA's driver, or use --device cpu"
                .into(),
        ))
    }

    /// # Errors
    /// The compiler is not there.
    pub(super) fn nvrtc(&self) -> Result<(), CudaError> {
        self.open(&NVRTC);
        // SAFETY: as above.
        if unsafe { nvrtc::sys::is_culib_present() } {
            return Ok(());
        }
        Err(CudaError::NoLibrary {
            library: "NVIDIA's runtime compiler (libnvrtc)",
            hint: HINT.into(),
        })
    }

    /// Whether cuBLASLt is there; without it large batches are slower.
    pub(super) fn has_cublaslt(&self) -> bool {
        self.open(&CUBLASLT);
        // SAFETY: as above.
        unsafe { cublaslt::sys::is_culib_present() }
    }
}
