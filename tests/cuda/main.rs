//! The CUDA backend: on an NVIDIA device, or under `scripts/emulated-cuda`.
