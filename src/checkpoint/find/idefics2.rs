//! Idefics2.

use super::Find;
use crate::checkpoint::config::View;
use crate::checkpoint::{Bridges, Heads, idefics2};

impl<'a> Find<'a, '_> {
    pub(super) fn idefics2(&mut self) -> Bridges<'a> {
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
}
