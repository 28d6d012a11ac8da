//! Heap blocks of enqueueing on wgpu: no more than the same dispatches recorded by hand.

#[path = "calls/mod.rs"]
mod calls;
#[path = "counting/mod.rs"]
mod counting;
#[path = "wgpu/support.rs"]
#[expect(dead_code, reason = "this program needs a part of it")]
mod support;

use calls::{Call, Lab};
use counting::{blocks_of, count_all, counted};
use support::device;
use xattn::{Device, WgpuOptions, wgpu};

/// Calls before counting begins: bind groups are made for operands that come for the first time.
const WARM: usize = 3;

/// The most dispatches, pipelines and bind groups of a pass; repeated ones are not recorded.
const DISPATCHES: usize = 64;

/// Pipelines and bind groups, for dispatches by hand.
struct ByHand {
    device: wgpu::Device,
    dispatches: Vec<(wgpu::ComputePipeline, wgpu::BindGroup)>,
}

impl ByHand {
    fn new(device: &Device) -> Self {
        let device = device.as_wgpu().expect("a device of wgpu").0.clone();
        let text = "@group(0) @binding(0) var<storage, read_write> out: array<u32>;
            @compute @workgroup_size(1) fn main() { out[0] = 1u; }";
        let module = device.create_shader_module(wgpu::ShaderModuleDescriptor {
            label: None,
            source: wgpu::ShaderSource::Wgsl(text.into()),
        });
        let dispatch = |_| {
            let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
                label: None,
                layout: None,
                module: &module,
                entry_point: Some("main"),
                compilation_options: Default::default(),
                cache: None,
            });
            let usage = wgpu::BufferUsages::STORAGE;
            let buffer = device.create_buffer(&wgpu::BufferDescriptor {
                label: None,
                size: 16,
                usage,
                mapped_at_creation: false,
            });
            let group = device.create_bind_group(&wgpu::BindGroupDescriptor {
                label: None,
                layout: &pipeline.get_bind_group_layout(0),
                entries: &[wgpu::BindGroupEntry { binding: 0, resource: buffer.as_entire_binding() }],
            });
            (pipeline, group)
        };
        let dispatches = (0..DISPATCHES).map(dispatch).collect();
        ByHand { device, dispatches }
    }

    /// Blocks for so many dispatches in one pass, named for debuggers as ours are.
    fn blocks(&self, dispatches: u32) -> usize {
        let mut encoder = self.device.create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some("xattn") });
        let mut kept = None;
        let blocks = blocks_of(|| {
            let descriptor = wgpu::ComputePassDescriptor { label: Some("xattn"), timestamp_writes: None };
            let mut pass = encoder.begin_compute_pass(&descriptor).forget_lifetime();
            for (pipeline, group) in &self.dispatches[..dispatches as usize] {
                pass.push_debug_group("a dispatch by hand");
                pass.set_pipeline(pipeline);
                pass.set_bind_group(0, group, &[]);
                pass.dispatch_workgroups(1, 1, 1);
                pass.pop_debug_group();
            }
            // As a recorder: the pass is still open when `enqueue` returns.
            kept = Some(pass);
        });
        drop(kept);
        blocks
    }
}

/// One test: the wgpu device is shared, and what it makes at first is made by whoever comes first.
#[test]
fn enqueue_takes_no_more_than_by_hand() {
    counting::check();
    let Some(device) = device(&WgpuOptions::default()) else { return };
    let by_hand = ByHand::new(&device);
    by_hand.blocks(1);
    let mut lab = Lab::new(&device);
    let calls: Vec<Call> = lab.ops().into_iter().chain(lab.bridges()).collect();
    for mut call in calls {
        for round in 0..WARM + 3 {
            let before = device.wgpu_counts().expect("a device of wgpu").dispatches;
            let mut blocks = 0;
            call.enqueue(&mut count_all, &mut || blocks = counted()).unwrap();
            let dispatches = device.wgpu_counts().expect("a device of wgpu").dispatches - before;
            assert!(dispatches > 0, "{}", call.name);
            let most = by_hand.blocks(dispatches as u32);
            assert!(
                round < WARM || blocks <= most,
                "{}: {blocks} blocks for {dispatches} dispatches, {most} by hand",
                call.name
            );
        }
    }
}
