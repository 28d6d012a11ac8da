//! Random numbers, strided operands and workspaces in blocks of exactly their size, comparison.

use std::iter::StepBy;
use std::ops::Range;

use xattn::{
    CpuOptions, DType, Device, Dispatch, HostMemory, HostTensor, InstructionSet, Memory, Result, Spec, View, ViewMut,
    Workspace,
};

use crate::block::{Block, UNWRITTEN};

/// SplitMix64.
pub struct Random(pub u64);

impl Random {
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    pub fn below(&mut self, n: usize) -> usize {
        (self.bits() % n as u64) as usize
    }
    pub fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }
    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
    /// Uniform in -1..1.
    pub fn real(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    }
}

/// Seeds of random cases; with `XATTN_EVERY=n` every n-th one, for slower builds.
pub fn seeds(all: Range<u64>) -> StepBy<Range<u64>> {
    all.step_by(every())
}

pub fn every() -> usize {
    std::env::var("XATTN_EVERY").map_or(1, |n| n.parse().expect("XATTN_EVERY: a number, at least 1"))
}

/// The CPU with each instruction set that this machine has and whose kernels differ, the widest
/// first. Some sets differ in GEMM only.
pub fn devices() -> Vec<Device> {
    let own = |set: &InstructionSet| !matches!(set, InstructionSet::Amx | InstructionSet::Avx512Bf16);
    InstructionSet::ALL.into_iter().filter(own).filter_map(device_with).collect()
}

/// The CPU with every instruction set that this machine has.
pub fn gemm_devices() -> Vec<Device> {
    InstructionSet::ALL.into_iter().filter_map(device_with).collect()
}

fn device_with(set: InstructionSet) -> Option<Device> {
    let mut options = CpuOptions::default();
    options.instruction_set = Some(set);
    set.is_available().then(|| Device::cpu_with(&options).unwrap())
}

pub const FLOATS: [DType; 3] = [DType::F32, DType::F16, DType::BF16];

/// A strided operand in a block of exactly its span, whose gaps hold [`UNWRITTEN`].
pub struct Buffer {
    pub spec: Spec,
    block: Block,
}

impl Clone for Buffer {
    fn clone(&self) -> Self {
        let mut copy = Buffer::of(self.spec);
        copy.block.bytes_mut().copy_from_slice(self.block.bytes());
        copy
    }
}

impl Buffer {
    /// `gap`: surplus elements between rows. From two on, leading dimensions are reversed.
    pub fn new(dtype: DType, shape: &[usize], gap: usize) -> Self {
        let leading = shape.len().saturating_sub(1);
        let mut order: Vec<usize> = (0..leading).collect();
        if gap < 2 {
            order.reverse();
        }
        let mut strides = vec![1; shape.len()];
        let mut step = shape.last().map_or(1, |&n| n.max(1)) + gap;
        for i in order {
            strides[i] = step;
            step *= shape[i].max(1);
        }
        Buffer::of(Spec::strided(dtype, shape, &strides).unwrap())
    }

    fn of(spec: Spec) -> Self {
        Buffer { spec, block: Block::new(spec.span_bytes(), spec.dtype().size()) }
    }

    pub fn filled(dtype: DType, shape: &[usize], gap: usize, mut value: impl FnMut() -> f64) -> Self {
        let mut buffer = Buffer::new(dtype, shape, gap);
        for offset in buffer.offsets() {
            buffer.set(offset, value());
        }
        buffer
    }

    pub fn set(&mut self, offset: usize, value: f64) {
        let dtype = self.spec.dtype();
        let at = offset * dtype.size();
        let integer = (value as i64) as u32;
        let raw = match dtype {
            DType::I32 | DType::U32 => integer.to_ne_bytes().to_vec(),
            _ => HostTensor::from_slice(&[value], &[1]).unwrap().to_dtype(dtype).unwrap().bytes().unwrap().to_vec(),
        };
        self.block.bytes_mut()[at..at + raw.len()].copy_from_slice(&raw);
    }

    /// Offsets of all elements, in row-major order.
    pub fn offsets(&self) -> Vec<usize> {
        let shape = self.spec.shape();
        (0..self.spec.elements())
            .map(|mut i| {
                let mut offset = 0;
                for (n, s) in shape.iter().zip(self.spec.strides()).rev() {
                    offset += i % n * s;
                    i /= n;
                }
                offset
            })
            .collect()
    }

    pub fn values(&self) -> Vec<f64> {
        let size = self.spec.dtype().size();
        let mut raw = Vec::new();
        for offset in self.offsets() {
            raw.extend_from_slice(&self.block.bytes()[offset * size..][..size]);
        }
        match self.spec.dtype() {
            DType::I32 | DType::U32 => {
                raw.chunks(4).map(|c| f64::from(i32::from_ne_bytes(c.try_into().unwrap()))).collect()
            }
            dtype => HostTensor::from_bytes(dtype, &[self.spec.elements()], raw).unwrap().to_f64().unwrap(),
        }
    }

    /// The gaps still are what they were.
    pub fn gaps_hold(&self) -> bool {
        let size = self.spec.dtype().size();
        let mut element = vec![false; self.block.bytes().len()];
        for offset in self.offsets() {
            element[offset * size..][..size].fill(true);
        }
        self.block.bytes().iter().zip(element).all(|(&byte, element)| element || byte == UNWRITTEN)
    }

    pub fn same_bits(&self, other: &Buffer) -> bool {
        self.spec == other.spec && self.block.bytes() == other.block.bytes()
    }

    pub fn view(&self) -> View<'_> {
        // SAFETY: the block holds the span, and is borrowed.
        unsafe { View::from_raw_host(self.spec, self.block.address(), self.spec.span_bytes()) }.unwrap()
    }

    pub fn view_mut(&mut self) -> ViewMut<'_> {
        // SAFETY: as for `view`, exclusively.
        unsafe { ViewMut::from_raw_host(self.spec, self.block.address(), self.spec.span_bytes()) }.unwrap()
    }
}

/// Runs an op with a workspace of exactly what it asks for, in which nothing has been written.
pub fn call<O: Dispatch>(op: &O, device: &Device, args: O::Args<View<'_>, ViewMut<'_>>) -> Result<()> {
    let prepared = op.prepare(device, O::shapes(&args)?)?;
    let bytes = prepared.workspace_bytes();
    let block = Block::new(bytes, 64);
    // SAFETY: the block outlives the call, which ends before this function does, and nothing else
    // uses it.
    let mut workspace = unsafe { Workspace::from_raw(Memory::Host(HostMemory::new(block.address(), bytes)), bytes)? };
    let mut recorder = device.recorder()?;
    prepared.enqueue(&mut recorder, args, &mut workspace)?;
    device.finish(recorder)
}

/// What rounding in f32 allows of outputs and of a log-sum-exp, for |q|, |k|, |v| <= 1. A score of
/// d products, each of at most 1, is off by at most (d + 4) u · scale · d (operands in f64 are
/// rounded first); that shifts every weight's logarithm, twice (numerator and sum); exp, the sums
/// over n keys and the division add (n + 16) u relative to the largest value.
pub fn attention_bounds(head_dim: usize, keys: usize, scale: f32) -> (f64, f64) {
    let u = f64::from(f32::EPSILON) / 2.0;
    let (d, n) = (head_dim as f64, keys as f64);
    let score = (d + 4.0) * u * f64::from(scale) * d;
    (2.0 * score + (n + 16.0) * u, score + (n + 16.0) * u * 16.0)
}

/// Largest difference; infinite if NaN or infinities do not match.
pub fn distance(a: &Buffer, b: &Buffer) -> f64 {
    a.values().iter().zip(b.values()).fold(0.0, |worst, (&x, y)| {
        let d = if x == y || (x.is_nan() && y.is_nan()) { 0.0 } else { (x - y).abs() };
        if d.is_nan() { f64::INFINITY } else { d.max(worst) }
    })
}

/// The largest absolute finite value.
pub fn largest(a: &Buffer) -> f64 {
    a.values().into_iter().filter(|x| x.is_finite()).fold(0.0, |m, x| x.abs().max(m))
}
