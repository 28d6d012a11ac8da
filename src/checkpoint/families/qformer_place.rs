//! Finds a Q-Former and the parts beside it, and copies of each.

use std::collections::BTreeSet;

use super::blip2::Layout;
use crate::checkpoint::TensorSource;
use crate::checkpoint::find::Find;
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
        if let Some(inside) = find.one_of("Q-Former", None, &inside, &[]) {
            return Some(Place { root: Some(inside[..inside.len() - module.len()].into()), roots, inside, beside });
        }
        let crosses = |prefix: &str| find.source.any_below(&format!("{prefix}encoder.layer.0.crossattention."));
        find.source.part.set("Q-Former");
        let inside = [alone, ""].into_iter().find(|prefix| crosses(prefix)).filter(|_| inside.is_empty())?.to_string();
        find.namespace.extend(["encoder.", "embeddings.", "layernorm."].map(|part| format!("{inside}{part}")));
        // The query tokens may be at the top level.
        let root = find.has("query_tokens").then(String::new);
        Some(Place { roots: root.iter().cloned().collect(), root, inside, beside })
    }

    /// Prefixes of a part, by the libraries' names for it: the one beside the Q-Former that is
    /// read, and its copies. A part beside no Q-Former counts as a copy if it has the same shapes,
    /// or if `--prefix` asks for it. If this Q-Former lacks the part, others' do not count, unless
    /// `--prefix` chose this Q-Former and the part is outside it.
    pub fn copies(&self, find: &Find<'_, '_>, parts: &[&str]) -> Vec<String> {
        let Some(root) = &self.root else { return Vec::new() };
        let own = parts.iter().map(|part| format!("{root}{part}"));
        let own: Vec<String> =
            own.filter(|at| find.source.listed(at) || at.ends_with('.') && find.source.any_below(at)).collect();
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
            let Some(of) = parts.iter().find_map(|part| at.strip_suffix(part)) else { return false };
            let foreign = of.split('.').any(|module| BESIDE.contains(&module));
            match self.roots.iter().any(|root| root == of) {
                _ if own.contains(at) => false,
                true => !own.is_empty() || wanted.is_some() && !of.starts_with(root.as_str()) || asked(at),
                false => asked(at) || !foreign && own.iter().any(|own| alike(at, own)),
            }
        };
        let others = self.beside.iter().filter(counts).cloned();
        own.iter().cloned().chain(others).collect()
    }

    /// Places of the query tokens: beside the Q-Former and its copies, else anywhere.
    pub fn tokens(&self, find: &Find<'_, '_>) -> Vec<String> {
        let copies = self.copies(find, &["query_tokens"]);
        if !copies.is_empty() || self.root.is_none() {
            return copies;
        }
        let foreign = |at: &&String| at.split('.').any(|module| BESIDE.contains(&module));
        let tokens = self.beside.iter().filter(|at| last_module(at) == "query_tokens" && !foreign(at));
        tokens.cloned().collect()
    }
}
