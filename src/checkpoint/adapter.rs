//! PEFT adapters: a few matrices that change a base model. LoRA is merged while tensors are read
//! (`tensor/merged.rs`); every other method is refused by name.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use super::adapter_config::AdapterConfig;
use super::adapter_names::{Part, base_name, part, short};
use super::files::{Files, Update, exists, open_shard};
use super::json::{self, brief, some_of};
use super::{TensorInfo, folder, index};
use crate::regular::Range;
use crate::tensor::merged::Merged;
use crate::{DType, Error, HostTensor, Result};

/// The file that makes a folder an adapter.
pub(super) const CONFIG: &str = "adapter_config.json";

/// The prefix of every name in an adapter: PEFT's model, and the base in it.
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
    /// Modules whose base weight is not a matrix of reals.
    left: Vec<String>,
    /// Prefixes of its tensors in the base, where the adapter has others.
    below: Vec<String>,
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

    /// The base model that it names: a folder of the machine that trained it, or a name on the hub.
    pub fn base(&self) -> Option<&str> {
        self.base.as_deref()
    }

    /// The checkpoint's tensors to which it adds a product, by name.
    pub fn merged(&self) -> impl Iterator<Item = &str> {
        self.merged.iter().map(|name| &**name)
    }

    /// The checkpoint's tensors that it replaces: biases, and modules that were trained whole.
    pub fn replaced(&self) -> impl Iterator<Item = &str> {
        self.replaced.iter().map(|name| &**name)
    }

    /// Tensors that it would change and the checkpoint lacks, by the adapter's names.
    pub fn missing(&self) -> &[String] {
        &self.missing
    }

    /// Refuses an adapter that fits several places, unless these are copies of a bridge
    /// (`candidates`), of which one is chosen.
    pub(super) fn expect_copies(&self, candidates: &BTreeSet<String>) -> Result<()> {
        let candidates: Vec<String> = candidates.iter().map(|c| short(c)).collect();
        let is_copy = |below: &String| candidates.iter().any(|c| c.starts_with(below.as_str()));
        if self.below.len() < 2 || self.below.iter().all(is_copy) {
            return Ok(());
        }
        let places = some_of(self.below.iter().map(brief), ", ");
        let fault = format!(
            "the tensors that it changes are below {places} alike: save the part that it is for alone, or name its tensors in full"
        );
        Err(Error::file(&self.path, fault))
    }
}

/// Whether a file has a name that PEFT gives an adapter's weights.
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
    let config: AdapterConfig = match json::parse(&json::quoted_non_finite(text)) {
        Ok(config) => config,
        Err(fault) => return format!("not an adapter's configuration: {fault}"),
    };
    let Some(kind) = &config.peft_type else { return "peft_type: expected the kind of the adapter, found none".into() };
    format!(
        "a PEFT adapter ({}) of {}, not a checkpoint: open its base with --adapter and this folder, or merge it (peft's \
         merge_and_unload, then save_pretrained) and open the folder that is saved",
        brief(kind),
        named_base(config.base_model_name_or_path.as_deref())
    )
}

fn named_base(base: Option<&str>) -> String {
    base.map_or("a base that it does not name".into(), |base| brief(format_args!("{base:?}")))
}

/// Refuses a file that holds only an adapter, by its tensors' names: the configuration, which
/// merging needs, is not beside it.
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

/// The folder of the adapter beside a checkpoint, and a note about others.
fn beside(folder: &Path, opened: &Path) -> Result<(Option<PathBuf>, Option<String>)> {
    let mut found: Vec<PathBuf> = Vec::new();
    if exists(&folder.join(CONFIG)) {
        found.push(folder.to_path_buf());
    }
    // Beside a named file, no subfolder is searched.
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

/// Refuses an adapter's weights beside a checkpoint when their configuration is missing.
fn expect_no_weights(folder: &Path) -> Result<()> {
    match folder::names(folder)?.into_iter().find(|name| is_weights(name)) {
        None => Ok(()),
        Some(name) => {
            let fault = format!(
                "no {CONFIG} lies beside this adapter: it tells rank and alpha; --adapter none leaves the adapter out"
            );
            Err(Error::file(folder.join(name), fault))
        }
    }
}

/// The subfolders that are adapters, without a training's earlier states.
fn in_subfolders(folder: &Path) -> Result<Vec<PathBuf>> {
    let names = folder::names(folder)?;
    let folders = names.iter().filter(|name| !name.starts_with("checkpoint-")).map(|name| folder.join(name));
    Ok(folders.filter(|path| exists(&path.join(CONFIG))).collect())
}

fn choose(folder: &Path, several: &[PathBuf]) -> Error {
    let names = some_of(several.iter().map(|path| brief(path.display())), ", ");
    Error::file(folder, format!("{} adapters could be merged: {names}; --adapter names one, or none", several.len()))
}

/// Configuration and weights of a named adapter. PEFT saves `name` in a folder `name`.
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

/// A module's `lora_A` and `lora_B`.
#[derive(Default)]
struct Pair {
    matrices: [Option<TensorInfo>; 2],
    embedding: bool,
}

impl Files {
    /// Reads the chosen adapter. `parts` are the modules in which models keep a bridge.
    pub(super) fn open_adapter(&mut self, folder: &Path, choice: AdapterChoice<'_>, parts: &[&str]) -> Result<()> {
        let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        let place = match choice {
            AdapterChoice::None => {
                let none = beside(folder, &self.path).is_ok_and(|(place, _)| place.is_none());
                self.left_out = !none || expect_no_weights(folder).is_err();
                return Ok(());
            }
            AdapterChoice::At(path) => path.to_path_buf(),
            AdapterChoice::Beside => {
                let (place, note) = beside(folder, &self.path)?;
                self.notes.extend(note);
                if place.is_none() {
                    expect_no_weights(folder)?;
                }
                let Some(place) = place else { return Ok(()) };
                place
            }
        };
        let (config_path, path) = locate(&place)?;
        let text = json::read(&config_path)?;
        let fault = |fault: String| Error::file(&config_path, fault);
        let text = json::quoted_non_finite(&text);
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
            left: Vec::new(),
            below: Vec::new(),
        };
        self.apply(&mut adapter, &config, tensors.collect(), parts).map_err(|what| Error::file(&path, what))?;
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
        if !adapter.below.is_empty() {
            note.push_str(&format!(", below {}", some_of(adapter.below.iter().map(brief), ", ")));
        }
        if !adapter.left.is_empty() {
            let names = some_of(adapter.left.iter().map(brief), ", ");
            note.push_str(&format!("; {} are no matrices of reals and stay as they are: {names}", adapter.left.len()));
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

    /// Finds the base's tensor for each of the adapter's, and checks that they fit.
    fn apply(
        &mut self,
        adapter: &mut Adapter,
        config: &AdapterConfig,
        tensors: BTreeMap<Box<str>, TensorInfo>,
        parts: &[&str],
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
                // PEFT loads the copy without `modules_to_save` in its name, if there are both.
                Part::Copy(name) if copies.contains_key(name) && full.contains("modules_to_save.") => {}
                Part::Copy(name) => drop(copies.insert(name.into(), info)),
            }
        }
        let wanted: Vec<String> =
            pairs.keys().map(|module| format!("{module}.weight")).chain(copies.keys().cloned()).collect();
        let (mut found, below) = self.resolve(&wanted, parts);
        adapter.below = below;
        if found.is_empty() {
            let names = some_of(wanted.iter().map(brief), ", ");
            return Err(match wanted.len() {
                0 => "an adapter without any tensor".into(),
                n => format!(
                    "an adapter of another model or of another part of it, {}: none of the {n} tensors that it changes is in {}: {names}",
                    named_base(adapter.base.as_deref()),
                    self.path.display()
                ),
            });
        }
        for (name, info) in copies {
            let Some(bases) = found.remove(&name) else {
                adapter.missing.push(name);
                continue;
            };
            for base in bases.iter().flat_map(|base| self.ties(base)).collect::<Vec<_>>() {
                if let Some(original) = self.tensors.insert(base.clone(), info.clone()) {
                    self.originals.insert(base.clone(), original);
                }
                adapter.replaced.insert(base);
            }
        }
        // PEFT asks the class of each module, but saves the fan_in_fan_out of the last one only.
        let any = |expected: [bool; 2]| {
            pairs.iter().any(|(module, pair)| {
                let base = found.get(&format!("{module}.weight")).and_then(|bases| self.tensors.get(&bases[0]));
                let Pair { matrices: [Some(a), Some(b)], embedding: false } = pair else { return false };
                base.is_some_and(|base| fits(base, [a, b]) == expected)
            })
        };
        let (linear, conv1d) = (any([true, false]), config.fan_in_fan_out || any([false, true]));
        // If some modules have names of Conv1D's, the flag is theirs.
        let others = config.fan_in_fan_out && !linear && !pairs.keys().any(|module| is_conv1d(module));
        for (module, pair) in pairs {
            let Pair { matrices: [Some(a), Some(b)], embedding } = pair else {
                return Err(format!("module {}: expected lora_A and lora_B, found one of them", brief(&module)));
            };
            let scale = config.scale(&module, a.shape.first().copied().unwrap_or(0))?;
            let weight = format!("{module}.weight");
            let Some(bases) = found.remove(&weight) else {
                adapter.missing.push(weight);
                continue;
            };
            for base in bases {
                let Some(info) = self.tensors.get(&base) else { continue };
                // A convolution's weight, or a quantised one, reported where it is needed.
                if info.element().is_none_or(|dtype| !dtype.is_float()) || info.shape.len() != 2 {
                    adapter.left.push(weight.clone());
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
                    ([true, true], false) => others || conv1d && is_conv1d(&module),
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
                let update = Update { a: a.clone(), b: b.clone(), scale, transposed };
                for base in self.ties(&base) {
                    self.updates.insert(base.clone(), update.clone());
                    adapter.merged.insert(base);
                }
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

/// Whether an adapter's matrices fit a weight of [outputs, inputs], and one of [inputs, outputs].
fn fits(base: &TensorInfo, [a, b]: [&TensorInfo; 2]) -> [bool; 2] {
    let ([rank, inputs], [outputs, other]) = (&*a.shape, &*b.shape) else { return [false; 2] };
    [[*outputs, *inputs], [*inputs, *outputs]].map(|shape| rank == other && *base.shape == shape)
}

/// Whether transformers' `Conv1D` has such a name; its weight is [inputs, outputs].
fn is_conv1d(module: &str) -> bool {
    let last = module.rsplit('.').next().unwrap_or(module);
    ["c_attn", "q_attn", "c_proj", "c_fc"].contains(&last)
}
