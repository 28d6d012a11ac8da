//! Resamplers: lengths, neighbours and time embeddings.

use xattn::bench::RandomWeights;
use xattn::bridge::{
    Interpolation, PerceiverResampler, ResamplerArgs, ResamplerCall, ResamplerConfig, ResamplerWeights,
};
use xattn::ops::{Activation, Keys};
use xattn::{HostTensor, View, pack_bits};

use crate::support::{Lab, Values, assert_differs, assert_same_bits, labs};

const WIDTH: usize = 40;

/// `E = 32` beside a width of 40, seven latents, two layers.
fn config() -> ResamplerConfig {
    let mut config = ResamplerConfig::new(WIDTH, 7, 4, 8);
    (config.layers, config.kv_heads, config.ffn_hidden) = (2, 2, 48);
    config.activation = Activation::SquaredRelu;
    config
}

fn weights() -> ResamplerWeights<'static> {
    RandomWeights::new(3).resampler(&config()).unwrap()
}

struct Shape {
    batch: usize,
    media: usize,
    tokens: usize,
    frames: usize,
}

impl Shape {
    fn features(&self) -> [usize; 4] {
        [self.batch, self.media, self.tokens, WIDTH]
    }
}

fn run(
    lab: &Lab,
    config: &ResamplerConfig,
    weights: &ResamplerWeights<'_>,
    s: &Shape,
    features: &[f64],
    keys: Keys<View<'_>>,
) -> Vec<f64> {
    let resampler = PerceiverResampler::new(&lab.device, config, weights, lab.precision()).unwrap();
    let features = lab.tensor(features, &s.features());
    let args = ResamplerArgs { features: features.view(), keys, offsets: None, out: () };
    let out = [s.batch, s.media, config.latents, config.output_width()];
    lab.run_bridge::<ResamplerCall>(|shapes| resampler.prepare(s.frames, shapes), &out, args)
}

#[test]
fn padded_features_equal_ragged_ones() {
    for lab in labs() {
        let s = Shape { batch: 2, media: 2, tokens: 11, frames: 1 };
        let features = Values::new(1).normal(4 * 11 * WIDTH);
        let lengths = [11usize, 1, 0, 6];
        let words = lab.words(&lengths.map(|n| n as u32), &[4]);
        let padded = run(&lab, &config(), &weights(), &s, &features, Keys::Lengths(words.view()));
        let flags: Vec<u8> = (0..44).map(|i| u8::from(i % 11 < lengths[i / 11])).collect();
        let bits = lab.words(&pack_bits(&flags, 11).unwrap(), &[4, 1]);
        assert_same_bits(&run(&lab, &config(), &weights(), &s, &features, Keys::Bits(bits.view())), &padded);

        let packed: Vec<f64> =
            features.chunks(11 * WIDTH).zip(lengths).flat_map(|(one, n)| one[..n * WIDTH].to_vec()).collect();
        let packed = lab.tensor(&packed, &[1, 1, 18, WIDTH]);
        let offsets = lab.words(&[0, 11, 12, 12, 18], &[5]);
        let resampler = PerceiverResampler::new(&lab.device, &config(), &weights(), lab.precision()).unwrap();
        let args = ResamplerArgs { features: packed.view(), keys: Keys::All, offsets: Some(offsets.view()), out: () };
        let out = lab.run_bridge::<ResamplerCall>(|shapes| resampler.prepare(1, shapes), &[4, 1, 7, WIDTH], args);
        lab.assert_near(&out, &padded);
    }
}

#[test]
fn padding_and_neighbours_change_no_bit() {
    for lab in labs() {
        let s = Shape { batch: 3, media: 1, tokens: 70, frames: 1 };
        let features = Values::new(2).normal(3 * 70 * WIDTH);
        let lengths = lab.words(&[70, 65, 3], &[3]);
        let expected = run(&lab, &config(), &weights(), &s, &features, Keys::Lengths(lengths.view()));
        for poison in [f64::NAN, f64::INFINITY] {
            let mut padded = features.clone();
            padded[(70 + 65) * WIDTH..2 * 70 * WIDTH].fill(poison);
            padded[(2 * 70 + 3) * WIDTH..].fill(poison);
            assert_same_bits(&run(&lab, &config(), &weights(), &s, &padded, Keys::Lengths(lengths.view())), &expected);
            padded[..70 * WIDTH].fill(poison);
            let got = run(&lab, &config(), &weights(), &s, &padded, Keys::Lengths(lengths.view()));
            assert_same_bits(&got[7 * WIDTH..], &expected[7 * WIDTH..]);
            assert!(got[..7 * WIDTH].iter().all(|x| x.is_nan()));
        }
    }
}

/// Media of a sequence are problems of their own: without media embeddings their order is free.
#[test]
fn media_do_not_know_of_each_other() {
    for lab in labs() {
        let s = Shape { batch: 1, media: 3, tokens: 9, frames: 1 };
        let features = Values::new(3).normal(3 * 9 * WIDTH);
        let out = run(&lab, &config(), &weights(), &s, &features, Keys::All);
        let turned: Vec<f64> = [&features[9 * WIDTH..], &features[..9 * WIDTH]].concat();
        let got = run(&lab, &config(), &weights(), &s, &turned, Keys::All);
        assert_same_bits(&got, &[&out[7 * WIDTH..], &out[..7 * WIDTH]].concat());
    }
}

/// The numbers of attention do not depend on the order of features: only their roundings do.
#[test]
fn permuting_features_changes_rounding_only() {
    for lab in labs() {
        let s = Shape { batch: 1, media: 1, tokens: 33, frames: 1 };
        let features = Values::new(4).normal(33 * WIDTH);
        let turned: Vec<f64> = features.chunks(WIDTH).rev().flatten().copied().collect();
        let out = run(&lab, &config(), &weights(), &s, &features, Keys::All);
        lab.assert_near(&run(&lab, &config(), &weights(), &s, &turned, Keys::All), &out);
    }
}

/// Frame embeddings are added to a frame's tokens, interpolated to the clip's frames; media
/// embeddings to a medium's. Adding them to the features by hand, from a table worked out on paper,
/// is the same.
#[test]
fn time_embeddings_equal_a_table_added_by_hand() {
    // Three embeddings for four frames: corners at positions 0, 2/3, 4/3, 2; centres at -1/8
    // (clamped to 0), 5/8, 11/8, 17/8 (clamped to 2).
    let corners = [[1.0, 0.0, 0.0], [1.0 / 3.0, 2.0 / 3.0, 0.0], [0.0, 2.0 / 3.0, 1.0 / 3.0], [0.0, 0.0, 1.0]];
    let centres = [[1.0, 0.0, 0.0], [0.375, 0.625, 0.0], [0.0, 0.625, 0.375], [0.0, 0.0, 1.0]];
    let (frames, media, per_frame) = (4, 2, 3);
    let s = Shape { batch: 2, media, tokens: frames * per_frame, frames };
    let mut values = Values::new(5);
    let features = values.normal(2 * media * frames * per_frame * WIDTH);
    let (frame_table, media_table) = (values.normal(3 * WIDTH), values.normal(5 * WIDTH));
    let host = |table: &[f64]| Some(HostTensor::from_slice(table, &[table.len() / WIDTH, WIDTH]).unwrap());
    for lab in labs() {
        for (align_corners, shares) in [(true, corners), (false, centres)] {
            let (mut config, mut embedded) = (config(), weights());
            config.interpolation = Interpolation::Linear { align_corners };
            embedded.frame_embeddings = host(&frame_table);
            embedded.media_embeddings = host(&media_table);
            let got = run(&lab, &config, &embedded, &s, &features, Keys::All);
            let by_hand: Vec<f64> = features
                .iter()
                .enumerate()
                .map(|(i, x)| {
                    let (d, token) = (i % WIDTH, i / WIDTH);
                    let (frame, medium) = (token / per_frame % frames, token / s.tokens % media);
                    let frame: f64 = (0..3).map(|e| shares[frame][e] * frame_table[e * WIDTH + d]).sum();
                    x + frame + media_table[medium * WIDTH + d]
                })
                .collect();
            lab.assert_near(&got, &run(&lab, &config, &weights(), &s, &by_hand, Keys::All));
            assert_differs(&got, &run(&lab, &config, &weights(), &s, &features, Keys::All));
        }
    }
}
