//! Packed weights: W [n, k] as column panels.
//!
//! Panel p holds the outputs `16 p .. 16 p + 16`, k-major: element `(p * k + kk) * 16 + lane` is `W[16 p + lane][kk]`, zero beyond n.
//! With a gate and an up matrix the panels alternate, gate first. The layout is the same for every instruction set.

use std::mem::MaybeUninit;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use super::micro::{Available, Element, PANEL, Storage};
use super::rows::{EMPTY_STAGE, Rows, STAGE, Span, Stage, interleave};
use super::{Execution, HostBuffer, INLINE_PACKING, Pool, ProductError, as_uninit, written};
use crate::size::{Size, Word};

/// Elements in the packed form of one matrix [n, k], or of a gate and an up matrix of that shape; `None` if it exceeds the address space.
pub fn packed_len(n: usize, k: usize, glu: bool) -> Option<usize> {
    // The largest element has 4 bytes.
    packed_bytes::<usize>(n, k, glu, Storage::F32).get().map(|bytes| bytes / Storage::F32.element_bytes())
}

/// Bytes of the packed form: whole cache lines, or halves of them.
pub fn packed_bytes<W: Word>(n: usize, k: usize, glu: bool, storage: Storage) -> Size<W> {
    let panels = Size::of(n.div_ceil(PANEL)) * if glu { 2 } else { 1 };
    panels * k * (PANEL * storage.element_bytes())
}

/// Packed weights in somebody's memory.
#[derive(Clone, Copy, Debug)]
pub enum Panels<'a> {
    F32(&'a [f32]),
    F16(&'a [f16]),
    Bf16(&'a [bf16]),
}

impl Panels<'_> {
    fn len(&self) -> usize {
        match self {
            Self::F32(panels) => panels.len(),
            Self::F16(panels) => panels.len(),
            Self::Bf16(panels) => panels.len(),
        }
    }
}

/// Packed weights with their shape, as the product takes them.
#[derive(Clone, Copy, Debug)]
pub struct PackedRef<'a> {
    panels: Panels<'a>,
    n: usize,
    k: usize,
    glu: bool,
}

impl<'a> PackedRef<'a> {
    /// Fails if `panels` is shorter than [`packed_len`]. 64-byte alignment is faster, but not required.
    pub fn new(panels: Panels<'a>, n: usize, k: usize, glu: bool) -> Result<Self, ProductError> {
        ProductError::check_length("packed weights", packed_len(n, k, glu), panels.len())?;
        Ok(Self { panels, n, k, glu })
    }

    pub fn panels(&self) -> Panels<'a> {
        self.panels
    }

    pub fn storage(&self) -> Storage {
        match self.panels {
            Panels::F32(_) => Storage::F32,
            Panels::F16(_) => Storage::F16,
            Panels::Bf16(_) => Storage::Bf16,
        }
    }

    /// Outputs (of each of the two matrices, if there are two).
    pub fn n(&self) -> usize {
        self.n
    }

    pub fn k(&self) -> usize {
        self.k
    }

    pub fn glu(&self) -> bool {
        self.glu
    }
}

/// Memory to pack into.
#[derive(Debug)]
pub enum PanelsMut<'a> {
    F32(&'a mut [MaybeUninit<f32>]),
    F16(&'a mut [MaybeUninit<f16>]),
    Bf16(&'a mut [MaybeUninit<bf16>]),
}

/// Packs W [n, k] into the caller's memory, at least [`packed_len`] long, on the threads of a pool.
pub fn pack_into<'a>(
    on: Execution<'_>,
    w: &impl Rows,
    n: usize,
    k: usize,
    to: PanelsMut<'a>,
) -> Result<PackedRef<'a>, ProductError> {
    w.check(n, k)?;
    pack_panels(on, [w, w], n, k, false, to)
}

/// Packs the gate and the up matrix, both [n, k], into the caller's memory.
pub fn pack_glu_into<'a>(
    on: Execution<'_>,
    gate: &impl Rows,
    up: &impl Rows,
    n: usize,
    k: usize,
    to: PanelsMut<'a>,
) -> Result<PackedRef<'a>, ProductError> {
    gate.check(n, k)?;
    up.check(n, k)?;
    let erased = |matrix: usize| {
        move |row: usize, k0: usize, to: &mut [f32]| {
            if matrix == 0 { gate.read(row, k0, to) } else { up.read(row, k0, to) }
        }
    };
    pack_panels(on, [&erased(0), &erased(1)], n, k, true, to)
}

fn pack_panels<'a>(
    on: Execution<'_>,
    w: [&impl Rows; 2],
    n: usize,
    k: usize,
    glu: bool,
    to: PanelsMut<'a>,
) -> Result<PackedRef<'a>, ProductError> {
    let panels = match to {
        PanelsMut::F32(to) => Panels::F32(fill(on, w, n, k, glu, to, |from, to| to.copy_from_slice(as_uninit(from)))?),
        PanelsMut::F16(to) => {
            let convert = |from: &[f32], to: &mut _| initialised(to, f16::ZERO).convert_from_f32_slice(from);
            Panels::F16(fill(on, w, n, k, glu, to, convert)?)
        }
        PanelsMut::Bf16(to) => {
            let convert = |from: &[f32], to: &mut _| initialised(to, bf16::ZERO).convert_from_f32_slice(from);
            Panels::Bf16(fill(on, w, n, k, glu, to, convert)?)
        }
    };
    PackedRef::new(panels, n, k, glu)
}

/// One panel per task; inside it, `STAGE` values of k at a time, interleaved in L1 and then converted into place.
fn fill<'a, E: Element>(
    on: Execution<'_>,
    w: [&impl Rows; 2],
    n: usize,
    k: usize,
    glu: bool,
    to: &'a mut [MaybeUninit<E>],
    convert: impl Fn(&[f32], &mut [MaybeUninit<E>]) + Sync + Send,
) -> Result<&'a [E], ProductError> {
    let needed = packed_len(n, k, glu);
    ProductError::check_length("memory for packed weights", needed, to.len())?;
    let len = needed.unwrap_or(0);
    let matrices = if glu { 2 } else { 1 };
    const BLOCK: usize = (STAGE + 1) * PANEL;
    let buffers = || (EMPTY_STAGE, [MaybeUninit::uninit(); BLOCK]);
    let kernels = Available::<f32>::new(on.set);
    let pack = |(rows, block): &mut (Stage, [MaybeUninit<f32>; BLOCK]), index: usize, panel: &mut [MaybeUninit<E>]| {
        let (matrix, row) = (w[index % matrices], index / matrices * PANEL);
        for (i, to) in panel.chunks_mut(STAGE * PANEL).enumerate() {
            let span = Span { row, rows: PANEL.min(n - row), k0: i * STAGE, len: to.len() / PANEL };
            interleave(kernels, matrix, span, PANEL, None, block, rows);
            // SAFETY: `interleave` has written `span.len` values for each of the panel's rows.
            convert(unsafe { written(&block[..to.len()]) }, to);
        }
    };
    let to = &mut to[..len];
    if len > 0 {
        let alone = Pool::one();
        let pool = if len < INLINE_PACKING { &alone } else { on.pool };
        pool.chunks(to, k * PANEL, buffers, pack);
    }
    // SAFETY: every panel has been converted.
    Ok(unsafe { written(to) })
}

/// The same memory, with a value everywhere: for those who only write to what has one.
fn initialised<T: Copy>(values: &mut [MaybeUninit<T>], value: T) -> &mut [T] {
    values.fill(MaybeUninit::new(value));
    // SAFETY: `MaybeUninit<T>` has the layout of `T`, and each holds one.
    unsafe { &mut *(std::ptr::from_mut(values) as *mut [T]) }
}

/// Packed weights in memory of their own, aligned to 64 bytes (a cache line, and an AVX-512 register).
pub struct PackedMatrix {
    memory: HostBuffer,
    storage: Storage,
    n: usize,
    k: usize,
    glu: bool,
}

impl PackedMatrix {
    /// Packs W [n, k].
    pub fn pack(on: Execution<'_>, w: &impl Rows, n: usize, k: usize, storage: Storage) -> Result<Self, ProductError> {
        let mut packed = Self::zeros(n, k, false, storage)?;
        pack_into(on, w, n, k, packed.panels_mut())?;
        Ok(packed)
    }

    /// Packs the gate and the up matrix, both [n, k].
    pub fn pack_glu(
        on: Execution<'_>,
        gate: &impl Rows,
        up: &impl Rows,
        n: usize,
        k: usize,
        storage: Storage,
    ) -> Result<Self, ProductError> {
        let mut packed = Self::zeros(n, k, true, storage)?;
        pack_glu_into(on, gate, up, n, k, packed.panels_mut())?;
        Ok(packed)
    }

    /// Zeroed pages come from the system untouched, so each is first written (and placed) by the thread that packs it.
    fn zeros(n: usize, k: usize, glu: bool, storage: Storage) -> Result<Self, ProductError> {
        let Some(len) = packed_len(n, k, glu) else {
            return Err(ProductError::TooLarge { what: "packed weights" });
        };
        let bytes = len * storage.element_bytes();
        match HostBuffer::zeroed("cpu", bytes, "packed weights") {
            Ok(memory) => Ok(Self { memory, storage, n, k, glu }),
            Err(_) => Err(ProductError::OutOfMemory { bytes }),
        }
    }

    /// Where the elements begin, and how many there are.
    fn elements(&self) -> (*mut u8, usize) {
        (self.memory.memory().address(), packed_len(self.n, self.k, self.glu).unwrap_or(0))
    }

    fn panels_mut(&mut self) -> PanelsMut<'_> {
        let (at, len) = self.elements();
        // SAFETY: the buffer holds so many elements of its storage, and is borrowed exclusively.
        unsafe {
            match self.storage {
                Storage::F32 => PanelsMut::F32(std::slice::from_raw_parts_mut(at.cast(), len)),
                Storage::F16 => PanelsMut::F16(std::slice::from_raw_parts_mut(at.cast(), len)),
                Storage::Bf16 => PanelsMut::Bf16(std::slice::from_raw_parts_mut(at.cast(), len)),
            }
        }
    }

    pub fn as_ref(&self) -> PackedRef<'_> {
        let (at, len) = self.elements();
        // SAFETY: as for `panels_mut`, shared; zeros or what was packed is there.
        let panels = unsafe {
            match self.storage {
                Storage::F32 => Panels::F32(std::slice::from_raw_parts(at.cast(), len)),
                Storage::F16 => Panels::F16(std::slice::from_raw_parts(at.cast(), len)),
                Storage::Bf16 => Panels::Bf16(std::slice::from_raw_parts(at.cast(), len)),
            }
        };
        PackedRef { panels, n: self.n, k: self.k, glu: self.glu }
    }
}
