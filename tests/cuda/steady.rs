//! What steady state does without: the emulated driver counts its calls.

use xattn::ops::{Norm, NormArgs, NormKind, Source};
use xattn::{DType, Dispatch, Tensor, Workspace};

use crate::decode::{Decode, block};
use crate::support::{calls, child, emulated, integers, is_child, said, spec, tensor};

/// Calls that allocate, load, create or wait.
const COSTLY: [&str; 7] = [
    "cuMemAlloc_v2",
    "cuMemAllocAsync",
    "cuMemFree_v2",
    "cuMemHostAlloc",
    "cuModuleLoadData",
    "cuStreamCreate",
    "cuStreamSynchronize",
];

#[test]
fn enqueueing_allocates_loads_creates_and_waits_for_nothing() {
    if !emulated() {
        eprintln!("skipped: only the emulator counts calls of the driver");
        return;
    }
    // In a process of its own: other tests call the driver too.
    let text = said(child("steady::counted", &[]).output().unwrap());
    assert!(text.contains("50 launches and nothing else"), "{text}");
}

#[test]
fn engines_are_not_waited_for_and_a_graph_is_one_call() {
    if !emulated() {
        eprintln!("skipped: only the emulator counts calls of the driver");
        return;
    }
    // These count too where nothing else runs.
    for test in [
        "engine::pooled_memory_odd_offsets_and_the_engines_stream",
        "graph::a_captured_gated_block_gives_the_same_bits_at_every_step",
    ] {
        said(child(test, &[]).output().unwrap());
    }
}

#[test]
#[ignore = "a process of its own"]
fn counted() {
    if !is_child() {
        return;
    }
    let device = crate::support::device().unwrap();
    let (rows, width) = (6, 1024);
    let x = tensor(&device, &integers(rows * width, 1), &[1, 1, rows, width], DType::F16);
    let mut out = Tensor::zeros(&device, DType::F16, &[1, 1, rows, width]).unwrap();
    let row = spec(DType::F16, &[1, 1, rows, width]);
    let norm = Norm { kind: NormKind::Rms, eps: 1e-6 };
    let prepared = norm.prepare(&device, NormArgs::new(Source::From(row), None, None, row)).unwrap();
    let mut workspace = Workspace::new(&device, prepared.workspace_bytes()).unwrap();
    let mut recorder = device.recorder().unwrap();
    let before = COSTLY.map(|name| calls(name).unwrap());
    let launches = calls("cuLaunchKernelEx").unwrap();
    for _ in 0..50 {
        let args = NormArgs::new(Source::From(x.view()), None, None, out.view_mut());
        prepared.enqueue(&mut recorder, args, &mut workspace).unwrap();
    }
    assert_eq!(calls("cuLaunchKernelEx").unwrap(), launches + 50);
    for (name, before) in COSTLY.into_iter().zip(before) {
        assert_eq!(calls(name).unwrap(), before, "{name}");
    }
    device.finish(recorder).unwrap();

    // A whole gated block: attention, GEMMs of every kind, norms. The first call makes all objects.
    for dtype in [DType::F32, DType::BF16] {
        let block = block(&device, dtype);
        let mut decode = Decode::new(&device, dtype);
        let prepared = block.prepare(decode.shapes(&block)).unwrap();
        let mut workspace = Workspace::new(&device, prepared.workspace_bytes()).unwrap();
        let mut recorder = device.recorder().unwrap();
        prepared.enqueue(&mut recorder, decode.views(&block), &mut workspace).unwrap();
        let before = COSTLY.map(|name| calls(name).unwrap());
        for _ in 0..10 {
            prepared.enqueue(&mut recorder, decode.views(&block), &mut workspace).unwrap();
        }
        for (name, before) in COSTLY.into_iter().zip(before) {
            assert_eq!(calls(name).unwrap(), before, "{name}, gated block of {dtype}");
        }
        device.finish(recorder).unwrap();
    }

    // The same op again is compiled and loaded already.
    let loaded = calls("cuModuleLoadData").unwrap();
    norm.prepare(&device, NormArgs::new(Source::From(row), None, None, row)).unwrap();
    assert_eq!(calls("cuModuleLoadData").unwrap(), loaded);
    println!("50 launches and nothing else");
}
