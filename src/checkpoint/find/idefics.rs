//! IDEFICS 9B and 80B.

use super::Find;
use crate::checkpoint::config::View;
use crate::checkpoint::{Bridges, TensorSource, idefics};

impl<'a> Find<'a, '_> {
    pub(super) fn idefics(&mut self) -> Bridges<'a> {
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
            let media = bridges.resampler.as_ref().map(|(c, _)| c.width);
            self.promise_columns(format!("{prefix}cross_attn.k_proj.weight"), media);
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
}
