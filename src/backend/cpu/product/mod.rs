//! y = x Wᵀ for weights that are constant: W is packed once into column panels, blocks of x into tiles at each call, and every finished row
//! segment goes to an epilogue while it is in L2.
//!
//! `pack.rs` is the layout of W, `rows.rs` where rows come from, `schedule.rs` how a product is cut and dealt to threads, `micro/` the
//! register tile per instruction set. A value's bits depend on its row of x, its row of W and the instruction set, on nothing else.

mod micro;
mod pack;
mod rows;
mod schedule;
#[cfg(test)]
mod tests;

use std::fmt;
use std::mem::MaybeUninit;

pub use micro::Storage;
pub use pack::{PackedMatrix, PackedRef, Panels, PanelsMut, pack_glu_into, pack_into, packed_bytes, packed_len};
pub use rows::Rows;
#[cfg(test)]
pub use rows::StridedRows;
pub use schedule::scratch_len;

use micro::Available;
use schedule::Shape;

use super::instructions::Detected;
use crate::backend::host::HostBuffer;
use crate::threads::Pool;

/// Multiply-adds below which the caller's thread works alone: handing work to rayon takes 8 to 15 us from outside its threads, as long as
/// one core takes for this many. (Tests want threads for small shapes too.)
const INLINE_PRODUCT: usize = if cfg!(test) { 1 << 10 } else { 1 << 20 };

/// Values below which packing stays on the caller's thread.
const INLINE_PACKING: usize = if cfg!(test) { 1 << 8 } else { 1 << 16 };

/// Values that have been written.
///
/// # Safety
/// All of them have been.
unsafe fn written<T>(values: &[MaybeUninit<T>]) -> &[T] {
    // SAFETY: `MaybeUninit<T>` has the layout of `T`, and the caller says that each holds one.
    unsafe { &*(std::ptr::from_ref(values) as *const [T]) }
}

/// Values as memory in which there may be some.
fn as_uninit<T>(values: &[T]) -> &[MaybeUninit<T>] {
    // SAFETY: the layout is the same, and every `T` is a `MaybeUninit<T>`; nothing is written through a shared reference.
    unsafe { &*(std::ptr::from_ref(values) as *const [MaybeUninit<T>]) }
}

/// What happens to finished sums.
pub trait Epilogue: Sync {
    /// Takes the f32 sums of the outputs `col .. col + acc.len()` of `row`; with a gate and an up matrix `acc` are the gate's and `up`
    /// the up matrix's. Every output is in exactly one call; calls come from different threads at the same time.
    fn store(&self, row: usize, col: usize, acc: &[f32], up: Option<&[f32]>);
}

/// Why a product or a packing was refused; nothing has been computed or written then.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ProductError {
    /// A slice is shorter than its shape says.
    TooShort { what: &'static str, needed: usize, len: usize },
    /// A shape whose size exceeds the address space.
    TooLarge { what: &'static str },
    /// Memory that cannot be had.
    OutOfMemory { bytes: usize },
}

impl ProductError {
    fn check_length(what: &'static str, needed: Option<usize>, len: usize) -> Result<(), Self> {
        match needed {
            None => Err(Self::TooLarge { what }),
            Some(needed) if needed > len => Err(Self::TooShort { what, needed, len }),
            Some(_) => Ok(()),
        }
    }
}

impl fmt::Display for ProductError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooShort { what, needed, len } => write!(f, "product: {what}: {needed} elements needed, {len} given"),
            Self::TooLarge { what } => write!(f, "product: {what}: the size exceeds the address space"),
            Self::OutOfMemory { bytes } => write!(f, "product: no memory of {bytes} bytes"),
        }
    }
}

impl std::error::Error for ProductError {}

/// What a product or a packing runs on.
#[derive(Clone, Copy)]
pub struct Execution<'p> {
    pub pool: &'p Pool,
    pub set: Detected,
}

/// y = x Wᵀ for `m` rows of x.
///
/// `scratch` has at least [`scratch_len`] elements for one thread; it is used by as many threads as it has room for.
pub fn product(
    on: Execution<'_>,
    x: &impl Rows,
    m: usize,
    w: PackedRef<'_>,
    epilogue: &impl Epilogue,
    scratch: &mut [MaybeUninit<f32>],
) -> Result<(), ProductError> {
    let Execution { pool, set } = on;
    x.check(m, w.k())?;
    let needed = scratch_len::<usize>(m, w.n(), w.k(), w.glu(), w.storage(), 1);
    ProductError::check_length("scratch", needed.get(), scratch.len())?;
    let widened = Available::<f32>::new(set);
    let shape = Shape { m, n: w.n(), k: w.k(), glu: w.glu() };
    match w.panels() {
        Panels::F32(panels) => schedule::run(pool, shape, x, panels, widened, widened, epilogue, scratch),
        Panels::F16(panels) => {
            schedule::run(pool, shape, x, panels, Available::new(set), widened, epilogue, scratch);
        }
        Panels::Bf16(panels) => {
            schedule::run(pool, shape, x, panels, Available::new(set), widened, epilogue, scratch);
        }
    }
    Ok(())
}
