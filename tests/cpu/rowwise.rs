//! `norm`, `linear`, `gated_residual` and `media_index` on the CPU.

use std::sync::Arc;

use xattn::ops::{
    Activation, DocumentEnd, GatedResidual, GatedResidualArgs, Linear, LinearArgs, Matrix, MediaIndex, MediaIndexArgs,
    MediaSource, Norm, NormArgs, NormKind, RowReduce, Source,
};
use xattn::{CpuOptions, DType, Device, Dispatch, HostTensor, InstructionSet, Weight, WeightSource};

use crate::support::{Buffer, FLOATS, Random, call, devices, distance, gemm_devices, largest, seeds};

const WIDTHS: [usize; 10] = [1, 3, 7, 8, 15, 33, 64, 100, 257, 1024];

/// Rows are left out where a mask is 0, whatever else it holds.
const MASK: [f64; 6] = [0.0, 0.0, 0.0, 1.0, 2.0, 2147483648.0];

/// The accuracy rule: twice the yardstick, and two ulp of the largest output.
fn allowed(truth: &Buffer, yardstick: impl Fn(&Device) -> Buffer) -> f64 {
    let yard = (0..8).map(|p| distance(&yardstick(&Device::yardstick(p)), truth)).fold(0.0, f64::max);
    2.0 * yard + 2.0 * truth.spec.dtype().epsilon() * largest(truth)
}

#[test]
fn norms_match_the_reference() {
    let devices = devices();
    for seed in seeds(0..300) {
        let random = &mut Random(seed);
        let width = random.pick(&WIDTHS);
        let shape = [1 + random.below(3), random.below(6), 1 + random.below(3), width];
        let shift = random.pick(&[0.0, 3.0]);
        let kind = random.pick(&[NormKind::Layer, NormKind::Rms, NormKind::L2]);
        let op = Norm { kind, eps: random.pick(&[1e-5, 1e-12]) };
        let gathers = random.chance(25);
        let shape = if gathers { [shape[0], shape[1], 1, width] } else { shape };
        let table = if gathers { [1, 4, 1, width] } else { shape };
        let (dtype, out_dtype) = (random.pick(&FLOATS), random.pick(&FLOATS));
        let x = Buffer::filled(dtype, &table, 2, || random.real() + shift);
        let rows = gathers.then(|| Buffer::filled(DType::I32, &shape[..2], 1, || random.below(8) as f64 - 2.0));
        let dtype = random.pick(&FLOATS);
        let add = random.chance(40).then(|| Buffer::filled(dtype, &shape, 1, || random.real()));
        let dtype = random.pick(&FLOATS);
        let weight = random.chance(70).then(|| Buffer::filled(dtype, &[width], 0, || random.real()));
        let bias = (kind == NormKind::Layer && random.chance(50))
            .then(|| Buffer::filled(dtype, &[width], 0, || random.real()));
        let in_place = !gathers && random.chance(30);
        let start = Buffer::filled(out_dtype, &shape, 3, || random.real() + shift);
        let run = |device: &Device| {
            let mut out = start.clone();
            let args = NormArgs {
                x: if in_place { Source::InPlace } else { Source::From(x.view()) },
                rows: rows.as_ref().map(Buffer::view),
                add: add.as_ref().map(Buffer::view),
                weight: weight.as_ref().map(Buffer::view),
                bias: bias.as_ref().map(Buffer::view),
                out: out.view_mut(),
            };
            call(&op, device, args).unwrap();
            out
        };
        let truth = run(&Device::reference());
        let allowed = allowed(&truth, run);
        for cpu in &devices {
            let (got, set) = (run(cpu), cpu.info().details);
            assert!(got.gaps_hold(), "norm {seed} on {set}: gaps");
            let error = distance(&got, &truth);
            assert!(error <= allowed, "norm {seed} on {set}: {op:?} {shape:?}: {error:e}, {allowed:e} allowed");
        }
    }
}

#[test]
fn gated_residuals_match_the_reference() {
    let devices = devices();
    for seed in seeds(0..200) {
        let random = &mut Random(seed);
        let width = random.pick(&WIDTHS);
        let shape = [1 + random.below(3), random.below(40), width];
        let types: [DType; 4] = std::array::from_fn(|_| random.pick(&FLOATS));
        let in_place = random.chance(40);
        let x = Buffer::filled(types[0], &shape, 2, || random.real());
        let masked = random.chance(40);
        let mask = masked.then(|| Buffer::filled(DType::U32, &shape[..2], 1, || random.pick(&MASK)));
        let holes = mask.as_ref().map(Buffer::values);
        let mut at = 0;
        let y = Buffer::filled(types[1], &shape, 1, || {
            at += 1;
            // What a mask hides is never met.
            match &holes {
                Some(mask) if mask[(at - 1) / width] == 0.0 => f64::NAN,
                _ => random.real(),
            }
        });
        let gates = if random.chance(50) { 1 } else { width };
        let gate = Buffer::filled(types[2], &[gates], 0, || 2.0 * random.real());
        let start = Buffer::filled(types[3], &shape, 3, || random.real());
        let run = |device: &Device| {
            let mut out = start.clone();
            let args = GatedResidualArgs {
                x: if in_place { Source::InPlace } else { Source::From(x.view()) },
                y: y.view(),
                gate: gate.view(),
                row_mask: mask.as_ref().map(Buffer::view),
                out: out.view_mut(),
            };
            call(&GatedResidual, device, args).unwrap();
            out
        };
        let truth = run(&Device::reference());
        let allowed = allowed(&truth, run);
        for cpu in &devices {
            let (got, what) =
                (run(cpu), format!("gated_residual {seed} on {}: {shape:?} {types:?}", cpu.info().details));
            assert!(got.gaps_hold(), "{what}: gaps");
            let error = distance(&got, &truth);
            assert!(error <= allowed, "{what}: {error:e}, {allowed:e} allowed");
        }
    }
}

#[test]
fn products_match_the_reference() {
    let devices = gemm_devices();
    for seed in seeds(0..400) {
        let random = &mut Random(seed);
        let (n, k) = (random.pick(&WIDTHS[..9]), random.pick(&WIDTHS));
        let (batch, rows) = (1 + random.below(3), 1 + random.below(30));
        let activation = random.pick(&Activation::ALL);
        let reduce = random.pick(&[RowReduce::None, RowReduce::None, RowReduce::Max, RowReduce::Mean]);
        let op = Linear { activation, reduce };
        let types: [DType; 6] = std::array::from_fn(|_| random.pick(&FLOATS));
        let plain = reduce != RowReduce::None;
        let result = [batch, if plain { 1 } else { rows }, n];
        let x = Buffer::filled(types[0], &[batch, rows, k], random.below(3), || random.real());
        let glu = activation.is_glu();
        let matrix = |random: &mut Random| Buffer::filled(types[1], &[n, k], random.below(2), || random.real());
        let (w, up) = (matrix(random), matrix(random));
        let bias = (!glu && random.chance(50)).then(|| Buffer::filled(types[2], &[n], 0, || random.real()));
        let gates = if random.chance(50) { 1 } else { n };
        let gate = (!plain && random.chance(50)).then(|| Buffer::filled(types[3], &[gates], 0, || random.real()));
        let mask =
            (!plain && random.chance(40)).then(|| Buffer::filled(DType::U32, &[batch, rows], 1, || random.pick(&MASK)));
        let residual = if plain { 0 } else { random.below(3) };
        let other = Buffer::filled(types[4], &[batch, rows, n], 1, || random.real());
        let start = Buffer::filled(types[5], &result, 2, || random.real());
        let prepared = random.chance(50);
        let run = |device: &Device| {
            let mut out = start.clone();
            let weight = match prepared {
                true => {
                    let part = |b: &Buffer| HostTensor::from_slice(&b.values(), &[n, k]).unwrap();
                    let mut source = WeightSource::stacked(vec![part(&w)]);
                    if glu {
                        source.up = vec![part(&up)];
                    }
                    Matrix::Prepared(Arc::new(Weight::prepare(device, &source, types[1]).unwrap()))
                }
                false if glu => Matrix::Pair(w.view(), up.view()),
                false => Matrix::View(w.view()),
            };
            let args = LinearArgs {
                x: x.view(),
                weight,
                bias: bias.as_ref().map(Buffer::view),
                residual: match residual {
                    0 => None,
                    1 => Some(Source::InPlace),
                    _ => Some(Source::From(other.view())),
                },
                gate: gate.as_ref().map(Buffer::view),
                row_mask: mask.as_ref().map(Buffer::view),
                out: out.view_mut(),
            };
            call(&op, device, args).unwrap();
            out
        };
        let truth = run(&Device::reference());
        let allowed = (truth.spec.elements() >= 256).then(|| allowed(&truth, run));
        // |x|, |w| <= 1: k products lose at most (k + 2) u each; activations and gates at most 1.13
        // of it, products of two and squares 2 (k + 2) of it, and they add 8 ulp of their own.
        let u = f64::from(f32::EPSILON) / 2.0;
        let sum = (k as f64 + 3.0) * u * (k as f64 + 2.0);
        let factor = if glu || activation == Activation::SquaredRelu { 2.5 * (k as f64 + 2.0) } else { 1.13 };
        let bound = sum * factor + (24.0 * u + truth.spec.dtype().epsilon()) * (largest(&truth) + 1.0);
        for cpu in &devices {
            let set = cpu.info().details;
            let what = format!("linear {seed} on {set}: {op:?} [{batch}, {rows}, {k}] x {n}, {types:?}");
            let got = run(cpu);
            assert!(got.gaps_hold(), "{what}: gaps");
            let error = distance(&got, &truth);
            assert!(allowed.is_none_or(|allowed| error <= allowed), "{what}: {error:e}, {allowed:?} allowed");
            assert!(error <= bound, "{what}: {error:e}, {bound:e} by derivation");
        }
    }
}

#[test]
fn products_keep_their_bits_whatever_the_threads() {
    let pool = |n| rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap();
    let random = &mut Random(3);
    let operands = [DType::F32, DType::BF16].map(|dtype| {
        let x = Buffer::filled(dtype, &[3, 50, 300], 5, || random.real());
        (x, Buffer::filled(dtype, &[200, 300], 0, || random.real()))
    });
    for (cpu, (x, w)) in gemm_devices().iter().flat_map(|cpu| operands.iter().map(move |operands| (cpu, operands))) {
        let run = |threads| {
            pool(threads).install(|| {
                let mut out = Buffer::new(DType::F32, &[3, 50, 200], 1);
                let op = Linear { activation: Activation::Gelu, ..Linear::default() };
                call(&op, cpu, LinearArgs::new(x.view(), Matrix::View(w.view()), out.view_mut())).unwrap();
                out
            })
        };
        let one = run(1);
        assert!(one.same_bits(&run(2)) && one.same_bits(&run(5)), "{}", cpu.info().details);
    }
}

#[test]
fn a_foreign_or_differing_weight_is_refused() {
    let cpu = Device::cpu();
    let x = Buffer::filled(DType::F32, &[1, 2, 4], 0, || 1.0);
    let mut out = Buffer::new(DType::F32, &[1, 2, 3], 0);
    let weight = |device: &Device, n: usize| {
        let part = HostTensor::from_slice(&vec![1f32; n * 4], &[n, 4]).unwrap();
        Arc::new(Weight::prepare(device, &WeightSource::stacked(vec![part]), DType::F32).unwrap())
    };
    let foreign = LinearArgs::new(x.view(), Matrix::Prepared(weight(&Device::reference(), 3)), out.view_mut());
    assert_eq!(
        Linear::default().run(&cpu, foreign).unwrap_err().to_string(),
        "linear: weight: expected a matrix prepared for cpu, got Weight(f32[3, 4])"
    );
    let shapes = LinearArgs::new(x.spec, Matrix::Prepared(weight(&cpu, 3)), out.spec);
    let prepared = Linear::default().prepare(&cpu, shapes).unwrap();
    let mut workspace = xattn::Workspace::new(&cpu, prepared.workspace_bytes()).unwrap();
    let other = LinearArgs::new(x.view(), Matrix::Prepared(weight(&cpu, 5)), out.view_mut());
    assert_eq!(
        prepared.enqueue(&mut cpu.recorder().unwrap(), other, &mut workspace).unwrap_err().to_string(),
        "linear: weight: expected Weight(f32[3, 4]) as prepared, got Weight(f32[5, 4])"
    );
}

#[test]
fn media_indices_match_the_reference() {
    let cpu = Device::cpu();
    for seed in seeds(0..300) {
        let random = &mut Random(seed);
        let (batch, rows) = (1 + random.below(4), random.below(70));
        let end =
            random.pick(&[DocumentEnd::Ignore, DocumentEnd::Hide { token: 2 }, DocumentEnd::Restart { token: 2 }]);
        let next = end == DocumentEnd::Ignore && random.chance(50);
        let located = end == DocumentEnd::Ignore && random.chance(50);
        let dtype = if located { DType::U32 } else { DType::I32 };
        let source = Buffer::filled(dtype, &[batch, rows], random.below(3), || random.below(6) as f64);
        let hostile = [0.0, 1.0, 5.0, -1.0, -4.0, f64::from(i32::MAX), f64::from(i32::MIN)];
        let mut line =
            |percent| random.chance(percent).then(|| Buffer::filled(DType::I32, &[batch], 0, || random.pick(&hostile)));
        let (carry_in, media_count) = (line(60), if next { line(50) } else { None });
        let run = |device: &Device| {
            let mut phi = Buffer::new(DType::I32, &[batch, rows], 2);
            let mut plan = Buffer::new(DType::U32, &[batch, 1 + rows, 2], 0);
            let mut carry_out = Buffer::new(DType::I32, &[batch], 0);
            let args = MediaIndexArgs {
                source: match located {
                    true => MediaSource::Locations(source.view()),
                    false => MediaSource::Tokens { ids: source.view(), token: 1 },
                },
                carry_in: carry_in.as_ref().map(Buffer::view),
                carry_out: Some(carry_out.view_mut()),
                media_count: media_count.as_ref().map(Buffer::view),
                media_index: phi.view_mut(),
                plan: Some(plan.view_mut()),
            };
            call(&MediaIndex { next, document_end: end }, device, args).unwrap();
            [phi, plan, carry_out]
        };
        for (name, (got, truth)) in
            ["media_index", "plan", "carry_out"].iter().zip(run(&cpu).iter().zip(run(&Device::reference())))
        {
            assert!(got.same_bits(&truth), "media_index {seed}: {name}: {:?}, not {:?}", got.values(), truth.values());
        }
    }
}

/// Threads and instruction set; an unknown or missing instruction set is refused.
#[test]
fn the_device_says_what_it_is() {
    let info = Device::cpu().info();
    assert!(!info.name.is_empty() && info.name.trim() == info.name, "{info:?}");
    let sets: Vec<String> = gemm_devices().iter().map(|device| device.info().details).collect();
    let expected = InstructionSet::ALL.into_iter().filter(|set| set.is_available());
    let expected: Vec<_> = expected.map(|set| format!("{} threads, {set}", rayon::current_num_threads())).collect();
    assert_eq!(sets, expected);
    assert!(sets.contains(&info.details), "{info:?}");
    assert_eq!(
        "avx".parse::<InstructionSet>().unwrap_err().to_string(),
        "device: XATTN_CPU: expected one of amx, avx512bf16, avx512, avx2, portable, got avx"
    );
    for set in InstructionSet::ALL {
        assert_eq!(set.name().parse::<InstructionSet>().unwrap(), set);
        if !set.is_available() {
            let mut options = CpuOptions::default();
            options.instruction_set = Some(set);
            let error = Device::cpu_with(&options).err().unwrap().to_string();
            assert!(error.ends_with(&format!("this processor does not have the instruction set {set}")), "{error}");
        }
    }
}
