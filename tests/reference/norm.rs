use xattn::ops::{Norm, NormArgs, NormKind, Op, Source};
use xattn::{DType, Device, Dispatch, View, ViewMut};

use crate::{assert_close, reference, spec, view, view_mut};

const LAYER: Norm = Norm { kind: NormKind::Layer, eps: 0.0 };

#[test]
fn layer_norm() {
    // Mean 3, biased variance ((−2)² + 2²) / 2 = 4.
    let mut out = [0.0; 4];
    let args = NormArgs::new(
        Source::From(view(&[1.0, 5.0, -1.0, -1.0], &[1, 2, 1, 2])),
        Some(view(&[10.0, 20.0], &[2])),
        Some(view(&[0.5, -0.5], &[2])),
        view_mut(&mut out, &[1, 2, 1, 2]),
    );
    Norm { kind: NormKind::Layer, eps: 0.0 }.run(&reference(), args).unwrap();
    assert_close(&out[..2], &[-9.5, 19.5]);
    // A constant row without eps is 0 / 0.
    assert!(out[2].is_nan() && out[3].is_nan());

    let mut out = [7.0; 2];
    let args =
        NormArgs::new(Source::From(view(&[1.0, 5.0], &[1, 1, 1, 2])), None, None, view_mut(&mut out, &[1, 1, 1, 2]));
    // √(4 + 12) = 4.
    Norm { kind: NormKind::Layer, eps: 12.0 }.run(&reference(), args).unwrap();
    assert_close(&out, &[-0.5, 0.5]);
}

#[test]
fn rms_norm_in_place() {
    // Mean square (1 + 49) / 2 = 25, and 25 + 11 = 36.
    let mut x = [1.0, -7.0];
    let args = NormArgs::new(Source::InPlace, Some(view(&[6.0, 3.0], &[2])), None, view_mut(&mut x, &[1, 1, 1, 2]));
    Norm { kind: NormKind::Rms, eps: 11.0 }.run(&reference(), args).unwrap();
    assert_close(&x, &[1.0, -3.5]);
}

#[test]
fn l2_divides_by_the_larger_of_norm_and_eps() {
    let x = [3.0, 4.0, 0.3, 0.4, 0.0, 0.0, f64::NAN, 1.0];
    let mut out = [0.0; 8];
    let args = NormArgs::new(Source::From(view(&x, &[2, 2, 1, 2])), None, None, view_mut(&mut out, &[2, 2, 1, 2]));
    Norm { kind: NormKind::L2, eps: 2.0 }.run(&reference(), args).unwrap();
    assert_close(&out, &[0.6, 0.8, 0.15, 0.2, 0.0, 0.0, f64::NAN, f64::NAN]);
}

/// The yardstick has the roundings of devices: it multiplies by the reciprocal root. A division
/// would nearly always give ±1 over two numbers.
#[test]
fn the_yardstick_multiplies_by_the_reciprocal_root() {
    let x: Vec<f32> = (0..64).flat_map(|i| [0.3 + i as f32 * 0.17, -0.2]).collect();
    let mut out = vec![0.0f32; x.len()];
    let shape = [1, 64, 1, 2];
    let args = NormArgs::new(Source::From(view(&x, &shape)), None, None, view_mut(&mut out, &shape));
    LAYER.run(&Device::yardstick(0), args).unwrap();
    let expected: Vec<f32> = x
        .chunks(2)
        .flat_map(|x| {
            let mean = (x[0] + x[1]) / 2.0;
            let d = [x[0] - mean, x[1] - mean];
            let factor = 1.0 / ((d[0] * d[0] + d[1] * d[1]) / 2.0).sqrt();
            d.map(|d| d * factor)
        })
        .collect();
    assert_eq!(out, expected);
    assert!(expected.iter().any(|x| x.abs() != 1.0), "the numbers tell a product from a division");
}

/// Of a table the rows that are gathered count, in its own type.
#[test]
fn gathered_rows_cost_what_the_table_holds() {
    let bytes = |dtype, table_rows: usize| {
        let mut args = NormArgs::new(
            Source::From(spec(dtype, &[1, table_rows, 1, 8])),
            None,
            None,
            spec(DType::F32, &[2, 3, 1, 8]),
        );
        args.rows = Some(spec(DType::I32, &[2, 3]));
        LAYER.prepare(&reference(), args).unwrap().cost().bytes
    };
    // Six row ids and six results of 8 f32, besides six rows of the table.
    let rest = 6 * 4 + 6 * 8 * 4;
    for table_rows in [1, 6, 1000] {
        assert_eq!(bytes(DType::BF16, table_rows), rest + 6 * 8 * 2);
        assert_eq!(bytes(DType::F32, table_rows), rest + 6 * 8 * 4);
    }
}

#[test]
fn gathers_rows_and_clamps_them() {
    let table = [0.0, 2.0, 10.0, 14.0, -6.0, 0.0];
    let rows = [1i32, i32::MIN, i32::MAX, 3, -1, 2];
    let mut out = [0.0; 12];
    let args = NormArgs {
        rows: Some(view(&rows, &[2, 3])),
        // Positions: the same three rows for both batch entries.
        add: Some(View::strided(&[0.0, 0.0, 0.0, 8.0, 0.0, 0.0], &[2, 3, 1, 2], &[0, 2, 2, 1]).unwrap()),
        ..NormArgs::new(
            Source::From(view(&table, &[1, 3, 1, 2])),
            Some(view(&[1.0, 2.0], &[2])),
            None,
            view_mut(&mut out, &[2, 3, 1, 2]),
        )
    };
    // x = [10, 14], [0, 10], [-6, 0]; then [-6, 0], [0, 10], [-6, 0].
    Norm { kind: NormKind::Rms, eps: 0.0 }.run(&reference(), args).unwrap();
    let rms = |a: f64, b: f64| {
        let root = ((a * a + b * b) / 2.0).sqrt();
        [a / root, 2.0 * b / root]
    };
    let expected = [rms(10., 14.), rms(0., 10.), rms(-6., 0.), rms(-6., 0.), rms(0., 10.), rms(-6., 0.)].concat();
    assert_close(&out, &expected);
    assert_close(&out[2..4], &[0.0, 2.0 * std::f64::consts::SQRT_2]);
}

#[test]
fn per_head_and_strided() {
    // Heads of q inside a packed [rows, q | k]: normalised where they lie, what lies between stays.
    let mut packed = [1.0, 5.0, 2.0, 2.0, 9.0, 9.0, 0.0, 8.0, -3.0, 3.0, 9.0, 9.0];
    let out = ViewMut::strided(&mut packed, &[1, 2, 2, 2], &[12, 6, 2, 1]).unwrap();
    Norm { kind: NormKind::L2, eps: 0.0 }.run(&reference(), NormArgs::new(Source::InPlace, None, None, out)).unwrap();
    let half = std::f64::consts::FRAC_1_SQRT_2;
    let long = 26f64.sqrt();
    assert_close(&packed, &[1. / long, 5. / long, half, half, 9., 9., 0., 1., -half, half, 9., 9.]);
}

#[test]
fn yardstick_differs_by_its_rounding_and_by_order() {
    let x: Vec<f32> = (0..257).map(|i| (i * 7919 % 1009) as f32 / 63.0 + 1000.0).collect();
    let run = |device: Device| {
        let mut out = vec![0.0; 257];
        let args =
            NormArgs::new(Source::From(view(&x, &[1, 1, 1, 257])), None, None, view_mut(&mut out, &[1, 1, 1, 257]));
        LAYER.run(&device, args).unwrap();
        out
    };
    let truth = run(reference());
    let error = |y: &[f64]| y.iter().zip(&truth).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    let (zero, one) = (run(Device::yardstick(0)), run(Device::yardstick(1)));
    assert_ne!(zero, one);
    assert_eq!(one, run(Device::yardstick(1)));
    // 257 additions of at most half an ulp of 2^18, 2^-7, put the mean off by at most 2^-7, which
    // is divided by a deviation above 4.
    for y in [zero, one] {
        assert!(error(&y) > 1e-8 && error(&y) < 2f64.powi(-9), "{}", error(&y));
    }
}

#[test]
fn nothing_to_do() {
    for shape in [[0, 1, 1, 4], [1, 0, 1, 4], [1, 1, 1, 0]] {
        let args = NormArgs::new(Source::InPlace, None, None, view_mut::<f64>(&mut [], &shape));
        LAYER.run(&reference(), args).unwrap();
    }
    let args = NormArgs {
        rows: Some(view::<i32>(&[], &[1, 0])),
        ..NormArgs::new(
            Source::From(view::<f64>(&[], &[1, 0, 1, 4])),
            None,
            None,
            view_mut::<f64>(&mut [], &[1, 0, 1, 4]),
        )
    };
    LAYER.run(&reference(), args).unwrap();
}

#[test]
fn messages() {
    let f32s = |shape: &[usize]| spec(DType::F32, shape);
    let good = NormArgs::new(Source::From(f32s(&[1, 2, 1, 4])), Some(f32s(&[4])), None, f32s(&[1, 2, 1, 4]));
    let message = |norm: Norm, args| norm.check(&args).unwrap_err().to_string();
    LAYER.check(&good).unwrap();
    assert_eq!(
        message(Norm { eps: -1.0, ..LAYER }, good.clone()),
        "norm: eps: expected a finite number, at least 0, got -1"
    );
    assert_eq!(
        message(Norm { kind: NormKind::Rms, ..LAYER }, NormArgs { bias: Some(f32s(&[4])), ..good.clone() }),
        "norm: bias: expected none but for Layer, got Rms"
    );
    assert_eq!(
        message(LAYER, NormArgs { weight: Some(f32s(&[5])), ..good.clone() }),
        "norm: weight: expected shape [width] = [4], got f32[5]"
    );
    let rows = Some(spec(DType::I32, &[1, 2]));
    assert_eq!(
        message(LAYER, NormArgs { rows, x: Source::InPlace, ..good.clone() }),
        "norm: rows: expected none in place, got some"
    );
    assert_eq!(
        message(LAYER, NormArgs { rows, x: Source::From(f32s(&[1, 0, 1, 4])), ..good }),
        "norm: x: expected a table with at least one row, got f32[1, 0, 1, 4]"
    );
}
