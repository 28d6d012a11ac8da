//! Extents and allocations that arguments ask for.

use xattn::{Device, Error, View};

/// A view of one number that repeats 2^46 times.
#[test]
fn a_download_that_does_not_fit_is_an_error() {
    for (n, bytes) in [(1usize << 46, 1usize << 48), ((1 << 61) - 1, (1 << 63) - 4)] {
        let view = View::new(&[1.0f32], &[1]).unwrap().repeat(0, n).unwrap();
        let error = Device::cpu().download(&view).unwrap_err();
        assert_eq!(error, Error::OutOfMemory { backend: "cpu", purpose: "a download", bytes });
    }
}
