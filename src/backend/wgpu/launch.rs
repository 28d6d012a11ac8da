//! Pipelines, and launches: a dispatch complete but for the addresses.

use std::sync::{Arc, Mutex, PoisonError};

use super::memory::WgpuMemory;
use super::recorder::WgpuRecorder;
use super::shader_text::{Binding, ShaderText};
use super::{NAME, Wgpu, WgpuTier};
use crate::backend::gpu::{Launches, Params};
use crate::tensor::{Bound, Spec};
use crate::{Error, Result};

/// A compiled shader. Launches of the same text share it (`pipelines.rs`).
pub(super) struct Pipeline {
    pipeline: ::wgpu::ComputePipeline,
    layout: ::wgpu::BindGroupLayout,
    #[cfg(feature = "verify")]
    text: Arc<str>,
}

/// Sets of operands whose bind group and uniform are kept. A bridge in steady state uses one;
/// callers that alternate between buffers use more. The oldest is replaced.
const KEPT: usize = 8;

/// One dispatch, planned: pipeline, parameters, grid.
pub(crate) struct Launch {
    op: &'static str,
    entry: &'static str,
    pipeline: Arc<Pipeline>,
    operands: Vec<Planned>,
    /// The parameter struct as words; the operands' offsets are filled in per set.
    params: Vec<u32>,
    grid: [u32; 3],
    sets: Mutex<Sets>,
}

struct Planned {
    name: &'static str,
    slot: Binding,
    /// Bytes from the first to the last element; 0 if absent or empty.
    span: u64,
}

#[derive(Default)]
struct Sets {
    kept: Vec<Set>,
    next: usize,
}

/// The addresses of one set of operands, and their bind group. Bind group and uniform are written
/// once, before their first use, and never again: a recorded use that is not yet submitted cannot
/// be disturbed. They keep the buffers alive until they are replaced.
struct Set {
    places: Vec<Option<(::wgpu::Buffer, u64)>>,
    group: ::wgpu::BindGroup,
}

#[derive(Clone, Copy)]
pub(crate) struct Operand<'a> {
    memory: &'a WgpuMemory,
    element: u64,
    /// Bytes of the region before the operand's first element.
    skip: u64,
}

impl<'a> Operand<'a> {
    pub fn of(bound: &'a Bound<WgpuMemory>) -> Self {
        Operand { memory: &bound.memory, element: bound.spec.dtype().size() as u64, skip: 0 }
    }

    pub fn region(memory: &'a WgpuMemory, element: usize) -> Self {
        Operand { memory, element: element as u64, skip: 0 }
    }

    pub fn skip(self, elements: usize) -> Self {
        Operand { skip: self.skip + elements as u64 * self.element, ..self }
    }

    fn offset(&self) -> u64 {
        self.memory.offset + self.skip
    }
}

/// Bytes of an operand from its first to its last element.
pub(super) fn span(spec: Option<&Spec>) -> Option<u64> {
    spec.map(|spec| spec.span_bytes() as u64)
}

impl Launches for Wgpu {
    type Launch = Launch;
    type Operand<'a> = Operand<'a>;

    fn operand(bound: &Bound<WgpuMemory>) -> Operand<'_> {
        Operand::of(bound)
    }

    unsafe fn launch(
        &self,
        launch: &Launch,
        recorder: &mut WgpuRecorder<'_>,
        operands: &[Option<Operand<'_>>],
    ) -> Result<()> {
        launch.record(self, recorder, operands)
    }
}

impl Launch {
    /// Compiles the shader (once per text) for a grid of `grid` workgroups, which `linear_grid`
    /// folded. `spans`: the bytes of each operand of the source in order, `None` if absent.
    ///
    /// # Errors
    /// A device limit that is exceeded, by operand.
    pub(super) fn new<P: Params>(
        backend: &Wgpu,
        source: &ShaderText,
        params: &P,
        spans: &[Option<u64>],
        grid: [u32; 3],
    ) -> Result<Self> {
        let limits = &backend.limits;
        let operands: Vec<Planned> = source
            .operands()
            .iter()
            .zip(spans)
            .map(|(&(name, slot), span)| Planned { name, slot, span: span.unwrap_or(0) })
            .collect();
        debug_assert_eq!(source.operands().len(), spans.len());
        debug_assert!(spans.iter().zip(&operands).all(|(s, o)| s.is_some() == (o.slot != Binding::Absent)));
        let refuse = |argument: &'static str, expected: String, actual: String| {
            Err(Error::argument(source.op(), argument, expected, actual))
        };
        for operand in &operands {
            let limit = limits.max_storage_buffer_binding_size;
            // A constant is bound from the start of its buffer.
            let room = if operand.slot == Binding::Constant { limit } else { backend.binding_limit() };
            if operand.span > room {
                return Err(Error::Unsupported {
                    op: source.op(),
                    what: format!("{} of {} bytes", operand.name, operand.span),
                    backend: NAME,
                    available: format!("at most {room} bytes (max_storage_buffer_binding_size {limit})"),
                });
            }
        }
        let bound = operands.iter().filter(|o| o.slot != Binding::Absent).count();
        if bound > limits.max_storage_buffers_per_shader_stage as usize {
            let most = format!("at most {} storage buffers", limits.max_storage_buffers_per_shader_stage);
            return refuse("operands", most, bound.to_string());
        }
        if source.needs_subgroups() && backend.tier != WgpuTier::SubgroupsF16 {
            return refuse("tier", WgpuTier::SubgroupsF16.to_string(), backend.tier.to_string());
        }
        // wgpu does not check this limit.
        if source.workgroup_memory() > limits.max_compute_workgroup_storage_size {
            let most = format!("at most {} bytes of workgroup memory", limits.max_compute_workgroup_storage_size);
            return refuse("tier", most, source.workgroup_memory().to_string());
        }
        Ok(Launch {
            op: source.op(),
            entry: source.entry(),
            pipeline: backend.pipeline(source)?,
            operands,
            params: bytemuck::cast_slice(bytemuck::bytes_of(params)).to_vec(),
            grid,
            sets: Mutex::default(),
        })
    }

    /// Records the dispatch. Allocates nothing for operands whose addresses it has met.
    pub(super) fn record(
        &self,
        backend: &Wgpu,
        recorder: &mut WgpuRecorder<'_>,
        operands: &[Option<Operand<'_>>],
    ) -> Result<()> {
        backend.expect_alive(self.op)?;
        for (planned, operand) in self.operands.iter().zip(operands) {
            if let Some(operand) = operand {
                backend.expect_own(self.op, planned.name, operand.memory)?;
            }
        }
        #[cfg(feature = "verify")]
        if let Some(trace) = &backend.trace {
            self.note(backend, trace, operands)?;
        }
        let group = self.group(backend, operands)?;
        backend.counters.dispatches.add();
        recorder.dispatch(self.entry, &self.pipeline.pipeline, &group, self.grid);
        Ok(())
    }

    fn group(&self, backend: &Wgpu, operands: &[Option<Operand<'_>>]) -> Result<::wgpu::BindGroup> {
        debug_assert_eq!(operands.len(), self.operands.len());
        let mut sets = self.sets.lock().unwrap_or_else(PoisonError::into_inner);
        let same = |set: &&Set| {
            set.places.iter().zip(operands).all(|(place, operand)| match (place, operand) {
                (None, None) => true,
                (Some((buffer, offset)), Some(o)) => *offset == o.offset() && *buffer == o.memory.buffer,
                _ => false,
            })
        };
        if let Some(set) = sets.kept.iter().find(same) {
            return Ok(set.group.clone());
        }
        let set = self.set(backend, operands)?;
        let group = set.group.clone();
        if sets.kept.len() < KEPT {
            sets.kept.push(set);
        } else {
            let next = sets.next;
            sets.kept[next] = set;
            sets.next = (next + 1) % KEPT;
        }
        Ok(group)
    }

    /// The bindings of operands, and the parameters with their offsets.
    fn bindings<'a>(
        &self,
        backend: &Wgpu,
        operands: &[Option<Operand<'a>>],
    ) -> Result<(Vec<::wgpu::BufferBinding<'a>>, Vec<u32>)> {
        let mut params = self.params.clone();
        let mut bindings = Vec::with_capacity(operands.len());
        for (i, (planned, operand)) in self.operands.iter().zip(operands).enumerate() {
            if let Some(operand) = operand {
                let (binding, first) = self.binding(backend, planned, operand)?;
                params[i] = first;
                bindings.push(binding);
            }
        }
        Ok((bindings, params))
    }

    #[cfg(feature = "verify")]
    fn note(&self, backend: &Wgpu, trace: &super::trace::Trace, operands: &[Option<Operand<'_>>]) -> Result<()> {
        let (bindings, params) = self.bindings(backend, operands)?;
        let used = self.operands.iter().map(|o| o.slot).filter(|&binding| binding != Binding::Absent);
        let bound = bindings.into_iter().zip(used.map(|binding| binding == Binding::Constant)).collect();
        trace.note(backend, (self.entry, self.pipeline.text.to_string(), self.grid), params, bound)
    }

    fn set(&self, backend: &Wgpu, operands: &[Option<Operand<'_>>]) -> Result<Set> {
        let (bindings, params) = self.bindings(backend, operands)?;
        let label = Some(self.entry);
        let bytes: &[u8] = bytemuck::cast_slice(&params);
        let memory = Some(("parameters", bytes.len()));
        backend.counters.buffers.add();
        backend.counters.bind_groups.add();
        let group = backend.scoped(self.op, memory, || {
            let uniform = backend.device.create_buffer(&::wgpu::BufferDescriptor {
                label,
                size: (bytes.len() as u64).next_multiple_of(16),
                usage: ::wgpu::BufferUsages::UNIFORM,
                mapped_at_creation: true,
            });
            // A buffer that was not allocated has no range: the error scope reports it.
            if let Ok(mut range) = uniform.get_mapped_range_mut(..bytes.len() as u64) {
                range.copy_from_slice(bytes);
            }
            uniform.unmap();
            let entries: Vec<_> = std::iter::once(uniform.as_entire_binding())
                .chain(bindings.into_iter().map(::wgpu::BindingResource::Buffer))
                .enumerate()
                .map(|(i, resource)| ::wgpu::BindGroupEntry { binding: i as u32, resource })
                .collect();
            let layout = &self.pipeline.layout;
            backend.device.create_bind_group(&::wgpu::BindGroupDescriptor { label, layout, entries: &entries })
        })?;
        let places = operands.iter().map(|o| o.map(|o| (o.memory.buffer.clone(), o.offset()))).collect();
        Ok(Set { places, group })
    }

    /// The aligned range that holds an operand, and the operand's first element in it.
    fn binding<'a>(
        &self,
        backend: &Wgpu,
        planned: &Planned,
        operand: &Operand<'a>,
    ) -> Result<(::wgpu::BufferBinding<'a>, u32)> {
        let refuse = |expected: String, actual: u64| Err(Error::argument(self.op, planned.name, expected, actual));
        let Operand { memory, element, .. } = *operand;
        let (buffer, total) = (&memory.buffer, memory.buffer.size());
        if planned.span == 0 {
            // Bindings are never empty: 16 bytes of anything for an unused operand.
            let size = total.min(16) / 4 * 4;
            let Some(size) = std::num::NonZeroU64::new(size) else {
                return refuse("a buffer of at least 4 bytes".into(), total);
            };
            return Ok((::wgpu::BufferBinding { buffer, offset: 0, size: Some(size) }, 0));
        }
        let offset = operand.offset();
        if !offset.is_multiple_of(element) {
            return refuse(format!("a byte offset that is a multiple of {element}"), offset);
        }
        let end = offset + planned.span;
        if end > memory.offset + memory.bytes {
            let room = (memory.offset + memory.bytes).saturating_sub(offset);
            return refuse(format!("memory of at least {} bytes", planned.span), room);
        }
        let floor = offset / backend.alignment() * backend.alignment();
        let size = end.next_multiple_of(4) - floor;
        if floor + size > total {
            return refuse("a buffer whose size is a multiple of 4".into(), total);
        }
        let binding = ::wgpu::BufferBinding { buffer, offset: floor, size: std::num::NonZeroU64::new(size) };
        Ok((binding, ((offset - floor) / element) as u32))
    }
}

/// A grid of `n` workgroups, folded into two dimensions where one is too short
/// (`shaders/lib/grid.wgsl` unfolds it). Up to one dimension's worth of workgroups are in excess:
/// shaders end those.
pub(super) fn linear_grid(backend: &Wgpu, op: &'static str, n: u64) -> Result<[u32; 3]> {
    let most = u64::from(backend.limits.max_compute_workgroups_per_dimension);
    let y = n.div_ceil(most).max(1);
    let x = n.div_ceil(y);
    // Invocations are counted in 32 bits, 256 to a workgroup.
    let countable = u64::from(u32::MAX) / 256;
    if y > most || x * y > countable {
        return Err(Error::argument(op, "shape", format!("at most {} workgroups", countable.min(most * most)), n));
    }
    Ok([x as u32, y as u32, 1])
}

impl Wgpu {
    /// Bytes of the largest operand, whatever its offset. A binding may begin one alignment
    /// earlier, and ends on a word.
    pub(super) fn binding_limit(&self) -> u64 {
        let limit = self.limits.max_storage_buffer_binding_size / 4 * 4;
        limit.saturating_sub(self.alignment())
    }

    pub(super) fn alignment(&self) -> u64 {
        u64::from(self.limits.min_storage_buffer_offset_alignment)
    }

    pub(super) fn pipeline(&self, source: &ShaderText) -> Result<Arc<Pipeline>> {
        self.expect_alive(source.op())?;
        let text: Arc<str> = source.text().into();
        let pipelines = || self.pipelines.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pipeline) = pipelines().get(&text) {
            return Ok(pipeline);
        }
        // Compiled without the lock: others may look theirs up meanwhile.
        let compiled = Arc::new(self.compile(source, &text)?);
        Ok(pipelines().insert(text, compiled))
    }

    fn compile(&self, source: &ShaderText, text: &Arc<str>) -> Result<Pipeline> {
        let label = Some(source.entry());
        let buffer = |ty| ::wgpu::BindingType::Buffer { ty, has_dynamic_offset: false, min_binding_size: None };
        let bound = source.operands().iter().map(|(_, slot)| slot).filter(|&&s| s != Binding::Absent);
        let entries: Vec<_> = std::iter::once(buffer(::wgpu::BufferBindingType::Uniform))
            .chain(bound.map(|&s| buffer(::wgpu::BufferBindingType::Storage { read_only: s == Binding::Constant })))
            .enumerate()
            .map(|(i, ty)| ::wgpu::BindGroupLayoutEntry {
                binding: i as u32,
                visibility: ::wgpu::ShaderStages::COMPUTE,
                ty,
                count: None,
            })
            .collect();
        self.counters.pipelines.add();
        self.scoped(source.op(), None, || {
            let device = &self.device;
            let layout =
                device.create_bind_group_layout(&::wgpu::BindGroupLayoutDescriptor { label, entries: &entries });
            let pipeline_layout = device.create_pipeline_layout(&::wgpu::PipelineLayoutDescriptor {
                label,
                bind_group_layouts: &[Some(&layout)],
                immediate_size: 0,
            });
            let module = ::wgpu::ShaderModuleDescriptor { label, source: ::wgpu::ShaderSource::Wgsl((&**text).into()) };
            let checks = match self.checked {
                true => ::wgpu::ShaderRuntimeChecks::checked(),
                false => ::wgpu::ShaderRuntimeChecks::unchecked(),
            };
            // SAFETY: the text is ours. Every index is below its operand's span, whatever values
            // the operands hold (`Launch::binding` checks that the memory holds the span; ids from
            // device memory are clamped), and every loop has a bound.
            let module = unsafe { device.create_shader_module_trusted(module, checks) };
            let pipeline = device.create_compute_pipeline(&::wgpu::ComputePipelineDescriptor {
                label,
                layout: Some(&pipeline_layout),
                module: &module,
                entry_point: label,
                // Kernels write workgroup memory before they read it.
                compilation_options: ::wgpu::PipelineCompilationOptions {
                    constants: &[],
                    zero_initialize_workgroup_memory: false,
                },
                cache: None,
            });
            Pipeline {
                pipeline,
                layout,
                #[cfg(feature = "verify")]
                text: text.clone(),
            }
        })
    }
}
