//! `MediaCache` and φ in prefill, chunked prefill and decode: one result for every cut.

use xattn::bridge::{GatedBlock, GatedBlockArgs, GatedBlockCall, MediaCache, NormConfig};
use xattn::ops::{Keys, MediaIndex, MediaIndexArgs, MediaSource, Source, Visibility};
use xattn::{DType, Dispatch, HostTensor, Tensor};

use crate::gated_block::{MEDIA, PER_MEDIA, block, config, project, weights};
use crate::support::{Lab, Values, assert_differs, assert_same_bits, labs, rows_of};

const BATCH: usize = 3;
const ROWS: usize = 12;
const TOKEN: i32 = 5;
const LAYERS: usize = 2;

/// Row 0: media at 0, 4 and 9. Row 1: none until 7, then two neighbours. Row 2: none.
fn tokens() -> Vec<i32> {
    let mut ids = vec![1i32; BATCH * ROWS];
    for at in [0, 4, 9, ROWS + 7, ROWS + 8] {
        ids[at] = TOKEN;
    }
    ids
}

struct Run<'l> {
    lab: &'l Lab,
    blocks: Vec<GatedBlock>,
    cache: MediaCache,
    /// `[BATCH, MEDIA, PER_MEDIA, media_width]`.
    media: Vec<f64>,
    x: Vec<f64>,
    carry: Tensor,
    /// Media that each entry holds.
    filled: [usize; BATCH],
}

impl<'l> Run<'l> {
    fn new(lab: &'l Lab) -> Self {
        let c = config();
        let mut values = Values::new(1);
        let blocks: Vec<GatedBlock> = (0..LAYERS).map(|_| block(lab, &c, &weights(&c))).collect();
        let cache = MediaCache::new(&blocks.iter().collect::<Vec<_>>(), BATCH, MEDIA, PER_MEDIA).unwrap();
        Run {
            lab,
            blocks,
            cache,
            media: values.normal(BATCH * MEDIA * PER_MEDIA * c.media_width),
            x: values.normal(BATCH * ROWS * c.width),
            carry: lab.ints(&[0; BATCH], &[BATCH]),
            filled: [0; BATCH],
        }
    }

    /// Projects media `filled..upto` of a row.
    fn fill(&mut self, row: usize, upto: usize) {
        let (first, c) = (self.filled[row], config());
        if upto <= first {
            return;
        }
        let n = PER_MEDIA * c.media_width;
        let start = (row * MEDIA + first) * n;
        let media =
            self.lab.tensor(&self.media[start..start + (upto - first) * n], &[upto - first, PER_MEDIA, c.media_width]);
        let blocks: Vec<&GatedBlock> = self.blocks.iter().collect();
        self.cache.fill(&blocks, row, first, &media.view()).unwrap();
        self.filled[row] = upto;
    }

    /// Rows `start..start + len` of all sequences through all blocks, with the media so far.
    fn chunk(&mut self, start: usize, len: usize) -> Vec<f64> {
        let c = config();
        let (lab, all) = (self.lab, tokens());
        let ids: Vec<i32> = (0..BATCH).flat_map(|b| all[b * ROWS + start..b * ROWS + start + len].to_vec()).collect();
        for row in 0..BATCH {
            let seen = all[row * ROWS..row * ROWS + start + len].iter().filter(|&&id| id == TOKEN).count();
            self.fill(row, seen);
        }
        let ids = lab.ints(&ids, &[BATCH, len]);
        let mut phi = lab.ints(&vec![0; BATCH * len], &[BATCH, len]);
        let mut carry = lab.ints(&[0; BATCH], &[BATCH]);
        let args = MediaIndexArgs {
            source: MediaSource::Tokens { ids: ids.view(), token: TOKEN },
            carry_in: Some(self.carry.view()),
            carry_out: Some(carry.view_mut()),
            media_count: None,
            media_index: phi.view_mut(),
            plan: None,
        };
        MediaIndex::default().run(&lab.device, args).unwrap();
        self.carry = carry;
        let shape = [BATCH, len, c.width];
        let mut x = lab.tensor(&rows_of(&self.x, [BATCH, ROWS, c.width], start, len), &shape);
        let slots = lab.words(&[0, 1, 2], &[BATCH]);
        for (layer, block) in self.blocks.iter().enumerate() {
            let args = GatedBlockArgs {
                x: Source::From(x.view()),
                x_offsets: None,
                kv: self.cache.kv(layer).unwrap(),
                keys: Keys::All,
                slots: Some(slots.view()),
                kv_offsets: None,
                visibility: block.config().visibility(phi.view(), PER_MEDIA as u32, None).unwrap(),
                out: (),
            };
            let out = lab.run_bridge::<GatedBlockCall>(|shapes| block.prepare(shapes), &shape, args);
            x = lab.tensor(&out, &shape);
        }
        lab.read(&x)
    }

    /// The text in chunks of these lengths, put together again.
    fn chunks(mut self, lengths: &[usize]) -> Vec<f64> {
        let width = config().width;
        let mut out = vec![0.0; BATCH * ROWS * width];
        let mut start = 0;
        for &len in lengths {
            let part = self.chunk(start, len);
            for b in 0..BATCH {
                let to = (b * ROWS + start) * width;
                out[to..to + len * width].copy_from_slice(&part[b * len * width..(b + 1) * len * width]);
            }
            start += len;
        }
        assert_eq!(start, ROWS);
        out
    }
}

#[test]
fn chunked_prefill_with_carry_equals_whole_prefill() {
    for lab in labs() {
        let whole = Run::new(&lab).chunks(&[ROWS]);
        for lengths in [&[6, 6][..], &[1, 3, 5, 3], &[4, 1, 7], &[11, 1]] {
            lab.assert_near(&Run::new(&lab).chunks(lengths), &whole);
        }
    }
}

#[test]
fn decode_token_by_token_equals_prefill() {
    for lab in labs() {
        let whole = Run::new(&lab).chunks(&[ROWS]);
        lab.assert_near(&Run::new(&lab).chunks(&[1; ROWS]), &whole);
        let mut lengths = vec![5];
        lengths.extend([1; ROWS - 5]);
        lab.assert_near(&Run::new(&lab).chunks(&lengths), &whole);
    }
}

/// Public code forgets the carry (each chunk counts from one): the property would see it.
#[test]
fn without_carry_a_later_chunk_sees_other_media() {
    for lab in labs() {
        let whole = Run::new(&lab).chunks(&[ROWS]);
        let mut run = Run::new(&lab);
        run.chunk(0, 6);
        run.carry = lab.ints(&[0; BATCH], &[BATCH]);
        let second = run.chunk(6, 6);
        let width = config().width;
        assert_differs(&second[..6 * width], &whole[6 * width..12 * width]);
        // Row 2 has no media at all, so its answer is the same.
        lab.assert_near(&second[12 * width..], &whole[(2 * ROWS + 6) * width..]);
    }
}

#[test]
fn other_rows_media_and_text_change_no_bit_of_a_row() {
    for lab in labs() {
        let whole = Run::new(&lab).chunks(&[4, 1, 7]);
        let mut run = Run::new(&lab);
        let (c, mut values) = (config(), Values::new(2));
        let row = MEDIA * PER_MEDIA * c.media_width;
        run.media[..row].copy_from_slice(&values.normal(row));
        run.media[2 * row..].fill(f64::NAN);
        run.x[..ROWS * c.width].copy_from_slice(&values.normal(ROWS * c.width));
        let got = run.chunks(&[4, 1, 7]);
        assert_same_bits(&got[ROWS * c.width..], &whole[ROWS * c.width..]);
        assert_differs(&got[..ROWS * c.width], &whole[..ROWS * c.width]);
    }
}

/// A fill changes no other entry or medium; one fill of three media is three fills of one.
#[test]
fn fills_touch_what_they_name() {
    for lab in labs() {
        let (mut together, mut apart) = (Run::new(&lab), Run::new(&lab));
        together.fill(1, 3);
        (1..=3).for_each(|upto| apart.fill(1, upto));
        for layer in 0..LAYERS {
            let [a, b] = [&together, &apart].map(|run| lab.read_view(&run.cache.kv(layer).unwrap()));
            lab.assert_near(&b, &a);
            let entry = a.len() / BATCH;
            assert_same_bits(&b[..entry], &vec![0.0; entry]);
            assert_same_bits(&b[2 * entry..], &vec![0.0; entry]);
            assert_differs(&b[entry..2 * entry], &vec![0.0; entry]);
        }
    }
}

/// Blocks of one cache may need scratch memory of different sizes: here the second one has a norm
/// of media, and the first one none.
#[test]
fn blocks_that_need_more_scratch_memory_than_the_first() {
    for lab in labs() {
        let plain = config();
        let mut normed = config();
        normed.media_norm = Some(NormConfig::default());
        let blocks = [&plain, &normed].map(|c| block(&lab, c, &weights(c)));
        let blocks = [&blocks[0], &blocks[1]];
        let mut cache = MediaCache::new(&blocks, 1, MEDIA, PER_MEDIA).unwrap();
        let media = Values::new(6).normal(MEDIA * PER_MEDIA * plain.media_width);
        let media = lab.tensor(&media, &[MEDIA, PER_MEDIA, plain.media_width]);
        cache.fill(&blocks, 0, 0, &media.view()).unwrap();
        for (layer, block) in blocks.into_iter().enumerate() {
            assert_same_bits(&lab.read_view(&cache.kv(layer).unwrap()), &project(&lab, block, &media));
        }
        let [a, b] = [0, 1].map(|layer| lab.read_view(&cache.kv(layer).unwrap()));
        assert_differs(&a, &b);
    }
}

#[test]
fn misuse_is_an_error_that_names_what_was_wrong() {
    let lab = &labs()[1];
    let c = config();
    let mut run = Run::new(lab);
    let blocks: Vec<GatedBlock> = (0..LAYERS).map(|_| block(lab, &c, &weights(&c))).collect();
    let blocks: Vec<&GatedBlock> = blocks.iter().collect();
    let medium = |dtype: DType, shape: [usize; 3]| Tensor::zeros(&lab.device, dtype, &shape).unwrap();
    let good = medium(DType::F32, [1, PER_MEDIA, c.media_width]);
    let mut fill = |blocks: &[&GatedBlock], entry: usize, first: usize, media: &Tensor| {
        run.cache.fill(blocks, entry, first, &media.view()).unwrap_err().to_string()
    };
    assert_eq!(fill(&blocks, 3, 0, &good), "media_cache: entry: expected one of 3, got 3");
    assert_eq!(fill(&blocks, 0, 3, &good), "media_cache: first: expected media within 0..3, got 3..3+1");
    assert_eq!(
        fill(&blocks, 0, usize::MAX, &good),
        format!("media_cache: first: expected media within 0..3, got {0}..{0}+1", usize::MAX)
    );
    assert_eq!(fill(&blocks[..1], 0, 0, &good), "media_cache: blocks: expected 2, got 1");
    assert_eq!(
        fill(&blocks, 0, 0, &medium(DType::F32, [1, 4, 40])),
        "media_cache: media: expected shape [count, 5, width], got f32[1, 4, 40]"
    );
    assert_eq!(fill(&blocks, 0, 0, &medium(DType::F16, [1, 5, 40])), "media_cache: media: expected f32, got f16");
    assert_eq!(
        fill(&blocks, 0, 0, &medium(DType::F32, [1, 5, 39])),
        "gated_block.project_media: media: expected media f32[1, 5, 40] as prepared, got f32[1, 5, 39]"
    );
    let kv = |layer| run.cache.kv(layer).map(|v| v.spec()).map_err(|e| e.to_string());
    assert_eq!(kv(2).unwrap_err(), "media_cache: layer: expected one of 2, got 2");
    assert_eq!(kv(1).unwrap().shape(), [BATCH, MEDIA * PER_MEDIA, c.kv_width()]);
    let none = MediaCache::new(&[], 1, 1, 1).err().map(|e| e.to_string());
    assert_eq!(none.unwrap(), "media_cache: blocks: expected at least one, got none");
    let mut wide = c.clone();
    wide.media_width = 56;
    let wide = block(lab, &wide, &weights(&wide));
    let mixed = MediaCache::new(&[blocks[0], &wide], 1, 1, 1).err().map(|e| e.to_string());
    assert_eq!(mixed.unwrap(), "media_cache: blocks: expected media of width 40 and K/V of width 64, got 56 and 64");
}

/// A host tensor of another rank is no medium.
#[test]
fn a_matrix_is_no_list_of_media() {
    let lab = &labs()[1];
    let mut run = Run::new(lab);
    let flat = HostTensor::from_slice(&[0f32; 10], &[5, 2]).unwrap();
    let flat = Tensor::upload(&lab.device, &flat, DType::F32).unwrap();
    let blocks: Vec<&GatedBlock> = run.blocks.iter().collect();
    let error = run.cache.fill(&blocks, 0, 0, &flat.view()).unwrap_err().to_string();
    assert_eq!(error, "media_cache: media: expected shape [count, 5, width], got f32[5, 2]");
}

/// Without a rule over φ there is nothing to build from φ.
#[test]
fn bits_are_no_rule_over_indices() {
    let mut c = config();
    c.rule = xattn::bridge::MediaRule::Bits;
    let error = c.visibility((), 5, None).map(|_: Visibility<()>| ()).unwrap_err().to_string();
    assert_eq!(error, "gated_block: rule: expected a rule over φ, got bits per row");
}
