//! Checkpoints whose files others write: a status and a message, never a signal.
#![cfg(feature = "checkpoint")]

#[path = "fields/files.rs"]
mod files;

use std::ffi::{CStr, CString};
use std::path::{Path, PathBuf};
use std::ptr;

use xattn_c::bridge::*;
use xattn_c::device::*;
use xattn_c::status::*;
use xattn_c::xattn_status::*;

use files::{Folder, below};

/// `XATTN_F32` of the header.
const F32: i32 = 1;

/// A resampler's file.
fn resampler() -> (Folder, PathBuf) {
    let folder = Folder::new(&below("perceiver.", files::resampler(3, 0)), "");
    let path = Path::new(folder.path()).join("model.safetensors");
    (folder, path)
}

fn message() -> String {
    // SAFETY: the pointer is valid until the next call on this thread.
    unsafe { CStr::from_ptr(xattn_last_error()) }.to_str().unwrap().to_string()
}

#[test]
fn a_file_that_is_shortened_after_it_was_opened() {
    let (_folder, path) = resampler();
    let bytes = std::fs::metadata(&path).unwrap().len();
    let (mut device, mut checkpoint, mut bridge) = (ptr::null_mut(), ptr::null_mut(), ptr::null_mut());
    let name = CString::new(path.to_str().unwrap()).unwrap();
    // SAFETY: pointers to variables, a C string, and handles that these calls made.
    unsafe {
        assert_eq!(xattn_device_open(c"cpu".as_ptr(), &mut device), XATTN_STATUS_OK, "{}", message());
        assert_eq!(
            xattn_checkpoint_open(name.as_ptr(), ptr::null(), &mut checkpoint),
            XATTN_STATUS_OK,
            "{}",
            message()
        );
        assert_eq!(xattn_resampler_load(checkpoint, device, F32, &mut bridge), XATTN_STATUS_OK, "{}", message());
    }
    assert_eq!(xattn_resampler_free(bridge), XATTN_STATUS_OK);
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(100).unwrap();
    let mut again = ptr::null_mut();
    // SAFETY: as above.
    let status = unsafe { xattn_resampler_load(checkpoint, device, F32, &mut again) };
    assert_eq!((status, again), (XATTN_STATUS_FILE, ptr::null_mut()));
    let expected = format!("changed since it was opened: expected {bytes} bytes, found 100");
    assert!(message().ends_with(&expected), "{}", message());
    assert_eq!(xattn_checkpoint_free(checkpoint), XATTN_STATUS_OK);
    assert_eq!(xattn_device_free(device), XATTN_STATUS_OK);
}

/// Callers of the first version pass a shorter struct; what it does not have is absent.
#[test]
fn options_of_both_sizes() {
    let (_folder, path) = resampler();
    let name = CString::new(path.to_str().unwrap()).unwrap();
    let open = |options: &xattn_checkpoint_options| {
        let mut checkpoint = ptr::null_mut();
        // SAFETY: C strings, a struct as long as it says, and a variable.
        let status = unsafe { xattn_checkpoint_open(name.as_ptr(), options, &mut checkpoint) };
        let said = if status == XATTN_STATUS_OK { String::new() } else { message() };
        assert_eq!(xattn_checkpoint_free(checkpoint), XATTN_STATUS_OK);
        said.replace(path.to_str().unwrap(), "FILE")
    };
    let whole = size_of::<xattn_checkpoint_options>();
    let first = std::mem::offset_of!(xattn_checkpoint_options, prefix);
    let mut options = xattn_checkpoint_options {
        struct_size: whole,
        family: ptr::null(),
        heads: 8,
        block_heads: 0,
        attend_preceding: 0,
        transformers_empty_rows: 0,
        prefix: ptr::null(),
        adapter: ptr::null(),
    };
    assert_eq!(open(&options), "");
    options.prefix = c"ema.".as_ptr();
    assert_eq!(open(&options), "FILE (open-flamingo): resampler: none below the prefix ema., but at perceiver.");
    options.prefix = c"".as_ptr();
    assert_eq!(open(&options), "");
    options.adapter = c"none".as_ptr();
    assert_eq!(open(&options), "");
    options.adapter = c"/absent/adapter".as_ptr();
    assert!(open(&options).starts_with("/absent/adapter"), "{}", open(&options));
    // What the caller's version does not have is not read.
    options.struct_size = first;
    assert_eq!(open(&options), "");
    options.struct_size = first - 1;
    let wanted = format!(
        "xattn_checkpoint_open: options: expected struct_size {first} to {whole} (sizeof(xattn_checkpoint_options)), got {}",
        first - 1
    );
    assert_eq!(open(&options), wanted);
}
