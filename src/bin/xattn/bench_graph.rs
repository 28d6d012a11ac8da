//! `xattn bench --graph`.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use xattn::profile::{Case, GraphSession};
use xattn::{DType, Device, Error};

use super::bench::{commit, progress, put};

/// Checks and times cases, cold and warm; the file is written anew after each.
pub fn run(chosen: &[&Case], device: &Device, dtype: DType, json: Option<&Path>) -> Result<ExitCode, Error> {
    let mut out = std::io::stdout().lock();
    let commit = commit();
    let mut session = GraphSession::new(device, dtype, variant(|name| std::env::var(name).ok()))?;
    let _ = writeln!(out, "{}", session.head());
    for (i, case) in chosen.iter().enumerate() {
        progress(&format!("{} of {}: {}", i + 1, chosen.len(), case.name));
        let lines = session.run(case);
        progress("");
        let _ = writeln!(out, "{lines}");
        if let Some(path) = json {
            put(path, &session.json(commit.as_deref())?)?;
        }
    }
    let _ = writeln!(out, "{}", session.foot());
    Ok(if session.is_success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What the environment names in place of the backend's choices, for example `attention=general linear=128`.
fn variant(get: impl Fn(&str) -> Option<String>) -> Option<String> {
    let named = ["attention", "linear", "cublaslt"].into_iter().filter_map(|what| {
        let value = get(&format!("XATTN_CUDA_{}", what.to_uppercase())).filter(|value| !value.is_empty())?;
        Some(format!("{what}={value}"))
    });
    Some(named.collect::<Vec<_>>().join(" ")).filter(|all| !all.is_empty())
}

#[cfg(test)]
mod tests {
    use super::variant;

    #[test]
    fn a_variant_is_what_the_environment_names() {
        assert_eq!(variant(|_| None), None);
        assert_eq!(variant(|_| Some(String::new())), None);
        let some = |name: &str| match name {
            "XATTN_CUDA_LINEAR" => Some("128".to_string()),
            "XATTN_CUDA_ATTENTION" => Some("general".to_string()),
            _ => None,
        };
        assert_eq!(variant(some).as_deref(), Some("attention=general linear=128"));
    }
}
