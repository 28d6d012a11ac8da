//! Benchmarks of single ops. Their cases are those of `verify`; a file per op has what only a
//! benchmark asks of them.

mod attention;
mod gated_residual;
mod linear;
mod media_index;
mod norm;

use std::ops::Range;
use std::sync::Arc;

use serde_json::Value;

pub(super) use attention::{over_media, plain, rule_json, unread, upload};

use super::call::{Call, Copying, Runnable, against_reference};
use super::sample;
use super::visited::Visited;
use crate::ops::{Operands, for_each_op, visit};
use crate::threads::Pool;
use crate::verify::cases::{self, CaseOp, declare::Real};
use crate::verify::compare::Outcome;
use crate::{DType, Device, Error, HostTensor, Result, Spec, Tensor, View};

/// Part of a case that the reference recomputes.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Window {
    /// The batch entry.
    pub entry: usize,
    /// Rows of it.
    pub rows: Vec<Range<usize>>,
    /// Columns of the result; of `attention`, K/V heads with their query heads.
    pub columns: Range<usize>,
}

impl Window {
    /// All of `rows` rows of each entry, or those of a sample. `each` numbers of a row are compared.
    fn of_rows(batch: usize, rows: usize, each: usize) -> Vec<Self> {
        let count = if rows * each <= ELEMENTS { rows } else { sample::ROWS };
        let runs = sample::spread(&mut sample::chooser(), 0..rows, count);
        (0..batch).map(|entry| Window { entry, rows: runs.clone(), columns: 0..each }).collect()
    }
}

/// Numbers of an entry that the reference recomputes whole, where a row's result follows from a row
/// of some operands and all of the others.
const ELEMENTS: usize = 1 << 22;

/// What a benchmark asks of an op's case.
pub(super) trait Benchmark: CaseOp {
    /// The sizes that all operands follow from.
    fn sizes(&self) -> Value;

    /// What the reference recomputes.
    fn windows(&self) -> Vec<Window>;

    /// The part of operand `name` that a window reads. True: of its dimension 1, only the window's
    /// rows.
    ///
    /// # Errors
    /// An operand of another shape than the case's own.
    fn part<'v>(&self, window: &Window, name: &str, operand: View<'v>) -> Result<(View<'v>, bool)>;

    /// Key blocks that a kernel visits, for one head.
    fn visited(&self) -> Option<Visited> {
        None
    }

    /// Bytes of K and V that no row sees.
    ///
    /// # Errors
    /// A visibility rule that the case cannot have.
    fn unread(&self) -> Result<usize> {
        Ok(0)
    }
}

/// A case, whatever its op.
pub(super) trait OpCase {
    fn sizes(&self) -> Value;
    fn visited(&self) -> Option<Visited>;
    /// Puts the operands on a device.
    fn build(&self, device: &Device, dtype: DType) -> Result<Box<dyn BuiltOp>>;
}

/// A case of an op with its operands on a device.
pub(super) trait BuiltOp {
    fn runnable(&mut self) -> &mut dyn Runnable;
    /// Judges outputs by the reference, in windows. How many rows were compared.
    fn check(&self, outputs: &[HostTensor<'static>]) -> Result<(usize, Vec<Outcome>)>;
}

macro_rules! op_case {
    ($($word:ident $op:ident $case:ident),* $(,)?) => {
        /// What a benchmark asks of a case.
        pub(super) fn op_case(case: &cases::Case) -> &dyn OpCase {
            match case {
                $(cases::Case::$op(case) => case),*
            }
        }
    };
}
for_each_op!(op_case);

impl<K: Benchmark + 'static> OpCase for K
where
    HostArgs<K>: Send + Sync,
{
    fn sizes(&self) -> Value {
        Benchmark::sizes(self)
    }

    fn visited(&self) -> Option<Visited> {
        Benchmark::visited(self)
    }

    fn build(&self, device: &Device, dtype: DType) -> Result<Box<dyn BuiltOp>> {
        let case = self.clone().with_dtype(real(dtype)?);
        let mut source = case.call()?;
        let (call, tensors) = Call::of_case(device, &case, &mut source)?;
        let call = call.leaving(case.unread()?);
        Ok(Box::new(Built { case, source, tensors, call }))
    }
}

/// The word of a dtype.
pub(super) fn real(dtype: DType) -> Result<Real> {
    dtype.to_string().parse().map_err(|_| Error::argument("bench", "dtype", "f32, f16 or bf16", dtype))
}

struct Built<K: Benchmark> {
    case: K,
    /// The case's call. Its operands moved to `tensors`, except matrices of a prepared weight.
    source: cases::call::Call<K::Op>,
    /// Operands on the device.
    tensors: Vec<Option<Arc<Tensor>>>,
    call: Call<K::Op>,
}

impl<K: Benchmark> BuiltOp for Built<K>
where
    HostArgs<K>: Send + Sync,
{
    fn runnable(&mut self) -> &mut dyn Runnable {
        &mut self.call
    }

    fn check(&self, outputs: &[HostTensor<'static>]) -> Result<(usize, Vec<Outcome>)> {
        let (device, host) = (self.call.device(), Device::reference());
        let gather = |copy: &mut Copying<'_>| {
            let read = |name, id: &cases::call::OperandId| match self.tensors.get(id.index).and_then(Option::as_ref) {
                Some(tensor) => copy(name, device, id.part_of(tensor.view())?),
                None => copy(name, &host, self.source.operands.tensor(*id)?.view()?),
            };
            <K::Op>::map(<K::Op>::as_ref(&self.source.args), &mut visit(read, |_, _| Ok(())))
        };
        judge_windows(&self.case, &self.source.op, &gather, outputs)
    }
}

type HostArgs<K> = <<K as CaseOp>::Op as Operands>::Args<HostTensor<'static>, Spec>;
type Gathered<K> = <<K as CaseOp>::Op as Operands>::Args<HostTensor<'static>, ()>;

/// Judges the windows of a case by the reference. `gather` copies operands, `outputs` are whole.
/// How many rows were compared.
pub(super) fn judge_windows<K: Benchmark>(
    case: &K,
    op: &K::Op,
    gather: &dyn Fn(&mut Copying<'_>) -> Result<Gathered<K>>,
    outputs: &[HostTensor<'static>],
) -> Result<(usize, Vec<Outcome>)>
where
    HostArgs<K>: Send + Sync,
{
    let (windows, host) = (case.windows(), Device::reference());
    let mut gathered = Vec::with_capacity(windows.len());
    for window in &windows {
        let mut copy = |name: &'static str, device: &Device, view: View<'_>| match case.part(window, name, view)? {
            (part, true) => sample::rows_of(device, part, &window.rows),
            (part, false) => device.download(&part),
        };
        let (mut whole, mut actual) = (outputs.iter(), Vec::new());
        let missing = || Error::argument("bench", "outputs", "one per written operand", "fewer");
        let args = <K::Op>::map(
            gather(&mut copy)?,
            &mut visit(
                |_, read| Ok(read),
                |name, ()| {
                    let output = copy(name, &host, whole.next().ok_or_else(missing)?.view()?)?;
                    let spec = Spec::contiguous(output.dtype(), output.shape());
                    actual.push(output);
                    spec
                },
            ),
        )?;
        gathered.push((args, actual));
    }
    let judged = Pool::callers().map(gathered.len(), |i| {
        let (args, actual) = &gathered[i];
        against_reference(op, args, actual, case.dtype().dtype())
    });
    let judged: Vec<Vec<Outcome>> = judged.into_iter().collect::<Result<_>>()?;
    let checked = windows.iter().map(|window| sample::count(&window.rows)).sum();
    Ok((checked, judged.into_iter().flatten().collect()))
}
