//! Llama-3.2-Vision, with the names of transformers or Meta.

use std::collections::{BTreeMap, BTreeSet};

use super::Find;
use crate::checkpoint::config::View;
use crate::checkpoint::{Bridges, Heads, blip2, index_behind, mllama};

impl<'a> Find<'a, '_> {
    pub(super) fn mllama(&mut self) -> Bridges<'a> {
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
        let names = if meta {
            ["attention.wq", "attention.wk", "feed_forward.w1"]
        } else {
            ["cross_attn.q_proj", "cross_attn.k_proj", "mlp.gate_proj"]
        };
        if let Some(c) = &config {
            let base = bases.first().cloned().unwrap_or_else(|| "language_model.model.layers.".into());
            // Meta numbers them among themselves.
            let promised = if meta { (0..c.cross_layers().len()).collect() } else { c.cross_layers() };
            for index in &promised {
                blocks.entry(*index).or_insert_with(|| vec![format!("{base}{index}.")]);
            }
            let layer = if meta { "" } else { ".cross_attn" };
            for index in blocks.keys().filter(|index| !promised.contains(index)) {
                self.problems
                    .push(format!("{base}{index}{layer}: surplus, not in cross_attention_layers of config.json"));
            }
        } else {
            self.report_holes(&blocks.keys().copied().collect::<Vec<_>>());
        }
        if blocks.is_empty() {
            self.problems.push("language_model.model.layers.3.cross_attn.q_proj.weight: missing".into());
        }
        let media = bridges.projector.as_ref().and_then(|p| p.weight.first()).map(|w| w.shape()[0]);
        for (index, prefixes) in &blocks {
            let Some(prefix) = self.one_of(prefixes) else { continue };
            let (heads, eps) = match &config {
                Some(c) => {
                    c.promise(&mut self.source.promise, &prefix, names);
                    (c.heads(), c.rms_norm_eps)
                }
                None => {
                    self.promise_columns(format!("{prefix}{}.weight", names[1]), media);
                    let rows = |n: &str| self.heads_of_width(&format!("{prefix}{n}.weight"), 128);
                    let (heads, kv_heads) = (rows(names[0]), rows(names[1]));
                    (Heads { heads, kv_heads }, 1e-5)
                }
            };
            let heads = Heads { heads: self.overrides.block_heads.unwrap_or(heads.heads), ..heads };
            let read = mllama::gated_block(&self.source, &prefix, heads, eps, self.overrides.empty_rows);
            self.keep_block(&mut bridges, *index, prefix, read);
        }
        bridges
    }
}
