//! One declaration of a case's parameters: values for selections, reproduction string, parser.

use std::fmt::{Debug, Display};
use std::str::FromStr;

use crate::Error;

/// A parameter's text inside a reproduction string: no commas, no `=`.
pub trait Field: Clone + PartialEq + Debug + Display + FromStr {}
impl<T: Clone + PartialEq + Debug + Display + FromStr> Field for T {}

/// The interface of every op's case parameters.
pub trait Parameters: Sized + Clone + PartialEq + Debug + Display + FromStr<Err = Error> + Send + Sync {
    /// The op's word, with which the reproduction string begins.
    const OP: &'static str;

    /// Random configurations of `verify --full`.
    const RANDOM: usize;

    /// The number of values of each parameter in covering selections.
    fn extents() -> Vec<usize>;

    /// The case with these values.
    fn choose(choice: &[usize], seed: u64) -> Self;

    /// Whether the op's contract allows the case, at a size that a covering selection can afford.
    fn legal(&self) -> bool;

    /// Replaces lengths by random ones, for random configurations.
    fn vary(&mut self, rng: &mut crate::verify::generate::Rng);
}

pub(crate) fn bad_text(op: &'static str, text: &str, why: impl Display) -> Error {
    Error::argument("verify", "case", format!("a reproduction string of {op}"), format!("{text}: {why}"))
}

/// An enum whose variants print and parse as words. No covering selection takes those behind
/// `beyond`.
macro_rules! words {
    (
        $(#[$doc:meta])* $name:ident { $( $(#[$vdoc:meta])* $variant:ident = $word:literal ),* $(,)? }
        $(beyond { $( $(#[$mdoc:meta])* $more:ident = $mword:literal ),* $(,)? })?
    ) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $name { $( $(#[$vdoc])* $variant, )* $( $( $(#[$mdoc])* $more, )* )? }

        impl $name {
            /// The values in covering selections.
            pub const COVERED: &'static [$name] = &[$($name::$variant),*];
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(match self { $($name::$variant => $word,)* $($($name::$more => $mword,)*)? })
            }
        }

        impl std::str::FromStr for $name {
            type Err = String;
            fn from_str(text: &str) -> Result<Self, String> {
                match text {
                    $($word => Ok($name::$variant),)*
                    $($($mword => Ok($name::$more),)*)?
                    _ => Err(format!("expected one of {}", [$($word,)* $($($mword,)*)?].join(", "))),
                }
            }
        }
    };
}
pub(crate) use words;

/// A struct of parameters with a seed: `op:name=value,...,seed=7`.
macro_rules! parameters {
    ($(#[$doc:meta])* $name:ident($op:literal) { $( $(#[$fdoc:meta])* $field:ident : $ty:ty = $values:expr ),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq)]
        pub struct $name {
            $( $(#[$fdoc])* pub $field: $ty, )*
            /// Decides all values.
            pub seed: u64,
        }

        impl $name {
            fn extents_of() -> Vec<usize> {
                vec![$({ let values: &[$ty] = $values; values.len() }),*]
            }

            fn choose_from(choice: &[usize], seed: u64) -> Self {
                let mut next = choice.iter().copied();
                $( let $field = { let values: &[$ty] = $values; values[next.next().unwrap_or(0)].clone() }; )*
                $name { $($field,)* seed }
            }

            /// The case of a reproduction string. An abridged one may leave parameters out: each is
            /// then the first of its values.
            pub(crate) fn read(text: &str, abridged: bool) -> crate::Result<Self> {
                use crate::verify::cases::declare::bad_text;
                let bad = |why: String| bad_text($op, text, why);
                let list = text.strip_prefix(concat!($op, ":")).ok_or_else(|| bad(format!("expected {}:…", $op)))?;
                let absent = abridged.then(|| Self::choose_from(&[], 0));
                $( let mut $field: Option<$ty> = None; )*
                let mut seed: Option<u64> = None;
                for part in list.split(',') {
                    let (name, value) = part.split_once('=').ok_or_else(|| bad(format!("{part}: expected name=value")))?;
                    let twice = match name {
                        $( stringify!($field) => {
                            let parsed = value.parse::<$ty>().map_err(|e| bad(format!("{part}: {e}")))?;
                            $field.replace(parsed).is_some()
                        } )*
                        "seed" => seed.replace(value.parse().map_err(|e| bad(format!("{part}: {e}")))?).is_some(),
                        _ => return Err(bad(format!("{name} is no parameter"))),
                    };
                    if twice {
                        return Err(bad(format!("{name} occurs twice")));
                    }
                }
                Ok($name {
                    $( $field: $field
                        .or_else(|| absent.as_ref().map(|absent| absent.$field.clone()))
                        .ok_or_else(|| bad(format!("{} is missing", stringify!($field))))?, )*
                    seed: seed.ok_or_else(|| bad("seed is missing".into()))?,
                })
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, "{}:", $op)?;
                $( write!(f, "{}={},", stringify!($field), self.$field)?; )*
                write!(f, "seed={}", self.seed)
            }
        }

        impl std::str::FromStr for $name {
            type Err = crate::Error;

            fn from_str(text: &str) -> crate::Result<Self> {
                Self::read(text, false)
            }
        }
    };
}
pub(crate) use parameters;

/// Lengths around the edges of tiles, words and blocks.
pub const BOUNDARY: &[usize] = &[0, 1, 2, 63, 64, 65, 127, 128, 129, 255, 257];

words! {
    /// Element types of activations.
    Real {
        /// Single precision.
        F32 = "f32",
        /// Half precision.
        F16 = "f16",
        /// bfloat16.
        BF16 = "bf16",
    }
}

impl Real {
    /// The crate's name for it.
    pub fn dtype(self) -> crate::DType {
        match self {
            Real::F32 => crate::DType::F32,
            Real::F16 => crate::DType::F16,
            Real::BF16 => crate::DType::BF16,
        }
    }
}

words! {
    /// Element types beside activations: gates, norm parameters, residual streams, results.
    Side {
        /// As the activations.
        Same = "same",
        /// Single precision.
        F32 = "f32",
    }
}

impl Side {
    /// The dtype beside activations of `real`.
    pub fn dtype(self, real: Real) -> crate::DType {
        match self {
            Side::Same => real.dtype(),
            Side::F32 => crate::DType::F32,
        }
    }
}

words! {
    /// How operands lie in memory: NaN or hostile integers behind inputs, guards around outputs.
    Layout {
        /// Without gaps.
        Gapless = "gapless",
        /// With gaps in every dimension, filled like the memory behind.
        Padded = "padded",
    }
    beyond {
        /// Every row begins on a multiple of 16 bytes, ends before one, and has a gap behind it:
        /// vectorised loads are allowed, and must not reach the gap.
        Aligned = "aligned",
    }
}
