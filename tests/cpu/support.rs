//! Random numbers, strided buffers between guard bands, comparison.

use xattn::{DType, HostTensor, Spec, View, ViewMut};

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

pub const FLOATS: [DType; 4] = [DType::F32, DType::F16, DType::BF16, DType::F64];

/// What every byte outside the elements holds.
const GUARD: u8 = 0xa5;
/// Guard elements on either side.
const BAND: usize = 32;

/// A strided operand with guard bytes in front, behind and in its gaps.
#[derive(Clone)]
pub struct Buffer {
    pub spec: Spec,
    words: Vec<u64>,
}

impl Buffer {
    /// `gap`: surplus elements between rows.
    pub fn new(dtype: DType, shape: &[usize], gap: usize) -> Self {
        let mut strides = vec![1; shape.len()];
        for i in (0..shape.len().saturating_sub(1)).rev() {
            let extra = if i + 2 == shape.len() { gap } else { 0 };
            strides[i] = strides[i + 1] * shape[i + 1].max(1) + extra;
        }
        let spec = Spec::strided(dtype, shape, &strides).unwrap();
        let bytes = spec.span_bytes() + 2 * BAND * 8;
        Buffer { spec, words: vec![u64::from_ne_bytes([GUARD; 8]); bytes.div_ceil(8)] }
    }

    pub fn filled(dtype: DType, shape: &[usize], gap: usize, mut value: impl FnMut() -> f64) -> Self {
        let mut buffer = Buffer::new(dtype, shape, gap);
        for offset in buffer.offsets() {
            buffer.set(offset, value());
        }
        buffer
    }

    fn bytes(&self) -> &[u8] {
        bytemuck::cast_slice(&self.words)
    }

    pub fn set(&mut self, offset: usize, value: f64) {
        let dtype = self.spec.dtype();
        let at = BAND * 8 + offset * dtype.size();
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut self.words);
        let integer = (value as i64) as u32;
        let raw = match dtype {
            DType::I32 | DType::U32 => integer.to_ne_bytes().to_vec(),
            _ => HostTensor::from_slice(&[value], &[1]).unwrap().to_dtype(dtype).unwrap().bytes().unwrap().to_vec(),
        };
        bytes[at..at + raw.len()].copy_from_slice(&raw);
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
            raw.extend_from_slice(&self.bytes()[BAND * 8 + offset * size..][..size]);
        }
        match self.spec.dtype() {
            DType::I32 | DType::U32 => {
                raw.chunks(4).map(|c| f64::from(i32::from_ne_bytes(c.try_into().unwrap()))).collect()
            }
            dtype => HostTensor::from_bytes(dtype, &[self.spec.elements()], raw).unwrap().to_f64().unwrap(),
        }
    }

    /// The bytes outside the elements still are what they were.
    pub fn guards_hold(&self) -> bool {
        let size = self.spec.dtype().size();
        let mut element = vec![false; self.bytes().len()];
        for offset in self.offsets() {
            element[BAND * 8 + offset * size..][..size].fill(true);
        }
        self.bytes().iter().zip(element).all(|(&byte, element)| element || byte == GUARD)
    }

    pub fn same_bits(&self, other: &Buffer) -> bool {
        self.words == other.words
    }

    pub fn view(&self) -> View<'_> {
        let address = self.bytes()[BAND * 8..].as_ptr().cast_mut();
        // SAFETY: the buffer holds the span behind the band, and is borrowed.
        unsafe { View::from_raw_host(self.spec, address, self.spec.span_bytes()) }.unwrap()
    }

    pub fn view_mut(&mut self) -> ViewMut<'_> {
        let spec = self.spec;
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut self.words);
        // SAFETY: as for `view`, exclusively.
        unsafe { ViewMut::from_raw_host(spec, bytes[BAND * 8..].as_mut_ptr(), spec.span_bytes()) }.unwrap()
    }
}

/// Largest difference; infinite where only one is NaN or infinite, or they are different infinities.
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
