//! What goes into a Q-Former call and what comes out.

use crate::Result;
use crate::ops::{Keys, Operands, Parameters, Visit, sealed};

/// Who sees what in the self-attention of queries and text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Objective {
    /// Every row sees every existing key: ITC (queries alone, text alone), ITM, InstructBLIP.
    #[default]
    Bidirectional,
    /// ITG: queries see queries, a text row sees queries and text up to itself.
    TextGeneration,
}

/// Operands of a Q-Former call.
#[derive(Debug, Clone, PartialEq)]
pub struct QFormerArgs<R, W> {
    /// Image features `[batch, tokens, encoder_width]`; absent in text-only calls.
    pub features: Option<R>,
    /// Which feature tokens exist.
    pub feature_keys: Keys<R>,
    /// Query embeddings of the caller's, `[batch, queries, width]`, instead of the learned ones.
    pub queries: Option<R>,
    /// Which queries exist as keys.
    pub query_keys: Keys<R>,
    /// Token ids `i32 [batch, text rows]`.
    pub text: Option<R>,
    /// Which text tokens exist as keys.
    pub text_keys: Keys<R>,
    /// K and V of earlier calls, `[batch, past rows, 2 · width]` per layer, queries first; or none.
    pub past: Vec<R>,
    /// Which past rows exist as keys.
    pub past_keys: Keys<R>,
    /// Receives K and V of this call's rows, `[batch, rows, 2 · width]` per layer; or none.
    pub present: Vec<W>,
    /// The last layer's rows, queries first: `[batch, rows, width]`.
    pub hidden: W,
}

impl<R, W> QFormerArgs<R, W> {
    /// Learned queries over an image.
    pub fn image(features: R, hidden: W) -> Self {
        QFormerArgs { features: Some(features), ..Self::text_only_base(hidden) }
    }

    /// Text alone.
    pub fn text(ids: R, keys: Keys<R>, hidden: W) -> Self {
        QFormerArgs { text: Some(ids), text_keys: keys, ..Self::text_only_base(hidden) }
    }

    fn text_only_base(hidden: W) -> Self {
        QFormerArgs {
            features: None,
            feature_keys: Keys::All,
            queries: None,
            query_keys: Keys::All,
            text: None,
            text_keys: Keys::All,
            past: Vec::new(),
            past_keys: Keys::All,
            present: Vec::new(),
            hidden,
        }
    }
}

/// The operands of [`QFormer::prepare`](super::QFormer::prepare).
#[derive(Debug, Clone, Copy)]
pub struct QFormerCall;

impl sealed::Sealed for QFormerCall {}

impl Operands for QFormerCall {
    const NAME: &'static str = "qformer";
    type Args<R, W> = QFormerArgs<R, W>;

    fn map<R, W, R2, W2>(a: QFormerArgs<R, W>, v: &mut impl Visit<R, W, R2, W2>) -> Result<QFormerArgs<R2, W2>> {
        Ok(QFormerArgs {
            features: a.features.map(|r| v.read("features", r)).transpose()?,
            feature_keys: a.feature_keys.try_map(["feature_lengths", "feature_bits"], v)?,
            queries: a.queries.map(|r| v.read("queries", r)).transpose()?,
            query_keys: a.query_keys.try_map(["query_lengths", "query_bits"], v)?,
            text: a.text.map(|r| v.read("text", r)).transpose()?,
            text_keys: a.text_keys.try_map(["text_lengths", "text_bits"], v)?,
            past: a.past.into_iter().map(|r| v.read("past", r)).collect::<Result<_>>()?,
            past_keys: a.past_keys.try_map(["past_lengths", "past_bits"], v)?,
            present: a.present.into_iter().map(|w| v.write("present", w)).collect::<Result<_>>()?,
            hidden: v.write("hidden", a.hidden)?,
        })
    }

    fn as_ref<R, W>(a: &QFormerArgs<R, W>) -> QFormerArgs<&R, &W> {
        QFormerArgs {
            features: a.features.as_ref(),
            feature_keys: a.feature_keys.as_ref(),
            queries: a.queries.as_ref(),
            query_keys: a.query_keys.as_ref(),
            text: a.text.as_ref(),
            text_keys: a.text_keys.as_ref(),
            past: a.past.iter().collect(),
            past_keys: a.past_keys.as_ref(),
            present: a.present.iter().collect(),
            hidden: &a.hidden,
        }
    }

    type Form = QFormerArgs<(), ()>;

    fn form(args: QFormerArgs<(), ()>) -> Self::Form {
        args
    }

    fn parameters(_: &Self::Form, _: &mut Parameters<'_>) {}
}
