//! Operands of a case on the host, and their transfer to a device and back through the public API.

use std::ops::Range;

use crate::ops::{Each, Op, visit};
use crate::verify::cases::declare::Layout;
use crate::verify::generate::Rng;
use crate::{
    DType, Device, Dispatch, Element, Error, HostTensor, Memory, Prepared, Result, Spec, Tensor, View, ViewMut,
    Workspace,
};

/// Names an operand of a [`Call`]; read and written ones are counted separately.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OperandId {
    pub(crate) index: usize,
    /// First element and extent in dimension 2, where the operand is a part of one in memory.
    pub(crate) part: Option<(usize, usize)>,
}

/// One operand: values, gaps around them in memory, and repeated dimensions.
#[derive(Debug, Clone)]
struct Operand {
    name: &'static str,
    dtype: DType,
    shape: Vec<usize>,
    /// None: an output without initial values, or values that `take` moved out.
    values: Option<HostTensor<'static>>,
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
        let gaps = self.gaps(values.dtype(), values.shape());
        self.push_read(name, values, gaps, repeats)
    }

    /// Two operands that are read: halves of dimension 2 of one in memory.
    pub fn read_halves(&mut self, name: &'static str, values: HostTensor<'static>) -> [OperandId; 2] {
        let n = values.shape()[2] / 2;
        let OperandId { index, .. } = self.read(name, values);
        [0, n].map(|start| OperandId { index, part: Some((start, n)) })
    }

    /// An operand that is read and has no gaps in any layout.
    pub fn read_gapless(&mut self, name: &'static str, values: HostTensor<'static>) -> OperandId {
        let gaps = vec![(0, 0); values.shape().len()];
        self.push_read(name, values, gaps, &[])
    }

    fn push_read(
        &mut self,
        name: &'static str,
        values: HostTensor<'static>,
        mut gaps: Vec<(usize, usize)>,
        repeats: &[(usize, usize)],
    ) -> OperandId {
        behind(&mut gaps, &values);
        let (dtype, shape) = (values.dtype(), values.shape().to_vec());
        self.reads.push(Operand { name, dtype, shape, values: Some(values), gaps, repeats: repeats.to_vec() });
        OperandId { index: self.reads.len() - 1, part: None }
    }

    /// An output, NaN (integers: a pattern) until written, so that unwritten elements show.
    pub fn write(&mut self, name: &'static str, dtype: DType, shape: &[usize]) -> OperandId {
        let gaps = self.gaps(dtype, shape);
        self.push_write(name, dtype, shape, None, gaps)
    }

    /// An operand that is worked on in place.
    pub fn write_over(&mut self, name: &'static str, values: HostTensor<'static>) -> OperandId {
        let (dtype, shape) = (values.dtype(), values.shape().to_vec());
        let gaps = self.gaps(dtype, &shape);
        self.push_write(name, dtype, &shape, Some(values), gaps)
    }

    /// An output with guards before and behind, and no gaps inside in any layout.
    pub fn write_gapless(&mut self, name: &'static str, dtype: DType, shape: &[usize]) -> OperandId {
        self.push_write(name, dtype, shape, None, vec![(0, 0); shape.len()])
    }

    fn push_write(
        &mut self,
        name: &'static str,
        dtype: DType,
        shape: &[usize],
        values: Option<HostTensor<'static>>,
        mut gaps: Vec<(usize, usize)>,
    ) -> OperandId {
        if let Some(outermost) = gaps.first_mut() {
            *outermost = (outermost.0.max(1), outermost.1.max(1));
        }
        self.writes.push(Operand { name, dtype, shape: shape.to_vec(), values, gaps, repeats: Vec::new() });
        OperandId { index: self.writes.len() - 1, part: None }
    }

    /// Gaps before and behind, of each dimension.
    fn gaps(&mut self, dtype: DType, shape: &[usize]) -> Vec<(usize, usize)> {
        let mut gap = || match self.layout {
            Layout::Gapless | Layout::Aligned => (0, 0),
            Layout::Padded => (self.rng.below(3), self.rng.below(4)),
        };
        let mut gaps: Vec<_> = shape.iter().map(|_| gap()).collect();
        if let (Layout::Aligned, Some(innermost), Some(n)) = (self.layout, gaps.last_mut(), shape.last()) {
            let chunk = WIDEST / dtype.size();
            *innermost = (0, (n / chunk + 1) * chunk - n);
        }
        gaps
    }

    /// The values of a read operand as f64.
    ///
    /// # Errors
    /// No such operand, or integers.
    pub fn values(&self, id: OperandId) -> Result<Vec<f64>> {
        let whole = self.tensor(id)?;
        match id.part {
            None => whole.to_f64(),
            Some(_) => Device::reference().download(&id.part_of(whole.view()?)?)?.to_f64(),
        }
    }

    /// What a written operand held before.
    ///
    /// # Errors
    /// Integers, an output that held nothing.
    pub fn initial(&self, id: OperandId) -> Result<Vec<f64>> {
        self.writes[id.index].held()?.to_f64()
    }

    /// Layout of a read operand.
    ///
    /// # Errors
    /// A shape that no view has.
    pub fn read_spec(&self, id: OperandId) -> Result<Spec> {
        let spec = self.reads[id.index].spec()?;
        id.part.map_or(Ok(spec), |(start, n)| Ok(spec.narrow(2, start, n)?.0))
    }

    /// Layouts of the written operands.
    ///
    /// # Errors
    /// A shape that no view has.
    pub fn write_specs(&self) -> Result<Vec<Spec>> {
        self.writes.iter().map(Operand::spec).collect()
    }

    /// The index of the value at each element of the memory of written operand `i`; none in gaps.
    pub fn written_places(&self, i: usize) -> Vec<Option<usize>> {
        let operand = &self.writes[i];
        let shape = operand.storage_shape();
        let mut places = vec![None; shape.iter().product()];
        let mut values = 0..;
        for run in operand.runs() {
            places[run].fill_with(|| values.next());
        }
        places
    }

    /// A read operand's tensor; of a part, all that it is a part of.
    ///
    /// # Errors
    /// Values that were taken.
    pub fn tensor(&self, id: OperandId) -> Result<&HostTensor<'static>> {
        self.reads[id.index].held()
    }

    /// Takes a read operand's tensor, which lies in memory as it is.
    ///
    /// # Errors
    /// Gaps or repeated dimensions; values that were taken before.
    pub(crate) fn take(&mut self, id: OperandId) -> Result<HostTensor<'static>> {
        let (layout, operand) = (self.layout, &mut self.reads[id.index]);
        let bare = layout == Layout::Gapless && operand.repeats.is_empty();
        let values = if bare { operand.values.take() } else { None };
        values.ok_or_else(|| Error::argument("verify", operand.name, "values without gaps or repeats", layout))
    }

    /// Replaces the values of the named read operands.
    ///
    /// # Errors
    /// Integers among them.
    pub fn map_reads(&mut self, names: &[&str], f: impl Fn(f64) -> f64) -> Result<()> {
        for operand in self.reads.iter_mut().filter(|o| names.contains(&o.name)) {
            let values: Vec<f64> = operand.held()?.to_f64()?.into_iter().map(&f).collect();
            let wide = HostTensor::from_slice(&values, &operand.shape)?;
            operand.values = Some(wide.to_dtype(operand.dtype)?.into_owned()?);
        }
        Ok(())
    }
}

impl OperandId {
    /// The part of a view of all that the operand is a part of.
    pub(crate) fn part_of(self, view: View<'_>) -> Result<View<'_>> {
        match self.part {
            Some((start, n)) => view.narrow(2, start, n),
            None => Ok(view),
        }
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
    pub fn ids(&self) -> Result<O::Args<OperandId, OperandId>> {
        O::map(O::as_ref(&self.args), &mut Each(|_, s: &OperandId| Ok(*s)))
    }

    /// The layouts of operands.
    ///
    /// # Errors
    /// Shapes that no view has.
    pub fn shapes(&self, args: O::Args<OperandId, OperandId>) -> Result<O::Args<Spec, Spec>> {
        let operands = &self.operands;
        let written = operands.write_specs()?;
        O::map(args, &mut visit(|_, s| operands.read_spec(s), |_, s: OperandId| Ok(written[s.index])))
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
        self.run(device, truth, lower(self.ids()?)?, None)
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
        let upload = |o: &Operand| -> Result<(HostTensor<'static>, Tensor)> {
            let storage = o.storage(truth)?;
            let tensor = Tensor::upload(device, &storage, storage.dtype())?;
            Ok((storage, tensor))
        };
        let Operands { reads, writes, .. } = &self.operands;
        let tensors = reads.iter().map(|o| Ok(upload(o)?.1)).collect::<Result<Vec<Tensor>>>()?;
        let mut written = writes.iter().map(upload).collect::<Result<Vec<_>>>()?;
        let stray = {
            let mut free: Vec<Option<&mut Tensor>> = written.iter_mut().map(|(_, t)| Some(t)).collect();
            let args = O::map(
                args,
                &mut visit(
                    |_, s: OperandId| s.part_of(reads[s.index].view(tensors[s.index].view())?),
                    |name, s: OperandId| {
                        let tensor = free[s.index].take();
                        let tensor =
                            tensor.ok_or_else(|| Error::argument("verify", name, "an operand written once", "two"))?;
                        writes[s.index].view_mut(tensor.view_mut())
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
        for (operand, (before, tensor)) in writes.iter().zip(&written) {
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
    fn held(&self) -> Result<&HostTensor<'static>> {
        self.values.as_ref().ok_or_else(|| Error::argument("verify", self.name, "values", "none"))
    }

    /// Extents with the gaps.
    fn storage_shape(&self) -> Vec<usize> {
        self.shape.iter().zip(&self.gaps).map(|(n, (a, b))| n + a + b).collect()
    }

    /// Values and gaps as they lie in memory. Gaps and what holds no values are NaN, or hostile
    /// integers.
    fn storage(&self, truth: bool) -> Result<HostTensor<'static>> {
        let dtype = if truth && self.dtype.is_float() { DType::F64 } else { self.dtype };
        let (shape, size) = (self.storage_shape(), dtype.size());
        let storage = filled(dtype, &shape)?;
        let Some(values) = &self.values else { return Ok(storage) };
        let mut bytes = storage.bytes()?.into_owned();
        let values = values.to_dtype(dtype)?;
        let (values, mut from) = (values.bytes()?, 0);
        for run in self.runs() {
            let n = run.len() * size;
            bytes[run.start * size..run.end * size].copy_from_slice(&values[from..from + n]);
            from += n;
        }
        HostTensor::from_bytes(dtype, &shape, bytes)
    }

    /// The values that lie together in the storage, in order.
    fn runs(&self) -> impl Iterator<Item = Range<usize>> {
        let (storage, rank) = (self.storage_shape(), self.shape.len());
        let outer = self.gaps.iter().rposition(|gap| *gap != (0, 0)).unwrap_or(0);
        let len = self.shape[outer.min(rank)..].iter().product::<usize>();
        let elements = self.shape.iter().product::<usize>();
        (0..elements).step_by(len.max(1)).map(move |mut flat| {
            let (mut start, mut stride) = (0, 1);
            for d in (0..rank).rev() {
                start += (flat % self.shape[d] + self.gaps[d].0) * stride;
                flat /= self.shape[d];
                stride *= storage[d];
            }
            start..start + len
        })
    }

    /// The values of a storage, and the first gap element that changed.
    fn take_out(
        &self,
        before: &HostTensor<'_>,
        after: &HostTensor<'_>,
    ) -> Result<(HostTensor<'static>, Option<String>)> {
        let size = after.dtype().size();
        let (before, written) = (before.bytes()?, after.bytes()?);
        let mut values = Vec::with_capacity(self.shape.iter().product::<usize>() * size);
        let (mut stray, mut end) = (None, 0);
        let rest = after.elements()..after.elements();
        for run in self.runs().chain([rest]) {
            let gap = end * size..run.start * size;
            let mut gap = written[gap.clone()].chunks(size).zip(before[gap].chunks(size));
            stray = stray.or_else(|| Some(end + gap.position(|(a, b)| a != b)?));
            values.extend_from_slice(&written[run.start * size..run.end * size]);
            end = run.end;
        }
        let stray =
            stray.map(|at| format!("{}: element {at} of the guard band around the output was overwritten", self.name));
        Ok((HostTensor::from_bytes(after.dtype(), &self.shape, values)?, stray))
    }

    fn spec(&self) -> Result<Spec> {
        let mut spec = Spec::contiguous(self.dtype, &self.storage_shape())?;
        for (d, (before, _)) in self.gaps.iter().enumerate() {
            spec = spec.narrow(d, *before, self.shape[d])?.0;
        }
        self.repeats.iter().try_fold(spec, |spec, &(d, n)| spec.repeat(d, n))
    }

    fn view<'a>(&self, mut view: View<'a>) -> Result<View<'a>> {
        for (d, (before, _)) in self.gaps.iter().enumerate() {
            view = view.narrow(d, *before, self.shape[d])?;
        }
        for &(d, n) in &self.repeats {
            view = view.repeat(d, n)?;
        }
        Ok(view)
    }

    fn view_mut<'a>(&self, mut view: ViewMut<'a>) -> Result<ViewMut<'a>> {
        for (d, (before, _)) in self.gaps.iter().enumerate() {
            view = view.narrow(d, *before, self.shape[d])?;
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Each element of the storage that is no value is guarded, in every layout.
    #[test]
    fn values_lie_between_guards_and_an_overwritten_one_is_found() {
        let host = HostTensor::from_slice(&[1i32, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12], &[2, 3, 2]).unwrap();
        for layout in [Layout::Gapless, Layout::Padded, Layout::Aligned] {
            let mut operands = Operands::new(layout, 7);
            let id = operands.write_over("out", host.clone());
            let (operand, places) = (&operands.writes[id.index], operands.written_places(id.index));
            let before = operand.storage(false).unwrap();
            let memory = before.to_vec::<i32>().unwrap();
            let values: Vec<i32> = (0..memory.len()).filter(|&i| places[i].is_some()).map(|i| memory[i]).collect();
            assert_eq!(values, host.to_vec::<i32>().unwrap(), "{layout}");
            assert_eq!(operand.take_out(&before, &before).unwrap(), (host.clone(), None), "{layout}");
            for at in 0..memory.len() {
                let mut after = memory.clone();
                after[at] = -1;
                let after = HostTensor::from_slice(&after, before.shape()).unwrap();
                let stray = operand.take_out(&before, &after).unwrap().1;
                let message = format!("out: element {at} of the guard band around the output was overwritten");
                assert_eq!(stray, if places[at].is_none() { Some(message) } else { None }, "{layout}");
            }
        }
    }

    #[test]
    fn halves_are_views_of_one_operand_in_memory() {
        let numbers: Vec<f32> = (0..24).map(|i| i as f32).collect();
        let mut operands = Operands::new(Layout::Gapless, 7);
        let [k, v] = operands.read_halves("kv", HostTensor::from_slice(&numbers, &[1, 3, 4, 2]).unwrap());
        assert_eq!(
            (k.index, operands.values(v).unwrap()),
            (v.index, [4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23].map(f64::from).to_vec())
        );
        let spec = operands.read_spec(v).unwrap();
        assert_eq!((spec.shape(), spec.strides()), (&[1, 3, 2, 2][..], &[24, 8, 2, 1][..]));
        assert_eq!(operands.take(k).unwrap().elements(), 24);
        let message = operands.take(v).unwrap_err().to_string();
        assert_eq!(message, "verify: kv: expected values without gaps or repeats, got gapless");
    }
}
