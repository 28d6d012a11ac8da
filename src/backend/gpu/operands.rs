//! The operands of kernels by name: one list per op, which CUDA and WGSL share.
//!
//! The order of the fields is that of CUDA's pointers in `struct …Operands`, of WGSL's bindings,
//! and of the offsets that begin the parameters. An operand that only one backend reads is absent
//! on the other.

use super::Params;
use crate::ops::Op;

/// Operands of one kernel, at most.
pub(in crate::backend) const MOST_OPERANDS: usize = 24;

/// An op as the GPU backends see it.
pub trait Kernels: Op {
    type Params: Params;

    /// The operands of its kernels, by name and in the order of the bindings.
    type Operands<T>: IntoIterator<Item = T>;

    /// The operands of a call; none where the call lacks one.
    fn operands<T>(args: &Self::Args<T, T>) -> Self::Operands<Option<&T>>;
}

/// A struct with a field per operand, and what is done with all of them.
macro_rules! operands {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default)]
        pub struct $name<T> { $($(#[$field_doc])* pub $field: T),* }

        impl $name<()> {
            pub const NAMES: [&'static str; [$(stringify!($field)),*].len()] = [$(stringify!($field)),*];
        }

        #[allow(dead_code, reason = "not every list is mapped by both backends")]
        impl<T> $name<T> {
            /// Each operand replaced.
            pub fn map<U>(self, mut f: impl FnMut(T) -> U) -> $name<U> {
                $name { $($field: f(self.$field)),* }
            }

            pub fn list(self) -> [T; $name::NAMES.len()] {
                [$(self.$field),*]
            }
        }

        impl<T> IntoIterator for $name<T> {
            type Item = T;
            type IntoIter = std::array::IntoIter<T, { $name::NAMES.len() }>;

            fn into_iter(self) -> Self::IntoIter {
                self.list().into_iter()
            }
        }
    };
}
pub(in crate::backend) use operands;
