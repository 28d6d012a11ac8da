//! The committed header is what the sources say.

use std::path::Path;

#[test]
fn the_header_is_up_to_date() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let config =
        cbindgen::Config::from_file(root.join("cbindgen.toml")).expect("capi/cbindgen.toml is a configuration");
    let bindings = cbindgen::generate_with_config(root, config).expect("the sources are readable");
    let mut text = Vec::new();
    bindings.write(&mut text);
    let generated = String::from_utf8(text).expect("a header is UTF-8");
    let path = root.join("include/xattn.h");
    if std::env::var_os("XATTN_UPDATE_HEADER").is_some() {
        std::fs::write(&path, &generated).expect("capi/include is writable");
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        committed == generated,
        "capi/include/xattn.h is stale: run XATTN_UPDATE_HEADER=1 cargo test -p xattn-capi --test header"
    );
}
