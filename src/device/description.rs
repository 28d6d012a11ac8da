//! The description that a call was prepared for, and its comparison with each enqueued call.

use super::{Bound, View, ViewMut};
use crate::ops::{Each, Operands, Visit, list};
use crate::tensor::{Spec, may_share};
use crate::{Error, Result};

/// A list on the stack: enqueueing allocates nothing.
pub(crate) struct Inline<T, const N: usize> {
    items: [Option<T>; N],
    len: usize,
}

impl<T, const N: usize> Inline<T, N> {
    pub fn new() -> Self {
        Inline { items: [const { None }; N], len: 0 }
    }

    /// Appends; beyond the capacity it only counts, and the comparison fails.
    fn push(&mut self, item: T) {
        if let Some(place) = self.items.get_mut(self.len) {
            *place = Some(item);
        }
        self.len += 1;
    }

    pub fn get(&self, i: usize) -> Option<&T> {
        self.items.get(i).and_then(Option::as_ref)
    }

    fn iter(&self) -> impl Iterator<Item = &T> {
        self.items.iter().map_while(Option::as_ref)
    }
}

pub(crate) struct Given<B> {
    name: &'static str,
    written: bool,
    pub bound: B,
}

/// Most operands of a call: those of a Q-Former of 28 layers with `past` and `present`.
const CAPACITY: usize = 64;

pub(crate) type Operand = Given<Bound>;
pub(crate) type OperandList = Inline<Operand, CAPACITY>;

struct Described {
    name: &'static str,
    spec: Spec,
    /// Bytes from the first element to the last.
    bytes: u64,
}

/// The whole description of a prepared call: operands, layouts, the parameters among them.
pub(crate) struct Description<C: Operands> {
    shapes: C::Args<Spec, Spec>,
    form: C::Form,
    operands: Box<[Described]>,
}

impl<C: Operands> Description<C> {
    pub fn new(shapes: C::Args<Spec, Spec>) -> Result<Self> {
        let describe = |(name, spec): (&'static str, Spec)| Described { name, spec, bytes: spec.span_bytes() as u64 };
        let operands: Box<[Described]> = list::<C>(&shapes).into_iter().map(describe).collect();
        if operands.len() > CAPACITY {
            return Err(Error::argument(C::NAME, "operands", format!("at most {CAPACITY}"), operands.len()));
        }
        let form = C::form(C::map(C::as_ref(&shapes), &mut Each(|_, _: &Spec| Ok(())))?);
        Ok(Description { shapes, form, operands })
    }

    pub fn shapes(&self) -> &C::Args<Spec, Spec> {
        &self.shapes
    }

    /// Bytes of the largest operand.
    pub fn largest_operand(&self) -> usize {
        self.operands.iter().map(|o| o.bytes as usize).max().unwrap_or(0)
    }

    /// Refuses operands that differ from the prepared ones, or share memory against the contract.
    pub fn expect(&self, args: &C::Args<Bound, Bound>) -> Result<()> {
        let mut given: Inline<Given<&Bound>, 24> = Inline::new();
        let form = C::form(C::map(C::as_ref(args), &mut given)?);
        self.compare(&form, &given)
    }

    /// Takes the operands of a bridge call, with the refusals of [`Description::expect`].
    pub fn take(&self, args: C::Args<View<'_>, ViewMut<'_>>) -> Result<OperandList> {
        let mut given = OperandList::new();
        let form = C::form(C::map(args, &mut given)?);
        self.compare(&form, &given)?;
        Ok(given)
    }

    fn compare<B: std::borrow::Borrow<Bound>, const N: usize>(
        &self,
        form: &C::Form,
        given: &Inline<Given<B>, N>,
    ) -> Result<()> {
        let alike = self.form == *form
            && given.len == self.operands.len()
            && given.len <= N
            && given.iter().zip(&*self.operands).all(|(have, want)| have.bound.borrow().spec == want.spec);
        if !alike {
            return Err(self.mismatch(form, given));
        }
        for (i, (written, described)) in given.iter().zip(&*self.operands).enumerate() {
            if !written.written {
                continue;
            }
            let memory = &written.bound.borrow().memory;
            let start = memory.address_bits() as u64;
            for (j, (other, about)) in given.iter().zip(&*self.operands).enumerate() {
                let other_start = other.bound.borrow().memory.address_bits() as u64;
                let touch = start < other_start.saturating_add(about.bytes)
                    && other_start < start.saturating_add(described.bytes);
                // A pair of written operands is compared once.
                if !touch || j == i || (other.written && j < i) {
                    continue;
                }
                let other_memory = &other.bound.borrow().memory;
                let in_place = start == other_start
                    && described.spec == about.spec
                    && C::IN_PLACE.contains(&(other.name, written.name));
                if !in_place
                    && memory.is_with(other_memory)
                    && may_share(&described.spec, start, &about.spec, other_start)
                {
                    let expected = format!("no element in common with {}", other.name);
                    let actual = format!("{} and {} over the same memory", described.spec, about.spec);
                    return Err(Error::argument(C::NAME, written.name, expected, actual));
                }
            }
        }
        Ok(())
    }

    /// The first difference from what was prepared, in words.
    #[cold]
    fn mismatch<B: std::borrow::Borrow<Bound>, const N: usize>(
        &self,
        form: &C::Form,
        given: &Inline<Given<B>, N>,
    ) -> Error {
        let parameters = |form: &C::Form| {
            let mut said = Vec::new();
            C::parameters(form, &mut |name, value| said.push((name, value)));
            said
        };
        let absent = || "none".to_string();
        let (want, have) = (parameters(&self.form), parameters(form));
        for i in 0..want.len().max(have.len()) {
            if want.get(i) != have.get(i) {
                let name = want.get(i).or(have.get(i)).map_or("parameters", |p| p.0);
                let value = |list: &[(&str, String)]| list.get(i).map_or_else(absent, |p| p.1.clone());
                return Error::argument(C::NAME, name, format!("{} as prepared", value(&want)), value(&have));
            }
        }
        if given.len != self.operands.len() {
            let expected = format!("{} as prepared", self.operands.len());
            return Error::argument(C::NAME, "operands", expected, given.len);
        }
        for (want, have) in self.operands.iter().zip(given.iter()) {
            let spec = have.bound.borrow().spec;
            if want.name != have.name || want.spec != spec {
                return Error::argument(C::NAME, have.name, format!("{} {} as prepared", want.name, want.spec), spec);
            }
        }
        Error::argument(C::NAME, "operands", "those prepared for", "others")
    }
}

impl<'a, const N: usize> Visit<&'a Bound, &'a Bound, (), ()> for Inline<Given<&'a Bound>, N> {
    fn read(&mut self, name: &'static str, bound: &'a Bound) -> Result<()> {
        self.push(Given { name, written: false, bound });
        Ok(())
    }

    fn write(&mut self, name: &'static str, bound: &'a Bound) -> Result<()> {
        self.push(Given { name, written: true, bound });
        Ok(())
    }
}

impl Visit<View<'_>, ViewMut<'_>, (), ()> for OperandList {
    fn read(&mut self, name: &'static str, view: View<'_>) -> Result<()> {
        self.push(Given { name, written: false, bound: view.into_bound() });
        Ok(())
    }

    fn write(&mut self, name: &'static str, view: ViewMut<'_>) -> Result<()> {
        self.push(Given { name, written: true, bound: view.into_bound() });
        Ok(())
    }
}
