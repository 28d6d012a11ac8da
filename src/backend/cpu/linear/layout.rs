//! The workspace of a `linear` in front of the scratch of its GEMM: bias and gate as f32, weights
//! that are packed at every call, values to reduce.

use super::super::gemm::{Shape, packed_len};
use super::super::rows::PAD;
use crate::size::{Size, Word};

/// Offsets into the workspace, in f32, behind the bias at its beginning.
#[derive(Clone, Copy)]
pub(super) struct Layout {
    pub gate: usize,
    pub packed: usize,
    pub values: usize,
}

/// What the lengths of the parts depend on.
#[derive(Clone, Copy)]
pub(super) struct Parts {
    pub shape: Shape,
    /// Whether weights are packed at every call.
    pub packs: bool,
    pub reduces: bool,
}

impl Parts {
    /// Whole cache lines for bias, gate, packed weights and values, in f32.
    fn lengths<W: Word>(&self) -> [Size<W>; 4] {
        let &Parts { shape: Shape { m, n, k, glu, dtype, .. }, packs, reduces } = self;
        let none = Size::of(0);
        let packed = if packs { packed_len(n, k, glu, dtype) } else { none };
        let values = if reduces { Size::product(&[m, n]) } else { none };
        [Size::of(n), Size::of(n), packed, values].map(|part| part.next_multiple_of(PAD))
    }

    pub fn shared<W: Word>(&self) -> Size<W> {
        self.lengths().into_iter().sum()
    }

    /// The offsets; `None` if they do not fit the address space.
    pub fn layout(&self) -> Option<Layout> {
        let mut end = Size::of(0);
        let [_, gate, packed, values] = self.lengths::<usize>().map(|length| {
            let start = end;
            end = end + length;
            start.get()
        });
        Some(Layout { gate: gate?, packed: packed?, values: values? })
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::tasks::scratch_bytes;
    use super::*;
    use crate::DType;

    const SHAPE: Shape = Shape { m: 3, n: 20, k: 5, glu: false, x: DType::F16, dtype: DType::F16 };
    const SMALL: Parts = Parts { shape: SHAPE, packs: true, reduces: true };

    fn of(shape: Shape) -> Parts {
        Parts { shape, ..SMALL }
    }

    fn fits_for<W: Word>(parts: Parts, threads: usize) -> bool {
        scratch_bytes::<W>(parts.shared(), parts.shape.scratch(), threads).get().is_some()
    }

    fn fits<W: Word>(parts: Parts) -> bool {
        fits_for::<W>(parts, 2)
    }

    #[test]
    fn parts_lie_behind_one_another() {
        // 20 columns are 32 f32; 2 panels of 16 x 5 f16 are 80 f32; 3 x 20 values are 60, rounded
        // up to 64.
        let at = SMALL.layout().unwrap();
        assert_eq!([at.gate, at.packed, at.values], [32, 64, 144]);
        assert_eq!(SMALL.shared::<usize>().get(), Some(208));
        let plain = Parts { packs: false, reduces: false, ..SMALL };
        let at = plain.layout().unwrap();
        assert_eq!([at.packed, at.values], [64; 2]);
        assert_eq!(plain.shared::<usize>().get(), Some(64));
    }

    /// The shapes of `tests/soundness/sizes.rs`, and plausible shapes on a 32-bit machine.
    #[test]
    fn sizes_that_would_wrap_do_not_fit() {
        let columns = of(Shape { m: 0, n: (1 << 61) - 1, k: 0, ..SHAPE });
        assert!(!fits::<u64>(columns), "2 * columns * 4 wraps to a few bytes");
        let values = of(Shape { m: 1 << 33, n: 1 << 29, k: 1, ..SHAPE });
        assert!(!fits::<u64>(values) && fits::<u64>(Parts { reduces: false, packs: false, ..values }));
        // 40000 x 30000 f32 are 4.8e9 bytes; as f16 they fit.
        let wide = Shape { m: 1, n: 40000, k: 30000, dtype: DType::F32, ..SHAPE };
        let matrix = Parts { reduces: false, ..of(wide) };
        assert!(fits::<u64>(matrix) && !fits::<u32>(matrix));
        let half = Shape { dtype: DType::F16, ..wide };
        assert!(!fits::<u32>(Parts { shape: half, ..matrix }), "2.4e9 are beyond a signed offset");
        assert!(fits::<u32>(Parts { shape: Shape { n: 30000, ..half }, ..matrix }));
        assert!(!fits::<u32>(of(Shape { m: 60000, n: 10000, k: 1, ..SHAPE })), "values to reduce");
        assert!(!fits_for::<u32>(SMALL, 1 << 20), "scratch of many threads");
        assert!(fits::<u32>(SMALL));
    }
}
