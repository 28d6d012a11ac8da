//! Where libraries come from: the driver's from the system; those of the toolkit (NVRTC, cuBLASLt)
//! from named folders, then from the system. `docs/cuda.md` has the table.
//!
//! A library is code. In a named folder it is opened by its full path, and only where
//! [`crate::trust`] lets it. By its name alone the loader searches what the system's administrator
//! and whoever started the process set. Never the current folder, never `PATH`.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use libloading::Library;

use crate::trust;

/// A library of the toolkit.
pub(in crate::backend::cuda) struct Wanted {
    /// For messages.
    pub name: &'static str,
    /// Its file names, the preferred one first.
    pub files: &'static [&'static str],
    /// Part of the name of a library that it opens by name alone: found if that is open already.
    pub beside: Option<&'static str>,
}

/// Variables that name a toolkit, and its folders of libraries.
const TOOLKITS: [&str; 2] = ["CUDA_PATH", "CUDA_HOME"];
const OF_TOOLKITS: &[&str] =
    if cfg!(windows) { &["bin", "bin/x64"] } else { &["lib64", "lib", "targets/x86_64-linux/lib"] };
/// Variables that name a Python or Conda environment, and its library folders: `*` is any name.
const ENVIRONMENTS: [&str; 2] = ["VIRTUAL_ENV", "CONDA_PREFIX"];
const OF_ENVIRONMENTS: &[&str] = if cfg!(windows) {
    &["Lib/site-packages/nvidia/*/bin", "Library/bin"]
} else {
    &["lib/python3*/site-packages/nvidia/*/lib", "lib"]
};

/// How the system's loader searches.
#[derive(Clone, Copy)]
enum Search {
    /// A full path.
    Path,
    /// By name, where the system's libraries are.
    System,
    /// By name, in the loader's own places. On Windows: the program's folder, the system's, and
    /// those that the program added.
    Loader,
}

#[cfg(windows)]
fn load(file: &OsStr, search: Search) -> Result<Library, libloading::Error> {
    use libloading::os::windows as os;
    let flags = match search {
        Search::Path => os::LOAD_LIBRARY_SEARCH_DLL_LOAD_DIR | os::LOAD_LIBRARY_SEARCH_SYSTEM32,
        Search::System => os::LOAD_LIBRARY_SEARCH_SYSTEM32,
        Search::Loader => os::LOAD_LIBRARY_SEARCH_DEFAULT_DIRS,
    };
    // SAFETY: initialisers of a library are trusted as the place is that it comes from.
    unsafe { os::Library::load_with_flags(file, flags) }.map(Library::from)
}

#[cfg(not(windows))]
fn load(file: &OsStr, _: Search) -> Result<Library, libloading::Error> {
    // SAFETY: initialisers of a library are trusted as the place is that it comes from.
    unsafe { Library::new(file) }
}

/// The driver's library, or the names that were tried and the loader's answer to the last one.
///
/// On Windows the file is in the system's folder; elsewhere the names are those that cudarc tries,
/// in its order, so that an engine has the same one.
pub(in crate::backend::cuda) fn driver() -> Result<Library, String> {
    let names: &[&str] = if cfg!(windows) { &["nvcuda.dll"] } else { &["libcuda.so", "libcuda.so.1"] };
    first_of(names, Search::System)
}

fn first_of(names: &[&str], search: Search) -> Result<Library, String> {
    let mut said = String::new();
    for name in names {
        match load(name.as_ref(), search) {
            Ok(library) => return Ok(library),
            Err(error) => said = reason(&error),
        }
    }
    Err(format!("{} ({said})", names.join(", ")))
}

/// The loader's reason, without the library's name that most loaders put in front.
fn reason(error: &libloading::Error) -> String {
    let text = std::error::Error::source(error).map_or_else(|| error.to_string(), |source| source.to_string());
    text.split_once(": ").map_or(text.clone(), |(_, rest)| rest.to_string())
}

impl Wanted {
    /// The library from one of the `named` folders, from those of the environment, or by its name;
    /// else what was looked for, and why a find was not taken. One in a `named` folder is final.
    pub fn find(&self, named: &[PathBuf]) -> Result<Library, String> {
        for folder in named {
            if let Some(library) = self.in_folder(folder).map_err(|why| format!("no {}: {why}", self.name))? {
                return Ok(library);
            }
        }
        let of_environment = folders_of_environment();
        let mut refused = String::new();
        for folder in &of_environment {
            match self.in_folder(folder) {
                Ok(Some(library)) => return Ok(library),
                Ok(None) => {}
                Err(why) => refused.push_str(&format!("; not taken: {why}")),
            }
        }
        let folders: Vec<PathBuf> = named.iter().cloned().chain(of_environment).collect();
        first_of(self.files, Search::Loader).map_err(|said| {
            let nor = match &folders[..] {
                _ if trust::is_privileged() => format!("; {}", trust::NOT_ASKED),
                [] => format!("; {} name no folder", [TOOLKITS, ENVIRONMENTS].concat().join(", ")),
                folders => format!("; nor in {}", list(folders)),
            };
            format!("no {}: looked for {said}{nor}{refused}", self.name)
        })
    }

    fn in_folder(&self, folder: &Path) -> Result<Option<Library>, String> {
        let Some(file) = self.files.iter().map(|file| folder.join(file)).find(|path| path.exists()) else {
            return Ok(None);
        };
        // The resolved path, on which no other user can exchange anything.
        let trusted = |path: &Path| trust::open(path).map(|(_, path)| path).map_err(|error| error.to_string());
        for beside in self.beside.map_or(Vec::new(), |part| entries(folder, &format!("*{part}*"))) {
            let name = beside.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if !name.contains("alt")
                && let Ok(library) = load(trusted(&beside)?.as_os_str(), Search::Path)
            {
                std::mem::forget(library);
            }
        }
        let file = trusted(&file)?;
        let library = load(file.as_os_str(), Search::Path);
        library.map(Some).map_err(|error| format!("{}: {}", file.display(), reason(&error)))
    }
}

/// Libraries that were found, by named folders. Never unloaded: later devices use them.
pub(in crate::backend::cuda) struct Found<T: 'static>(Mutex<Vec<Answer<T>>>);

/// Folders, and the library or what was looked for.
type Answer<T> = (Vec<PathBuf>, Result<&'static T, String>);

impl<T> Found<T> {
    pub const fn new() -> Self {
        Found(Mutex::new(Vec::new()))
    }

    /// The library of these folders: looked for once, and its functions taken.
    pub fn get(
        &self,
        wanted: &Wanted,
        folders: &[PathBuf],
        of: impl FnOnce(Library) -> Result<T, String>,
    ) -> Result<&'static T, String> {
        let mut found = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, known)) = found.iter().find(|(of, _)| of == folders) {
            return known.clone();
        }
        let new = wanted.find(folders).and_then(of).map(|library| &*Box::leak(Box::new(library)));
        found.push((folders.to_vec(), new.clone()));
        new
    }
}

/// Folders with libraries that the environment names, by full path.
fn folders_of_environment() -> Vec<PathBuf> {
    let of = |variables: [&'static str; 2], folders: &'static [&'static str]| {
        let roots = variables.into_iter().filter_map(trust::variable).map(PathBuf::from);
        let roots = roots.filter(|root| root.is_absolute());
        roots.flat_map(move |root| folders.iter().flat_map(move |folder| below(&root, folder)))
    };
    of(TOOLKITS, OF_TOOLKITS).chain(of(ENVIRONMENTS, OF_ENVIRONMENTS)).collect()
}

/// Paths below a folder that a pattern names. Those without a `*` need not exist.
fn below(root: &Path, pattern: &str) -> Vec<PathBuf> {
    pattern.split('/').fold(vec![root.to_path_buf()], |found, part| match part.contains('*') {
        true => found.iter().flat_map(|folder| entries(folder, part)).collect(),
        false => found.iter().map(|folder| folder.join(part)).collect(),
    })
}

/// Entries of a folder whose names fit a pattern with `*` at its beginning, end or both; in order.
fn entries(folder: &Path, pattern: &str) -> Vec<PathBuf> {
    let (begin, end) = (pattern.starts_with('*'), pattern.ends_with('*'));
    let word = pattern.trim_matches('*');
    let fits = |name: &str| match (begin, end) {
        (true, true) => name.contains(word),
        (true, false) => name.ends_with(word),
        (false, _) => name.starts_with(word),
    };
    let all = fs::read_dir(folder).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
    let mut found: Vec<PathBuf> =
        all.filter(|path| path.file_name().is_some_and(|name| fits(&name.to_string_lossy()))).collect();
    found.sort();
    found
}

fn list(folders: &[PathBuf]) -> String {
    folders.iter().map(|folder| folder.display().to_string()).collect::<Vec<_>>().join(", ")
}
