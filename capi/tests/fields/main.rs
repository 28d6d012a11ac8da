//! Every field of every struct of `xattn.h` is moved once, from a valid call, and must be seen to
//! matter: in numbers, or in a whole message.
//!
//! The list of structs and fields is that of the header. A field that no table has fails
//! [`tables_have_every_field_of_the_header`], as does a row whose field is gone. What holds for all
//! fields of a type is tried by itself (`table.rs`): sizes of structs that no version has, tensors
//! whose size is wrong, which must be refused under the name of the field, numbers outside an enum,
//! flags other than 0 and 1. Every number of an enum must be in a row of each field that holds one.
//!
//! The same calls are enqueued with a workspace that is too small (`enqueue.rs`), and their handles
//! used after they were freed (`handles.rs`). What is handed over beside structs is in
//! `parameters.rs`.
#![cfg(feature = "checkpoint")]

mod attention;
mod bridges;
mod described;
mod enqueue;
mod files;
mod handles;
mod header;
mod ops;
mod options;
mod parameters;
mod table;
mod world;

use std::collections::BTreeSet;

use header::{Header, committed};
use table::Case;

fn cases() -> Vec<Case> {
    [ops::cases(), attention::cases(), bridges::cases(), options::cases()].into_iter().flatten().collect()
}

/// What header and tables do not have in common.
fn complaints(header: &Header, fields: &BTreeSet<(String, String)>) -> Vec<String> {
    let there: BTreeSet<(String, String)> =
        header.structs.iter().flat_map(|s| s.fields.iter().map(|f| (s.name.clone(), f.name.clone()))).collect();
    let lacks =
        there.difference(fields).map(|(s, f)| format!("{s}.{f}: in the header, and in no table of capi/tests/fields"));
    let gone = fields
        .difference(&there)
        .map(|(s, f)| format!("{s}.{f}: in a table of capi/tests/fields, and not in the header"));
    lacks.chain(gone).collect()
}

fn fields_of_tables() -> BTreeSet<(String, String)> {
    let moved = cases().into_iter().flat_map(|c| c.fields());
    moved.chain(described::fields()).collect()
}

#[test]
fn tables_have_every_field_of_the_header() {
    let header = committed();
    let found = complaints(header, &fields_of_tables());
    assert!(found.is_empty(), "{}", found.join("\n"));
    // A parser that overlooks a struct would find nothing amiss.
    let text = header::text();
    let of_structs = text.matches("typedef struct xattn_").count();
    assert_eq!(header.structs.len() + header.opaque.len(), of_structs);
    for (name, size) in cases().iter().map(|c| (c.of, c.size)).chain(described::sizes()) {
        assert_eq!(header.of(name).size, size, "sizeof({name})");
    }
}

/// The check itself: a field more, a struct more, a field less.
#[test]
fn a_new_field_and_one_that_is_gone_are_noticed() {
    let (text, fields) = (header::text(), fields_of_tables());
    let complaints = |text: &str| complaints(&Header::parse(text), &fields);
    let wider = text.replacen("  float eps;\n", "  float eps;\n  /*\n   New.\n   */\n  uint32_t fresh;\n", 1);
    assert_eq!(complaints(&wider), ["xattn_norm_args.fresh: in the header, and in no table of capi/tests/fields"]);
    let more = format!("typedef struct xattn_new {{\n  uint32_t fresh;\n}} xattn_new;\n{text}");
    assert_eq!(complaints(&more), ["xattn_new.fresh: in the header, and in no table of capi/tests/fields"]);
    let less = text.replacen("  float eps;\n", "", 1);
    assert_eq!(complaints(&less), ["xattn_norm_args.eps: in a table of capi/tests/fields, and not in the header"]);
}
