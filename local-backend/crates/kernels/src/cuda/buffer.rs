//! Memory of a device with an element type and a length.

use super::{CudaError, Driver};
use std::marker::PhantomData;
use std::sync::Arc;

/// Types of which every bit pattern is a value and that have no holes, so that they may be read as bytes and written from them.
///
/// # Safety
/// As just said.
pub unsafe trait Plain: Copy + Default + 'static {}

macro_rules! plain {
    ($($type:ty),*) => {
        $(
            // SAFETY: a number, or an array of numbers.
            unsafe impl Plain for $type {}
        )*
    };
}
plain!(u8, i8, u16, u32, u64, f32, [f32; 2], [f32; 4], [u32; 4]);

pub(super) fn bytes<T: Plain>(slice: &[T]) -> &[u8] {
    // SAFETY: `Plain` has no holes, and the length is that of the slice.
    unsafe { std::slice::from_raw_parts(slice.as_ptr().cast(), std::mem::size_of_val(slice)) }
}

fn bytes_mut<T: Plain>(slice: &mut [T]) -> &mut [u8] {
    // SAFETY: as above, and every bit pattern is a value.
    unsafe { std::slice::from_raw_parts_mut(slice.as_mut_ptr().cast(), std::mem::size_of_val(slice)) }
}

/// `len` elements on a device. Their content is whatever lay there until it is written.
pub struct Buffer<T: Plain> {
    driver: Arc<dyn Driver>,
    at: u64,
    len: usize,
    element: PhantomData<T>,
}

impl<T: Plain> Buffer<T> {
    /// # Errors
    /// There is not so much memory.
    pub fn new(driver: &Arc<dyn Driver>, len: usize) -> Result<Self, CudaError> {
        let at = driver.allocate(len.max(1) * size_of::<T>())?;
        Ok(Self {
            driver: driver.clone(),
            at,
            len,
            element: PhantomData,
        })
    }

    /// # Errors
    /// There is not so much memory, or the device refuses.
    pub fn from_slice(driver: &Arc<dyn Driver>, slice: &[T]) -> Result<Self, CudaError> {
        let mut out = Self::new(driver, slice.len())?;
        out.write(slice)?;
        Ok(out)
    }

    /// Writes the first `slice.len()` elements.
    ///
    /// # Errors
    /// It is longer than the buffer, or the device refuses.
    pub fn write(&mut self, slice: &[T]) -> Result<(), CudaError> {
        if slice.len() > self.len {
            return Err(CudaError::Shape(format!(
                "{} elements do not fit into {}",
                slice.len(),
                self.len
            )));
        }
        if slice.is_empty() {
            return Ok(());
        }
        // SAFETY: the length was just checked.
        unsafe { self.driver.upload(self.at, bytes(slice)) }
    }

    /// The first `len` elements, after all work given before.
    ///
    /// # Errors
    /// There are not so many, or something has failed.
    pub fn read(&self, len: usize) -> Result<Vec<T>, CudaError> {
        let mut out = vec![T::default(); len];
        self.read_into(&mut out)?;
        Ok(out)
    }

    /// As [`Buffer::read`], into memory that is there.
    ///
    /// # Errors
    /// There are not so many elements, or something has failed.
    pub fn read_into(&self, out: &mut [T]) -> Result<(), CudaError> {
        self.read_from(0, out)
    }

    /// The elements from `first` on, as many as `out` has room for.
    ///
    /// # Errors
    /// There are not so many, or something has failed.
    pub fn read_from(&self, first: usize, out: &mut [T]) -> Result<(), CudaError> {
        if first.saturating_add(out.len()) > self.len {
            return Err(CudaError::Shape(format!(
                "{} elements from {first} on, of {}",
                out.len(),
                self.len
            )));
        }
        if out.is_empty() {
            return Ok(());
        }
        let at = self.at + (first * size_of::<T>()) as u64;
        // SAFETY: the range was just checked.
        unsafe { self.driver.download(at, bytes_mut(out)) }
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(super) fn at(&self) -> u64 {
        self.at
    }
}

impl<T: Plain> Drop for Buffer<T> {
    fn drop(&mut self) {
        // SAFETY: the address is of this driver's `allocate` and nobody can use it after this.
        unsafe { self.driver.free(self.at) };
    }
}

impl<T: Plain> std::fmt::Debug for Buffer<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Buffer({} × {})", self.len, std::any::type_name::<T>())
    }
}
