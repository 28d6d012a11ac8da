//! Finds the file of a folder that holds the checkpoint.

use std::path::{Path, PathBuf};

use super::explain::{self, pickle_advice};
use super::json::some_of;
use super::{adapter, index};
use crate::regular::RegularFile;
use crate::{Error, Result};

/// Where a folder's tensors are.
#[derive(Debug)]
pub(super) enum Found {
    /// A safetensors file, or an index of several.
    File(PathBuf),
    /// Shards without their index, and how many there should be.
    Shards(Vec<PathBuf>, usize),
}

/// The names of a folder's files, sorted.
pub(super) fn names(folder: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(|e| Error::file(folder, e))? {
        let entry = entry.map_err(|e| Error::file(folder, e))?;
        if let Ok(name) = entry.file_name().into_string() {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// The file, index or shards of a folder; transformers' own names first.
pub(super) fn find(folder: &Path) -> Result<Found> {
    let mut names = names(folder)?;
    let adapter = names.iter().any(|n| n == adapter::CONFIG);
    if adapter {
        names.retain(|n| !adapter::is_weights(n));
    }
    for usual in ["model.safetensors", "model.safetensors.index.json"] {
        if names.iter().any(|n| n == usual) {
            return Ok(Found::File(folder.join(usual)));
        }
    }
    for ending in [".safetensors.index.json", ".safetensors"] {
        let found: Vec<&str> = names.iter().filter(|n| n.ends_with(ending)).map(String::as_str).collect();
        match found.as_slice() {
            [] => {}
            [one] if index::shards(&[one]).is_none_or(|of| of < 2) => return Ok(Found::File(folder.join(one))),
            several => match index::shards(several) {
                Some(of) => return Ok(Found::Shards(several.iter().map(|n| folder.join(n)).collect(), of)),
                None => return Err(several_could(folder, several)),
            },
        }
    }
    // The bytes tell what a file is: some safetensors files have other names.
    let torch: Vec<&str> = names.iter().map(String::as_str).filter(|n| is_torch_name(n)).collect();
    let renamed: Vec<&str> = torch.iter().copied().filter(|n| begins_as_safetensors(&folder.join(n))).collect();
    match renamed.as_slice() {
        [] => {}
        [one] => return Ok(Found::File(folder.join(one))),
        several => return Err(several_could(folder, several)),
    }
    let (mut real, mut others) = (Vec::new(), Vec::new());
    for name in weights(&torch) {
        match no_pickle(&folder.join(name)) {
            None => real.push(name),
            Some(what) => others.push((name, what)),
        }
    }
    let shown = || some_of(others.iter().map(|(name, what)| format!("{name} ({what})")), ", ");
    match (pickles(&names, &real), others.as_slice()) {
        (None, []) => {}
        (None, [(name, what)]) => return Err(Error::file(folder.join(name), what)),
        (None, _) => {
            return Err(Error::file(
                folder,
                format!("its weights are neither safetensors files nor pickles: {}", shown()),
            ));
        }
        (Some(fault), []) => return Err(Error::file(folder, fault)),
        (Some(fault), _) => return Err(Error::file(folder, format!("{fault}; not pickles: {}", shown()))),
    }
    if adapter {
        return Err(adapter::refusal(&folder.join(adapter::CONFIG)));
    }
    let other = names.iter().filter(|n| [".gguf", ".npz", ".npy", ".h5", ".msgpack"].iter().any(|e| n.ends_with(e)));
    Err(Error::file(
        folder,
        match (some_of(other, ", "), some_of(torch, ", ")) {
            (files, _) if !files.is_empty() => {
                format!("no file in this folder is a safetensors file; there are weights of other formats: {files}")
            }
            (_, state) if !state.is_empty() => {
                format!("no weights are in this folder, only the state of a trainer: {state}")
            }
            _ => "no file in this folder ends in .safetensors".into(),
        },
    ))
}

fn several_could(folder: &Path, several: &[&str]) -> Error {
    Error::file(folder, format!("several files could hold the checkpoint; name one of {}", some_of(several, ", ")))
}

/// PyTorch's files that hold a model; among several, those that transformers saves.
fn weights<'n>(torch: &[&'n str]) -> Vec<&'n str> {
    let all: Vec<&str> = torch.iter().copied().filter(|n| !is_trainers(n)).collect();
    let usual: Vec<&str> = all.iter().copied().filter(|n| n.starts_with("pytorch_model")).collect();
    if usual.is_empty() { all } else { usual }
}

/// The message for a folder whose weights are only pickles: what to convert.
fn pickles(names: &[String], weights: &[&str]) -> Option<String> {
    Some(match (weights, names.iter().find(|n| n.ends_with(".bin.index.json"))) {
        ([], _) => return None,
        ([one], None) => format!("its weights are a PyTorch pickle, {}", pickle_advice(one)),
        (several, Some(index)) => format!(
            "its weights are {} PyTorch pickles with the index {index} ({}), {}",
            several.len(),
            some_of(several.iter(), ", "),
            pickle_advice(index)
        ),
        (several, None) => format!(
            "its weights are {} PyTorch pickles ({}), {}",
            several.len(),
            some_of(several.iter(), ", "),
            match index::shards(&as_safetensors(several).iter().map(String::as_str).collect::<Vec<_>>()) {
                Some(_) =>
                    "shards whose index, which tells what to convert, is not there: fetch pytorch_model.bin.index.json"
                        .into(),
                None => pickle_advice("IN"),
            }
        ),
    })
}

/// The safetensors names for PyTorch's files.
fn as_safetensors(names: &[&str]) -> Vec<String> {
    let stem = |name: &str| name.rsplit_once('.').map_or(name.to_string(), |(stem, _)| stem.to_string());
    names.iter().map(|name| format!("{}.safetensors", stem(name))).collect()
}

/// Whether a file has a name of PyTorch's.
fn is_torch_name(name: &str) -> bool {
    let extension = name.rsplit_once('.').map_or(String::new(), |(_, e)| e.to_ascii_lowercase());
    ["pt", "pth", "bin", "ckpt", "pkl"].contains(&extension.as_str())
}

/// Whether a file has a name that trainers give their own state, which is not a model.
fn is_trainers(name: &str) -> bool {
    let starts = ["optimizer", "scheduler", "training_args", "rng_state", "random_states", "scaler", "trainer_state"];
    starts.iter().any(|s| name.starts_with(s)) || name.contains("optim_states")
}

fn begins_as_safetensors(path: &Path) -> bool {
    let head = RegularFile::open(path).and_then(|file| explain::head(&file));
    head.is_ok_and(|head| head.len() > 8 && explain::is_safetensors(&head))
}

/// What a file with a name of PyTorch's is; none if it is a pickle, or an archive with one.
fn no_pickle(path: &Path) -> Option<String> {
    match RegularFile::open(path).and_then(|file| explain::head(&file)) {
        Ok(head) if explain::is_pickle(&head) => None,
        Ok(head) => {
            Some(explain::explain(&head).unwrap_or_else(|| "it is neither a safetensors file nor a pickle".into()))
        }
        Err(Error::File { fault, .. }) => Some(fault),
        Err(error) => Some(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_to_convert() {
        let said = |names: &[&str]| {
            let all: Vec<String> = names.iter().map(|n| n.to_string()).collect();
            let torch: Vec<&str> = names.iter().copied().filter(|n| is_torch_name(n)).collect();
            pickles(&all, &weights(&torch))
        };
        let advice = |what: &str| {
            format!("which can run code when it is read; convert it: scripts/convert-checkpoint {what} OUT.safetensors")
        };
        let one = said(&["optimizer.pt", "pytorch_model.bin", "rng_state_0.pth", "training_args.bin", "other.pt"]);
        assert_eq!(one, Some(format!("its weights are a PyTorch pickle, {}", advice("pytorch_model.bin"))));
        let two = ["a.pt", "b.pth", "scheduler.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt"];
        assert_eq!(said(&two), Some(format!("its weights are 2 PyTorch pickles (a.pt, b.pth), {}", advice("IN"))));
        let shards = "its weights are 2 PyTorch pickles (pytorch_model-00001-of-00002.bin, pytorch_model-00002-of-00002.bin), shards whose index, \
            which tells what to convert, is not there: fetch pytorch_model.bin.index.json";
        let names = ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"];
        assert_eq!(said(&names).as_deref(), Some(shards));
        assert_eq!(said(&["optimizer.pt", "scaler.pt", "random_states_0.pkl"]), None);
    }
}
