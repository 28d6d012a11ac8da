//! A sequence of prepared ops over named memory: what a bridge becomes for one set of shapes.
//!
//! A bridge writes its ops down once ([`Builder`]), in the order in which they run. The builder
//! prepares each op on the device, notes when every scratch tensor is first and last used, and
//! packs those whose lives do not overlap into one arena. Running the result resolves addresses and
//! enqueues: nothing is allocated, compiled or synchronised.

use std::sync::Arc;

use crate::device::{
    Bound, Description, Device, Dispatch, Memory, OperandList, Prepared, Recorder, Tensor, View, ViewMut, Workspace,
};
use crate::ops::{Cost, Each, GemmShape, Op, Operands};
use crate::size::{Size, refused};
use crate::tensor::{HostTensor, Spec};
use crate::{DType, Error, Result};

/// Alignment of scratch tensors: WebGPU's default for storage buffers, and over a cache line.
const ARENA_ALIGNMENT: usize = 256;

/// A strided tensor somewhere in a program: an input, an output, a constant or scratch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Register {
    place: usize,
    spec: Spec,
    /// Bytes from the start of the place.
    offset: usize,
}

impl Register {
    pub fn spec(&self) -> Spec {
        self.spec
    }

    pub fn narrow(self, dim: usize, start: usize, len: usize) -> Result<Self> {
        let (spec, elements) = self.spec.narrow(dim, start, len)?;
        Ok(Register { spec, offset: self.offset + elements * spec.dtype().size(), ..self })
    }

    pub fn split(self, dim: usize, outer: usize, inner: usize) -> Result<Self> {
        Ok(Register { spec: self.spec.split(dim, outer, inner)?, ..self })
    }

    pub fn merge(self, dim: usize) -> Result<Self> {
        Ok(Register { spec: self.spec.merge(dim)?, ..self })
    }

    pub fn repeat(self, dim: usize, n: usize) -> Result<Self> {
        Ok(Register { spec: self.spec.repeat(dim, n)?, ..self })
    }

    pub fn expand(self, dim: usize, n: usize) -> Result<Self> {
        Ok(Register { spec: self.spec.expand(dim, n)?, ..self })
    }
}

enum Place {
    /// Given when running; the index counts operands in the order of `Operands::map`.
    Operand(usize),
    Constant(Arc<Tensor>),
    Scratch(Scratch),
}

struct Scratch {
    bytes: usize,
    /// First and last step that touch it; none yet: `usize::MAX`.
    first: usize,
    last: usize,
    /// Byte offset in the arena, once packed.
    offset: usize,
}

/// An op of a bridge, for accounts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BridgeStep<'a> {
    /// Its place in the bridge.
    pub label: &'a str,
    /// The op's name.
    pub op: &'static str,
    /// Bytes and operations.
    pub cost: Cost,
    /// The GEMM that the op amounts to, if any.
    pub gemm: Option<GemmShape>,
}

/// One prepared op and where its operands are.
trait Step: Send + Sync {
    fn about(&self) -> BridgeStep<'_>;
    fn cost(&self) -> Cost;
    fn workspace_bytes(&self) -> usize;
    /// SAFETY: as `Prepared::record`.
    unsafe fn record(&self, program: &Program, memory: &Resolved<'_>, recorder: &mut Recorder<'_>) -> Result<()>;
}

struct OpStep<O: Op> {
    label: String,
    prepared: Prepared<O>,
    args: O::Args<Register, Register>,
}

impl<O: Dispatch> Step for OpStep<O>
where
    O::Args<Register, Register>: Send + Sync,
    O::Args<Spec, Spec>: Send + Sync,
{
    fn about(&self) -> BridgeStep<'_> {
        BridgeStep { label: &self.label, op: O::NAME, cost: self.cost(), gemm: self.prepared.gemm() }
    }

    fn cost(&self) -> Cost {
        self.prepared.cost()
    }

    fn workspace_bytes(&self) -> usize {
        self.prepared.workspace_bytes()
    }

    unsafe fn record(&self, program: &Program, memory: &Resolved<'_>, recorder: &mut Recorder<'_>) -> Result<()> {
        let args =
            O::map(O::as_ref(&self.args), &mut Each(|_, register: &Register| program.resolve(register, memory)))?;
        // SAFETY: passed on to the caller.
        unsafe { self.prepared.record(recorder, &args, &memory.op_workspace) }
    }
}

/// Addresses for one run.
struct Resolved<'a> {
    operands: &'a OperandList,
    arena: Memory,
    op_workspace: Memory,
}

/// Collects the ops of a program.
pub(crate) struct Builder {
    device: Device,
    places: Vec<Place>,
    steps: Vec<Box<dyn Step>>,
    taps: Vec<Tap>,
    operands: usize,
}

/// A named intermediate, readable right after a step.
struct Tap {
    name: String,
    register: Register,
    steps_before: usize,
}

impl Builder {
    pub fn new(device: &Device) -> Self {
        Builder { device: device.clone(), places: Vec::new(), steps: Vec::new(), taps: Vec::new(), operands: 0 }
    }

    /// Declares the operands of a bridge call, in the order in which `Operands::map` visits them.
    pub fn operands<C: Operands>(&mut self, shapes: &C::Args<Spec, Spec>) -> Result<C::Args<Register, Register>> {
        C::map(C::as_ref(shapes), &mut Each(|_, spec: &Spec| Ok(self.operand(*spec))))
    }

    fn operand(&mut self, spec: Spec) -> Register {
        self.operands += 1;
        self.place(Place::Operand(self.operands - 1), spec)
    }

    fn place(&mut self, place: Place, spec: Spec) -> Register {
        self.places.push(place);
        Register { place: self.places.len() - 1, spec, offset: 0 }
    }

    pub fn constant(&mut self, tensor: &Arc<Tensor>) -> Register {
        self.place(Place::Constant(tensor.clone()), tensor.spec())
    }

    pub fn scratch(&mut self, dtype: DType, shape: &[usize]) -> Result<Register> {
        let spec = Spec::contiguous(dtype, shape)?;
        let scratch = Scratch { bytes: spec.span_bytes(), first: usize::MAX, last: 0, offset: 0 };
        Ok(self.place(Place::Scratch(scratch), spec))
    }

    /// Prepares an op and appends it.
    pub fn push<O: Dispatch>(
        &mut self,
        label: impl Into<String>,
        op: &O,
        args: O::Args<Register, Register>,
    ) -> Result<()>
    where
        O::Args<Register, Register>: Send + Sync + 'static,
        O::Args<Spec, Spec>: Send + Sync,
    {
        let step = self.steps.len();
        let shapes = O::map(O::as_ref(&args), &mut Each(|_, register: &Register| Ok(register.spec)))?;
        let prepared = op.prepare(&self.device, shapes)?;
        let places = &mut self.places;
        O::map::<_, _, (), ()>(
            O::as_ref(&args),
            &mut Each(|_, register: &Register| {
                if let Place::Scratch(s) = &mut places[register.place] {
                    s.first = s.first.min(step);
                    s.last = step;
                }
                Ok(())
            }),
        )?;
        self.steps.push(Box::new(OpStep { label: label.into(), prepared, args }));
        Ok(())
    }

    /// Names an intermediate as it is after the ops so far.
    pub fn tap(&mut self, name: impl Into<String>, register: Register) {
        self.taps.push(Tap { name: name.into(), register, steps_before: self.steps.len() });
    }

    /// The program, and the size of its workspace: the arena, and behind it what the ops ask for.
    fn finish(mut self, bridge: &'static str) -> Result<Program> {
        let arena_bytes = pack(&mut self.places);
        let op_workspace = self.steps.iter().map(|s| s.workspace_bytes()).max().unwrap_or(0);
        let sizes = arena_bytes.and_then(|arena| Some((arena, (Size::<usize>::of(arena) + op_workspace).get()?)));
        let Some((arena_bytes, workspace_bytes)) = sizes else {
            return Err(refused(bridge, "operands", format_args!("scratch tensors of {} steps", self.steps.len())));
        };
        let cost = self.steps.iter().map(|s| s.cost()).fold(Cost::default(), Cost::plus);
        Ok(Program {
            device: self.device,
            places: self.places,
            steps: self.steps,
            taps: self.taps,
            arena_bytes,
            workspace_bytes,
            cost,
        })
    }
}

/// Places scratch tensors so that those alive at the same step never share memory: largest first,
/// each at the lowest free offset. Returns the arena's size, if it fits the address space.
fn pack(places: &mut [Place]) -> Option<usize> {
    let mut order: Vec<usize> = (0..places.len())
        .filter(|&i| matches!(&places[i], Place::Scratch(s) if s.first != usize::MAX && s.bytes > 0))
        .collect();
    let scratch = |places: &[Place], i: usize| match &places[i] {
        Place::Scratch(s) => (s.bytes.next_multiple_of(ARENA_ALIGNMENT), s.first, s.last, s.offset),
        _ => unreachable!("only scratch is listed"),
    };
    order.sort_by_key(|&i| std::cmp::Reverse(scratch(places, i).0));
    let mut placed: Vec<usize> = Vec::new();
    let mut arena = 0;
    for i in order {
        let (bytes, first, last, _) = scratch(places, i);
        let mut taken: Vec<(usize, usize)> = placed
            .iter()
            .map(|&j| scratch(places, j))
            .filter(|&(_, f, l, _)| f <= last && first <= l)
            .map(|(b, _, _, o)| (o, o + b))
            .collect();
        taken.sort_unstable();
        let mut offset = 0usize;
        for (start, end) in taken {
            if start >= offset.saturating_add(bytes) {
                break;
            }
            offset = offset.max(end);
        }
        if let Place::Scratch(s) = &mut places[i] {
            s.offset = offset;
        }
        arena = arena.max((Size::<usize>::of(offset) + bytes).get()?);
        placed.push(i);
    }
    Some(arena)
}

/// Prepared ops, ready to run.
pub(crate) struct Program {
    device: Device,
    places: Vec<Place>,
    steps: Vec<Box<dyn Step>>,
    taps: Vec<Tap>,
    arena_bytes: usize,
    workspace_bytes: usize,
    cost: Cost,
}

impl Program {
    fn resolve(&self, register: &Register, memory: &Resolved<'_>) -> Result<Bound> {
        let base = match &self.places[register.place] {
            Place::Operand(i) => match memory.operands.get(*i) {
                Some(operand) => operand.bound.memory.skip(register.offset),
                None => return refuse("bridge", "operands", "those prepared for", "fewer"),
            },
            Place::Constant(tensor) => tensor.memory().skip(register.offset),
            Place::Scratch(s) => memory.arena.skip(s.offset + register.offset),
        };
        Ok(Bound { spec: register.spec, memory: base })
    }

    fn resolved<'a>(&self, operands: &'a OperandList, workspace: &Workspace) -> Resolved<'a> {
        let memory = workspace.memory();
        Resolved { operands, op_workspace: memory.skip(self.arena_bytes), arena: memory }
    }

    /// SAFETY: the operands are those declared, in order, each with its declared layout and alive
    /// until the work is done.
    unsafe fn record(
        &self,
        recorder: &mut Recorder<'_>,
        operands: &OperandList,
        workspace: &mut Workspace,
    ) -> Result<()> {
        let memory = self.resolved(operands, workspace);
        for step in &self.steps {
            // SAFETY: constants live as long as the program, scratch tensors of one step never
            // overlap (`pack`), and the operands are the caller's promise.
            unsafe { step.record(self, &memory, recorder)? };
        }
        Ok(())
    }
}

/// A bridge, ready to run on one device for one set of shapes.
///
/// `Send + Sync`: any thread may enqueue it, each with a workspace of its own.
pub struct PreparedBridge<C: Operands> {
    program: Program,
    description: Description<C>,
}

impl<C: Operands> PreparedBridge<C> {
    pub(crate) fn new(builder: Builder, shapes: C::Args<Spec, Spec>) -> Result<Self> {
        Ok(PreparedBridge { program: builder.finish(C::NAME)?, description: Description::new(shapes)? })
    }

    /// Scratch memory for [`PreparedBridge::enqueue`]: intermediates, and workspaces of the ops.
    pub fn workspace_bytes(&self) -> usize {
        self.program.workspace_bytes
    }

    /// Bytes of the largest activation: operand or intermediate.
    pub fn largest_tensor_bytes(&self) -> usize {
        let scratch = self.program.places.iter().map(|p| match p {
            Place::Scratch(s) => s.bytes,
            Place::Operand(_) | Place::Constant(_) => 0,
        });
        scratch.chain([self.description.largest_operand()]).max().unwrap_or(0)
    }

    /// Bytes and operations of one call, summed over its ops.
    pub fn cost(&self) -> Cost {
        self.program.cost
    }

    /// The ops in order.
    pub fn steps(&self) -> impl Iterator<Item = BridgeStep<'_>> {
        self.program.steps.iter().map(|s| s.about())
    }

    /// Layouts that the operands must have, and the parameters among them.
    pub fn shapes(&self) -> &C::Args<Spec, Spec> {
        self.description.shapes()
    }

    /// Records the bridge: allocates, compiles, loads and synchronises nothing.
    ///
    /// # Errors
    /// As [`Prepared::enqueue`]. After a device fault, the ops before it stay recorded.
    pub fn enqueue(
        &self,
        recorder: &mut Recorder<'_>,
        args: C::Args<View<'_>, ViewMut<'_>>,
        workspace: &mut Workspace,
    ) -> Result<()> {
        workspace.expect(C::NAME, self.workspace_bytes(), recorder)?;
        let operands = self.description.take(args)?;
        // SAFETY: the description was compared; lifetimes are those of the views, as for
        // `Prepared::enqueue`.
        let done = unsafe { self.program.record(recorder, &operands, workspace) };
        workspace.remember(recorder);
        done
    }

    /// Captures the bridge on the recorder's stream as one CUDA graph, for repeated launches on the
    /// same memory: for example a decode step whose φ, text and cache change in place. CUDA only.
    ///
    /// # Errors
    /// As [`PreparedBridge::enqueue`] and [`Device::capture`].
    ///
    /// # Safety
    /// As [`Device::capture`]: this bridge, the operands' memory and the workspace stay alive where
    /// they are until the graph is dropped and its last launch is done.
    #[cfg(feature = "cuda")]
    pub unsafe fn capture(
        &self,
        recorder: &mut Recorder<'_>,
        args: C::Args<View<'_>, ViewMut<'_>>,
        workspace: &mut Workspace,
    ) -> Result<crate::CudaGraph> {
        // SAFETY: passed on to the caller.
        unsafe { self.program.device.capture(recorder, |recorder| self.enqueue(recorder, args, workspace)) }
    }

    /// Allocates a workspace, runs and waits: the form for tests and single calls.
    ///
    /// # Errors
    /// As [`PreparedBridge::enqueue`].
    pub fn run(&self, args: C::Args<View<'_>, ViewMut<'_>>) -> Result<()> {
        let device = &self.program.device;
        let mut workspace = Workspace::new(device, self.workspace_bytes())?;
        let mut recorder = device.recorder()?;
        self.enqueue(&mut recorder, args, &mut workspace)?;
        device.finish(recorder)
    }

    /// Runs step by step and returns the named intermediates that the order of ops makes visible.
    /// For `verify`: synchronises often; the workspace starts as NaN between guard bands.
    ///
    /// # Errors
    /// As [`PreparedBridge::enqueue`], and a guard band that was overwritten.
    pub fn run_tapped(&self, args: C::Args<View<'_>, ViewMut<'_>>) -> Result<Vec<(String, HostTensor<'static>)>> {
        let program = &self.program;
        let workspace = Workspace::guarded(&program.device, self.workspace_bytes())?;
        let operands = self.description.take(args)?;
        let memory = program.resolved(&operands, &workspace);
        let mut seen = Vec::new();
        for done in 0..=program.steps.len() {
            for tap in program.taps.iter().filter(|t| t.steps_before == done) {
                let bound = program.resolve(&tap.register, &memory)?;
                // SAFETY: the tapped tensor is alive right after the step that wrote it, and
                // nothing runs now.
                let view = unsafe { View::from_raw(bound.spec, bound.memory) };
                seen.push((tap.name.clone(), program.device.download(&view)?));
            }
            let Some(step) = program.steps.get(done) else { break };
            let mut recorder = program.device.recorder()?;
            // SAFETY: as in `Program::record`.
            unsafe { step.record(program, &memory, &mut recorder)? };
            program.device.finish(recorder)?;
        }
        if let Some(byte) = workspace.stray(&program.device)? {
            return refuse(C::NAME, "workspace", "untouched guard bands", format!("byte {byte} overwritten"));
        }
        Ok(seen)
    }
}

/// Refuses a call whose parts contradict each other, in a bridge's words.
pub(crate) fn refuse<T>(
    op: &'static str,
    argument: &'static str,
    expected: impl ToString,
    actual: impl ToString,
) -> Result<T> {
    Err(Error::argument(op, argument, expected, actual))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(bytes: usize, first: usize, last: usize) -> Place {
        Place::Scratch(Scratch { bytes, first, last, offset: 0 })
    }

    #[test]
    fn tensors_alive_together_never_overlap_and_memory_is_reused() {
        // A chain 0 -> 1 -> 2 -> 3 of 1 KiB each, with one tensor alive throughout.
        let mut places =
            vec![scratch(1024, 0, 1), scratch(1024, 1, 2), scratch(1024, 2, 3), scratch(512, 0, 3), scratch(100, 3, 3)];
        let arena = pack(&mut places).unwrap();
        let spans: Vec<_> = places
            .iter()
            .map(|p| match p {
                Place::Scratch(s) => (s.offset, s.offset + s.bytes, s.first, s.last),
                _ => unreachable!(),
            })
            .collect();
        for (i, a) in spans.iter().enumerate() {
            for b in &spans[i + 1..] {
                let together = a.2 <= b.3 && b.2 <= a.3;
                assert!(!together || a.1 <= b.0 || b.1 <= a.0, "{a:?} overlaps {b:?}");
            }
        }
        assert_eq!(arena, 1024 * 2 + 512, "two of the chain and the long one");
    }

    #[test]
    fn tensors_that_do_not_fit_together_have_no_arena() {
        let large = isize::MAX as usize / 2 - 1024;
        let mut places = vec![scratch(large, 0, 1), scratch(large, 1, 2), scratch(large, 2, 3)];
        assert_eq!(pack(&mut places), Some(2 * large.next_multiple_of(256)), "two at a time");
        let mut places: Vec<Place> = (0..3).map(|_| scratch(large, 0, 1)).collect();
        assert_eq!(pack(&mut places), None);
    }
}
