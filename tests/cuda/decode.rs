//! One step of decoding by a gated block, on memory that stays where it is.

use std::sync::Arc;

use xattn::bench::RandomWeights;
use xattn::bridge::{GatedBlock, GatedBlockArgs, GatedBlockConfig, Precision};
use xattn::cudarc::driver::{CudaContext, CudaSlice, CudaStream};
use xattn::ops::{Keys, Source};
use xattn::{CudaMemory, DType, Device, HostTensor, Memory, Spec, Tensor, View, ViewMut};

use crate::support::{integers, spec, tensor};

const BATCH: usize = 3;
const WIDTH: usize = 64;
const MEDIA: usize = 2;
const PER_MEDIA: usize = 5;

fn config() -> GatedBlockConfig {
    let mut config = GatedBlockConfig::new(WIDTH, 48, 2, 64);
    config.ffn_hidden = 96;
    config
}

/// One step of decoding: a row of text per sequence against cached media.
pub struct Decode {
    device: Device,
    /// The text's row, which a sampler writes: the same memory at every step.
    stream: Arc<CudaStream>,
    x: CudaSlice<u8>,
    x_spec: Spec,
    kv: Tensor,
    phi: Tensor,
    out: Tensor,
}

impl Decode {
    /// Numbers of a result.
    pub const NUMBERS: usize = BATCH * WIDTH;

    pub fn new(device: &Device, dtype: DType) -> Self {
        let c = config();
        let ints = HostTensor::from_slice(&[1i32, 2, 0], &[BATCH, 1]).unwrap();
        let x_spec = spec(dtype, &[BATCH, 1, c.width]);
        // A device of ours is on the primary context, which is cudarc's too.
        let stream = CudaContext::new(0).unwrap().default_stream();
        Decode {
            device: device.clone(),
            x: stream.alloc_zeros(x_spec.span_bytes()).unwrap(),
            stream,
            x_spec,
            kv: tensor(
                device,
                &integers(BATCH * MEDIA * PER_MEDIA * c.kv_width(), 2),
                &[BATCH, MEDIA * PER_MEDIA, c.kv_width()],
                dtype,
            ),
            phi: Tensor::upload(device, &ints, DType::I32).unwrap(),
            out: Tensor::zeros(device, dtype, &[BATCH, 1, c.width]).unwrap(),
        }
    }

    fn args<R, W>(block: &GatedBlock, x: R, kv: R, phi: R, out: W) -> GatedBlockArgs<R, W> {
        GatedBlockArgs {
            x: Source::From(x),
            x_offsets: None,
            kv,
            keys: Keys::All,
            slots: None,
            kv_offsets: None,
            visibility: block.config().visibility(phi, PER_MEDIA as u32, None).unwrap(),
            out,
        }
    }

    pub fn shapes(&self, block: &GatedBlock) -> GatedBlockArgs<Spec, Spec> {
        Self::args(block, self.x_spec, self.kv.spec(), self.phi.spec(), self.out.spec())
    }

    pub fn views<'a>(&'a mut self, block: &GatedBlock) -> GatedBlockArgs<View<'a>, ViewMut<'a>> {
        let memory = CudaMemory::read(&self.x, &self.stream).0;
        // SAFETY: the slice holds the row and lives as long as the view.
        let x = unsafe { View::from_raw(self.x_spec, Memory::Cuda(memory)) };
        Self::args(block, x, self.kv.view(), self.phi.view(), self.out.view_mut())
    }

    /// The next token's row, in place.
    pub fn step(&mut self, seed: usize) {
        let values = integers(BATCH * config().width, seed);
        let row = HostTensor::from_slice(&values, self.x_spec.shape()).unwrap();
        let row = row.to_dtype(self.x_spec.dtype()).unwrap();
        self.stream.memcpy_htod(row.bytes().unwrap().as_ref(), &mut self.x).unwrap();
        self.stream.synchronize().unwrap();
    }

    pub fn read(&self) -> Vec<f32> {
        self.out.download(&self.device).unwrap().to_f32().unwrap()
    }
}

pub fn block(device: &Device, dtype: DType) -> GatedBlock {
    let weights = RandomWeights::new(7).gated_block(&config()).unwrap();
    GatedBlock::new(device, &config(), &weights, Precision::uniform(dtype)).unwrap()
}
