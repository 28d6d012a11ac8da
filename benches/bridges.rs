//! Criterion benches of every bridge, named as `xattn bench --list` names them.

mod support;

fn main() {
    support::run(|name| {
        ["resampler/", "gated_block/", "project_media/", "prefill/", "qformer/", "qformer_head/"]
            .iter()
            .any(|b| name.starts_with(b))
    });
}
