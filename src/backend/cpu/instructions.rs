//! The instruction sets for which the kernels are compiled, and their detection.

use std::fmt;
use std::str::FromStr;

use crate::{Error, Result};

/// The environment variable for a set ([`CpuOptions::from_env`](super::CpuOptions::from_env)).
pub(super) const VARIABLE: &str = "XATTN_CPU";

/// An instruction set for which the CPU's kernels are compiled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum InstructionSet {
    /// AVX-512F with the dot product of bf16 pairs (AVX-512 BF16), which GEMM uses where x and W are
    /// bf16. All else is that of [`InstructionSet::Avx512`].
    Avx512Bf16,
    /// AVX-512F: registers of 16 lanes.
    Avx512,
    /// AVX2 with FMA and F16C: registers of 8 lanes.
    Avx2,
    /// The baseline of the target; multiply-adds are fused only if every processor of it can.
    Portable,
}

impl InstructionSet {
    /// Every set, the widest first.
    pub const ALL: [Self; 4] = [Self::Avx512Bf16, Self::Avx512, Self::Avx2, Self::Portable];

    /// The name in `XATTN_CPU` and in messages: `avx512bf16`, `avx512`, `avx2` or `portable`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Avx512Bf16 => "avx512bf16",
            Self::Avx512 => "avx512",
            Self::Avx2 => "avx2",
            Self::Portable => "portable",
        }
    }

    /// Whether this machine can execute it (the standard library caches the detection).
    pub fn is_available(self) -> bool {
        match self {
            #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
            Self::Avx512Bf16 => Self::Avx512.is_available() && std::arch::is_x86_feature_detected!("avx512bf16"),
            #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
            Self::Avx512 => Self::Avx2.is_available() && std::arch::is_x86_feature_detected!("avx512f"),
            #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
            Self::Avx2 => {
                std::arch::is_x86_feature_detected!("avx2")
                    && std::arch::is_x86_feature_detected!("fma")
                    && std::arch::is_x86_feature_detected!("f16c")
            }
            #[cfg(not(any(target_arch = "x86", target_arch = "x86_64")))]
            Self::Avx512Bf16 | Self::Avx512 | Self::Avx2 => false,
            Self::Portable => true,
        }
    }
}

impl fmt::Display for InstructionSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for InstructionSet {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|set| set.name() == text).ok_or_else(|| {
            Error::argument("device", VARIABLE, format!("one of {}", Self::ALL.map(Self::name).join(", ")), text)
        })
    }
}

/// An instruction set that this machine has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Detected {
    set: InstructionSet,
    /// GEMM's portable tile has the shape of AVX-512's.
    #[cfg(test)]
    wide_shape: bool,
}

impl Detected {
    const PORTABLE: Self = Self {
        set: InstructionSet::Portable,
        #[cfg(test)]
        wide_shape: false,
    };

    /// # Errors
    /// [`Error::Unavailable`] if this machine does not have it.
    pub fn of(set: InstructionSet) -> Result<Self> {
        if !set.is_available() {
            let reason = format!("this processor does not have the instruction set {set}");
            return Err(Error::Unavailable { backend: "cpu", reason });
        }
        let mut found = Self::PORTABLE;
        found.set = set;
        Ok(found)
    }

    /// Those of this machine, the widest first.
    pub fn all() -> impl Iterator<Item = Self> {
        InstructionSet::ALL.into_iter().filter_map(|set| Self::of(set).ok())
    }

    pub fn widest() -> Self {
        Self::all().next().unwrap_or(Self::PORTABLE)
    }

    /// The portable set, with GEMM's tile in the shape of AVX-512's.
    #[cfg(test)]
    pub fn portable_in_wide_shape() -> Self {
        Detected { wide_shape: true, ..Self::PORTABLE }
    }

    #[cfg(test)]
    pub fn has_wide_shape(self) -> bool {
        self.wide_shape
    }

    /// Whether GEMM multiplies pairs of bf16.
    pub fn has_pairs(self) -> bool {
        #[cfg(test)]
        if self.wide_shape {
            return true;
        }
        self.set == InstructionSet::Avx512Bf16
    }

    pub fn set(self) -> InstructionSet {
        self.set
    }
}
