//! Parameters of kernels: flat structs of `u32` and `f32`, the same fields in the same order in Rust, CUDA and WGSL (tests compare them).
//!
//! The first fields are `<operand>_offset`, one per operand of the kernel in order, absent ones included: the element at which the operand
//! begins in its binding. wgpu's `Launch` fills them in, per set of operands. On CUDA they stay 0: pointers say where operands begin.

/// A parameter struct.
pub(in crate::backend) trait Params: bytemuck::Pod {
    /// `(name, type)` of each field, in order.
    #[cfg(test)]
    const FIELDS: &'static [(&'static str, &'static str)];
}

macro_rules! params {
    ($(#[$doc:meta])* $name:ident { $($field:ident : $ty:ty),* $(,)? }) => {
        $(#[$doc])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
        pub(in crate::backend) struct $name { $(pub $field: $ty),* }

        impl $crate::backend::gpu::Params for $name {
            #[cfg(test)]
            const FIELDS: &'static [(&'static str, &'static str)] = &[$((stringify!($field), stringify!($ty))),*];
        }
    };
}
pub(in crate::backend) use params;
