//! Element types.

use std::fmt;
use std::str::FromStr;

use half::{bf16, f16};

use crate::{Error, Result};

/// The type of a tensor's elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum DType {
    /// IEEE double precision: the reference's own type.
    F64,
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// bfloat16.
    BF16,
    /// Signed 32-bit integers: φ, token ids.
    I32,
    /// Unsigned 32-bit integers: lengths, offsets, slots, bitsets, media plans.
    U32,
}

impl DType {
    /// Every dtype, in declaration order.
    pub const ALL: [DType; 6] = [DType::F64, DType::F32, DType::F16, DType::BF16, DType::I32, DType::U32];

    /// Bytes per element.
    pub const fn size(self) -> usize {
        match self {
            DType::F64 => 8,
            DType::F32 | DType::I32 | DType::U32 => 4,
            DType::F16 | DType::BF16 => 2,
        }
    }

    /// Alignment of an element in bytes: its size, on every device.
    pub(crate) const fn alignment(self) -> usize {
        self.size()
    }

    /// Whether the elements are real numbers.
    pub const fn is_float(self) -> bool {
        matches!(self, DType::F64 | DType::F32 | DType::F16 | DType::BF16)
    }

    /// The name used in messages, on the command line and in file names.
    pub const fn name(self) -> &'static str {
        match self {
            DType::F64 => "f64",
            DType::F32 => "f32",
            DType::F16 => "f16",
            DType::BF16 => "bf16",
            DType::I32 => "i32",
            DType::U32 => "u32",
        }
    }

    /// Distance from 1.0 to the next larger number (0 for integers).
    pub fn epsilon(self) -> f64 {
        match self {
            DType::F64 => f64::EPSILON,
            DType::F32 => f64::from(f32::EPSILON),
            DType::F16 => f16::EPSILON.to_f64(),
            DType::BF16 => bf16::EPSILON.to_f64(),
            DType::I32 | DType::U32 => 0.0,
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for DType {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        DType::ALL.into_iter().find(|d| d.name() == text).ok_or_else(|| {
            let names: Vec<_> = DType::ALL.iter().map(|d| d.name()).collect();
            Error::argument("dtype", "name", format!("one of {}", names.join(", ")), text)
        })
    }
}

/// Keeps [`Element`] and [`Float`] to the types of this file: views rely on their size.
mod sealed {
    pub trait Sealed {}
}

/// A Rust type that is the element of a tensor: `f64`, `f32`, `f16`, `bf16`, `i32`, `u32`. Sealed,
/// since views rely on the type having its dtype's size:
///
/// ```compile_fail,E0277
/// #[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
/// #[repr(transparent)]
/// struct Byte(u8);
/// impl xattn::Element for Byte {
///     const DTYPE: xattn::DType = xattn::DType::F32;
/// }
/// ```
pub trait Element: sealed::Sealed + bytemuck::Pod + Send + Sync + fmt::Debug {
    /// The dtype of this type.
    const DTYPE: DType;
}

/// An element that is a real number. Conversions round once, to nearest even.
pub trait Float: Element {
    /// Widens or rounds to single precision.
    fn to_f32(self) -> f32;
    /// Rounds from single precision.
    fn from_f32(x: f32) -> Self;
    /// Widens to double precision.
    fn to_f64(self) -> f64;
    /// Rounds from double precision, once. The name differs from `half`'s own `from_f64`, which
    /// rounds twice or drops the last 32 bits and would take precedence.
    fn round_from(x: f64) -> Self;
}

macro_rules! elements {
    ($($type:ty => $dtype:ident),*) => { $(
        impl sealed::Sealed for $type {}
        impl Element for $type {
            const DTYPE: DType = DType::$dtype;
        }
    )* };
}
elements!(f64 => F64, f32 => F32, f16 => F16, bf16 => BF16, i32 => I32, u32 => U32);

impl Float for f64 {
    fn to_f32(self) -> f32 {
        self as f32
    }
    fn from_f32(x: f32) -> Self {
        f64::from(x)
    }
    fn to_f64(self) -> f64 {
        self
    }
    fn round_from(x: f64) -> Self {
        x
    }
}

impl Float for f32 {
    fn to_f32(self) -> f32 {
        self
    }
    fn from_f32(x: f32) -> Self {
        x
    }
    fn to_f64(self) -> f64 {
        f64::from(self)
    }
    fn round_from(x: f64) -> Self {
        x as f32
    }
}

/// The f32 nearest to x if it is exact, else the neighbour of x with an odd last bit. Rounded
/// further to a type with at least two bits less, it gives what x gives, rounded once.
fn rounded_to_odd(x: f64) -> f32 {
    let nearest = x as f32;
    let even = nearest.to_bits() & 1 == 0;
    if nearest.is_nan() || f64::from(nearest) == x || !even {
        return nearest;
    }
    // The neighbour on the side of x: bits of a float count upwards from 0.
    let away = f64::from(nearest).abs() < x.abs();
    f32::from_bits(if away { nearest.to_bits() + 1 } else { nearest.to_bits() - 1 })
}

macro_rules! half_floats {
    ($($type:ty),*) => { $(impl Float for $type {
        fn to_f32(self) -> f32 {
            self.to_f32()
        }
        fn from_f32(x: f32) -> Self {
            <$type>::from_f32(x)
        }
        fn to_f64(self) -> f64 {
            self.to_f64()
        }
        fn round_from(x: f64) -> Self {
            <$type>::from_f32(rounded_to_odd(x))
        }
    })* };
}
half_floats!(f16, bf16);

/// Runs a block with `$t` bound to the Rust type of a float dtype; `$otherwise` for integers.
macro_rules! with_float {
    ($dtype:expr, $t:ident => $body:expr, else $otherwise:expr) => {
        match $dtype {
            $crate::DType::F64 => {
                type $t = f64;
                $body
            }
            $crate::DType::F32 => {
                type $t = f32;
                $body
            }
            $crate::DType::F16 => {
                type $t = half::f16;
                $body
            }
            $crate::DType::BF16 => {
                type $t = half::bf16;
                $body
            }
            _ => $otherwise,
        }
    };
}
pub(crate) use with_float;

#[cfg(test)]
mod tests {
    use super::*;

    /// Both neighbours of every midpoint, and the midpoint itself: nearer values win, ties go to
    /// even bits.
    fn rounds_once<T: Float>(of_bits: fn(u16) -> T, bits: fn(T) -> u16) {
        for sign in [0, 0x8000] {
            for low in (0..0x7fff).filter(|&low| of_bits(low + 1).to_f64().is_finite()).map(|low| low | sign) {
                let [a, b] = [low, low + 1].map(|n| of_bits(n).to_f64());
                let middle = (a + b) / 2.0;
                let [toward_a, toward_b] =
                    [-1, 1].map(|step: i64| f64::from_bits((middle.to_bits() as i64 + step) as u64));
                for (x, right) in [(a, low), (toward_a, low), (middle, low + low % 2), (toward_b, low + 1)] {
                    assert_eq!(bits(T::round_from(x)), right, "{:?} of {x:e}", T::DTYPE);
                }
            }
        }
        assert!(T::round_from(f64::NAN).to_f32().is_nan());
        for x in [f64::INFINITY, f64::NEG_INFINITY, f64::MAX, f64::MIN] {
            assert_eq!(T::round_from(x).to_f64(), x.signum() * f64::INFINITY);
        }
        for x in [0.0, -0.0, f64::MIN_POSITIVE, -f64::MIN_POSITIVE] {
            assert_eq!(bits(T::round_from(x)), bits(T::round_from(0.0f64.copysign(x))), "{x:e}");
        }
    }

    #[test]
    fn doubles_round_once_to_sixteen_bits() {
        rounds_once::<f16>(f16::from_bits, f16::to_bits);
        rounds_once::<bf16>(bf16::from_bits, bf16::to_bits);
    }
}
