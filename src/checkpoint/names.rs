//! Names of tensors: those below a prefix, and names without the segments of training wrappers.

use std::collections::BTreeMap;
use std::ops::Bound;

/// The entries of a map by name whose names begin with `prefix`.
pub(super) fn below<'m, V>(map: &'m BTreeMap<Box<str>, V>, prefix: &'m str) -> impl Iterator<Item = (&'m str, &'m V)> {
    let on = map.range::<str, _>((Bound::Included(prefix), Bound::Unbounded)).map(|(name, value)| (&**name, value));
    on.take_while(move |(name, _)| name.starts_with(prefix))
}

/// The last module of a prefix, which may end in a dot.
pub(super) fn last_module(prefix: &str) -> &str {
    let prefix = prefix.trim_end_matches('.');
    prefix.rsplit_once('.').map_or(prefix, |(_, last)| last)
}

/// A name with wrappers in it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Wrapped {
    /// The name without them.
    pub plain: Box<str>,
    /// Bytes of the name up to and with the last wrapper: the common prefix of the wrapped module.
    pub wrapper: usize,
    /// Whether it is below PEFT's `original_module`: the copy before training.
    pub original: bool,
}

/// Bytes of a wrapper at the start of the rest of a name, with the dot behind it; 0 if none.
///
/// The wrappers: torch.compile, DDP and DeepSpeed, FSDP, activation checkpointing; PEFT's model,
/// and its copies of modules that were trained whole.
fn wrapper(rest: &str) -> usize {
    const PLAIN: [&str; 6] = [
        "_orig_mod.",
        "module.",
        "_fsdp_wrapped_module.",
        "_checkpoint_wrapped_module.",
        "base_model.model.",
        "original_module.",
    ];
    // A quick answer for most segments.
    if !matches!(rest.as_bytes().first(), Some(b'_' | b'm' | b'b' | b'o')) {
        return 0;
    }
    if let Some(wrapper) = PLAIN.iter().find(|w| rest.starts_with(**w)) {
        return wrapper.len();
    }
    let Some(copy) = rest.strip_prefix("modules_to_save.") else { return 0 };
    // The adapter's name follows, except in an adapter's own file.
    match copy.find('.') {
        Some(name) => rest.len() - copy.len() + name + 1,
        None => rest.len() - copy.len(),
    }
}

/// A name without its wrappers; none if it has none.
pub(super) fn unwrap(name: &str) -> Option<Wrapped> {
    let mut found = None::<Wrapped>;
    let (mut at, mut kept) = (0, 0);
    let mut plain = String::new();
    while at < name.len() {
        let bytes = wrapper(&name[at..]);
        if bytes > 0 {
            plain.push_str(&name[kept..at]);
            let original = name[at..].starts_with("original_module.");
            at += bytes;
            kept = at;
            let before = found.take().is_some_and(|w| w.original);
            found = Some(Wrapped { plain: Box::default(), wrapper: at, original: original || before });
        } else {
            at = name[at..].find('.').map_or(name.len(), |dot| at + dot + 1);
        }
    }
    let mut found = found?;
    // A name that consists of wrappers is kept.
    if kept == name.len() {
        return None;
    }
    plain.push_str(&name[kept..]);
    found.plain = plain.into();
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrappers_anywhere_in_a_name() {
        for (name, plain, wrapper, original) in [
            ("_orig_mod.latents", "latents", "_orig_mod.", false),
            ("module.perceiver._orig_mod.latents", "perceiver.latents", "module.perceiver._orig_mod.", false),
            (
                "_fsdp_wrapped_module.a._checkpoint_wrapped_module.b.weight",
                "a.b.weight",
                "_fsdp_wrapped_module.a._checkpoint_wrapped_module.",
                false,
            ),
            (
                "llama_model.base_model.model.model.layers.0.w",
                "llama_model.model.layers.0.w",
                "llama_model.base_model.model.",
                false,
            ),
            ("c.modules_to_save.default.weight", "c.weight", "c.modules_to_save.default.", false),
            ("c.modules_to_save.mine.dense.weight", "c.dense.weight", "c.modules_to_save.mine.", false),
            ("c.modules_to_save.weight", "c.weight", "c.modules_to_save.", false),
            ("c.original_module.dense.weight", "c.dense.weight", "c.original_module.", true),
            ("module.module.a", "a", "module.module.", false),
        ] {
            let expected = Wrapped { plain: plain.into(), wrapper: wrapper.len(), original };
            assert_eq!(unwrap(name), Some(expected), "{name}");
        }
        for name in [
            "",
            "a.module",
            "module",
            "module.",
            "base_model.layers.0",
            "submodule.a",
            "my_module.a",
            "orig_mod.a",
            "modules.a",
        ] {
            assert_eq!(unwrap(name), None, "{name}");
        }
    }
}
