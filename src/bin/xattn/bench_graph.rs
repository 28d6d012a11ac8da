//! `xattn bench --graph`.

use std::process::ExitCode;

use xattn::profile::{Case, GraphSession};
use xattn::{DType, Device, Error};

use super::bench::{COMMIT, put};
use crate::output::Output;
use crate::print::{Printer, progress};

/// Checks and times cases, cold and warm; the file is written anew after each.
pub fn run(
    chosen: &[&Case],
    device: &Device,
    dtype: DType,
    json: Option<&Output>,
    out: &mut Printer,
) -> Result<ExitCode, Error> {
    let mut session = GraphSession::new(device, dtype, variant(|name| std::env::var(name).ok()))?;
    out.line(session.head())?;
    for (i, case) in chosen.iter().enumerate() {
        progress(format!("{} of {}: {}", i + 1, chosen.len(), case.name));
        let lines = session.run(case);
        progress("");
        out.line(lines)?;
        put(json.filter(|json| json.is_replaced()), &session.json(COMMIT)?)?;
        if out.is_closed() {
            break;
        }
    }
    put(json, &session.json(COMMIT)?)?;
    out.line(session.foot())?;
    Ok(if session.is_success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What the environment names in place of the backend's choices, for example
/// `attention=general linear=128`.
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
