//! Adapters of PEFT: a few matrices that change a base model. LoRA is merged while tensors are read (`lora.rs`); what else there is is
//! refused by its name.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use super::adapter_config::AdapterConfig;
use super::files::{Files, exists, open_shard};
use super::json::{self, brief, some_of};
use super::lora::{Merged, Update};
use super::{TensorInfo, folder, index, names};
use crate::regular::Range;
use crate::{DType, Error, HostTensor, Result};

/// The file that makes a folder an adapter.
pub(super) const CONFIG: &str = "adapter_config.json";

/// What every name in an adapter begins with: PEFT's model, and the base in it.
const PREFIX: &str = "base_model.model.";

/// Which adapter is merged into a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum AdapterChoice<'p> {
    /// The one that lies beside the tensors, if there is one.
    #[default]
    Beside,
    /// None, whatever lies there.
    None,
    /// A folder with `adapter_config.json`, or a file of weights beside one.
    At(&'p Path),
}

/// An adapter that is merged into a checkpoint's tensors.
#[derive(Debug, Clone)]
pub struct Adapter {
    path: PathBuf,
    config: PathBuf,
    base: Option<String>,
    merged: BTreeSet<Box<str>>,
    replaced: BTreeSet<Box<str>>,
    missing: Vec<String>,
}

impl Adapter {
    /// The file of its weights.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its `adapter_config.json`.
    pub fn config_path(&self) -> &Path {
        &self.config
    }

    /// The base model that it names: a folder of whoever trained it, or a name on the hub.
    pub fn base(&self) -> Option<&str> {
        self.base.as_deref()
    }

    /// The checkpoint's tensors to which it adds, by name.
    pub fn merged(&self) -> impl Iterator<Item = &str> {
        self.merged.iter().map(|name| &**name)
    }

    /// The checkpoint's tensors that it replaces: biases, and modules that were trained whole.
    pub fn replaced(&self) -> impl Iterator<Item = &str> {
        self.replaced.iter().map(|name| &**name)
    }

    /// Tensors that it would change and that the checkpoint does not have, by the adapter's names for them.
    pub fn missing(&self) -> &[String] {
        &self.missing
    }
}

/// Whether a file is called as PEFT calls an adapter's weights.
pub(super) fn is_weights(name: &str) -> bool {
    name.starts_with("adapter_model.") || name.starts_with("adapter_model-") || name.starts_with("adapter_model_")
}

/// Refuses an adapter's own weights where a checkpoint is to be opened.
pub(super) fn expect_base(folder: &Path, file: &Path) -> Result<()> {
    let name = file.file_name().and_then(OsStr::to_str).unwrap_or_default();
    let config = folder.join(CONFIG);
    if is_weights(name) && exists(&config) { Err(refusal(&config)) } else { Ok(()) }
}

/// Why the adapter whose configuration is `path` cannot be opened as a checkpoint.
pub(super) fn refusal(path: &Path) -> Error {
    json::read(path).map_or_else(|error| error, |text| Error::file(path, describe(&text)))
}

fn describe(text: &str) -> String {
    let config: AdapterConfig = match json::parse(text) {
        Ok(config) => config,
        Err(fault) => return format!("not an adapter's configuration: {fault}"),
    };
    let Some(kind) = &config.peft_type else { return "peft_type: expected the kind of the adapter, found none".into() };
    format!(
        "a PEFT adapter ({}) of {}, not a checkpoint: open its base with --adapter and this folder, or merge it (peft's \
         merge_and_unload, then save_pretrained) and open the folder that is saved",
        brief(kind.escape_debug()),
        named_base(config.base_model_name_or_path.as_deref())
    )
}

fn named_base(base: Option<&str>) -> String {
    base.map_or("a base that it does not name".into(), |base| brief(format_args!("{base:?}")))
}

/// Refuses a file that holds nothing but an adapter, by its names: the configuration, without which it cannot be merged, is not beside it.
pub(super) fn expect_no_adapter(path: &Path, tensors: &BTreeMap<Box<str>, TensorInfo>) -> Result<()> {
    let ours = |name: &str| [".lora_A.weight", ".lora_embedding_A"].iter().any(|end| name.ends_with(end));
    if tensors.keys().all(|name| name.starts_with(PREFIX)) && tensors.keys().any(|name| ours(name)) {
        let fault = format!(
            "the matrices of a LoRA adapter, not a checkpoint, and without the {CONFIG} that tells their alpha: put it beside them, \
             open the base with --adapter and that folder"
        );
        return Err(Error::file(path, fault));
    }
    Ok(())
}

/// The folder of the adapter that lies beside a checkpoint, and a note about others.
fn beside(folder: &Path, opened: &Path) -> Result<(Option<PathBuf>, Option<String>)> {
    let mut found: Vec<PathBuf> = Vec::new();
    if exists(&folder.join(CONFIG)) {
        found.push(folder.to_path_buf());
    }
    // Files that are named stand for themselves.
    if opened == folder {
        found.extend(in_subfolders(folder)?);
    }
    match found.as_slice() {
        [] => Ok((None, None)),
        [one] if one == folder => Ok((Some(one.clone()), None)),
        [one] => {
            let name = one.file_name().unwrap_or_default().to_string_lossy();
            Ok((None, Some(format!("the adapter in the folder {name} is not merged; --adapter merges it"))))
        }
        several => Err(choose(folder, several)),
    }
}

/// The folders in a folder that are adapters; not those of a training's earlier states.
fn in_subfolders(folder: &Path) -> Result<Vec<PathBuf>> {
    let names = folder::names(folder)?;
    let folders = names.iter().filter(|name| !name.starts_with("checkpoint-")).map(|name| folder.join(name));
    Ok(folders.filter(|path| exists(&path.join(CONFIG))).collect())
}

fn choose(folder: &Path, several: &[PathBuf]) -> Error {
    let names = some_of(several.iter().map(|path| brief(path.display())), ", ");
    Error::file(folder, format!("{} adapters could be merged: {names}; --adapter names one, or none", several.len()))
}

/// Configuration and weights of an adapter that was named. PEFT saves one that has a name of its own in a folder of that name.
fn locate(path: &Path) -> Result<(PathBuf, PathBuf)> {
    let about = std::fs::metadata(path).map_err(|e| Error::file(path, e))?;
    if !about.is_dir() {
        let config = path.parent().map_or_else(PathBuf::new, Path::to_path_buf).join(CONFIG);
        if !exists(&config) {
            return Err(Error::file(path, format!("no {CONFIG} lies beside this adapter: it tells rank and alpha")));
        }
        return Ok((config, path.to_path_buf()));
    }
    let config = path.join(CONFIG);
    if !exists(&config) {
        let inside = in_subfolders(path)?;
        return match inside.as_slice() {
            [] => Err(Error::file(path, format!("no {CONFIG} is in this folder"))),
            [one] => locate(one),
            several => Err(choose(path, several)),
        };
    }
    let names: Vec<String> = folder::names(path)?.into_iter().filter(|name| is_weights(name)).collect();
    let tensors: Vec<&String> = names.iter().filter(|name| name.ends_with(".safetensors")).collect();
    match (tensors.as_slice(), names.as_slice()) {
        ([one], _) => Ok((config, path.join(one))),
        ([], [one]) => Ok((config, path.join(one))),
        ([], _) => Err(Error::file(path, format!("{CONFIG} is there, but no adapter_model.safetensors"))),
        (several, _) if index::shards(&several.iter().map(|name| name.as_str()).collect::<Vec<_>>()).is_some() => {
            let names = some_of(several.iter(), ", ");
            Err(Error::file(path, format!("the adapter is in {} shards ({names}): save it in one file", several.len())))
        }
        (several, _) => Err(choose(path, &several.iter().map(|name| path.join(name)).collect::<Vec<_>>())),
    }
}

/// What an adapter's tensor is.
enum Part<'n> {
    /// `lora_A` (0) or `lora_B` (1) of a module, and whether it is an embedding.
    Matrix(usize, &'n str, bool),
    /// A copy of the base's tensor of that name.
    Copy(&'n str),
}

/// A module's `lora_A` and `lora_B`.
#[derive(Default)]
struct Pair {
    matrices: [Option<TensorInfo>; 2],
    embedding: bool,
}

/// What a tensor of an adapter is for, by its name without wrappers.
fn part(name: &str) -> Result<Part<'_>, String> {
    let of = |part: &str| {
        let (module, rest) = name.split_once(part)?;
        // Embeddings' are parameters, others' are modules; some keep the adapter's own name.
        let known = rest.is_empty() || rest == ".weight" || rest == ".default.weight" || rest == ".default";
        known.then_some(module)
    };
    for (number, [linear, embedding]) in
        [[".lora_A", ".lora_embedding_A"], [".lora_B", ".lora_embedding_B"]].into_iter().enumerate()
    {
        if let Some(module) = of(linear) {
            return Ok(Part::Matrix(number, module, false));
        }
        if let Some(module) = of(embedding) {
            return Ok(Part::Matrix(number, module, true));
        }
    }
    if name.split('.').any(|segment| segment.starts_with("lora_") || segment == "token_adapter") {
        return Err(format!("tensor {}: not one that xattn merges", brief(name)));
    }
    Ok(Part::Copy(name))
}

/// A name of an adapter as the base has it; none for what its training did not change.
fn base_name(name: &str) -> Option<String> {
    let name = name.replace("modules_to_save.default.", "").replace("modules_to_save.", "").replace("base_layer.", "");
    match names::unwrap(&name) {
        Some(name) if name.original => None,
        Some(name) => Some(name.plain.into()),
        None => Some(name),
    }
}

impl Files {
    /// Reads the adapter that was chosen, and remembers what it changes.
    pub(super) fn open_adapter(&mut self, folder: &Path, choice: AdapterChoice<'_>) -> Result<()> {
        let place = match choice {
            AdapterChoice::None => return Ok(()),
            AdapterChoice::At(path) => path.to_path_buf(),
            AdapterChoice::Beside => {
                let (place, note) = beside(folder, &self.path)?;
                self.notes.extend(note);
                let Some(place) = place else { return Ok(()) };
                place
            }
        };
        let (config_path, path) = locate(&place)?;
        let text = json::read(&config_path)?;
        let fault = |fault: String| Error::file(&config_path, fault);
        let config: AdapterConfig = json::parse(&text)
            .map_err(|e| fault(format!("not an adapter's configuration: {e}")))
            .and_then(|config: AdapterConfig| config.expect_lora().map_err(fault).map(|()| config))?;
        let opened = open_shard(&path)?;
        self.adapters += 1;
        let shard = self.shards.len() as u32;
        self.shards.push(opened.shard);
        let tensors = opened.tensors.into_iter().map(|(name, mut info)| {
            info.shard = shard;
            (name, info)
        });
        let mut adapter = Adapter {
            path: path.clone(),
            config: config_path.clone(),
            base: config.base_model_name_or_path.clone(),
            merged: BTreeSet::new(),
            replaced: BTreeSet::new(),
            missing: Vec::new(),
        };
        self.apply(&mut adapter, &config, tensors.collect()).map_err(|what| Error::file(&path, what))?;
        self.note_adapter(&adapter, &config);
        self.adapter = Some(adapter);
        Ok(())
    }

    fn note_adapter(&mut self, adapter: &Adapter, config: &AdapterConfig) {
        let name = adapter.path.file_name().unwrap_or_default().to_string_lossy();
        let base = named_base(adapter.base.as_deref());
        let mut note = format!("{name}: a LoRA of {base} is merged into {} tensors", adapter.merged.len());
        if !adapter.replaced.is_empty() {
            note.push_str(&format!(", and replaces {}", adapter.replaced.len()));
        }
        if !adapter.missing.is_empty() {
            let names = some_of(adapter.missing.iter().map(brief), ", ");
            note.push_str(&format!("; {} that it would change are not in these files: {names}", adapter.missing.len()));
        }
        self.notes.push(note);
        if !config.unknown.is_empty() {
            let names = some_of(config.unknown.iter().map(brief), ", ");
            self.notes.push(format!("{CONFIG}: fields that xattn does not know were not used: {names}"));
        }
    }

    /// Finds the base's tensor of each of the adapter's, and checks that they fit.
    fn apply(
        &mut self,
        adapter: &mut Adapter,
        config: &AdapterConfig,
        tensors: BTreeMap<Box<str>, TensorInfo>,
    ) -> Result<(), String> {
        let mut pairs: BTreeMap<String, Pair> = BTreeMap::new();
        let mut copies: BTreeMap<String, TensorInfo> = BTreeMap::new();
        for (full, info) in tensors {
            let Some(name) = base_name(&full) else { continue };
            match part(&name)? {
                Part::Matrix(number, module, embedding) => {
                    let pair = pairs.entry(module.into()).or_default();
                    pair.matrices[number] = Some(info);
                    pair.embedding |= embedding;
                }
                // Of two copies the one whose name PEFT loads.
                Part::Copy(name) if copies.contains_key(name) && full.contains("modules_to_save.") => {}
                Part::Copy(name) => drop(copies.insert(name.into(), info)),
            }
        }
        let wanted: Vec<String> =
            pairs.keys().map(|module| format!("{module}.weight")).chain(copies.keys().cloned()).collect();
        let mut found = self.resolve(&wanted)?;
        if found.is_empty() {
            let names = some_of(wanted.iter().map(brief), ", ");
            return Err(match wanted.len() {
                0 => "an adapter without any tensor".into(),
                n => format!(
                    "an adapter of another model, {}: none of the {n} tensors that it changes is in {}: {names}",
                    named_base(adapter.base.as_deref()),
                    self.path.display()
                ),
            });
        }
        for (name, info) in copies {
            let Some(base) = found.remove(&name) else {
                adapter.missing.push(name);
                continue;
            };
            for base in self.ties(&base) {
                self.tensors.insert(base.clone(), info.clone());
                adapter.replaced.insert(base);
            }
        }
        // peft asks the class of each module; the fan_in_fan_out that it saves is that of the last one.
        let any = |expected: [bool; 2]| {
            pairs.iter().any(|(module, pair)| {
                let base = found.get(&format!("{module}.weight")).and_then(|base| self.tensors.get(base));
                let Pair { matrices: [Some(a), Some(b)], embedding: false } = pair else { return false };
                base.is_some_and(|base| fits(base, [a, b]) == expected)
            })
        };
        let (linear, conv1d) = (any([true, false]), config.fan_in_fan_out || any([false, true]));
        for (module, pair) in pairs {
            let Pair { matrices: [Some(a), Some(b)], embedding } = pair else {
                return Err(format!("module {}: expected lora_A and lora_B, found one of them", brief(&module)));
            };
            let scale = config.scale(&module, a.shape.first().copied().unwrap_or(0))?;
            let weight = format!("{module}.weight");
            let Some(base) = found.remove(&weight) else {
                adapter.missing.push(weight);
                continue;
            };
            let Some(info) = self.tensors.get(&base) else { continue };
            // A quantised weight: whoever needs it says so.
            if info.element().is_none_or(|dtype| !dtype.is_float()) {
                adapter.missing.push(weight);
                continue;
            }
            let real = |t: &TensorInfo| t.element().is_some_and(DType::is_float);
            if !real(&a) || !real(&b) {
                return Err(format!(
                    "module {}: expected matrices of reals, found {} and {}",
                    brief(&module),
                    a.dtype(),
                    b.dtype()
                ));
            }
            let transposed = match (fits(info, [&a, &b]), embedding) {
                ([_, true], true) => true,
                ([true, false], false) => false,
                ([false, true], false) if config.fan_in_fan_out || is_conv1d(&module) => true,
                ([true, true], false) => config.fan_in_fan_out && !linear || conv1d && is_conv1d(&module),
                _ => {
                    return Err(format!(
                        "an adapter of another model: module {}: lora_A {:?} and lora_B {:?} do not fit a weight of {:?}",
                        brief(&module),
                        a.shape,
                        b.shape,
                        info.shape
                    ));
                }
            };
            let update = Update { a, b, scale, transposed };
            for base in self.ties(&base) {
                self.updates.insert(base.clone(), update.clone());
                adapter.merged.insert(base);
            }
        }
        Ok(())
    }

    /// A tensor's name, and the names of those that are tied to it.
    fn ties(&self, name: &str) -> Vec<Box<str>> {
        let mut all = vec![Box::from(name)];
        let place = self.tensors.get(name).map(TensorInfo::place);
        for tied in self.tied.iter().filter(|tied| &***tied != name) {
            if self.tensors.get(tied).map(TensorInfo::place) == place {
                all.push(tied.clone());
            }
        }
        all
    }

    /// The base's tensors for those that an adapter names. The classes of transformers call some modules otherwise in memory than in
    /// files, and the base or what was trained may be a part of the other: names are compared without `model` segments then, behind one
    /// prefix of either.
    ///
    /// # Errors
    /// Prefixes that fit alike.
    fn resolve(&self, wanted: &[String]) -> Result<BTreeMap<String, Box<str>>, String> {
        let mut found = BTreeMap::new();
        let mut open = Vec::new();
        for name in wanted {
            match self.tensors.get_key_value(name.as_str()) {
                Some((base, _)) => drop(found.insert(name.clone(), base.clone())),
                None => open.push((name, short(name))),
            }
        }
        if open.is_empty() {
            return Ok(found);
        }
        let mut known: BTreeMap<String, Option<&Box<str>>> = BTreeMap::new();
        for name in self.tensors.keys() {
            known.entry(short(name)).and_modify(|one| *one = None).or_insert(Some(name));
        }
        // What the base's names have before the adapter's, or the adapter's before the base's.
        let mut prefixes: BTreeSet<(&str, &str)> = [("", "")].into();
        if found.is_empty() {
            let wanted = || open.iter().take(8).map(|(_, name)| name.as_str());
            let outer = wanted().flat_map(|name| known.keys().filter_map(move |k| k.strip_suffix(name)));
            prefixes.extend(outer.filter(|prefix| prefix.ends_with('.')).take(64).map(|prefix| (prefix, "")));
            let inner = wanted().flat_map(|name| name.match_indices('.').map(move |(dot, _)| &name[..=dot]));
            prefixes.extend(inner.filter(|prefix| is_part(prefix)).map(|prefix| ("", prefix)));
        }
        let all = |(outer, inner): (&str, &str)| -> Vec<(&String, &Box<str>)> {
            let base = |name: &str| known.get(&format!("{outer}{}", name.strip_prefix(inner)?)).copied().flatten();
            open.iter().filter_map(|(name, short)| Some((*name, base(short)?))).collect()
        };
        let mut best: Vec<(usize, (&str, &str))> =
            prefixes.iter().map(|prefix| (all(*prefix).len(), *prefix)).collect();
        best.sort_unstable();
        let Some(&(most, prefix)) = best.last() else { return Ok(found) };
        let alike: Vec<&str> = best.iter().filter(|(n, _)| *n == most).map(|(_, (outer, _))| *outer).collect();
        if most > 0 && alike.len() > 1 {
            let places = some_of(alike.into_iter().map(brief), " and ");
            return Err(format!(
                "the tensors that it changes are below {places} alike: save the part that it is for alone, or name its tensors in full"
            ));
        }
        found.extend(all(prefix).into_iter().map(|(name, base)| (name.clone(), base.clone())));
        Ok(found)
    }

    /// A tensor with what the adapter adds to it.
    pub(super) fn merged<'s>(
        &'s self,
        base: Range<'s>,
        dtype: DType,
        info: &TensorInfo,
        update: &Update,
    ) -> Result<Merged<'s>> {
        let matrix = |info: &TensorInfo| -> Result<HostTensor<'s>> {
            let dtype = info.element().unwrap_or(DType::F32);
            HostTensor::in_file(dtype, &info.shape, self.range(info))
        };
        let columns = info.shape.last().copied().unwrap_or(0);
        let (a, b) = (matrix(&update.a)?, matrix(&update.b)?);
        Ok(Merged { base, dtype, columns, a, b, scale: update.scale, transposed: update.transposed })
    }
}

/// Whether a prefix ends with a module in which models keep a bridge, and which people save alone.
fn is_part(prefix: &str) -> bool {
    const PARTS: [&str; 9] = [
        "connector",
        "language_projection",
        "multi_modal_projector",
        "perceiver",
        "perceiver_resampler",
        "qformer",
        "Qformer",
        "resampler",
        "vision_tokenizer",
    ];
    prefix.trim_end_matches('.').rsplit('.').next().is_some_and(|module| PARTS.contains(&module))
}

/// A name without its `model` segments.
fn short(name: &str) -> String {
    name.split('.').filter(|segment| *segment != "model").collect::<Vec<_>>().join(".")
}

/// Whether an adapter's matrices fit a weight of [outputs, inputs], and whether they fit one of [inputs, outputs].
fn fits(base: &TensorInfo, [a, b]: [&TensorInfo; 2]) -> [bool; 2] {
    let ([rank, inputs], [outputs, other]) = (&*a.shape, &*b.shape) else { return [false; 2] };
    [[*outputs, *inputs], [*inputs, *outputs]].map(|shape| rank == other && *base.shape == shape)
}

/// Whether a module is called as the models of transformers call their `Conv1D`, whose weight is [inputs, outputs].
fn is_conv1d(module: &str) -> bool {
    let last = module.rsplit('.').next().unwrap_or(module);
    ["c_attn", "q_attn", "c_proj", "c_fc"].contains(&last)
}
