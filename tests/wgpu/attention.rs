//! `attention`: hostile values, what nobody sees, bits that repeat, numbers of dispatches.

use xattn::ops::{Attention, AttentionArgs, Media, Visibility};
use xattn::wgpu::Limits;
use xattn::{DType, Device, HostTensor, Tensor, WgpuAttentionVariant, WgpuOptions};

use crate::hostile_values::plans::plans;
use crate::hostile_values::{DIM, Form, HEADS, ROWS, Values, enqueue, expect_close, op, reals, run, words};
use crate::support::{device, read};

/// With and without index checks compiled in, in WebGPU's default limits, and row by row; guards
/// hold; results are the reference's.
#[test]
fn hostile_values_reach_nothing_outside() {
    let mut options = WgpuOptions::default();
    options.limits = Some(Limits::default());
    let Some(checked) = device(&options) else { return };
    options.bounds_checks = false;
    let Some(plain) = device(&options) else { return };
    options.attention = Some(WgpuAttentionVariant::Decode);
    let Some(rows) = device(&options) else { return };
    for form in Form::EACH {
        for seed in 0..12 {
            let values = Values::hostile(seed);
            let (got, _) = run(&plain, form, &values, DType::F32, op());
            assert_eq!(got, run(&checked, form, &values, DType::F32, op()).0, "{form:?} {seed}");
            // Problems that overlap among them: the last one that has a row writes it.
            let (truth, _) = run(&Device::reference(), form, &values, DType::F32, op());
            expect_close(&format!("{form:?} {seed}"), &got, &truth, DType::F32);
            if seed < 4 {
                let (got, _) = run(&rows, form, &values, DType::F32, op());
                expect_close(&format!("{form:?} {seed}, decode"), &got, &truth, DType::F32);
            }
        }
    }
}

/// What a plan says changes nothing: φ tells which rows go together.
#[test]
fn hostile_plans_change_nothing() {
    let Some(device) = device(&WgpuOptions::default()) else { return };
    for form in [Form::Packed, Form::Bits, Form::Preceding] {
        let (expected, _) = run(&device, form, &Values::plain(), DType::F32, op());
        for plan in plans(ROWS) {
            let values = Values { plan: Some([plan.words.clone(), plan.words]), ..Values::plain() };
            assert!(run(&device, form, &values, DType::F32, op()).0 == expected, "{form:?}: {}", plan.name);
        }
    }
}

#[test]
fn the_same_bits_every_run_and_the_number_of_dispatches() {
    let Some(device) = device(&WgpuOptions::default()) else { return };
    let op = Attention::for_head_dim(DIM);
    for (form, dispatches) in [(Form::Bits, 2), (Form::Packed, 2 + 5)] {
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let (first, count) = run(&device, form, &Values::plain(), dtype, op);
            // row_visible, the copies of five index operands if packed, the op.
            assert_eq!(count, dispatches, "{form:?}");
            for _ in 0..5 {
                assert_eq!(run(&device, form, &Values::plain(), dtype, op).0, first, "{form:?} {dtype}");
            }
        }
    }
}

/// `batch` problems of 24 rows over 3 media of 70 keys; problem 0 is fixed, its medium 2 poisoned.
fn media_call(device: &Device, batch: usize, poison: Option<f32>, neighbour: f32, general: bool) -> (Vec<u32>, u32) {
    let (rows, keys, per_medium) = (24, 210, 70);
    let shape = |n: usize| [batch, n, HEADS, DIM];
    let fill = |n: usize, seed: u32| -> Vec<f32> {
        let per = n * HEADS * DIM;
        let mut all = reals(per, seed);
        all.extend(std::iter::repeat_n(neighbour, (batch - 1) * per));
        all
    };
    let upload = |values: &[f32], n: usize| {
        Tensor::upload(device, &HostTensor::from_slice(values, &shape(n)).unwrap(), DType::F32).unwrap()
    };
    let q = upload(&fill(rows, 1), rows);
    let (mut k, mut v) = (fill(keys, 2), fill(keys, 3));
    if let Some(poison) = poison {
        let medium = per_medium * HEADS * DIM..2 * per_medium * HEADS * DIM;
        k[medium.clone()].fill(poison);
        v[medium].fill(poison);
    }
    let (k, v) = (upload(&k, keys), upload(&v, keys));
    // With one rule no row sees medium 2; with the other one the rows of the first run do.
    let phi: Vec<i32> = (0..batch * rows).map(|i| [1, 1, 3, 3, 0][i % rows / 5]).collect();
    let phi = Tensor::upload(device, &HostTensor::from_slice(&phi, &[batch, rows]).unwrap(), DType::I32).unwrap();
    let bits: Vec<u32> = (0..batch * rows).map(|i| [0b001, 0b101, 0b100, 0b100, 0][i % rows / 5]).collect();
    let bits = words(device, &bits, &[batch, rows, 1]);
    let mut out = Tensor::zeros(device, DType::F32, &shape(rows)).unwrap();
    let mut args = AttentionArgs::new(q.view(), k.view(), v.view(), out.view_mut());
    args.visibility = match general {
        true => Visibility::MediaBits { bits: bits.view(), keys_per_block: per_medium as u32 },
        false => {
            Visibility::SameMedia(Media { media_index: phi.view(), keys_per_media: per_medium as u32, plan: None })
        }
    };
    let dispatches = enqueue(device, &Attention::for_head_dim(DIM), args);
    let all = read(device, &out);
    (all[..rows * HEADS * DIM].iter().map(|x| x.to_bits()).collect(), dispatches)
}

#[test]
fn what_no_row_sees_and_what_neighbours_hold_changes_no_bit() {
    let Some(device) = device(&WgpuOptions::default()) else { return };
    for general in [false, true] {
        let (expected, dispatches) = media_call(&device, 1, None, 0.0, general);
        assert_eq!(dispatches, 1);
        assert!(expected.iter().any(|&bits| bits != 0));
        for poison in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 3e38] {
            assert_eq!(media_call(&device, 1, Some(poison), 0.0, general).0, expected, "{poison}");
        }
        for batch in [2, 5] {
            for neighbour in [0.5, f32::NAN, f32::INFINITY] {
                let got = media_call(&device, batch, None, neighbour, general).0;
                assert_eq!(got, expected, "batch {batch}, {neighbour}");
            }
        }
    }
}

/// Medium 1 is poisoned, and rows of medium 3 in the same tile do not notice.
#[test]
fn nan_in_a_medium_stays_with_the_rows_that_see_it() {
    let Some(device) = device(&WgpuOptions::default()) else { return };
    let (rows, per_medium) = (20, 10);
    let real = |values: &[f32]| {
        let host = HostTensor::from_slice(values, &[1, values.len() / DIM, 1, DIM]).unwrap();
        Tensor::upload(&device, &host, DType::F32).unwrap()
    };
    let run = |poisoned: bool| {
        let q = real(&reals(rows * DIM, 1));
        let (k, mut v) = (reals(2 * per_medium * DIM, 2), reals(2 * per_medium * DIM, 3));
        if poisoned {
            v[..per_medium * DIM].fill(f32::NAN);
        }
        let (k, v) = (real(&k), real(&v));
        let phi: Vec<i32> = (0..rows as i32).map(|i| 1 + i / 3 % 2).collect();
        let phi = HostTensor::from_slice(&phi, &[1, rows]).unwrap();
        let phi = Tensor::upload(&device, &phi, DType::I32).unwrap();
        let mut out = real(&vec![0.0; rows * DIM]);
        let mut args = AttentionArgs::new(q.view(), k.view(), v.view(), out.view_mut());
        args.visibility =
            Visibility::SameMedia(Media { media_index: phi.view(), keys_per_media: per_medium as u32, plan: None });
        enqueue(&device, &Attention::for_head_dim(DIM), args);
        read(&device, &out)
    };
    let (clean, poisoned) = (run(false), run(true));
    for (i, (a, b)) in clean.iter().zip(&poisoned).enumerate() {
        let sees = (i / DIM / 3).is_multiple_of(2);
        assert!(if sees { b.is_nan() } else { a.to_bits() == b.to_bits() }, "row {}: {a} {b}", i / DIM);
    }
}

/// Rows without keys have log-sum-exp -∞; `check` admits calls without rows or heads.
#[test]
fn nothing_to_see_and_nothing_to_do() {
    let Some(device) = device(&WgpuOptions::default()) else { return };
    for (rows, keys, heads) in [(0, 3, 1), (3, 0, 1), (3, 3, 0)] {
        let real = |n: usize| Tensor::zeros(&device, DType::F32, &[1, n, heads, 8]).unwrap();
        let (q, k, v) = (real(rows), real(keys), real(keys));
        let mut out = Tensor::upload(
            &device,
            &HostTensor::from_slice(&vec![7.0f32; rows * heads * 8], &[1, rows, heads, 8]).unwrap(),
            DType::F32,
        )
        .unwrap();
        let mut lse = Tensor::zeros(&device, DType::F32, &[1, rows, heads]).unwrap();
        let mut seen = words(&device, &vec![9; rows], &[1, rows]);
        let mut args = AttentionArgs::new(q.view(), k.view(), v.view(), out.view_mut());
        args.log_sum_exp = Some(lse.view_mut());
        args.row_visible = Some(seen.view_mut());
        enqueue(&device, &Attention::for_head_dim(8), args);
        assert_eq!(read(&device, &out), vec![0.0; rows * heads * 8]);
        assert_eq!(read(&device, &lse), vec![f32::NEG_INFINITY; rows * heads]);
        let expected = vec![u32::from(keys > 0); rows];
        assert_eq!(seen.download(&device).unwrap().to_vec::<u32>().unwrap(), expected);
    }
}
