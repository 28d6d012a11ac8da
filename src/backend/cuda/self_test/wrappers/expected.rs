//! The result of each instruction by the PTX ISA: `ldmatrix`, `mma`, conversions, copies.

use std::fmt;

use half::{bf16, f16};

use super::LANES;
use crate::verify::generate::Rng;

/// One word of all lanes.
type Lanes = [u32; LANES];

/// A wrapper, the statement that calls it, and what it should give.
pub(super) struct Wrapper {
    pub name: &'static str,
    /// With `in[]`, `out[]`, `tile`, `lane` and `input` of `kernels/wrappers.cu`.
    pub statement: &'static str,
    /// Words of a lane.
    pub inputs: usize,
    pub outputs: usize,
    /// The registers of a round.
    pub registers: fn(&mut Rng, usize, usize) -> Vec<Lanes>,
    /// The results: by word, by lane.
    pub expected: fn(&[Lanes]) -> Vec<[Expected; LANES]>,
}

/// What a word may be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Expected {
    /// These bits.
    Bits(u32),
    /// NaN of f32, f16 or bf16 in the lower half, whichever the upper half may be of.
    Nan(Kind),
    /// A 16-bit pair.
    Pair(Half, Half),
    /// f32 within a distance.
    Near(f64, f64),
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Kind {
    F32,
    F16,
    Bf16,
}

/// 16 bits, or any NaN.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Half {
    Bits(u16),
    Nan(Kind),
}

impl Kind {
    fn is_nan(self, bits: u32) -> bool {
        match self {
            Kind::F32 => f32::from_bits(bits).is_nan(),
            Kind::F16 => f16::from_bits(bits as u16).is_nan(),
            Kind::Bf16 => bf16::from_bits(bits as u16).is_nan(),
        }
    }
}

impl Half {
    fn of(kind: Kind, value: f32) -> Self {
        match kind {
            _ if value.is_nan() => Half::Nan(kind),
            Kind::F16 => Half::Bits(f16::from_f32(value).to_bits()),
            _ => Half::Bits(bf16::from_f32(value).to_bits()),
        }
    }

    fn admits(self, bits: u16) -> bool {
        match self {
            Half::Bits(expected) => bits == expected,
            Half::Nan(kind) => kind.is_nan(u32::from(bits)),
        }
    }
}

impl Expected {
    pub fn admits(self, actual: u32) -> bool {
        match self {
            Expected::Bits(bits) => actual == bits,
            Expected::Nan(kind) => kind.is_nan(actual),
            Expected::Pair(low, high) => low.admits(actual as u16) && high.admits((actual >> 16) as u16),
            Expected::Near(value, distance) => (f64::from(f32::from_bits(actual)) - value).abs() <= distance,
        }
    }

    fn half(kind: Kind, value: f32) -> Self {
        match Half::of(kind, value) {
            Half::Bits(bits) => Expected::Bits(u32::from(bits)),
            Half::Nan(kind) => Expected::Nan(kind),
        }
    }
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Expected::Bits(bits) => write!(f, "{bits:#010x}"),
            Expected::Nan(kind) => write!(f, "a NaN of {kind:?}"),
            Expected::Pair(low, high) => write!(f, "{low:?} and {high:?}"),
            Expected::Near(value, distance) => write!(f, "{value:e} within {distance:e} as f32"),
        }
    }
}

pub(super) const TABLE: [Wrapper; 15] = [
    Wrapper {
        name: "f16_to_f32",
        statement: "out[0] = __float_as_uint(f16_to_f32(static_cast<u16>(in[0])))",
        inputs: 1,
        outputs: 1,
        registers: any_bits,
        expected: |r| {
            each(r, |lane| {
                let value = f16::from_bits(r[0][lane] as u16).to_f32();
                if value.is_nan() { Expected::Nan(Kind::F32) } else { Expected::Bits(value.to_bits()) }
            })
        },
    },
    Wrapper {
        name: "f32_to_f16",
        statement: "out[0] = f32_to_f16(__uint_as_float(in[0]))",
        inputs: 1,
        outputs: 1,
        registers: near_halves,
        expected: |r| each(r, |lane| Expected::half(Kind::F16, f32::from_bits(r[0][lane]))),
    },
    Wrapper {
        name: "f32_to_bf16",
        statement: "out[0] = f32_to_bf16(__uint_as_float(in[0]))",
        inputs: 1,
        outputs: 1,
        registers: near_halves,
        expected: |r| each(r, |lane| Expected::half(Kind::Bf16, f32::from_bits(r[0][lane]))),
    },
    Wrapper {
        name: "f32_to_f16_pair",
        statement: "out[0] = f32_to_f16_pair(__uint_as_float(in[0]), __uint_as_float(in[1]))",
        inputs: 2,
        outputs: 1,
        registers: near_halves,
        expected: |r| each(r, |lane| pair(Kind::F16, r, lane)),
    },
    Wrapper {
        name: "f32_to_bf16_pair",
        statement: "out[0] = f32_to_bf16_pair(__uint_as_float(in[0]), __uint_as_float(in[1]))",
        inputs: 2,
        outputs: 1,
        registers: near_halves,
        expected: |r| each(r, |lane| pair(Kind::Bf16, r, lane)),
    },
    Wrapper {
        name: "exp2_approx",
        statement: "out[0] = __float_as_uint(exp2_approx(__uint_as_float(in[0])))",
        inputs: 1,
        outputs: 1,
        registers: exponents,
        expected: |r| each(r, |lane| power_of_two(f32::from_bits(r[0][lane]))),
    },
    Wrapper {
        name: "reciprocal",
        statement: "out[0] = __float_as_uint(reciprocal(__uint_as_float(in[0])))",
        inputs: 1,
        outputs: 1,
        registers: exponents,
        expected: |r| {
            each(r, |lane| match f32::from_bits(r[0][lane]) {
                // Infinity or zero of the argument's sign.
                x if x == 0.0 || x.is_infinite() => Expected::Bits((1.0 / x).to_bits()),
                x => ulps(1.0 / f64::from(x), 1.0),
            })
        },
    },
    Wrapper {
        name: "wide",
        statement: "wide_store(tile + 128 + 4 * lane, wide_load(tile + 4 * in[4])); \
                    for (u32 j = 0; j < 4; j++) { out[j] = tile[128 + 4 * lane + j]; }",
        inputs: 5,
        outputs: 4,
        registers: rows_in_any_order,
        expected: |r| (0..4).map(|j| std::array::from_fn(|lane| Expected::Bits(r[j][r[4][lane] as usize]))).collect(),
    },
    Wrapper {
        name: "ldmatrix_x4",
        statement: "ldmatrix_x4(out, tile + 4 * in[4])",
        inputs: 5,
        outputs: 4,
        registers: rows_in_any_order,
        expected: |r| matrices(r, 4, false),
    },
    Wrapper {
        name: "ldmatrix_x2",
        statement: "ldmatrix_x2(out, tile + 4 * in[4])",
        inputs: 5,
        outputs: 2,
        registers: rows_in_any_order,
        expected: |r| matrices(r, 2, false),
    },
    Wrapper {
        name: "ldmatrix_x4_trans",
        statement: "ldmatrix_x4_trans(out, tile + 4 * in[4])",
        inputs: 5,
        outputs: 4,
        registers: rows_in_any_order,
        expected: |r| matrices(r, 4, true),
    },
    Wrapper {
        name: "ldmatrix_x2_trans",
        statement: "ldmatrix_x2_trans(out, tile + 4 * in[4])",
        inputs: 5,
        outputs: 2,
        registers: rows_in_any_order,
        expected: |r| matrices(r, 2, true),
    },
    Wrapper {
        name: "mma_16816_f16",
        statement: "product<f16>(out, in)",
        inputs: 10,
        outputs: 4,
        registers: |rng, round, words| fragments(rng, round, words, |x| f16::from_f32(x).to_bits()),
        expected: |r| product(r, |bits| f16::from_bits(bits).to_f64()),
    },
    Wrapper {
        name: "mma_16816_bf16",
        statement: "product<bf16>(out, in)",
        inputs: 10,
        outputs: 4,
        registers: |rng, round, words| fragments(rng, round, words, |x| bf16::from_f32(x).to_bits()),
        expected: |r| product(r, |bits| bf16::from_bits(bits).to_f64()),
    },
    Wrapper {
        name: "copy_async",
        statement: "copied(out, tile, input + 64, in, lane)",
        inputs: 6,
        outputs: 4,
        registers: rows_and_flags,
        expected: |r| {
            // Packed rows from word 2 of the round on: row n is words 4 n to 4 n + 3 of these.
            let rows: Vec<u32> = r[2..].iter().flatten().copied().collect();
            let word = |lane: usize, j: usize| rows[4 * r[0][lane] as usize + j];
            (0..4)
                .map(|j| std::array::from_fn(|lane| Expected::Bits(if r[1][lane] == 0 { 0 } else { word(lane, j) })))
                .collect()
        },
    },
];

fn each(_: &[Lanes], lane: impl FnMut(usize) -> Expected) -> Vec<[Expected; LANES]> {
    vec![std::array::from_fn(lane)]
}

fn pair(kind: Kind, r: &[Lanes], lane: usize) -> Expected {
    Expected::Pair(Half::of(kind, f32::from_bits(r[0][lane])), Half::of(kind, f32::from_bits(r[1][lane])))
}

/// f32 within some units in the last place.
fn ulps(value: f64, n: f64) -> Expected {
    let exponent = (value.abs().log2().floor() as i32).max(-126);
    Expected::Near(value, n * f64::from(exponent - 23).exp2())
}

/// `ex2.approx.ftz`: 2 ulp; subnormal results are 0.
fn power_of_two(x: f32) -> Expected {
    let value = f64::from(x).exp2();
    let smallest = f64::from(f32::MIN_POSITIVE);
    if x == f32::NEG_INFINITY || value < smallest * (1.0 - 1e-6) {
        return Expected::Bits(0);
    }
    // Beside the smallest normal number either may come.
    if value < smallest * (1.0 + 1e-6) { Expected::Near(smallest, smallest) } else { ulps(value, 2.0) }
}

/// Lane 4 g + t has, of matrix m, elements [g][2t] and [g][2t + 1]; transposed, [2t][g] and [2t +
/// 1][g]. Row i of matrix m lies where lane 8 m + i says.
fn matrices(r: &[Lanes], count: usize, transposed: bool) -> Vec<[Expected; LANES]> {
    let element = |matrix: usize, row: usize, column: usize| {
        let place = r[4][8 * matrix + row] as usize;
        r[column / 2][place] >> (16 * (column % 2)) & 0xffff
    };
    let word = |m: usize, lane: usize| {
        let (g, t) = (lane / 4, lane % 4);
        let [low, high] = match transposed {
            false => [element(m, g, 2 * t), element(m, g, 2 * t + 1)],
            true => [element(m, 2 * t, g), element(m, 2 * t + 1, g)],
        };
        Expected::Bits(low | high << 16)
    };
    (0..count).map(|m| std::array::from_fn(|lane| word(m, lane))).collect()
}

/// d = d + a b of `mma.m16n8k16`. Sixteen products and d are added with 24 bits, aligned to the
/// largest of them and perhaps truncated: each loses less than 2^-23 of the largest, and the result
/// as much of itself.
fn product(r: &[Lanes], value: impl Fn(u16) -> f64) -> Vec<[Expected; LANES]> {
    let half = |word: u32, high: usize| value((word >> (16 * high)) as u16);
    // A[row][k]: lane 4 (row % 8) + k % 8 / 2, word row / 8 + 2 (k / 8); B[k][column]: lane 4
    // column + k % 8 / 2, word k / 8.
    let a = |row: usize, k: usize| half(r[4 + row / 8 + 2 * (k / 8)][4 * (row % 8) + k % 8 / 2], k % 2);
    let b = |k: usize, column: usize| half(r[8 + k / 8][4 * column + k % 8 / 2], k % 2);
    let word = |j: usize, lane: usize| {
        let (row, column) = (lane / 4 + 8 * (j / 2), 2 * (lane % 4) + j % 2);
        let d = f64::from(f32::from_bits(r[j][lane]));
        let products = (0..16).map(|k| a(row, k) * b(k, column));
        let exact = products.clone().sum::<f64>() + d;
        let magnitude = products.map(f64::abs).fold(d.abs(), f64::max);
        // Small integers are exact.
        let whole = (0..16).all(|k| a(row, k).fract() == 0.0 && b(k, column).fract() == 0.0) && d.fract() == 0.0;
        if whole && exact != 0.0 {
            return Expected::Bits((exact as f32).to_bits());
        }
        let lost = if whole { 0.0 } else { 18.0 * 2f64.powi(-23) * (magnitude + exact.abs()) };
        Expected::Near(exact, lost)
    };
    (0..4).map(|j| std::array::from_fn(|lane| word(j, lane))).collect()
}

fn lanes(mut word: impl FnMut() -> u32) -> Lanes {
    std::array::from_fn(|_| word())
}

fn any_bits(rng: &mut Rng, _: usize, words: usize) -> Vec<Lanes> {
    (0..words).map(|_| lanes(|| rng.bits() as u32)).collect()
}

/// f32 where rounding to 16 bits is decided: ties, both sides of the largest and of the subnormal
/// numbers, infinities, NaN; and any bits.
fn near_halves(rng: &mut Rng, round: usize, words: usize) -> Vec<Lanes> {
    const EDGES: [f32; 12] = [
        0.0,
        -0.0,
        65504.0,
        65519.996,
        65520.0,
        6.103_515_6e-5,
        5.960_464_5e-8,
        2.980_232_2e-8,
        f32::INFINITY,
        f32::NAN,
        f32::MAX,
        1e-40,
    ];
    let mut word = || match rng.below(4) {
        0 => EDGES[rng.below(EDGES.len())].to_bits() ^ (rng.bits() as u32 & 0x8000_0000),
        // Half way between two of f16, then of bf16, and one bit beside it.
        1 => ((rng.normal() as f32).to_bits() & 0xffff_e000 | 0x1000).wrapping_add(rng.below(3) as u32).wrapping_sub(1),
        2 => ((rng.normal() as f32).to_bits() & 0xffff_0000 | 0x8000).wrapping_add(rng.below(3) as u32).wrapping_sub(1),
        _ if round.is_multiple_of(2) => rng.bits() as u32,
        _ => ((rng.normal() * 10f64.powi(rng.below(14) as i32 - 8)) as f32).to_bits(),
    };
    (0..words).map(|_| lanes(&mut word)).collect()
}

/// Arguments of exponentials and divisors.
fn exponents(rng: &mut Rng, _: usize, words: usize) -> Vec<Lanes> {
    let mut word = || match rng.below(16) {
        0 => 0.0f32.to_bits(),
        1 => f32::NEG_INFINITY.to_bits(),
        2 => (-(rng.below(150) as f32)).to_bits(),
        3..8 => ((rng.normal() * 1e-3) as f32).to_bits(),
        _ => ((-150.0 * rng.unit() + 20.0) as f32).to_bits(),
    };
    (0..words).map(|_| lanes(&mut word)).collect()
}

/// 16 bytes per lane, and in word 4 where a lane's row lies: a permutation.
fn rows_in_any_order(rng: &mut Rng, _: usize, words: usize) -> Vec<Lanes> {
    let mut all = any_bits(rng, 0, words);
    let mut order: Lanes = std::array::from_fn(|lane| lane as u32);
    for i in (1..LANES).rev() {
        order.swap(i, rng.below(i + 1));
    }
    all[4] = order;
    all
}

/// Which row a lane copies, whether it exists, and the rows.
fn rows_and_flags(rng: &mut Rng, _: usize, words: usize) -> Vec<Lanes> {
    let mut all = any_bits(rng, 0, words);
    all[0] = lanes(|| rng.below(LANES) as u32);
    all[1] = lanes(|| u32::from(!rng.one_in(3)));
    all
}

/// Four words of d, four of a, two of b: small integers in even rounds, normal numbers in odd ones.
fn fragments(rng: &mut Rng, round: usize, words: usize, bits: fn(f32) -> u16) -> Vec<Lanes> {
    let whole = round.is_multiple_of(2);
    let mut real = || if whole { rng.below(5) as f32 - 2.0 } else { rng.normal() as f32 };
    let mut all: Vec<Lanes> = (0..4).map(|_| lanes(|| real().to_bits())).collect();
    all.extend((4..words).map(|_| lanes(|| u32::from(bits(real())) | u32::from(bits(real())) << 16)));
    all
}
