//! Adapters of PEFT: a few matrices that change a base model. They are recognised, and not loaded.

use std::path::Path;

use serde::Deserialize;

use super::json;
use crate::Error;

/// The file that makes a folder an adapter.
pub(super) const CONFIG: &str = "adapter_config.json";

/// What every adapter's configuration says.
#[derive(Deserialize)]
struct AdapterConfig {
    /// `LORA`, `IA3`, …
    peft_type: Option<String>,
    /// A folder, or a name on the hub.
    base_model_name_or_path: Option<String>,
}

/// Whether a file is called as PEFT calls an adapter's weights.
pub(super) fn is_weights(name: &str) -> bool {
    name.starts_with("adapter_model.") || name.starts_with("adapter_model-")
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
    let base = match &config.base_model_name_or_path {
        Some(base) => json::brief(format_args!("{base:?}")),
        None => "a base that it does not name".into(),
    };
    format!(
        "a PEFT adapter ({}) of {base}, not a checkpoint: merge it into its base (peft's merge_and_unload, then save_pretrained) \
         and open the folder that is saved",
        json::brief(kind.escape_debug())
    )
}
