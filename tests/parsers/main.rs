//! Parsers of files, each fed with seeded mutations of valid ones: no panic, no hang, memory in proportion, nothing accepted that is wrong.
//!
//! A failure prints the line that runs its input again. `XATTN_PARSER_INPUTS=100000` runs more inputs per parser.

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
