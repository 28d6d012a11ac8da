//! The micro-kernel of GEMM on the tiles of AMX: 16 or 32 rows of x times one or two panels of W.
//!
//! A tile register holds 16 rows of 64 bytes. An operand A is 16 rows of x with 32 values of k. An
//! operand B is 16 pairs of k of a panel, which lie in memory as the instruction wants them. A
//! result is 16 rows of a panel's 16 sums. One `tdpbf16ps` is 8,192 multiply-adds in 16 cycles; the
//! two loads that each takes part in hide behind it.
//!
//! Of each 32 values of k, the products of even and of odd ones are summed apart, and both sums are
//! added to the result. Subnormal numbers count as 0. A value does not depend on the number of rows
//! or panels: missing rows, and pairs beyond k, are zeros.

use std::arch::asm;
use std::marker::PhantomData;

use super::micro::{Job, PANEL, Pair, WHOLE_DEPTH};

/// Rows of a tile register.
pub(super) const ROWS: usize = 16;

/// Pairs of bf16 in a row of a tile register.
const PAIRS: usize = WHOLE_DEPTH / 2;

/// Bytes in a row of a tile register.
const ROW_BYTES: usize = 64;

/// What `ldtilecfg` reads: the shape of each tile register.
#[repr(C, align(64))]
struct Shapes {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// All eight registers whole.
static WHOLE: Shapes = {
    let (mut row_bytes, mut rows, mut i) = ([0; 16], [0; 16], 0);
    while i < 8 {
        (row_bytes[i], rows[i]) = (ROW_BYTES as u16, ROWS as u8);
        i += 1;
    }
    Shapes { palette: 1, start_row: 0, reserved: [0; 14], row_bytes, rows }
};

/// The tile registers of this thread, in use.
pub(super) struct Registers(PhantomData<*const ()>);

impl Registers {
    /// # Safety
    /// The machine has AMX, and nothing else on this thread uses it.
    pub unsafe fn take() -> Self {
        // SAFETY: the configuration is 64 valid bytes.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const WHOLE, options(nostack, readonly)) };
        Registers(PhantomData)
    }
}

impl Drop for Registers {
    fn drop(&mut self) {
        // SAFETY: the machine has AMX, or there would be no value. Released registers cost no time
        // when threads change.
        unsafe { asm!("tilerelease", options(nostack, nomem)) };
    }
}

macro_rules! zero {
    ($tile:literal) => {
        asm!(concat!("tilezero tmm", $tile), options(nostack, nomem))
    };
}

/// Loads rows that are `$stride` bytes apart.
macro_rules! load {
    ($tile:literal, $from:expr, $stride:expr) => {
        asm!(concat!("tileloadd tmm", $tile, ", [{} + {}]"), in(reg) $from, in(reg) $stride, options(nostack, readonly))
    };
}

macro_rules! store {
    ($tile:literal, $to:expr, $stride:expr) => {
        asm!(concat!("tilestored [{} + {}], tmm", $tile), in(reg) $to, in(reg) $stride, options(nostack))
    };
}

macro_rules! multiply {
    ($sums:literal, $a:literal, $b:literal) => {
        asm!(concat!("tdpbf16ps tmm", $sums, ", tmm", $a, ", tmm", $b), options(nostack, nomem))
    };
}

/// Runs a job on up to 16 rows, or with `BOTH_ROWS` up to 32, and on one panel or with
/// `BOTH_PANELS` two. Its rows of x are whole registers: `ROWS` or twice as many rows of whole
/// `PAIRS`. It does not prefetch: panels are read in ascending order, as processors expect.
///
/// # Safety
/// This thread has taken the [`Registers`]. What the job reads has been written.
pub(super) unsafe fn run<const BOTH_ROWS: bool, const BOTH_PANELS: bool>(job: &mut Job<'_, Pair>) {
    let pairs = job.steps.next_multiple_of(PAIRS);
    let (rows, panels) = (ROWS * (1 + usize::from(BOTH_ROWS)), 1 + usize::from(BOTH_PANELS));
    let last_column = job.columns[..panels].iter().max().map_or(0, |&c| c);
    assert!(job.x.len() >= rows * pairs);
    assert!(job.w.len() >= (panels - 1) * job.panel_stride + pairs * PANEL);
    assert!(job.sums.len() >= (rows - 1) * job.row_stride + last_column + PANEL);
    let (x, w, sums) = (job.x.as_ptr(), job.w.as_ptr(), job.sums.as_mut_ptr());
    let (x_stride, stride) = (pairs * size_of::<Pair>(), job.row_stride * size_of::<f32>());
    // SAFETY: the assertions bound every address; the caller has the registers.
    unsafe {
        let sums = [sums.add(job.columns[0]), sums.add(job.columns[1 % panels])];
        let lower = sums.map(|sums| sums.wrapping_add(ROWS * job.row_stride));
        if job.first {
            zero!(0);
            zero!(1);
            zero!(2);
            zero!(3);
        } else {
            load!(0, sums[0], stride);
            if BOTH_PANELS {
                load!(1, sums[1], stride);
            }
            if BOTH_ROWS {
                load!(2, lower[0], stride);
            }
            if BOTH_ROWS && BOTH_PANELS {
                load!(3, lower[1], stride);
            }
        }
        for step in (0..pairs).step_by(PAIRS) {
            let (x, w) = (x.add(step), w.add(step * PANEL));
            load!(6, w, ROW_BYTES);
            load!(4, x, x_stride);
            multiply!(0, 4, 6);
            if BOTH_PANELS {
                load!(7, w.add(job.panel_stride), ROW_BYTES);
                multiply!(1, 4, 7);
            }
            if BOTH_ROWS {
                load!(5, x.add(ROWS * pairs), x_stride);
                multiply!(2, 5, 6);
            }
            if BOTH_ROWS && BOTH_PANELS {
                multiply!(3, 5, 7);
            }
        }
        store!(0, sums[0], stride);
        if BOTH_PANELS {
            store!(1, sums[1], stride);
        }
        if BOTH_ROWS {
            store!(2, lower[0], stride);
        }
        if BOTH_ROWS && BOTH_PANELS {
            store!(3, lower[1], stride);
        }
    }
}
