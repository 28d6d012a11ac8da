//! Devices and element types, as options name them.

use clap::builder::{PossibleValuesParser, TypedValueParser};
use xattn::{DType, DeviceKind};

/// One device, or all that are found.
#[derive(Clone, Copy)]
pub struct Devices(pub Option<DeviceKind>);

/// A device of those that a command runs on.
pub fn device(kinds: &'static [DeviceKind]) -> impl TypedValueParser<Value = DeviceKind> {
    named(kinds, DeviceKind::name)
}

/// Any device, or `all`.
pub fn devices() -> impl TypedValueParser<Value = Devices> {
    const ALL: [Devices; 5] = {
        let [a, b, c, d] = DeviceKind::ALL;
        [Devices(Some(a)), Devices(Some(b)), Devices(Some(c)), Devices(Some(d)), Devices(None)]
    };
    named(&ALL, |Devices(kind)| kind.map_or("all", DeviceKind::name))
}

/// An element type of those that a command computes in.
pub fn dtype(dtypes: &'static [DType]) -> impl TypedValueParser<Value = DType> {
    named(dtypes, DType::name)
}

/// One of several values, by its name.
fn named<T: Copy + Send + Sync + 'static>(
    all: &'static [T],
    name: fn(T) -> &'static str,
) -> impl TypedValueParser<Value = T> {
    let find = move |text: String| all.iter().copied().find(|&one| name(one) == text).ok_or("no such name");
    PossibleValuesParser::new(all.iter().map(move |&one| name(one))).try_map(find)
}
