//! The loader's description of a family, which its file in `families/` gives.

use super::config::Field;
use super::find::Find;
use super::{Bridges, Files, TensorSource};

/// The loader's description of a family.
pub(super) struct Row {
    /// The name used in messages and on the command line.
    pub name: &'static str,
    /// Each `model_type`, with its section of the whole model's configuration (empty: all).
    pub model_types: &'static [(&'static str, &'static str)],
    /// A field of every configuration of a library that writes no `model_type`.
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

/// The names of a checkpoint's tensors, also of those in missing shards.
pub(super) struct Names<'t>(pub &'t Files);

impl Names<'_> {
    pub fn any(&self, test: impl FnMut(&str) -> bool) -> bool {
        self.0.names().any(test)
    }

    /// Whether a name contains a text.
    pub fn has(&self, text: &str) -> bool {
        self.any(|name| name.contains(text))
    }

    /// Whether a name ends in a text.
    pub fn ends(&self, text: &str) -> bool {
        self.any(|name| name.ends_with(text))
    }

    /// Whether a module of this name has a tensor beside it whose name begins with `sibling`.
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
