//! Seeded values for cases: the same seed gives the same case on every machine.

use crate::dtype::with_float;
use crate::threads::Pool;
use crate::{DType, Error, Float, HostTensor, Result};

/// xoshiro256++, seeded by splitmix64 (Blackman and Vigna, public domain).
#[derive(Debug, Clone)]
pub struct Rng {
    state: [u64; 4],
}

impl Rng {
    /// A generator with this seed.
    pub fn new(seed: u64) -> Self {
        let mut x = seed;
        Rng { state: std::array::from_fn(|_| splitmix(&mut x)) }
    }

    /// A separate generator for `name`, so that operands do not shift each other's values.
    pub fn named(seed: u64, name: &str) -> Self {
        // FNV-1a.
        let hash = name.bytes().fold(0xCBF2_9CE4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01B3));
        Rng::new(seed ^ hash)
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        let s = &mut self.state;
        let result = s[0].wrapping_add(s[3]).rotate_left(23).wrapping_add(s[0]);
        let t = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= t;
        s[3] = s[3].rotate_left(45);
        result
    }

    /// A number in `0..n`; 0 for an empty range.
    pub fn below(&mut self, n: usize) -> usize {
        // The bias is at most n / 2^64.
        ((u128::from(self.bits()) * n as u128) >> 64) as usize
    }

    /// Uniform in (0, 1].
    pub fn unit(&mut self) -> f64 {
        ((self.bits() >> 11) + 1) as f64 / (1u64 << 53) as f64
    }

    /// Standard normal (Box and Muller).
    pub fn normal(&mut self) -> f64 {
        (-2.0 * self.unit().ln()).sqrt() * (std::f64::consts::TAU * self.unit()).cos()
    }

    /// True once in `n`.
    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
}

fn splitmix(x: &mut u64) -> u64 {
    *x = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut z = *x;
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// A distribution of values.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Fill {
    /// Normal with this standard deviation.
    Normal(f64),
    /// Normal with this mean and standard deviation.
    Shifted(f64, f64),
    /// 0 in four of five places, else ±1 or ±2: sums of products are exact.
    Sparse,
    /// The same everywhere.
    Constant(f64),
    /// Normal with this standard deviation; one row in four has a NaN or an infinity.
    NonFinite(f64),
    /// Normal with this standard deviation; one row in four has a NaN.
    NotANumber(f64),
    /// Uniform with this mean and standard deviation, as [`uniform`] draws it.
    Uniform(f32, f32),
}

/// Values, rounded once to `dtype`.
///
/// # Errors
/// An integer dtype.
pub fn reals(rng: &mut Rng, fill: Fill, dtype: DType, shape: &[usize]) -> Result<HostTensor<'static>> {
    if let Fill::Uniform(mean, deviation) = fill {
        return uniform(rng.bits(), mean, deviation, dtype, shape);
    }
    let n = shape.iter().product();
    let four_rows = 4 * shape.last().copied().unwrap_or(1).max(1);
    let mut next = || match fill {
        Fill::Normal(scale) => scale * rng.normal(),
        Fill::Shifted(mean, scale) => mean + scale * rng.normal(),
        Fill::Sparse if rng.one_in(5) => [-2.0, -1.0, 1.0, 2.0][rng.below(4)],
        Fill::Sparse => 0.0,
        Fill::Constant(c) => c,
        Fill::NonFinite(_) if rng.one_in(four_rows) => [f64::NAN, f64::INFINITY, f64::NEG_INFINITY][rng.below(3)],
        Fill::NotANumber(_) if rng.one_in(four_rows) => f64::NAN,
        Fill::NonFinite(scale) | Fill::NotANumber(scale) => scale * rng.normal(),
        Fill::Uniform(..) => unreachable!("drawn above"),
    };
    let values: Vec<f64> = (0..n).map(|_| next()).collect();
    HostTensor::from_slice(&values, shape)?.to_dtype(dtype)?.into_owned()
}

/// Numbers per generator of [`uniform`]: small enough that each thread gets several pieces of a
/// small matrix.
pub(crate) const PIECE: usize = 3 << 14;
/// Numbers that are drawn before they are stored.
const AT_ONCE: usize = 3 << 6;

/// Uniform values with this mean and standard deviation: multiples of 2^-20, rounded once to
/// `dtype`. They are drawn in pieces, on all threads.
///
/// # Errors
/// An integer dtype, a shape that no tensor has.
pub fn uniform(seed: u64, mean: f32, deviation: f32, dtype: DType, shape: &[usize]) -> Result<HostTensor<'static>> {
    let n = shape.iter().try_fold(dtype.size(), |n, &d| n.checked_mul(d)).filter(|&n| n <= isize::MAX as usize);
    let n = n.ok_or_else(|| Error::argument("verify", "shape", "one that memory can hold", format!("{shape:?}")))?;
    let mut bytes = vec![0u8; n];
    with_float!(dtype, T => {
        Pool::callers().chunks(&mut bytes, PIECE * dtype.size(), || (), |(), piece, bytes| {
            fill::<T>(&mut Rng::new(seed.wrapping_add(piece as u64)), mean, deviation, bytes);
        });
    }, else return Err(Error::argument("verify", "dtype", "a real type", dtype)));
    HostTensor::from_bytes(dtype, shape, bytes)
}

/// Fills memory with numbers of one generator.
fn fill<T: Float>(rng: &mut Rng, mean: f32, deviation: f32, bytes: &mut [u8]) {
    const UNIT: f32 = 1_048_576.0;
    // In units of 2^-20: half a width below the mean, and the width over 2^21.
    let step = deviation * 12f32.sqrt() * UNIT / 2_097_152.0;
    let least = mean * UNIT - step * 1_048_576.0;
    let mut numbers = [T::from_f32(0.0); AT_ONCE];
    for bytes in bytes.chunks_mut(AT_ONCE * size_of::<T>()) {
        // Three draws of 21 bits from each word.
        for three in numbers.chunks_exact_mut(3) {
            let bits = rng.bits();
            for (part, number) in three.iter_mut().enumerate() {
                let draw = ((bits >> (21 * part)) & 0x1F_FFFF) as i32 as f32;
                *number = T::from_f32((least + step * draw) as i32 as f32 / UNIT);
            }
        }
        bytes.copy_from_slice(&bytemuck::cast_slice(&numbers)[..bytes.len()]);
    }
}

/// φ of text whose media stand at equal distances, the first at the first token: `rows` tokens,
/// `media` media, in each of `batch` rows.
pub fn spread_media(batch: usize, rows: usize, media: usize) -> Vec<i32> {
    (0..batch * rows).map(|i| (i % rows.max(1) * media / rows.max(1)) as i32 + i32::from(media > 0)).collect()
}

/// The same as one bit per medium.
pub(crate) fn one_hot(media_index: &[i32], bits: usize) -> Vec<u32> {
    let words = crate::bit_words(bits);
    let mut all = vec![0u32; media_index.len() * words];
    for (row, &m) in all.chunks_mut(words.max(1)).zip(media_index) {
        if let Some(bit) = usize::try_from(m - 1).ok().filter(|&bit| bit < bits) {
            row[bit / 32] |= 1 << (bit % 32);
        }
    }
    all
}
