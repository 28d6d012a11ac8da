//! Packed weights: W [n, k] as column panels.
//!
//! Panel p holds the outputs `16 p .. 16 p + 16`, k-major: element `(p * k + kk) * 16 + lane` is `W[16 p + lane][kk]`, zero beyond n.
//! With a gate and an up matrix the panels alternate, gate first. The layout is the same for every instruction set.

use half::slice::HalfFloatSliceExt;
use half::vec::HalfBitsVecExt;
use half::{bf16, f16};
use rayon::prelude::*;

use super::micro::{Available, Element, PANEL};
use super::rows::{EMPTY_STAGE, Rows, STAGE, Span, Stage, interleave};
use super::{INLINE_PACKING, ProductError};

/// Elements in the packed form of one matrix [n, k], or of a gate and an up matrix of that shape; `None` if it exceeds the address space.
pub fn packed_len(n: usize, k: usize, glu: bool) -> Option<usize> {
    let panels = n.div_ceil(PANEL).checked_mul(if glu { 2 } else { 1 })?;
    let len = panels.checked_mul(PANEL)?.checked_mul(k)?;
    // The largest element has 4 bytes, and no allocation exceeds isize::MAX bytes.
    (len <= isize::MAX as usize / 4).then_some(len)
}

/// The type that packed weights are stored in. 16-bit weights are widened (exactly) on the fly: half the memory traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    F32,
    F16,
    Bf16,
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
    F32(&'a mut [f32]),
    F16(&'a mut [f16]),
    Bf16(&'a mut [bf16]),
}

/// Packs W [n, k] into the caller's memory, at least [`packed_len`] long, on rayon's current threads.
pub fn pack_into<'a>(w: &impl Rows, n: usize, k: usize, to: PanelsMut<'a>) -> Result<PackedRef<'a>, ProductError> {
    w.check(n, k)?;
    pack_panels([w, w], n, k, false, to)
}

/// Packs the gate and the up matrix, both [n, k], into the caller's memory.
pub fn pack_glu_into<'a>(
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
    pack_panels([&erased(0), &erased(1)], n, k, true, to)
}

fn pack_panels<'a>(
    w: [&impl Rows; 2],
    n: usize,
    k: usize,
    glu: bool,
    to: PanelsMut<'a>,
) -> Result<PackedRef<'a>, ProductError> {
    let panels = match to {
        PanelsMut::F32(to) => Panels::F32(fill(w, n, k, glu, to, |from, to| to.copy_from_slice(from))?),
        PanelsMut::F16(to) => Panels::F16(fill(w, n, k, glu, to, |from, to| to.convert_from_f32_slice(from))?),
        PanelsMut::Bf16(to) => Panels::Bf16(fill(w, n, k, glu, to, |from, to| to.convert_from_f32_slice(from))?),
    };
    PackedRef::new(panels, n, k, glu)
}

/// One panel per task; inside it, `STAGE` values of k at a time, interleaved in L1 and then converted into place.
fn fill<'a, E: Element>(
    w: [&impl Rows; 2],
    n: usize,
    k: usize,
    glu: bool,
    to: &'a mut [E],
    convert: impl Fn(&[f32], &mut [E]) + Sync,
) -> Result<&'a [E], ProductError> {
    let needed = packed_len(n, k, glu);
    ProductError::check_length("memory for packed weights", needed, to.len())?;
    let len = needed.unwrap_or(0);
    let matrices = if glu { 2 } else { 1 };
    const BLOCK: usize = (STAGE + 1) * PANEL;
    let buffers = || (EMPTY_STAGE, [0.0; BLOCK]);
    let kernels = Available::<f32>::best();
    let pack = |(rows, block): &mut (Stage, [f32; BLOCK]), (index, panel): (usize, &mut [E])| {
        let (matrix, row) = (w[index % matrices], index / matrices * PANEL);
        for (i, to) in panel.chunks_mut(STAGE * PANEL).enumerate() {
            let span = Span { row, rows: PANEL.min(n - row), k0: i * STAGE, len: to.len() / PANEL };
            interleave(kernels, matrix, span, PANEL, None, block, rows);
            convert(&block[..to.len()], to);
        }
    };
    if len > 0 {
        let panels = &mut to[..len];
        if len < INLINE_PACKING {
            let mut buffers = buffers();
            panels.chunks_mut(k * PANEL).enumerate().for_each(|panel| pack(&mut buffers, panel));
        } else {
            panels.par_chunks_mut(k * PANEL).enumerate().for_each_init(buffers, pack);
        }
    }
    Ok(&to[..len])
}

/// Packed weights in memory of their own, aligned to 64 bytes (a cache line, and an AVX-512 register).
#[derive(Debug)]
pub struct PackedMatrix {
    memory: Memory,
    n: usize,
    k: usize,
    glu: bool,
}

#[derive(Debug)]
enum Memory {
    F32(Aligned<f32>),
    F16(Aligned<f16>),
    Bf16(Aligned<bf16>),
}

/// Elements from the first cache-line boundary inside `memory` on.
#[derive(Debug)]
struct Aligned<E> {
    memory: Vec<E>,
    start: usize,
    len: usize,
}

const LINE: usize = 64;

impl<E: Element> Aligned<E> {
    fn new(zeros: impl FnOnce(usize) -> Vec<E>, len: usize) -> Self {
        let line = LINE / size_of::<E>();
        let memory = zeros(len + line);
        let start = memory.as_ptr().align_offset(LINE).min(line);
        Self { memory, start, len }
    }

    fn get(&self) -> &[E] {
        &self.memory[self.start..self.start + self.len]
    }

    fn get_mut(&mut self) -> &mut [E] {
        &mut self.memory[self.start..self.start + self.len]
    }
}

impl PackedMatrix {
    /// Packs W [n, k].
    pub fn pack(w: &impl Rows, n: usize, k: usize, storage: Storage) -> Result<Self, ProductError> {
        let mut packed = Self::zeros(n, k, false, storage)?;
        pack_into(w, n, k, packed.panels_mut())?;
        Ok(packed)
    }

    /// Packs the gate and the up matrix, both [n, k].
    pub fn pack_glu(
        gate: &impl Rows,
        up: &impl Rows,
        n: usize,
        k: usize,
        storage: Storage,
    ) -> Result<Self, ProductError> {
        let mut packed = Self::zeros(n, k, true, storage)?;
        pack_glu_into(gate, up, n, k, packed.panels_mut())?;
        Ok(packed)
    }

    /// Zeroed pages come from the system untouched, so each is first written (and placed) by the thread that packs it.
    fn zeros(n: usize, k: usize, glu: bool, storage: Storage) -> Result<Self, ProductError> {
        let Some(len) = packed_len(n, k, glu) else {
            return Err(ProductError::TooLarge { what: "packed weights" });
        };
        let memory = match storage {
            Storage::F32 => Memory::F32(Aligned::new(|len| vec![0.0; len], len)),
            Storage::F16 => Memory::F16(Aligned::new(|len| vec![0u16; len].reinterpret_into(), len)),
            Storage::Bf16 => Memory::Bf16(Aligned::new(|len| vec![0u16; len].reinterpret_into(), len)),
        };
        Ok(Self { memory, n, k, glu })
    }

    fn panels_mut(&mut self) -> PanelsMut<'_> {
        match &mut self.memory {
            Memory::F32(memory) => PanelsMut::F32(memory.get_mut()),
            Memory::F16(memory) => PanelsMut::F16(memory.get_mut()),
            Memory::Bf16(memory) => PanelsMut::Bf16(memory.get_mut()),
        }
    }

    pub fn as_ref(&self) -> PackedRef<'_> {
        let panels = match &self.memory {
            Memory::F32(memory) => Panels::F32(memory.get()),
            Memory::F16(memory) => Panels::F16(memory.get()),
            Memory::Bf16(memory) => Panels::Bf16(memory.get()),
        };
        PackedRef { panels, n: self.n, k: self.k, glu: self.glu }
    }
}
