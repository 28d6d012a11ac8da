//! Finds a family's bridges among a checkpoint's tensors: prefixes, aliases, promises of the
//! configuration, the origin of each value, and everything that is wrong.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;

use super::config::{Field, ModelConfig, NO_CONFIG};
use super::copies::Copies;
use super::row::Row;
use super::{Bridges, Files, GatedBlockAt, Origin, Overrides, Provenance, TensorInfo, TensorSource};
use crate::bridge::{GatedBlockConfig, GatedBlockWeights, ResamplerConfig};
use crate::ops::Activation;
use crate::{Error, HostTensor, Result};

/// Why a value is taken that no file gives.
const LIBRARY_DEFAULT: &str = "what its public library takes";

/// The bridges of a family among the tensors of `files`.
pub(super) fn bridges<'a>(
    files: &'a Files,
    row: &'static Row,
    config: Option<&ModelConfig>,
    overrides: &Overrides,
) -> Result<Bridges<'a>> {
    let prefix = overrides.prefix.as_deref().map(|prefix| plain_prefix(files, prefix));
    let overrides = &Overrides { prefix, ..overrides.clone() };
    let mut find = Find {
        source: Tracked { files, promise: Promise::default(), read: RefCell::default(), part: Cell::default() },
        config,
        family: row.name,
        overrides,
        problems: Vec::new(),
        notes: Vec::new(),
        origins: Vec::new(),
        aliases: BTreeSet::new(),
        fault: None,
        copies: Copies::default(),
        namespace: Vec::new(),
        apart: Vec::new(),
    };
    if let Some(c) = config.filter(|c| c.family_name() != Some(row.name) && !c.model_type.is_empty()) {
        let kind = super::json::brief(&c.model_type);
        find.notes
            .push(format!("config.json has model_type {kind}: only its fields that {} has too are used", row.name));
    }
    let mut bridges = (row.find)(&mut find);
    if let Some(fault) = find.fault {
        return Err(fault);
    }
    let taken_together = find.taken_together();
    find.report_surplus();
    let mut problems = find.finished_problems();
    if !problems.is_empty() {
        // Missing weights may be present in another form: one sentence instead of a list of names.
        let named: BTreeSet<&str> = problems.iter().filter_map(|p| Some(p.split_once(": ")?.0)).collect();
        if let Some(obstacle) = files.obstacle(|name| named.contains(name)) {
            return Err(Error::file(files.path(), obstacle));
        }
        // In front, as messages show only the first few.
        problems.splice(0..0, files.incomplete().map(String::from));
        return Err(Error::Weights { family: format!("{} ({})", files.path().display(), row.name), problems });
    }
    bridges.names = find.source.read.into_inner();
    bridges.aliases = find.aliases;
    bridges.origins = find.origins;
    bridges.notes = files.notes().iter().cloned().chain(taken_together).chain(find.notes).collect();
    if let Some(adapter) = files.adapter() {
        adapter.expect_copies(&find.copies.candidates)?;
        let changed = || adapter.merged().chain(adapter.replaced());
        let inside = changed().filter(|name| bridges.names.contains_key(*name)).count();
        let outside = changed().count() - inside;
        let file = adapter.path().file_name().unwrap_or_default().to_string_lossy();
        bridges.notes.push(format!("{file}: it changes {inside} tensors of the bridge, and {outside} outside it"));
    }
    Ok(bridges)
}

/// Shapes and numbers of layers that a configuration promises, by the full names of tensors.
#[derive(Debug, Clone, Default)]
pub(super) struct Promise {
    pub shapes: BTreeMap<String, Vec<usize>>,
    pub layers: BTreeMap<String, usize>,
}

impl Promise {
    pub fn shape(&mut self, prefix: &str, name: &str, shape: &[usize]) {
        self.shapes.insert(format!("{prefix}{name}"), shape.to_vec());
    }
}

/// Files that remember which tensors were read.
pub(super) struct Tracked<'a> {
    pub files: &'a Files,
    pub promise: Promise,
    /// What was read, with the part that it belongs to.
    read: RefCell<BTreeMap<String, &'static str>>,
    /// The part that is being read.
    pub part: Cell<&'static str>,
}

impl Tracked<'_> {
    /// Counts a tensor as read.
    pub fn mark(&self, name: impl Into<String>) {
        self.read.borrow_mut().entry(name.into()).or_insert(self.part.get());
    }

    /// Moves a tensor that was read as another part's to its own.
    pub fn assign(&self, name: &str, part: &'static str) {
        self.read.borrow_mut().entry(name.into()).and_modify(|of| *of = part);
    }
}

impl<'a> TensorSource<'a> for Tracked<'a> {
    fn tensor(&self, name: &str) -> Option<HostTensor<'a>> {
        if self.files.info(name).is_some() {
            self.mark(name);
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

    fn listed(&self, name: &str) -> bool {
        TensorSource::listed(&self.files, name)
    }

    fn promised(&self, name: &str) -> Option<Vec<usize>> {
        self.promise.shapes.get(name).cloned()
    }
}

pub(super) struct Find<'a, 'f> {
    pub source: Tracked<'a>,
    /// The configuration, where there is one.
    pub config: Option<&'f ModelConfig>,
    family: &'static str,
    pub overrides: &'f Overrides,
    pub problems: Vec<String>,
    /// No faults, but worth knowing.
    pub notes: Vec<String>,
    origins: Vec<Origin>,
    /// Tensors that are second names of others with the same content.
    pub aliases: BTreeSet<String>,
    /// Why a file cannot be read any more.
    pub fault: Option<Error>,
    /// Parts that were found several times, and the choices made.
    pub copies: Copies,
    /// Prefixes below which every tensor is the bridge's.
    pub namespace: Vec<String>,
    /// Prefixes of parts within the module of another part, each copied and chosen on its own.
    pub apart: Vec<String>,
}

impl<'a, 'f> Find<'a, 'f> {
    /// A family reader's result; its problems are collected.
    pub fn keep<T>(&mut self, result: Result<T>) -> Option<T> {
        match result {
            Ok(found) => return Some(found),
            Err(Error::Weights { problems, .. }) => self.problems.extend(problems),
            Err(other) => self.problems.push(other.to_string()),
        }
        None
    }

    pub fn has(&self, name: &str) -> bool {
        self.source.files.info(name).is_some()
    }

    /// The names of all tensors, also in missing shards: a missing part of the bridge is an error.
    pub fn names(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        self.source.files.names()
    }

    pub fn any(&self, part: &str) -> bool {
        self.names().any(|name| name.contains(part))
    }

    /// The prefixes of names that contain `part` as whole words, shortest first.
    pub fn prefixes_of(&self, part: &str) -> Vec<String> {
        let behind_dot = format!(".{part}");
        let mut found = BTreeSet::new();
        for name in self.names() {
            let at = if name.starts_with(part) { Some(0) } else { name.find(&behind_dot).map(|at| at + 1) };
            if let Some(at) = at
                && !found.contains(&name[..at])
            {
                found.insert(name[..at].to_string());
            }
        }
        shortest_first(found)
    }

    /// Promises a matrix's columns, which another part decides, unless a configuration did.
    pub fn promise_columns(&mut self, weight: String, columns: Option<usize>) {
        let rows = self.source.files.info(&weight).and_then(|t| t.shape.first().copied());
        if let Some((rows, columns)) = rows.zip(columns) {
            self.source.promise.shapes.entry(weight).or_insert(vec![rows, columns]);
        }
    }

    /// The heads in a projection's rows, as wide as the norm of its rows, else of the usual width.
    pub fn heads_of_width(&self, projection: &str, norm: &str, usual: usize) -> (usize, Provenance) {
        let extent =
            |name: &str| self.source.files.info(name).and_then(|t| t.shape.first().copied()).filter(|&n| n > 0);
        let rows = extent(projection).unwrap_or(usual);
        match extent(norm) {
            Some(width) => ((rows / width).max(1), Provenance::Shape(norm.into())),
            None => ((rows / usual).max(1), Provenance::Assumed(format!("heads of width {usual}"))),
        }
    }

    pub fn keep_block(
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

    /// Reports that a whole part is missing, unless another problem explains it.
    pub fn report_absent(&mut self, problem: &str) {
        if self.problems.is_empty() {
            self.problems.push(problem.into());
        }
    }

    /// Records where a value came from, once for each part and value.
    pub fn record_origin(&mut self, part: &'static str, value: &'static str, shown: impl Display, from: Provenance) {
        if !self.origins.iter().any(|o| o.part == part && o.value == value) {
            self.origins.push(Origin { part, value, shown: shown.to_string(), from });
        }
    }

    /// The recorded origin of a value.
    pub fn origin(&self, part: &str, value: &str) -> String {
        let origin = self.origins.iter().find(|o| o.part == part && o.value == value);
        origin.map_or_else(String::new, |o| o.from.to_string())
    }

    /// This family's own configuration: what it and its class's defaults promise must exist.
    pub fn own_config(&self) -> Option<&'f ModelConfig> {
        self.config.filter(|c| c.family_name() == Some(self.family))
    }

    /// Where a field's value came from; `assumed` if there is no configuration.
    fn provenance_of(&self, field: &Field, assumed: &str) -> Provenance {
        match self.config {
            Some(c) => match c.has(field) {
                Some(path) => Provenance::Field(path.into()),
                None if self.own_config().is_some() => Provenance::ClassDefault(c.model_type.clone()),
                None => Provenance::Assumed(assumed.into()),
            },
            None => Provenance::Assumed(assumed.into()),
        }
    }

    /// A number of heads: the option's, else the configuration's, else another one.
    pub fn heads(
        &mut self,
        part: &'static str,
        value: &'static str,
        option: (Option<usize>, &'static str),
        field: Option<&Field>,
        otherwise: (usize, Provenance),
    ) -> usize {
        let (heads, from) = match (option.0, field.map(|field| (field, self.provenance_of(field, "")))) {
            (Some(heads), _) => (heads, Provenance::Option(option.1)),
            (None, None | Some((_, Provenance::Assumed(_)))) => otherwise,
            (None, Some((field, from))) => (self.config.map_or(otherwise.0, |c| c.count(field)), from),
        };
        if let (Some(given), Some(field), Some(c)) = (option.0, field, self.config)
            && let Some(path) = c.has(field)
            && c.count(field) != given
        {
            self.problems.push(format!(
                "{}: {path} of config.json says {}, the option {given}",
                option.1,
                c.count(field)
            ));
        }
        self.record_origin(part, value, heads, from);
        heads
    }

    /// The eps of norms: the configuration's, else what the family's library takes.
    pub fn eps(&mut self, part: &'static str, field: &Field) -> f32 {
        let eps = self.config.unwrap_or(&NO_CONFIG).eps(field);
        self.record_origin(part, "eps", format_args!("{eps:e}"), self.provenance_of(field, LIBRARY_DEFAULT));
        eps
    }

    /// The activation: the configuration's, else what the family's library takes.
    pub fn activation(&mut self, part: &'static str, field: &Field) -> Activation {
        let activation = self.config.unwrap_or(&NO_CONFIG).activation(field);
        self.record_origin(part, "activation", activation.name(), self.provenance_of(field, LIBRARY_DEFAULT));
        activation
    }

    /// Records the sizes of a part that are extents of its tensors.
    pub fn sizes(&mut self, part: &'static str, tensor: &str, sizes: &[(&'static str, usize)]) {
        for (value, size) in sizes {
            self.record_origin(part, value, size, Provenance::Shape(tensor.into()));
        }
    }

    /// Records a rule of a part that only an option changes.
    pub fn rule(&mut self, part: &'static str, option: Option<&'static str>, rule: &str) {
        let from = option.map_or_else(|| Provenance::Assumed("no file says it".into()), Provenance::Option);
        self.record_origin(part, "rule", rule, from);
    }

    /// Records the sizes of a resampler, with the tensors that tell them.
    pub fn resampler_sizes(&mut self, c: &ResamplerConfig, latents: &str, layers: &str) {
        self.sizes("resampler", latents, &[("latents", c.latents), ("width", c.width)]);
        self.sizes("resampler", layers, &[("layers", c.layers), ("hidden", c.ffn_hidden)]);
    }

    /// Reports missing blocks: they stand at regular distances.
    pub fn report_holes(&mut self, indices: &[usize]) {
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

    /// Whether a tensor was read neither by its own name nor by one that is tied to it.
    pub fn unread(&self) -> impl Fn(&TensorInfo) -> bool + use<'a> {
        let read = self.source.read.borrow();
        let files = self.source.files;
        let places: BTreeSet<_> = read.keys().filter_map(|name| files.info(name)).map(TensorInfo::place).collect();
        move |info| !places.contains(&info.place())
    }

    fn report_surplus(&mut self) {
        let unread = self.unread();
        let mut surplus = BTreeMap::new();
        for prefix in &self.namespace {
            for (name, info) in self.source.files.below(prefix) {
                // A buffer that old versions saved, and that has no use.
                if unread(info) && !name.ends_with("rotary_emb.inv_freq") && !self.is_apart(prefix, name) {
                    surplus.insert(name, info);
                }
            }
        }
        let surplus = surplus.into_iter();
        self.problems.extend(
            surplus.map(|(name, info)| format!("{name}: surplus, expected no such tensor, found {:?}", info.shape)),
        );
    }

    /// Problems in order, each once. A tensor of an unreadable type is not called missing.
    fn finished_problems(&mut self) -> Vec<String> {
        let mut seen = BTreeSet::new();
        let tensors = self.source.files.tensors();
        std::mem::take(&mut self.problems)
            .into_iter()
            .map(|problem| {
                let Some((name, _)) = problem.split_once(": missing") else { return problem };
                match (tensors.get(name), self.source.files.why_absent(name)) {
                    (Some(info), _) if !info.is_real() => {
                        format!("{name}: expected f32, f16 or bf16, found {} {:?}", info.dtype(), info.shape)
                    }
                    (None, Some(why)) => format!("{problem}; {why}"),
                    _ => problem,
                }
            })
            .filter(|problem| seen.insert(problem.clone()))
            .collect()
    }
}

/// A prefix as tensors' names have it: without wrappers, if it was copied from the file.
fn plain_prefix(files: &Files, prefix: &str) -> String {
    let whole = format!("{}.", prefix.trim_end_matches('.'));
    match super::names::unwrap(&format!("{whole}x")) {
        Some(name) if !files.names().any(|name| name.starts_with(prefix)) => name.plain[..name.plain.len() - 1].into(),
        _ => prefix.into(),
    }
}

/// A prefix as a message shows it.
pub(super) fn shown_prefix(prefix: &str) -> String {
    if prefix.is_empty() { "the top".into() } else { super::json::brief(prefix) }
}

/// Sorted by length.
pub(super) fn shortest_first(prefixes: BTreeSet<String>) -> Vec<String> {
    let mut prefixes: Vec<String> = prefixes.into_iter().collect();
    prefixes.sort_by_key(String::len);
    prefixes
}
