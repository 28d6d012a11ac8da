//! A device, if there is one; small tensors; tests that need a process of their own.

use std::process::{Command, Output};

use xattn::{CudaOptions, DType, Device, Error, HostTensor, Spec, Tensor};

/// Whether `scripts/emulated-cuda` runs this: then there is a device, or something is broken.
pub fn emulated() -> bool {
    std::env::var_os("XATTN_EMULATOR_SEED").is_some()
}

/// A device of our own. Without one the test is skipped aloud.
pub fn device() -> Option<Device> {
    opened(&CudaOptions::from_env().unwrap())
}

/// As `device`, with options.
pub fn opened(options: &CudaOptions) -> Option<Device> {
    match Device::open_cuda(options) {
        Ok(device) => Some(device),
        Err(error @ Error::Unavailable { .. }) => {
            assert!(!emulated(), "{error}");
            eprintln!("skipped: {error}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// Whether the device has compute capability 9.0.
pub fn is_hopper(device: &Device) -> bool {
    device.info().details.starts_with("sm_90a,")
}

/// Small integers that repeat after a prime number of elements: sums of products are exact.
pub fn integers(n: usize, salt: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 7 + salt * 5) % 11) as f32 % 5.0 - 2.0).collect()
}

pub fn tensor(device: &Device, values: &[f32], shape: &[usize], dtype: DType) -> Tensor {
    Tensor::upload(device, &HostTensor::from_slice(values, shape).unwrap(), dtype).unwrap()
}

pub fn spec(dtype: DType, shape: &[usize]) -> Spec {
    Spec::contiguous(dtype, shape).unwrap()
}

/// How often the emulated driver was called, where nobody else calls it: in a process of this
/// test's own.
pub fn own_calls(name: &str) -> Option<u64> {
    if is_child() { calls(name) } else { None }
}

/// How often the emulated driver was called. None on real hardware, which does not count.
pub fn calls(name: &str) -> Option<u64> {
    let name = std::ffi::CString::new(name).unwrap();
    // SAFETY: the driver is loaded already; the symbol is the emulator's alone, and its type is
    // that of `tests/cuda_emulator/device.cpp`.
    unsafe {
        let driver = libloading::Library::new("libcuda.so.1").ok()?;
        let count: libloading::Symbol<'_, unsafe extern "C" fn(*const std::ffi::c_char) -> u64> =
            driver.get("xattn_emulator_calls").ok()?;
        Some(count(name.as_ptr()))
    }
}

/// Whether this is a process that [`child`] started. Its tests do nothing elsewhere:
/// `--include-ignored` runs them too.
pub fn is_child() -> bool {
    std::env::var_os("XATTN_TEST_CHILD").is_some()
}

/// Runs one test of this program, `#[ignore]`d or not, in a process of its own, with these changes
/// to the environment (`None` removes).
pub fn child(test: &str, environment: &[(&str, Option<&str>)]) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([test, "--exact", "--include-ignored", "--nocapture", "--test-threads=1"]);
    command.env("XATTN_TEST_CHILD", "1");
    for (name, value) in environment {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command
}

/// What a process said on success.
pub fn said(output: Output) -> String {
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{text}");
    assert!(text.contains("1 passed"), "the test ran: {text}");
    text
}

/// A folder of a test's own, gone when dropped.
pub struct Scratch(pub std::path::PathBuf);

impl Scratch {
    pub fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("xattn-cuda-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        Scratch(path)
    }

    pub fn text(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
