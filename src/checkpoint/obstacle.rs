//! Weights in a form that no bridge reads: quantised, flattened, or split into a base and LoRA
//! matrices. Also a file of other tensors in place of an index.

use std::collections::BTreeSet;

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::json::{self, brief, some_of};
use super::{Files, TensorInfo, names};

impl Files {
    /// Why present weights that a bridge needs cannot be read, in a sentence; none if they can.
    /// `needs` is asked about full names of tensors, such as `model.connector.proj.weight`.
    ///
    /// A quantised language model beside a bridge in floating point does no harm.
    pub fn obstacle(&self, needs: impl Fn(&str) -> bool) -> Option<String> {
        let path = self.shards.first().map(|shard| shard.file.path());
        let name = path.and_then(|path| path.file_name()).unwrap_or_default().to_string_lossy();
        if name.ends_with(".index.json") {
            return Some(format!(
                "{} is a safetensors file in the place of an index of shards; it holds {} tensors: {}",
                brief(name),
                self.tensors().len(),
                some_of(self.tensors().keys(), ", ")
            ));
        }
        let mut unmerged = BTreeSet::new();
        let mut quantised = BTreeSet::new();
        // Names keep their wrappers only where copies differ.
        let mut copies = BTreeSet::new();
        let mut kind = None;
        for (name, info) in self.tensors() {
            if let Some(copy) = names::unwrap(name).filter(|w| name[..w.wrapper].contains("modules_to_save.")) {
                if needs(&copy.plain) {
                    copies.insert(name[..copy.wrapper].to_string());
                }
            } else if let Some(module) = of_lora(name) {
                let weight = format!("{module}.weight");
                // Older files keep the weight under its own name beside the matrices.
                if needs(&weight) || needs(name) {
                    unmerged.insert(weight);
                }
            } else if let Some((module, method)) = of_quantised(name, self) {
                let weight = format!("{module}.weight");
                if needs(&weight) {
                    quantised.insert(weight);
                    kind = kind.or(Some(method));
                }
            } else if info.is_narrow() && !name.contains(".weight.") && needs(name) {
                // `weight.absmax` and the like only help to restore a weight beside them.
                quantised.insert(name.to_string());
            }
        }
        if let Some(flat) = self.tensors().keys().find(|name| is_flat(name)) {
            return Some(format!(
                "{}: FSDP keeps the weights of this module as one flat tensor, which tells neither names nor shapes; save the model with \
                 StateDictType.FULL_STATE_DICT",
                brief(flat)
            ));
        }
        if copies.len() > 1 {
            return Some(format!(
                "copies that several adapters trained, of which none is said to count: {}; choose one in peft (set_adapter, \
                 merge_and_unload, then save_pretrained) and open what is saved",
                some_of(copies.iter().map(brief), ", ")
            ));
        }
        if !unmerged.is_empty() {
            return Some(format!(
                "an unmerged LoRA: {} weights ({}) are split into base_layer, lora_A and lora_B, and no tensor tells the alpha; merge it \
                 (peft's merge_and_unload, then save_pretrained) and open what is saved",
                unmerged.len(),
                some_of(unmerged.iter().map(brief), ", ")
            ));
        }
        let first = quantised.first()?;
        let dtype = || self.info(first).map(TensorInfo::dtype).unwrap_or_default();
        let what = match declared(self) {
            Some(declared) => format!("config.json declares {declared} weights"),
            None => format!("{} weights", kind.map_or_else(|| format!("quantised ({})", dtype()), str::to_string)),
        };
        Some(format!(
            "{what}, which xattn does not read: {}; save the model with the bridge in f32, f16 or bf16",
            some_of(quantised.iter().map(brief), ", ")
        ))
    }
}

/// Whether a tensor is all parameters of a module, one behind the other.
fn is_flat(name: &str) -> bool {
    name.rsplit('.').next().is_some_and(|last| last == "flat_param" || last.starts_with("_flat_param"))
}

/// The module of an unmerged LoRA's tensor.
fn of_lora(name: &str) -> Option<&str> {
    let at = [".lora_A.", ".lora_B.", ".lora_embedding_A", ".lora_embedding_B", ".lora_magnitude_vector"];
    let module = at.iter().find_map(|part| name.split_once(part).map(|(module, _)| module));
    module.or_else(|| name.strip_suffix(".base_layer.weight"))
}

/// The module of a tensor that only quantised modules have, and the quantisation method.
fn of_quantised<'n>(name: &'n str, files: &Files) -> Option<(&'n str, &'static str)> {
    let (before, last) = name.rsplit_once('.')?;
    Some(match last {
        "bitsandbytes__nf4" => (before.strip_suffix(".weight.quant_state")?, "bitsandbytes 4-bit (nf4)"),
        "bitsandbytes__fp4" => (before.strip_suffix(".weight.quant_state")?, "bitsandbytes 4-bit (fp4)"),
        "SCB" => (before, "bitsandbytes 8-bit"),
        "g_idx" => (before, "GPTQ"),
        "qweight" if files.info(&format!("{before}.g_idx")).is_some() => (before, "GPTQ"),
        "qweight" => (before, "AWQ or GPTQ"),
        "weight_packed" => (before, "compressed-tensors"),
        "weight_scale" | "weight_scale_inv" => (before, "FP8 or int8"),
        "weight_scales" => (before, "EETQ"),
        "W_q" => (before, "HQQ"),
        "codebooks" => (before, "AQLM"),
        "_data" | "_scale" => (before.strip_suffix(".weight")?, "quanto"),
        "_weight_qdata" => (before, "torchao"),
        // MLX gives the packed tensor the weight's own name.
        "scales" if files.info(&format!("{before}.weight")).is_some_and(|w| w.dtype() == "u32") => (before, "MLX"),
        _ => return None,
    })
}

/// The configuration's description of the weights.
fn declared(files: &Files) -> Option<String> {
    #[derive(Deserialize)]
    struct Config {
        quantization_config: Option<Quantisation>,
        /// MLX's.
        quantization: Option<Quantisation>,
    }
    #[derive(Deserialize)]
    struct Quantisation {
        quant_method: Option<String>,
        load_in_4bit: Option<bool>,
        load_in_8bit: Option<bool>,
        bnb_4bit_quant_type: Option<String>,
        bits: Option<f64>,
        group_size: Option<IgnoredAny>,
    }
    let (_, text) = files.config()?;
    let Config { quantization_config, quantization } = json::parse(text).ok()?;
    let (config, mlx) = (quantization_config.as_ref().or(quantization.as_ref())?, quantization.is_some());
    let method = match config.quant_method.as_deref() {
        Some("gptq") => "GPTQ",
        Some("awq") => "AWQ",
        Some("fp8" | "fbgemm_fp8") => "FP8",
        Some("hqq") => "HQQ",
        Some("aqlm") => "AQLM",
        Some("mxfp4") => "MXFP4",
        Some("eetq") => "EETQ",
        Some(other) => other,
        None if mlx && config.group_size.is_some() => "MLX",
        None if config.load_in_4bit.is_some() || config.load_in_8bit.is_some() => "bitsandbytes",
        None => "quantised",
    };
    let bits = match (config.load_in_4bit, config.load_in_8bit, config.bits) {
        (Some(true), _, _) => Some(4.0),
        (_, Some(true), _) => Some(8.0),
        (_, _, bits) => bits,
    };
    let bits = bits.map_or(String::new(), |bits| format!(" {bits}-bit"));
    let kind = match &config.bnb_4bit_quant_type {
        Some(kind) if config.load_in_4bit == Some(true) => format!(" ({})", brief(kind)),
        _ => String::new(),
    };
    Some(format!("{}{bits}{kind}", brief(method)))
}
