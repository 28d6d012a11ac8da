//! What every case must do at full size, whatever the reference says: write every number, finite,
//! and the same bits again.

use super::call::Runnable;
use crate::threads::Pool;
use crate::{DType, Error, HostTensor, Result};

/// How a case was checked.
#[derive(Debug, Clone, PartialEq, Default)]
#[non_exhaustive]
pub struct Check {
    /// What is wrong; empty if nothing is.
    pub failures: Vec<String>,
    /// Rows of the first output.
    pub rows: usize,
    /// Rows that were compared with the reference at full size. 0 for a bridge: a reduced form of
    /// it was.
    pub checked_rows: usize,
    /// Numbers of all outputs. Each was written, is finite, and came out of a second run with the
    /// same bits.
    pub values: usize,
    /// Numbers that were compared with the reference at full size: of a sampled GEMM, some columns
    /// of each row; of two GEMMs in a row, those of both.
    pub checked_values: usize,
}

/// Runs a call twice, the first time over NaN. Its outputs, if every number of them is finite and
/// the second run gave the same bits.
pub(super) fn run_twice(call: &mut dyn Runnable) -> Result<Result<Vec<HostTensor<'static>>, String>> {
    call.poison()?;
    call.run()?;
    let first = call.outputs()?;
    if first.is_empty() {
        return Err(Error::argument("bench", "outputs", "at least one", "none"));
    }
    for (i, output) in first.iter().enumerate() {
        if let Some(at) = not_finite(output)? {
            return Ok(Err(format!("output {i}: number {at} is not finite, or was not written")));
        }
    }
    call.run()?;
    for (i, (a, b)) in first.iter().zip(call.outputs()?).enumerate() {
        if a.bytes()? != b.bytes()? {
            return Ok(Err(format!("output {i}: a second run gave other bits")));
        }
    }
    Ok(Ok(first))
}

/// Bytes that a thread looks through at a time: a multiple of every element.
const PIECE: usize = 1 << 20;

/// The first number that is infinite or NaN. Integers are all finite.
fn not_finite(tensor: &HostTensor<'_>) -> Result<Option<usize>> {
    let dtype = tensor.dtype();
    // A number that is not finite has all exponent bits set: this is that mask.
    let exponent: u64 = match dtype {
        DType::F64 => 0x7FF0_0000_0000_0000,
        DType::F32 => 0x7F80_0000,
        DType::BF16 => 0x7F80,
        DType::F16 => 0x7C00,
        DType::I32 | DType::U32 => return Ok(None),
    };
    let word = |bytes: &[u8]| bytes.iter().rev().fold(0u64, |word, &byte| word << 8 | u64::from(byte));
    let first = |bytes: &[u8]| match dtype.size() {
        2 => bytes.chunks_exact(2).position(|b| word(b) & exponent == exponent),
        4 => bytes.chunks_exact(4).position(|b| word(b) & exponent == exponent),
        _ => bytes.chunks_exact(8).position(|b| word(b) & exponent == exponent),
    };
    let bytes = tensor.bytes()?;
    let pieces: Vec<&[u8]> = bytes.chunks(PIECE).collect();
    let found = Pool::callers().map(pieces.len(), |piece| Some(piece * PIECE / dtype.size() + first(pieces[piece])?));
    Ok(found.into_iter().flatten().next())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::Step;
    use crate::{Device, Recorder};

    /// Writes some of six numbers, each run what it is told.
    struct Sloppy {
        device: Device,
        runs: Vec<Vec<f32>>,
        out: Vec<f32>,
    }

    impl Runnable for Sloppy {
        fn device(&self) -> &Device {
            &self.device
        }
        fn enqueue(&mut self, _: &mut Recorder<'_>) -> Result<()> {
            let run = self.runs.remove(0);
            self.out[..run.len()].copy_from_slice(&run);
            Ok(())
        }
        fn steps(&self) -> Vec<Step> {
            Vec::new()
        }
        fn poison(&mut self) -> Result<()> {
            self.out.fill(f32::NAN);
            Ok(())
        }
        fn workspace_bytes(&self) -> usize {
            0
        }
        fn largest_tensor_bytes(&self) -> usize {
            0
        }
        fn outputs(&self) -> Result<Vec<HostTensor<'static>>> {
            Ok(vec![HostTensor::from_slice(&self.out, &[self.out.len()])?])
        }
    }

    #[test]
    fn what_is_left_out_and_what_changes_is_said() {
        let outcome = |runs: [&[f32]; 2]| {
            let runs = runs.map(<[f32]>::to_vec).to_vec();
            run_twice(&mut Sloppy { device: Device::cpu(), runs, out: vec![0.0; 6] }).unwrap()
        };
        let all = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        assert_eq!(outcome([&all, &all]).unwrap()[0].to_vec::<f32>().unwrap(), all);
        assert_eq!(outcome([&all[..5], &all]).unwrap_err(), "output 0: number 5 is not finite, or was not written");
        assert_eq!(outcome([&all, &[1.0, -2.0]]).unwrap_err(), "output 0: a second run gave other bits");
    }

    #[test]
    fn the_first_number_that_is_not_finite_is_found() {
        for dtype in [DType::F64, DType::F32, DType::F16, DType::BF16] {
            let n = PIECE / dtype.size() + 100;
            for (at, wrong) in [(n - 1, f64::NAN), (7, f64::INFINITY), (n - 99, f64::NEG_INFINITY)] {
                let mut values = vec![60000.0f64; n];
                assert_eq!(
                    not_finite(&HostTensor::from_slice(&values, &[n]).unwrap().to_dtype(dtype).unwrap()).unwrap(),
                    None
                );
                values[at] = wrong;
                values[n - 1] = wrong;
                let tensor = HostTensor::from_slice(&values, &[n]).unwrap();
                assert_eq!(not_finite(&tensor.to_dtype(dtype).unwrap()).unwrap(), Some(at), "{dtype}");
            }
        }
        assert_eq!(not_finite(&HostTensor::from_slice(&[-1i32, i32::MAX], &[2]).unwrap()).unwrap(), None);
    }
}
