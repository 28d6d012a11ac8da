//! Criterion benches of every op, named as `xattn bench --list` names them.
//! `cargo bench --bench ops -- attention/openflamingo` runs some.

mod support;

fn main() {
    support::run(|name| {
        ["attention/", "media_index/", "norm/", "linear/", "gated_residual/"].iter().any(|op| name.starts_with(op))
    });
}
