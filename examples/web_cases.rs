//! Writes cases for `examples/web/` into a folder, for `scripts/web-test`:
//!
//! ```text
//! cargo run --release --features wgpu --example web_cases -- FOLDER
//! ```
//!
//! `cases.json` lists them: dispatches, and the outputs with their bounds. Numbers lie in
//! `<i>.bin`, where `[offset, bytes]` says.

use std::error::Error;
use std::path::Path;

use serde_json::{Value, json};
use xattn::verify::web::{Tracer, WebCase, cases};

/// Parts of a file, each where any typed array may begin.
#[derive(Default)]
struct Parts(Vec<u8>);

impl Parts {
    fn push(&mut self, bytes: &[u8]) -> Value {
        let at = self.0.len();
        self.0.extend_from_slice(bytes);
        self.0.resize(self.0.len().next_multiple_of(8), 0);
        json!([at, bytes.len()])
    }
}

fn write(folder: &Path, i: usize, case: &WebCase) -> Result<Value, Box<dyn Error>> {
    let mut parts = Parts::default();
    let dispatches: Vec<Value> = case
        .dispatches
        .iter()
        .map(|d| {
            let bindings: Vec<Value> = d
                .bindings
                .iter()
                .map(|b| json!({ "buffer": b.buffer, "offset": b.offset, "size": b.size, "readOnly": b.read_only }))
                .collect();
            json!({ "entry": d.entry, "text": d.text, "grid": d.grid, "params": d.params, "bindings": bindings })
        })
        .collect();
    let buffers: Vec<Value> = case.buffers.iter().map(|bytes| parts.push(bytes)).collect();
    let outputs: Vec<Value> = case
        .outputs
        .iter()
        .map(|o| {
            let mut numbers = |values: &[f64]| parts.push(bytemuck::cast_slice(values));
            json!({
                "name": o.name, "buffer": o.buffer, "dtype": o.dtype.name(),
                "expected": numbers(&o.expected), "bounds": numbers(&o.bounds), "rmsBound": o.rms_bound,
            })
        })
        .collect();
    let file = format!("{i}.bin");
    std::fs::write(folder.join(&file), &parts.0)?;
    Ok(json!({ "case": case.case, "file": file, "dispatches": dispatches, "buffers": buffers, "outputs": outputs }))
}

fn main() -> Result<(), Box<dyn Error>> {
    let folder = std::env::args_os().nth(1).ok_or("usage: web_cases FOLDER")?;
    let folder = Path::new(&folder);
    std::fs::create_dir_all(folder)?;
    let tracer = Tracer::open()?;
    println!("traced on {}: {}", tracer.device().info().name, tracer.device().info().details);
    let mut list = Vec::new();
    for case in cases()? {
        match tracer.trace(&case) {
            Ok(Some(traced)) => list.push(write(folder, list.len(), &traced)?),
            Ok(None) => println!("nothing to dispatch: {case}"),
            Err(error) => return Err(format!("{case}: {error}").into()),
        }
    }
    let count = list.len();
    std::fs::write(
        folder.join("cases.json"),
        json!({ "version": env!("CARGO_PKG_VERSION"), "cases": list }).to_string(),
    )?;
    println!("{count} cases");
    Ok(())
}
