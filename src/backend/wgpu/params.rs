//! Uniform parameters: flat structs of `u32` and `f32`, the same fields in the same order in Rust and WGSL (a test compares them).
//!
//! The first fields are `<operand>_offset`, one per operand of the shader in the order in which [`super::source::Source`] lists them, absent
//! ones included: the element at which the operand begins in its binding. `Launch` fills them in, per set of operands.

/// A parameter struct.
pub(super) trait Params: bytemuck::Pod {
    /// `(name, type)` of each field, in order.
    #[cfg(test)]
    const FIELDS: &'static [(&'static str, &'static str)];
}

macro_rules! params {
    ($(#[$doc:meta])* $name:ident { $($field:ident : $ty:ty),* $(,)? }) => {
        $(#[$doc])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
        pub(in crate::backend::wgpu) struct $name { $(pub $field: $ty),* }

        impl $crate::backend::wgpu::params::Params for $name {
            #[cfg(test)]
            const FIELDS: &'static [(&'static str, &'static str)] = &[$((stringify!($field), stringify!($ty))),*];
        }
    };
}
pub(super) use params;
