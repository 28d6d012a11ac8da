//! Blocks notice what they should: accesses outside of operands that lie about their memory, by
//! kernels, in a process of their own.

use std::process::Command;

use xattn::ops::{GatedResidual, GatedResidualArgs, Source};
use xattn::{DType, Device, Spec, View, ViewMut};

use crate::block::Block;
use crate::support::{Buffer, call};

/// Names what `planted` does, when it is set.
const PLANTED: &str = "XATTN_PLANTED";

/// Reads or writes one element beside an operand.
#[test]
#[ignore = "ends its process; `accesses_outside_of_operands_are_noticed` runs it in one of its own"]
fn planted() {
    let Ok(what) = std::env::var(PLANTED) else { return };
    let (behind, writes) = (what.contains("behind"), what.contains("writes"));
    let n = 24;
    let block = |behind: bool| {
        #[cfg(unix)]
        if std::env::var_os("XATTN_BLOCKS").is_none() {
            return Block::in_pages(4 * n, behind);
        }
        let _ = behind;
        Block::new(4 * n, 4)
    };
    let (x, out) = (block(behind), block(behind));
    let at = |block: &Block, wrong: bool| match (wrong, behind) {
        (false, _) => block.address(),
        (true, true) => block.address().wrapping_add(4),
        (true, false) => block.address().wrapping_sub(4),
    };
    let spec = Spec::contiguous(DType::F32, &[1, 1, n]).unwrap();
    let gate = Buffer::filled(DType::F32, &[1], 0, || 0.5);
    // SAFETY: one of the two addresses is wrong by an element, which is what is planted.
    let x = unsafe { View::from_raw_host(spec, at(&x, !writes), 4 * n) }.unwrap();
    // SAFETY: as above.
    let out = unsafe { ViewMut::from_raw_host(spec, at(&out, writes), 4 * n) }.unwrap();
    let y = Buffer::filled(DType::F32, &[1, 1, n], 0, || 0.5);
    call(&GatedResidual, &Device::cpu(), GatedResidualArgs::new(Source::From(x), y.view(), gate.view(), out)).unwrap();
}

#[test]
fn accesses_outside_of_operands_are_noticed() {
    let heap = std::env::var_os("XATTN_BLOCKS").is_some();
    let sanitized = std::env::var_os("ASAN_OPTIONS").is_some();
    if heap && !sanitized || !cfg!(unix) {
        eprintln!("SKIPPED: nobody watches blocks of the heap here");
        return;
    }
    for what in ["reads behind", "writes behind", "reads in front", "writes in front"] {
        let mut planted = Command::new(std::env::current_exe().unwrap());
        planted.args(["--exact", "guards::planted", "--include-ignored", "--nocapture"]).env(PLANTED, what);
        let output = planted.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "a kernel that {what} an operand went unnoticed");
        if sanitized {
            let kind = if what.starts_with("reads") { "READ of size" } else { "WRITE of size" };
            assert!(said.contains("heap-buffer-overflow") && said.contains(kind), "{what}: {said}");
            continue;
        }
        #[cfg(unix)]
        {
            use std::os::unix::process::ExitStatusExt;
            // SIGSEGV; on some systems SIGBUS.
            let signal = output.status.signal();
            assert!(signal == Some(11) || signal == Some(10), "{what}: {:?}: {said}", output.status);
        }
    }
}
