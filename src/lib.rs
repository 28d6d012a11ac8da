//! Hand-written kernels for the bridge between a vision encoder and a language model: Perceiver
//! Resampler, gated cross-attention, Q-Former.
//!
//! What a caller holds: a [`Device`], what was [`Prepared`] for it, and a [`Workspace`] of scratch
//! memory.
//!
//! # Calling an op
//!
//! An op is a small struct of parameters; its operands are a struct of [`View`]s and [`ViewMut`]s
//! over your own memory, or over [`Tensor`]s. [`Dispatch::run`] does everything in one call. For
//! steady state, [`Dispatch::prepare`] checks the shapes ([`Spec`]) and plans, and
//! [`Prepared::enqueue`] then neither allocates nor waits; scratch memory is a [`Workspace`] of
//! yours. Bridges work the same way, with [`PreparedBridge`]. `docs/engines.md` is for authors of
//! engines: what preparing costs, changing batches, threads, caches.
//!
//! ```
//! use xattn::ops::{Norm, NormArgs, NormKind, Source};
//! use xattn::{Device, Dispatch, View, ViewMut};
//!
//! let (x, mut out) = ([3.0f32, 4.0], [0.0f32; 2]);
//! let args = NormArgs::new(
//!     Source::From(View::new(&x, &[1, 1, 1, 2])?),
//!     None,
//!     None,
//!     ViewMut::new(&mut out, &[1, 1, 1, 2])?,
//! );
//! Norm { kind: NormKind::L2, eps: 1e-12 }.run(&Device::cpu(), args)?;
//! assert!((out[0] - 0.6).abs() < 1e-6 && (out[1] - 0.8).abs() < 1e-6);
//! # Ok::<(), xattn::Error>(())
//! ```
//!
//! # Layers
//!
//! Five layers, each of which knows only those below it:
//!
//! * [`bridge`] has [`PerceiverResampler`](bridge::PerceiverResampler),
//!   [`GatedBlock`](bridge::GatedBlock), [`QFormer`](bridge::QFormer) and
//!   [`MediaCache`](bridge::MediaCache): weights packed for a device, and a sequence of ops.
//!   [`checkpoint`] builds them from named tensors of the public libraries.
//! * devices: what a caller holds. A [`Device`] is the machine's processor ([`Device::cpu`]), the
//!   f64 reference that judges it ([`Device::reference`]), or a GPU through wgpu (feature `wgpu`)
//!   or CUDA (feature `cuda`). [`View`]s and [`Tensor`]s are operands in its memory, [`Dispatch`]
//!   is the way from an op to the backend. The list of backends is here, and nowhere else.
//! * backends, private: one for each kind of device, with its kernels. None knows of another.
//! * [`ops`]: the contract of each op, without any backend: equation, operands, checks, cost.
//!   [`Attention`](ops::Attention), [`MediaIndex`](ops::MediaIndex), [`Norm`](ops::Norm),
//!   [`Linear`](ops::Linear), [`GatedResidual`](ops::GatedResidual).
//! * layouts ([`Spec`]) and tensors of the host ([`HostTensor`]).
//!
//! What tests and times them, `verify` and `bench` (a feature), runs through devices as callers
//! do.
//!
//! # Contracts
//!
//! * Bad input is an [`Error`] that names op, argument, expected and actual. The library does not
//!   panic on input, print or exit.
//! * Values that live on the device (media indices, lengths, slots, bits) are clamped: none of them
//!   can cause an access out of bounds.
//! * The same inputs, shapes and device give the same bits, also where threads share the device and
//!   what was prepared for it. What may be shared is `Send + Sync` and says so; a thread that
//!   enqueues has a workspace of its own.
//! * Sums, softmax and norm statistics are in f32 whatever the dtype of the operands, f64 on the
//!   reference.
//!
//! # Features
//!
//! `cli` (default): the `xattn` command. `verify`: the module of that name, cases and fixtures and
//! their comparison. `checkpoint`: bridges from safetensors files. `wgpu`: GPUs through the crate
//! of that name, which is re-exported. `cuda`: NVIDIA GPUs; `cudarc` is re-exported. `cuda-aot`:
//! CUDA kernels compiled ahead of time and embedded. The library itself needs none: say
//! `default-features = false`.

#![warn(missing_docs)]
// Badges of features, on docs.rs.
#![cfg_attr(docsrs, feature(doc_cfg))]

mod backend;
#[cfg(feature = "verify")]
pub mod bench;
pub mod bridge;
pub mod checkpoint;
mod device;
mod dtype;
mod error;
mod fork;
pub mod ops;
#[cfg(feature = "checkpoint")]
mod regular;
mod shown;
mod size;
mod tensor;
mod threads;
#[cfg(feature = "cuda")]
mod trust;
#[cfg(feature = "verify")]
pub mod verify;

#[cfg(feature = "cuda")]
pub use ::cudarc;
#[cfg(feature = "wgpu")]
pub use ::wgpu;
#[cfg(all(feature = "cuda", feature = "verify"))]
pub use backend::cuda::WrapperCheck;
#[cfg(feature = "cuda")]
pub use backend::cuda::{
    CudaAttentionVariant, CudaCache, CudaCublasLt, CudaGraph, CudaKernel, CudaLinear, CudaMemory, CudaOptions,
    CudaRecorder,
};
#[cfg(feature = "wgpu")]
pub use backend::wgpu::{WgpuAttentionVariant, WgpuCounts, WgpuMemory, WgpuOptions, WgpuRecorder, WgpuTier};
pub use backend::{CpuOptions, InstructionSet};
pub use bridge::program::{BridgeStep, PreparedBridge};
pub use device::{
    Device, DeviceInfo, DeviceKind, Dispatch, Memory, Prepared, Recorder, Shapes, Tensor, View, ViewMut, Workspace,
};
pub use dtype::{DType, Element, Float};
pub use error::{Error, Result};
pub use ops::weight::{Weight, WeightSource};
/// For the command line, which shows names of files as messages do.
#[doc(hidden)]
pub use shown::{escaped, some_of};
pub use tensor::{HostMemory, HostTensor, MAX_RANK, Spec, bit_words, pack_bits};

/// Compiles and runs the README's examples.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

/// Compiles and runs the examples of linking.
#[cfg(doctest)]
#[doc = include_str!("../docs/linking.md")]
struct Linking;

/// Compiles and runs the examples for engines.
#[cfg(doctest)]
#[doc = include_str!("../docs/engines.md")]
struct Engines;
