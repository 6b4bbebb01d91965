//! What a device can do, so that a card and the shim on the CPU are used through the same code.

use super::CudaError;

/// What is known of a device.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    pub name: String,
    /// Compute capability, as 90; 0 of the shim.
    pub capability: u32,
    pub free_bytes: u64,
    pub total_bytes: u64,
    /// Bytes per second that its memory can deliver by its data sheet; 0: unknown.
    pub bandwidth: u64,
    /// Whether the vendor's GEMM library is there.
    pub has_gemm: bool,
    /// Multiprocessors.
    pub processors: u32,
    pub hopper: Hopper,
}

/// Whether the kernels for Hopper alone are there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hopper {
    Loaded,
    /// And why not.
    Absent(String),
}

impl Default for Hopper {
    fn default() -> Self {
        Self::Absent("the device has no others".into())
    }
}

/// Bytes of an element of a tensor.
pub(super) const ELEMENT: u64 = 2;

/// How a tensor of 16-bit elements lies in memory, and the box of it that is copied at a time, into shared memory swizzled by 128
/// bytes. The innermost dimension comes first; its elements lie together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorShape {
    pub(super) at: u64,
    pub(super) sizes: Vec<u64>,
    /// Bytes, from the second dimension on.
    pub(super) strides: Vec<u64>,
    /// Of the box.
    pub(super) extent: Vec<u32>,
}

/// A tensor's shape as the device's copies take it.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C, align(128))]
pub struct TensorMap(pub(super) [u64; 16]);

/// A recorded sequence of launches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GraphId(pub usize);

/// One launch. `args` is the kernel's one argument, a struct by value.
#[derive(Debug)]
pub struct Launch<'a> {
    pub(super) kernel: &'a str,
    pub(super) grid: [u32; 3],
    pub(super) threads: u32,
    /// Bytes.
    pub(super) shared: u32,
    pub(super) args: &'a [u8],
}

/// `out` (f32, `tokens` rows of `stride`) = `x` (bf16, tokens by columns) times `weights` (bf16, rows by columns) transposed.
#[derive(Clone, Copy, Debug)]
pub struct Gemm {
    pub(super) weights: u64,
    pub(super) x: u64,
    pub(super) out: u64,
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) tokens: usize,
    pub(super) stride: usize,
    pub(super) adds: bool,
}

/// A device. Work is done in the order it was given, and maybe later than the call returns; `download` waits for it.
///
/// # Safety
/// `allocate` gives an address of so many bytes that stay valid, and nobody else's, until they are freed.
pub unsafe trait Driver: Send + Sync {
    fn facts(&self) -> Facts;

    /// # Errors
    /// There is not so much memory.
    fn allocate(&self, bytes: usize) -> Result<u64, CudaError>;

    /// Forgets every recording as well, since one may use this memory.
    ///
    /// # Safety
    /// `at` is of this device's `allocate` and not used any more.
    unsafe fn free(&self, at: u64);

    /// # Safety
    /// The bytes from `to` on are allocated.
    ///
    /// # Errors
    /// The device refuses.
    unsafe fn upload(&self, to: u64, from: &[u8]) -> Result<(), CudaError>;

    /// # Safety
    /// The bytes from `from` on are allocated.
    ///
    /// # Errors
    /// The device refuses, or something launched before has failed.
    unsafe fn download(&self, from: u64, to: &mut [u8]) -> Result<(), CudaError>;

    /// # Safety
    /// `args` is what the kernel takes, and every address in it has the bytes that the kernel touches.
    ///
    /// # Errors
    /// The kernel is not known or the device refuses.
    unsafe fn launch(&self, launch: &Launch<'_>) -> Result<(), CudaError>;

    /// False: there is no library for it.
    ///
    /// # Safety
    /// The addresses have the bytes that the sizes say.
    ///
    /// # Errors
    /// The device refuses.
    unsafe fn gemm(&self, gemm: &Gemm) -> Result<bool, CudaError>;

    /// Describes a tensor for a kernel's copies.
    ///
    /// # Errors
    /// The device has no such copies or refuses the shape.
    fn tensor_map(&self, shape: &TensorShape) -> Result<TensorMap, CudaError>;

    /// Waits for all that was given.
    ///
    /// # Errors
    /// Something has failed.
    fn synchronize(&self) -> Result<(), CudaError>;

    /// From here on launches are recorded instead of done.
    ///
    /// # Errors
    /// The device refuses.
    fn record(&self) -> Result<(), CudaError>;

    /// Ends the recording.
    ///
    /// # Errors
    /// Something recorded cannot be.
    fn recorded(&self) -> Result<GraphId, CudaError>;

    /// Does again what was recorded; false if it was forgotten, since memory was freed after it.
    ///
    /// # Errors
    /// The device refuses.
    fn replay(&self, graph: GraphId) -> Result<bool, CudaError>;
}
