//! Parameters of kernels: flat structs of `u32` and `f32` with the same fields in the same order in
//! Rust, CUDA and WGSL (tests compare them).
//!
//! They begin with `offsets`: in CUDA and WGSL a field `<operand>_offset` per operand, absent ones
//! included, the element at which it begins in its binding. wgpu's `Launch` fills them in, per set
//! of operands. On CUDA they stay 0: pointers say where operands begin.

/// A parameter struct.
pub trait Params: bytemuck::Pod {
    /// The list of operands whose offsets come first, if there is one.
    #[cfg(test)]
    const OPERANDS: &'static [&'static [&'static str]];

    /// `(name, type)` of each field behind the offsets, in order.
    #[cfg(test)]
    const FIELDS: &'static [(&'static str, &'static str)];
}

/// `(name, type)` of each field in CUDA and WGSL, in order.
#[cfg(test)]
pub(in crate::backend) fn fields<P: Params>() -> Vec<(String, &'static str)> {
    let offsets = P::OPERANDS.concat().into_iter().map(|operand| (format!("{operand}_offset"), "u32"));
    offsets.chain(P::FIELDS.iter().map(|&(name, ty)| (name.to_string(), ty))).collect()
}

/// A parameter struct, of kernels whose operands are listed: `params! { WordParams of WordOperands
/// { … } }`. Kernels of CUDA alone have no offsets: `params! { WordParams { … } }`.
macro_rules! params {
    ($(#[$doc:meta])* $name:ident $(of $operands:ident)? { $($field:ident : $ty:ty),* $(,)? }) => {
        $(#[$doc])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
        pub struct $name {
            $(pub offsets: [u32; $operands::NAMES.len()],)?
            $(pub $field: $ty),*
        }

        impl $crate::backend::gpu::Params for $name {
            #[cfg(test)]
            const OPERANDS: &'static [&'static [&'static str]] = &[$(&$operands::NAMES)?];
            #[cfg(test)]
            const FIELDS: &'static [(&'static str, &'static str)] = &[$((stringify!($field), stringify!($ty))),*];
        }
    };
}
pub(in crate::backend) use params;
