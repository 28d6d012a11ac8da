//! Threads of a device's own: as many as it was told, and the same bits for any number of them.

mod calls;

use std::num::NonZeroUsize;

use calls::Lab;
use xattn::{CpuOptions, Device};

fn with_threads(threads: usize) -> Device {
    let mut options = CpuOptions::default();
    options.threads = Some(NonZeroUsize::new(threads).unwrap());
    Device::cpu_with(&options).unwrap()
}

/// The names and bits of every call.
fn bits(device: &Device) -> Vec<(&'static str, Vec<u8>)> {
    let mut lab = Lab::new(device);
    let calls = lab.ops().into_iter().chain(lab.bridges());
    calls.map(|mut call| (call.name, call.bits().unwrap())).collect()
}

#[test]
fn any_number_of_threads_gives_the_same_bits() {
    let expected = bits(&Device::cpu());
    assert!(expected.iter().all(|(_, bits)| bits.iter().any(|&byte| byte != 0)), "nothing was computed");
    for threads in [1, 2, 5] {
        for ((name, got), (_, expected)) in bits(&with_threads(threads)).iter().zip(&expected) {
            assert!(got == expected, "{name} on {threads} threads gave other bits");
        }
    }
}

#[test]
fn devices_say_how_many_threads_they_have() {
    for threads in [1, 2, 5] {
        let details = with_threads(threads).info().details;
        assert!(details.starts_with(&format!("{threads} threads, ")), "{details}");
    }
    let options = CpuOptions::default();
    assert_eq!(Device::cpu_with(&options).unwrap().info(), Device::cpu().info(), "no number: the caller's threads");
}

/// One call uses as many threads as the device has, not those of the pool around it.
#[test]
fn a_device_brings_its_threads_along() {
    let device = with_threads(2);
    let around = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    let [inside, outside] = [around.install(|| bits(&device)), bits(&device)];
    assert_eq!(inside, outside);
    assert!(around.install(|| device.info()).details.starts_with("2 threads"), "the device's own");
    assert!(around.install(|| Device::cpu().info()).details.starts_with("1 threads"), "the caller's");
}
