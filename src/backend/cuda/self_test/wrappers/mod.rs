//! Each wrapper of `kernels/lib/{ptx,hopper}.cuh`, lane by lane, against the PTX ISA.
//!
//! Kernels and emulator were written by the same people from the same pages, so a page misread by
//! both would pass every other test. Here a warp of the device executes each instruction on random
//! registers, and each lane's result is compared with a model of its own (`expected.rs`,
//! `hopper.rs`). It runs on the emulator in every test run, on hardware in `scripts/gpu wrappers`.

mod expected;
mod hopper;

use crate::backend::Backend;
use crate::backend::cuda::Cuda;
use crate::backend::cuda::compile::{KernelText, kernel};
use crate::backend::cuda::launch::{Launch, Operand};
use crate::backend::cuda::runtime::tensor_map::TensorMap;
use crate::backend::cuda::self_test::timing::on_cuda;
use crate::backend::gpu::params;
use crate::device::{Device, Recorder};
use crate::verify::generate::Rng;
use crate::{DType, Error, Result};
use expected::{TABLE, Wrapper};

/// The op in messages.
const OP: &str = "wrappers";
pub(super) const LANES: usize = 32;
/// Sets of registers per wrapper.
const ROUNDS: usize = 64;

params! {
    /// See `kernels/wrappers.cu`.
    WrappersParams { rounds: u32 }
}

/// Result of checking one wrapper.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct WrapperCheck {
    /// The wrapper's name.
    pub name: String,
    /// Words compared.
    pub words: usize,
    /// Words that differ from what the instruction should give.
    pub wrong: usize,
    /// The first of them, described.
    pub first: Option<String>,
}

impl WrapperCheck {
    /// Runs every wrapper that a CUDA device has. The seed decides all registers.
    ///
    /// # Errors
    /// Another backend, no compiler, a device fault.
    pub fn all(device: &Device, seed: u64) -> Result<Vec<WrapperCheck>> {
        let mut all: Vec<WrapperCheck> =
            TABLE.iter().map(|wrapper| wrapper.check(device, seed)).collect::<Result<_>>()?;
        all.extend(hopper::checks(on_cuda(device)?, device, seed)?);
        Ok(all)
    }
}

/// What a kernel with an input and an output of words makes of them, and of the tensor maps that
/// `maps` gives for the input's address.
fn on_device(
    device: &Device,
    source: &KernelText,
    rounds: usize,
    input: &[u32],
    output: usize,
    maps: impl FnOnce(u64) -> Result<Vec<TensorMap>>,
) -> Result<Vec<u32>> {
    let backend = on_cuda(device)?;
    let mut bytes = vec![0u8; output * 4];
    let (from, to) = (backend.allocate(input.len() * 4, "registers")?, backend.allocate(bytes.len(), "registers")?);
    backend.write(&Cuda::memory(&from), bytemuck::cast_slice(input))?;
    let launch = Launch::new(backend, source, &WrappersParams { rounds: rounds as u32 }, [1, 1, 1])?;
    let mut recorder = device.recorder()?;
    let Recorder::Cuda(own) = &mut recorder else {
        return Err(Error::argument(OP, "recorder", "one of cuda", recorder.place()));
    };
    let operand = |memory, words| Operand::region(&Cuda::memory(memory), DType::U32, words);
    let operands = [operand(&from, input.len()), operand(&to, output)];
    let mut maps = maps(operands[0].address())?;
    // SAFETY: both regions hold what `rounds` rounds read and write, and live until the device is
    // waited for.
    unsafe { launch.record_with_maps(backend, own, &operands.map(Some), &mut maps)? };
    device.finish(recorder)?;
    backend.read(&Cuda::memory(&to), &mut bytes)?;
    Ok(bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
}

impl Wrapper {
    fn source(&self) -> KernelText {
        KernelText::new(OP, format!("wrapper_{}", self.name), kernel!("wrappers.cu"), &["input", "output"])
            .constant("IN", self.inputs)
            .constant("OUT", self.outputs)
            .constant("STATEMENT", self.statement)
            .threads(LANES as u32)
            .shared_bytes(1024)
    }

    fn check(&self, device: &Device, seed: u64) -> Result<WrapperCheck> {
        let mut rng = Rng::named(seed, self.name);
        let rounds: Vec<Vec<[u32; LANES]>> =
            (0..ROUNDS).map(|round| (self.registers)(&mut rng, round, self.inputs)).collect();
        let input: Vec<u32> = rounds.iter().flatten().flatten().copied().collect();
        let words =
            on_device(device, &self.source(), ROUNDS, &input, ROUNDS * self.outputs * LANES, |_| Ok(Vec::new()))?;

        let mut check = WrapperCheck { name: self.name.into(), words: words.len(), wrong: 0, first: None };
        for (round, (registers, words)) in rounds.iter().zip(words.chunks(self.outputs * LANES)).enumerate() {
            let expected = (self.expected)(registers);
            for (i, (&actual, expected)) in words.iter().zip(expected.iter().flatten()).enumerate() {
                if !expected.admits(actual) {
                    check.wrong += 1;
                    check.first.get_or_insert_with(|| {
                        let (word, lane) = (i / LANES, i % LANES);
                        format!("seed {seed}, round {round}, lane {lane}, word {word}: {actual:#010x}, not {expected}")
                    });
                }
            }
        }
        Ok(check)
    }
}
