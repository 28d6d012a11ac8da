//! NVRTC: from the text of a kernel to a cubin for exactly this device.
//!
//! Its few functions are looked up by hand, not through cudarc: `libraries.rs` says where the
//! library may come from, and an old one that lacks CUBINs is an error, not a panic.

use std::ffi::{CStr, CString, c_char, c_int};
use std::path::PathBuf;
use std::ptr;

use libloading::Library;

use super::kernel_text::KernelText;
use crate::backend::cuda::runtime::NAME;
use crate::backend::cuda::runtime::arch::Arch;
use crate::backend::cuda::runtime::libraries::{Found, Wanted};
use crate::{Error, Result};

/// Newest first where it is named by version.
const LIBRARY: Wanted = Wanted {
    name: "NVRTC",
    files: if cfg!(windows) {
        &["nvrtc64_130_0.dll", "nvrtc64_120_0.dll", "nvrtc64_112_0.dll"]
    } else {
        &["libnvrtc.so", "libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so.11.2"]
    },
    beside: Some("nvrtc-builtins"),
};

type Program = *mut std::ffi::c_void;
type Answer = c_int;

const SUCCESS: Answer = 0;
const OUT_OF_MEMORY: Answer = 1;
/// Here: an architecture that this NVRTC does not know.
const INVALID_OPTION: Answer = 5;
const COMPILATION: Answer = 6;

struct Calls {
    create: unsafe extern "C" fn(
        *mut Program,
        *const c_char,
        *const c_char,
        c_int,
        *const *const c_char,
        *const *const c_char,
    ) -> Answer,
    destroy: unsafe extern "C" fn(*mut Program) -> Answer,
    compile: unsafe extern "C" fn(Program, c_int, *const *const c_char) -> Answer,
    cubin_size: Size,
    cubin: Text,
    ptx_size: Size,
    ptx: Text,
    log_size: Size,
    log: Text,
    error: unsafe extern "C" fn(Answer) -> *const c_char,
    count_archs: unsafe extern "C" fn(*mut c_int) -> Answer,
    archs: unsafe extern "C" fn(*mut c_int) -> Answer,
}

type Size = unsafe extern "C" fn(Program, *mut usize) -> Answer;
type Text = unsafe extern "C" fn(Program, *mut c_char) -> Answer;

pub(in crate::backend::cuda) struct Nvrtc {
    calls: Calls,
    version: (i32, i32),
    /// The pointers in `calls` are into it.
    _library: Library,
}

/// What to compile to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::backend::cuda) enum Kind {
    /// Machine code of one architecture.
    Cubin,
    /// What the driver compiles once more, where it or NVRTC is too old for the other.
    Ptx,
}

impl Kind {
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Cubin => "cubin",
            Kind::Ptx => "ptx",
        }
    }
}

/// NVRTC from these folders or the default places, or what was looked for. Looked for once.
pub(in crate::backend::cuda) fn nvrtc(folders: &[PathBuf]) -> Result<&'static Nvrtc, String> {
    static FOUND: Found<Nvrtc> = Found::new();
    FOUND.get(&LIBRARY, folders, Nvrtc::of)
}

impl Nvrtc {
    fn of(library: Library) -> Result<Self, String> {
        macro_rules! symbol {
            ($name:literal) => {
                // SAFETY: the field's type is that of the function in nvrtc.h.
                *unsafe { library.get($name) }.map_err(|_| format!("NVRTC is too old: it has no {}", $name))?
            };
        }
        let calls = Calls {
            create: symbol!("nvrtcCreateProgram"),
            destroy: symbol!("nvrtcDestroyProgram"),
            compile: symbol!("nvrtcCompileProgram"),
            cubin_size: symbol!("nvrtcGetCUBINSize"),
            cubin: symbol!("nvrtcGetCUBIN"),
            ptx_size: symbol!("nvrtcGetPTXSize"),
            ptx: symbol!("nvrtcGetPTX"),
            log_size: symbol!("nvrtcGetProgramLogSize"),
            log: symbol!("nvrtcGetProgramLog"),
            error: symbol!("nvrtcGetErrorString"),
            count_archs: symbol!("nvrtcGetNumSupportedArchs"),
            archs: symbol!("nvrtcGetSupportedArchs"),
        };
        let ask: unsafe extern "C" fn(*mut c_int, *mut c_int) -> Answer = symbol!("nvrtcVersion");
        let mut version = (0, 0);
        // SAFETY: writes two numbers.
        let answer = unsafe { ask(&mut version.0, &mut version.1) };
        if answer != SUCCESS {
            return Err(format!("NVRTC does not tell its version: code {answer}"));
        }
        Ok(Nvrtc { calls, version, _library: library })
    }

    /// Major and minor.
    pub fn version(&self) -> (i32, i32) {
        self.version
    }

    /// Compiles a text for `arch`, to machine code or to PTX. Errors carry the compiler's log.
    pub fn compile(&self, source: &KernelText, text: &str, arch: Arch, kind: Kind, line_info: bool) -> Result<Vec<u8>> {
        let target = match kind {
            Kind::Cubin => arch.to_string(),
            Kind::Ptx => format!("compute_{}", self.newest(arch)),
        };
        let mut options = vec![format!("--gpu-architecture={target}"), "--std=c++17".into(), "--fmad=true".into()];
        if line_info {
            options.push("--generate-line-info".into());
        }
        let fail = |what: String| Error::Unavailable {
            backend: NAME,
            reason: format!("{}: {} for {target}: {what}", source.op(), source.entry()),
        };
        let c_string = |text: &str| CString::new(text).map_err(|_| fail("the text contains a zero byte".into()));
        let (text, name) = (c_string(text)?, c_string(&format!("{}.cu", source.entry()))?);
        let options: Vec<CString> = options.iter().map(|option| c_string(option)).collect::<Result<_>>()?;
        let pointers: Vec<*const c_char> = options.iter().map(|option| option.as_ptr()).collect();

        let mut program = Compilation { calls: &self.calls, program: ptr::null_mut() };
        // SAFETY: both strings outlive the program; there are no headers.
        let answer = unsafe {
            let (none, names) = (ptr::null(), ptr::null());
            (self.calls.create)(&mut program.program, text.as_ptr(), name.as_ptr(), 0, none, names)
        };
        if answer != SUCCESS {
            return Err(fail(self.words(answer)));
        }
        // SAFETY: the program exists, and the options outlive the call.
        match unsafe { (self.calls.compile)(program.program, pointers.len() as c_int, pointers.as_ptr()) } {
            SUCCESS => {}
            COMPILATION => {
                let log = program.text(self.calls.log_size, self.calls.log).unwrap_or_default();
                return Err(fail(format!("the kernel does not compile: {}", first_lines(&log))));
            }
            INVALID_OPTION if kind == Kind::Cubin => {
                return Err(Error::Unsupported {
                    op: source.op(),
                    what: format!("{} for {target}", source.entry()),
                    backend: "nvrtc",
                    available: format!(
                        "up to compute_{} in NVRTC {}.{}",
                        self.newest(arch),
                        self.version.0,
                        self.version.1
                    ),
                });
            }
            OUT_OF_MEMORY => return Err(Error::OutOfMemory { backend: NAME, purpose: "the compiler", bytes: 0 }),
            answer => {
                let log = program.text(self.calls.log_size, self.calls.log).unwrap_or_default();
                return Err(fail(format!("{}: {}", self.words(answer), first_lines(&log))));
            }
        }
        let (size, get) = match kind {
            Kind::Cubin => (self.calls.cubin_size, self.calls.cubin),
            Kind::Ptx => (self.calls.ptx_size, self.calls.ptx),
        };
        match program.text(size, get) {
            Ok(image) if !image.is_empty() => Ok(image),
            Ok(_) => Err(fail(format!("NVRTC gives an empty {}", kind.name()))),
            Err(answer) => Err(fail(self.words(answer))),
        }
    }

    /// The newest virtual architecture that this NVRTC knows and the device can run.
    fn newest(&self, arch: Arch) -> u32 {
        let mut count = 0;
        // SAFETY: writes one number.
        if unsafe { (self.calls.count_archs)(&mut count) } != SUCCESS {
            return 80;
        }
        let mut known = vec![0; usize::try_from(count).unwrap_or(0)];
        // SAFETY: writes `count` numbers.
        if unsafe { (self.calls.archs)(known.as_mut_ptr()) } != SUCCESS {
            return 80;
        }
        let own = arch.major * 10 + arch.minor;
        known.into_iter().filter_map(|n| u32::try_from(n).ok()).filter(|&n| n <= own).max().unwrap_or(80)
    }

    fn words(&self, answer: Answer) -> String {
        // SAFETY: NVRTC returns a constant string for any code.
        let text = unsafe { (self.calls.error)(answer) };
        if text.is_null() {
            return format!("NVRTC answers {answer}");
        }
        // SAFETY: as above.
        format!("NVRTC answers {}", unsafe { CStr::from_ptr(text) }.to_string_lossy())
    }
}

/// A program that is destroyed when done with.
struct Compilation<'a> {
    calls: &'a Calls,
    program: Program,
}

impl Compilation<'_> {
    /// What the compiler made, by its size and the call that writes it.
    fn text(&self, size: Size, get: Text) -> Result<Vec<u8>, Answer> {
        let mut bytes = 0;
        // SAFETY: the program exists.
        let answer = unsafe { size(self.program, &mut bytes) };
        if answer != SUCCESS {
            return Err(answer);
        }
        let mut text = vec![0u8; bytes];
        // SAFETY: there is room for as many bytes as NVRTC says it writes.
        let answer = unsafe { get(self.program, text.as_mut_ptr().cast()) };
        if answer == SUCCESS { Ok(text) } else { Err(answer) }
    }
}

impl Drop for Compilation<'_> {
    fn drop(&mut self) {
        if !self.program.is_null() {
            // SAFETY: created by `create`, and not used again.
            let _ = unsafe { (self.calls.destroy)(&mut self.program) };
        }
    }
}

/// As much of a log as fits a message.
fn first_lines(log: &[u8]) -> String {
    let text = String::from_utf8_lossy(log);
    let lines: Vec<&str> =
        text.trim_matches(['\0', '\n', ' ']).lines().filter(|line| !line.trim().is_empty()).collect();
    let more = lines.len().saturating_sub(6);
    let mut first = lines[..lines.len() - more].join(" | ");
    if more > 0 {
        first.push_str(&format!(" | … {more} lines more"));
    }
    first
}

#[cfg(test)]
mod tests {
    use super::super::kernel_text::{File, KernelText};
    use super::*;

    fn source(text: &'static str) -> KernelText {
        KernelText::new("test", "test_entry", File { path: "kernels/test.cu", text }, &["out"]).threads(32)
    }

    /// NVRTC, or its stand-in; without either the test is reported as skipped.
    fn compiler() -> Option<&'static Nvrtc> {
        match nvrtc(&[]) {
            Ok(nvrtc) => Some(nvrtc),
            Err(looked) => {
                assert!(std::env::var_os("XATTN_EMULATOR_SEED").is_none(), "{looked}");
                eprintln!("skipped: {looked}");
                None
            }
        }
    }

    const HOPPER: Arch = Arch { major: 9, minor: 0 };

    #[test]
    fn a_kernel_compiles_and_one_that_does_not_says_where() {
        let Some(nvrtc) = compiler() else { return };
        let good = source(
            "struct P { u32 n; };\nstruct O { Operand out; };\n\
             KERNEL(P, O) { data<f32>(operands.out)[threadIdx.x] = f32(params.n); }\n",
        );
        for line_info in [false, true] {
            let image = nvrtc.compile(&good, &good.text(), HOPPER, Kind::Cubin, line_info).unwrap();
            assert_eq!(&image[..4], b"\x7fELF");
        }

        let bad =
            source("struct P { u32 n; };\nstruct O { Operand out; };\nKERNEL(P, O) {\n    nowhere = params.n;\n}\n");
        let error = nvrtc.compile(&bad, &bad.text(), HOPPER, Kind::Cubin, false).unwrap_err();
        assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
        let text = error.to_string();
        let words = "cuda is unavailable: test: test_entry for sm_90a: the kernel does not compile: ";
        assert!(text.starts_with(words), "{text}");
        assert!(text.contains("kernels/test.cu") && text.contains("nowhere"), "{text}");
        assert!(text.contains("test.cu:4:") || text.contains("test.cu(4)"), "the line: {text}");
        assert!(!text.contains('\n'), "one line: {text}");
    }

    #[test]
    fn an_architecture_that_the_compiler_does_not_know_is_told_apart() {
        let Some(nvrtc) = compiler() else { return };
        let source = source("struct P { u32 n; };\nstruct O { Operand out; };\nKERNEL(P, O) {}\n");
        let future = Arch { major: 99, minor: 0 };
        let error = nvrtc.compile(&source, &source.text(), future, Kind::Cubin, false).unwrap_err();
        assert!(matches!(error, Error::Unsupported { .. }), "{error:?}");
        let (text, words) =
            (error.to_string(), "test: test_entry for sm_990 is not supported by nvrtc; available: up to ");
        assert!(text.starts_with(words), "{text}");
        assert!(nvrtc.newest(future) >= 90, "the newest it knows: {}", nvrtc.newest(future));
        assert_eq!(nvrtc.newest(Arch { major: 8, minor: 0 }), 80);
    }

    #[test]
    fn a_long_log_is_cut() {
        let log = (1..=9).map(|n| format!("line {n}\n\n")).collect::<String>() + "\0";
        let cut = "line 1 | line 2 | line 3 | line 4 | line 5 | line 6 | … 3 lines more";
        assert_eq!(first_lines(log.as_bytes()), cut);
        assert_eq!(first_lines(b"one\n\0"), "one");
        assert_eq!(first_lines(b""), "");
    }
}
