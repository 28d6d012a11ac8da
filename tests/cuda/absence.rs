//! No driver, an old driver, no device, no compiler: reasons, not panics.

use std::process::Command;

use xattn::{CudaOptions, Device, DeviceKind};

use crate::support::{Scratch, child, emulated, is_child, said};

/// What `Device::open` says, in a process of its own.
pub fn reason(environment: &[(&str, Option<&str>)]) -> String {
    let text = said(child("absence::opens", environment).output().unwrap());
    text.lines().find_map(|line| line.strip_prefix("says: ")).expect("an answer").to_string()
}

#[test]
#[ignore = "a process of its own"]
fn opens() {
    if !is_child() {
        return;
    }
    match Device::open(DeviceKind::Cuda) {
        Ok(device) => println!("\nsays: {}", device.info().name),
        Err(error) => println!("\nsays: {error}"),
    }
}

#[test]
fn without_a_driver_it_says_what_it_looked_for() {
    // A machine with a real driver finds it without a search path.
    let said = reason(&[("LD_LIBRARY_PATH", None)]);
    if !said.starts_with("cuda is unavailable") {
        eprintln!("skipped: this machine has a driver: {said}");
        return;
    }
    let words = "cuda is unavailable: no CUDA driver: looked for libcuda.so, libcuda.so.1 (";
    assert!(said.starts_with(words) || said == "cuda is unavailable: the CUDA driver finds no device", "{said}");
}

#[test]
fn a_driver_without_a_symbol_is_too_old() {
    let scratch = Scratch::new("old");
    std::fs::create_dir_all(&scratch.0).unwrap();
    let (text, library) = (scratch.0.join("old.c"), scratch.0.join("libcuda.so.1"));
    std::fs::write(&text, "int cuGetErrorName(int code, const char** name) { return 1; }\n").unwrap();
    let compiler = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&text).status();
    if !compiler.is_ok_and(|status| status.success()) {
        eprintln!("skipped: no C compiler to make an old driver with");
        return;
    }
    std::fs::copy(&library, scratch.0.join("libcuda.so")).unwrap();
    let said = reason(&[("LD_LIBRARY_PATH", Some(scratch.text()))]);
    assert_eq!(said, "cuda is unavailable: the CUDA driver is too old: it has no cuGetErrorString");
}

#[test]
fn a_driver_without_a_device() {
    if !emulated() {
        eprintln!("skipped: only the emulated driver can be without a device");
        return;
    }
    let said = reason(&[("XATTN_EMULATOR_DEVICES", Some("0"))]);
    let words = "cuda is unavailable: the CUDA driver cannot be used: cuInit answers CUDA_ERROR_NO_DEVICE";
    assert!(said.starts_with(words), "{said}");
    let said = reason(&[("XATTN_CUDA_DEVICE", Some("7"))]);
    assert_eq!(said, "cuda is unavailable: there is no device 7: the driver finds 1");
    let said = reason(&[("XATTN_CUDA_DEVICE", Some("first"))]);
    assert_eq!(said, "device: XATTN_CUDA_DEVICE: expected an ordinal, got first");
    let said = reason(&[("XATTN_CUDA_IMAGES", Some("/no/such/folder"))]);
    assert_eq!(said, "/no/such/folder: no folder of compiled kernels (XATTN_CUDA_IMAGES)");
}

#[test]
fn an_emulated_device_says_so() {
    if emulated() {
        let device = Device::open_cuda(&CudaOptions::default()).unwrap();
        assert_eq!(device.info().name, "Emulated CUDA device (no GPU)");
        assert!(device.info().is_emulated());
    }
    assert!(!Device::cpu().info().is_emulated());
}
