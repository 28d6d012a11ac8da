//! A checkpoint as a whole: family, configuration, and the bridges in it, with everything that is wrong with them in one error.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::config::{Promise, View};
use super::detect::is_open_gate;
use super::mllama::EmptyRowBehaviour;
use super::{
    Family, Files, Heads, ModelConfig, TensorSource, blip2, idefics, idefics2, index_behind, mllama, open_flamingo,
};
use crate::bridge::{
    DenseWeights, GatedBlockConfig, GatedBlockWeights, LmHeadWeights, QFormerConfig, QFormerWeights, ResamplerConfig,
    ResamplerWeights,
};
use crate::{Error, HostTensor, Result};

/// What no file tells, or what is to differ from it.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Overrides {
    /// Query heads of the resampler or Q-Former. Without a configuration: 8, xGen-MM 16, IDEFICS 16; Q-Formers have heads of width 64.
    pub heads: Option<usize>,
    /// Query heads of the gated blocks. Without a configuration: 8; IDEFICS and Llama-3.2-Vision have heads of width 128.
    pub block_heads: Option<usize>,
    /// Text rows see all media up to theirs instead of the last one (OpenFlamingo's `only_attend_immediate_media=False`).
    pub attend_preceding: bool,
    /// What text before the first image gets in Llama-3.2-Vision.
    pub empty_rows: EmptyRowBehaviour,
}

/// A gated block of a language model.
#[derive(Debug, Clone)]
pub struct GatedBlockAt<'a> {
    /// The number in the block's name: of the language model's layer, or among the blocks (IDEFICS, Meta's Llama).
    pub index: usize,
    /// What its tensors' names begin with.
    pub prefix: String,
    /// Sizes and choices.
    pub config: GatedBlockConfig,
    /// Weights, still in the file's map.
    pub weights: GatedBlockWeights<'a>,
}

/// The bridges of a checkpoint, their weights still in the file's map.
#[derive(Debug, Clone, Default)]
pub struct Bridges<'a> {
    /// Perceiver resampler or connector.
    pub resampler: Option<(ResamplerConfig, ResamplerWeights<'a>)>,
    /// Llama-3.2-Vision's `multi_modal_projector`.
    pub projector: Option<DenseWeights<'a>>,
    /// Gated cross-attention, in the order of the layers.
    pub gated_blocks: Vec<GatedBlockAt<'a>>,
    /// Q-Former, with its query tokens.
    pub qformer: Option<(QFormerConfig, QFormerWeights<'a>)>,
    /// Projection of the query rows into the language model.
    pub language_projection: Option<DenseWeights<'a>>,
    /// Contrastive heads: image, text.
    pub itc: Option<(DenseWeights<'a>, DenseWeights<'a>)>,
    /// Matching head.
    pub itm: Option<DenseWeights<'a>>,
    /// Language-model head of LAVIS' first stage.
    pub lm_head: Option<LmHeadWeights<'a>>,
    /// Names of all tensors that were read.
    pub names: BTreeSet<String>,
}

/// An opened checkpoint.
pub struct Checkpoint {
    files: Files,
    family: Family,
    config: Option<ModelConfig>,
}

impl Checkpoint {
    /// Opens a safetensors file, an index file or a folder. The family is the named one, else that of `config.json`, else that of the names.
    ///
    /// # Errors
    /// Files that cannot be read or contradict themselves, a family that cannot be told.
    pub fn open(path: &Path, family: Option<Family>) -> Result<Self> {
        let files = Files::open(path)?;
        let config = files.config().map(|(path, text)| ModelConfig::parse(path, text)).transpose()?;
        let known = || Family::ALL.map(Family::name).join(", ");
        let family = match (family, config.as_ref().and_then(ModelConfig::family)) {
            (Some(family), _) | (None, Some(family)) => family,
            (None, None) => match Family::of_tensors(files.tensors()).as_slice() {
                [family] => *family,
                [] => return Err(Error::file(path, format!("no family's tensors found; name one of {}", known()))),
                several => {
                    let several: Vec<_> = several.iter().map(|f| f.name()).collect();
                    return Err(Error::file(
                        path,
                        format!("tensors of several families; name one of {}", several.join(", ")),
                    ));
                }
            },
        };
        // A configuration of another family says nothing about the one that was named.
        let config = config.filter(|c| c.family().is_none_or(|f| f == family));
        Ok(Checkpoint { files, family, config })
    }

    /// The family.
    pub fn family(&self) -> Family {
        self.family
    }

    /// The files.
    pub fn files(&self) -> &Files {
        &self.files
    }

    /// The configuration, if there is one of this family.
    pub fn config(&self) -> Option<&ModelConfig> {
        self.config.as_ref()
    }

    /// Finds and checks the bridges. No weight is read yet.
    ///
    /// # Errors
    /// [`Error::Weights`] with every missing, surplus or mis-shaped tensor.
    pub fn bridges(&self, overrides: &Overrides) -> Result<Bridges<'_>> {
        let mut find = Find {
            source: Tracked { files: &self.files, promise: Promise::default(), read: RefCell::default() },
            view: self.config.as_ref().map_or(&View::Other, |c| &c.view),
            overrides,
            problems: Vec::new(),
            namespace: Vec::new(),
        };
        let mut bridges = match self.family {
            Family::OpenFlamingo | Family::XgenMm => find.open_flamingo(self.family),
            Family::Idefics => find.idefics(),
            Family::Idefics2 => find.idefics2(),
            Family::Mllama => find.mllama(),
            Family::Blip2 => find.qformer(blip2::Layout::Blip2),
            Family::InstructBlip => find.qformer(blip2::Layout::InstructBlip),
            Family::Lavis => find.qformer(blip2::Layout::Lavis),
        };
        find.report_surplus();
        let problems = find.finished_problems();
        if !problems.is_empty() {
            return Err(Error::Weights {
                family: format!("{} ({})", self.files.path().display(), self.family),
                problems,
            });
        }
        bridges.names = find.source.read.into_inner();
        Ok(bridges)
    }
}

/// Files that remember what was read of them.
struct Tracked<'a> {
    files: &'a Files,
    promise: Promise,
    read: RefCell<BTreeSet<String>>,
}

impl<'a> TensorSource<'a> for Tracked<'a> {
    fn tensor(&self, name: &str) -> Option<HostTensor<'a>> {
        if self.files.tensors().contains_key(name) {
            self.read.borrow_mut().insert(name.into());
        }
        self.files.tensor(name)
    }

    fn indices(&self, prefix: &str) -> BTreeSet<usize> {
        match self.promise.layers.get(prefix) {
            Some(&layers) => (0..layers).collect(),
            None => TensorSource::indices(&self.files, prefix),
        }
    }

    fn promised(&self, name: &str) -> Option<Vec<usize>> {
        self.promise.shapes.get(name).cloned()
    }
}

struct Find<'a, 'f> {
    source: Tracked<'a>,
    view: &'f View,
    overrides: &'f Overrides,
    problems: Vec<String>,
    /// Prefixes below which every tensor is the bridge's.
    namespace: Vec<String>,
}

impl<'a> Find<'a, '_> {
    /// What a family's reader found, or its problems.
    fn keep<T>(&mut self, result: Result<T>) -> Option<T> {
        match result {
            Ok(found) => return Some(found),
            Err(Error::Weights { problems, .. }) => self.problems.extend(problems),
            Err(other) => self.problems.push(other.to_string()),
        }
        None
    }

    fn has(&self, name: &str) -> bool {
        self.source.files.tensors().contains_key(name)
    }

    /// What precedes `part` in the names that contain it as whole words, shortest first.
    fn prefixes_of(&self, part: &str) -> Vec<String> {
        let mut found = BTreeSet::new();
        for name in self.source.files.tensors().keys() {
            let at = if name.starts_with(part) { Some(0) } else { name.find(&format!(".{part}")).map(|at| at + 1) };
            found.extend(at.map(|at| name[..at].to_string()));
        }
        let mut found: Vec<String> = found.into_iter().collect();
        found.sort_by_key(String::len);
        found
    }

    /// Takes the first of several prefixes under which the same module was saved; the others must hold the same.
    fn one_of(&mut self, prefixes: &[String]) -> Option<String> {
        let (first, aliases) = prefixes.split_first()?;
        if first.is_empty() {
            // A module that was saved alone.
            let own = ["latents", "layers.", "norm.", "projection.", "attn.", "attn_gate", "ff.", "ff_gate"];
            self.namespace.extend(own.map(String::from));
        } else {
            self.namespace.push(first.clone());
        }
        for alias in aliases {
            let from = (std::ops::Bound::Included(alias.clone()), std::ops::Bound::Unbounded);
            let files = self.source.files;
            let below =
                files.tensors().range::<String, _>(from).take_while(|(name, _)| name.starts_with(alias.as_str()));
            for (name, info) in below {
                let same = format!("{first}{}", &name[alias.len()..]);
                self.source.read.borrow_mut().insert(name.clone());
                let equal = files.tensors().get(&same).is_some_and(|other| other.shape == info.shape)
                    && files.tensor(&same).zip(files.tensor(name)).is_some_and(|(a, b)| a == b);
                if !equal {
                    self.problems
                        .push(format!("{name}: differs from {same}, which is the same weight under another name"));
                }
            }
        }
        Some(first.clone())
    }

    /// Width-64 or width-128 heads, where no configuration says how many.
    fn heads_of_width(&self, name: &str, width: usize) -> usize {
        let rows = self.source.files.tensors().get(name).and_then(|t| t.shape.first().copied());
        (rows.unwrap_or(width) / width).max(1)
    }

    fn open_flamingo(&mut self, family: Family) -> Bridges<'a> {
        let mut bridges = Bridges::default();
        let usual = if family == Family::XgenMm { 16 } else { 8 };
        let modules = ["perceiver.", "perceiver_resampler.", "resampler.", "vision_tokenizer."];
        let mut resamplers: Vec<String> = self
            .source
            .files
            .tensors()
            .keys()
            .filter_map(|name| {
                let end = ["layers.0.0.norm_media.weight", "layers.0.norm_media.weight", "latents"];
                end.iter().find_map(|end| name.strip_suffix(end))
            })
            .filter(|prefix| prefix.is_empty() || modules.iter().any(|m| prefix.ends_with(m)))
            .map(str::to_string)
            .collect::<BTreeSet<_>>()
            .into_iter()
            .collect();
        resamplers.sort_by_key(String::len);
        if let Some(prefix) = self.one_of(&resamplers) {
            let read = open_flamingo::resampler(&self.source, &prefix, self.overrides.heads.unwrap_or(usual));
            bridges.resampler = self.keep(read);
        } else {
            self.problems.push("perceiver.latents: missing (a resampler under any of the known names)".into());
        }
        let mut blocks: BTreeMap<usize, Vec<String>> = BTreeMap::new();
        for name in self.source.files.tensors().keys() {
            let gate = is_open_gate(name).then(|| &name[..name.rfind('.').map_or(0, |dot| dot + 1)]);
            let projection = || name.strip_suffix("attn.to_kv.weight").filter(|p| p.is_empty() || p.ends_with('.'));
            if let Some(prefix) = gate.or_else(projection) {
                let of_index = blocks.entry(block_index(prefix)).or_default();
                if !of_index.iter().any(|p| p == prefix) {
                    of_index.push(prefix.to_string());
                }
            }
        }
        self.report_holes(&blocks.keys().copied().collect::<Vec<_>>());
        for (index, prefixes) in &blocks {
            let Some(prefix) = self.one_of(prefixes) else { continue };
            let heads = self.overrides.block_heads.unwrap_or(8);
            let read = open_flamingo::gated_block(&self.source, &prefix, heads, !self.overrides.attend_preceding);
            self.keep_block(&mut bridges, *index, prefix, read);
        }
        bridges
    }

    fn idefics(&mut self) -> Bridges<'a> {
        let mut bridges = Bridges::default();
        let config = match self.view {
            View::Idefics(c) => Some(c.clone()),
            _ => None,
        };
        let resamplers = self.prefixes_of("perceiver_resampler.");
        let blocks = self.prefixes_of("gated_cross_attn_layers.");
        let resamplers: Vec<String> = resamplers.iter().map(|p| format!("{p}perceiver_resampler.")).collect();
        if let Some(prefix) = self.one_of(&resamplers) {
            if let Some(c) = &config {
                c.promise_resampler(&mut self.source.promise, &prefix);
            }
            let usual = config.as_ref().map_or(16, |c| c.perceiver_config.resampler_n_heads as usize);
            let read = idefics::resampler(&self.source, &prefix, self.overrides.heads.unwrap_or(usual));
            bridges.resampler = self.keep(read);
            if let (Some(c), Some((r, _))) = (&config, &bridges.resampler)
                && c.perceiver_config.qk_layer_norms_perceiver != r.qk_norm.is_some()
            {
                self.disagree(&format!("{prefix}blocks.0.0.q_layer_norm.weight"), "qk_layer_norms_perceiver");
            }
        } else if config.as_ref().is_none_or(|c| c.use_resampler) {
            self.problems.push("model.perceiver_resampler.latents: missing".into());
        }
        let Some(base) = blocks.first().map(|p| format!("{p}gated_cross_attn_layers.")) else {
            self.problems.push("model.gated_cross_attn_layers.0.alpha_cross_attn: missing".into());
            return bridges;
        };
        self.namespace.push(base.clone());
        let mut found: Vec<usize> = TensorSource::indices(&self.source.files, &base).into_iter().collect();
        match &config {
            Some(c) => found = (0..c.blocks()).collect(),
            None => self.report_holes(&std::iter::once(0).chain(found.iter().copied()).collect::<Vec<_>>()),
        }
        for index in found {
            let prefix = format!("{base}{index}.");
            if let Some(c) = &config {
                c.promise_block(&mut self.source.promise, &prefix);
            }
            let usual = match &config {
                Some(c) => c.num_attention_heads as usize,
                None => self.heads_of_width(&format!("{prefix}cross_attn.q_proj.weight"), 128),
            };
            let eps = config.as_ref().map_or(1e-6, |c| c.rms_norm_eps);
            let heads = self.overrides.block_heads.unwrap_or(usual);
            let read = idefics::gated_block(&self.source, &prefix, heads, eps);
            if let (Some(c), Ok((block, _))) = (&config, &read)
                && c.qk_layer_norms != block.qk_norm.is_some()
            {
                self.disagree(&format!("{prefix}cross_attn.q_layer_norm.weight"), "qk_layer_norms");
            }
            self.keep_block(&mut bridges, index, prefix, read);
        }
        bridges
    }

    fn disagree(&mut self, name: &str, field: &str) {
        let what = if self.has(name) { "surplus" } else { "missing" };
        self.problems.push(format!("{name}: {what}, according to {field} of config.json"));
    }

    fn idefics2(&mut self) -> Bridges<'a> {
        let mut bridges = Bridges::default();
        let prefixes: Vec<String> = self.prefixes_of("connector.").iter().map(|p| format!("{p}connector.")).collect();
        let Some(prefix) = self.one_of(&prefixes) else {
            self.problems.push("model.connector.perceiver_resampler.latents: missing".into());
            return bridges;
        };
        let (heads, eps) = match self.view {
            View::Idefics2(c) => {
                c.promise(&mut self.source.promise, &prefix);
                let p = &c.perceiver_config;
                let heads = Heads { heads: p.resampler_n_heads as usize, kv_heads: p.num_key_value_heads as usize };
                (heads, c.width_and_eps().1)
            }
            _ => (Heads { heads: 16, kv_heads: 4 }, 1e-6),
        };
        let heads = Heads { heads: self.overrides.heads.unwrap_or(heads.heads), ..heads };
        let read = idefics2::connector(&self.source, &prefix, heads, eps);
        bridges.resampler = self.keep(read);
        bridges
    }

    fn mllama(&mut self) -> Bridges<'a> {
        let mut bridges = Bridges::default();
        let mut projectors = Vec::new();
        for module in ["multi_modal_projector", "vision_model.vision_projection"] {
            projectors.extend(self.prefixes_of(&format!("{module}.")).iter().map(|p| format!("{p}{module}.")));
        }
        let text_only = matches!(self.view, View::Mllama(..)) && projectors.is_empty() && !self.any("vision_model.");
        if let Some(prefix) = self.one_of(&projectors) {
            if let View::Mllama(text, vision) = self.view {
                let shape = vec![text.hidden_size as usize, vision.vision_output_dim as usize];
                self.source.promise.shapes.insert(format!("{prefix}weight"), shape);
            }
            let read = blip2::read_dense(&self.source, prefix.trim_end_matches('.'));
            bridges.projector = self.keep(read);
        } else if !text_only {
            self.problems.push("multi_modal_projector.weight: missing".into());
        }
        let mut blocks: BTreeMap<usize, Vec<String>> = BTreeMap::new();
        let mut bases = BTreeSet::new();
        for name in self.source.files.tensors().keys() {
            for (list, inside) in [("layers.", "cross_attn"), ("cross_attention_layers.", "")] {
                let Some(at) = name.find(list).filter(|&at| at == 0 || name.as_bytes()[at - 1] == b'.') else {
                    continue;
                };
                let base = &name[..at + list.len()];
                let Some(index) = index_behind(base, name) else { continue };
                let prefix = format!("{base}{index}.");
                if name[prefix.len()..].starts_with(inside) {
                    let of_index = blocks.entry(index).or_default();
                    if !of_index.contains(&prefix) {
                        of_index.push(prefix);
                    }
                    bases.insert(base.to_string());
                }
            }
        }
        let config = match self.view {
            View::Mllama(text, _) => Some(text.clone()),
            _ => None,
        };
        let meta = bases.iter().any(|b| b.ends_with("cross_attention_layers."));
        if let (Some(c), false) = (&config, meta) {
            let base = bases.first().cloned().unwrap_or_else(|| "language_model.model.layers.".into());
            let promised = c.cross_layers();
            for index in &promised {
                blocks.entry(*index).or_insert_with(|| vec![format!("{base}{index}.")]);
            }
            for index in blocks.keys().filter(|index| !promised.contains(index)) {
                self.problems
                    .push(format!("{base}{index}.cross_attn: surplus, not in cross_attention_layers of config.json"));
            }
        } else {
            self.report_holes(&blocks.keys().copied().collect::<Vec<_>>());
        }
        if blocks.is_empty() {
            self.problems.push("language_model.model.layers.3.cross_attn.q_proj.weight: missing".into());
        }
        for (index, prefixes) in &blocks {
            let Some(prefix) = self.one_of(prefixes) else { continue };
            let (heads, eps) = match &config {
                Some(c) => {
                    c.promise(&mut self.source.promise, &prefix);
                    (c.heads(), c.rms_norm_eps)
                }
                None => {
                    let names = if meta {
                        ["attention.wq", "attention.wk"]
                    } else {
                        ["cross_attn.q_proj", "cross_attn.k_proj"]
                    };
                    let [heads, kv_heads] = names.map(|n| self.heads_of_width(&format!("{prefix}{n}.weight"), 128));
                    (Heads { heads, kv_heads }, 1e-5)
                }
            };
            let heads = Heads { heads: self.overrides.block_heads.unwrap_or(heads.heads), ..heads };
            let read = mllama::gated_block(&self.source, &prefix, heads, eps, self.overrides.empty_rows);
            self.keep_block(&mut bridges, *index, prefix, read);
        }
        bridges
    }

    fn qformer(&mut self, layout: blip2::Layout) -> Bridges<'a> {
        let mut bridges = Bridges::default();
        let module = if layout == blip2::Layout::Lavis { "Qformer." } else { "qformer." };
        let Some(root) = self.prefixes_of(module).into_iter().next() else {
            self.problems.push(format!("{module}encoder.layer.0.attention.output.dense.weight: missing"));
            return bridges;
        };
        let inside = format!("{root}{module}");
        self.namespace.push(inside.clone());
        let encoder = if layout == blip2::Layout::Lavis { "bert.encoder.layer." } else { "encoder.layer." };
        let layers = format!("{inside}{encoder}");
        let (mut heads, mut eps, mut queries) =
            (self.heads_of_width(&format!("{layers}0.attention.output.dense.weight"), 64), blip2::NORM_EPS, None);
        if let View::QFormer(c) = self.view {
            c.promise(&mut self.source.promise, &layers);
            let part = &c.qformer_config;
            (heads, eps) = (part.num_attention_heads as usize, part.layer_norm_eps);
            queries = Some(c.num_query_tokens as usize);
        }
        let heads = self.overrides.heads.unwrap_or(heads);
        let tokens = format!("{root}query_tokens");
        let found = self.source.files.tensors().get(&tokens).and_then(|t| t.shape.iter().rev().nth(1).copied());
        let queries = queries.or(found).unwrap_or(32);
        // BLIP-2's reader keeps the names of LAVIS and transformers apart by prefix; LAVIS nests all but the queries.
        let read = match layout {
            blip2::Layout::Blip2 => blip2::read_qformer(&self.source, &root, layout, heads, queries, eps),
            _ => blip2::read_qformer(
                &Below { source: &self.source, tokens: &tokens, inside: &inside },
                &inside,
                layout,
                heads,
                queries,
                eps,
            ),
        };
        if let Some((config, mut weights)) = self.keep(read) {
            if weights.query_tokens.is_none() {
                let shape = [queries, config.width];
                let read = super::Reader::family("query tokens", &self.source, &root, |r| {
                    Ok(r.squeezed("query_tokens", &shape))
                });
                weights.query_tokens = self.keep(read);
            }
            bridges.qformer = Some((config, weights));
        }
        self.heads(&mut bridges, &root, layout);
        for name in ["position_ids", "bert.embeddings.position_ids", "embeddings.position_ids"] {
            self.source.read.borrow_mut().insert(format!("{inside}{name}"));
        }
        bridges
    }

    /// The heads beside a Q-Former, as far as they are there.
    fn heads(&mut self, bridges: &mut Bridges<'a>, root: &str, layout: blip2::Layout) {
        let mut dense = |names: &[&str]| {
            let name = names.iter().map(|n| format!("{root}{n}")).find(|n| self.has(&format!("{n}.weight")))?;
            self.namespace.push(format!("{name}."));
            let read = blip2::read_dense(&self.source, &name);
            self.keep(read)
        };
        bridges.language_projection = dense(&["language_projection", "opt_proj", "t5_proj", "llm_proj"]);
        let vision = dense(&["vision_projection", "vision_proj"]);
        let text = dense(&["text_projection", "text_proj"]);
        bridges.itc = vision.zip(text);
        bridges.itm = dense(&["itm_head"]);
        let lm_head = format!("{root}Qformer.cls.predictions.");
        if layout == blip2::Layout::Lavis && self.has(&format!("{lm_head}decoder.weight")) {
            let read = blip2::read_lm_head(&self.source, &lm_head);
            bridges.lm_head = self.keep(read);
            // BERT keeps the decoder's bias under two names.
            self.source.read.borrow_mut().insert(format!("{lm_head}bias"));
        }
    }

    fn keep_block(
        &mut self,
        bridges: &mut Bridges<'a>,
        index: usize,
        prefix: String,
        read: Result<(GatedBlockConfig, GatedBlockWeights<'a>)>,
    ) {
        if let Some((config, weights)) = self.keep(read) {
            bridges.gated_blocks.push(GatedBlockAt { index, prefix, config, weights });
        }
    }

    fn any(&self, part: &str) -> bool {
        self.source.files.tensors().keys().any(|name| name.contains(part))
    }

    /// Blocks stand at regular distances: one that is left out is missing.
    fn report_holes(&mut self, indices: &[usize]) {
        let mut sorted = indices.to_vec();
        sorted.sort_unstable();
        sorted.dedup();
        let Some(step) = sorted.windows(2).map(|w| w[1] - w[0]).min() else { return };
        for pair in sorted.windows(2).filter(|w| w[1] - w[0] != step) {
            self.problems.push(format!(
                "gated blocks {} and {}: those between them are missing, elsewhere the distance is {step}",
                pair[0], pair[1]
            ));
        }
    }

    fn report_surplus(&mut self) {
        let read = self.source.read.borrow();
        let mut surplus = Vec::new();
        for (name, info) in self.source.files.tensors() {
            let ours = self.namespace.iter().any(|prefix| name.starts_with(prefix.as_str()));
            // A buffer that old versions saved; nothing reads it.
            if ours && !read.contains(name) && !name.ends_with("rotary_emb.inv_freq") {
                surplus.push(format!("{name}: surplus, expected no such tensor, found {:?}", info.shape));
            }
        }
        drop(read);
        self.problems.extend(surplus);
    }

    /// Problems in order, each once; a tensor of a type that nobody reads is there, but not missing.
    fn finished_problems(&mut self) -> Vec<String> {
        let mut seen = BTreeSet::new();
        let tensors = self.source.files.tensors();
        std::mem::take(&mut self.problems)
            .into_iter()
            .map(|problem| {
                match problem.split_once(": missing").and_then(|(name, _)| Some((name, tensors.get(name)?))) {
                    Some((name, info)) => {
                        format!("{name}: expected f32, f16 or bf16, found {} {:?}", info.dtype, info.shape)
                    }
                    None => problem,
                }
            })
            .filter(|problem| seen.insert(problem.clone()))
            .collect()
    }
}

/// A module whose `query_tokens` are saved beside it instead of in it.
struct Below<'s, 'a> {
    source: &'s Tracked<'a>,
    tokens: &'s str,
    inside: &'s str,
}

impl Below<'_, '_> {
    fn rename<'n>(&'n self, name: &'n str) -> &'n str {
        if name.strip_prefix(self.inside) == Some("query_tokens") { self.tokens } else { name }
    }
}

impl<'a> TensorSource<'a> for Below<'_, 'a> {
    fn tensor(&self, name: &str) -> Option<HostTensor<'a>> {
        self.source.tensor(self.rename(name))
    }

    fn indices(&self, prefix: &str) -> BTreeSet<usize> {
        self.source.indices(prefix)
    }

    fn promised(&self, name: &str) -> Option<Vec<usize>> {
        self.source.promised(self.rename(name))
    }
}

/// The number in a gated block's prefix: the last one, or the one before it where a list is nested in a list (flamingo-pytorch's
/// `layers.3.1.`).
fn block_index(prefix: &str) -> usize {
    let parts: Vec<&str> = prefix.trim_end_matches('.').split('.').collect();
    let number = |i: usize| parts.get(i).and_then(|p| p.parse::<usize>().ok());
    let Some(last) = (0..parts.len()).rev().find(|&i| number(i).is_some()) else { return 0 };
    last.checked_sub(1).and_then(number).or(number(last)).unwrap_or(0)
}
