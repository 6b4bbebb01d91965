//! From a file of kernels to machine code for one architecture, by NVIDIA's runtime compiler. Needs no card.

use super::cache::{DiskCache, sum};
use super::{CudaError, Libraries, Module};
use cudarc::nvrtc::{result, sys};
use std::ffi::{CStr, CString};

/// An architecture of cards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arch(u32);

impl Arch {
    /// Ampere, the oldest that the kernels run on.
    pub const AMPERE: Self = Self(80);
    /// Hopper.
    pub const HOPPER: Self = Self(90);

    /// The architecture of a compute capability (as 90 for 9.0), if the kernels run on it.
    #[must_use]
    pub fn of_capability(capability: u32) -> Option<Self> {
        (capability >= Self::AMPERE.0).then_some(Self(capability))
    }
}

impl std::fmt::Display for Arch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Instructions of one generation alone are had under the name with an a.
        write!(f, "sm_{}{}", self.0, if self.0 == 90 { "a" } else { "" })
    }
}

/// Machine code of a module.
#[derive(Clone, Debug)]
pub struct Compiled {
    pub cubin: Vec<u8>,
    /// What the compiler said, with registers and spills of each kernel; empty if it came from the disk.
    pub log: String,
}

/// The runtime compiler, found.
#[derive(Clone, Debug)]
pub struct Compiler {
    version: String,
}

struct Program(sys::nvrtcProgram);

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: made by `create_program` and destroyed only here. Nothing can be done about an error.
        let _ = unsafe { result::destroy_program(self.0) };
    }
}

impl Program {
    fn log(&self) -> String {
        // SAFETY: the program lives.
        let log = unsafe { result::get_program_log(self.0) }.unwrap_or_default();
        let bytes: Vec<u8> = log
            .iter()
            .map(|letter| letter.cast_unsigned())
            .take_while(|byte| *byte != 0)
            .collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn cubin(&self) -> Result<Vec<u8>, CudaError> {
        let failed = |error| CudaError::device("reading the machine code", format!("{error:?}"));
        let mut size = 0usize;
        // SAFETY: the program lives and was compiled for a real architecture.
        unsafe { sys::nvrtcGetCUBINSize(self.0, &raw mut size).result() }.map_err(failed)?;
        let mut cubin = vec![0u8; size];
        // SAFETY: as above, and there is room for what was just said.
        unsafe { sys::nvrtcGetCUBIN(self.0, cubin.as_mut_ptr().cast()).result() }.map_err(failed)?;
        Ok(cubin)
    }
}

impl Compiler {
    /// # Errors
    /// The compiler's library is not there.
    pub fn new(libraries: &Libraries) -> Result<Self, CudaError> {
        libraries.nvrtc()?;
        let (mut major, mut minor) = (0, 0);
        // SAFETY: two places for two numbers.
        unsafe { sys::nvrtcVersion(&raw mut major, &raw mut minor).result() }
            .map_err(|error| CudaError::device("asking the compiler's version", format!("{error:?}")))?;
        Ok(Self {
            version: format!("{major}.{minor}"),
        })
    }

    /// The compiler's version, as 13.0.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Compiles a module.
    ///
    /// # Errors
    /// It does not compile; the error has the compiler's log.
    pub fn compile(&self, module: &Module, arch: Arch) -> Result<Compiled, CudaError> {
        self.compile_text(module.file, &module.assembled(), arch)
    }

    fn compile_text(&self, file: &str, text: &str, arch: Arch) -> Result<Compiled, CudaError> {
        let plain =
            |text: &str| CString::new(text).map_err(|error| CudaError::device("kernel source", error));
        // Both must outlive the program.
        let (source, name) = (plain(text)?, plain(file)?);
        let created: Result<_, _> = result::create_program(&source, Some(&name as &CStr));
        let program = Program(created.map_err(|error| CudaError::device("starting the compiler", error))?);
        // SAFETY: the program was just made.
        let compiled = unsafe { result::compile_program(program.0, &options(arch)) };
        let log = program.log();
        if let Err(error) = compiled {
            let log = if log.is_empty() { error.to_string() } else { log };
            return Err(CudaError::Compile {
                file: file.to_owned(),
                arch: arch.to_string(),
                log,
            });
        }
        let cubin = program.cubin()?;
        Ok(Compiled { cubin, log })
    }

    /// As [`Compiler::compile`], but looked up on disk first.
    pub(super) fn compile_cached(
        &self,
        module: &Module,
        arch: Arch,
        cache: Option<&DiskCache>,
    ) -> Result<Compiled, CudaError> {
        let text = module.assembled();
        let key = sum(&[&text, &options(arch).join(" "), &self.version]);
        if let Some(cubin) = cache.and_then(|cache| cache.load(&key)) {
            return Ok(Compiled {
                cubin,
                log: String::new(),
            });
        }
        let compiled = self.compile_text(module.file, &text, arch)?;
        if let Some(cache) = cache {
            cache.store(&key, &compiled.cubin);
        }
        Ok(compiled)
    }
}

fn options(arch: Arch) -> [String; 4] {
    [
        format!("--gpu-architecture={arch}"),
        "--std=c++17".into(),
        "-default-device".into(),
        "--ptxas-options=-v".into(),
    ]
}

#[cfg(test)]
mod tests {
    use super::super::{HOPPER_MODULES, MODULES, Module};
    use super::*;
    use std::path::Path;

    /// The compiler as `deploy/fetch-nvrtc.sh` fetches it. Where it was not fetched the tests fail and say so: one that passes
    /// without having compiled anything would tell of kernels that it has not seen.
    fn fetched() -> Compiler {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../.run/cuda");
        let problem = "the compiler for CUDA kernels is not there: `deploy/fetch-nvrtc.sh` fetches it (90 MB, needs no GPU)";
        assert!(root.join("version").exists(), "{problem}");
        Compiler::new(&Libraries::new(Some(&root))).unwrap_or_else(|error| panic!("{error}"))
    }

    fn compile_all(modules: &[Module], arch: Arch) {
        let compiler = fetched();
        for module in modules {
            let compiled = compiler
                .compile(module, arch)
                .unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(&compiled.cubin[..4], b"\x7fELF", "{} for {arch}", module.file);
            for slow in ["serialized", "setmaxnreg"] {
                assert!(!compiled.log.contains(slow), "{}: {}", module.file, compiled.log);
            }
            for kernel in module.kernels {
                let name = format!("Compiling entry function '{kernel}'");
                let Some((_, report)) = compiled.log.split_once(&name) else {
                    panic!("{kernel} is not in {} for {arch}", module.file);
                };
                let report: Vec<&str> = report.lines().skip(1).take(3).collect();
                assert!(
                    report
                        .iter()
                        .any(|line| line.contains("0 bytes stack frame, 0 bytes spill stores")),
                    "{kernel} spills registers on {arch}: {report:#?}"
                );
            }
        }
    }

    #[test]
    #[cfg_attr(not(target_os = "linux"), ignore = "the compiler is packaged for Linux only")]
    fn every_kernel_becomes_machine_code_for_ampere_without_a_spill() {
        compile_all(&MODULES, Arch::AMPERE);
    }

    #[test]
    #[cfg_attr(not(target_os = "linux"), ignore = "the compiler is packaged for Linux only")]
    fn every_kernel_becomes_machine_code_for_hopper_without_a_spill() {
        compile_all(&MODULES, Arch::HOPPER);
    }

    #[test]
    #[cfg_attr(not(target_os = "linux"), ignore = "the compiler is packaged for Linux only")]
    fn the_kernels_for_hopper_alone_become_machine_code_whose_multiplies_do_not_wait_for_each_other() {
        compile_all(&HOPPER_MODULES, Arch::HOPPER);
    }

    #[test]
    #[cfg_attr(not(target_os = "linux"), ignore = "the compiler is packaged for Linux only")]
    fn an_error_names_file_and_line() {
        let compiler = fetched();
        let error = compiler
            .compile_text("bad.cu", "#line 1 \"bad.cu\"\nnonsense", Arch::HOPPER)
            .unwrap_err();
        assert!(error.to_string().contains("bad.cu(1)"), "{error}");
    }

    #[test]
    #[cfg_attr(not(target_os = "linux"), ignore = "the compiler is packaged for Linux only")]
    fn a_second_start_finds_the_machine_code_on_disk() {
        let compiler = fetched();
        let folder = tempfile::tempdir().unwrap();
        let cache = DiskCache::new(folder.path());
        let first = compiler
            .compile_cached(&MODULES[0], Arch::HOPPER, Some(&cache))
            .unwrap();
        let second = compiler
            .compile_cached(&MODULES[0], Arch::HOPPER, Some(&cache))
            .unwrap();
        assert!(!first.log.is_empty() && second.log.is_empty());
        assert_eq!(first.cubin, second.cubin);
        let other = compiler
            .compile_cached(&MODULES[0], Arch::AMPERE, Some(&cache))
            .unwrap();
        assert!(!other.log.is_empty(), "another architecture is another file");
    }

    #[test]
    fn old_cards_are_not_taken() {
        assert_eq!(Arch::of_capability(75), None);
        assert_eq!(
            Arch::of_capability(90).map(|arch| arch.to_string()).as_deref(),
            Some("sm_90a")
        );
        assert_eq!(
            Arch::of_capability(89).map(|arch| arch.to_string()).as_deref(),
            Some("sm_89")
        );
    }
}
