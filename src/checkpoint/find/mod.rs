//! Looks for a family's bridges among the tensors of a checkpoint, one file per family: prefixes, aliases, what a configuration promises,
//! and everything that is wrong.

mod idefics;
mod idefics2;
mod mllama;
mod open_flamingo;
mod qformer;

use std::cell::RefCell;
use std::collections::BTreeSet;

use super::config::{Promise, View};
use super::open::{Bridges, GatedBlockAt, Overrides};
use super::{Family, Files, TensorSource, blip2};
use crate::bridge::{GatedBlockConfig, GatedBlockWeights};
use crate::{Error, HostTensor, Result};

/// The bridges of a family among the tensors of `files`.
pub(super) fn bridges<'a>(files: &'a Files, family: Family, view: &View, overrides: &Overrides) -> Result<Bridges<'a>> {
    let mut find = Find {
        source: Tracked { files, promise: Promise::default(), read: RefCell::default() },
        view,
        overrides,
        problems: Vec::new(),
        fault: None,
        namespace: Vec::new(),
    };
    let mut bridges = match family {
        Family::OpenFlamingo | Family::XgenMm => find.open_flamingo(family),
        Family::Idefics => find.idefics(),
        Family::Idefics2 => find.idefics2(),
        Family::Mllama => find.mllama(),
        Family::Blip2 => find.qformer(blip2::Layout::Blip2),
        Family::InstructBlip => find.qformer(blip2::Layout::InstructBlip),
        Family::Lavis => find.qformer(blip2::Layout::Lavis),
    };
    if let Some(fault) = find.fault {
        return Err(fault);
    }
    find.report_surplus();
    let problems = find.finished_problems();
    if !problems.is_empty() {
        return Err(Error::Weights { family: format!("{} ({family})", files.path().display()), problems });
    }
    bridges.names = find.source.read.into_inner();
    Ok(bridges)
}

/// Files that remember what was read of them.
struct Tracked<'a> {
    files: &'a Files,
    promise: Promise,
    read: RefCell<BTreeSet<String>>,
}

impl<'a> TensorSource<'a> for Tracked<'a> {
    fn tensor(&self, name: &str) -> Option<HostTensor<'a>> {
        if self.files.info(name).is_some() {
            self.read.borrow_mut().insert(name.into());
        }
        self.files.tensor(name).ok()
    }

    fn indices(&self, prefix: &str) -> BTreeSet<usize> {
        match self.promise.layers.get(prefix) {
            Some(&layers) => (0..layers).collect(),
            None => TensorSource::indices(&self.files, prefix),
        }
    }

    fn any_below(&self, prefix: &str) -> bool {
        TensorSource::any_below(&self.files, prefix)
    }

    fn promised(&self, name: &str) -> Option<Vec<usize>> {
        self.promise.shapes.get(name).cloned()
    }
}

struct Find<'a, 'f> {
    source: Tracked<'a>,
    view: &'f View,
    overrides: &'f Overrides,
    problems: Vec<String>,
    /// Why a file cannot be read any more.
    fault: Option<Error>,
    /// Prefixes below which every tensor is the bridge's.
    namespace: Vec<String>,
}

impl<'a> Find<'a, '_> {
    /// What a family's reader found, or its problems.
    fn keep<T>(&mut self, result: Result<T>) -> Option<T> {
        match result {
            Ok(found) => return Some(found),
            Err(Error::Weights { problems, .. }) => self.problems.extend(problems),
            Err(other) => self.problems.push(other.to_string()),
        }
        None
    }

    fn has(&self, name: &str) -> bool {
        self.source.files.info(name).is_some()
    }

    /// What precedes `part` in the names that contain it as whole words, shortest first.
    fn prefixes_of(&self, part: &str) -> Vec<String> {
        let mut found = BTreeSet::new();
        for name in self.source.files.tensors().keys() {
            let at = if name.starts_with(part) { Some(0) } else { name.find(&format!(".{part}")).map(|at| at + 1) };
            found.extend(at.map(|at| name[..at].to_string()));
        }
        let mut found: Vec<String> = found.into_iter().collect();
        found.sort_by_key(String::len);
        found
    }

    /// Takes the first of several prefixes under which the same module was saved; the others must hold the same.
    fn one_of(&mut self, prefixes: &[String]) -> Option<String> {
        let (first, aliases) = prefixes.split_first()?;
        if first.is_empty() {
            // A module that was saved alone.
            let own = ["latents", "layers.", "norm.", "projection.", "attn.", "attn_gate", "ff.", "ff_gate"];
            self.namespace.extend(own.map(String::from));
        } else {
            self.namespace.push(first.clone());
        }
        for alias in aliases {
            let files = self.source.files;
            for (name, _) in files.below(alias) {
                let same = format!("{first}{}", &name[alias.len()..]);
                self.source.read.borrow_mut().insert(name.into());
                match files.info(&same).map_or(Ok(false), |_| files.same(&same, name)) {
                    Ok(true) => {}
                    Ok(false) => self
                        .problems
                        .push(format!("{name}: differs from {same}, which is the same weight under another name")),
                    Err(error) => self.fault = self.fault.take().or(Some(error)),
                }
            }
        }
        Some(first.clone())
    }

    /// Promises a matrix's columns, which another part of the bridge decides, unless a configuration already did.
    fn promise_columns(&mut self, weight: String, columns: Option<usize>) {
        let rows = self.source.files.info(&weight).and_then(|t| t.shape.first().copied());
        if let Some((rows, columns)) = rows.zip(columns) {
            self.source.promise.shapes.entry(weight).or_insert(vec![rows, columns]);
        }
    }

    /// Width-64 or width-128 heads, where no configuration says how many.
    fn heads_of_width(&self, name: &str, width: usize) -> usize {
        let rows = self.source.files.info(name).and_then(|t| t.shape.first().copied());
        (rows.unwrap_or(width) / width).max(1)
    }

    fn keep_block(
        &mut self,
        bridges: &mut Bridges<'a>,
        index: usize,
        prefix: String,
        read: Result<(GatedBlockConfig, GatedBlockWeights<'a>)>,
    ) {
        if let Some((config, weights)) = self.keep(read) {
            bridges.gated_blocks.push(GatedBlockAt { index, prefix, config, weights });
        }
    }

    fn any(&self, part: &str) -> bool {
        self.source.files.tensors().keys().any(|name| name.contains(part))
    }

    /// Blocks stand at regular distances: one that is left out is missing.
    fn report_holes(&mut self, indices: &[usize]) {
        let mut sorted = indices.to_vec();
        sorted.sort_unstable();
        sorted.dedup();
        let Some(step) = sorted.windows(2).map(|w| w[1] - w[0]).min() else { return };
        for pair in sorted.windows(2).filter(|w| w[1] - w[0] != step) {
            self.problems.push(format!(
                "gated blocks {} and {}: those between them are missing, elsewhere the distance is {step}",
                pair[0], pair[1]
            ));
        }
    }

    fn report_surplus(&mut self) {
        let read = self.source.read.borrow();
        let mut surplus = Vec::new();
        for (name, info) in self.source.files.tensors() {
            let ours = self.namespace.iter().any(|prefix| name.starts_with(prefix.as_str()));
            // A buffer that old versions saved; nothing reads it.
            if ours && !read.contains(&**name) && !name.ends_with("rotary_emb.inv_freq") {
                surplus.push(format!("{name}: surplus, expected no such tensor, found {:?}", info.shape));
            }
        }
        drop(read);
        self.problems.extend(surplus);
    }

    /// Problems in order, each once; a tensor of a type that nobody reads is there, but not missing.
    fn finished_problems(&mut self) -> Vec<String> {
        let mut seen = BTreeSet::new();
        let tensors = self.source.files.tensors();
        std::mem::take(&mut self.problems)
            .into_iter()
            .map(|problem| {
                match problem.split_once(": missing").and_then(|(name, _)| Some((name, tensors.get(name)?))) {
                    Some((name, info)) => {
                        format!("{name}: expected f32, f16 or bf16, found {} {:?}", info.dtype(), info.shape)
                    }
                    None => problem,
                }
            })
            .filter(|problem| seen.insert(problem.clone()))
            .collect()
    }
}
