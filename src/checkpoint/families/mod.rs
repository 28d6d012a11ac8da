//! The families of checkpoints, one file each: names of tensors, the fields of its configuration, how it is recognised and found, and
//! the sizes of its published models. A family is one file and one line of the list below.

pub mod blip2;
pub mod flamingo;
pub mod idefics;
pub mod idefics2;
pub mod mllama;
pub mod open_flamingo;
mod presets;
mod qformer_layers;

#[cfg(feature = "checkpoint")]
pub use list::Family;
#[cfg(feature = "checkpoint")]
pub(super) use list::Names;

#[cfg(feature = "checkpoint")]
mod list {
    use std::fmt;
    use std::str::FromStr;

    use super::*;
    use crate::checkpoint::config::Field;
    use crate::checkpoint::find::Find;
    use crate::checkpoint::{Bridges, Files, TensorSource};
    use crate::{Error, Result};

    /// What the loader knows of a family.
    pub(in crate::checkpoint) struct Row {
        /// The name used in messages and on the command line.
        pub name: &'static str,
        /// Each `model_type`, with the section of the whole model's configuration that it is (empty: all of it).
        pub model_types: &'static [(&'static str, &'static str)],
        /// A field that every configuration of a library without `model_type` has.
        pub marker: Option<&'static str>,
        /// Modules in which models keep this bridge or a part of it, and which people save alone.
        pub modules: &'static [&'static str],
        /// The fields that are read.
        pub fields: &'static [&'static Field],
        /// Whether tensors have this family's names.
        pub matches: fn(&Names<'_>) -> bool,
        /// Finds the bridges.
        pub find: for<'a> fn(&mut Find<'a, '_>) -> Bridges<'a>,
    }

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

        /// The family of a `model_type`, and the section of the whole model's configuration that it stands for.
        pub(in crate::checkpoint) fn of_model_type(model_type: &str) -> Option<(Self, &'static str)> {
            Family::ALL.into_iter().find_map(|family| {
                let mut types = family.row().model_types.iter();
                types.find(|(name, _)| *name == model_type).map(|&(_, section)| (family, section))
            })
        }

        /// The families whose names the tensors of these files have.
        pub(in crate::checkpoint) fn of_tensors(files: &Files) -> Vec<Self> {
            let names = Names(files);
            Family::ALL.into_iter().filter(|family| (family.row().matches)(&names)).collect()
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

    /// The names of a checkpoint's tensors, those in shards that are not there among them.
    pub(in crate::checkpoint) struct Names<'t>(&'t Files);

    impl Names<'_> {
        pub fn any(&self, test: impl FnMut(&str) -> bool) -> bool {
            self.0.names().any(test)
        }

        /// Whether a name contains a text.
        pub fn has(&self, text: &str) -> bool {
            self.any(|name| name.contains(text))
        }

        /// Whether a name ends so.
        pub fn ends(&self, text: &str) -> bool {
            self.any(|name| name.ends_with(text))
        }

        /// Whether a module of this name, nested or not, has a tensor beside it in the same module whose name begins with `sibling`.
        pub fn has_beside(&self, module: &str, sibling: &str) -> bool {
            let mut seen = None;
            self.any(|name| {
                let Some(at) = name.find(module).filter(|&at| at == 0 || name.as_bytes()[at - 1] == b'.') else {
                    return false;
                };
                let root = &name[..at];
                if seen.as_deref() == Some(root) {
                    return false;
                }
                seen = Some(root.to_string());
                TensorSource::any_below(&self.0, &format!("{root}{sibling}"))
            })
        }
    }
}
