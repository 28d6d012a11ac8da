//! A problem of `attention` over media in host memory; properties change one thing in it.

use xattn::ops::{Attention, AttentionArgs, EmptyRow, EmptyRows, Keys, Media, Segment, Visibility};

use crate::support::{Lab, Values};

/// The rule of a problem.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rule {
    All,
    Same,
    Preceding,
}

/// Which keys exist, in host memory.
#[derive(Clone, Debug)]
pub enum Exists {
    All,
    Lengths(Vec<u32>),
    Bits(Vec<u32>),
}

/// Operands of `attention` over media.
#[derive(Clone, Debug)]
pub struct Problem {
    pub batch: usize,
    pub rows: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub media: usize,
    pub per_media: usize,
    pub q: Vec<f64>,
    pub k: Vec<f64>,
    pub v: Vec<f64>,
    pub media_index: Vec<i32>,
    pub rule: Rule,
    pub keys: Exists,
    pub empty: EmptyRow,
}

impl Problem {
    /// Two sequences, three media of `per_media` keys, 21 rows, 4 query heads on 2 K/V heads of 24.
    pub fn new(seed: u64, per_media: usize, rule: Rule) -> Self {
        Self::sized(seed, 2, 3, per_media, rule)
    }

    /// As [`Problem::new`], for `batch` sequences of `media` media.
    pub fn sized(seed: u64, batch: usize, media: usize, per_media: usize, rule: Rule) -> Self {
        let mut values = Values::new(seed);
        let (rows, heads, kv_heads, head_dim) = (21, 4, 2, 24);
        let kv = batch * media * per_media * kv_heads * head_dim;
        Problem {
            batch,
            rows,
            heads,
            kv_heads,
            head_dim,
            media,
            per_media,
            q: values.normal(batch * rows * heads * head_dim),
            k: values.normal(kv),
            v: values.normal(kv),
            media_index: values.media_index(batch * rows, media),
            rule,
            keys: Exists::All,
            empty: EmptyRow::Zero,
        }
    }

    pub fn q_shape(&self) -> [usize; 4] {
        [self.batch, self.rows, self.heads, self.head_dim]
    }

    pub fn keys_per_problem(&self) -> usize {
        self.media * self.per_media
    }

    pub fn kv_shape(&self) -> [usize; 4] {
        [self.batch, self.keys_per_problem(), self.kv_heads, self.head_dim]
    }

    /// Numbers of one key of one problem: all heads.
    pub fn key_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Numbers of one row of the result: all heads.
    pub fn row_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Where key `key` of problem `problem` lies in `k` and `v`.
    pub fn key(&self, problem: usize, key: usize) -> std::ops::Range<usize> {
        let start = (problem * self.keys_per_problem() + key) * self.key_width();
        start..start + self.key_width()
    }

    /// Writes `value` into a key of K and of V.
    pub fn poison(&mut self, problem: usize, key: usize, value: f64) {
        let range = self.key(problem, key);
        self.k[range.clone()].fill(value);
        self.v[range].fill(value);
    }

    pub fn op(&self) -> Attention {
        Attention { empty_rows: EmptyRows::all(self.empty), ..Attention::for_head_dim(self.head_dim) }
    }

    /// Runs it.
    #[track_caller]
    pub fn run(&self, lab: &Lab) -> Vec<f64> {
        let (q, k, v) = (
            lab.tensor(&self.q, &self.q_shape()),
            lab.tensor(&self.k, &self.kv_shape()),
            lab.tensor(&self.v, &self.kv_shape()),
        );
        let media_index = lab.ints(&self.media_index, &[self.batch, self.rows]);
        let media = Media { media_index: media_index.view(), keys_per_media: self.per_media as u32, plan: None };
        let visibility = match self.rule {
            Rule::All => Visibility::All,
            Rule::Same => Visibility::SameMedia(media),
            Rule::Preceding => Visibility::PrecedingMedia(media),
        };
        let exists = match &self.keys {
            Exists::All => None,
            Exists::Lengths(lengths) => Some(lab.words(lengths, &[self.batch])),
            Exists::Bits(bits) => Some(lab.words(bits, &[self.batch, bits.len() / self.batch])),
        };
        let keys = match (&self.keys, &exists) {
            (Exists::Lengths(_), Some(t)) => Keys::Lengths(t.view()),
            (Exists::Bits(_), Some(t)) => Keys::Bits(t.view()),
            _ => Keys::All,
        };
        let first = Segment::new(k.view(), v.view()).with_keys(keys);
        let args = AttentionArgs { first, visibility, ..AttentionArgs::new(q.view(), k.view(), v.view(), ()) };
        lab.run(&self.op(), &self.q_shape(), args)
    }
}
