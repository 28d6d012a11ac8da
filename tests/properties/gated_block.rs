//! Gated blocks: gates, widths, empty rows, and the paper's norm of K and V.

use xattn::bench::RandomWeights;
use xattn::bridge::{
    GatedBlock, GatedBlockArgs, GatedBlockCall, GatedBlockConfig, GatedBlockWeights, MediaRule, NormConfig,
    ProjectMediaArgs, ProjectMediaCall,
};
use xattn::ops::{
    Activation, EmptyRow, EmptyRows, Keys, Linear, LinearArgs, Matrix, Norm, NormArgs, NormKind, Source, Visibility,
};
use xattn::{HostTensor, Tensor, View, pack_bits};

use crate::support::{Lab, Values, assert_differs, assert_same_bits, labs};

pub const BATCH: usize = 2;
pub const ROWS: usize = 13;
pub const MEDIA: usize = 3;
pub const PER_MEDIA: usize = 5;

/// A small OpenFlamingo-like block whose inner width (4 heads of 8) is not its width.
pub fn config() -> GatedBlockConfig {
    let mut config = GatedBlockConfig::new(48, 40, 4, 8);
    config.ffn_hidden = 64;
    config
}

/// Llama-3.2-Vision's kind of block: GQA, RMS norms of q and k, bits, masked feed-forward rows.
fn llama(empty: EmptyRow) -> GatedBlockConfig {
    let mut config = config();
    config.kv_heads = 2;
    config.activation = Activation::SwiGlu;
    config.norm = NormConfig::rms(1e-5);
    config.qk_norm = Some(config.norm);
    config.rule = MediaRule::Bits;
    config.empty_rows = EmptyRows::all(empty);
    config.ffn_row_mask = true;
    config
}

pub fn weights(config: &GatedBlockConfig) -> GatedBlockWeights<'static> {
    RandomWeights::new(7).gated_block(config).unwrap()
}

pub fn block(lab: &Lab, config: &GatedBlockConfig, weights: &GatedBlockWeights<'_>) -> GatedBlock {
    GatedBlock::new(&lab.device, config, weights, lab.precision()).unwrap()
}

/// The weights with these raw gates of the attention and the feed-forward branch, where they are
/// given.
fn gated<'a>(weights: &GatedBlockWeights<'a>, attention: Option<&[f32]>, ffn: Option<&[f32]>) -> GatedBlockWeights<'a> {
    let mut weights = weights.clone();
    for (raw, gate) in [(attention, &mut weights.attention_gate), (ffn, &mut weights.ffn_gate)] {
        if let Some(raw) = raw {
            *gate = HostTensor::from_slice(raw, &[raw.len()]).unwrap();
        }
    }
    weights
}

pub fn project(lab: &Lab, block: &GatedBlock, media: &Tensor) -> Vec<f64> {
    let [entries, keys] = [media.spec().dim(0), media.spec().dim(1)];
    let shape = [entries, keys, block.config().kv_width()];
    lab.run_bridge::<ProjectMediaCall>(
        |shapes| block.prepare_media(shapes),
        &shape,
        ProjectMediaArgs { media: media.view(), kv: () },
    )
}

/// Text, media and φ of a call.
pub struct Inputs {
    pub x: Vec<f64>,
    pub media: Vec<f64>,
    pub media_index: Vec<i32>,
}

impl Inputs {
    pub fn new(seed: u64) -> Self {
        let (c, mut values) = (config(), Values::new(seed));
        Inputs {
            x: values.normal(BATCH * ROWS * c.width),
            media: values.normal(BATCH * MEDIA * PER_MEDIA * c.media_width),
            media_index: values.media_index(BATCH * ROWS, MEDIA),
        }
    }

    /// Runs a block under its own rule over φ.
    pub fn run(&self, lab: &Lab, block: &GatedBlock) -> Vec<f64> {
        let phi = lab.ints(&self.media_index, &[BATCH, ROWS]);
        self.run_with(lab, block, block.config().visibility(phi.view(), PER_MEDIA as u32, None).unwrap())
    }

    pub fn run_with(&self, lab: &Lab, block: &GatedBlock, visibility: Visibility<View<'_>>) -> Vec<f64> {
        let c = block.config();
        let media = lab.tensor(&self.media, &[BATCH, MEDIA * PER_MEDIA, c.media_width]);
        let kv = lab.tensor(&project(lab, block, &media), &[BATCH, MEDIA * PER_MEDIA, c.kv_width()]);
        let shape = [BATCH, ROWS, c.width];
        let x = lab.tensor(&self.x, &shape);
        let args = GatedBlockArgs {
            x: Source::From(x.view()),
            x_offsets: None,
            kv: kv.view(),
            keys: Keys::All,
            slots: None,
            kv_offsets: None,
            visibility,
            out: (),
        };
        lab.run_bridge::<GatedBlockCall>(|shapes| block.prepare(shapes), &shape, args)
    }
}

#[test]
fn gates_of_zero_are_the_identity() {
    for lab in labs() {
        let inputs = Inputs::new(1);
        for zeros in [vec![0.0f32], vec![0.0; 48]] {
            let open = weights(&config());
            let closed = gated(&open, Some(&zeros), Some(&zeros));
            assert_same_bits(&inputs.run(&lab, &block(&lab, &config(), &closed)), &inputs.x);
            assert_differs(&inputs.run(&lab, &block(&lab, &config(), &open)), &inputs.x);
        }
    }
}

#[test]
fn a_vector_gate_with_equal_entries_is_the_scalar_gate() {
    for lab in labs() {
        let inputs = Inputs::new(2);
        let base = weights(&config());
        let with = |n: usize| gated(&base, Some(&vec![0.75; n]), Some(&vec![-0.375; n]));
        let scalar = inputs.run(&lab, &block(&lab, &config(), &with(1)));
        assert_same_bits(&inputs.run(&lab, &block(&lab, &config(), &with(48))), &scalar);
    }
}

/// Rows of φ = 0 get no attention but a feed-forward branch; with its gate closed they pass.
#[test]
fn rows_without_media_pass_the_attention_branch_unchanged() {
    for lab in labs() {
        let inputs = Inputs::new(3);
        let base = weights(&config());
        let closed = gated(&base, None, Some(&[0.0]));
        let (closed, open) =
            (inputs.run(&lab, &block(&lab, &config(), &closed)), inputs.run(&lab, &block(&lab, &config(), &base)));
        let mut empty = 0;
        for (row, &phi) in inputs.media_index.iter().enumerate() {
            let at = row * 48..(row + 1) * 48;
            if phi == 0 {
                empty += 1;
                assert_same_bits(&closed[at.clone()], &inputs.x[at.clone()]);
                assert_differs(&open[at.clone()], &inputs.x[at]);
            } else {
                assert_differs(&closed[at.clone()], &inputs.x[at]);
            }
        }
        assert!(empty > 0, "the case has no empty row");
    }
}

/// `E != D` and another media width: the block is the composition in its documentation.
#[test]
fn the_media_projection_of_the_paper_is_norm_then_product() {
    for lab in labs() {
        let mut config = config();
        config.media_norm = Some(NormConfig::layer(1e-5));
        let w = weights(&config);
        let inputs = Inputs::new(4);
        let shape = [BATCH, MEDIA * PER_MEDIA, config.media_width];
        let media = lab.tensor(&inputs.media, &shape);
        let projected = project(&lab, &block(&lab, &config, &w), &media);

        let vector = |t: &HostTensor<'_>| lab.tensor(&t.to_f64().unwrap(), t.shape());
        let norm = w.media_norm.as_ref().unwrap();
        let (weight, bias) = (vector(&norm.weight), vector(norm.bias.as_ref().unwrap()));
        let op = Norm { kind: NormKind::Layer, eps: 1e-5 };
        let four = [1, shape[0], shape[1], shape[2]];
        let media = lab.tensor(&inputs.media, &four);
        let args = NormArgs::new(Source::From(media.view()), Some(weight.view()), Some(bias.view()), ());
        let normed = lab.tensor(&lab.run(&op, &four, args), &shape);
        let matrix = vector(&w.kv.weight[0]);
        let out = [shape[0], shape[1], config.kv_width()];
        let args = LinearArgs::new(normed.view(), Matrix::View(matrix.view()), ());
        lab.assert_near(&projected, &lab.run(&Linear::default(), &out, args));

        let (mut plain, mut bare) = (config.clone(), w.clone());
        (plain.media_norm, bare.media_norm) = (None, None);
        let without = block(&lab, &plain, &bare);
        let media = lab.tensor(&inputs.media, &shape);
        assert_differs(&project(&lab, &without, &media), &projected);
    }
}

/// Bits of every row over blocks of `PER_MEDIA` keys: those that see nothing are `empty`.
fn bits(empty: &[usize]) -> Vec<u32> {
    let flags: Vec<u8> = (0..BATCH * ROWS * MEDIA)
        .map(|i| u8::from(!empty.contains(&(i / MEDIA)) && (i % MEDIA == i / MEDIA % MEDIA || i % MEDIA == 1)))
        .collect();
    pack_bits(&flags, MEDIA).unwrap()
}

#[test]
fn meta_rows_that_see_nothing_pass_through_and_those_of_transformers_attend_to_all() {
    let empty = [0usize, 1, 7, ROWS, ROWS + 12];
    for lab in labs() {
        let inputs = Inputs::new(5);
        let words = lab.words(&bits(&empty), &[BATCH, ROWS, 1]);
        let visibility = || Visibility::MediaBits { bits: words.view(), keys_per_block: PER_MEDIA as u32 };
        let run = |policy: EmptyRow, visibility: Visibility<View<'_>>, change: fn(&mut GatedBlockConfig)| {
            let mut c = llama(policy);
            change(&mut c);
            inputs.run_with(&lab, &block(&lab, &c, &weights(&llama(policy))), visibility)
        };
        let meta = run(EmptyRow::Zero, visibility(), |_| ());
        let transformers = run(EmptyRow::AttendAll, visibility(), |_| ());
        // What a row gets that really sees every key, and whose feed-forward branch is closed for
        // good: nothing is masked away by bits.
        let nobody = lab.words(&bits(&(0..BATCH * ROWS).collect::<Vec<_>>()), &[BATCH, ROWS, 1]);
        let all_empty = Visibility::MediaBits { bits: nobody.view(), keys_per_block: PER_MEDIA as u32 };
        let attend_all = run(EmptyRow::AttendAll, all_empty, |_| ());
        let with_ffn = run(EmptyRow::AttendAll, visibility(), |c| c.ffn_row_mask = false);
        for row in 0..BATCH * ROWS {
            let at = row * 48..(row + 1) * 48;
            if empty.contains(&row) {
                assert_same_bits(&meta[at.clone()], &inputs.x[at.clone()]);
                assert_differs(&transformers[at.clone()], &inputs.x[at.clone()]);
                lab.assert_near(&transformers[at.clone()], &attend_all[at.clone()]);
                assert_differs(&with_ffn[at.clone()], &transformers[at]);
            } else {
                assert_same_bits(&meta[at.clone()], &transformers[at.clone()]);
                assert_same_bits(&with_ffn[at.clone()], &transformers[at]);
            }
        }
        // The attention half of such a row is an attention over every key: under `All` it is the
        // same before the feed-forward branch.
        let closed = gated(&weights(&llama(EmptyRow::Zero)), None, Some(&[0.0]));
        let open = inputs.run_with(&lab, &block(&lab, &llama(EmptyRow::Zero), &closed), Visibility::All);
        lab.assert_near(&attend_all, &open);
    }
}

#[test]
fn unseen_media_and_batch_neighbours_change_no_bit_of_a_block() {
    for lab in labs() {
        let block = block(&lab, &config(), &weights(&config()));
        let mut inputs = Inputs::new(6);
        inputs.media_index.iter_mut().for_each(|phi| *phi = [0, 1, 3, 1][*phi as usize]);
        let expected = inputs.run(&lab, &block);
        let medium = PER_MEDIA * config().media_width;
        for problem in 0..BATCH {
            let start = (problem * MEDIA + 1) * medium;
            inputs.media[start..start + medium].fill(f64::NAN);
        }
        assert_same_bits(&inputs.run(&lab, &block), &expected);
        inputs.media[..MEDIA * medium].fill(f64::INFINITY);
        inputs.x[..ROWS * 48].iter_mut().for_each(|x| *x = -*x);
        let got = inputs.run(&lab, &block);
        assert_same_bits(&got[ROWS * 48..], &expected[ROWS * 48..]);
    }
}
