//! Large multiplies by cuBLASLt: bf16 in, sums in f32, f32 out. Never run yet.

use super::CudaError;
use super::driver::Gemm;
use cudarc::cublaslt::{result, sys};
use std::ffi::c_void;

/// Bytes of scratch that the library may use; what NVIDIA advises for Hopper.
pub(super) const WORKSPACE: usize = 32 << 20;

/// `CUBLAS_OP_T` of the library's header, which the bindings leave out.
const TRANSPOSE: i32 = 1;

fn failed(error: impl std::fmt::Display) -> CudaError {
    CudaError::device("cuBLASLt", error)
}

/// The library's handle, and its scratch on the device.
pub(super) struct Library {
    handle: sys::cublasLtHandle_t,
    workspace: u64,
}

// SAFETY: NVIDIA says that a cublasLt handle may be used from several threads; the workspace is used on one stream only.
unsafe impl Send for Library {}
// SAFETY: as above.
unsafe impl Sync for Library {}

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
    fn new(gemm: &Gemm) -> Result<Self, CudaError> {
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
        let (rows, columns, tokens) = (gemm.rows as u64, gemm.columns as u64, gemm.tokens as u64);
        for (kind, rows, columns, stride) in [
            (CUDA_R_16BF, columns, rows, gemm.columns),
            (CUDA_R_16BF, columns, tokens, gemm.columns),
            (CUDA_R_32F, rows, tokens, gemm.stride),
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
        Ok(Self { handle, workspace })
    }

    /// # Safety
    /// The addresses in `gemm` have the bytes that its sizes say, and `stream` is of the current context.
    pub(super) unsafe fn multiply(&self, gemm: &Gemm, stream: *mut c_void) -> Result<(), CudaError> {
        let about = Description::new(gemm)?;
        let (weights, x, out) = (about.layouts[0], about.layouts[1], about.layouts[2]);
        let (one, beta) = (1.0f32, if gemm.adds { 1.0f32 } else { 0.0 });
        // SAFETY: everything described lives; the addresses are the caller's promise; the workspace has `WORKSPACE` bytes.
        unsafe {
            let chosen = result::get_matmul_algo_heuristic(
                self.handle,
                about.operation,
                weights,
                x,
                out,
                out,
                about.preference,
            )
            .map_err(failed)?;
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
                &raw const chosen.algo,
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
