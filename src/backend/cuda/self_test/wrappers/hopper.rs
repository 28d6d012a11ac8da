//! What compute capability 9.0 alone has: wgmma with every width, order and swizzle that kernels
//! use, and tensor copies. Layouts follow the figures of the PTX ISA ("Asynchronous Warpgroup Level
//! Matrix Shared Memory Layout", "Swizzling modes").

use half::{bf16, f16};

use super::{OP, WrapperCheck, on_device};
use crate::backend::cuda::Cuda;
use crate::backend::cuda::compile::{KernelText, kernel};
use crate::backend::cuda::runtime::arch::Arch;
use crate::backend::cuda::runtime::tensor_map::MatrixMap;
use crate::device::Device;
use crate::verify::generate::Rng;
use crate::{DType, Error, Result};

const OPERANDS: &[&str] = &["input", "output"];
/// Sets of operands of a product, and boxes of a copy.
const ROUNDS: usize = 4;
const BOXES: usize = 12;

/// Every check, on a device that has the instructions.
pub(super) fn checks(backend: &Cuda, device: &Device, seed: u64) -> Result<Vec<WrapperCheck>> {
    if backend.arch != Arch::HOPPER {
        return Ok(Vec::new());
    }
    let mut all: Vec<WrapperCheck> = products().map(|p| p.check(device, seed)).collect::<Result<_>>()?;
    all.push(check_copies(device, seed)?);
    Ok(all)
}

/// d (+)= a b with 64 rows and `n` columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Gemm {
    dtype: DType,
    n: usize,
    /// Bytes that the pattern of both operands spans.
    span: usize,
    b_by_n: bool,
    a_in_registers: bool,
}

fn products() -> impl Iterator<Item = Gemm> {
    let types = [DType::F16, DType::BF16].into_iter();
    let layouts = [32, 64, 128].into_iter().flat_map(|span| [false, true].map(|b_by_n| (span, b_by_n)));
    let shapes = [64, 96, 128, 256].into_iter().flat_map(move |n| layouts.clone().map(move |layout| (n, layout)));
    types.flat_map(move |dtype| {
        shapes.clone().filter_map(move |(n, (span, b_by_n))| {
            // Panels are whole: 96 is no multiple of 64.
            let whole = !b_by_n || n % (span / 2) == 0;
            // Each layout with a in registers for one type, in shared memory for the other.
            let a_in_registers = (n / 32 + span / 32 + usize::from(b_by_n)).is_multiple_of(2) == (dtype == DType::BF16);
            whole.then_some(Gemm { dtype, n, span, b_by_n, a_in_registers })
        })
    })
}

/// Index of the element at `row` and `column` of rows of `span` bytes. A swizzle pattern is eight
/// rows, and the row turns the number of a 16-byte chunk: every row of 128 bytes, every second of
/// 64, every fourth of 32.
fn place(span: usize, row: usize, column: usize) -> usize {
    let turn = row % 8 * span / 128;
    row * span / 2 + ((column / 8) ^ turn) * 8 + column % 8
}

/// Thread and register of d for a row and a column.
fn register_of(row: usize, column: usize) -> (usize, usize) {
    (row / 16 * 32 + row % 8 * 4 + column % 8 / 2, column / 8 * 4 + row % 16 / 8 * 2 + column % 2)
}

fn bits(dtype: DType, value: i32) -> u16 {
    match dtype {
        DType::F16 => f16::from_f32(value as f32).to_bits(),
        _ => bf16::from_f32(value as f32).to_bits(),
    }
}

/// Two to a word, the first in the low half.
fn words(image: &[u16]) -> impl Iterator<Item = u32> {
    image.chunks_exact(2).map(|pair| u32::from(pair[0]) | u32::from(pair[1]) << 16)
}

impl Gemm {
    fn name(&self) -> String {
        let Gemm { dtype, n, span, .. } = self;
        let (order, from) =
            (if self.b_by_n { "n" } else { "k" }, if self.a_in_registers { "registers" } else { "shared" });
        format!("wgmma_{dtype}_n{n}_{order}{span}_{from}")
    }

    fn source(&self) -> KernelText {
        KernelText::new(OP, format!("wrapper_{}", self.name()), kernel!("wrappers_product.cu"), OPERANDS)
            .hopper()
            .constant("ELEMENT", self.dtype)
            .constant("COLUMNS_N", self.n)
            .constant("SWIZZLE", self.span)
            .constant("B_BY_N", self.b_by_n)
            .constant("A_IN_REGISTERS", self.a_in_registers)
            .threads(128)
            .shared_bytes((8192 + self.n * self.span) as u32)
    }

    /// The words of a round, and d behind it by row and column.
    fn round(&self, rng: &mut Rng, round: usize) -> (Vec<u32>, Vec<i32>) {
        let &Gemm { dtype, n, span, .. } = self;
        let k = span / 2;
        let mut small = |below: usize| rng.below(2 * below + 1) as i32 - below as i32;
        let (mut a_image, mut b_image) = (vec![0; 64 * k], vec![0; n * k]);
        let a: Vec<i32> = (0..64 * k).map(|_| small(3)).collect();
        let b: Vec<i32> = (0..n * k).map(|_| small(3)).collect();
        for (i, &value) in a.iter().enumerate() {
            a_image[place(span, i / k, i % k)] = bits(dtype, value);
        }
        for (i, &value) in b.iter().enumerate() {
            // By n: panels of as many columns, and rows of k, as a pattern row has 16-bit elements.
            let (column, depth) = (i / k, i % k);
            let by_n = column / k * k * k + place(span, depth, column % k);
            b_image[if self.b_by_n { by_n } else { place(span, column, depth) }] = bits(dtype, value);
        }
        let before: Vec<i32> = (0..64 * n).map(|_| small(50)).collect();
        let mut input = vec![0; 64 * n];
        for (i, &value) in before.iter().enumerate() {
            let (thread, register) = register_of(i / n, i % n);
            input[register * 128 + thread] = (value as f32).to_bits();
        }
        input.extend(words(&a_image).chain(words(&b_image)));
        let after = (0..64 * n).map(|i| {
            let (row, column) = (i / n, i % n);
            let sum: i32 = (0..k).map(|depth| a[row * k + depth] * b[column * k + depth]).sum();
            sum + if round % 2 == 1 { before[i] } else { 0 }
        });
        let after = after.collect();
        (input, after)
    }

    fn check(&self, device: &Device, seed: u64) -> Result<WrapperCheck> {
        let name = self.name();
        let mut rng = Rng::named(seed, &name);
        let rounds: Vec<_> = (0..ROUNDS).map(|round| self.round(&mut rng, round)).collect();
        let input: Vec<u32> = rounds.iter().flat_map(|(words, _)| words).copied().collect();
        let size = 64 * self.n;
        let output = on_device(device, &self.source(), ROUNDS, &input, ROUNDS * size, |_| Ok(Vec::new()))?;
        let mut check = WrapperCheck { name, words: output.len(), wrong: 0, first: None };
        for (round, ((_, expected), output)) in rounds.iter().zip(output.chunks(size)).enumerate() {
            for (i, &expected) in expected.iter().enumerate() {
                let (thread, register) = register_of(i / self.n, i % self.n);
                let actual = f32::from_bits(output[register * 128 + thread]);
                // Sums of small integers are exact.
                if actual != expected as f32 {
                    check.wrong += 1;
                    check.first.get_or_insert_with(|| {
                        let (row, column) = (i / self.n, i % self.n);
                        format!("seed {seed}, round {round}, row {row}, column {column}: {actual:e}, not {expected}")
                    });
                }
            }
        }
        Ok(check)
    }
}

/// Boxes of a matrix of 100 rows and 200 columns, from within and across each of its edges.
fn check_copies(device: &Device, seed: u64) -> Result<WrapperCheck> {
    const ROWS: usize = 100;
    const COLUMNS: usize = 200;
    const STRIDE: usize = 208;
    const BOX: usize = 24;
    let name = "tensor_copy".to_string();
    let mut rng = Rng::named(seed, &name);
    let mut places = vec![(0i32, 0i32), (64, 32), (-8, 0), (192, 4), (3, -5), (64, 90), (400, 0), (0, 200)];
    places.resize_with(BOXES, || (rng.below(260) as i32 - 40, rng.below(150) as i32 - 30));
    let elements: Vec<u16> = (0..ROWS * STRIDE).map(|_| rng.bits() as u16).collect();
    // The matrix begins on a line of its own.
    let before = (2 * BOXES).next_multiple_of(32);
    let mut input: Vec<u32> = places.iter().flat_map(|&(x, y)| [x as u32, y as u32]).collect();
    input.resize(before, 0);
    input.extend(words(&elements));
    let map =
        MatrixMap { dtype: DType::F16, rows: ROWS, columns: COLUMNS, row_bytes: 2 * STRIDE, box_rows: BOX as u32 };
    let source = KernelText::new(OP, "wrapper_tensor_copy", kernel!("wrappers_copy.cu"), OPERANDS)
        .hopper()
        .constant("BOX_ROWS", BOX)
        .threads(32)
        .shared_bytes((BOX * 128 + 8) as u32);
    let output = on_device(device, &source, BOXES, &input, BOXES * BOX * 32, |address| {
        let map = map.at(address + 4 * before as u64);
        Ok(vec![map.map_err(|said| Error::argument(OP, "matrix", "what a tensor map can describe", said))?])
    })?;
    let mut check = WrapperCheck { name, words: output.len(), wrong: 0, first: None };
    for (&(x, y), image) in places.iter().zip(output.chunks(BOX * 32)) {
        for i in 0..BOX * 64 {
            let (row, column) = (i / 64, i % 64);
            let (from_row, from_column) = (i64::from(y) + row as i64, i64::from(x) + column as i64);
            let inside = (0..ROWS as i64).contains(&from_row) && (0..COLUMNS as i64).contains(&from_column);
            let expected = if inside { elements[from_row as usize * STRIDE + from_column as usize] } else { 0 };
            let at = place(128, row, column);
            let actual = (image[at / 2] >> (16 * (at % 2))) as u16;
            if actual != expected {
                check.wrong += 1;
                check.first.get_or_insert_with(|| {
                    format!("seed {seed}, box at column {x}, row {y}: element {row}, {column}: {actual:#06x}, not {expected:#06x}")
                });
            }
        }
    }
    Ok(check)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_layout_is_checked_once_and_both_places_of_a() {
        let all: Vec<Gemm> = products().collect();
        assert_eq!(all.len(), 2 * (4 * 3 * 2 - 1));
        for (i, p) in all.iter().enumerate() {
            assert!(!all[..i].contains(p), "{p:?} twice");
        }
        for n in [64, 96, 128, 256] {
            for span in [32, 64, 128] {
                let found = all.iter().filter(|p| p.n == n && p.span == span && p.a_in_registers).count();
                let layouts = all.iter().filter(|p| p.n == n && p.span == span).count();
                assert_eq!(2 * found, layouts, "n{n}, {span} bytes");
            }
        }
    }

    #[test]
    fn a_pattern_holds_every_element_once() {
        for span in [32, 64, 128] {
            let mut seen = vec![false; 16 * span / 2];
            for i in 0..seen.len() {
                let at = place(span, i / (span / 2), i % (span / 2));
                assert!(!std::mem::replace(&mut seen[at], true), "{span}: {at} twice");
            }
        }
        // From the figures: chunk 1 begins row 1 of 128 bytes, row 2 of 64, row 4 of 32.
        assert_eq!([place(128, 1, 0), place(64, 2, 0), place(32, 4, 0)], [64 + 8, 2 * 32 + 8, 4 * 16 + 8]);
        assert_eq!([place(128, 7, 8), place(64, 1, 0)], [7 * 64 + 6 * 8, 32]);
    }
}
