//! Operands of a case on the host, and their transfer to a device and back through the public API.

use crate::ops::{Each, Op, visit};
use crate::verify::cases::declare::Layout;
use crate::verify::generate::Rng;
use crate::{
    DType, Device, Dispatch, Element, Error, HostTensor, Memory, Prepared, Result, Spec, Tensor, View, ViewMut,
    Workspace,
};

/// Names an operand of a [`Call`]; read and written ones are counted separately.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OperandId(usize);

/// One operand: values, gaps around them in memory, and repeated dimensions.
#[derive(Debug, Clone)]
struct Operand {
    name: &'static str,
    values: HostTensor<'static>,
    /// Elements before and behind, per dimension.
    gaps: Vec<(usize, usize)>,
    /// Dimensions of stride 0, inserted in this order.
    repeats: Vec<(usize, usize)>,
}

/// All operands of a call.
#[derive(Debug, Clone)]
pub struct Operands {
    layout: Layout,
    rng: Rng,
    reads: Vec<Operand>,
    writes: Vec<Operand>,
}

/// An op with its operands.
pub struct Call<O: Op> {
    /// Parameters.
    pub op: O,
    /// The operand in each place.
    pub args: O::Args<OperandId, OperandId>,
    /// The operands.
    pub operands: Operands,
}

/// What a run made.
pub struct Execution {
    /// Written operands, without gaps.
    pub outputs: Vec<(&'static str, HostTensor<'static>)>,
    /// The first guard element that was overwritten.
    pub stray: Option<String>,
    /// Where each written operand lay on the device, gaps included.
    pub places: Vec<Memory>,
}

impl Operands {
    /// No operands yet; the seed decides the sizes of gaps.
    pub fn new(layout: Layout, seed: u64) -> Self {
        Operands { layout, rng: Rng::named(seed, "gaps"), reads: Vec::new(), writes: Vec::new() }
    }

    /// An operand that is read.
    pub fn read(&mut self, name: &'static str, values: HostTensor<'static>) -> OperandId {
        self.read_repeated(name, values, &[])
    }

    /// An operand that is read and repeats along inserted dimensions `(dimension, extent)`.
    pub fn read_repeated(
        &mut self,
        name: &'static str,
        values: HostTensor<'static>,
        repeats: &[(usize, usize)],
    ) -> OperandId {
        let mut gaps = self.gaps(&values);
        behind(&mut gaps, &values);
        self.reads.push(Operand { name, values, gaps, repeats: repeats.to_vec() });
        OperandId(self.reads.len() - 1)
    }

    /// An operand that is read and has no gaps in any layout.
    pub fn read_gapless(&mut self, name: &'static str, values: HostTensor<'static>) -> OperandId {
        let mut gaps = vec![(0, 0); values.shape().len()];
        behind(&mut gaps, &values);
        self.reads.push(Operand { name, values, gaps, repeats: Vec::new() });
        OperandId(self.reads.len() - 1)
    }

    /// An output, NaN (integers: a pattern) until written, so that unwritten elements show.
    ///
    /// # Errors
    /// A shape that no tensor has.
    pub fn write(&mut self, name: &'static str, dtype: DType, shape: &[usize]) -> Result<OperandId> {
        let values = filled(dtype, shape)?;
        Ok(self.write_over(name, values))
    }

    /// An operand that is worked on in place.
    pub fn write_over(&mut self, name: &'static str, values: HostTensor<'static>) -> OperandId {
        let gaps = self.gaps(&values);
        self.push_write(name, values, gaps)
    }

    /// An output with guards before and behind, and no gaps inside in any layout.
    ///
    /// # Errors
    /// A shape that no tensor has.
    pub fn write_gapless(&mut self, name: &'static str, dtype: DType, shape: &[usize]) -> Result<OperandId> {
        let gaps = vec![(0, 0); shape.len()];
        Ok(self.push_write(name, filled(dtype, shape)?, gaps))
    }

    fn push_write(
        &mut self,
        name: &'static str,
        values: HostTensor<'static>,
        mut gaps: Vec<(usize, usize)>,
    ) -> OperandId {
        if let Some(outermost) = gaps.first_mut() {
            *outermost = (outermost.0.max(1), outermost.1.max(1));
        }
        self.writes.push(Operand { name, values, gaps, repeats: Vec::new() });
        OperandId(self.writes.len() - 1)
    }

    /// Gaps before and behind, of each dimension.
    fn gaps(&mut self, values: &HostTensor<'_>) -> Vec<(usize, usize)> {
        let mut gap = || match self.layout {
            Layout::Gapless | Layout::Aligned => (0, 0),
            Layout::Padded => (self.rng.below(3), self.rng.below(4)),
        };
        let mut gaps: Vec<_> = values.shape().iter().map(|_| gap()).collect();
        if let (Layout::Aligned, Some(innermost), Some(n)) = (self.layout, gaps.last_mut(), values.shape().last()) {
            let chunk = WIDEST / values.dtype().size();
            *innermost = (0, (n / chunk + 1) * chunk - n);
        }
        gaps
    }

    /// The values of a read operand as f64.
    ///
    /// # Errors
    /// No such operand, or integers.
    pub fn values(&self, slot: OperandId) -> Result<Vec<f64>> {
        self.reads[slot.0].values.to_f64()
    }

    /// What a written operand held before.
    ///
    /// # Errors
    /// Integers.
    pub fn initial(&self, slot: OperandId) -> Result<Vec<f64>> {
        self.writes[slot.0].values.to_f64()
    }

    /// Layout of a read operand.
    ///
    /// # Errors
    /// A shape that no view has.
    pub fn read_spec(&self, slot: OperandId) -> Result<Spec> {
        self.reads[slot.0].spec()
    }

    /// Layout of a written operand.
    ///
    /// # Errors
    /// A shape that no view has.
    pub fn write_spec(&self, slot: OperandId) -> Result<Spec> {
        self.writes[slot.0].spec()
    }

    /// The index of the value at each element of the memory of written operand `i`; none in gaps.
    pub fn written_places(&self, i: usize) -> Vec<Option<usize>> {
        let operand = &self.writes[i];
        let shape = operand.storage_shape();
        let mut places = vec![None; shape.iter().product()];
        for flat in 0..operand.values.elements() {
            places[operand.offset(flat, &shape)] = Some(flat);
        }
        places
    }

    /// A read operand's tensor.
    pub fn tensor(&self, slot: OperandId) -> &HostTensor<'static> {
        &self.reads[slot.0].values
    }

    /// Replaces the values of the named read operands.
    ///
    /// # Errors
    /// Integers among them.
    pub fn map_reads(&mut self, names: &[&str], f: impl Fn(f64) -> f64) -> Result<()> {
        for operand in self.reads.iter_mut().filter(|o| names.contains(&o.name)) {
            let values: Vec<f64> = operand.values.to_f64()?.into_iter().map(&f).collect();
            let wide = HostTensor::from_slice(&values, operand.values.shape())?;
            operand.values = wide.to_dtype(operand.values.dtype())?.into_owned()?;
        }
        Ok(())
    }
}

/// Bytes that a kernel loads at once, at most.
const WIDEST: usize = 16;

/// Puts at least [`WIDEST`] bytes behind an operand that is read.
fn behind(gaps: &mut [(usize, usize)], values: &HostTensor<'_>) {
    let inner = values.shape().iter().zip(gaps.iter()).skip(1).map(|(n, (before, behind))| n + before + behind);
    let bytes = inner.product::<usize>() * values.dtype().size();
    if let (Some(outermost), true) = (gaps.first_mut(), bytes > 0) {
        outermost.1 = outermost.1.max(WIDEST.div_ceil(bytes));
    }
}

impl<O: Dispatch> Call<O> {
    /// The layout-free copy of the arguments.
    pub fn slots(&self) -> Result<O::Args<OperandId, OperandId>> {
        O::map(O::as_ref(&self.args), &mut Each(|_, s: &OperandId| Ok(*s)))
    }

    /// The layouts of operands.
    ///
    /// # Errors
    /// Shapes that no view has.
    pub fn shapes(&self, args: O::Args<OperandId, OperandId>) -> Result<O::Args<Spec, Spec>> {
        let operands = &self.operands;
        O::map(args, &mut visit(|_, s: OperandId| operands.read_spec(s), |_, s: OperandId| operands.write_spec(s)))
    }

    /// Prepares and runs the op. `truth` widens real operands to f64 without changing values;
    /// `lower` may replace operands by prepared weights.
    ///
    /// # Errors
    /// Whatever the device refuses.
    pub fn execute(
        &self,
        device: &Device,
        truth: bool,
        lower: impl FnOnce(O::Args<OperandId, OperandId>) -> Result<O::Args<OperandId, OperandId>>,
    ) -> Result<Execution> {
        self.run(device, truth, lower(self.slots()?)?, None)
    }

    /// Runs the op, or the one already prepared for these operands.
    ///
    /// # Errors
    /// Whatever the device refuses.
    pub(super) fn run(
        &self,
        device: &Device,
        truth: bool,
        args: O::Args<OperandId, OperandId>,
        prepared: Option<&Prepared<O>>,
    ) -> Result<Execution> {
        let upload = |operands: &[Operand]| -> Result<Vec<(HostTensor<'static>, Tensor)>> {
            operands
                .iter()
                .map(|o| {
                    let storage = o.storage(truth)?;
                    let tensor = Tensor::upload(device, &storage, storage.dtype())?;
                    Ok((storage, tensor))
                })
                .collect()
        };
        let reads = upload(&self.operands.reads)?;
        let mut writes = upload(&self.operands.writes)?;
        let stray = {
            let mut free: Vec<Option<&mut Tensor>> = writes.iter_mut().map(|(_, t)| Some(t)).collect();
            let args = O::map(
                args,
                &mut visit(
                    |_, s: OperandId| self.operands.reads[s.0].view(reads[s.0].1.view()),
                    |name, s: OperandId| {
                        let tensor = free[s.0].take();
                        let tensor =
                            tensor.ok_or_else(|| Error::argument("verify", name, "an operand written once", "two"))?;
                        self.operands.writes[s.0].view_mut(tensor.view_mut())
                    },
                ),
            )?;
            let own;
            let prepared = match prepared {
                Some(prepared) => prepared,
                None => {
                    own = self.op.prepare(device, O::shapes(&args)?)?;
                    &own
                }
            };
            let mut workspace = Workspace::guarded(device, prepared.workspace_bytes())?;
            let mut recorder = device.recorder()?;
            prepared.enqueue(&mut recorder, args, &mut workspace)?;
            device.finish(recorder)?;
            workspace.stray(device)?
        };
        let stray = stray.map(|byte| format!("workspace: byte {byte} of the guard band around it was overwritten"));
        let mut execution = Execution { outputs: Vec::new(), stray, places: Vec::new() };
        for (operand, (before, tensor)) in self.operands.writes.iter().zip(&writes) {
            let after = tensor.download(device)?;
            let (values, stray) = operand.take_out(before, &after)?;
            execution.stray = execution.stray.or(stray);
            execution.outputs.push((operand.name, values));
            execution.places.push(tensor.view().bound().memory.clone());
        }
        Ok(execution)
    }
}

impl Operand {
    /// Extents with the gaps.
    fn storage_shape(&self) -> Vec<usize> {
        self.values.shape().iter().zip(&self.gaps).map(|(n, (a, b))| n + a + b).collect()
    }

    /// Values and gaps as they lie in memory. Gaps hold NaN, or hostile integers.
    fn storage(&self, truth: bool) -> Result<HostTensor<'static>> {
        let values = if truth && self.values.dtype().is_float() {
            self.values.to_dtype(DType::F64)?.into_owned()?
        } else {
            self.values.clone()
        };
        let shape = self.storage_shape();
        let storage = filled(values.dtype(), &shape)?;
        let mut bytes = storage.bytes()?.to_vec();
        let size = values.dtype().size();
        for (flat, chunk) in values.bytes()?.chunks(size).enumerate() {
            let at = self.offset(flat, &shape) * size;
            bytes[at..at + size].copy_from_slice(chunk);
        }
        HostTensor::from_bytes(values.dtype(), &shape, bytes)
    }

    /// Offset in the storage of a value's flat index.
    fn offset(&self, mut flat: usize, storage: &[usize]) -> usize {
        let (mut offset, mut stride) = (0, 1);
        for d in (0..storage.len()).rev() {
            let n = self.values.shape()[d];
            offset += (flat % n + self.gaps[d].0) * stride;
            flat /= n;
            stride *= storage[d];
        }
        offset
    }

    /// The values of a storage, and the first gap element that changed.
    fn take_out(
        &self,
        before: &HostTensor<'_>,
        after: &HostTensor<'_>,
    ) -> Result<(HostTensor<'static>, Option<String>)> {
        let size = after.dtype().size();
        let (before, written) = (before.bytes()?, after.bytes()?);
        let mut rest = written.to_vec();
        let mut values = Vec::with_capacity(self.values.elements() * size);
        for flat in 0..self.values.elements() {
            let at = self.offset(flat, after.shape()) * size;
            values.extend_from_slice(&written[at..at + size]);
            rest[at..at + size].copy_from_slice(&before[at..at + size]);
        }
        let stray =
            rest.chunks(size).zip(before.chunks(size)).position(|(a, b)| a != b).map(|flat| {
                format!("{}: element {flat} of the guard band around the output was overwritten", self.name)
            });
        Ok((HostTensor::from_bytes(after.dtype(), self.values.shape(), values)?, stray))
    }

    fn spec(&self) -> Result<Spec> {
        let mut spec = Spec::contiguous(self.values.dtype(), &self.storage_shape())?;
        for (d, (before, _)) in self.gaps.iter().enumerate() {
            spec = spec.narrow(d, *before, self.values.shape()[d])?.0;
        }
        self.repeats.iter().try_fold(spec, |spec, &(d, n)| spec.repeat(d, n))
    }

    fn view<'a>(&self, mut view: View<'a>) -> Result<View<'a>> {
        for (d, (before, _)) in self.gaps.iter().enumerate() {
            view = view.narrow(d, *before, self.values.shape()[d])?;
        }
        for &(d, n) in &self.repeats {
            view = view.repeat(d, n)?;
        }
        Ok(view)
    }

    fn view_mut<'a>(&self, mut view: ViewMut<'a>) -> Result<ViewMut<'a>> {
        for (d, (before, _)) in self.gaps.iter().enumerate() {
            view = view.narrow(d, *before, self.values.shape()[d])?;
        }
        Ok(view)
    }
}

/// NaN, or a pattern far beyond every index.
fn filled(dtype: DType, shape: &[usize]) -> Result<HostTensor<'static>> {
    fn of<T: Element>(value: T, shape: &[usize]) -> Result<HostTensor<'static>> {
        HostTensor::from_slice(&vec![value; shape.iter().product()], shape)
    }
    match dtype {
        DType::F64 => of(f64::NAN, shape),
        DType::F32 => of(f32::NAN, shape),
        DType::F16 => of(half::f16::NAN, shape),
        DType::BF16 => of(half::bf16::NAN, shape),
        DType::I32 => of(0x5A5A_5A5A_i32, shape),
        DType::U32 => of(0xA5A5_A5A5_u32, shape),
    }
}
