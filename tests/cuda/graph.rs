//! Captured work: the same bits as direct calls, with what the memory holds at each launch;
//! captures that cannot be are errors.

use xattn::cudarc::driver::CudaContext;
use xattn::ops::{Norm, NormArgs, NormKind, Source};
use xattn::{CudaOptions, CudaRecorder, DType, Device, Dispatch, Recorder, Tensor, Workspace};

use crate::decode::{Decode, block};
use crate::support::{calls, child, device, emulated, is_child, opened, own_calls, said, spec, tensor};

#[test]
fn a_captured_gated_block_gives_the_same_bits_at_every_step() {
    let Some(device) = device() else { return };
    for dtype in [DType::F32, DType::BF16] {
        let block = block(&device, dtype);
        let (mut direct, mut captured) = (Decode::new(&device, dtype), Decode::new(&device, dtype));
        let prepared = block.prepare(direct.shapes(&block)).unwrap();
        let mut workspace = Workspace::new(&device, prepared.workspace_bytes()).unwrap();
        let mut recorder = device.recorder().unwrap();
        // SAFETY: block, operands and workspace live to the end of the loop; the graph is gone
        // before.
        let mut graph = unsafe { prepared.capture(&mut recorder, captured.views(&block), &mut workspace) }.unwrap();
        assert_eq!(captured.read(), vec![0.0; Decode::NUMBERS], "capturing runs nothing");
        let mut seen = Vec::new();
        for step in 0..4 {
            direct.step(step);
            captured.step(step);
            prepared.run(direct.views(&block)).unwrap();
            let launched = own_calls("cuLaunchKernelEx");
            graph.launch(&mut recorder).unwrap();
            assert_eq!(own_calls("cuLaunchKernelEx"), launched, "one call of the driver, and that is another");
            device.finish(recorder).unwrap();
            recorder = device.recorder().unwrap();
            let (want, have) = (direct.read(), captured.read());
            assert!(want.iter().all(|y| y.is_finite()));
            let bits = |values: &[f32]| values.iter().map(|y| y.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&have), bits(&want), "{dtype}, step {step}");
            assert!(!seen.contains(&bits(&want)), "each step has a row of its own");
            seen.push(bits(&want));
        }
    }
}

#[test]
fn an_engine_captures_its_own_stream() {
    if device().is_none() {
        return;
    }
    let context = CudaContext::new(0).unwrap();
    let stream = context.new_stream().unwrap();
    let device = Device::from_cuda(context.clone(), &CudaOptions::from_env().unwrap()).unwrap();
    let row = spec(DType::F32, &[1, 1, 1, 2]);
    let norm = Norm { kind: NormKind::L2, eps: 1e-12 };
    let prepared = norm.prepare(&device, NormArgs::new(Source::From(row), None, None, row)).unwrap();
    let x = tensor(&device, &[3.0, 4.0], &[1, 1, 1, 2], DType::F32);
    let mut out = Tensor::zeros(&device, DType::F32, &[1, 1, 1, 2]).unwrap();
    let mut workspace = Workspace::new(&device, prepared.workspace_bytes()).unwrap();
    let mut recorder = Recorder::Cuda(CudaRecorder::from_stream(&stream));
    // SAFETY: operands, workspace and the prepared op outlive the graph.
    let mut graph = unsafe {
        let args = NormArgs::new(Source::From(x.view()), None, None, out.view_mut());
        device.capture(&mut recorder, |recorder| prepared.enqueue(recorder, args, &mut workspace))
    }
    .unwrap();
    graph.launch(&mut recorder).unwrap();
    stream.synchronize().unwrap();
    let got = out.download(&device).unwrap().to_f32().unwrap();
    assert!((got[0] - 0.6).abs() < 1e-6 && (got[1] - 0.8).abs() < 1e-6, "{got:?}");

    // The legacy stream cannot be captured, which is an error and leaves the device in order.
    // SAFETY: the null stream always exists; nothing is captured.
    let refused = unsafe {
        let mut legacy = Recorder::Cuda(CudaRecorder::from_raw_stream(std::ptr::null_mut()));
        device.capture(&mut legacy, |_| Ok(()))
    };
    let refused = refused.unwrap_err().to_string();
    let words = "graph: cuda: expected calls that the driver accepts, got cuStreamBeginCapture_v2 answers CUDA_ERROR_STREAM_CAPTURE_";
    assert!(refused.starts_with(words), "{refused}");

    // An error inside ends the capture: the stream works on.
    // SAFETY: as above.
    let refused = unsafe {
        device.capture(&mut recorder, |_| Err(xattn::Error::argument("test", "capture", "an end", "an error")))
    };
    assert_eq!(refused.unwrap_err().to_string(), "test: capture: expected an end, got an error");
    graph.launch(&mut recorder).unwrap();
    stream.synchronize().unwrap();
}

#[test]
fn other_backends_do_not_capture() {
    let cpu = Device::cpu();
    // SAFETY: nothing is captured.
    let refused = unsafe { cpu.capture(&mut cpu.recorder().unwrap(), |_| Ok(())) }.unwrap_err().to_string();
    assert_eq!(refused, "graph: capture is not supported by cpu; available: cuda");
}

/// Bits of two steps.
fn bits_of_steps(device: &Device) -> Vec<Vec<u32>> {
    let block = block(device, DType::BF16);
    let mut decode = Decode::new(device, DType::BF16);
    let prepared = block.prepare(decode.shapes(&block)).unwrap();
    let rows = (0..2).map(|step| {
        decode.step(step);
        prepared.run(decode.views(&block)).unwrap();
        decode.read().iter().map(|y| y.to_bits()).collect()
    });
    rows.collect()
}

#[test]
fn dependent_launches_give_the_same_bits() {
    let Some(device) = device() else { return };
    let mut options = CudaOptions::from_env().unwrap();
    options.dependent_launch = true;
    let Some(dependent) = opened(&options) else { return };
    assert!(dependent.info().details.ends_with(", dependent launches"), "{}", dependent.info().details);
    assert_eq!(bits_of_steps(&dependent), bits_of_steps(&device));
}

#[test]
fn all_launches_of_a_device_are_dependent_or_none() {
    if !emulated() {
        eprintln!("skipped: only the emulator counts calls of the driver");
        return;
    }
    for (switch, expected) in [("1", "14 of 14 launches are dependent"), ("0", "0 of 14 launches are dependent")] {
        let counted = child("graph::launches_counted", &[("XATTN_CUDA_DEPENDENT_LAUNCH", Some(switch))]).output();
        let text = said(counted.unwrap());
        assert!(text.contains(expected), "{text}");
    }
}

#[test]
#[ignore = "a process of its own"]
fn launches_counted() {
    if !is_child() {
        return;
    }
    bits_of_steps(&device().unwrap());
    let [all, dependent] = ["cuLaunchKernelEx", "dependent launches"].map(|name| calls(name).unwrap());
    println!("{dependent} of {all} launches are dependent");
}

#[test]
fn dependent_launches_need_hopper() {
    if !emulated() {
        eprintln!("skipped: only the emulator is of any architecture");
        return;
    }
    let older = [("XATTN_CUDA_DEPENDENT_LAUNCH", Some("1")), ("XATTN_EMULATOR_SM", Some("80"))];
    let text = said(child("graph::refused_before_hopper", &older).output().unwrap());
    let words = "device: programmatic dependent launch on sm_80 is not supported by cuda; available: launches without it, or compute capability 9.0";
    assert!(text.contains(words), "{text}");
}

#[test]
#[ignore = "a process of its own"]
fn refused_before_hopper() {
    if is_child() {
        println!("{}", Device::open_cuda(&CudaOptions::from_env().unwrap()).unwrap_err());
    }
}
