//! The families of checkpoints, one file each: tensors' names, fields of the configuration, how a
//! family is recognised and found, and sizes of published models. A new family is one file, its
//! `mod` line and one line of the list below.

pub mod blip2;
pub mod flamingo;
pub mod idefics;
pub mod idefics2;
pub mod mllama;
pub mod open_flamingo;
mod presets;
mod qformer_layers;
#[cfg(feature = "checkpoint")]
mod qformer_place;

#[cfg(feature = "checkpoint")]
pub use list::Family;

#[cfg(feature = "checkpoint")]
mod list {
    use std::fmt;
    use std::path::Path;
    use std::str::FromStr;

    use super::*;
    use crate::checkpoint::row::{Names, Row};
    use crate::checkpoint::{Files, ModelConfig, json};
    use crate::{Error, Result};

    macro_rules! families {
        ($($(#[$doc:meta])* $family:ident = $row:path),* $(,)?) => {
            /// The families of checkpoints, each with the names of its public libraries.
            #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
            #[non_exhaustive]
            pub enum Family { $($(#[$doc])* $family),* }

            impl Family {
                /// Every family.
                pub const ALL: [Family; [$(Family::$family),*].len()] = [$(Family::$family),*];

                pub(in crate::checkpoint) const fn row(self) -> &'static Row {
                    match self { $(Family::$family => &$row),* }
                }
            }
        };
    }

    families! {
        /// flamingo-pytorch, OpenFlamingo, Otter, flamingo-mini: a resampler and gated blocks.
        OpenFlamingo = open_flamingo::family::OPEN_FLAMINGO,
        /// xGen-MM (BLIP-3): a resampler with a projection.
        XgenMm = open_flamingo::family::XGEN_MM,
        /// IDEFICS 9B and 80B: a resampler and gated blocks.
        Idefics = idefics::family::IDEFICS,
        /// Idefics2: a connector.
        Idefics2 = idefics2::family::IDEFICS2,
        /// Llama-3.2-Vision: a projector and cross-attention layers.
        Mllama = mllama::family::MLLAMA,
        /// BLIP-2 as transformers saves it: a Q-Former and its heads.
        Blip2 = blip2::family::BLIP2,
        /// InstructBLIP, for images or video, as transformers saves it.
        InstructBlip = blip2::family::INSTRUCT_BLIP,
        /// BLIP-2 and InstructBLIP as LAVIS saves them, and MiniGPT-4.
        Lavis = blip2::family::LAVIS,
    }

    impl Family {
        /// The name used in messages and on the command line.
        pub const fn name(self) -> &'static str {
            self.row().name
        }

        /// The families whose names the tensors of these files have.
        pub(in crate::checkpoint) fn of_tensors(files: &Files) -> Vec<Self> {
            let names = Names(files);
            Family::ALL.into_iter().filter(|family| (family.row().matches)(&names)).collect()
        }
    }

    impl ModelConfig {
        /// Parses the text of `path` as the named family's configuration, else by its `model_type`.
        ///
        /// # Errors
        /// [`Error::File`] with the wrong field.
        pub fn parse(path: &Path, text: &str, named: Option<Family>) -> Result<Self> {
            let rows = Family::ALL.map(Family::row);
            let config = ModelConfig::read(&json::quoted_non_finite(text), &rows, named.map(Family::row));
            config.map_err(|fault| Error::file(path, fault))
        }

        /// The family that the configuration names.
        pub fn family(&self) -> Option<Family> {
            let named = self.family_name()?;
            Family::ALL.into_iter().find(|family| family.name() == named)
        }
    }

    impl fmt::Display for Family {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.pad(self.name())
        }
    }

    impl FromStr for Family {
        type Err = Error;

        fn from_str(text: &str) -> Result<Self> {
            Family::ALL.into_iter().find(|f| f.name() == text).ok_or_else(|| {
                let names = Family::ALL.map(Family::name).join(", ");
                Error::argument("checkpoint", "family", format!("one of {names}"), text)
            })
        }
    }
}
