//! What only wgpu devices have.

use std::sync::Arc;

use super::Device;
use super::kinds::{DeviceOn, Wgpu};
use crate::Result;
use crate::backend::wgpu::{WgpuCounts, WgpuOptions, WgpuTier};

impl Device {
    /// Opens a wgpu device of our own.
    ///
    /// # Errors
    /// [`Error::Unavailable`](crate::Error::Unavailable) with what was looked for, a tier that the
    /// adapter cannot run, limits beyond its own.
    pub fn open_wgpu(options: &WgpuOptions) -> Result<Self> {
        Ok(Device(DeviceOn::Wgpu(Arc::new(Wgpu::open(options)?))))
    }

    /// Uses an engine's wgpu device and queue as they are. No error handler or callback is
    /// installed on them, and only uploads, downloads and the recorders given to [`Device::finish`]
    /// are submitted. Of `options`, tier, bounds checks and the named variant of `attention` apply.
    ///
    /// # Errors
    /// A tier that the device's features do not allow.
    pub fn from_wgpu(device: ::wgpu::Device, queue: ::wgpu::Queue, options: &WgpuOptions) -> Result<Self> {
        Ok(Device(DeviceOn::Wgpu(Arc::new(Wgpu::adopt(device, queue, options)?))))
    }

    /// The wgpu device and queue behind this device, if it is a wgpu one, and its tier of kernels.
    pub fn as_wgpu(&self) -> Option<(&::wgpu::Device, &::wgpu::Queue, WgpuTier)> {
        match &self.0 {
            DeviceOn::Wgpu(b) => Some((b.device(), b.queue(), b.tier())),
            _ => None,
        }
    }

    /// What xattn created and submitted on this device so far, if it is a wgpu one.
    pub fn wgpu_counts(&self) -> Option<WgpuCounts> {
        match &self.0 {
            DeviceOn::Wgpu(b) => Some(b.counts()),
            _ => None,
        }
    }

    /// Key blocks that `attention` visited so far, summed over problems, tiles of rows and heads,
    /// if this is a wgpu device. It waits.
    ///
    /// # Errors
    /// A device opened without [`count_key_blocks`](WgpuOptions::count_key_blocks), or lost.
    pub fn wgpu_key_blocks(&self) -> Result<Option<u32>> {
        match &self.0 {
            DeviceOn::Wgpu(b) => b.key_blocks().map(Some),
            _ => Ok(None),
        }
    }
}
