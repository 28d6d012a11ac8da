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
    /// [`InstructionSet::Avx512`] with the matrix registers of AMX (Linux on x86-64), which GEMM uses
    /// where x and W are bf16.
    Amx,
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
    /// Every set, the fastest first.
    pub const ALL: [Self; 5] = [Self::Amx, Self::Avx512Bf16, Self::Avx512, Self::Avx2, Self::Portable];

    /// The name in `XATTN_CPU` and in messages: `amx`, `avx512bf16`, `avx512`, `avx2` or `portable`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Amx => "amx",
            Self::Avx512Bf16 => "avx512bf16",
            Self::Avx512 => "avx512",
            Self::Avx2 => "avx2",
            Self::Portable => "portable",
        }
    }

    /// Whether this machine can execute it (the standard library caches the detection).
    pub fn is_available(self) -> bool {
        match self {
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Self::Amx => Self::Avx512.is_available() && amx::is_available(),
            #[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
            Self::Amx => false,
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

    /// Those of this machine, in the order of [`InstructionSet::ALL`].
    pub fn all() -> impl Iterator<Item = Self> {
        InstructionSet::ALL.into_iter().filter_map(|set| Self::of(set).ok())
    }

    /// The fastest set of this machine. Intel's processors with AVX-512 BF16 execute its dot products
    /// at half the rate of f32 multiply-adds (one core of a Xeon 6: 84 against 156 GFLOP/s), AMD's
    /// at twice their rate.
    pub fn fastest() -> Self {
        let gains = |set: &Self| set.set != InstructionSet::Avx512Bf16 || is_amd();
        Self::all().find(gains).unwrap_or(Self::PORTABLE)
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

    /// Whether GEMM multiplies bf16 in matrix registers.
    pub fn has_matrices(self) -> bool {
        self.set == InstructionSet::Amx
    }

    /// Whether GEMM multiplies pairs of bf16 in vector registers.
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

fn is_amd() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        // The letters of "AuthenticAMD", as the processor returns them.
        let vendor = std::arch::x86_64::__cpuid(0);
        [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes).concat() == b"AuthenticAMD"
    }
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// Detection of AMX, which the standard library does not have yet.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod amx {
    use std::arch::asm;
    use std::arch::x86_64::{__cpuid, __cpuid_count};
    use std::sync::OnceLock;

    /// Whether the processor has tiles and their products of bf16, and Linux lets this process use
    /// them.
    pub fn is_available() -> bool {
        static AVAILABLE: OnceLock<bool> = OnceLock::new();
        *AVAILABLE.get_or_init(|| has_instructions() && permitted())
    }

    fn has_instructions() -> bool {
        // Leaf 7: bit 22 is AMX-BF16, bit 24 AMX-TILE. Leaf 0x1d: the palettes, of which the first
        // has 8 registers of 16 rows of 64 bytes.
        let wanted = 1 << 22 | 1 << 24;
        let has = __cpuid(0).eax >= 0x1d && __cpuid_count(7, 0).edx & wanted == wanted;
        has && __cpuid_count(0x1d, 0).eax >= 1
    }

    /// Asks Linux for the registers: a process that did not is killed when it uses them.
    fn permitted() -> bool {
        const ARCH_PRCTL: u64 = 158;
        const ARCH_REQ_XCOMP_PERM: u64 = 0x1023;
        const XTILEDATA: u64 = 18;
        let answer: i64;
        // SAFETY: the call reads no memory, and changes nothing but what the process may use.
        unsafe {
            asm!("syscall", inlateout("rax") ARCH_PRCTL => answer, in("rdi") ARCH_REQ_XCOMP_PERM, in("rsi") XTILEDATA,
                lateout("rcx") _, lateout("r11") _, options(nostack));
        }
        answer == 0
    }
}
