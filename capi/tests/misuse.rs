//! What C may pass by mistake: each gives a status and a text, none crashes.

use std::ffi::{CStr, c_void};
use std::mem::size_of;
use std::ptr::{null, null_mut};

use xattn_c::call::*;
use xattn_c::device::*;
use xattn_c::ops::attention::*;
use xattn_c::ops::linear::*;
use xattn_c::ops::norm::*;
use xattn_c::status::*;
use xattn_c::tensor::*;
use xattn_c::xattn_status::{self, *};

fn last() -> String {
    // SAFETY: never null, valid until the thread's next failure.
    unsafe { CStr::from_ptr(xattn_last_error()) }.to_string_lossy().into_owned()
}

fn expect(status: xattn_status, want: xattn_status, text: &str) {
    assert_eq!((status, last().as_str()), (want, text));
}

fn cpu() -> *mut xattn_device {
    let mut device = null_mut();
    // SAFETY: a C string, and a place for the handle.
    assert_eq!(unsafe { xattn_device_open(c"cpu".as_ptr(), &mut device) }, XATTN_STATUS_OK);
    device
}

#[test]
fn the_processor_opens_with_a_number_of_threads() {
    let mut device = null_mut();
    // SAFETY: a place for the handle.
    unsafe {
        expect(
            xattn_device_open_cpu(0, &mut device),
            XATTN_STATUS_INVALID_ARGUMENT,
            "xattn_device_open_cpu: threads: expected at least 1, got 0",
        );
        assert_eq!(xattn_device_open_cpu(2, &mut device), XATTN_STATUS_OK);
        let mut text = [0u8; 200];
        assert_eq!(xattn_device_describe(device, text.as_mut_ptr().cast(), text.len()), XATTN_STATUS_OK);
        let text = CStr::from_bytes_until_nul(&text).unwrap().to_string_lossy();
        assert!(text.contains("(2 threads, "), "{text}");
    }
    assert_eq!(xattn_device_free(device), XATTN_STATUS_OK);
}

fn tensor(data: &mut [f32], shape: &[u64]) -> xattn_tensor {
    let mut extents = [0; XATTN_MAX_RANK];
    extents[..shape.len()].copy_from_slice(shape);
    xattn_tensor {
        struct_size: size_of::<xattn_tensor>(),
        data: data.as_mut_ptr().cast(),
        bytes: size_of_val(data) as u64,
        dtype: 1,
        rank: shape.len() as u32,
        shape: extents,
        strides: null(),
    }
}

/// Scratch memory for a prepared call: keep the vector, pass the address.
fn scratch(prepared: *const xattn_prepared) -> (Vec<u8>, *mut c_void, u64) {
    let mut bytes = 0;
    // SAFETY: a place for the number.
    assert_eq!(unsafe { xattn_prepared_workspace_bytes(prepared, &mut bytes) }, XATTN_STATUS_OK);
    let mut room = vec![0u8; bytes as usize + 64];
    let at = room.as_mut_ptr().wrapping_add(room.as_ptr().align_offset(64)).cast();
    (room, at, bytes)
}

fn norm_args(x: &xattn_tensor, out: &xattn_tensor) -> xattn_norm_args {
    xattn_norm_args {
        struct_size: size_of::<xattn_norm_args>(),
        kind: 2,
        eps: 1e-12,
        x,
        x_in_place: 0,
        rows: null(),
        add: null(),
        weight: null(),
        bias: null(),
        out,
    }
}

/// Calls `norm` with one thing changed.
fn norm(change: impl FnOnce(&mut xattn_norm_args, &mut xattn_tensor)) -> xattn_status {
    let (mut data, mut result) = ([3.0f32, 4.0], [0.0f32; 2]);
    let mut x = tensor(&mut data, &[1, 1, 1, 2]);
    let out = tensor(&mut result, &[1, 1, 1, 2]);
    let mut args = norm_args(&x, &out);
    change(&mut args, &mut x);
    let device = cpu();
    // SAFETY: everything is described as it is, apart from what the test changed and the call must
    // find.
    let status = unsafe { xattn_norm(device, &args) };
    assert_eq!(xattn_device_free(device), XATTN_STATUS_OK);
    status
}

#[test]
fn a_correct_call_passes() {
    assert_eq!(norm(|_, _| {}), XATTN_STATUS_OK);
}

#[test]
fn null_is_refused_or_absence() {
    let device = cpu();
    // SAFETY: null is what is being tested.
    unsafe {
        expect(
            xattn_device_open(null(), null_mut()),
            XATTN_STATUS_INVALID_ARGUMENT,
            "xattn_device_open: out: expected an address for the result, got null",
        );
        let mut other = null_mut();
        expect(
            xattn_device_open(null(), &mut other),
            XATTN_STATUS_INVALID_ARGUMENT,
            "xattn_device_open: kind: expected a text, got null",
        );
        expect(
            xattn_norm(device, null()),
            XATTN_STATUS_INVALID_ARGUMENT,
            "norm: args: expected a xattn_norm_args, got null",
        );
        expect(
            xattn_norm_prepare(device, null(), null_mut()),
            XATTN_STATUS_INVALID_ARGUMENT,
            "norm: args: expected a xattn_norm_args, got null",
        );
        expect(
            xattn_prepared_workspace_bytes(null(), null_mut()),
            XATTN_STATUS_INVALID_HANDLE,
            "xattn_prepared_workspace_bytes: prepared: expected a handle of xattn_prepared, got null",
        );
    }
    expect(
        norm(|a, _| a.x = null()),
        XATTN_STATUS_INVALID_ARGUMENT,
        "norm: x: expected a tensor, or x_in_place, got neither",
    );
    expect(norm(|a, _| a.out = null()), XATTN_STATUS_INVALID_ARGUMENT, "norm: out: expected a xattn_tensor, got null");
    expect(
        norm(|_, x| x.data = null_mut()),
        XATTN_STATUS_INVALID_ARGUMENT,
        "norm: x: expected an address for f32[1, 1, 1, 2], got null",
    );
    assert_eq!(xattn_device_free(null_mut()), XATTN_STATUS_OK);
    assert_eq!(xattn_device_free(device), XATTN_STATUS_OK);
}

#[test]
fn sizes_that_do_not_fit_are_refused() {
    let own = size_of::<xattn_norm_args>();
    expect(
        norm(|a, _| a.struct_size = own - 4),
        XATTN_STATUS_INVALID_ARGUMENT,
        &format!("norm: args: expected struct_size {own} (sizeof(xattn_norm_args)), got {}", own - 4),
    );
    expect(
        norm(|_, x| x.struct_size = 1),
        XATTN_STATUS_INVALID_ARGUMENT,
        &format!("norm: x: expected struct_size {0} (sizeof(xattn_tensor)), got 1", size_of::<xattn_tensor>()),
    );
    expect(
        norm(|_, x| x.bytes = 7),
        XATTN_STATUS_INVALID_ARGUMENT,
        "norm: x: expected at least 8 bytes for f32[1, 1, 1, 2], got 7",
    );
    expect(
        norm(|_, x| x.rank = 9),
        XATTN_STATUS_INVALID_ARGUMENT,
        &format!("norm: x: expected rank at most {}, got 9", xattn::MAX_RANK),
    );
    assert_eq!(norm(|_, x| x.data = x.data.wrapping_byte_add(1)), XATTN_STATUS_INVALID_ARGUMENT);
    // The address differs from run to run.
    assert!(last().starts_with("norm: x: expected an address that is a multiple of 4, got 0x"), "{}", last());
    // Products and spans that overflow 64 bits.
    assert_eq!(norm(|_, x| x.shape[..4].copy_from_slice(&[u64::MAX, u64::MAX, 3, 2])), XATTN_STATUS_INVALID_ARGUMENT);
    assert!(last().starts_with("norm: x: "), "{}", last());
    let strides = [u64::MAX, 1 << 40, 1 << 40, 1];
    assert_eq!(norm(|_, x| (x.shape[0], x.strides) = (3, strides.as_ptr())), XATTN_STATUS_INVALID_ARGUMENT);
    assert!(last().starts_with("norm: x: "), "{}", last());
}

#[test]
fn numbers_that_are_no_enum_are_refused() {
    expect(norm(|a, _| a.kind = 3), XATTN_STATUS_INVALID_ARGUMENT, "norm: kind: expected a number from 0 to 2, got 3");
    expect(
        norm(|a, _| a.kind = i32::MIN),
        XATTN_STATUS_INVALID_ARGUMENT,
        "norm: kind: expected a number from 0 to 2, got -2147483648",
    );
    expect(norm(|_, x| x.dtype = 6), XATTN_STATUS_INVALID_ARGUMENT, "norm: x: expected a xattn_dtype (0 to 5), got 6");
    expect(
        norm(|a, _| a.x_in_place = 2),
        XATTN_STATUS_INVALID_ARGUMENT,
        "norm: x_in_place: expected a number from 0 to 1, got 2",
    );
    expect(
        norm(|a, _| a.x_in_place = 1),
        XATTN_STATUS_INVALID_ARGUMENT,
        "norm: x: expected null beside the flag for in place, got a tensor",
    );
    expect(
        norm(|a, _| a.eps = f32::NAN),
        XATTN_STATUS_INVALID_ARGUMENT,
        "norm: eps: expected a finite number, at least 0, got NaN",
    );
    let mut device = null_mut();
    // SAFETY: a C string, and a place for the handle.
    let status = unsafe { xattn_device_open(c"tpu".as_ptr(), &mut device) };
    expect(status, XATTN_STATUS_INVALID_ARGUMENT, "device: name: expected one of reference, cpu, wgpu, cuda, got tpu");
    assert!(device.is_null());
}

#[test]
fn handles_of_the_wrong_kind_or_freed_are_refused() {
    let device = cpu();
    let (mut a, mut b) = ([0.0f32; 4], [0.0f32; 2]);
    let (x, out) = (tensor(&mut a, &[1, 1, 2]), tensor(&mut b, &[1, 1, 2]));
    let mut args = xattn_linear_args {
        struct_size: size_of::<xattn_linear_args>(),
        activation: 0,
        reduce: 0,
        x: &x,
        weight: null(),
        weight_up: null(),
        prepared: device.cast(),
        bias: null(),
        residual: null(),
        residual_in_place: 0,
        gate: null(),
        row_mask: null(),
        out: &out,
    };
    // SAFETY: everything is described as it is, apart from the handles, which are looked up.
    unsafe {
        expect(
            xattn_linear(device, &args),
            XATTN_STATUS_INVALID_HANDLE,
            "linear: prepared: expected a handle of xattn_weight, got xattn_device",
        );
        args.prepared = 0x5a5a as *const _;
        expect(
            xattn_linear(device, &args),
            XATTN_STATUS_INVALID_HANDLE,
            "linear: prepared: expected a handle of xattn_weight, got one that was freed or never made",
        );
        args.prepared = null();
        expect(
            xattn_linear(device, &args),
            XATTN_STATUS_INVALID_ARGUMENT,
            "linear: weight: expected one of: weight; weight and weight_up; prepared, got another combination",
        );
    }
    assert_eq!(xattn_device_free(device), XATTN_STATUS_OK);
    expect(
        xattn_device_free(device),
        XATTN_STATUS_INVALID_HANDLE,
        "xattn_device_free: handle: expected a handle of xattn_device, got one that was freed or never made",
    );
    // SAFETY: as above.
    let status = unsafe { xattn_linear(device, &args) };
    expect(
        status,
        XATTN_STATUS_INVALID_ARGUMENT,
        "linear: weight: expected one of: weight; weight and weight_up; prepared, got another combination",
    );
}

#[test]
fn enqueue_checks_workspace_stream_and_what_was_prepared() {
    let device = cpu();
    let (mut data, mut result) = ([3.0f32, 4.0], [0.0f32; 2]);
    let (x, out) = (tensor(&mut data, &[1, 1, 1, 2]), tensor(&mut result, &[1, 1, 1, 2]));
    let args = norm_args(&x, &out);
    let mut prepared = null_mut();
    // SAFETY: everything is described as it is, apart from what each line is about.
    unsafe {
        assert_eq!(xattn_norm_prepare(device, &args, &mut prepared), XATTN_STATUS_OK);
        let (_room, aligned, bytes) = scratch(prepared);
        let status = xattn_norm_enqueue(prepared, &args, aligned.wrapping_byte_add(4), bytes, null_mut());
        assert_eq!(status, XATTN_STATUS_INVALID_ARGUMENT);
        assert!(
            last().starts_with("workspace: memory: expected an address that is a multiple of 64, got 0x"),
            "{}",
            last()
        );
        let status = xattn_norm_enqueue(prepared, &args, null_mut(), 64, null_mut());
        expect(status, XATTN_STATUS_INVALID_ARGUMENT, "norm: workspace: expected an address of 64 bytes, got null");
        let status = xattn_norm_enqueue(prepared, &args, aligned, bytes, 0x40 as *mut c_void);
        expect(status, XATTN_STATUS_INVALID_ARGUMENT, "norm: stream: expected null on cpu, got 0x40");
        let linear = xattn_linear_args {
            struct_size: size_of::<xattn_linear_args>(),
            activation: 0,
            reduce: 0,
            x: &x,
            weight: &x,
            weight_up: null(),
            prepared: null(),
            bias: null(),
            residual: null(),
            residual_in_place: 0,
            gate: null(),
            row_mask: null(),
            out: &out,
        };
        let status = xattn_linear_enqueue(prepared, &linear, aligned, 64, null_mut());
        expect(status, XATTN_STATUS_INVALID_ARGUMENT, "linear: prepared: expected one of linear, got one of norm");
        // The device may go first.
        assert_eq!(xattn_device_free(device), XATTN_STATUS_OK);
        assert_eq!(xattn_norm_enqueue(prepared, &args, aligned, bytes, null_mut()), XATTN_STATUS_OK);
    }
    assert!((result[0] - 0.6).abs() < 1e-6 && (result[1] - 0.8).abs() < 1e-6, "{result:?}");
    assert_eq!(xattn_prepared_free(prepared), XATTN_STATUS_OK);
}

fn plain_segment() -> xattn_segment {
    xattn_segment {
        struct_size: size_of::<xattn_segment>(),
        k: null(),
        v: null(),
        lengths: null(),
        bits: null(),
        offsets: null(),
        slots: null(),
    }
}

fn plain_attention() -> xattn_attention_args {
    xattn_attention_args {
        struct_size: size_of::<xattn_attention_args>(),
        scale: 1.0,
        empty_no_media: 0,
        empty_beyond_media: 0,
        empty_masked: 0,
        q: null(),
        q_offsets: null(),
        first: null(),
        second: null(),
        visibility: 0,
        media_index: null(),
        plan: null(),
        media_bits: null(),
        keys_per_media: 0,
        causal_prefix: 0,
        causal_offset: null(),
        out: null(),
        log_sum_exp: null(),
        row_visible: null(),
    }
}

/// A call of `linear` with 3 rows of 4 and a reduction over them.
fn reduced(x: &xattn_tensor, weight: &xattn_tensor, out: &xattn_tensor) -> xattn_linear_args {
    xattn_linear_args {
        struct_size: size_of::<xattn_linear_args>(),
        activation: 0,
        reduce: 1,
        x,
        weight,
        weight_up: null(),
        prepared: null(),
        bias: null(),
        residual: null(),
        residual_in_place: 0,
        gate: null(),
        row_mask: null(),
        out,
    }
}

#[test]
fn enqueue_compares_the_parameters_of_op_and_operands() {
    let device = cpu();
    let (mut x, mut w, mut y) = ([1.0f32; 12], [1.0f32; 16], [0.0f32; 4]);
    let (x, w, y) = (tensor(&mut x, &[1, 3, 4]), tensor(&mut w, &[4, 4]), tensor(&mut y, &[1, 1, 4]));
    // One row of output, whose distance to the next is as large as can be named.
    let strides = [4, 1 << 40, 1];
    let far = xattn_tensor { strides: strides.as_ptr(), ..y };
    let mut args = reduced(&x, &w, &far);
    let mut prepared = null_mut();
    // SAFETY: everything is described as it is; what was not prepared must be refused before it is
    // read.
    unsafe {
        assert_eq!(xattn_linear_prepare(device, &args, &mut prepared), XATTN_STATUS_OK);
        let (_room, at, bytes) = scratch(prepared);
        args.residual_in_place = 1;
        expect(
            xattn_linear_enqueue(prepared, &args, at, bytes, null_mut()),
            XATTN_STATUS_INVALID_ARGUMENT,
            "linear: residual: expected none as prepared, got in place",
        );
        args.residual_in_place = 0;
        args.reduce = 2;
        expect(
            xattn_linear_enqueue(prepared, &args, at, bytes, null_mut()),
            XATTN_STATUS_INVALID_ARGUMENT,
            "linear: parameters: expected Linear { activation: None, reduce: Max } as prepared, \
             got Linear { activation: None, reduce: Mean }",
        );
        args.reduce = 1;
        assert_eq!(xattn_linear_enqueue(prepared, &args, at, bytes, null_mut()), XATTN_STATUS_OK);
    }
    assert_eq!(xattn_prepared_free(prepared), XATTN_STATUS_OK);
    assert_eq!(xattn_device_free(device), XATTN_STATUS_OK);
}

#[test]
fn an_output_over_an_input_is_refused() {
    let device = cpu();
    let (mut memory, mut w) = ([1.0f32; 32], [1.0f32; 16]);
    let w = tensor(&mut w, &[4, 4]);
    let x = tensor(&mut memory[..16], &[1, 4, 4]);
    // SAFETY: the address stays within the array.
    let later = unsafe { x.data.cast::<f32>().add(15) }.cast();
    let text = "linear: out: expected no element in common with x, \
                got f32[1, 4, 4] and f32[1, 4, 4] over the same memory";
    for data in [x.data, later] {
        let out = xattn_tensor { data, ..tensor(&mut [0.0; 16], &[1, 4, 4]) };
        let args = xattn_linear_args { reduce: 0, ..reduced(&x, &w, &out) };
        // SAFETY: the memory is alive; the call must find that it is named twice.
        unsafe { expect(xattn_linear(device, &args), XATTN_STATUS_INVALID_ARGUMENT, text) };
    }
    assert_eq!(xattn_device_free(device), XATTN_STATUS_OK);
}

#[test]
fn enqueue_compares_the_visibility_rule() {
    let device = cpu();
    let mut data = [1.0f32; 24];
    let (q, out_data) = data.split_at_mut(4);
    let (kv, out_data) = out_data.split_at_mut(8);
    let (q, kv, out) = (tensor(q, &[1, 1, 1, 4]), tensor(kv, &[1, 2, 1, 4]), tensor(&mut out_data[..4], &[1, 1, 1, 4]));
    let mut one = [1i32];
    let phi = xattn_tensor { data: one.as_mut_ptr().cast(), dtype: 4, ..tensor(&mut [0.0], &[1, 1]) };
    let segment = xattn_segment { k: &kv, v: &kv, ..plain_segment() };
    let mut args = xattn_attention_args {
        scale: 0.5,
        q: &q,
        first: &segment,
        visibility: 1,
        media_index: &phi,
        keys_per_media: 2,
        out: &out,
        ..plain_attention()
    };
    let mut prepared = null_mut();
    // SAFETY: everything is described as it is; what was not prepared must be refused.
    unsafe {
        assert_eq!(xattn_attention_prepare(device, &args, &mut prepared), XATTN_STATUS_OK);
        let (_room, at, bytes) = scratch(prepared);
        for (keys_per_media, text) in [(0, "got 0"), (1, "got 1")] {
            args.keys_per_media = keys_per_media;
            expect(
                xattn_attention_enqueue(prepared, &args, at, bytes, null_mut()),
                XATTN_STATUS_INVALID_ARGUMENT,
                &format!("attention: keys_per_media: expected 2 as prepared, {text}"),
            );
        }
        args.keys_per_media = 2;
        args.visibility = 2;
        expect(
            xattn_attention_enqueue(prepared, &args, at, bytes, null_mut()),
            XATTN_STATUS_INVALID_ARGUMENT,
            "attention: visibility: expected same_media as prepared, got preceding_media",
        );
    }
    assert_eq!(xattn_prepared_free(prepared), XATTN_STATUS_OK);
    assert_eq!(xattn_device_free(device), XATTN_STATUS_OK);
}

#[test]
fn many_threads_make_use_and_free_handles() {
    let device = cpu() as usize;
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(move || {
                for _ in 0..50 {
                    let device = device as *mut xattn_device;
                    let (mut data, mut result) = ([3.0f32, 4.0], [0.0f32; 2]);
                    let (x, out) = (tensor(&mut data, &[1, 1, 1, 2]), tensor(&mut result, &[1, 1, 1, 2]));
                    let args = norm_args(&x, &out);
                    let mut prepared = null_mut();
                    // SAFETY: everything is described as it is.
                    unsafe {
                        assert_eq!(xattn_norm_prepare(device, &args, &mut prepared), XATTN_STATUS_OK);
                        let (_room, aligned, bytes) = scratch(prepared);
                        assert_eq!(xattn_norm_enqueue(prepared, &args, aligned, bytes, null_mut()), XATTN_STATUS_OK);
                    }
                    assert_eq!(xattn_prepared_free(prepared), XATTN_STATUS_OK);
                    assert_eq!(result.map(f32::to_bits), [0.6f32, 0.8].map(f32::to_bits));
                }
            });
        }
    });
    assert_eq!(xattn_device_free(device as *mut xattn_device), XATTN_STATUS_OK);
}
