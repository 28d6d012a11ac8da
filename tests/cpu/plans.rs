//! Media plans that contradict φ: neither the CPU nor the reference reads one.

use xattn::ops::{Attention, AttentionArgs, Media, Visibility};
use xattn::{DType, Device};

use crate::hostile_plans::plans;
use crate::support::{Buffer, Random, call, devices};

const ROWS: usize = 21;
const KEYS: usize = 40;
const DIM: usize = 8;

/// The result on blocks of exactly their size, with or without a plan for each of two problems.
fn run(device: &Device, plan: Option<&[u32]>, preceding: bool) -> Buffer {
    let random = &mut Random(1);
    let q = Buffer::filled(DType::F32, &[2, ROWS, 2, DIM], 0, || random.real());
    let [k, v] = [0, 1].map(|_| Buffer::filled(DType::F32, &[2, KEYS, 1, DIM], 0, || random.real()));
    let phi = Buffer::filled(DType::I32, &[2, ROWS], 0, || random.below(7) as f64 - 1.0);
    let plan = plan.map(|plan| {
        let mut words = plan.iter().chain(plan);
        Buffer::filled(DType::U32, &[2, 1 + ROWS, 2], 0, || f64::from(*words.next().unwrap()))
    });
    let mut out = Buffer::new(DType::F32, &[2, ROWS, 2, DIM], 1);
    let mut args = AttentionArgs::new(q.view(), k.view(), v.view(), out.view_mut());
    let media = Media { media_index: phi.view(), keys_per_media: 9, plan: plan.as_ref().map(|plan| plan.view()) };
    args.visibility = if preceding { Visibility::PrecedingMedia(media) } else { Visibility::SameMedia(media) };
    call(&Attention::for_head_dim(DIM), device, args).unwrap();
    assert!(out.gaps_hold());
    out
}

#[test]
fn hostile_plans_change_nothing() {
    for device in devices().into_iter().chain([Device::reference()]) {
        for preceding in [false, true] {
            let expected = run(&device, None, preceding);
            assert!(expected.values().iter().any(|&x| x != 0.0));
            for plan in plans(ROWS) {
                let got = run(&device, Some(&plan.words), preceding);
                assert!(got.same_bits(&expected), "{}: {}", device.info().details, plan.name);
            }
        }
    }
}
