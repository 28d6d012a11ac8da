//! Parsers of files, each fed with seeded mutations of valid ones: no panic, no hang, memory in
//! proportion, nothing accepted that is wrong.
//!
//! A failure prints the line that repeats its input; `XATTN_PARSER_INPUTS=100000` runs more.

mod adapter;
mod config;
#[path = "../counting/mod.rs"]
mod counting;
mod fixture;
mod harness;
mod header;
mod index;
mod json;
mod messages;
mod packing;

#[test]
fn allocations_are_counted() {
    counting::check();
}
