//! A data race on purpose: what ThreadSanitizer must report, or it reports nothing else either.

use std::cell::UnsafeCell;

struct Unguarded(UnsafeCell<u64>);

// SAFETY: there is none: two threads write at the same time, which is what is planted.
unsafe impl Sync for Unguarded {}

#[test]
#[ignore = "scripts/sanitize runs it, and demands that it fails"]
fn race() {
    let number = Unguarded(UnsafeCell::new(0));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            let number = &number;
            scope.spawn(move || {
                for _ in 0..1000 {
                    // SAFETY: as above.
                    unsafe { *number.0.get() = std::hint::black_box(*number.0.get() + 1) };
                }
            });
        }
    });
}
