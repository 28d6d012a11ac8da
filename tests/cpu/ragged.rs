//! Ragged queries whose offsets descend: problems overlap, and the last that has a row writes it.

use std::num::NonZeroUsize;

use xattn::ops::{Attention, AttentionArgs, Keys};
use xattn::{CpuOptions, DType, Device};

use crate::support::{Buffer, Random, attention_bounds, call, distance};

/// The first of two problems over the same rows takes a thousand times as long as the last.
#[test]
fn the_last_problem_writes_rows_of_several() {
    let (rows, keys, d) = (64, 4000, 32);
    let random = &mut Random(7);
    let q = Buffer::filled(DType::F32, &[1, rows, 1, d], 0, || random.real());
    let [k, v] = [(); 2].map(|()| Buffer::filled(DType::F32, &[3, keys, 1, d], 0, || random.real()));
    let words = |values: [usize; 4], n: usize| {
        let mut values = values.into_iter();
        Buffer::filled(DType::U32, &[n], 0, || values.next().unwrap() as f64)
    };
    let (offsets, lengths) = (words([0, rows, 0, rows], 4), words([keys, keys, 4, 0], 3));
    let op = Attention::for_head_dim(d);
    let run = |device: &Device| {
        let mut out = Buffer::filled(DType::F32, &[1, rows, 1, d], 0, || 0.5);
        let mut args = AttentionArgs::new(q.view(), k.view(), v.view(), out.view_mut());
        args.q_offsets = Some(offsets.view());
        args.first.keys = Keys::Lengths(lengths.view());
        call(&op, device, args).unwrap();
        out
    };
    let truth = run(&Device::reference());
    let mut options = CpuOptions::default();
    options.threads = NonZeroUsize::new(2);
    let device = Device::cpu_with(&options).unwrap();
    let (allowed, _) = attention_bounds(d, keys, op.scale);
    for _ in 0..5 {
        let error = distance(&run(&device), &truth);
        assert!(error <= allowed, "off by {error:e}, {allowed:e} allowed");
    }
}
