//! Rows that lie on multiples of 16 bytes and do not end on one: what lies behind them is neither
//! read as if it belonged to them nor written.

use xattn::ops::{
    Attention, AttentionArgs, GatedResidual, GatedResidualArgs, Linear, LinearArgs, Matrix, Media, Norm, NormArgs,
    NormKind, Source, Visibility,
};
use xattn::{
    CudaAttentionVariant, CudaCublasLt, CudaLinear, CudaOptions, DType, Device, Dispatch, HostTensor, Tensor, View,
    ViewMut,
};

use crate::support::{integers, is_hopper, opened, tensor};

const DTYPES: [DType; 3] = [DType::F32, DType::F16, DType::BF16];

/// A tensor whose rows are followed by NaN, up to the next multiple of 16 bytes and one more.
struct Gapped {
    tensor: Tensor,
    width: usize,
}

impl Gapped {
    fn new(device: &Device, values: &[f32], shape: &[usize], dtype: DType) -> Self {
        let width = *shape.last().unwrap();
        let chunk = 16 / dtype.size();
        let stride = (width / chunk + 2) * chunk;
        let row = |row: &[f32]| row.iter().copied().chain(std::iter::repeat_n(f32::NAN, stride - width)).collect();
        let values: Vec<f32> = values.chunks(width).flat_map(|r| -> Vec<f32> { row(r) }).collect();
        let mut wide = shape.to_vec();
        *wide.last_mut().unwrap() = stride;
        Gapped { tensor: tensor(device, &values, &wide, dtype), width }
    }

    fn view(&self) -> View<'_> {
        self.tensor.view().narrow(self.tensor.spec().rank() - 1, 0, self.width).unwrap()
    }

    fn view_mut(&mut self) -> ViewMut<'_> {
        let last = self.tensor.spec().rank() - 1;
        self.tensor.view_mut().narrow(last, 0, self.width).unwrap()
    }

    /// The values, none of which is NaN, and all of those behind them, which still are.
    fn read(&self, device: &Device, what: &str) -> Vec<f32> {
        let stride = *self.tensor.spec().shape().last().unwrap();
        let all = self.tensor.download(device).unwrap().to_f32().unwrap();
        let rows = all.chunks(stride);
        rows.flat_map(|row| {
            let (values, gap) = row.split_at(self.width);
            assert!(gap.iter().all(|x| x.is_nan()), "{what}: written behind a row: {gap:?}");
            assert!(values.iter().all(|x| !x.is_nan()), "{what}: NaN from behind a row: {values:?}");
            values.to_vec()
        })
        .collect()
    }
}

/// Widths around a chunk of 16 bytes, and one of several steps of a kernel; none ends with a chunk.
fn widths(dtype: DType) -> [usize; 4] {
    let chunk = 16 / dtype.size();
    [1, chunk - 1, chunk + 1, 130 * chunk + chunk / 2 + 1]
}

/// Sums of integer products are exact: the reference's bits by each kernel, with gaps in x and W.
#[test]
fn products_end_with_their_k() {
    use CudaLinear::{Any, Auto, Hopper, HopperTurns, Tile64, Tile64Deep, Tile128};
    for linear in [Auto, Any, Tile64, Tile64Deep, Tile128, Hopper, HopperTurns] {
        let mut options = CudaOptions::from_env().unwrap();
        options.linear = linear;
        let Some(device) = opened(&options) else { return };
        if matches!(linear, Hopper | HopperTurns) && !is_hopper(&device) {
            continue;
        }
        // One row and few, which have a kernel of their own by the table; a tile.
        for (dtype, rows) in DTYPES.into_iter().flat_map(|dtype| [1, 3, 20].map(|rows| (dtype, rows))) {
            for k in widths(dtype) {
                let n = 13;
                let run = |device: &Device| {
                    let x = Gapped::new(device, &integers(rows * k, 1), &[1, rows, k], dtype);
                    let w = Gapped::new(device, &integers(n * k, 2), &[n, k], dtype);
                    let mut out = Gapped::new(device, &vec![0.0; rows * n], &[1, rows, n], DType::F32);
                    let args = LinearArgs::new(x.view(), Matrix::View(w.view()), out.view_mut());
                    Linear::default().run(device, args).unwrap();
                    out.read(device, &format!("{linear:?} {dtype} {rows} rows, k = {k}"))
                };
                assert_eq!(run(&device), run(&Device::reference()), "{linear:?} {dtype} {rows} rows, k = {k}");
            }
        }
    }
}

/// Batch entries of x are adjacent, those of result or residual apart. cuBLASLt if possible.
#[test]
fn entries_that_lie_apart_are_found() {
    let mut options = CudaOptions::from_env().unwrap();
    options.cublaslt = CudaCublasLt::On;
    let Some(device) = opened(&options) else { return };
    let (batch, rows, n, k, apart) = (3, 4, 16, 32, 5);
    for dtype in [DType::F16, DType::BF16] {
        for [out_rows, residual_rows] in [[rows, apart], [apart, rows], [apart, apart]] {
            let run = |device: &Device| {
                let x = tensor(device, &integers(batch * rows * k, 1), &[batch, rows, k], dtype);
                let w = tensor(device, &integers(n * k, 2), &[n, k], dtype);
                let residual =
                    tensor(device, &integers(batch * residual_rows * n, 3), &[batch, residual_rows, n], dtype);
                let mut out = tensor(device, &vec![77.0; batch * out_rows * n], &[batch, out_rows, n], dtype);
                let mut args =
                    LinearArgs::new(x.view(), Matrix::View(w.view()), out.view_mut().narrow(1, 0, rows).unwrap());
                args.residual = Some(Source::From(residual.view().narrow(1, 0, rows).unwrap()));
                Linear::default().run(device, args).unwrap();
                out.download(device).unwrap().to_f32().unwrap()
            };
            assert_eq!(run(&device), run(&Device::reference()), "{dtype} {out_rows} {residual_rows}");
        }
    }
}

/// Rows of zeros but for one 1 have a known norm.
#[test]
fn norms_and_residuals_end_with_their_width() {
    let Some(device) = crate::support::device() else { return };
    for dtype in DTYPES {
        for width in widths(dtype) {
            let rows = 3;
            let shape = [1, rows, 1, width];
            let values: Vec<f32> = (0..rows * width).map(|i| f32::from(u8::from(i % width == width / 2))).collect();
            for kind in [NormKind::Layer, NormKind::Rms, NormKind::L2] {
                let run = |device: &Device| {
                    let [x, add] = [0, 1].map(|_| Gapped::new(device, &values, &shape, dtype));
                    let mut out = Gapped::new(device, &vec![0.0; rows * width], &shape, dtype);
                    let mut args = NormArgs::new(Source::From(x.view()), None, None, out.view_mut());
                    args.add = Some(add.view());
                    Norm { kind, eps: 1e-5 }.run(device, args).unwrap();
                    out.read(device, &format!("{kind:?} {dtype} of {width}"))
                };
                // Both results are rounded once. A sum of `width` squares is off by at most (width
                // + 4) u, the root of it by half of that, and mean, difference, root and product by
                // 8 u together.
                let allowed = dtype.epsilon() as f32 + (width as f32 / 2.0 + 10.0) * f32::EPSILON / 2.0;
                for (a, b) in run(&device).into_iter().zip(run(&Device::reference())) {
                    assert!((a - b).abs() <= allowed * b.abs().max(1.0), "{kind:?} {dtype} of {width}: {a}, not {b}");
                }
            }
            let run = |device: &Device| {
                let shape = [1, rows, width];
                let [x, y] = [1, 2].map(|salt| Gapped::new(device, &integers(rows * width, salt), &shape, dtype));
                let gate = Gapped::new(device, &vec![f32::INFINITY; width], &[width], dtype);
                let mut out = Gapped::new(device, &vec![0.0; rows * width], &shape, dtype);
                let args = GatedResidualArgs::new(Source::From(x.view()), y.view(), gate.view(), out.view_mut());
                GatedResidual.run(device, args).unwrap();
                out.read(device, &format!("{dtype} of {width}"))
            };
            // A gate of tanh(∞) = 1: sums of integers.
            assert_eq!(run(&device), run(&Device::reference()), "{dtype} of {width}");
        }
    }
}

/// Heads that are followed by NaN in q, k and v.
#[test]
fn heads_end_with_their_columns() {
    use CudaAttentionVariant::{
        Decode, DecodeSplit, General, Media as ByMedium, Resampler, ResamplerHopper, ResamplerSplit,
    };
    let (rows, keys, heads) = (5, 70, 2);
    for variant in [General, ByMedium, Decode, DecodeSplit, Resampler, ResamplerSplit, ResamplerHopper] {
        let mut options = CudaOptions::from_env().unwrap();
        options.attention = Some(variant);
        let Some(device) = opened(&options) else { return };
        if variant == ResamplerHopper && !is_hopper(&device) {
            continue;
        }
        for (dtype, d) in DTYPES.into_iter().flat_map(|dtype| [6, 13, 24, 72].map(|d| (dtype, d))) {
            let run = |device: &Device| -> Option<Vec<f32>> {
                let of = |n: usize, salt| Gapped::new(device, &integers(n * heads * d, salt), &[1, n, heads, d], dtype);
                let (q, k, v) = (of(rows, 1), of(keys, 2), of(keys, 3));
                let phi = HostTensor::from_slice(&[1, 1, 2, 2, 2], &[1, rows]).unwrap();
                let phi = Tensor::upload(device, &phi, DType::I32).unwrap();
                let mut out = Gapped::new(device, &vec![0.0; rows * heads * d], &[1, rows, heads, d], dtype);
                let mut args = AttentionArgs::new(q.view(), k.view(), v.view(), out.view_mut());
                if variant == ByMedium {
                    let media = Media { media_index: phi.view(), keys_per_media: 35, plan: None };
                    args.visibility = Visibility::SameMedia(media);
                }
                match Attention::for_head_dim(d).run(device, args) {
                    Err(xattn::Error::Unsupported { .. }) => None,
                    result => {
                        result.unwrap();
                        Some(out.read(device, &format!("{variant} {dtype} of {d}")))
                    }
                }
            };
            let Some(got) = run(&device) else {
                // Without tensor cores for the heads, or the device's, only one kernel serves.
                let any = dtype != DType::F32 && !d.is_multiple_of(8);
                assert!(variant == ResamplerHopper || any && variant != General, "{variant} {dtype} of {d} is refused");
                continue;
            };
            // Averages of numbers up to 2. Scores of integers are exact; three roundings scale one
            // of at most 4 √d, which shifts numerator and sum; exp, sums over keys and the division
            // add (keys + 16) u to each. Weights and both results are rounded to 16 bits.
            let unit = if dtype == DType::F32 { 0.0 } else { dtype.epsilon() as f32 };
            let shift = 12.0 * (d as f32).sqrt() + keys as f32 + 16.0;
            let allowed = 2.0 * (2.0 * unit + 2.0 * shift * f32::EPSILON / 2.0);
            for (a, b) in got.into_iter().zip(run(&Device::reference()).unwrap()) {
                assert!((a - b).abs() <= allowed, "{variant} {dtype} of {d}: {a}, not {b}");
            }
        }
    }
}
