//! BLIP-2 and InstructBLIP, with the names of transformers or LAVIS.

use std::collections::BTreeSet;

use super::{Find, Tracked};
use crate::checkpoint::config::View;
use crate::checkpoint::{Bridges, Reader, TensorSource, blip2};
use crate::{Error, HostTensor};

impl<'a> Find<'a, '_> {
    pub(super) fn qformer(&mut self, layout: blip2::Layout) -> Bridges<'a> {
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
        let found = self.source.files.info(&tokens).and_then(|t| t.shape.iter().rev().nth(1).copied());
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
        // Their own name, not the one below the module.
        let read = read.map_err(|error| match error {
            Error::Weights { family, problems } => {
                let nested = format!("{inside}query_tokens:");
                let own = |p: String| p.strip_prefix(&nested).map(|rest| format!("{tokens}:{rest}")).unwrap_or(p);
                Error::Weights { family, problems: problems.into_iter().map(own).collect() }
            }
            other => other,
        });
        if let Some((config, mut weights)) = self.keep(read) {
            if weights.query_tokens.is_none() {
                let shape = [queries, config.width];
                let read =
                    Reader::family("query tokens", &self.source, &root, |r| Ok(r.squeezed("query_tokens", &shape)));
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
        let width = bridges.qformer.as_ref().map(|(q, _)| q.width);
        let mut dense = |names: &[&str]| {
            let name = names.iter().map(|n| format!("{root}{n}")).find(|n| self.source.any_below(&format!("{n}.")))?;
            self.namespace.push(format!("{name}."));
            self.promise_columns(format!("{name}.weight"), width);
            let read = blip2::read_dense(&self.source, &name);
            self.keep(read)
        };
        bridges.language_projection = dense(&["language_projection", "opt_proj", "t5_proj", "llm_proj"]);
        let vision = dense(&["vision_projection", "vision_proj"]);
        let text = dense(&["text_projection", "text_proj"]);
        bridges.itm = dense(&["itm_head"]);
        let word = if layout == blip2::Layout::Lavis { "proj" } else { "projection" };
        let there = |name: &str| self.source.any_below(&format!("{root}{name}_{word}."));
        for (name, other) in [("vision", "text"), ("text", "vision")] {
            if !there(name) && there(other) {
                self.problems
                    .push(format!("{root}{name}_{word}.weight: missing, though {root}{other}_{word} is there"));
            }
        }
        bridges.itc = vision.zip(text);
        let lm_head = format!("{root}Qformer.cls.predictions.");
        if layout == blip2::Layout::Lavis && self.source.any_below(&lm_head) {
            let read = blip2::read_lm_head(&self.source, &lm_head);
            bridges.lm_head = self.keep(read);
            // BERT keeps the decoder's bias under two names.
            self.source.read.borrow_mut().insert(format!("{lm_head}bias"));
        }
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

    fn any_below(&self, prefix: &str) -> bool {
        self.source.any_below(prefix)
    }

    fn promised(&self, name: &str) -> Option<Vec<usize>> {
        self.source.promised(self.rename(name))
    }
}
