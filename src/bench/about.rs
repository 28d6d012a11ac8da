//! What is timed: the device, and of a GPU the adapter and its driver.

use serde_json::{Value, json};

#[cfg(feature = "cuda")]
use crate::backend::cuda::self_test::timing::{Facts, facts};
use crate::{Device, DeviceInfo};

/// A device, for the head of a report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct About {
    /// Kind, name and details.
    pub info: DeviceInfo,
    /// The adapter, where the device has one.
    pub adapter: Option<Adapter>,
    /// Of a CUDA device.
    #[cfg(feature = "cuda")]
    pub(super) cuda: Option<Facts>,
}

/// An adapter of wgpu.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Adapter {
    /// As the driver calls it.
    pub name: String,
    /// The driver.
    pub driver: String,
    /// Its version.
    pub driver_info: String,
    /// Vulkan, Metal or Direct3D 12.
    pub api: String,
    /// Discrete, integrated, virtual GPU or CPU.
    pub device_type: String,
    /// Which kernels run.
    pub tier: String,
    /// Not hardware: an emulator on the processor.
    pub software: bool,
}

impl About {
    /// Asks a device.
    pub fn new(device: &Device) -> Self {
        About {
            info: device.info(),
            adapter: adapter(device),
            #[cfg(feature = "cuda")]
            cuda: facts(device).ok(),
        }
    }

    /// Whether times say nothing about hardware.
    pub fn is_software_adapter(&self) -> bool {
        self.adapter.as_ref().is_some_and(|adapter| adapter.software)
    }

    pub(super) fn json(&self) -> Value {
        let adapter = self.adapter.as_ref().map(|a| {
            json!({
                "name": a.name, "driver": a.driver, "driver_info": a.driver_info, "api": a.api, "type": a.device_type,
                "tier": a.tier,
            })
        });
        let DeviceInfo { kind, name, details } = &self.info;
        json!({
            "kind": kind.name(), "name": name, "details": details, "adapter": adapter,
            "software_adapter": self.is_software_adapter(),
        })
    }
}

#[cfg(feature = "wgpu")]
fn adapter(device: &Device) -> Option<Adapter> {
    let (gpu, _, tier) = device.as_wgpu()?;
    let info = gpu.adapter_info();
    Some(Adapter {
        software: device.is_software_adapter(),
        name: info.name,
        driver: info.driver,
        driver_info: info.driver_info,
        api: info.backend.to_string(),
        device_type: format!("{:?}", info.device_type),
        tier: tier.to_string(),
    })
}

#[cfg(not(feature = "wgpu"))]
fn adapter(_: &Device) -> Option<Adapter> {
    None
}
