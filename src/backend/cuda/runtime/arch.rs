//! Instruction sets of devices.

use std::fmt;
use std::str::FromStr;

use crate::{Error, Result};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::backend::cuda) struct Arch {
    pub major: u32,
    pub minor: u32,
}

impl Arch {
    /// Compute capability 9.0 with the instructions that it alone has.
    pub const HOPPER: Arch = Arch { major: 9, minor: 0 };
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Hopper's own instructions are in the set with an `a`.
        let own = if (self.major, self.minor) == (9, 0) { "a" } else { "" };
        write!(f, "sm_{}{}{own}", self.major, self.minor)
    }
}

impl FromStr for Arch {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let digits = text.strip_prefix("sm_").map(|rest| rest.strip_suffix('a').unwrap_or(rest));
        let number = digits.and_then(|digits| digits.parse::<u32>().ok()).filter(|number| (80..1000).contains(number));
        let arch = number.map(|number| Arch { major: number / 10, minor: number % 10 });
        arch.filter(|arch| arch.to_string() == text)
            .ok_or_else(|| Error::argument("device", "arch", "sm_80, sm_89, sm_90a and the like", text))
    }
}
