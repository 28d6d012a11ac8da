//! The product against a naive f64 one, and what its header promises: same bits, every output once, errors instead of panics.

use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicU32, Ordering};

use half::{bf16, f16};

use super::*;
use crate::backend::cpu::instructions::InstructionSet;

const SIZES: [usize; 21] = [0, 1, 2, 3, 5, 7, 8, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 257];
const STORAGES: [Storage; 3] = [Storage::F32, Storage::F16, Storage::Bf16];

/// Every set, and the portable tile in the shape of that of AVX-512.
fn instruction_sets() -> impl Iterator<Item = Detected> {
    for set in InstructionSet::ALL.into_iter().filter(|set| !set.is_available()) {
        eprintln!("SKIPPED: this machine cannot execute {set}");
    }
    Detected::all().chain([Detected::portable_in_wide_shape()])
}

/// A pool, and the widest instruction set.
fn on(pool: &Pool) -> Execution<'_> {
    Execution { pool, set: Detected::widest() }
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

fn rounded(values: &[f32], storage: Storage) -> Vec<f32> {
    let round = |&v: &f32| match storage {
        Storage::F32 => v,
        Storage::F16 => f16::from_f32(v).to_f32(),
        Storage::Bf16 => bf16::from_f32(v).to_f32(),
    };
    values.iter().map(round).collect()
}

impl PackedRef<'_> {
    fn scratch_len(self, m: usize, threads: usize) -> usize {
        scratch_len::<usize>(m, self.n(), self.k(), self.glu(), self.storage(), threads).get().unwrap()
    }
}

/// Memory that holds NaN, so that what is read before it is written shows.
fn room(len: usize) -> Vec<MaybeUninit<f32>> {
    vec![MaybeUninit::new(f32::NAN); len]
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
    x: Vec<f32>,
    w: Vec<Vec<f32>>,
}

impl Case {
    fn new(m: usize, n: usize, k: usize, glu: bool, fill: fn(usize, u64) -> Vec<f32>) -> Self {
        let seed = (m * 1_000_003 + n * 1009 + k) as u64;
        let w = (0..if glu { 2 } else { 1 }).map(|matrix| fill(n * k, seed + 7 + matrix)).collect();
        Self { m, n, k, x: fill(m * k, seed), w }
    }

    fn rows<'a>(&self, values: &'a [f32]) -> StridedRows<'a> {
        StridedRows { values, stride: self.k }
    }

    fn pack(&self, storage: Storage) -> PackedMatrix {
        match &self.w[..] {
            [gate, up] => {
                PackedMatrix::pack_glu(on(&Pool::callers()), &self.rows(gate), &self.rows(up), self.n, self.k, storage)
            }
            w => PackedMatrix::pack(on(&Pool::callers()), &self.rows(&w[0]), self.n, self.k, storage),
        }
        .unwrap()
    }

    fn run(&self, set: Detected, packed: &PackedMatrix, threads: usize) -> Outputs {
        let outputs = Outputs::new(self.m, self.n, self.w.len() == 2);
        let mut scratch = room(packed.as_ref().scratch_len(self.m, threads));
        let (pool, x) = (Pool::callers(), self.rows(&self.x));
        product(Execution { pool: &pool, set }, &x, self.m, packed.as_ref(), &outputs, &mut scratch).unwrap();
        outputs
    }

    /// For every output in order: the f64 sum, and the sum of the absolute values of its terms.
    fn truth(&self, storage: Storage) -> Vec<(f64, f64)> {
        let w: Vec<_> = self.w.iter().map(|w| rounded(w, storage)).collect();
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

    /// Within the bound of recursive summation in f32, k * 2^-24 * sum of |terms| (a little over, for the second order).
    fn check(&self, set: Detected, storage: Storage, threads: usize) {
        let values = self.run(set, &self.pack(storage), threads).values();
        for (i, (value, (sum, absolute))) in values.iter().zip(self.truth(storage)).enumerate() {
            let bound = (self.k + 1) as f64 * 6.1e-8 * absolute;
            let (m, n, k) = (self.m, self.n, self.k);
            assert!(
                (f64::from(*value) - sum).abs() <= bound,
                "{set:?} {storage:?} {m}x{n}x{k}: output {i} is {value}, not {sum}"
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
            Case::new(m, n, k, i % 2 == 1, random).check(set, STORAGES[i % 3], 1 + i % 2);
        }
    }
}

#[test]
fn matches_naive_on_all_storages_and_both_forms() {
    for set in instruction_sets() {
        for storage in STORAGES {
            for (m, n, k) in
                [(1, 257, 300), (3, 65, 600), (13, 100, 257), (64, 130, 513), (150, 200, 33), (300, 33, 520)]
            {
                Case::new(m, n, k, false, random).check(set, storage, 2);
                Case::new(m, n, k, true, random).check(set, storage, 2);
            }
        }
    }
}

#[test]
fn sparse_integers_are_exact() {
    for set in instruction_sets() {
        for storage in STORAGES {
            for glu in [false, true] {
                let case = Case::new(37, 83, 700, glu, sparse_integers);
                let values = case.run(set, &case.pack(storage), 2).values();
                let truth: Vec<_> = case.truth(storage).iter().map(|sums| sums.0 as f32).collect();
                assert_eq!(values, truth, "{set:?} {storage:?}");
            }
        }
    }
}

/// The same row alone, among other rows at every position, with more columns, on more threads, and in several groups of rows.
#[test]
fn bits_depend_on_row_and_weights_only() {
    let pool = |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    let pools = [pool(1), pool(2), pool(3)];
    for set in instruction_sets() {
        for storage in STORAGES {
            let case = Case::new(67, 131, 777, true, random);
            let reference = pools[0].install(|| case.run(set, &case.pack(storage), 1));
            for pool in &pools {
                let again = pool.install(|| case.run(set, &case.pack(storage), 3));
                assert_eq!(again.values(), reference.values());
            }
            for row in 0..case.m {
                let x = case.x[row * case.k..][..case.k].to_vec();
                let alone = Case { m: 1, x, w: case.w.clone(), ..case };
                assert_eq!(
                    alone.run(set, &alone.pack(storage), 2).row(0),
                    reference.row(row),
                    "{set:?} {storage:?} row {row}"
                );
            }
            for m in 2..40 {
                let x = case.x[..m * case.k].to_vec();
                let fewer = Case { m, x, w: case.w.clone(), ..case };
                assert_eq!(
                    fewer.run(set, &fewer.pack(storage), 2).row(m - 1),
                    reference.row(m - 1),
                    "{set:?} {storage:?} {m} rows"
                );
            }
            let gate = Case { n: 50, x: case.x.clone(), w: vec![case.w[0][..50 * case.k].to_vec()], ..case };
            let narrow = gate.run(set, &gate.pack(storage), 2);
            for row in 0..case.m {
                assert_eq!(narrow.row(row), reference.row(row)[..50], "{set:?} {storage:?}");
            }
        }
    }
}

#[test]
fn several_tasks_of_rows() {
    let k = 4_000;
    let case = Case::new(150, 17, k, false, random);
    let packed = case.pack(Storage::F32);
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
        let packed = case.pack(Storage::Bf16);
        let [wide, narrow] = [wide, narrow].map(|set| case.run(set, &packed, 2).values());
        assert_eq!(wide, narrow);
    } else {
        eprintln!("SKIPPED: needs AVX-512 and AVX2");
    }
}

#[test]
fn closures_and_strides_are_rows() {
    let case = Case::new(19, 40, 300, false, random);
    let expected = case.run(Detected::widest(), &case.pack(Storage::F32), 1).values();
    let half: Vec<f16> = case.x.iter().map(|&v| f16::from_f32(v)).collect();
    let exact: Vec<f32> = half.iter().map(|v| v.to_f32()).collect();
    let (k, w) = (case.k, &case.w[0]);
    let pool = Pool::callers();
    let packed = PackedMatrix::pack(
        on(&pool),
        &|row: usize, k0: usize, to: &mut [f32]| to.copy_from_slice(&w[row * k + k0..][..to.len()]),
        case.n,
        k,
        Storage::F32,
    )
    .unwrap();
    let mut scratch = room(packed.as_ref().scratch_len(case.m, 2));

    let mut spread = vec![f32::NAN; case.m * (k + 9)];
    for (row, values) in spread.chunks_mut(k + 9).enumerate() {
        values[..k].copy_from_slice(&case.x[row * k..][..k]);
    }
    let outputs = Outputs::new(case.m, case.n, false);
    let rows = StridedRows { values: &spread, stride: k + 9 };
    product(on(&pool), &rows, case.m, packed.as_ref(), &outputs, &mut scratch).unwrap();
    assert_eq!(outputs.values(), expected);

    let outputs = Outputs::new(case.m, case.n, false);
    let converted = |row: usize, k0: usize, to: &mut [f32]| {
        for (to, from) in to.iter_mut().zip(&half[row * k + k0..]) {
            *to = from.to_f32();
        }
    };
    product(on(&pool), &converted, case.m, packed.as_ref(), &outputs, &mut scratch).unwrap();
    let exact = Case { x: exact, w: case.w.clone(), ..case };
    assert_eq!(outputs.values(), exact.run(Detected::widest(), &packed, 1).values());
}

#[test]
fn wrong_lengths_are_errors() {
    let (m, n, k) = (5, 20, 30);
    let case = Case::new(m, n, k, false, random);
    let packed = case.pack(Storage::F32);
    let outputs = Outputs::new(m, n, false);
    let needed = packed.as_ref().scratch_len(m, 1);
    let (rows, pool) = (case.rows(&case.x), Pool::callers());

    let error = product(on(&pool), &rows, m, packed.as_ref(), &outputs, &mut room(needed - 1)).unwrap_err();
    assert_eq!(error, ProductError::TooShort { what: "scratch", needed, len: needed - 1 });
    let mut scratch = room(needed);
    let error = product(on(&pool), &rows, m + 1, packed.as_ref(), &outputs, &mut room(2 * needed)).unwrap_err();
    assert_eq!(error, ProductError::TooShort { what: "rows", needed: (m + 1) * k, len: m * k });
    let wild = StridedRows { values: &case.x, stride: usize::MAX };
    let error = product(on(&pool), &wild, m, packed.as_ref(), &outputs, &mut scratch).unwrap_err();
    assert_eq!(error, ProductError::TooLarge { what: "rows" });
    assert!(product(on(&pool), &rows, usize::MAX, packed.as_ref(), &outputs, &mut scratch).is_err());
    assert!(outputs.stores.iter().all(|count| count.load(Ordering::Relaxed) == 0), "something was stored");

    let mut short = room(packed_len(n, k, false).unwrap() - 1);
    assert!(PackedRef::new(Panels::F32(&vec![0.0; short.len()]), n, k, false).is_err());
    assert!(pack_into(on(&pool), &case.rows(&case.w[0]), n, k, PanelsMut::F32(&mut short)).is_err());
    assert!(pack_glu_into(on(&pool), &rows, &rows, n, k, PanelsMut::F32(&mut short)).is_err());
    // SAFETY: `room` holds values.
    assert!(unsafe { written(&short) }.iter().all(|v| v.is_nan()), "something was written");
    assert!(PackedMatrix::pack(on(&pool), &case.rows(&case.w[0]), n + 1, k, Storage::F16).is_err());
    assert_eq!(packed_len(usize::MAX, 2, false), None);
    assert_eq!(packed_len(usize::MAX / 8, 1, true), None);
    assert!(PackedRef::new(Panels::F32(&[]), usize::MAX, usize::MAX, true).is_err());
    assert!(
        PackedMatrix::pack(on(&pool), &|_: usize, _: usize, _: &mut [f32]| (), 1 << 40, 1 << 40, Storage::Bf16)
            .is_err()
    );
}

#[test]
fn packed_in_borrowed_memory_and_aligned() {
    let case = Case::new(9, 50, 70, true, random);
    let owned = case.pack(Storage::F16);
    let mut memory = vec![MaybeUninit::new(f16::NAN); packed_len(50, 70, true).unwrap() + 3];
    let rows = [case.rows(&case.w[0]), case.rows(&case.w[1])];
    let panels = PanelsMut::F16(&mut memory[1..]);
    let borrowed = pack_glu_into(on(&Pool::callers()), &rows[0], &rows[1], 50, 70, panels).unwrap();
    let (Panels::F16(a), Panels::F16(b)) = (borrowed.panels(), owned.as_ref().panels()) else { panic!("not f16") };
    assert_eq!(a, b);
    assert_eq!(b.as_ptr().align_offset(64), 0);
}
