//! The operands of a call, in one description: layouts when the call is prepared, views when it
//! runs, registers of a program while a bridge is built.

use crate::Result;
use crate::tensor::Spec;

/// Keeps [`Operands`] and [`super::Op`] to this crate: backends rely on what they say of memory.
pub(crate) mod sealed {
    pub trait Sealed {}
}

/// A function of each operand of a call, in the order of the documentation. The first argument is
/// the operand's name in messages.
pub trait Visit<R, W, R2, W2> {
    /// Takes a read operand.
    ///
    /// # Errors
    /// The visitor's own.
    fn read(&mut self, name: &'static str, operand: R) -> Result<R2>;

    /// Takes a written operand.
    ///
    /// # Errors
    /// The visitor's own.
    fn write(&mut self, name: &'static str, operand: W) -> Result<W2>;
}

/// A visitor of two closures without common state.
pub fn visit<R, W, R2, W2>(
    read: impl FnMut(&'static str, R) -> Result<R2>,
    write: impl FnMut(&'static str, W) -> Result<W2>,
) -> impl Visit<R, W, R2, W2> {
    struct Closures<F, G>(F, G);
    impl<R, W, R2, W2, F, G> Visit<R, W, R2, W2> for Closures<F, G>
    where
        F: FnMut(&'static str, R) -> Result<R2>,
        G: FnMut(&'static str, W) -> Result<W2>,
    {
        fn read(&mut self, name: &'static str, operand: R) -> Result<R2> {
            self.0(name, operand)
        }

        fn write(&mut self, name: &'static str, operand: W) -> Result<W2> {
            self.1(name, operand)
        }
    }
    Closures(read, write)
}

/// Visits reads and writes alike.
pub(crate) struct Each<F>(pub F);

impl<T, U, F: FnMut(&'static str, T) -> Result<U>> Visit<T, T, U, U> for Each<F> {
    fn read(&mut self, name: &'static str, operand: T) -> Result<U> {
        self.0(name, operand)
    }

    fn write(&mut self, name: &'static str, operand: T) -> Result<U> {
        self.0(name, operand)
    }
}

/// Receives parameters by name.
pub type Parameters<'f> = dyn FnMut(&'static str, String) + 'f;

/// The operands of an op or of a bridge call. Implemented only in this crate.
pub trait Operands: sealed::Sealed + Sized + 'static {
    /// The name in messages; for an op also file stem, entry point and heading.
    const NAME: &'static str;

    /// Pairs of a read and a written operand that may be the same memory, if their layouts are
    /// equal too. Any other written operand shares no element with another operand of the call.
    const IN_PLACE: &'static [(&'static str, &'static str)] = &[];

    /// Operands. `R` is a read operand, `W` a written one.
    type Args<R, W>;

    /// The same operands, each replaced by the visitor's result. Parameters among them stay.
    ///
    /// # Errors
    /// The first error of the visitor.
    fn map<R, W, R2, W2>(args: Self::Args<R, W>, visitor: &mut impl Visit<R, W, R2, W2>) -> Result<Self::Args<R2, W2>>;

    /// The same operands, borrowed.
    fn as_ref<R, W>(args: &Self::Args<R, W>) -> Self::Args<&R, &W>;

    /// The form of a call: which operands are present, and the parameters among them (visibility
    /// rule, keys per medium, media token, in place or not). Calls of one form share all but
    /// layouts and memory.
    type Form: PartialEq + Send + Sync;

    /// The form.
    fn form(args: Self::Args<(), ()>) -> Self::Form;

    /// The parameters of a form, for messages.
    fn parameters(form: &Self::Form, say: &mut Parameters<'_>);
}

/// Names and layouts of the operands of a call, in order.
pub(crate) fn list<C: Operands>(shapes: &C::Args<Spec, Spec>) -> Vec<(&'static str, Spec)> {
    let mut list = Vec::new();
    // The visitor does not fail.
    let _ = C::map::<_, _, (), ()>(
        C::as_ref(shapes),
        &mut Each(|name, spec: &Spec| {
            list.push((name, *spec));
            Ok(())
        }),
    );
    list
}
