//! Both sides of the processor's roofline, measured: multiply-adds in registers, bytes of memory.
//!
//! **Work.** Every thread of the device multiplies and adds in 12 independent registers, enough to
//! hide the latency on every set. Then every thread sums several times as much memory as its caches
//! hold. The machine's clock changes within seconds: measure beside what is to be judged.

use std::hint::black_box;
use std::time::Instant;

use super::simd::{self, Kernel, Vector};
use crate::backend::Cpu;
use crate::bench::Roof;

/// Registers in flight.
const CHAINS: usize = 12;

/// Multiply-adds of each register in one measurement: about 10 ms.
const STEPS: usize = 5_000_000;

/// f32 values that each thread reads: 64 MiB.
const STRETCH: usize = 16 << 20;

/// Measures the processor, on the threads of a device, in about 50 ms.
pub(crate) fn measure(device: &Cpu) -> Roof {
    let pool = &device.pool;
    let threads = pool.threads();
    let set = device.set;
    // SAFETY: the kernels touch only their own values.
    let lanes = || unsafe { simd::run(set, MultiplyAdd) };
    let memory = pool.map(threads, |_| vec![1.0; STRETCH]);
    let read = || {
        pool.each(threads, |thread| {
            // SAFETY: as above.
            black_box(unsafe { simd::run(set, Sum { values: &memory[thread] }) });
        });
    };
    let multiply = || pool.map(threads, |_| lanes()).into_iter().max().unwrap_or(0);
    let (operations, seconds) = fastest(multiply);
    let (_, reading) = fastest(read);
    let flops_per_s = (threads * operations * CHAINS * STEPS * 2) as f64 / seconds;
    Roof::measured((threads * STRETCH * size_of::<f32>()) as f64 / reading, flops_per_s)
}

/// The result and the shortest time of three runs.
fn fastest<T>(run: impl Fn() -> T) -> (T, f64) {
    let timed = || {
        let start = Instant::now();
        (run(), start.elapsed().as_secs_f64())
    };
    let first = timed();
    [timed(), timed()].into_iter().fold(first, |best, next| if next.1 < best.1 { next } else { best })
}

/// Multiplies and adds. Returns the lanes of a register.
struct MultiplyAdd;

impl Kernel for MultiplyAdd {
    type Output = usize;

    #[inline(always)]
    unsafe fn run<V: Vector>(self) -> usize {
        // SAFETY: registers only; the caller has the instruction set.
        unsafe {
            let (factor, term) = (V::splat(black_box(0.999)), V::splat(black_box(0.001)));
            let mut chains: [V; CHAINS] = std::array::from_fn(|i| V::splat(i as f32));
            for _ in 0..STEPS {
                for chain in &mut chains {
                    *chain = chain.mul_add(factor, term);
                }
            }
            black_box(chains);
        }
        V::LANES
    }
}

struct Sum<'a> {
    values: &'a [f32],
}

impl Kernel for Sum<'_> {
    type Output = [f32; 16];

    #[inline(always)]
    unsafe fn run<V: Vector>(self) -> [f32; 16] {
        let mut out = [0.0; 16];
        // SAFETY: every load is inside the values; `out` holds the widest register.
        unsafe {
            let mut sums: [V; CHAINS] = std::array::from_fn(|_| V::splat(0.0));
            for values in self.values.chunks_exact(CHAINS * V::LANES) {
                for (i, sum) in sums.iter_mut().enumerate() {
                    *sum = sum.add(V::load(values.as_ptr().add(i * V::LANES)));
                }
            }
            sums.into_iter().fold(V::splat(0.0), |a, b| a.add(b)).store(out.as_mut_ptr());
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_roof_is_that_of_a_processor() {
        let roof = measure(&Cpu::new());
        // Between a slow interpreter and the fastest machines.
        assert!((1e8..1e14).contains(roof.flops_per_s.as_ref().unwrap()), "{roof:?}");
        assert!((1e8..1e13).contains(roof.bytes_per_s.as_ref().unwrap()), "{roof:?}");
    }
}
