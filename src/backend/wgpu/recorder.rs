//! Command recording: into an encoder of our own, or into the caller's encoder or pass.

/// Records ops. When dropped, it ends the compute pass that it began; it never submits.
///
/// An engine makes one over its own encoder or pass, records with `enqueue`, drops it and submits:
///
/// ```no_run
/// # fn f(device: &xattn::wgpu::Device, queue: &xattn::wgpu::Queue, prepared: &xattn::Prepared<xattn::ops::Norm>,
/// #   args: xattn::ops::NormArgs<xattn::View<'_>, xattn::ViewMut<'_>>, workspace: &mut xattn::Workspace) -> xattn::Result<()> {
/// let mut encoder = device.create_command_encoder(&Default::default());
/// let mut recorder = xattn::Recorder::Wgpu(xattn::WgpuRecorder::encoder(&mut encoder));
/// prepared.enqueue(&mut recorder, args, workspace)?;
/// drop(recorder);
/// queue.submit([encoder.finish()]);
/// # Ok(())
/// # }
/// ```
pub struct WgpuRecorder<'r> {
    // Before the encoder: the pass ends first.
    pass: Pass<'r>,
    encoder: Encoder<'r>,
    dispatches: u32,
    /// The serial number of our device that made the encoder, from 1; 0 for the caller's.
    owner: u64,
}

#[allow(clippy::large_enum_variant, reason = "one per recorder, on the stack: a box would be a block of the heap")]
enum Pass<'r> {
    NotYet,
    Own(::wgpu::ComputePass<'static>),
    Caller(&'r mut ::wgpu::ComputePass<'static>),
}

enum Encoder<'r> {
    Own(::wgpu::CommandEncoder),
    Caller(&'r mut ::wgpu::CommandEncoder),
    /// That of the caller's pass, which is hidden.
    OfPass,
}

impl<'r> WgpuRecorder<'r> {
    /// Records into the caller's encoder: one compute pass until the recorder is dropped.
    pub fn encoder(encoder: &'r mut ::wgpu::CommandEncoder) -> Self {
        WgpuRecorder { pass: Pass::NotYet, encoder: Encoder::Caller(encoder), dispatches: 0, owner: 0 }
    }

    /// Records into the caller's compute pass, which comes from `forget_lifetime`. Pipeline and
    /// bind group 0 are not restored.
    pub fn pass(pass: &'r mut ::wgpu::ComputePass<'static>) -> Self {
        WgpuRecorder { pass: Pass::Caller(pass), encoder: Encoder::OfPass, dispatches: 0, owner: 0 }
    }

    /// Dispatches recorded so far.
    pub fn dispatches(&self) -> u32 {
        self.dispatches
    }

    pub(super) fn own(encoder: ::wgpu::CommandEncoder, owner: u64) -> Self {
        WgpuRecorder { pass: Pass::NotYet, encoder: Encoder::Own(encoder), dispatches: 0, owner }
    }

    pub(super) fn owner(&self) -> u64 {
        self.owner
    }

    /// Ends the pass, and returns the encoder if it is ours.
    pub(super) fn into_own(self) -> Option<::wgpu::CommandEncoder> {
        let WgpuRecorder { pass, encoder, .. } = self;
        drop(pass);
        match encoder {
            Encoder::Own(encoder) => Some(encoder),
            Encoder::Caller(_) | Encoder::OfPass => None,
        }
    }

    pub(super) fn dispatch(
        &mut self,
        label: &str,
        pipeline: &::wgpu::ComputePipeline,
        group: &::wgpu::BindGroup,
        [x, y, z]: [u32; 3],
    ) {
        if let Pass::NotYet = self.pass {
            let descriptor = ::wgpu::ComputePassDescriptor { label: Some("xattn"), timestamp_writes: None };
            let encoder = match &mut self.encoder {
                Encoder::Own(encoder) => encoder,
                Encoder::Caller(encoder) => encoder,
                Encoder::OfPass => return,
            };
            // The encoder is in this struct or borrowed by it, and untouched until the pass ends.
            self.pass = Pass::Own(encoder.begin_compute_pass(&descriptor).forget_lifetime());
        }
        let pass = match &mut self.pass {
            Pass::Own(pass) => pass,
            Pass::Caller(pass) => pass,
            Pass::NotYet => return,
        };
        pass.push_debug_group(label);
        pass.set_pipeline(pipeline);
        pass.set_bind_group(0, group, &[]);
        pass.dispatch_workgroups(x, y, z);
        pass.pop_debug_group();
        self.dispatches += 1;
    }
}
