//! Every kernel instance, without a device: what Rust says of a text against the text itself.

use super::compile::KernelText;
use super::instances;
use crate::backend::gpu::{self, Kernels};
use crate::ops::{self, for_each_op};

fn params(name: &str) -> Option<Vec<(String, &'static str)>> {
    macro_rules! fields_of {
        ($($word:ident $op:ident $case:ident),* $(,)?) => {
            $(if name == concat!(stringify!($op), "Params") {
                return Some(gpu::fields::<<ops::$op as Kernels>::Params>());
            })*
        };
    }
    for_each_op!(fields_of);
    None
}

/// The text without comments.
fn code(text: &str) -> String {
    text.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
}

/// `(name, type)` of the fields of `struct name { … };`.
fn fields(code: &str, name: &str) -> Option<Vec<(String, String)>> {
    let (_, rest) = code.split_once(&format!("struct {name} {{"))?;
    let (body, _) = rest.split_once('}')?;
    let mut fields = Vec::new();
    for declaration in body.split(';').map(str::trim).filter(|d| !d.is_empty()) {
        let (ty, names) = declaration.split_once(char::is_whitespace)?;
        fields.extend(names.split(',').map(|name| (name.trim().to_string(), ty.to_string())));
    }
    Some(fields)
}

/// The two structs of each `KERNEL(P, O) {` or `KERNEL_WITH_MAPS(P, O, M) {`.
fn kernel_structs(code: &str) -> Vec<(String, String)> {
    let lines = code.lines().map(str::trim);
    let lists = lines.filter_map(|l| l.strip_prefix("KERNEL(").or_else(|| l.strip_prefix("KERNEL_WITH_MAPS(")));
    let words = lists.filter_map(|rest| Some(rest.split_once(')')?.0.split(',').map(str::trim)));
    words.filter_map(|mut words| Some((words.next()?.to_string(), words.next()?.to_string()))).collect()
}

fn check(source: &KernelText) {
    let (name, code) = (source.entry().to_string(), code(&source.text()));
    let structs = kernel_structs(&code);
    assert_eq!(structs.len(), 1, "{name}: one entry point in a text: {structs:?}");
    let (params, operands) = &structs[0];

    let rust = self::params(params).unwrap_or_else(|| panic!("{name}: {params} are no op's parameters"));
    let rust: Vec<(String, String)> = rust.into_iter().map(|(n, t)| (n, t.to_string())).collect();
    let cuda = fields(&code, params).unwrap_or_else(|| panic!("{name}: no struct {params}"));
    assert_eq!(cuda, rust, "{name}: fields of {params} in CUDA and in Rust");

    let cuda = fields(&code, operands).unwrap_or_else(|| panic!("{name}: no struct {operands}"));
    let rust: Vec<_> = source.operand_names().iter().map(|n| (n.to_string(), "Operand".to_string())).collect();
    assert_eq!(cuda, rust, "{name}: fields of {operands} in CUDA, operands in Rust");
}

#[test]
fn parameters_and_operands_are_the_same_in_cuda_and_in_rust() {
    let all = instances();
    all.iter().for_each(check);
    assert!(!all.is_empty());
}

#[test]
fn every_text_stands_alone() {
    for source in instances() {
        let (name, text) = (source.entry(), source.text());
        assert!(!text.contains("#include"), "{name}");
        assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'), "{name}");
        assert!(text.contains(&format!("#line 1 \"{}\"", source.body().path)), "{name}");
        assert!(text.contains(&format!("\n#define THREADS {}\n", source.block())), "{name}");
        // Once, or once for each side of an architecture.
        let branches = text.matches("#if __CUDA_ARCH__ >= 900\n#define MIN_BLOCKS ").count();
        assert_eq!(
            text.matches("\n#define MIN_BLOCKS ").count(),
            1 + branches + text.matches("\n#ifndef MIN_BLOCKS\n").count(),
            "{name}"
        );
    }
}

#[test]
fn a_field_that_moves_is_seen() {
    let text = "struct P { u32 a_offset, b; // c\n f32 eps; };\nKERNEL(P, O) {";
    let field = |name: &str, ty: &str| (name.to_string(), ty.to_string());
    assert_eq!(fields(&code(text), "P").unwrap(), [field("a_offset", "u32"), field("b", "u32"), field("eps", "f32")]);
    assert_eq!(kernel_structs(text), [("P".to_string(), "O".to_string())]);
    assert_eq!(kernel_structs("KERNEL_WITH_MAPS(P, O, M) {"), [("P".to_string(), "O".to_string())]);
}
