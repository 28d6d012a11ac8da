//! Seeded values, tensors in the precision of a device, and what "equal" means.

use xattn::bridge::Precision;
use xattn::ops::{Operands, visit};
use xattn::verify::generate::Rng;
use xattn::{DType, Device, Dispatch, HostTensor, PreparedBridge, Result, Spec, Tensor, View};

/// A device and its element type: f64 on the reference, so that rounding hides nothing.
pub struct Lab {
    pub device: Device,
    pub dtype: DType,
}

/// Every device of this machine that properties are asserted on.
pub fn labs() -> [Lab; 2] {
    [Lab { device: Device::reference(), dtype: DType::F64 }, Lab { device: Device::cpu(), dtype: DType::F32 }]
}

impl Lab {
    /// Weights in f32, so that both devices compute with the same numbers.
    pub fn precision(&self) -> Precision {
        Precision { activations: self.dtype, weights: DType::F32 }
    }

    pub fn tensor(&self, values: &[f64], shape: &[usize]) -> Tensor {
        let host = HostTensor::from_slice(values, shape).unwrap();
        Tensor::upload(&self.device, &host, self.dtype).unwrap()
    }

    pub fn zeros(&self, shape: &[usize]) -> Tensor {
        Tensor::zeros(&self.device, self.dtype, shape).unwrap()
    }

    pub fn ints(&self, values: &[i32], shape: &[usize]) -> Tensor {
        let host = HostTensor::from_slice(values, shape).unwrap();
        Tensor::upload(&self.device, &host, DType::I32).unwrap()
    }

    pub fn words(&self, values: &[u32], shape: &[usize]) -> Tensor {
        let host = HostTensor::from_slice(values, shape).unwrap();
        Tensor::upload(&self.device, &host, DType::U32).unwrap()
    }

    pub fn read(&self, tensor: &Tensor) -> Vec<f64> {
        tensor.download(&self.device).unwrap().to_f64().unwrap()
    }

    pub fn read_view(&self, view: &View<'_>) -> Vec<f64> {
        self.device.download(view).unwrap().to_f64().unwrap()
    }

    /// Runs an op whose one output is a fresh tensor of `shape`.
    #[track_caller]
    pub fn run<O: Dispatch>(&self, op: &O, shape: &[usize], args: O::Args<View<'_>, ()>) -> Vec<f64> {
        let mut out = self.zeros(shape);
        let mut view = Some(out.view_mut());
        let args = O::map(args, &mut visit(|_, r| Ok(r), |_, ()| Ok(view.take().expect("one output")))).unwrap();
        op.run(&self.device, args).unwrap();
        self.read(&out)
    }

    /// Prepares and runs a bridge whose one output is a fresh tensor of `shape`.
    #[track_caller]
    pub fn run_bridge<C: Operands>(
        &self,
        prepare: impl FnOnce(C::Args<Spec, Spec>) -> Result<PreparedBridge<C>>,
        shape: &[usize],
        args: C::Args<View<'_>, ()>,
    ) -> Vec<f64> {
        let mut out = self.zeros(shape);
        let layout = out.spec();
        let shapes = C::map(C::as_ref(&args), &mut visit(|_, r: &View<'_>| Ok(r.spec()), |_, (): &()| Ok(layout)));
        let prepared = prepare(shapes.unwrap()).unwrap();
        let mut view = Some(out.view_mut());
        let args = C::map(args, &mut visit(|_, r| Ok(r), |_, ()| Ok(view.take().expect("one output")))).unwrap();
        prepared.run(args).unwrap();
        self.read(&out)
    }

    /// Asserts equality up to rounding: each number is a chain of sums of at most [`TERMS`] terms,
    /// whose roundings may all line up.
    #[track_caller]
    pub fn assert_near(&self, actual: &[f64], expected: &[f64]) {
        assert_eq!(actual.len(), expected.len());
        assert!(expected.iter().all(|x| x.is_finite()), "the expected values are not finite");
        let largest = expected.iter().fold(0.0f64, |m, x| m.max(x.abs()));
        let bound = TERMS * self.dtype.epsilon() / 2.0 * largest;
        let worst = actual
            .iter()
            .zip(expected)
            .map(|(a, e)| (a - e).abs())
            .fold(0.0f64, |m, e| if e > m || e.is_nan() { e } else { m });
        assert!(worst <= bound, "{:?}: error {worst:e}, bound {bound:e}, largest {largest:e}", self.device);
    }
}

/// Longest chain of additions in the cases here: widths up to 64 through up to 4 layers.
const TERMS: f64 = 256.0;

/// Asserts the same bits (and no NaN that could hide a difference).
#[track_caller]
pub fn assert_same_bits(actual: &[f64], expected: &[f64]) {
    assert_eq!(actual.len(), expected.len());
    for (i, (a, e)) in actual.iter().zip(expected).enumerate() {
        assert!(!e.is_nan(), "element {i} of the expected values is NaN");
        assert!(a.to_bits() == e.to_bits(), "element {i}: {a:e} instead of {e:e}");
    }
}

/// Asserts that a change that should be visible is: otherwise the properties here would hold of a
/// device that computes nothing.
#[track_caller]
pub fn assert_differs(a: &[f64], b: &[f64]) {
    assert!(a.iter().zip(b).any(|(x, y)| x.to_bits() != y.to_bits()), "nothing changed");
}

/// Seeded numbers.
pub struct Values(Rng);

impl Values {
    pub fn new(seed: u64) -> Self {
        Values(Rng::new(seed))
    }

    /// Normal numbers that are exact in f32.
    pub fn normal(&mut self, n: usize) -> Vec<f64> {
        (0..n).map(|_| f64::from(self.0.normal() as f32)).collect()
    }

    /// 0 in four of five places, else ±1 or ±2.
    pub fn sparse(&mut self, n: usize) -> Vec<f64> {
        (0..n).map(|_| if self.0.one_in(5) { [-2.0, -1.0, 1.0, 2.0][self.0.below(4)] } else { 0.0 }).collect()
    }

    /// φ of independent rows: not monotone, 0 included.
    pub fn media_index(&mut self, rows: usize, media: usize) -> Vec<i32> {
        (0..rows).map(|_| self.0.below(media + 1) as i32).collect()
    }
}

/// A layout without gaps.
pub fn spec(dtype: DType, shape: &[usize]) -> Spec {
    Spec::contiguous(dtype, shape).unwrap()
}

/// Rows `start..start + len` of dimension 1 of `[a, b, c]` values.
pub fn rows_of(values: &[f64], shape: [usize; 3], start: usize, len: usize) -> Vec<f64> {
    let [a, b, c] = shape;
    (0..a).flat_map(|i| values[(i * b + start) * c..(i * b + start + len) * c].iter().copied()).collect()
}
