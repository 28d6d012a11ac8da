//! Where compiled kernels come from: the cache between processes, a folder of images, the compiler.

use std::fs;
use std::path::PathBuf;

use xattn::ops::{Norm, NormArgs, NormKind, Source};
use xattn::{CudaKernel, DType, Dispatch, Tensor};

use crate::support::{Scratch, child, emulated, is_child, said, spec, tensor};

/// One small norm on a device of our own. Prints where kernels come from, or the error.
#[test]
#[ignore = "a process of its own"]
fn norm() {
    if !is_child() {
        return;
    }
    let device = crate::support::device().unwrap();
    let row = spec(DType::F32, &[1, 1, 1, 2]);
    let op = Norm { kind: NormKind::L2, eps: 1e-12 };
    let x = tensor(&device, &[3.0, 4.0], &[1, 1, 1, 2], DType::F32);
    let mut out = Tensor::zeros(&device, DType::F32, &[1, 1, 1, 2]).unwrap();
    println!("\n{}", device.info().details);
    match op.prepare(&device, NormArgs::new(Source::From(row), None, None, row)) {
        Err(error) => println!("error: {error}"),
        Ok(_) => {
            op.run(&device, NormArgs::new(Source::From(x.view()), None, None, out.view_mut())).unwrap();
            let got = out.download(&device).unwrap().to_f32().unwrap();
            assert!((got[0] - 0.6).abs() < 1e-6 && (got[1] - 0.8).abs() < 1e-6, "{got:?}");
            println!("norm ran");
        }
    }
}

fn run(environment: &[(&str, Option<&str>)]) -> String {
    said(child("cache::norm", environment).output().unwrap())
}

fn entries(scratch: &Scratch) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = fs::read_dir(&scratch.0).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

fn skip() -> bool {
    if !emulated() {
        eprintln!("skipped: the emulator's compiler can be taken away, a real one is not ours");
    }
    !emulated()
}

/// The emulated NVRTC runs g++: without a search path there is no compiler.
const NO_COMPILER: (&str, Option<&str>) = ("PATH", Some("/nowhere"));

#[test]
fn a_second_process_compiles_nothing_and_damage_is_mended() {
    if skip() {
        return;
    }
    let scratch = Scratch::new("second");
    let cache = ("XATTN_CUDA_CACHE", Some(scratch.text()));
    let text = run(&[cache]);
    assert!(text.contains(&format!("kernels from cache {}, then NVRTC", scratch.text())), "{text}");
    let files = entries(&scratch);
    assert_eq!(files.len(), 1, "{files:?}");
    let whole = fs::read(&files[0]).unwrap();
    assert!(run(&[cache, NO_COMPILER]).contains("norm ran"), "found compiled");

    // A byte of the machine code, and half of the file.
    let mut damaged = whole.clone();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 0x20;
    for file in [&damaged[..], &whole[..middle], b""] {
        fs::write(&files[0], file).unwrap();
        let text = run(&[cache, NO_COMPILER]);
        assert!(text.contains("error: cuda is unavailable: norm: norm_l2_head for sm_"), "not run: {text}");
        assert!(run(&[cache]).contains("norm ran"));
        assert!(fs::read(&files[0]).unwrap().len() > middle + 1, "made anew");
        assert!(run(&[cache, NO_COMPILER]).contains("norm ran"));
    }
    assert_eq!(entries(&scratch).len(), 1, "nothing half written stays");

    // Switched off, it is neither read nor written.
    let text = run(&[("XATTN_CUDA_CACHE", Some("off"))]);
    assert!(text.contains("kernels from no cache (switched off), then NVRTC") && text.contains("norm ran"), "{text}");
}

#[test]
fn two_processes_write_the_same_entry_at_once() {
    if skip() {
        return;
    }
    let scratch = Scratch::new("both");
    let cache = ("XATTN_CUDA_CACHE", Some(scratch.text()));
    let started: Vec<_> = (0..2)
        .map(|_| {
            let mut command = child("cache::norm", &[cache]);
            command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn().unwrap()
        })
        .collect();
    for process in started {
        assert!(said(process.wait_with_output().unwrap()).contains("norm ran"));
    }
    let files = entries(&scratch);
    assert_eq!(files.len(), 1, "{files:?}");
    assert!(run(&[cache, NO_COMPILER]).contains("norm ran"), "whole");
}

#[test]
fn images_ship_with_a_program_and_must_fit_it() {
    if skip() {
        return;
    }
    let (scratch, other) = (Scratch::new("cached"), Scratch::new("images"));
    let cache = ("XATTN_CUDA_CACHE", Some(scratch.text()));
    run(&[cache]);
    // The cache's entry in a folder of images, under the name that these have.
    let image = fs::read(&entries(&scratch)[0]).unwrap();
    let arch = String::from_utf8_lossy(&image).split_whitespace().nth(2).unwrap().to_string();
    fs::create_dir_all(&other.0).unwrap();
    let path = other.0.join(format!("norm_l2_head.{arch}.image"));
    fs::write(&path, &image).unwrap();
    let folder = [("XATTN_CUDA_IMAGES", Some(other.text())), ("XATTN_CUDA_CACHE", Some("off")), NO_COMPILER];
    let text = run(&folder);
    assert!(text.contains(&format!("kernels from {}, then no cache", other.text())), "{text}");
    assert!(text.contains("norm ran"), "{text}");

    // An image of another text of the kernel, as an older build has it.
    let hash = String::from_utf8_lossy(&image[..200]).split_whitespace().nth(4).unwrap().to_string();
    let at = image.windows(64).position(|w| w == hash.as_bytes()).unwrap();
    let mut foreign = image.clone();
    foreign[at] = if foreign[at] == b'0' { b'1' } else { b'0' };
    fs::write(&path, &foreign).unwrap();
    let text = run(&folder);
    let words = format!("error: {}: made from another text of the kernel: ", path.display());
    assert!(text.contains(&words) && text.contains(&format!("this build's is {hash}")), "{text}");

    // An instance that the folder lacks is looked for elsewhere.
    fs::remove_file(&path).unwrap();
    let text = run(&[("XATTN_CUDA_IMAGES", Some(other.text())), cache, NO_COMPILER]);
    assert!(text.contains("norm ran"), "{text}");
}

#[test]
fn every_kernel_compiles_ahead_of_time_for_what_the_compiler_knows() {
    if skip() {
        return;
    }
    let scratch = Scratch::new("ahead");
    let refused = CudaKernel::compile_all(&["sm_75"], &scratch.0, |_| ()).unwrap_err().to_string();
    assert_eq!(refused, "device: arch: expected sm_80, sm_89, sm_90a and the like, got sm_75");
    let refused = CudaKernel::compile_all(&["sm_90"], &scratch.0, |_| ()).unwrap_err().to_string();
    assert_eq!(refused, "device: arch: expected sm_80, sm_89, sm_90a and the like, got sm_90");
}
