//! f64 is the reference's: kernels compute in f32, and say so instead of rounding.

use xattn::bridge::{HeadArgs, LanguageProjection, Precision};
use xattn::ops::{
    Attention, AttentionArgs, GatedResidual, GatedResidualArgs, Linear, LinearArgs, Matrix, Norm, NormArgs, NormKind,
    Source,
};
use xattn::{DType, Device, Dispatch, Error, HostTensor, Spec, Weight, WeightSource};

#[track_caller]
fn refused<T>(result: Result<T, Error>, op: &str, operand: &str) {
    let message = format!("{op}: {operand} of f64 is not supported by cpu; available: f32, f16, bf16");
    assert_eq!(result.err().map(|error| error.to_string()), Some(message));
}

#[test]
fn operands_of_f64_are_refused() {
    let device = Device::cpu();
    let spec =
        |wide: bool, shape: &[usize]| Spec::contiguous(if wide { DType::F64 } else { DType::F32 }, shape).unwrap();
    for wide in ["x", "weight", "out"] {
        let of = |name: &str, shape: &[usize]| spec(wide == name, shape);
        let args = LinearArgs::new(of("x", &[1, 2, 3]), Matrix::View(of("weight", &[4, 3])), of("out", &[1, 2, 4]));
        refused(Linear::default().prepare(&device, args), "linear", wide);
    }
    for wide in ["q", "first.k", "first.v", "out"] {
        let of = |name: &str| spec(wide == name, &[1, 2, 1, 4]);
        let args = AttentionArgs::new(of("q"), of("first.k"), of("first.v"), of("out"));
        refused(Attention::for_head_dim(4).prepare(&device, args), "attention", wide);
    }
    for wide in ["x", "y", "gate", "out"] {
        let of = |name: &str, shape: &[usize]| spec(wide == name, shape);
        let (x, out) = (Source::From(of("x", &[1, 2, 4])), of("out", &[1, 2, 4]));
        let args = GatedResidualArgs::new(x, of("y", &[1, 2, 4]), of("gate", &[1]), out);
        refused(GatedResidual.prepare(&device, args), "gated_residual", wide);
    }
    for wide in ["x", "out"] {
        let of = |name: &str| spec(wide == name, &[1, 2, 1, 4]);
        let norm = Norm { kind: NormKind::Rms, eps: 1e-5 };
        refused(norm.prepare(&device, NormArgs::new(Source::From(of("x")), None, None, of("out"))), "norm", wide);
    }
}

#[test]
fn weights_of_f64_are_rounded_only_when_asked() {
    let device = Device::cpu();
    let source = WeightSource::stacked(vec![HostTensor::from_slice(&[1.0f64 / 3.0; 12], &[4, 3]).unwrap()]);
    refused(Weight::prepare(&device, &source, DType::F64), "linear", "weight");
    assert!(Weight::prepare(&device, &source, DType::F32).is_ok());

    let weight = xattn::bridge::DenseWeights::plain(vec![HostTensor::from_slice(&[0.5f32; 12], &[4, 3]).unwrap()]);
    refused(LanguageProjection::new(&device, &weight, Precision::uniform(DType::F64)), "linear", "weight");
    // Activations alone.
    let head = LanguageProjection::new(&device, &weight, Precision::truth(DType::F32)).unwrap();
    let spec = |width| Spec::contiguous(DType::F64, &[1, 2, width]).unwrap();
    refused(head.prepare(HeadArgs { hidden: spec(3), out: spec(4) }), "linear", "x");
}
