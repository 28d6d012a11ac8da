//! Rows of the tables, and how they are judged.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CStr;

use xattn_c::status::*;
use xattn_c::xattn_status::{self, *};

use super::header::{Type, committed};
use super::world::{Sets, Value, World};

/// What a call does.
#[derive(Clone, Debug)]
pub enum Seen {
    /// Refused with this status and this whole message; nothing is written.
    Says(xattn_status, String),
    /// Writes these numbers into these memories, and nothing else.
    Gives(Vec<(&'static str, Vec<f64>)>),
    /// Writes finite numbers.
    Something,
    /// Writes into `here` what the call with `sets` writes into `there`: of both, the first so many
    /// elements, or all.
    Same { sets: Sets, there: &'static str, here: &'static str, first: Option<usize> },
}

pub fn says(text: impl Into<String>) -> Seen {
    Seen::Says(XATTN_STATUS_INVALID_ARGUMENT, text.into())
}

pub fn refused(status: xattn_status, text: impl Into<String>) -> Seen {
    Seen::Says(status, text.into())
}

/// These numbers in `out`.
pub fn out(values: &[f64]) -> Seen {
    gives("out", values)
}

pub fn gives(name: &'static str, values: &[f64]) -> Seen {
    Seen::Gives(vec![(name, values.to_vec())])
}

/// In `out`, what the call with these fields gives.
pub fn same(sets: Sets) -> Seen {
    Seen::Same { sets, there: "out", here: "out", first: None }
}

/// A field that is moved.
pub struct Row {
    field: &'static str,
    beside: Sets,
    before: Option<Seen>,
    to: Vec<(&'static str, Value)>,
    after: Seen,
}

/// `field` becomes `to`.
pub fn row(field: &'static str, to: Value, after: Seen) -> Row {
    Row { field, beside: &[], before: None, to: vec![(field, to)], after }
}

impl Row {
    /// The call that it starts from has these fields, too, and then does this.
    pub fn from(self, beside: Sets, before: Seen) -> Self {
        Row { beside, before: Some(before), ..self }
    }

    /// As [`Row::from`], and the call does what it does without them.
    pub fn beside(self, beside: Sets) -> Self {
        Row { beside, ..self }
    }

    /// The field is an array, of which one element is moved.
    pub fn element(self, path: &'static str) -> Self {
        Row { to: vec![(path, self.to[0].1)], ..self }
    }
}

/// A struct of the header, and a valid call with it.
pub struct Case {
    pub of: &'static str,
    pub size: usize,
    /// Which struct of the world it is.
    pub record: &'static str,
    /// How messages name the call, the struct as a whole, and what they put in front of its fields.
    pub call: &'static str,
    pub argument: &'static str,
    pub prefix: &'static str,
    /// Bytes of the struct in version 1 on 64-bit machines: a number, which stays when the struct
    /// grows.
    pub first_size: usize,
    pub devices: &'static [&'static CStr],
    pub world: fn(&CStr) -> World,
    /// SAFETY: everything in the world is as it describes itself, but for what a row moves and the
    /// call must find.
    pub run: unsafe fn(&World) -> xattn_status,
    pub base: Seen,
    pub rows: Vec<Row>,
}

pub fn last() -> String {
    // SAFETY: never null, valid until the thread's next failure.
    unsafe { CStr::from_ptr(xattn_last_error()) }.to_string_lossy().into_owned()
}

type Contents = BTreeMap<&'static str, Vec<f64>>;

/// What a call did.
#[derive(Debug, PartialEq)]
enum Done {
    Said(xattn_status, String),
    /// What the memory held before and holds now.
    Wrote(Contents, Contents),
}

impl Case {
    pub fn fields(&self) -> Vec<(String, String)> {
        let size = committed().of(self.of).fields.iter().any(|f| f.name == "struct_size").then_some("struct_size");
        size.into_iter().chain(self.rows.iter().map(|r| r.field)).map(|f| (self.of.into(), f.into())).collect()
    }

    fn call(&self, device: &CStr, sets: impl IntoIterator<Item = (&'static str, Value)>) -> Done {
        let mut world = (self.world)(device);
        sets.into_iter().for_each(|(path, value)| world.set(self.record, path, value));
        let before = world.contents();
        // SAFETY: the world's memory is as its structs say; what a row moves is what the call must
        // find before it follows it.
        let status = unsafe { (self.run)(&world) };
        let after = world.contents();
        match status {
            XATTN_STATUS_OK => Done::Wrote(before, after),
            _ => {
                assert_eq!(before, after, "{}: a call that was refused wrote", self.of);
                Done::Said(status, super::files::without_folder(&last()))
            }
        }
    }

    fn judge(&self, device: &CStr, about: &str, sets: &[(&'static str, Value)], seen: &Seen) -> Done {
        let done = self.call(device, sets.iter().copied());
        let about = format!("{} on {device:?}: {about}: with {sets:?}", self.of);
        match (seen, &done) {
            (Seen::Says(status, text), Done::Said(was, said)) => {
                assert_eq!((was, said.as_str()), (status, text.as_str()), "{about}");
            }
            (Seen::Gives(wanted), Done::Wrote(before, after)) => {
                let mut expected = before.clone();
                expected.extend(wanted.iter().cloned());
                for (name, numbers) in after {
                    assert_eq!(numbers, &expected[name], "{about}: {name}");
                }
            }
            (Seen::Something, Done::Wrote(before, after)) => {
                let changed: Vec<_> = after.iter().filter(|(name, now)| before[*name] != **now).collect();
                assert!(!changed.is_empty(), "{about}: nothing was written");
                let finite = changed.iter().all(|(_, now)| now.iter().all(|x| x.is_finite()));
                assert!(finite, "{about}: {changed:?}");
            }
            (&Seen::Same { sets, there, here, first }, Done::Wrote(before, after)) => {
                let Done::Wrote(_, other) = self.call(device, sets.iter().copied()) else {
                    panic!("{about}: the call to compare with, {sets:?}: {}", last());
                };
                let of = |numbers: &[f64]| numbers[..first.unwrap_or(numbers.len())].to_vec();
                let (wanted, got) = (of(&other[there]), of(&after[here]));
                assert_ne!(wanted, of(&before[here]), "{about}: the call to compare with, {sets:?}, wrote nothing");
                assert_eq!(got, wanted, "{about}: expected what {sets:?} gives");
            }
            _ => panic!("{about}: expected {seen:?}, got {done:?}"),
        }
        done
    }

    /// Moves what the rows say.
    pub fn moves(&self) {
        for &device in self.devices {
            self.judge(device, "as it is", &[], &self.base);
            for row in &self.rows {
                let about = format!("{} before it is moved", row.field);
                let before = self.judge(device, &about, row.beside, row.before.as_ref().unwrap_or(&self.base));
                let sets: Vec<_> = row.beside.iter().copied().chain(row.to.iter().copied()).collect();
                let about = format!("{} moved to {:?}", row.field, row.to[0].1);
                let after = self.judge(device, &about, &sets, &row.after);
                assert_ne!(before, after, "{}: {about}: nothing changed", self.of);
            }
        }
    }

    /// What the type and the comment of each field promise.
    pub fn types(&self) {
        let header = committed();
        let of = header.of(self.of);
        for field in &of.fields {
            let name = field.name.as_str();
            let path: &'static str = String::leak(name.to_string());
            // Where the field is read.
            let beside = self.rows.iter().find(|r| r.field == name).map_or(&[][..], |r| r.beside);
            let named = format!("{}: {}{name}", self.call, self.prefix);
            let refused = |value: Value, status: xattn_status, text: String| {
                let sets: Vec<_> = beside.iter().copied().chain([(path, value)]).collect();
                self.judge(self.devices[0], "by its type", &sets, &Seen::Says(status, text));
            };
            let invalid = XATTN_STATUS_INVALID_ARGUMENT;
            match &field.ty {
                Type::Size if name == "struct_size" => {
                    let range = match self.first_size {
                        first if first == of.size => first.to_string(),
                        first => format!("{first} to {}", of.size),
                    };
                    let whole =
                        format!("{}: {}: expected struct_size {range} (sizeof({}))", self.call, self.argument, self.of);
                    for size in [0, self.first_size - 1, of.size + 1] {
                        refused(Value::Int(size as i64), invalid, format!("{whole}, got {size}"));
                    }
                }
                Type::Pointer(to) if to == "xattn_tensor" || to == "xattn_segment" => {
                    let bad = if to == "xattn_tensor" { "bad_tensor" } else { "bad_segment" };
                    let size = header.of(to).size;
                    let text = format!("{named}: expected struct_size {size} (sizeof({to})), got 1");
                    refused(Value::At(bad), invalid, text);
                }
                Type::Pointer(to) if header.opaque.contains(to) => {
                    let text = format!("{named}: expected a handle of {to}, got xattn_device");
                    refused(Value::Handle("device"), XATTN_STATUS_INVALID_HANDLE, text);
                }
                Type::I32 => {
                    let Some(of) = header.enum_of(field) else { continue };
                    let last = of.values.len() as i64 - 1;
                    let expected = match of.name.as_str() {
                        "xattn_dtype" => format!("a xattn_dtype (0 to {last})"),
                        _ => format!("a number from 0 to {last}"),
                    };
                    // Messages about a tensor name the tensor.
                    let named =
                        if self.of == "xattn_tensor" { format!("{}: {}", self.call, self.argument) } else { named };
                    for number in [last + 1, -1] {
                        refused(Value::Int(number), invalid, format!("{named}: expected {expected}, got {number}"));
                    }
                }
                Type::U32 if field.comment.starts_with("1: ") => {
                    for number in [2, 0xFFFF_FFFF] {
                        let got = i32::try_from(number).unwrap_or(i32::MAX);
                        refused(
                            Value::Int(number),
                            invalid,
                            format!("{named}: expected a number from 0 to 1, got {got}"),
                        );
                    }
                }
                _ => {}
            }
        }
    }

    /// Numbers of enums that no row moves a field to or from.
    pub fn unseen(&self) -> Vec<String> {
        let header = committed();
        let mut unseen = Vec::new();
        for field in &header.of(self.of).fields {
            let Some(of) = header.enum_of(field) else { continue };
            let mut seen = BTreeSet::new();
            let world = (self.world)(self.devices[0]);
            for row in self.rows.iter().filter(|r| r.field == field.name) {
                let from = row.beside.iter().find(|(path, _)| *path == field.name).map(|(_, value)| *value);
                for value in [from.unwrap_or(Value::Int(world.number(self.record, &field.name))), row.to[0].1] {
                    if let Value::Int(n) = value {
                        seen.insert(n);
                    }
                }
            }
            let unmoved = of.values.iter().filter(|(_, number)| !seen.contains(number));
            unseen.extend(unmoved.map(|(name, _)| format!("{}.{}: no row has {name}", self.of, field.name)));
        }
        unseen
    }

    /// All of it.
    pub fn check(&self) {
        self.moves();
        self.types();
        assert_eq!(self.unseen(), [""; 0]);
    }
}
