//! Common code of ops and bridge calls: run, or prepare and enqueue on the caller's stream.

use std::any::Any;
use std::ffi::c_void;
use std::fmt::Debug;

#[cfg(feature = "checkpoint")]
use xattn::PreparedBridge;
use xattn::ops::{Operands, visit};
use xattn::{Device, DeviceKind, Dispatch, Error, Prepared, Recorder, Spec, View, ViewMut, Workspace};

use crate::device::{DeviceHandle, xattn_device};
use crate::handle;
use crate::status::{Fault, Result, expect_out, guard, xattn_status};
use crate::tensor::{Operand, memory};

/// The operands of a call as C described them.
pub(crate) type Args<C> = <C as Operands>::Args<Operand, Operand>;

/// An op or bridge call, checked and planned for one device and one set of shapes. Any thread may
/// enqueue it.
pub struct xattn_prepared {
    _opaque: [u8; 0],
}

/// Behind a `xattn_prepared`.
pub(crate) struct PreparedHandle {
    device: Device,
    call: &'static str,
    workspace_bytes: usize,
    /// The op, or what a bridge call was prepared with beside its operands.
    parameters: Box<dyn Any + Send + Sync>,
    /// A `Prepared<O>` or a `PreparedBridge<C>`.
    plan: Box<dyn Any + Send + Sync>,
}

impl handle::Kind for PreparedHandle {
    const NAME: &'static str = "xattn_prepared";
}

fn specs<C: Operands>(args: &Args<C>) -> Result<C::Args<Spec, Spec>> {
    Ok(C::map(C::as_ref(args), &mut visit(|_, r: &Operand| Ok(r.spec), |_, w: &Operand| Ok(w.spec)))?)
}

/// SAFETY: as [`Operand::view_mut`] for every operand.
unsafe fn views<'a, C: Operands>(device: &Device, args: Args<C>) -> xattn::Result<C::Args<View<'a>, ViewMut<'a>>> {
    C::map(
        args,
        &mut visit(
            // SAFETY: passed on.
            |_, r: Operand| unsafe { r.view(device) },
            // SAFETY: passed on.
            |_, w: Operand| unsafe { w.view_mut(device) },
        ),
    )
}

/// Checks, plans, runs and waits.
///
/// # Safety
/// Every operand's memory is as described, alive, and not used in conflict until this returns.
pub(crate) unsafe fn run<O: Dispatch>(device: *const xattn_device, op: &O, args: Args<O>) -> Result {
    let device = handle::find::<DeviceHandle, _>(O::NAME, "device", device)?;
    // SAFETY: passed on.
    let views = unsafe { views::<O>(&device.0, args) }?;
    Ok(op.run(&device.0, views)?)
}

/// Checks and plans.
///
/// # Safety
/// `out` is null or may be written.
pub(crate) unsafe fn prepare<O: Dispatch>(
    device: *const xattn_device,
    op: &O,
    args: &Args<O>,
    out: *mut *mut xattn_prepared,
) -> Result
where
    O::Args<Spec, Spec>: Send + Sync,
{
    let device = handle::find::<DeviceHandle, _>(O::NAME, "device", device)?;
    expect_out(O::NAME, out)?;
    let plan = op.prepare(&device.0, specs::<O>(args)?)?;
    let prepared = PreparedHandle {
        device: device.0.clone(),
        call: O::NAME,
        workspace_bytes: plan.workspace_bytes(),
        parameters: Box::new(op.clone()),
        plan: Box::new(plan),
    };
    // SAFETY: checked not to be null; the caller's promise.
    unsafe { out.write(handle::register(prepared)?) };
    Ok(())
}

/// Keeps a bridge call that was planned with `plan`.
///
/// # Safety
/// `out` is null or may be written.
#[cfg(feature = "checkpoint")]
pub(crate) unsafe fn prepare_bridge<C: Operands, P: Send + Sync + 'static>(
    device: &Device,
    parameters: P,
    args: &Args<C>,
    plan: impl FnOnce(C::Args<Spec, Spec>) -> xattn::Result<PreparedBridge<C>>,
    out: *mut *mut xattn_prepared,
) -> Result
where
    C::Args<Spec, Spec>: Send + Sync,
{
    expect_out(C::NAME, out)?;
    let plan = plan(specs::<C>(args)?)?;
    let prepared = PreparedHandle {
        device: device.clone(),
        call: C::NAME,
        workspace_bytes: plan.workspace_bytes(),
        parameters: Box::new(parameters),
        plan: Box::new(plan),
    };
    // SAFETY: checked not to be null; the caller's promise.
    unsafe { out.write(handle::register(prepared)?) };
    Ok(())
}

/// Plans a bridge call, runs it and waits.
///
/// # Safety
/// As [`run`].
#[cfg(feature = "checkpoint")]
pub(crate) unsafe fn run_bridge<C: Operands>(
    device: &Device,
    args: Args<C>,
    plan: impl FnOnce(C::Args<Spec, Spec>) -> xattn::Result<PreparedBridge<C>>,
) -> Result {
    let plan = plan(specs::<C>(&args)?)?;
    // SAFETY: passed on.
    let views = unsafe { views::<C>(device, args) }?;
    Ok(plan.run(views)?)
}

/// Scratch memory and stream of an enqueued call.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    pub workspace: *mut c_void,
    pub workspace_bytes: u64,
    pub stream: *mut c_void,
}

impl Place {
    /// SAFETY: as [`enqueue`].
    unsafe fn open(self, call: &'static str, device: &Device) -> Result<(Recorder<'static>, Workspace)> {
        let bytes = usize::try_from(self.workspace_bytes)
            .map_err(|_| Fault::argument(call, "workspace_bytes", "a size of this machine", self.workspace_bytes))?;
        if self.workspace.is_null() && bytes > 0 {
            return Err(Fault::argument(call, "workspace", format!("an address of {bytes} bytes"), "null"));
        }
        let memory = memory(device, self.workspace.cast(), bytes)?;
        // SAFETY: the caller's promise.
        let workspace = unsafe { Workspace::from_raw(memory, bytes) }?;
        let recorder = match device.kind() {
            DeviceKind::Cpu | DeviceKind::Reference if self.stream.is_null() => Recorder::Host,
            kind @ (DeviceKind::Cpu | DeviceKind::Reference) => {
                let actual = format!("{:p}", self.stream);
                return Err(Fault::argument(call, "stream", format!("null on {kind}"), actual));
            }
            #[cfg(feature = "cuda")]
            // SAFETY: a `CUstream` of the device's context, alive: the caller's promise.
            DeviceKind::Cuda => Recorder::Cuda(unsafe { xattn::CudaRecorder::from_raw_stream(self.stream.cast()) }),
            kind => return Err(Error::argument(call, "device", "one whose streams C can name", kind).into()),
        };
        Ok((recorder, workspace))
    }
}

fn plan<'p, T: 'static>(prepared: &'p PreparedHandle, call: &'static str) -> Result<&'p T> {
    let other = || Fault::argument(call, "prepared", format!("one of {call}"), format!("one of {}", prepared.call));
    prepared.plan.downcast_ref().ok_or_else(other)
}

/// Refuses other parameters than the prepared ones.
fn expect_parameters<P: PartialEq + Debug + 'static>(prepared: &PreparedHandle, call: &str, given: &P) -> Result {
    match prepared.parameters.downcast_ref::<P>() {
        Some(prepared) if prepared == given => Ok(()),
        Some(prepared) => {
            Err(Fault::argument(call, "parameters", format!("{prepared:?} as prepared"), format!("{given:?}")))
        }
        None => Err(Fault::argument(call, "prepared", format!("one of {call}"), format!("one of {}", prepared.call))),
    }
}

/// Enqueues a prepared op.
///
/// # Safety
/// Operands and workspace are as described, alive, and not used in conflict until the stream has
/// passed this point.
pub(crate) unsafe fn enqueue<O: Dispatch>(
    prepared: *const xattn_prepared,
    op: &O,
    args: Args<O>,
    place: Place,
) -> Result
where
    O::Args<Spec, Spec>: Send + Sync,
{
    let prepared = handle::find::<PreparedHandle, _>(O::NAME, "prepared", prepared)?;
    let plan: &Prepared<O> = plan(&prepared, O::NAME)?;
    expect_parameters(&prepared, O::NAME, op)?;
    // SAFETY: passed on.
    let (mut recorder, mut workspace) = unsafe { place.open(O::NAME, &prepared.device) }?;
    // SAFETY: passed on.
    let views = unsafe { views::<O>(&prepared.device, args) }?;
    Ok(plan.enqueue(&mut recorder, views, &mut workspace)?)
}

/// Enqueues a prepared bridge call.
///
/// # Safety
/// As [`enqueue`].
#[cfg(feature = "checkpoint")]
pub(crate) unsafe fn enqueue_bridge<C: Operands, P: PartialEq + Debug + 'static>(
    prepared: *const xattn_prepared,
    parameters: &P,
    args: Args<C>,
    place: Place,
) -> Result
where
    C::Args<Spec, Spec>: Send + Sync,
{
    let prepared = handle::find::<PreparedHandle, _>(C::NAME, "prepared", prepared)?;
    let plan: &PreparedBridge<C> = plan(&prepared, C::NAME)?;
    expect_parameters(&prepared, C::NAME, parameters)?;
    // SAFETY: passed on.
    let (mut recorder, mut workspace) = unsafe { place.open(C::NAME, &prepared.device) }?;
    // SAFETY: passed on.
    let views = unsafe { views::<C>(&prepared.device, args) }?;
    Ok(plan.enqueue(&mut recorder, views, &mut workspace)?)
}

/// Bytes of scratch memory that enqueueing needs, aligned to 64, per stream.
///
/// # Safety
/// `bytes` is null or may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xattn_prepared_workspace_bytes(
    prepared: *const xattn_prepared,
    bytes: *mut u64,
) -> xattn_status {
    guard(|| {
        let prepared = handle::find::<PreparedHandle, _>("xattn_prepared_workspace_bytes", "prepared", prepared)?;
        expect_out("xattn_prepared_workspace_bytes", bytes)?;
        // SAFETY: not null; the caller's promise.
        unsafe { bytes.write(prepared.workspace_bytes as u64) };
        Ok(())
    })
}

/// Frees a prepared call. Null is fine.
#[unsafe(no_mangle)]
pub extern "C" fn xattn_prepared_free(prepared: *mut xattn_prepared) -> xattn_status {
    guard(|| handle::free::<PreparedHandle, _>("xattn_prepared_free", prepared))
}
