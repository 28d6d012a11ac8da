//! Finds a Q-Former and the parts beside it, and copies of each.

use std::collections::BTreeSet;

use super::blip2::Layout;
use crate::checkpoint::TensorSource;
use crate::checkpoint::copies::around;
use crate::checkpoint::find::Find;
use crate::checkpoint::json::some_of;
use crate::checkpoint::names::last_module;

/// Other parts of the model beside a Q-Former, and the temperature of its contrastive loss.
pub(super) const BESIDE: [&str; 14] = [
    "embeddings",
    "language_model",
    "llama_model",
    "llm_model",
    "ln_vision",
    "logit_scale",
    "lm_head",
    "opt_model",
    "t5_model",
    "temp",
    "text_model",
    "vision_model",
    "visual",
    "visual_encoder",
];

/// Where a Q-Former is.
pub(super) struct Place {
    /// Prefix of the module with query tokens and projections; none if it was saved alone.
    pub root: Option<String>,
    /// Prefixes of all such modules.
    roots: Vec<String>,
    /// Those of them with equal copies of the Q-Former.
    equal: Vec<String>,
    /// Prefix of `encoder.layer.`.
    pub inside: String,
    /// Prefixes of parts beside any Q-Former.
    beside: BTreeSet<String>,
}

/// Parts beside a Q-Former, by the libraries' names, as the prefixes of [`Place`] end.
pub(super) const PARTS: [&str; 12] = [
    "query_tokens",
    "embeddings.",
    "language_projection.",
    "opt_proj.",
    "t5_proj.",
    "llm_proj.",
    "llama_proj.",
    "vision_projection.",
    "vision_proj.",
    "text_projection.",
    "text_proj.",
    "itm_head.",
];

/// LAVIS' language-model head.
pub(super) const LM_HEAD: &str = "Qformer.cls.predictions.";

/// The prefix of the part beside a Q-Former that a tensor belongs to.
fn part_beside(name: &str) -> Option<String> {
    let module = match name.rsplit_once('.') {
        _ if last_module(name) == "query_tokens" => name,
        Some((module, "weight" | "bias")) => module,
        _ => return None,
    };
    let (around, last) = module.rsplit_once('.').map_or(("", module), |(around, last)| (around, last));
    match last {
        "query_tokens" => Some(module.into()),
        "word_embeddings" | "position_embeddings" if last_module(around) == "embeddings" => Some(format!("{around}.")),
        _ => PARTS.iter().any(|part| part.strip_suffix('.') == Some(last)).then(|| format!("{module}.")),
    }
}

/// Whether a module is within another part of the model.
fn is_foreign(module: &str) -> bool {
    module.split('.').any(|module| BESIDE.contains(&module))
}

/// Whether a module holds nothing but parts of a Q-Former.
fn only_parts(find: &Find<'_, '_>, module: &str) -> bool {
    let rest = |name: &'_ str| {
        name.strip_prefix(module).is_none_or(|rest| part_beside(rest).is_some() || rest.starts_with(LM_HEAD))
    };
    find.names().all(rest)
}

impl Place {
    /// The Q-Former that is read, if there is one.
    pub fn find(find: &mut Find<'_, '_>, layout: Layout) -> Option<Self> {
        let (module, alone) = match layout {
            Layout::Lavis => ("Qformer.bert.", "bert."),
            _ => ("qformer.", ""),
        };
        let roots = find.prefixes_of(module);
        let inside: Vec<String> = roots.iter().map(|root| format!("{root}{module}")).collect();
        let mut beside: BTreeSet<String> = find.names().filter_map(part_beside).collect();
        if layout == Layout::Lavis {
            beside.extend(find.prefixes_of(LM_HEAD).iter().map(|root| format!("{root}{LM_HEAD}")));
        }
        if let Some(inside) = find.choose("Q-Former", None, &inside, &[]) {
            let root = inside[..inside.len() - module.len()].to_string();
            let mut equal = vec![root.clone()];
            equal.extend(roots.iter().filter(|of| **of != root && find.is_copy(&format!("{of}{module}"))).cloned());
            return Some(Place { root: Some(root), roots, equal, inside, beside });
        }
        let crosses = |prefix: &str| find.source.any_below(&format!("{prefix}encoder.layer.0.crossattention."));
        find.source.part.set("Q-Former");
        let inside = [alone, ""].into_iter().find(|prefix| crosses(prefix)).filter(|_| inside.is_empty())?.to_string();
        find.namespace.extend(["encoder.", "embeddings.", "layernorm."].map(|part| format!("{inside}{part}")));
        // The query tokens may be at the top level.
        let root = find.has("query_tokens").then(String::new);
        let roots: Vec<String> = root.iter().cloned().collect();
        Some(Place { equal: roots.clone(), roots, root, inside, beside })
    }

    /// Prefixes of a part, by the libraries' names for it: the one beside the Q-Former that is
    /// read or beside an equal copy, else the one in the nearest module around it, and its copies.
    /// A part beside no Q-Former counts as a copy if it has the same shapes, or if `--prefix` asks
    /// for it. If this Q-Former has no such part, others' do not count, unless `--prefix` chose
    /// this Q-Former and the part is outside it; one in a module of nothing but such parts does.
    pub fn copies(&self, find: &Find<'_, '_>, parts: &[&str]) -> Vec<String> {
        let Some(root) = &self.root else { return Vec::new() };
        let own = self.equal.iter().flat_map(|root| parts.iter().map(move |part| format!("{root}{part}")));
        let mut own: Vec<String> =
            own.filter(|at| find.source.listed(at) || at.ends_with('.') && find.source.any_below(at)).collect();
        let of = |at: &'_ str| parts.iter().find_map(|part| at.strip_suffix(part)).map(str::len);
        let outside = |at: &&String| {
            let of = of(at).map(|len| &at[..len]);
            of.is_some_and(|of| !self.roots.iter().any(|root| root == of) && !is_foreign(of)) && self.fits(find, at)
        };
        if own.is_empty() {
            let around = self.beside.iter().filter(|at| of(at).is_some_and(|len| root.starts_with(&at[..len])));
            let around: Vec<&String> = around.filter(outside).collect();
            let nearest = around.iter().filter_map(|at| of(at)).max();
            own = around.into_iter().filter(|at| of(at) == nearest).cloned().collect();
        }
        let info = |name: &str| find.source.files.info(name).map(|info| &info.shape);
        let alike = |at: &str, own: &String| {
            find.source
                .files
                .below(at)
                .all(|(name, other)| info(&format!("{own}{}", &name[at.len()..])) == Some(&other.shape))
        };
        let wanted = find.overrides.prefix.as_deref();
        let asked = |at: &str| wanted.is_some_and(|wanted| at.starts_with(wanted) && !self.inside.starts_with(wanted));
        let counts = |at: &&String| {
            let Some(of) = of(at).map(|len| &at[..len]) else { return false };
            match self.roots.iter().any(|root| root == of) {
                _ if own.contains(at) => false,
                true => {
                    let other = !of.starts_with(root.as_str()) || find.is_left_out(of);
                    !own.is_empty() || wanted.is_some() && other || asked(at)
                }
                false => asked(at) || !is_foreign(of) && own.iter().any(|own| alike(at, own)),
            }
        };
        let others: Vec<String> = self.beside.iter().filter(counts).cloned().collect();
        if own.is_empty() && others.is_empty() {
            let apart = |at: &&String| outside(at) && of(at).is_some_and(|len| only_parts(find, &at[..len]));
            return self.beside.iter().filter(apart).cloned().collect();
        }
        own.into_iter().chain(others).collect()
    }

    /// Whether a part outside the Q-Former's module has the tensors and the width of this one's.
    fn fits(&self, find: &Find<'_, '_>, at: &str) -> bool {
        let shape = |name: String| find.source.files.info(&name).map(|info| &info.shape[..]);
        let width =
            shape(format!("{}encoder.layer.0.attention.output.dense.weight", self.inside)).and_then(<[_]>::first);
        let wide = |name: &str| shape(format!("{at}{name}")).is_none_or(|shape| shape.last() == width);
        let all = |names: &[&str]| {
            let whole = names.iter().all(|name| find.source.listed(&format!("{at}{name}")));
            whole && wide(names[0])
        };
        match last_module(at) {
            "query_tokens" => wide(""),
            "embeddings" => {
                let known = ["word_embeddings.weight", "position_embeddings.weight", "position_ids"];
                all(&known[..2]) && find.source.files.below(at).all(|(name, _)| known.contains(&&name[at.len()..]))
            }
            "predictions" => all(&["decoder.weight"]),
            _ => all(&["weight", "bias"]),
        }
    }

    /// Says of a part outside the Q-Former's module where it was taken from.
    pub fn say_outside(&self, find: &mut Find<'_, '_>, part: &'static str, at: &str) {
        let of = PARTS.iter().chain(&[LM_HEAD]).find_map(|part| at.strip_suffix(part));
        if of.is_none_or(|of| self.equal.is_empty() || self.equal.iter().any(|root| root == of)) {
            return;
        }
        let parts = [("Q-Former", self.inside.as_str()), (part, at)];
        if self.inside.starts_with(around(at)) { find.say_shared(&parts) } else { find.say_together(&parts) }
    }

    /// Notes heads outside the Q-Former's module that may be its own, and were not read.
    pub fn name_unread(&self, find: &mut Find<'_, '_>) {
        // Those below the top are named with the other modules there.
        let Some(root) = self.root.as_ref().filter(|root| !root.is_empty()) else { return };
        let is_unread = find.unread();
        let heads = self.beside.iter().filter(|at| {
            let Some(of) = PARTS[2..].iter().find_map(|part| at.strip_suffix(part)) else { return false };
            let known = self.roots.iter().any(|root| root == of) || find.copies.candidates.contains(*at);
            !known
                && !is_foreign(of)
                && !at.starts_with(root.as_str())
                && find.source.files.below(at).any(|(_, info)| is_unread(info))
        });
        let heads: Vec<&str> = heads.map(String::as_str).collect();
        if !heads.is_empty() {
            find.notes.push(format!("not read, though a Q-Former may have it: {}", some_of(heads, ", ")));
        }
    }

    /// Places of the query tokens: beside the Q-Former and its copies, else anywhere.
    pub fn tokens(&self, find: &Find<'_, '_>) -> Vec<String> {
        let copies = self.copies(find, &["query_tokens"]);
        if !copies.is_empty() || self.root.is_none() {
            return copies;
        }
        let tokens = self.beside.iter().filter(|at| last_module(at) == "query_tokens" && !is_foreign(at));
        tokens.cloned().collect()
    }
}
