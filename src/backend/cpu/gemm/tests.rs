//! GEMM against a naive f64 one, and the promises of its header: same bits, every output once.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU32, Ordering};

use half::{bf16, f16};

use super::pack::panel_depth;
use super::*;
use crate::backend::cpu::instructions::{Detected, InstructionSet};
use crate::backend::cpu::rows::{FlatRows, Raw, Rows};
use crate::backend::host::HostBuffer;
use crate::size::Size;
use crate::tensor::HostMemory;
use crate::threads::Pool;
use crate::{DType, Element};

const SIZES: [usize; 21] = [0, 1, 2, 3, 5, 7, 8, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 257];
/// Dtypes of x and W: every form of products.
const FORMS: [[DType; 2]; 4] =
    [[DType::F32, DType::F32], [DType::F32, DType::F16], [DType::F32, DType::BF16], [DType::BF16, DType::BF16]];

/// Every set, and the portable tile in the shape of that of AVX-512.
fn instruction_sets() -> impl Iterator<Item = Detected> {
    for set in InstructionSet::ALL.into_iter().filter(|set| !set.is_available()) {
        eprintln!("SKIPPED: this machine cannot execute {set}");
    }
    Detected::all().chain([Detected::portable_in_wide_shape()])
}

/// xorshift values in (-1, 1).
fn random(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect()
}

/// Mostly zero, otherwise small integers: every sum is exact in f32 in any order.
fn sparse_integers(len: usize, seed: u64) -> Vec<f32> {
    random(len, seed).iter().map(|&v| if v.abs() < 0.7 { 0.0 } else { (v * 8.0).round() }).collect()
}

fn rounded(values: &[f32], dtype: DType) -> Vec<f32> {
    let round = |&v: &f32| match dtype {
        DType::F32 => v,
        DType::F16 => f16::from_f32(v).to_f32(),
        _ => bf16::from_f32(v).to_f32(),
    };
    values.iter().map(round).collect()
}

/// Memory that holds NaN, which shows reads before writes.
fn room(bytes: usize) -> HostBuffer {
    let buffer = HostBuffer::zeroed("cpu", bytes, "a test").unwrap();
    // SAFETY: the buffer has so many bytes, and no one else uses it.
    unsafe { buffer.memory().address().write_bytes(0xff, bytes) };
    buffer
}

fn pool(threads: usize) -> Pool {
    Pool::with_threads(NonZeroUsize::new(threads).unwrap()).unwrap()
}

fn f32s(values: &[f32], stride: usize) -> FlatRows {
    FlatRows { rows: Rows::f32s(values.as_ptr().cast_mut(), [stride, 0]), per_entry: 1 }
}

/// Keeps the bits of every output and how often it was stored.
struct Outputs {
    n: usize,
    matrices: usize,
    bits: Vec<AtomicU32>,
    stores: Vec<AtomicU32>,
}

impl Outputs {
    fn new(m: usize, n: usize, glu: bool) -> Self {
        let matrices = if glu { 2 } else { 1 };
        let cells = || (0..m * n * matrices).map(|_| AtomicU32::new(0)).collect();
        Self { n, matrices, bits: cells(), stores: cells() }
    }

    /// [row][matrix][column]
    fn values(&self) -> Vec<f32> {
        assert!(
            self.stores.iter().all(|count| count.load(Ordering::Relaxed) == 1),
            "an output was not stored exactly once"
        );
        self.bits.iter().map(|bits| f32::from_bits(bits.load(Ordering::Relaxed))).collect()
    }

    fn row(&self, row: usize) -> Vec<u32> {
        let len = self.n * self.matrices;
        self.values()[row * len..][..len].iter().map(|v| v.to_bits()).collect()
    }
}

impl Epilogue for Outputs {
    fn store(&self, row: usize, col: usize, acc: &[f32], up: Option<&[f32]>) {
        assert_eq!(up.is_some(), self.matrices == 2);
        assert!(col + acc.len() <= self.n && !acc.is_empty());
        assert!(acc.len() >= 16 || col + acc.len() == self.n, "a short segment inside a row");
        assert!(up.is_none_or(|up| up.len() == acc.len()));
        for (matrix, values) in [acc].into_iter().chain(up).enumerate() {
            let start = (row * self.matrices + matrix) * self.n + col;
            for (i, value) in values.iter().enumerate() {
                self.bits[start + i].store(value.to_bits(), Ordering::Relaxed);
                self.stores[start + i].fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

struct Case {
    m: usize,
    n: usize,
    k: usize,
    /// The dtype in which x is given, whose values these are.
    x_dtype: DType,
    x: Vec<f32>,
    w: Vec<Vec<f32>>,
}

struct Packed(HostBuffer, DType);

impl Packed {
    fn raw(&self) -> Raw {
        Raw::new(self.0.memory().address(), self.1)
    }
}

/// # Safety
/// As [`pack`].
unsafe fn pack_all(matrices: &[FlatRows], n: usize, k: usize, to: Raw) {
    let rows: Vec<_> = matrices.iter().map(|matrix| |row| matrix.at(row)).collect();
    let rows: Vec<RowAt<'_>> = rows.iter().map(|at| at as RowAt<'_>).collect();
    // SAFETY: passed on to the caller.
    unsafe { pack(&pool(2), Detected::fastest(), &rows, n, k, to) };
}

impl Case {
    fn new(m: usize, n: usize, k: usize, glu: bool, fill: fn(usize, u64) -> Vec<f32>) -> Self {
        let seed = (m * 1_000_003 + n * 1009 + k) as u64;
        let w = (0..if glu { 2 } else { 1 }).map(|matrix| fill(n * k, seed + 7 + matrix)).collect();
        Self { m, n, k, x_dtype: DType::F32, x: fill(m * k, seed), w }
    }

    /// With x in another dtype, rounded.
    fn of(self, x_dtype: DType) -> Self {
        Self { x: rounded(&self.x, x_dtype), x_dtype, ..self }
    }

    fn shape(&self, x: DType, dtype: DType) -> Shape {
        Shape { m: self.m, n: self.n, k: self.k, glu: self.w.len() == 2, x, dtype }
    }

    fn pack(&self, dtype: DType) -> Packed {
        let (n, k) = (self.n, self.k);
        let packed = Packed(room(packed_len::<usize>(n, k, self.w.len() == 2, dtype).get().unwrap() * 4), dtype);
        let w: Vec<_> = self.w.iter().map(|w| f32s(w, k)).collect();
        // SAFETY: the matrices have n rows of k values, and the memory is as large as the packed
        // form.
        unsafe { pack_all(&w, n, k, packed.raw()) };
        packed
    }

    fn run_on(&self, set: Detected, packed: &Packed, threads: usize, rows: &FlatRows) -> Outputs {
        let outputs = Outputs::new(self.m, self.n, self.w.len() == 2);
        if self.m * self.n > 0 {
            let pool = pool(threads);
            let gemm = Gemm::plan(&pool, set, self.shape(rows.at(0).dtype(), packed.1), Size::of(16)).unwrap();
            let workspace = room(gemm.bytes());
            // SAFETY: x and W have the shape of the case, and the workspace is as large as planned.
            unsafe { gemm.run(&pool, set, rows, packed.raw(), &outputs, &workspace.memory()) };
        }
        outputs
    }

    fn run(&self, set: Detected, packed: &Packed, threads: usize) -> Outputs {
        if self.x_dtype == DType::F32 {
            return self.run_on(set, packed, threads, &f32s(&self.x, self.k));
        }
        let narrow: Vec<bf16> = self.x.iter().map(|&v| bf16::from_f32(v)).collect();
        self.run_on(set, packed, threads, &self.matrix(&narrow))
    }

    /// x in 16 bits.
    fn matrix<T: Element>(&self, narrow: &[T]) -> FlatRows {
        let spec = crate::tensor::Spec::contiguous(T::DTYPE, &[self.m, self.k]).unwrap();
        let memory = HostMemory::new(narrow.as_ptr().cast_mut().cast(), size_of_val(narrow));
        FlatRows::matrix(&crate::tensor::Bound { spec, memory })
    }

    /// For every output in order: the f64 sum, and the sum of the absolute values of its terms.
    fn truth(&self, dtype: DType) -> Vec<(f64, f64)> {
        let w: Vec<_> = self.w.iter().map(|w| rounded(w, dtype)).collect();
        let mut truth = Vec::new();
        for row in 0..self.m {
            for w in &w {
                for col in 0..self.n {
                    let mut sums = (0.0, 0.0);
                    for k in 0..self.k {
                        let term = f64::from(self.x[row * self.k + k]) * f64::from(w[col * self.k + k]);
                        sums = (sums.0 + term, sums.1 + term.abs());
                    }
                    truth.push(sums);
                }
            }
        }
        truth
    }

    /// Within the bound of recursive summation in f32, k * 2^-24 * sum of |terms|, plus second
    /// order.
    fn check(&self, set: Detected, dtype: DType, threads: usize) {
        let values = self.run(set, &self.pack(dtype), threads).values();
        for (i, (value, (sum, absolute))) in values.iter().zip(self.truth(dtype)).enumerate() {
            let bound = (self.k + 1) as f64 * 6.1e-8 * absolute;
            let (m, n, k) = (self.m, self.n, self.k);
            assert!(
                (f64::from(*value) - sum).abs() <= bound,
                "{set:?} {dtype:?} {m}x{n}x{k}: output {i} is {value}, not {sum}"
            );
        }
    }
}

/// Every pair of sizes for each pair of dimensions, the third one pseudo-random.
fn pairwise() -> Vec<(usize, usize, usize)> {
    let mut cases = Vec::new();
    for (i, &a) in SIZES.iter().enumerate() {
        for (j, &b) in SIZES.iter().enumerate() {
            let c = SIZES[(i * 5 + j * 8 + 3) % SIZES.len()];
            let small = SIZES[(i * 5 + j * 8 + 3) % 13];
            cases.push((a, b, if a * b > 4096 { small } else { c }));
            cases.push((a, if a * b > 4096 { small } else { c }, b));
            cases.push((if a * b > 4096 { small } else { c }, a, b));
        }
    }
    cases
}

#[test]
fn matches_naive_on_all_sizes() {
    for set in instruction_sets() {
        for (i, (m, n, k)) in pairwise().into_iter().enumerate() {
            let [x, dtype] = FORMS[i % 4];
            Case::new(m, n, k, i / 4 % 2 == 1, random).of(x).check(set, dtype, 1 + i % 2);
        }
    }
}

#[test]
fn matches_naive_on_all_dtypes_and_both_forms() {
    for set in instruction_sets() {
        for [x, dtype] in FORMS {
            for (m, n, k) in
                [(1, 257, 300), (3, 65, 600), (13, 100, 257), (64, 130, 513), (150, 200, 33), (300, 33, 520)]
            {
                Case::new(m, n, k, false, random).of(x).check(set, dtype, 2);
                Case::new(m, n, k, true, random).of(x).check(set, dtype, 2);
            }
        }
    }
}

#[test]
fn sparse_integers_are_exact() {
    for set in instruction_sets() {
        for [x, dtype] in FORMS {
            for glu in [false, true] {
                let case = Case::new(37, 83, 700, glu, sparse_integers).of(x);
                let values = case.run(set, &case.pack(dtype), 2).values();
                let truth: Vec<_> = case.truth(dtype).iter().map(|sums| sums.0 as f32).collect();
                assert_eq!(values, truth, "{set:?} {dtype:?}");
            }
        }
    }
}

/// The same row alone, among other rows at every position, with more columns, on more threads, and
/// in several groups of rows.
#[test]
fn bits_depend_on_row_and_weights_only() {
    for set in instruction_sets() {
        for [x, dtype] in FORMS {
            let case = Case::new(67, 131, 777, true, random).of(x);
            let reference = case.run(set, &case.pack(dtype), 1);
            for threads in [2, 3] {
                let again = case.run(set, &case.pack(dtype), threads);
                assert_eq!(again.values(), reference.values());
            }
            for row in 0..case.m {
                let x = case.x[row * case.k..][..case.k].to_vec();
                let alone = Case { m: 1, x, w: case.w.clone(), ..case };
                assert_eq!(
                    alone.run(set, &alone.pack(dtype), 2).row(0),
                    reference.row(row),
                    "{set:?} {dtype:?} row {row}"
                );
            }
            for m in 2..40 {
                let x = case.x[..m * case.k].to_vec();
                let fewer = Case { m, x, w: case.w.clone(), ..case };
                assert_eq!(
                    fewer.run(set, &fewer.pack(dtype), 2).row(m - 1),
                    reference.row(m - 1),
                    "{set:?} {dtype:?} {m} rows"
                );
            }
            let gate = Case { n: 50, x: case.x.clone(), w: vec![case.w[0][..50 * case.k].to_vec()], ..case };
            let narrow = gate.run(set, &gate.pack(dtype), 2);
            for row in 0..case.m {
                assert_eq!(narrow.row(row), reference.row(row)[..50], "{set:?} {dtype:?}");
            }
        }
    }
}

#[test]
fn several_tasks_of_rows() {
    let k = 4_000;
    let case = Case::new(150, 17, k, false, random);
    let packed = case.pack(DType::F32);
    for set in instruction_sets() {
        let all = case.run(set, &packed, 2);
        for row in [0, 74, 75, 149] {
            let one = Case { m: 1, x: case.x[row * k..][..k].to_vec(), w: case.w.clone(), ..case };
            assert_eq!(one.run(set, &packed, 2).row(0), all.row(row));
        }
    }
}

#[test]
fn instruction_sets_with_fused_multiply_add_agree() {
    let sets = [InstructionSet::Avx512, InstructionSet::Avx2].map(Detected::of);
    if let [Ok(wide), Ok(narrow)] = sets {
        let case = Case::new(29, 90, 600, true, random);
        let packed = case.pack(DType::BF16);
        let [wide, narrow] = [wide, narrow].map(|set| case.run(set, &packed, 2).values());
        assert_eq!(wide, narrow);
    } else {
        eprintln!("SKIPPED: needs AVX-512 and AVX2");
    }
}

#[test]
fn rows_lie_apart_in_entries_and_in_sixteen_bits() {
    let case = Case::new(20, 40, 300, false, random);
    let (set, k, packed) = (Detected::fastest(), case.k, case.pack(DType::F32));
    let expected = case.run(set, &packed, 1).values();

    // Four entries of five rows.
    let (row, entry) = (k + 9, 5 * (k + 9) + 3);
    let mut apart = vec![f32::NAN; 4 * entry];
    for (i, values) in case.x.chunks(k).enumerate() {
        apart[i / 5 * entry + i % 5 * row..][..k].copy_from_slice(values);
    }
    let rows = FlatRows { rows: Rows::f32s(apart.as_mut_ptr(), [entry, row]), per_entry: 5 };
    assert_eq!(case.run_on(set, &packed, 1, &rows).values(), expected);

    fn check<T: Element>(case: &Case, packed: &Packed, round: fn(f32) -> T, widen: fn(T) -> f32) {
        let narrow: Vec<T> = case.x.iter().map(|&v| round(v)).collect();
        let exact = Case { x: narrow.iter().map(|&v| widen(v)).collect(), w: case.w.clone(), ..*case };
        let set = Detected::fastest();
        assert_eq!(case.run_on(set, packed, 2, &case.matrix(&narrow)).values(), exact.run(set, packed, 1).values());
    }
    check(&case, &packed, f16::from_f32, f16::to_f32);
    check(&case, &packed, bf16::from_f32, bf16::to_f32);
}

#[test]
fn sizes_beyond_the_address_space_are_no_plan() {
    let shape = Shape { m: 5, n: 20, k: 30, glu: false, x: DType::F32, dtype: DType::F32 };
    let plan = |shape, shared| Gemm::plan(&pool(2), Detected::fastest(), shape, shared);
    assert!(plan(shape, Size::of(0)).is_some());
    assert!(plan(shape, Size::of(usize::MAX)).is_none());
    assert!(plan(Shape { m: usize::MAX, n: usize::MAX, ..shape }, Size::of(0)).is_none());
    let bytes = |n, k, glu| (packed_len::<usize>(n, k, glu, DType::F32) * size_of::<f32>()).get();
    assert_eq!(bytes(usize::MAX, 2, false), None);
    assert_eq!(bytes(usize::MAX / 8, 1, true), None);
    assert_eq!(packed_len::<usize>(50, 70, true, DType::F16).get(), Some(8 * 70 * 8));
}

/// Panel, k, lane, and in bf16 two values of k side by side, up to a multiple of 32; gate and up by
/// turns; zero beyond n and k. The matrices may have another dtype than the panels.
#[test]
fn panels_lie_as_the_head_of_pack_says() {
    let n = 50;
    for (k, dtype, given) in [
        (300, DType::F32, DType::F32),
        (300, DType::F16, DType::F32),
        (300, DType::BF16, DType::F32),
        (301, DType::BF16, DType::F32),
        (520, DType::BF16, DType::BF16),
        (1, DType::BF16, DType::BF16),
        (257, DType::BF16, DType::BF16),
    ] {
        let mut case = Case::new(n, n, k, true, random);
        case.w.iter_mut().for_each(|w| *w = rounded(w, dtype));
        let packed = match given {
            DType::F32 => case.pack(dtype),
            _ => {
                let narrow = |w: &Vec<f32>| w.iter().map(|&v| bf16::from_f32(v)).collect::<Vec<_>>();
                let narrow: Vec<_> = case.w.iter().map(narrow).collect();
                let packed = Packed(room(packed_len::<usize>(n, k, true, dtype).get().unwrap() * 4), dtype);
                let matrices: Vec<_> = narrow.iter().map(|w| case.matrix(w)).collect();
                // SAFETY: as in `Case::pack`.
                unsafe { pack_all(&matrices, n, k, packed.raw()) };
                packed
            }
        };
        let depth = if dtype == DType::BF16 { 2 } else { 1 };
        for panel in 0..8 {
            for kk in 0..panel_depth(k, dtype) {
                for lane in 0..16 {
                    let column = panel / 2 * 16 + lane;
                    let inside = column < n && kk < k;
                    let expected = if inside { case.w[panel % 2][column * k + kk] } else { 0.0 };
                    let step = (panel * panel_depth(k, dtype) + kk) / depth;
                    // SAFETY: the element is inside.
                    let value = unsafe { packed.raw().add((step * 16 + lane) * depth + kk % depth).real() };
                    assert_eq!(value, expected, "{dtype} {given} panel {panel}, k {kk} of {k}, lane {lane}");
                }
            }
        }
    }
}
