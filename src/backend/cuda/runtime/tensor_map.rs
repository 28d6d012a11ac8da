//! Tensor maps: matrices in global memory for TMA, the tensor copies of compute capability 9.0.

use std::ffi::{c_int, c_void};
use std::sync::OnceLock;

use super::driver;
use crate::DType;

/// 128 opaque bytes, made by the driver. A kernel gets them by value.
#[repr(C, align(128))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::backend::cuda) struct TensorMap([u64; 16]);

/// A matrix of 16-bit reals, copied in boxes of 64 columns: 128-byte rows, swizzled for wgmma.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::backend::cuda) struct MatrixMap {
    pub dtype: DType,
    pub rows: usize,
    pub columns: usize,
    /// Bytes from one row to the next.
    pub row_bytes: usize,
    /// Rows of a box, at most 256.
    pub box_rows: u32,
}

/// Columns of a box.
const BOX_COLUMNS: u32 = 64;
/// Alignment of addresses and strides, in bytes.
pub(in crate::backend::cuda) const ALIGNMENT: u64 = 16;

/// `cuTensorMapEncodeTiled`. Drivers before CUDA 12.0 lack it, so it is looked up by hand.
type Encode = unsafe extern "C" fn(
    *mut TensorMap,
    c_int,
    u32,
    *mut c_void,
    *const u64,
    *const u64,
    *const u32,
    *const u32,
    c_int,
    c_int,
    c_int,
    c_int,
) -> c_int;

fn encode() -> Option<Encode> {
    static ENCODE: OnceLock<Option<Encode>> = OnceLock::new();
    // SAFETY: the type is that of the function in cuda.h.
    *ENCODE.get_or_init(|| unsafe { driver::optional("cuTensorMapEncodeTiled") })
}

/// Whether the driver can make maps.
pub(in crate::backend::cuda) fn available() -> bool {
    encode().is_some()
}

impl MatrixMap {
    /// Whether the driver takes such a map, as far as that follows from the layout.
    pub fn fits(&self) -> bool {
        let extent = |n: usize| (1..=1 << 32).contains(&(n as u64));
        let stride = self.row_bytes as u64;
        extent(self.rows)
            && extent(self.columns)
            && stride >= 2 * self.columns as u64
            && stride.is_multiple_of(ALIGNMENT)
            && stride < 1 << 40
            && (1..=256).contains(&self.box_rows)
            && matches!(self.dtype, DType::F16 | DType::BF16)
    }

    /// The map of the matrix at an address, or why the driver refuses. Touches no device.
    pub fn at(&self, address: u64) -> Result<TensorMap, String> {
        let encode = encode().ok_or("the driver has no cuTensorMapEncodeTiled")?;
        // CU_TENSOR_MAP_DATA_TYPE_FLOAT16 and _BFLOAT16.
        let dtype = if self.dtype == DType::F16 { 6 } else { 9 };
        let extent = [self.columns as u64, self.rows as u64];
        let (stride, side, step) = ([self.row_bytes as u64], [BOX_COLUMNS, self.box_rows], [1, 1]);
        // No interleave; a swizzle of 128 bytes; 256 bytes at a time into L2; zeros out of bounds.
        let (interleave, swizzle, promotion, fill) = (0, 3, 3, 0);
        let mut map = TensorMap::default();
        // SAFETY: all pointers are to as many values as two dimensions have, and the map is the
        // call's to write.
        let answer = unsafe {
            encode(
                &mut map,
                dtype,
                2,
                address as *mut c_void,
                extent.as_ptr(),
                stride.as_ptr(),
                side.as_ptr(),
                step.as_ptr(),
                interleave,
                swizzle,
                promotion,
                fill,
            )
        };
        if answer == 0 { Ok(map) } else { Err(format!("cuTensorMapEncodeTiled answers {answer} for {self:?}")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_driver_would_refuse_is_known_before() {
        let map = MatrixMap { dtype: DType::BF16, rows: 100, columns: 72, row_bytes: 144, box_rows: 128 };
        assert!(map.fits());
        let wrong = [
            MatrixMap { dtype: DType::F32, ..map },
            MatrixMap { rows: 0, ..map },
            MatrixMap { columns: 0, ..map },
            // Not a multiple of 16; shorter than a row.
            MatrixMap { row_bytes: 152, ..map },
            MatrixMap { row_bytes: 128, ..map },
            MatrixMap { box_rows: 257, ..map },
        ];
        for wrong in wrong {
            assert!(!wrong.fits(), "{wrong:?}");
        }
    }
}
