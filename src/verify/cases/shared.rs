//! A case on several threads at once.

use std::sync::Barrier;

use super::CaseOp;
use super::call::{Call, Execution};
use crate::{Device, Dispatch, Error, Prepared, Result};

/// As [`super::Case::share`].
pub(super) fn run<C: CaseOp>(case: &C, device: &Device, threads: usize, calls: usize) -> Result<()>
where
    Prepared<C::Op>: Sync,
{
    let call = case.call()?;
    let common = prepare(case, &call, device)?;
    let expected = execute(case, &call, device, &common)?;
    let begin = Barrier::new(threads);
    let thread = |number: usize| {
        begin.wait();
        // Threads share only the device and the prepared op.
        let call = case.call()?;
        let own = if number % 4 == 3 { Some(prepare(case, &call, device)?) } else { None };
        for n in 0..calls {
            let seen = execute(case, &call, device, own.as_ref().unwrap_or(&common))?;
            compare(&expected, &seen, number, n)?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let thread = &thread;
        let running: Vec<_> = (0..threads).map(|number| scope.spawn(move || thread(number))).collect();
        // ThreadSanitizer does not see that the end of a scope orders anything, so each is joined.
        let done: Vec<Result<()>> = running
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect();
        done.into_iter().collect()
    })
}

fn prepare<C: CaseOp>(case: &C, call: &Call<C::Op>, device: &Device) -> Result<Prepared<C::Op>> {
    let args = case.lower(call, call.ids()?, device, false)?;
    call.op.prepare(device, call.shapes(args)?)
}

fn execute<C: CaseOp>(case: &C, call: &Call<C::Op>, device: &Device, prepared: &Prepared<C::Op>) -> Result<Execution> {
    call.run(device, false, case.lower(call, call.ids()?, device, false)?, Some(prepared))
}

fn compare(expected: &Execution, seen: &Execution, thread: usize, call: usize) -> Result<()> {
    for ((name, expected), (_, output)) in expected.outputs.iter().zip(&seen.outputs) {
        if expected.bytes()? != output.bytes()? {
            let same = "the bits that one thread gets alone";
            return Err(Error::argument("verify", *name, same, format!("others in call {call} of thread {thread}")));
        }
    }
    match &seen.stray {
        Some(stray) => Err(Error::argument("verify", "memory", "writes to outputs alone", stray)),
        None => Ok(()),
    }
}
