//! Adapters, devices, and the choice of the tier of kernels.

use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use ::wgpu::Features;

use super::{NAME, Wgpu, WgpuAttentionVariant};
use crate::{Error, Result};

/// A set of kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum WgpuTier {
    /// WebGPU's default limits: 256 invocations, 16 KiB of workgroup memory, 8 storage buffers, no
    /// f16, no subgroups.
    Baseline,
    /// Subgroups of any size from 4 to 128, and f16 arithmetic.
    SubgroupsF16,
}

impl WgpuTier {
    /// The name used in messages and on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            WgpuTier::Baseline => "baseline",
            WgpuTier::SubgroupsF16 => "subgroups-f16",
        }
    }
}

impl fmt::Display for WgpuTier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for WgpuTier {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        [WgpuTier::Baseline, WgpuTier::SubgroupsF16]
            .into_iter()
            .find(|t| t.name() == text)
            .ok_or_else(|| Error::argument("device", "tier", "baseline or subgroups-f16", text))
    }
}

static DEVICES: AtomicU64 = AtomicU64::new(0);

const TIER_FEATURES: Features = Features::SUBGROUP.union(Features::SHADER_F16);

/// Optional features, taken if present: the tier's, and timestamps around a pass for benchmarks.
const WANTED_FEATURES: Features = TIER_FEATURES.union(Features::TIMESTAMP_QUERY);

/// The tier for a device with these features and subgroup sizes, with the reason.
fn choose_tier(features: Features, subgroups: [u32; 2], wanted: Option<WgpuTier>) -> Result<(WgpuTier, String)> {
    let missing: Vec<&str> = [(Features::SUBGROUP, "subgroups"), (Features::SHADER_F16, "f16")]
        .into_iter()
        .filter(|(feature, _)| !features.contains(*feature))
        .map(|(_, name)| name)
        .collect();
    let [least, most] = subgroups;
    let lack = if !missing.is_empty() {
        Some(format!("no {}", missing.join(", no ")))
    } else if least < 4 || most > 128 {
        Some(format!("subgroups of {least} to {most}"))
    } else {
        None
    };
    match (wanted, lack) {
        (Some(WgpuTier::Baseline), _) => Ok((WgpuTier::Baseline, "as asked".into())),
        (None, Some(lack)) => Ok((WgpuTier::Baseline, lack)),
        (_, None) => Ok((WgpuTier::SubgroupsF16, format!("f16, subgroups of {least} to {most}"))),
        (Some(tier), Some(lack)) => Err(Error::Unsupported {
            op: "device",
            what: format!("tier {tier} ({lack})"),
            backend: NAME,
            available: WgpuTier::Baseline.name().into(),
        }),
    }
}

/// How to open a device.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct WgpuOptions {
    /// Only adapters whose name contains this, in any case. Default: the fastest kind present.
    pub adapter: Option<String>,
    /// The kernels. Default: the best that the adapter can run.
    pub tier: Option<WgpuTier>,
    /// Compile index checks and loop bounds into the kernels, so that a wrong index cannot access
    /// other memory. Default: yes. The kernels are written to need none, and the tests run without
    /// them too. Their cost on a graphics card was not measured.
    pub bounds_checks: bool,
    /// Limits to ask for, at most the adapter's. Default: the adapter's.
    pub limits: Option<::wgpu::Limits>,
    /// Let the kernels of `attention` count visited key blocks: for tests. Costs a storage buffer.
    pub count_key_blocks: bool,
    /// The kernel for every `attention`, to test or time it; calls that it cannot serve are
    /// refused. Default: the backend's choice.
    pub attention: Option<WgpuAttentionVariant>,
}

impl Default for WgpuOptions {
    fn default() -> Self {
        WgpuOptions {
            adapter: None,
            tier: None,
            bounds_checks: true,
            limits: None,
            count_key_blocks: false,
            attention: None,
        }
    }
}

impl WgpuOptions {
    /// Options from the environment: `XATTN_WGPU_ADAPTER`, `XATTN_WGPU_TIER` (`baseline`,
    /// `subgroups-f16`), `XATTN_WGPU_BOUNDS_CHECKS` (`0` turns them off), `XATTN_WGPU_ATTENTION`
    /// (the name of a [`WgpuAttentionVariant`]).
    ///
    /// # Errors
    /// An unknown tier or variant, checks that are neither `0` nor `1`.
    pub fn from_env() -> Result<Self> {
        let variable = |name| std::env::var(name).ok().filter(|text| !text.is_empty());
        let bounds_checks = match variable("XATTN_WGPU_BOUNDS_CHECKS").as_deref() {
            None | Some("1") => true,
            Some("0") => false,
            Some(other) => return Err(Error::argument("device", "XATTN_WGPU_BOUNDS_CHECKS", "0 or 1", other)),
        };
        Ok(WgpuOptions {
            adapter: variable("XATTN_WGPU_ADAPTER"),
            tier: variable("XATTN_WGPU_TIER").map(|text| text.parse()).transpose()?,
            bounds_checks,
            limits: None,
            count_key_blocks: false,
            attention: variable("XATTN_WGPU_ATTENTION").map(|text| text.parse()).transpose()?,
        })
    }
}

fn unavailable(reason: impl Into<String>) -> Error {
    Error::Unavailable { backend: NAME, reason: reason.into() }
}

/// Fast ones first.
fn rank(kind: ::wgpu::DeviceType) -> u32 {
    match kind {
        ::wgpu::DeviceType::DiscreteGpu => 0,
        ::wgpu::DeviceType::IntegratedGpu => 1,
        ::wgpu::DeviceType::VirtualGpu => 2,
        ::wgpu::DeviceType::Other => 3,
        ::wgpu::DeviceType::Cpu => 4,
    }
}

fn find(wanted: Option<&str>) -> Result<::wgpu::Adapter> {
    let backends = ::wgpu::Backends::PRIMARY;
    let mut descriptor = ::wgpu::InstanceDescriptor::new_without_display_handle();
    descriptor.backends = backends;
    let instance = ::wgpu::Instance::new(descriptor);
    let mut adapters = pollster::block_on(instance.enumerate_adapters(backends));
    if adapters.is_empty() {
        // Only this call gives the reason.
        let options = ::wgpu::RequestAdapterOptions::default();
        let reason = match pollster::block_on(instance.request_adapter(&options)) {
            Ok(_) => "its list of adapters is empty".to_string(),
            Err(error) => error.to_string(),
        };
        return Err(unavailable(format!("no Vulkan, Metal or Direct3D 12 adapter: {reason}")));
    }
    adapters.sort_by_key(|adapter| rank(adapter.get_info().device_type));
    let Some(wanted) = wanted else {
        return Ok(adapters.remove(0));
    };
    let lower = wanted.to_lowercase();
    let names: Vec<String> = adapters.iter().map(|a| a.get_info().name).collect();
    let found = names.iter().position(|name| name.to_lowercase().contains(&lower));
    match found {
        Some(at) => Ok(adapters.swap_remove(at)),
        None => Err(unavailable(format!("no adapter named {wanted:?} among {}", names.join(", ")))),
    }
}

impl Wgpu {
    /// Opens a device of our own.
    ///
    /// # Errors
    /// [`Error::Unavailable`] with what was looked for; [`Error::Unsupported`] for a tier that the
    /// adapter cannot run; limits beyond its own.
    pub(crate) fn open(options: &WgpuOptions) -> Result<Self> {
        crate::fork::refuse(NAME)?;
        let adapter = find(options.adapter.as_deref())?;
        let limits = options.limits.clone().unwrap_or_else(|| adapter.limits());
        let descriptor = ::wgpu::DeviceDescriptor {
            label: Some("xattn"),
            required_features: adapter.features() & WANTED_FEATURES,
            required_limits: limits,
            ..Default::default()
        };
        let (device, queue) = pollster::block_on(adapter.request_device(&descriptor))
            .map_err(|error| unavailable(format!("{}: {error}", adapter.get_info().name)))?;
        let lost = Arc::new(Mutex::new(None));
        let told = lost.clone();
        device.set_device_lost_callback(move |reason, message| {
            *told.lock().unwrap_or_else(PoisonError::into_inner) = Some(format!("{reason:?}: {message}"));
        });
        Wgpu::new(device, queue, options, lost)
    }

    /// Uses the caller's device as it is: no handler or callback of ours is installed on it.
    pub(crate) fn adopt(device: ::wgpu::Device, queue: ::wgpu::Queue, options: &WgpuOptions) -> Result<Self> {
        crate::fork::refuse(NAME)?;
        Wgpu::new(device, queue, options, Arc::default())
    }

    fn new(
        device: ::wgpu::Device,
        queue: ::wgpu::Queue,
        options: &WgpuOptions,
        lost: Arc<Mutex<Option<String>>>,
    ) -> Result<Self> {
        let info = device.adapter_info();
        let subgroups = [info.subgroup_min_size, info.subgroup_max_size];
        let (tier, reason) = choose_tier(device.features(), subgroups, options.tier)?;
        let mut this = Wgpu {
            limits: device.limits(),
            name: format!("{} ({}, {})", info.name, info.backend, info.driver),
            tier,
            tier_reason: reason,
            serial: DEVICES.fetch_add(1, Ordering::Relaxed) + 1,
            checked: options.bounds_checks,
            attention: options.attention,
            pipelines: Mutex::default(),
            counters: Default::default(),
            key_blocks: None,
            lost,
            #[cfg(feature = "verify")]
            trace: None,
            device,
            queue,
        };
        if options.count_key_blocks {
            this.key_blocks = Some(this.allocate_region(4, "a count of key blocks")?);
        }
        Ok(this)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tier_follows_the_features_and_says_why() {
        let both = TIER_FEATURES;
        assert_eq!(
            choose_tier(both, [8, 8], None).unwrap(),
            (WgpuTier::SubgroupsF16, "f16, subgroups of 8 to 8".to_string())
        );
        assert_eq!(choose_tier(both, [2, 8], None).unwrap(), (WgpuTier::Baseline, "subgroups of 2 to 8".to_string()));
        assert_eq!(
            choose_tier(Features::empty(), [4, 128], None).unwrap(),
            (WgpuTier::Baseline, "no subgroups, no f16".to_string())
        );
        assert_eq!(
            choose_tier(both, [32, 32], Some(WgpuTier::Baseline)).unwrap(),
            (WgpuTier::Baseline, "as asked".to_string())
        );
        assert_eq!(
            choose_tier(Features::SUBGROUP, [32, 32], Some(WgpuTier::SubgroupsF16)).unwrap_err().to_string(),
            "device: tier subgroups-f16 (no f16) is not supported by wgpu; available: baseline"
        );
        assert_eq!(WgpuTier::from_str("subgroups-f16").unwrap(), WgpuTier::SubgroupsF16);
        assert_eq!(
            WgpuTier::from_str("fast").unwrap_err().to_string(),
            "device: tier: expected baseline or subgroups-f16, got fast"
        );
    }
}
