//! The workspace of a `linear`: bias and gate as f32, weights that are packed at every call, values to reduce, and the product's scratch.

use super::super::product::{Storage, packed_bytes, scratch_len};
use super::super::rows::PAD;
use crate::size::{Size, Word};

/// Offsets into the workspace, in f32, behind the bias at its beginning.
#[derive(Clone, Copy, Default)]
pub(super) struct Layout {
    pub gate: usize,
    pub packed: usize,
    pub values: usize,
    pub scratch: usize,
    pub end: usize,
}

/// Bytes to whose multiples the parts of the workspace are rounded up: a cache line.
const ALIGNMENT: usize = PAD * size_of::<f32>();

/// What decides how large the parts of the workspace are.
#[derive(Clone, Copy)]
pub(super) struct Parts {
    /// Rows of the product.
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub glu: bool,
    /// How the packed weights are stored.
    pub storage: Storage,
    /// Whether they are packed at every call.
    pub packs: bool,
    pub reduces: bool,
    pub threads: usize,
}

impl Parts {
    /// Bytes of bias, gate, packed weights, values and the product's scratch.
    fn bytes<W: Word>(&self) -> [Size<W>; 5] {
        let &Parts { m, n, k, glu, storage, packs, reduces, threads } = self;
        let f32s = |size: Size<W>| size * size_of::<f32>();
        let (columns, none) = (f32s(Size::of(n)), Size::of(0));
        let packed = if packs { packed_bytes(n, k, glu, storage) } else { none };
        let values = if reduces { f32s(Size::product(&[m, n])) } else { none };
        let scratch = f32s(scratch_len(m, n, k, glu, storage, threads));
        [columns, columns, packed, values, scratch].map(|part| part.next_multiple_of(ALIGNMENT))
    }

    /// Where they lie; `None` if they do not fit the address space.
    pub fn layout(&self) -> Option<Layout> {
        let parts = self.bytes::<usize>();
        parts.into_iter().sum::<Size>().get()?;
        let mut end = 0;
        let [_, gate, packed, values, scratch] = parts.map(|part| {
            let start = end;
            end += part.get().unwrap_or(0) / size_of::<f32>();
            start
        });
        Some(Layout { gate, packed, values, scratch, end })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: Parts =
        Parts { m: 3, n: 20, k: 5, glu: false, storage: Storage::F16, packs: true, reduces: true, threads: 2 };

    fn fits<W: Word>(parts: Parts) -> bool {
        parts.bytes::<W>().into_iter().sum::<Size<W>>().get().is_some()
    }

    #[test]
    fn parts_lie_behind_one_another() {
        // 20 columns are 32 f32; 2 panels of 16 x 5 f16 are 80 f32; 3 x 20 values are 60, rounded up to 64.
        let scratch = scratch_len::<usize>(3, 20, 5, false, Storage::F16, 2).get().unwrap();
        let at = SMALL.layout().unwrap();
        assert_eq!([at.gate, at.packed, at.values, at.scratch, at.end], [32, 64, 144, 208, 208 + scratch]);
        let plain = Parts { packs: false, reduces: false, ..SMALL }.layout().unwrap();
        assert_eq!([plain.packed, plain.values, plain.scratch], [64; 3]);
    }

    /// The shapes of `tests/soundness/sizes.rs`, and those of a 32-bit machine that nobody would call absurd.
    #[test]
    fn sizes_that_would_wrap_do_not_fit() {
        let columns = Parts { m: 0, n: (1 << 61) - 1, k: 0, ..SMALL };
        assert!(columns.layout().is_none() && !fits::<u64>(columns), "2 * columns * 4 wraps to a few bytes");
        let values = Parts { m: 1 << 33, n: 1 << 29, k: 1, ..SMALL };
        assert!(!fits::<u64>(values) && fits::<u64>(Parts { reduces: false, packs: false, ..values }));
        // 40000 x 30000 f32 are 4.8e9 bytes; as f16 they fit.
        let matrix = Parts { m: 1, n: 40000, k: 30000, storage: Storage::F32, reduces: false, ..SMALL };
        assert!(fits::<u64>(matrix) && !fits::<u32>(matrix));
        assert!(!fits::<u32>(Parts { storage: Storage::F16, ..matrix }), "2.4e9 are beyond a signed offset");
        assert!(fits::<u32>(Parts { storage: Storage::F16, n: 30000, ..matrix }));
        assert!(!fits::<u32>(Parts { m: 60000, n: 10000, k: 1, ..SMALL }), "values to reduce");
        assert!(!fits::<u32>(Parts { threads: 1 << 16, ..SMALL }), "scratch of 65536 threads");
        assert!(fits::<u32>(SMALL));
    }
}
