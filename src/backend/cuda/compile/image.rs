//! Compiled kernels: where they come from, and the module they become.
//!
//! Lookup order: the folder of `XATTN_CUDA_IMAGES`, what the program embeds (feature `cuda-aot`),
//! the disk cache, NVRTC. Folders and files are trusted by the rule of [`crate::trust`].

use std::collections::HashMap;
use std::ffi::CString;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use super::cache::{Cache, Image, Label};
use super::kernel_text::KernelText;
use super::nvrtc::{Kind, Nvrtc, nvrtc};
use super::sha256::{self, Hash};
use crate::backend::cuda::options::CudaOptions;
use crate::backend::cuda::runtime::arch::Arch;
use crate::backend::cuda::runtime::context::Context;
use crate::backend::cuda::runtime::driver::{self, CUfunction, CUresult, Fault};
use crate::backend::cuda::runtime::{NAME, probe};
use crate::{Error, Result, fork, trust};

/// Compiled kernels in the program (feature `cuda-aot`), by file name.
#[cfg(feature = "cuda-aot")]
const EMBEDDED: &[(&str, &[u8])] = include!(concat!(env!("OUT_DIR"), "/cuda_images.rs"));
#[cfg(not(feature = "cuda-aot"))]
const EMBEDDED: &[(&str, &[u8])] = &[];

/// The file of an instance in a folder of compiled kernels.
pub(in crate::backend::cuda) fn file_name(source: &KernelText, arch: Arch) -> String {
    format!("{}.{arch}.image", source.entry())
}

/// A loaded kernel.
pub(in crate::backend::cuda) struct Function {
    function: CUfunction,
    /// Keeps its code loaded.
    _context: Arc<Context>,
}

// SAFETY: handles of a context may be used from any thread in which it is current.
unsafe impl Send for Function {}
// SAFETY: as above.
unsafe impl Sync for Function {}

impl Function {
    pub fn handle(&self) -> CUfunction {
        self.function
    }
}

/// The kernels of a device, and where they come from.
pub(in crate::backend::cuda) struct Images {
    /// By hash of the text.
    functions: Mutex<HashMap<Hash, Arc<Function>>>,
    context: Arc<Context>,
    folder: Option<PathBuf>,
    /// Searched first for NVRTC and cuBLASLt.
    libraries: Vec<PathBuf>,
    cache: Cache,
    arch: Arch,
    driver_version: i32,
    line_info: bool,
}

impl fmt::Display for Images {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(folder) = &self.folder {
            write!(f, "{}, then ", folder.display())?;
        }
        if !EMBEDDED.is_empty() {
            write!(f, "{} embedded images, then ", EMBEDDED.len())?;
        }
        write!(f, "{}, then ", self.cache)?;
        match self.nvrtc() {
            Ok(nvrtc) => write!(f, "NVRTC {}.{}", nvrtc.version().0, nvrtc.version().1)?,
            Err(_) => f.write_str("nowhere (no NVRTC)")?,
        }
        if trust::is_privileged() { write!(f, " ({})", trust::NOT_ASKED) } else { Ok(()) }
    }
}

impl Images {
    pub fn new(options: &CudaOptions, context: Arc<Context>, arch: Arch, driver_version: i32) -> Result<Self> {
        let none = "no folder of compiled kernels (XATTN_CUDA_IMAGES)";
        if let Some(folder) = options.images.as_ref().filter(|folder| !folder.is_dir()) {
            return Err(Error::file(folder, none));
        }
        if let Some(relative) = options.libraries.iter().find(|folder| !folder.is_absolute()) {
            return Err(Error::argument("device", "libraries", "absolute paths", relative.display()));
        }
        let trusted =
            |folder: &PathBuf| trust::folder(folder).map_err(|e| Error::file(folder, trust::reason(folder, &e)));
        Ok(Images {
            functions: Mutex::default(),
            context,
            folder: options.images.as_ref().map(trusted).transpose()?,
            libraries: options.libraries.iter().map(trusted).collect::<Result<_>>()?,
            cache: Cache::new(&options.cache),
            arch,
            driver_version,
            line_info: options.line_info,
        })
    }

    pub fn libraries(&self) -> &[PathBuf] {
        &self.libraries
    }

    fn nvrtc(&self) -> Result<&'static Nvrtc, String> {
        nvrtc(&self.libraries)
    }

    /// The kernel of a source: loaded, found compiled, or compiled.
    pub fn function(&self, source: &KernelText) -> Result<Arc<Function>> {
        // A child of fork() may have inherited a lock whose holder is not there.
        fork::refuse(NAME)?;
        let text = source.text();
        let hash = sha256::hash(text.as_bytes());
        let functions = || self.functions.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(function) = functions().get(&hash) {
            return Ok(function.clone());
        }
        // Without the lock: other threads may look theirs up meanwhile.
        let loaded = Arc::new(self.load(source, &text, hash)?);
        Ok(functions().entry(hash).or_insert(loaded).clone())
    }

    /// Finds or compiles a text, and loads it.
    fn load(&self, source: &KernelText, text: &str, hash: Hash) -> Result<Function> {
        let label = Label { arch: self.arch.to_string(), source: hash };
        let name = file_name(source, self.arch);
        if let Some(folder) = &self.folder
            && let Some(image) = Image::read_shipped(&folder.join(&name), &label)?
        {
            return self.module(source, &image);
        }
        if let Some((_, file)) = EMBEDDED.iter().find(|(embedded, _)| *embedded == name) {
            let image = Image::parse(file, &label).map_err(|fault| Error::file(&name, format!("embedded: {fault}")))?;
            return self.module(source, &image);
        }
        let nvrtc = self.nvrtc();
        let version = nvrtc.as_ref().map_or((0, 0), |nvrtc| nvrtc.version());
        let key = label.key(version, self.driver_version, self.line_info);
        if let Some(image) = self.cache.read(&key, &label) {
            match self.module(source, &image) {
                // What the driver does not take is compiled again.
                Err(Error::Unsupported { .. }) => {}
                other => return other,
            }
        }
        let nvrtc = nvrtc.map_err(|looked| {
            let cache = &self.cache;
            let folder = match &self.folder {
                Some(folder) => format!("nor in {}", folder.display()),
                None => "and XATTN_CUDA_IMAGES names no folder".into(),
            };
            probe::unavailable(format!(
                "{}: no compiled {} for {} in {cache}, {folder}; {looked}",
                source.op(),
                source.entry(),
                self.arch
            ))
        })?;
        let make = |kind| -> Result<(Image, Function)> {
            let bytes = nvrtc.compile(source, text, self.arch, kind, self.line_info)?;
            let image = Image { kind, bytes };
            let function = self.module(source, &image)?;
            Ok((image, function))
        };
        // NVRTC too old for the device, or the driver too old for NVRTC: PTX may still load.
        let (image, function) = match make(Kind::Cubin) {
            Err(Error::Unsupported { .. }) => make(Kind::Ptx)?,
            other => other?,
        };
        self.cache.write(&key, &label, &image);
        Ok(function)
    }

    /// Loads a compiled kernel. [`Error::Unsupported`] where the driver does not take its form.
    fn module(&self, source: &KernelText, image: &Image) -> Result<Function> {
        let op = source.op();
        let entry = CString::new(source.entry())
            .map_err(|_| Error::argument(op, "kernel", "a name without a zero byte", source.entry()))?;
        let mut bytes = image.bytes.clone();
        // PTX is text that ends with a zero byte.
        bytes.push(0);
        let _entered = self.context.enter_for(op)?;
        // SAFETY: the context is current; the code is whole (hash compared, or fresh from NVRTC).
        let module = unsafe { driver::module_load(bytes.as_ptr().cast()) }.map_err(|fault| {
            let of_form = [
                CUresult::CUDA_ERROR_INVALID_IMAGE,
                CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU,
                CUresult::CUDA_ERROR_INVALID_PTX,
                CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION,
            ];
            if !fault.is(&of_form) {
                return fault.during(op);
            }
            Error::Unsupported {
                op,
                what: format!("the {} of {} for {}: {fault}", image.kind.name(), source.entry(), self.arch),
                backend: NAME,
                available: "a newer driver".into(),
            }
        })?;
        self.context.keep(module);
        let mut function = Function { function: std::ptr::null_mut(), _context: self.context.clone() };
        // SAFETY: the module is loaded; asking for an attribute also makes a driver that loads
        // lazily load now, so that no launch does.
        unsafe {
            use ::cudarc::driver::sys::CUfunction_attribute as A;
            let fault = |fault: Fault| fault.during(op);
            function.function = driver::function(module, entry.as_ptr()).map_err(fault)?;
            let threads = driver::function_attribute(A::CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK, function.function)
                .map_err(fault)?;
            if i64::from(threads) < i64::from(source.block()) {
                let most = format!("at most {threads}, which is what its registers allow");
                return Err(Error::argument(op, "threads", most, source.block()));
            }
            // Beyond 48 KiB is opt-in.
            if source.shared() > 48 << 10 {
                let attribute = A::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
                driver::set_function_attribute(function.function, attribute, source.shared() as i32).map_err(fault)?;
            }
        }
        Ok(function)
    }
}
