//! PEFT's `adapter_config.json`: each field is obeyed, or refused by name.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::json::brief;
use super::pattern::Pattern;

/// The largest number of patterns, and of unknown fields counted in a note.
const MAX_PATTERNS: usize = 4096;

/// The largest number of patterns that are not plain names: each takes some KiB.
const MAX_EXPRESSIONS: usize = 32;

/// The fields that merging needs. Defaults are PEFT's.
#[derive(Debug)]
pub(super) struct AdapterConfig {
    /// `LORA`, `IA3`, …
    pub peft_type: Option<String>,
    /// A folder, or a name on the hub.
    pub base_model_name_or_path: Option<String>,
    pub fan_in_fan_out: bool,
    r: u32,
    lora_alpha: f64,
    use_rslora: bool,
    rank_pattern: Patterns,
    alpha_pattern: Patterns,
    init_lora_weights: Option<String>,
    /// The first field that asks for something unsupported.
    refused: Option<Box<str>>,
    /// Fields that today's PEFT does not have.
    pub unknown: Vec<String>,
}

/// Fields that change what an adapter computes, unless they are null, false or empty.
const REFUSED: [&str; 14] = [
    "use_dora",
    "lora_bias",
    "layer_replication",
    "trainable_token_indices",
    "target_parameters",
    "use_qalora",
    "use_bdlora",
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
    "velora_config",
    "megatron_config",
    "enable_lora",
];

/// Fields without effect on trained matrices: the tensors tell which modules they are for.
const WITHOUT_EFFECT: [&str; 22] = [
    "auto_mapping",
    "bias",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",
    "inference_mode",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_dropout",
    "lora_ga_config",
    "megatron_core",
    "merge_weights",
    "modules_to_save",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
    "target_modules_to_tie",
];

impl AdapterConfig {
    /// Refuses what is not merged, by name.
    pub fn expect_lora(&self) -> Result<(), String> {
        let advice = "xattn does not merge that; merge it with peft (merge_and_unload, then save_pretrained)";
        match self.peft_type.as_deref() {
            Some("LORA") => {}
            Some(other) => return Err(format!("peft_type: expected LORA, found {}: {advice}", brief(other))),
            None => return Err("peft_type: expected the kind of the adapter, found none".into()),
        }
        if let Some(field) = &self.refused {
            return Err(format!("{field}: expected none: {advice}"));
        }
        // These change the base when training begins.
        if let Some(start) = self.init_lora_weights.as_deref()
            && !["gaussian", "eva", "orthogonal"].contains(&start)
        {
            return Err(format!("init_lora_weights: {} changes the base: {advice}", brief(start)));
        }
        Ok(())
    }

    /// The factor of a module's matrices, whose rank is `rank`.
    pub fn scale(&self, module: &str, rank: usize) -> Result<f32, String> {
        let said = self.rank_pattern.of(module).unwrap_or(f64::from(self.r));
        if said != rank as f64 || rank == 0 {
            return Err(format!("module {}: expected lora_A of rank {said}, found {rank}", brief(module)));
        }
        let alpha = self.alpha_pattern.of(module).unwrap_or(self.lora_alpha);
        let scale = (alpha / if self.use_rslora { said.sqrt() } else { said }) as f32;
        if scale.is_finite() {
            Ok(scale)
        } else {
            Err(format!("module {}: alpha {alpha} is beyond f32", brief(module)))
        }
    }
}

/// Keys and their numbers, in the file's order: the first that matches counts.
#[derive(Debug, Default)]
struct Patterns(Vec<(Pattern, f64)>);

impl Patterns {
    fn of(&self, module: &str) -> Option<f64> {
        self.0.iter().find(|(pattern, _)| pattern.matches(module)).map(|(_, number)| *number)
    }
}

impl<'de> Deserialize<'de> for Patterns {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Map;
        impl<'de> Visitor<'de> for Map {
            type Value = Patterns;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of numbers by patterns")
            }

            fn visit_unit<E>(self) -> Result<Patterns, E> {
                Ok(Patterns::default())
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Patterns, A::Error> {
                let (mut patterns, mut expressions) = (Vec::new(), 0);
                while let Some((key, number)) = map.next_entry::<String, f64>()? {
                    if patterns.len() == MAX_PATTERNS {
                        return Err(A::Error::custom(format_args!("expected at most {MAX_PATTERNS} patterns")));
                    }
                    let pattern = Pattern::parse(&key).map_err(|what| {
                        A::Error::custom(format_args!("the pattern {} is not understood: {what}", brief(&key)))
                    })?;
                    expressions += usize::from(matches!(pattern, Pattern::Expression(_)));
                    if expressions > MAX_EXPRESSIONS {
                        return Err(A::Error::custom(format_args!(
                            "expected at most {MAX_EXPRESSIONS} patterns that are no names"
                        )));
                    }
                    patterns.push((pattern, number));
                }
                Ok(Patterns(patterns))
            }
        }
        deserializer.deserialize_any(Map)
    }
}

/// A value of which only these two facts are kept.
struct Weight {
    /// Neither null, false, 0 nor empty.
    set: bool,
    /// A switch, a list or an object, which turns something on. Numbers and texts only say how.
    turns_on: bool,
}

impl<'de> Deserialize<'de> for Weight {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Weight;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value")
            }

            fn visit_unit<E>(self) -> Result<Weight, E> {
                Ok(Weight { set: false, turns_on: false })
            }

            fn visit_bool<E>(self, set: bool) -> Result<Weight, E> {
                Ok(Weight { set, turns_on: set })
            }

            fn visit_i64<E>(self, n: i64) -> Result<Weight, E> {
                Ok(Weight { set: n != 0, turns_on: false })
            }

            fn visit_u64<E>(self, n: u64) -> Result<Weight, E> {
                Ok(Weight { set: n != 0, turns_on: false })
            }

            fn visit_f64<E>(self, n: f64) -> Result<Weight, E> {
                Ok(Weight { set: n != 0.0, turns_on: false })
            }

            fn visit_str<E>(self, text: &str) -> Result<Weight, E> {
                Ok(Weight { set: !text.is_empty(), turns_on: false })
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Weight, A::Error> {
                let mut set = false;
                while list.next_element::<IgnoredAny>()?.is_some() {
                    set = true;
                }
                Ok(Weight { set, turns_on: set })
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Weight, A::Error> {
                let mut set = false;
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {
                    set = true;
                }
                Ok(Weight { set, turns_on: set })
            }
        }
        deserializer.deserialize_any(Any)
    }
}

/// How the matrices were initialised: a flag, or a method's name.
struct Start(Option<String>);

impl<'de> Deserialize<'de> for Start {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl Visitor<'_> for Either {
            type Value = Start;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("true, false or a method")
            }

            fn visit_unit<E>(self) -> Result<Start, E> {
                Ok(Start(None))
            }

            fn visit_bool<E>(self, _: bool) -> Result<Start, E> {
                Ok(Start(None))
            }

            fn visit_str<E>(self, name: &str) -> Result<Start, E> {
                Ok(Start(Some(brief(name))))
            }
        }
        deserializer.deserialize_any(Either)
    }
}

impl<'de> Deserialize<'de> for AdapterConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = AdapterConfig;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of fields")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<AdapterConfig, A::Error> {
                let mut config = AdapterConfig {
                    peft_type: None,
                    base_model_name_or_path: None,
                    fan_in_fan_out: false,
                    r: 8,
                    lora_alpha: 8.0,
                    use_rslora: false,
                    rank_pattern: Patterns::default(),
                    alpha_pattern: Patterns::default(),
                    init_lora_weights: None,
                    refused: None,
                    unknown: Vec::new(),
                };
                while let Some(field) = map.next_key::<Box<str>>()? {
                    /// A field's value, or an error that names the field.
                    macro_rules! value {
                        () => {
                            map.next_value().map_err(|e| A::Error::custom(format_args!("{}: {e}", brief(&field))))?
                        };
                    }
                    match &*field {
                        "peft_type" => config.peft_type = value!(),
                        "base_model_name_or_path" => config.base_model_name_or_path = value!(),
                        "fan_in_fan_out" => config.fan_in_fan_out = value!(),
                        "r" => config.r = value!(),
                        "lora_alpha" => config.lora_alpha = value!(),
                        "use_rslora" => config.use_rslora = value!(),
                        "rank_pattern" => config.rank_pattern = value!(),
                        "alpha_pattern" => config.alpha_pattern = value!(),
                        "init_lora_weights" => {
                            let start: Start = value!();
                            config.init_lora_weights = start.0;
                        }
                        other => {
                            let weight: Weight = value!();
                            let known = REFUSED.contains(&other);
                            let harmless = WITHOUT_EFFECT.contains(&other) || !weight.set;
                            if !harmless && (known || weight.turns_on) {
                                config.refused = config.refused.or(Some(brief(other).into()));
                            } else if !harmless && config.unknown.len() < MAX_PATTERNS {
                                config.unknown.push(brief(other));
                            }
                        }
                    }
                }
                Ok(config)
            }
        }
        deserializer.deserialize_map(Fields)
    }
}
