//! The promises of [`Vector`], lane by lane, on every instruction set of this machine.

use super::*;

/// Lanes that one run of a kernel computes: a multiple of every `LANES`.
const COUNT: usize = 16;

struct Round([f32; COUNT]);

impl Kernel for Round {
    type Output = ([f16; COUNT], [bf16; COUNT]);
    #[inline(always)]
    unsafe fn run<V: Vector>(self) -> Self::Output {
        let mut to = ([f16::ZERO; COUNT], [bf16::ZERO; COUNT]);
        for i in (0..COUNT).step_by(V::LANES) {
            // SAFETY: `COUNT` is a multiple of `LANES`.
            unsafe {
                let x = V::load(self.0.as_ptr().add(i));
                x.store_f16(to.0.as_mut_ptr().add(i));
                x.store_bf16(to.1.as_mut_ptr().add(i));
            }
        }
        to
    }
}

struct Widen([f16; COUNT], [bf16; COUNT]);

impl Kernel for Widen {
    type Output = [[f32; COUNT]; 2];
    #[inline(always)]
    unsafe fn run<V: Vector>(self) -> Self::Output {
        let mut to = [[0.0; COUNT]; 2];
        for i in (0..COUNT).step_by(V::LANES) {
            // SAFETY: `COUNT` is a multiple of `LANES`.
            unsafe {
                V::load_f16(self.0.as_ptr().add(i)).store(to[0].as_mut_ptr().add(i));
                V::load_bf16(self.1.as_ptr().add(i)).store(to[1].as_mut_ptr().add(i));
            }
        }
        to
    }
}

/// Transposes a square of registers, row by row.
struct Transpose;

impl Kernel for Transpose {
    type Output = (usize, Vec<f32>);
    #[inline(always)]
    unsafe fn run<V: Vector>(self) -> Self::Output {
        let mut values: Vec<f32> = (0..V::LANES * V::LANES).map(|i| i as f32).collect();
        // SAFETY: every register is inside the values.
        unsafe {
            let mut block: Vec<V> = values.chunks(V::LANES).map(|row| V::load(row.as_ptr())).collect();
            V::transpose(&mut block);
            for (register, row) in block.into_iter().zip(values.chunks_mut(V::LANES)) {
                register.store(row.as_mut_ptr());
            }
        }
        (V::LANES, values)
    }
}

#[test]
fn a_transposed_square_has_rows_for_columns_on_every_instruction_set() {
    for set in Detected::all() {
        // SAFETY: the set is available; the kernel asks for nothing else.
        let (lanes, values) = unsafe { run(set, Transpose) };
        let expected: Vec<f32> = (0..lanes * lanes).map(|i| (i % lanes * lanes + i / lanes) as f32).collect();
        assert_eq!(values, expected, "{set:?}");
    }
}

/// The arithmetic of three operands, in the order of [`expected`].
struct Arithmetic([[f32; COUNT]; 3]);

const OPERATIONS: [&str; 10] =
    ["add", "sub", "mul", "div", "max", "abs", "select_less", "exponent", "mul_add", "add_product"];

impl Kernel for Arithmetic {
    type Output = [[f32; COUNT]; OPERATIONS.len()];
    #[inline(always)]
    unsafe fn run<V: Vector>(self) -> Self::Output {
        let mut to = [[0.0; COUNT]; OPERATIONS.len()];
        for i in (0..COUNT).step_by(V::LANES) {
            // SAFETY: `COUNT` is a multiple of `LANES`.
            unsafe {
                let [a, b, c] = [0, 1, 2].map(|n| V::load(self.0[n].as_ptr().add(i)));
                let further = [a.abs(), a.select_less(b, c, a), a.exponent(), a.mul_add(b, c), c.add_product(a, b)];
                let results = [a.add(b), a.sub(b), a.mul(b), a.div(b), a.max(b)].into_iter().chain(further);
                for (result, to) in results.zip(&mut to) {
                    result.store(to.as_mut_ptr().add(i));
                }
            }
        }
        to
    }
}

fn expected(a: f32, b: f32, c: f32) -> [f32; OPERATIONS.len()] {
    let exponent = f32::from_bits(a.to_bits() << 23);
    [
        a + b,
        a - b,
        a * b,
        a / b,
        if a > b { a } else { b },
        a.abs(),
        if a < b { c } else { a },
        exponent,
        a.mul_add(b, c),
        a.mul_add(b, c),
    ]
}

/// The value of each 16-bit pattern, the midpoint to the next one, and the floats beside it.
fn around(value: f32, next: f32) -> [f32; 4] {
    let middle = (f64::from(value) + f64::from(next)) / 2.0;
    let middle = middle as f32;
    [value, f32::from_bits(middle.to_bits().wrapping_sub(1)), middle, f32::from_bits(middle.to_bits().wrapping_add(1))]
}

#[test]
fn sixteen_bits_round_to_nearest_even_on_every_instruction_set() {
    let patterns = 0..u16::MAX;
    let f16s = patterns.clone().map(|bits| around(f16::from_bits(bits).to_f32(), f16::from_bits(bits + 1).to_f32()));
    let bf16s = patterns.map(|bits| around(bf16::from_bits(bits).to_f32(), bf16::from_bits(bits + 1).to_f32()));
    // NaN whose upper half alone would be infinity; values beyond f16's range.
    let odd = [f32::from_bits(0x7f80_0001), f32::from_bits(0xff80_0001), 65_519.996, 65_520.0];
    let values: Vec<f32> = f16s.chain(bf16s).chain([odd]).flatten().collect();
    for set in Detected::all() {
        for block in values.chunks_exact(COUNT) {
            let block: [f32; COUNT] = block.try_into().unwrap();
            // SAFETY: the set is available; the kernel asks for nothing else.
            let (f16s, bf16s) = unsafe { run(set, Round(block)) };
            for (x, (narrow, brain)) in block.into_iter().zip(f16s.into_iter().zip(bf16s)) {
                let right = (f16::from_f32(x), bf16::from_f32(x));
                let nan = x.is_nan() && narrow.is_nan() && brain.is_nan();
                let same = (narrow.to_bits(), brain.to_bits()) == (right.0.to_bits(), right.1.to_bits());
                assert!(nan || same, "{set:?}: {x:e} became {narrow} and {brain}, not {} and {}", right.0, right.1);
            }
        }
    }
}

#[test]
fn sixteen_bits_widen_exactly_on_every_instruction_set() {
    for set in Detected::all() {
        for first in (0..=u16::MAX).step_by(COUNT) {
            let bits: [u16; COUNT] = std::array::from_fn(|i| first + i as u16);
            // SAFETY: the set is available; the kernel asks for nothing else.
            let [f16s, bf16s] = unsafe { run(set, Widen(bits.map(f16::from_bits), bits.map(bf16::from_bits))) };
            for (i, bits) in bits.into_iter().enumerate() {
                for (wide, right) in
                    [(f16s[i], f16::from_bits(bits).to_f32()), (bf16s[i], bf16::from_bits(bits).to_f32())]
                {
                    let same = wide.to_bits() == right.to_bits() || wide.is_nan() && right.is_nan();
                    assert!(same, "{set:?}: {bits:#06x} became {wide:e}, not {right:e}");
                }
            }
        }
    }
}

#[test]
fn arithmetic_is_that_of_a_lane_on_every_instruction_set() {
    let finite = [
        0.0,
        1.0,
        1.5,
        1.0 + f32::EPSILON,
        0.1,
        127.0,
        f32::MAX,
        f32::MIN_POSITIVE,
        f32::from_bits(1),
        f32::from_bits(254),
    ];
    let mut values: Vec<f32> = finite.into_iter().flat_map(|x| [x, -x]).collect();
    values.extend([f32::INFINITY, f32::NEG_INFINITY, f32::NAN]);
    let same = |x: f32, y: f32| x == y || x.is_nan() && y.is_nan();
    for set in Detected::all() {
        for (i, &a) in values.iter().enumerate() {
            for &b in &values {
                for turn in 0..2 {
                    let c: [f32; COUNT] = std::array::from_fn(|lane| values[(i + lane + turn * COUNT) % values.len()]);
                    // SAFETY: the set is available; the kernel asks for nothing else.
                    let results = unsafe { run(set, Arithmetic([[a; COUNT], [b; COUNT], c])) };
                    for (lane, c) in c.into_iter().enumerate() {
                        for (n, right) in expected(a, b, c).into_iter().enumerate() {
                            let result = results[n][lane];
                            let operation = OPERATIONS[n];
                            // Rounded twice, unless every processor of the target fuses.
                            let twice = ["mul_add", "add_product"].contains(&operation)
                                && set.set() == InstructionSet::Portable
                                && same(result, a * b + c);
                            assert!(
                                same(result, right) || twice,
                                "{set:?}: {operation} of {a:e}, {b:e}, {c:e}: {result:e}, not {right:e}"
                            );
                        }
                    }
                }
            }
        }
    }
}

/// Sums and pairs of bf16.
struct Pairs([f32; COUNT], [[[bf16; 2]; COUNT]; 2]);

impl Kernel for Pairs {
    type Output = [f32; COUNT];
    #[inline(always)]
    unsafe fn run<V: Vector>(self) -> Self::Output {
        let mut to = [0.0; COUNT];
        for i in (0..COUNT).step_by(V::LANES) {
            // SAFETY: `COUNT` is a multiple of `LANES`, and a pair is as wide as an f32.
            unsafe {
                let [a, b] = [0, 1].map(|n| V::load(self.1[n].as_ptr().add(i).cast()));
                V::load(self.0.as_ptr().add(i)).add_pairs(a, b).store(to.as_mut_ptr().add(i));
            }
        }
        to
    }
}

/// Every set of this machine, and the instruction for pairs.
fn add_pairs(sums: [f32; COUNT], a: [[bf16; 2]; COUNT], b: [[bf16; 2]; COUNT]) -> Vec<(String, [f32; COUNT])> {
    let mut found = Vec::new();
    for set in Detected::all() {
        // SAFETY: the set is available; the kernel asks for nothing else.
        found.push((format!("{set:?}"), unsafe { run(set, Pairs(sums, [a, b])) }));
    }
    #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
    if InstructionSet::Avx512Bf16.is_available() {
        // SAFETY: as above.
        found.push(("the instruction".into(), unsafe { Avx512Bf16::run(Pairs(sums, [a, b])) }));
    } else {
        eprintln!("SKIPPED: this machine cannot execute avx512bf16");
    }
    found
}

#[test]
fn pairs_of_bf16_are_multiplied_and_added_on_every_instruction_set() {
    let pair = |i: usize, step: f32| [i as f32 * step - 3.0, 5.0 - i as f32].map(bf16::from_f32);
    let (a, b) = (std::array::from_fn(|i| pair(i, 2.0)), std::array::from_fn(|i| pair(i, 0.5)));
    let sums = std::array::from_fn(|i| i as f32 * 1000.0 + 0.25);
    for (set, found) in add_pairs(sums, a, b) {
        let dot = |i: usize| a[i][0].to_f32() * b[i][0].to_f32() + a[i][1].to_f32() * b[i][1].to_f32();
        assert_eq!(found, std::array::from_fn(|i| sums[i] + dot(i)), "{set}");
    }
    // A NaN or an infinity of either half stays, and so does that of the sum. Subnormal numbers may
    // count as 0.
    let (one, tiny) = (bf16::ONE, bf16::from_bits(1));
    for (half, x, expected) in [
        (0, bf16::NAN, f32::NAN),
        (1, bf16::NAN, f32::NAN),
        (0, bf16::INFINITY, f32::INFINITY),
        (1, bf16::NEG_INFINITY, f32::NEG_INFINITY),
        (0, bf16::MAX, bf16::MAX.to_f32()),
        (1, bf16::from_f32(3.0e38), bf16::from_f32(3.0e38).to_f32()),
    ] {
        let mut a = [[bf16::ZERO; 2]; COUNT];
        a.iter_mut().for_each(|pair| pair[half] = x);
        for (set, found) in add_pairs([0.0; COUNT], a, [[one; 2]; COUNT]) {
            let same = |y: f32| y == expected || y.is_nan() && expected.is_nan();
            assert!(found.into_iter().all(same), "{set}: {x} in half {half} gave {found:?}");
        }
    }
    for (set, found) in add_pairs([1.0e-40; COUNT], [[tiny; 2]; COUNT], [[one; 2]; COUNT]) {
        let [exact, flushed] = [1.0e-40 + 2.0 * tiny.to_f32(), 0.0];
        let expected = if set == "the instruction" { flushed } else { exact };
        assert_eq!(found, [expected; COUNT], "{set}");
    }
}
