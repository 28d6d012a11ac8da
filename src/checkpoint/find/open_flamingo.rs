//! flamingo-pytorch, OpenFlamingo, Otter, flamingo-mini, xGen-MM.

use std::collections::{BTreeMap, BTreeSet};

use super::Find;
use crate::checkpoint::config::View;
use crate::checkpoint::detect::is_open_gate;
use crate::checkpoint::{Bridges, Family, open_flamingo};

impl<'a> Find<'a, '_> {
    pub(super) fn open_flamingo(&mut self, family: Family) -> Bridges<'a> {
        let mut bridges = Bridges::default();
        // flamingo-mini's configuration tells what no tensor does.
        let mini = match self.view {
            View::FlamingoMini(c) => c.activations().ok().map(|acts| (c, acts)),
            _ => None,
        };
        let [usual, usual_of_blocks] = match mini {
            Some((c, _)) => [c.resampler_heads as usize, c.xattn_heads as usize],
            None if family == Family::XgenMm => [16, 8],
            None => [8, 8],
        };
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
            if let (Some((config, _)), Some((_, [activation, _]))) = (&mut bridges.resampler, mini) {
                config.activation = activation;
            }
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
        let media = bridges.resampler.as_ref().map(|(c, _)| c.output_width());
        for (index, prefixes) in &blocks {
            let Some(prefix) = self.one_of(prefixes) else { continue };
            self.promise_columns(format!("{prefix}attn.to_kv.weight"), media);
            let heads = self.overrides.block_heads.unwrap_or(usual_of_blocks);
            let mut read = open_flamingo::gated_block(&self.source, &prefix, heads, !self.overrides.attend_preceding);
            if let (Ok((config, _)), Some((_, [_, activation]))) = (&mut read, mini) {
                config.activation = activation;
            }
            self.keep_block(&mut bridges, *index, prefix, read);
        }
        bridges
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
