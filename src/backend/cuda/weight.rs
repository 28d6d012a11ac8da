//! Matrices prepared for `linear`: rows of K elements, each row on a multiple of 16 bytes.

use super::runtime::NAME;
use super::runtime::context::Stream;
use super::runtime::memory::{Allocation, CudaMemory};
use crate::ops::{Linear, Operands};
use crate::size::{Size, Word};
use crate::tensor::HostTensor;
use crate::{DType, Error, Result, WeightSource};

/// A prepared matrix `[N, K]`, or a pair of them: all gate rows, then all up rows.
///
/// `ldmatrix` and cuBLASLt want row-major of a matrix whose rows are columns of the result: no
/// packing into tiles. Preparing stacks parts, converts, and pads each row with zeros to 16 bytes,
/// so that copies need no special case for odd K.
pub(crate) struct PreparedWeight {
    layout: RowLayout,
    memory: Allocation,
}

/// How the rows lie. Follows from the sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RowLayout {
    pub n: usize,
    pub k: usize,
    pub halves: usize,
    pub dtype: DType,
}

impl RowLayout {
    fn new(n: usize, k: usize, glu: bool, dtype: DType) -> Result<Self> {
        if !matches!(dtype, DType::F32 | DType::F16 | DType::BF16) {
            return Err(Error::Unsupported {
                op: Linear::NAME,
                what: format!("weight of {dtype}"),
                backend: NAME,
                available: "f32, f16, bf16".into(),
            });
        }
        let layout = RowLayout { n, k, halves: 1 + usize::from(glu), dtype };
        layout.size::<usize>().or_refuse(Linear::NAME, "weight", format!("{dtype}[{n}, {k}]"))?;
        Ok(layout)
    }

    /// Bytes of all rows.
    fn size<W: Word>(&self) -> Size<W> {
        let stride = Size::of(self.k).next_multiple_of(16 / self.dtype.size());
        Size::product(&[self.halves, self.n, self.dtype.size()]) * stride
    }

    /// Elements from one row to the next.
    pub fn stride(&self) -> usize {
        self.k.next_multiple_of(16 / self.dtype.size())
    }

    /// Elements of one half.
    pub fn half(&self) -> usize {
        self.n * self.stride()
    }

    fn bytes(&self) -> usize {
        self.halves * self.half() * self.dtype.size()
    }
}

impl PreparedWeight {
    pub(super) fn pack(stream: &Stream, source: &WeightSource<'_>, dtype: DType) -> Result<Self> {
        let (n, k, glu) = source.dims()?;
        let layout = RowLayout::new(n, k, glu, dtype)?;
        let memory = stream.allocate(layout.bytes(), "a weight")?;
        stream.write(&memory.memory(), &rows(&layout, source)?)?;
        Ok(PreparedWeight { layout, memory })
    }

    pub(super) fn layout(&self) -> RowLayout {
        self.layout
    }

    pub(super) fn memory(&self) -> CudaMemory {
        self.memory.memory()
    }
}

fn rows(layout: &RowLayout, source: &WeightSource<'_>) -> Result<Vec<u8>> {
    let size = layout.dtype.size();
    let (width, stride) = (layout.k * size, layout.stride() * size);
    let mut bytes = Vec::with_capacity(layout.bytes());
    for part in source.parts.iter().chain(&source.up) {
        let part: HostTensor<'_> = part.to_dtype(layout.dtype)?;
        for row in part.bytes()?.chunks_exact(width.max(1)) {
            bytes.extend_from_slice(row);
            bytes.resize(bytes.len() + stride - width, 0);
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_stacked_halves_follow_one_another_and_rows_are_padded() {
        let part = |first: i32, n: usize| {
            let values: Vec<f32> = (first..first + 3 * n as i32).map(|v| v as f32).collect();
            HostTensor::from_slice(&values, &[n, 3]).unwrap()
        };
        let stacked = WeightSource::stacked(vec![part(1, 1), part(4, 2)]);
        let layout = RowLayout::new(3, 3, false, DType::F32).unwrap();
        let values: Vec<f32> = bytemuck::allocation::pod_collect_to_vec(&rows(&layout, &stacked).unwrap());
        assert_eq!(values, [1.0, 2.0, 3.0, 0.0, 4.0, 5.0, 6.0, 0.0, 7.0, 8.0, 9.0, 0.0]);

        let pair = WeightSource::glu(part(1, 1), part(4, 1));
        let layout = RowLayout::new(1, 3, true, DType::BF16).unwrap();
        assert_eq!((layout.stride(), layout.half(), layout.bytes()), (8, 8, 32));
        let values: Vec<half::bf16> = bytemuck::allocation::pod_collect_to_vec(&rows(&layout, &pair).unwrap());
        let values: Vec<f32> = values.into_iter().map(f32::from).collect();
        assert_eq!(values, [1., 2., 3., 0., 0., 0., 0., 0., 4., 5., 6., 0., 0., 0., 0., 0.]);
    }

    /// Rows are padded: bytes are up to eight times those of the source.
    #[test]
    fn bytes_that_no_memory_has_are_refused() {
        let layout = |n, k| RowLayout { n, k, halves: 2, dtype: DType::BF16 };
        assert_eq!(layout(1 << 25, 1).size::<u32>().get(), Some(1 << 30));
        assert_eq!(layout(1 << 26, 1).size::<u32>().get(), None);
        assert_eq!(layout(0, usize::MAX).size::<usize>().get(), None);
        let message = RowLayout::new(1 << 59, 1, true, DType::BF16).unwrap_err().to_string();
        let words = "linear: weight: expected sizes that fit the address space, got bf16[576460752303423488, 1]";
        assert_eq!(message, words);
    }

    #[test]
    fn a_matrix_of_f64_is_refused() {
        let message = RowLayout::new(1, 1, false, DType::F64).unwrap_err().to_string();
        assert_eq!(message, "linear: weight of f64 is not supported by cuda; available: f32, f16, bf16");
    }
}
