//! What the configs of several families share, and their parameter counts. Each family's sizes are
//! in its own file, for uses without weights (benchmarks, engines that allocate first).
//!
//! Sources: Flamingo v2, tables 4 and 5; the `config` defaults of open_flamingo, transformers
//! `idefics`, `idefics2`, `mllama`, `blip_2`, `instructblip`, xGen-MM (spec sections 2.4, 3.5, 4,
//! 5, 7 and 13).

use crate::bridge::{GatedBlockConfig, NormConfig, QFormerConfig, ResamplerConfig};
use crate::ops::{Activation, NormKind};

/// What text before the first image gets. Implementations differ (transformers issue 39379).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum EmptyRowBehaviour {
    /// Meta's reference: neither branch touches such rows.
    #[default]
    Meta,
    /// transformers: they attend to every vision token, and only the feed-forward branch is masked.
    Transformers,
}

impl ResamplerConfig {
    /// Number of parameters with the latents, without frame and media embeddings.
    pub fn parameters(&self) -> usize {
        let (inner, kv) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let norm = norm_parameters(self.norm, self.width);
        let layer = 3 * norm
            + self.width * (2 * inner + 2 * kv)
            + self.qk_norm.map_or(0, |n| 2 * norm_parameters(n, self.head_dim))
            + matrices(self.activation) * self.width * self.ffn_hidden;
        self.latents * self.width
            + self.layers * layer
            + if self.final_norm { norm } else { 0 }
            + self.input_mlp.map_or(0, |m| m.hidden * (2 * m.features + self.width))
            + self.projection.map_or(0, |n| n * (self.width + 1))
    }
}

impl GatedBlockConfig {
    /// Number of parameters, with scalar gates.
    pub fn parameters(&self) -> usize {
        let inner = self.heads * self.head_dim;
        2 * norm_parameters(self.norm, self.width)
            + self.media_norm.map_or(0, |n| norm_parameters(n, self.media_width))
            + self.qk_norm.map_or(0, |n| 2 * norm_parameters(n, self.head_dim))
            + 2 * inner * self.width
            + self.kv_width() * self.media_width
            + matrices(self.activation) * self.width * self.ffn_hidden
            + 2
    }
}

impl QFormerConfig {
    /// Number of parameters without the query tokens; `text_ffn`: with a feed-forward network for
    /// text; `embeddings`: rows of word and position embeddings together.
    pub fn parameters(&self, text_ffn: bool, embeddings: usize) -> usize {
        let norm = 2 * self.width;
        let dense = |n: usize, k: usize| n * (k + 1);
        let attention = |kv: usize| 2 * dense(self.width, self.width) + dense(2 * self.width, kv) + norm;
        let ffn = dense(self.ffn_hidden, self.width) + dense(self.width, self.ffn_hidden) + norm;
        let crossing = self.layers.div_ceil(self.cross_every.max(1));
        norm + self.layers * (attention(self.width) + if text_ffn { 2 * ffn } else { ffn })
            + crossing * attention(self.encoder_width)
            + embeddings * self.width
    }
}

fn norm_parameters(norm: NormConfig, width: usize) -> usize {
    if norm.kind == NormKind::Layer { 2 * width } else { width }
}

/// Matrices of a feed-forward network.
fn matrices(activation: Activation) -> usize {
    if activation.is_glu() { 3 } else { 2 }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Millions with one digit, as the sources give them.
    fn millions(parameters: usize) -> String {
        format!("{:.1}", parameters as f64 / 1e6)
    }

    /// Counts that spec 3.5 and 5.1 took from the executed public classes.
    #[test]
    fn parameters_are_those_of_the_public_classes() {
        assert_eq!(millions(ResamplerConfig::open_flamingo().parameters()), "63.0");
        assert_eq!(millions(GatedBlockConfig::open_flamingo_3b().parameters()), "36.7");
        assert_eq!(millions(GatedBlockConfig::open_flamingo_4b().parameters()), "56.1");
        assert_eq!(millions(GatedBlockConfig::open_flamingo_9b().parameters()), "139.5");
        let q = QFormerConfig::blip2();
        assert_eq!(millions(q.parameters(false, 0)), "105.1");
        assert_eq!(millions(q.parameters(true, 0)), "161.8");
        assert_eq!(millions(q.parameters(true, 30522 + 512)), "185.7");
    }

    /// Spec 2.4: 170M with heads of 96, and blocks of 1.16, 1.80 and 8.36 billion.
    #[test]
    fn parameters_are_those_of_the_paper_with_media_of_1536() {
        assert_eq!(millions(ResamplerConfig::flamingo().parameters()), "170.0");
        let blocks = |block: GatedBlockConfig, n: usize| format!("{:.2}", (n * block.parameters()) as f64 / 1e9);
        assert_eq!(blocks(GatedBlockConfig::flamingo_3b(), 24), "1.16");
        assert_eq!(blocks(GatedBlockConfig::flamingo_9b(), 10), "1.80");
        assert_eq!(blocks(GatedBlockConfig::flamingo_80b(), 12), "8.36");
    }
}
