//! Operands that share memory with others, each in its own elements: halves of a row, heads of
//! many, columns of a packed product. The gaps of one are the elements of another.

use xattn::ops::{Attention, AttentionArgs, Linear, LinearArgs, Matrix, Norm, NormArgs, NormKind, Source};
use xattn::{DType, Device, View};

use crate::support::{Buffer, Random, attention_bounds, call, distance};

const DEVICES: [fn() -> Device; 2] = [Device::cpu, Device::reference];

fn random(dtype: DType, shape: &[usize], seed: u64) -> Buffer {
    let random = &mut Random(seed);
    Buffer::filled(dtype, shape, 0, || random.real())
}

/// K and V of one GEMM, `[batch, keys, 2 · kv_heads · d]`; all keys of one entry per problem.
#[test]
fn keys_and_values_are_halves_of_a_row() {
    let (batch, keys, heads, d) = (3, 70, 2, 24);
    let q = random(DType::F32, &[batch, 5, heads, d], 1);
    for dtype in [DType::F32, DType::BF16] {
        for repeated in [false, true] {
            let shape = [batch, keys, 2 * heads * d];
            let kv = random(dtype, if repeated { &shape[1..] } else { &shape }, 2);
            let half = |which: usize| -> View<'_> {
                let view = if repeated { kv.view().repeat(0, batch).unwrap() } else { kv.view() };
                view.narrow(2, which * heads * d, heads * d).unwrap().split(2, heads, d).unwrap()
            };
            let outs = DEVICES.map(|device| {
                let mut out = Buffer::new(DType::F32, &[batch, 5, heads, d], 1);
                let args = AttentionArgs::new(q.view(), half(0), half(1), out.view_mut());
                call(&Attention::for_head_dim(d), &device(), args).unwrap();
                assert!(out.gaps_hold());
                out
            });
            let (allowed, _) = attention_bounds(d, keys, Attention::for_head_dim(d).scale);
            assert!(distance(&outs[0], &outs[1]) <= allowed, "{dtype} {repeated}");
        }
    }
}

/// One head of many, written between the others, which stay as they are.
#[test]
fn one_head_of_many_is_written() {
    let (rows, heads, d) = (7, 5, 16);
    let x = random(DType::F16, &[2, rows, heads, d], 3);
    for device in DEVICES {
        let mut all = random(DType::F32, &[2, rows, heads, d], 4);
        let before = all.values();
        let args = NormArgs::new(
            Source::From(x.view().narrow(2, 3, 1).unwrap()),
            None,
            None,
            all.view_mut().narrow(2, 3, 1).unwrap(),
        );
        call(&Norm { kind: NormKind::Rms, eps: 1e-5 }, &device(), args).unwrap();
        for (i, (now, before)) in all.values().into_iter().zip(before).enumerate() {
            assert_eq!(now != before, i / d % heads == 3, "{:?}: element {i}", device());
        }
    }
}

/// x a column block of packed activations, W rows of a larger matrix, y a column block.
#[test]
fn products_of_column_blocks() {
    let (rows, n, k) = (9, 33, 40);
    let x = random(DType::F32, &[2, rows, 3 * k], 5);
    let w = random(DType::F16, &[n + 7, 2 * k], 6);
    let outs = DEVICES.map(|device| {
        let mut out = random(DType::F32, &[2, rows, n + 11], 7);
        let args = LinearArgs::new(
            x.view().narrow(2, k, k).unwrap(),
            Matrix::View(w.view().narrow(0, 4, n).unwrap().narrow(1, k, k).unwrap()),
            out.view_mut().narrow(2, 5, n).unwrap(),
        );
        call(&Linear::default(), &device(), args).unwrap();
        let untouched = random(DType::F32, &[2, rows, n + 11], 7);
        for (i, (now, before)) in out.values().into_iter().zip(untouched.values()).enumerate() {
            assert_eq!(now == before, !(5..5 + n).contains(&(i % (n + 11))), "{:?}: element {i}", device());
        }
        out
    });
    // |x|, |w| <= 1: k products lose at most (k + 2) u each.
    let u = f64::from(f32::EPSILON) / 2.0;
    assert!(distance(&outs[0], &outs[1]) <= (k as f64 + 3.0) * u * (k as f64 + 2.0));
}
