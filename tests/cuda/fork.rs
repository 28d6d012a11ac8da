//! A child of `fork()` has the handles of its parent and not its driver: every use of them is an
//! error, and no call of the driver is made.

use std::process::Command;

use xattn::ops::{Norm, NormArgs, NormKind, Source};
use xattn::{CudaOptions, DType, Device, Dispatch, HostTensor, Tensor, Workspace};

use crate::support::{calls, child, emulated, is_child, said, spec, tensor};

unsafe extern "C" {
    fn fork() -> i32;
    fn waitpid(process: i32, status: *mut i32, options: i32) -> i32;
    fn _exit(status: i32) -> !;
}

#[test]
fn a_child_of_fork_is_refused_and_the_parent_goes_on() {
    if !emulated() {
        eprintln!("skipped: only the emulator counts calls of the driver");
        return;
    }
    let mut command: Command = child("fork::forks", &[]);
    let text = said(command.output().unwrap());
    let reason = "cuda is unavailable: this process was forked from one that had opened a device";
    for what in ["open", "prepare", "enqueue", "graph", "finish", "upload", "download", "weight"] {
        assert!(text.contains(&format!("{what}: {reason}")), "{what}: {text}");
    }
    assert!(text.contains("dropped without a call of the driver"), "{text}");
    assert!(text.contains("the child is done, and the parent computes"), "{text}");
}

#[test]
#[ignore = "a process of its own"]
fn forks() {
    if !is_child() {
        return;
    }
    let options = CudaOptions::from_env().unwrap();
    let device = Device::open_cuda(&options).unwrap();
    let row = spec(DType::F32, &[1, 1, 1, 2]);
    let op = Norm { kind: NormKind::L2, eps: 1e-12 };
    let prepared = op.prepare(&device, NormArgs::new(Source::From(row), None, None, row)).unwrap();
    let x = tensor(&device, &[3.0, 4.0], &[1, 1, 1, 2], DType::F32);
    let mut out = Tensor::zeros(&device, DType::F32, &[1, 1, 1, 2]).unwrap();
    let mut workspace = Workspace::new(&device, prepared.workspace_bytes()).unwrap();
    let mut recorder = device.recorder().unwrap();
    // SAFETY: nothing is captured.
    let mut graph = unsafe { device.capture(&mut recorder, |_| Ok(())) }.unwrap();

    // SAFETY: one thread runs tests in this process.
    let process = unsafe { fork() };
    if process == 0 {
        let counted = ["cuMemFree_v2", "cuLaunchKernelEx", "cuStreamSynchronize", "cuCtxSynchronize", "cuMemAlloc_v2"];
        let before = counted.map(|name| calls(name).unwrap());
        let args = NormArgs::new(Source::From(x.view()), None, None, out.view_mut());
        println!("\nenqueue: {}", prepared.enqueue(&mut recorder, args, &mut workspace).unwrap_err());
        println!("open: {}", Device::open_cuda(&options).unwrap_err());
        let shapes = NormArgs::new(Source::From(row), None, None, row);
        println!("prepare: {}", op.prepare(&device, shapes).err().unwrap());
        println!("graph: {}", graph.launch(&mut recorder).unwrap_err());
        println!("upload: {}", Tensor::zeros(&device, DType::F32, &[4]).unwrap_err());
        println!("download: {}", x.download(&device).unwrap_err());
        let matrix = HostTensor::from_slice(&[1.0f32; 4], &[2, 2]).unwrap();
        let weight = xattn::Weight::prepare(&device, &xattn::WeightSource::stacked(vec![matrix]), DType::F32);
        println!("weight: {}", weight.unwrap_err());
        println!("finish: {}", device.finish(recorder).unwrap_err());
        drop((graph, workspace, out, x, prepared, device));
        assert_eq!(counted.map(|name| calls(name).unwrap()), before);
        println!("dropped without a call of the driver");
        // SAFETY: nothing of the parent's is undone.
        unsafe { _exit(0) }
    }
    let mut status = -1;
    // SAFETY: the child's number, and room for its status.
    assert_eq!(unsafe { waitpid(process, &mut status, 0) }, process);
    assert_eq!(status, 0);
    let args = NormArgs::new(Source::From(x.view()), None, None, out.view_mut());
    prepared.enqueue(&mut recorder, args, &mut workspace).unwrap();
    device.finish(recorder).unwrap();
    let got = out.download(&device).unwrap().to_f32().unwrap();
    assert!((got[0] - 0.6).abs() < 1e-6 && (got[1] - 0.8).abs() < 1e-6, "{got:?}");
    println!("the child is done, and the parent computes");
}
