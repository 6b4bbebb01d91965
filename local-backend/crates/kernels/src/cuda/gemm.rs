//! Large multiplies by cuBLASLt: bf16 in, sums in f32, f32 out. Never run yet.
//!
//! Which of its algorithms suits a shape the library is asked once: plans are kept, up to a bound.

use super::CudaError;
use super::driver::Gemm;
use cudarc::cublaslt::{result, sys};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::c_void;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};

/// Bytes of scratch that the library may use; what NVIDIA advises for Hopper.
pub(super) const WORKSPACE: usize = 32 << 20;

/// `CUBLAS_OP_T` of the library's header, which the bindings leave out.
const TRANSPOSE: i32 = 1;

fn failed(error: impl std::fmt::Display) -> CudaError {
    CudaError::device("cuBLASLt", error)
}

/// Shapes whose plans are kept: a model has a few matrices, and steps come in some hundred sizes.
const PLANS: usize = 512;

/// The library's handle, and its scratch on the device.
pub(super) struct Library {
    handle: sys::cublasLtHandle_t,
    workspace: u64,
    plans: Mutex<Recent<Shape, Plan>>,
}

// SAFETY: NVIDIA says that a cublasLt handle may be used from several threads; the workspace is used on one stream only; plans are
// of no thread, and behind a lock.
unsafe impl Send for Library {}
// SAFETY: as above.
unsafe impl Sync for Library {}

/// All that a plan depends on: the types are always the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Shape {
    rows: usize,
    columns: usize,
    tokens: usize,
    stride: usize,
}

impl From<&Gemm> for Shape {
    fn from(gemm: &Gemm) -> Self {
        Self {
            rows: gemm.rows,
            columns: gemm.columns,
            tokens: gemm.tokens,
            stride: gemm.stride,
        }
    }
}

/// A described operation, and the algorithm that the library advises for it.
struct Plan {
    about: Description,
    algorithm: sys::cublasLtMatmulAlgo_t,
}

/// What was made for keys, up to a number of them; where there is no room, the one unused for longest goes.
struct Recent<K, V> {
    most: usize,
    uses: u64,
    /// With the use that was the last one.
    all: HashMap<K, (u64, V)>,
}

impl<K: Copy + Eq + Hash, V> Recent<K, V> {
    fn new(most: usize) -> Self {
        Self {
            most,
            uses: 0,
            all: HashMap::new(),
        }
    }

    /// The key's value, made now where it is not kept. An error is not kept.
    fn get<E>(&mut self, key: K, make: impl FnOnce() -> Result<V, E>) -> Result<&V, E> {
        self.uses += 1;
        if self.all.len() >= self.most && !self.all.contains_key(&key) {
            let oldest = self.all.iter().min_by_key(|(_, (used, _))| *used);
            if let Some(oldest) = oldest.map(|(key, _)| *key) {
                self.all.remove(&oldest);
            }
        }
        let (used, value) = match self.all.entry(key) {
            Entry::Occupied(kept) => kept.into_mut(),
            Entry::Vacant(free) => free.insert((0, make()?)),
        };
        *used = self.uses;
        Ok(value)
    }
}

/// Descriptions of an operation, freed together.
struct Description {
    operation: sys::cublasLtMatmulDesc_t,
    preference: sys::cublasLtMatmulPreference_t,
    layouts: Vec<sys::cublasLtMatrixLayout_t>,
}

impl Drop for Description {
    fn drop(&mut self) {
        // SAFETY: each was made by the library and is freed only here. Nothing can be done about an error.
        unsafe {
            for layout in &self.layouts {
                let _ = result::destroy_matrix_layout(*layout);
            }
            let _ = result::destroy_matmul_pref(self.preference);
            let _ = result::destroy_matmul_desc(self.operation);
        }
    }
}

impl Description {
    /// The library thinks in columns: `out`, rows by tokens, is the transpose of `weights`, columns by rows, times `x`, columns
    /// by tokens.
    fn new(shape: &Shape) -> Result<Self, CudaError> {
        use sys::cudaDataType_t::{CUDA_R_16BF, CUDA_R_32F};
        let operation = result::create_matmul_desc(sys::cublasComputeType_t::CUBLAS_COMPUTE_32F, CUDA_R_32F)
            .map_err(failed)?;
        let preference = result::create_matmul_pref().map_err(failed)?;
        let mut out = Self {
            operation,
            preference,
            layouts: Vec::new(),
        };
        let (transpose, workspace) = (TRANSPOSE, WORKSPACE);
        // SAFETY: the values outlive the calls and have the sizes told.
        unsafe {
            result::set_matmul_desc_attribute(
                operation,
                sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA,
                (&raw const transpose).cast(),
                size_of_val(&transpose),
            )
            .map_err(failed)?;
            result::set_matmul_pref_attribute(
                preference,
                sys::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                (&raw const workspace).cast(),
                size_of_val(&workspace),
            )
            .map_err(failed)?;
        }
        let (rows, columns, tokens) = (shape.rows as u64, shape.columns as u64, shape.tokens as u64);
        for (kind, rows, columns, stride) in [
            (CUDA_R_16BF, columns, rows, shape.columns),
            (CUDA_R_16BF, columns, tokens, shape.columns),
            (CUDA_R_32F, rows, tokens, shape.stride),
        ] {
            let layout = result::create_matrix_layout(kind, rows, columns, stride as i64).map_err(failed)?;
            out.layouts.push(layout);
        }
        Ok(out)
    }
}

impl Library {
    /// # Errors
    /// The library does not start.
    pub(super) fn new(workspace: u64) -> Result<Self, CudaError> {
        let handle = result::create_handle().map_err(failed)?;
        Ok(Self {
            handle,
            workspace,
            plans: Mutex::new(Recent::new(PLANS)),
        })
    }

    /// Asks which algorithm suits a shape.
    fn plan(&self, shape: &Shape) -> Result<Plan, CudaError> {
        let about = Description::new(shape)?;
        let [weights, x, out] = about.layouts[..] else {
            return Err(failed("three layouts are described"));
        };
        // SAFETY: everything described lives.
        let chosen = unsafe {
            result::get_matmul_algo_heuristic(
                self.handle,
                about.operation,
                weights,
                x,
                out,
                out,
                about.preference,
            )
        };
        let algorithm = chosen.map_err(failed)?.algo;
        Ok(Plan { about, algorithm })
    }

    /// # Safety
    /// The addresses in `gemm` have the bytes that its sizes say, and `stream` is of the current context.
    pub(super) unsafe fn multiply(&self, gemm: &Gemm, stream: *mut c_void) -> Result<(), CudaError> {
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        let shape = Shape::from(gemm);
        let Plan { about, algorithm } = plans.get(shape, || self.plan(&shape))?;
        let (weights, x, out) = (about.layouts[0], about.layouts[1], about.layouts[2]);
        let (one, beta) = (1.0f32, if gemm.adds { 1.0f32 } else { 0.0 });
        // SAFETY: everything described lives; the addresses are the caller's promise; the workspace has `WORKSPACE` bytes.
        unsafe {
            result::matmul(
                self.handle,
                about.operation,
                (&raw const one).cast(),
                (&raw const beta).cast(),
                gemm.weights as *const c_void,
                weights,
                gemm.x as *const c_void,
                x,
                gemm.out as *const c_void,
                out,
                gemm.out as *mut c_void,
                out,
                algorithm,
                self.workspace as *mut c_void,
                WORKSPACE,
                stream.cast(),
            )
            .map_err(failed)
        }
    }
}

impl Drop for Library {
    fn drop(&mut self) {
        // SAFETY: made once and destroyed once. Nothing can be done about an error.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_made_once_and_the_unused_goes() {
        let mut made = Vec::new();
        let mut recent = Recent::new(2);
        for key in [1, 1, 2, 1, 3, 1, 2, 3] {
            let value = recent.get(key, || {
                made.push(key);
                Ok::<_, ()>(key * 10)
            });
            assert_eq!(value, Ok(&(key * 10)));
        }
        // For 3 went 2, for 2 went 3, for 3 went 1.
        assert_eq!(made, [1, 2, 3, 2, 3]);
        assert_eq!(recent.get(4, || Err("refused")), Err("refused"));
        assert_eq!(recent.get(4, || Ok::<_, ()>(0)), Ok(&0), "an error is not kept");
        assert_eq!(recent.all.len(), 2);
    }
}
