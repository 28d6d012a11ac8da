//! What a call reads and writes: structs as bytes at the places that the header gives, and the
//! memory that they point to.

use std::collections::BTreeMap;
use std::ffi::{CStr, c_void};

use xattn_c::device::*;

use super::header::{Struct, Type, committed};

/// A value of a field.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value {
    Int(i64),
    Real(f32),
    Null,
    /// The address of a struct.
    At(&'static str),
    /// The address of the memory of this name.
    Data(&'static str),
    Handle(&'static str),
    Text(&'static CStr),
}

/// Which field becomes what: `field` of the struct in question, or `name.field`, `name.field[2]`.
/// Begins with `#`: a value for the test's own call.
pub type Sets = &'static [(&'static str, Value)];

/// A struct of the caller's, laid out as the header says.
pub struct Record {
    of: &'static Struct,
    words: Vec<u64>,
}

impl Record {
    /// All zeros, and its size.
    pub fn new(of: &str) -> Self {
        let of = committed().of(of);
        let mut record = Record { of, words: vec![0; of.size.div_ceil(8)] };
        if of.fields[0].name == "struct_size" {
            record.put(0, of.size);
        }
        record
    }

    fn put<T>(&mut self, offset: usize, value: T) {
        assert!(offset + size_of::<T>() <= self.of.size);
        // SAFETY: within the struct, whose fields are aligned as those of C.
        unsafe { self.words.as_mut_ptr().cast::<u8>().add(offset).cast::<T>().write(value) }
    }

    pub fn at<T>(&self) -> *const T {
        self.words.as_ptr().cast()
    }
}

/// Elements of a tensor.
pub struct Memory {
    dtype: i64,
    elements: usize,
    words: Vec<u64>,
}

pub const F64: i64 = 0;
pub const F32: i64 = 1;
pub const F16: i64 = 2;
pub const BF16: i64 = 3;
pub const I32: i64 = 4;
pub const U32: i64 = 5;

fn size(dtype: i64) -> usize {
    [8, 4, 2, 2, 4, 4][dtype as usize]
}

impl Memory {
    fn new(dtype: i64, values: &[f64]) -> Self {
        let mut bytes = Vec::new();
        for &v in values {
            match dtype {
                F64 => bytes.extend(v.to_le_bytes()),
                F32 => bytes.extend((v as f32).to_le_bytes()),
                BF16 => bytes.extend(&(v as f32).to_le_bytes()[2..]),
                I32 => bytes.extend((v as i32).to_le_bytes()),
                U32 => bytes.extend((v as u32).to_le_bytes()),
                other => panic!("no test writes elements of type {other}"),
            }
        }
        let words = bytes.chunks(8).map(|c| c.iter().rev().fold(0, |word, &byte| word << 8 | u64::from(byte)));
        Memory { dtype, elements: values.len(), words: words.collect() }
    }

    pub fn address(&self) -> *mut c_void {
        self.words.as_ptr().cast_mut().cast()
    }

    pub fn values(&self) -> Vec<f64> {
        let bytes: Vec<u8> = self.words.iter().flat_map(|w| w.to_le_bytes()).collect();
        let number = |c: &[u8]| match self.dtype {
            F64 => f64::from_le_bytes(c.try_into().unwrap()),
            F32 => f32::from_le_bytes(c.try_into().unwrap()).into(),
            BF16 => f32::from_le_bytes([0, 0, c[0], c[1]]).into(),
            I32 => i32::from_le_bytes(c.try_into().unwrap()).into(),
            _ => u32::from_le_bytes(c.try_into().unwrap()).into(),
        };
        bytes.chunks_exact(size(self.dtype)).take(self.elements).map(number).collect()
    }
}

#[derive(Default)]
pub struct World {
    pub records: BTreeMap<&'static str, Record>,
    pub memory: BTreeMap<&'static str, Memory>,
    pub handles: BTreeMap<&'static str, *const c_void>,
    /// Values of the test's own, by names that begin with `#`.
    pub inputs: BTreeMap<&'static str, Value>,
    strides: BTreeMap<&'static str, Vec<u64>>,
    /// What frees the handles.
    pub ends: Vec<Box<dyn FnOnce()>>,
}

impl Drop for World {
    fn drop(&mut self) {
        self.ends.drain(..).rev().for_each(|end| end());
    }
}

impl World {
    /// With a device, and a tensor whose size is wrong.
    pub fn new(device: &CStr) -> Self {
        let mut world = World::default();
        let mut opened = std::ptr::null_mut();
        // SAFETY: a C string, and a place for the handle.
        let status = unsafe { xattn_device_open(device.as_ptr(), &mut opened) };
        assert_eq!(status, xattn_c::xattn_status::XATTN_STATUS_OK);
        world.handles.insert("device", opened.cast());
        world.ends.push(Box::new(move || _ = xattn_device_free(opened)));
        for (name, of) in [("bad_tensor", "xattn_tensor"), ("bad_segment", "xattn_segment")] {
            let mut bad = Record::new(of);
            bad.put(0, 1usize);
            world.records.insert(name, bad);
        }
        world
    }

    /// A tensor without gaps, and its memory.
    pub fn tensor(mut self, name: &'static str, dtype: i64, shape: &[u64], values: &[f64]) -> Self {
        assert_eq!(shape.iter().product::<u64>() as usize, values.len(), "{name}");
        self.memory.insert(name, Memory::new(dtype, values));
        self.records.insert(name, Record::new("xattn_tensor"));
        let bytes = (values.len() * size(dtype)) as i64;
        let mut put = |field: &str, value| self.set(name, field, value);
        put("data", Value::Data(name));
        put("bytes", Value::Int(bytes));
        put("dtype", Value::Int(dtype));
        put("rank", Value::Int(shape.len() as i64));
        for (i, &n) in shape.iter().enumerate() {
            put(&format!("shape[{i}]"), Value::Int(n as i64));
        }
        self
    }

    pub fn strides(mut self, name: &'static str, strides: &[u64]) -> Self {
        self.strides.insert(name, strides.to_vec());
        self
    }

    /// A struct with these fields.
    pub fn record(mut self, name: &'static str, of: &str, sets: &[(&'static str, Value)]) -> Self {
        self.records.insert(name, Record::new(of));
        sets.iter().for_each(|(field, value)| self.set(name, field, *value));
        self
    }

    fn address(&self, value: Value) -> *const c_void {
        match value {
            Value::Null => std::ptr::null(),
            Value::At(name) => self.records.get(name).unwrap_or_else(|| panic!("no struct {name}")).at(),
            Value::Data(name) => match (self.memory.get(name), self.strides.get(name)) {
                (Some(memory), _) => memory.words.as_ptr().cast(),
                (_, Some(strides)) => strides.as_ptr().cast(),
                _ => panic!("no memory {name}"),
            },
            Value::Handle(name) => *self.handles.get(name).unwrap_or_else(|| panic!("no handle {name}")),
            Value::Text(text) => text.as_ptr().cast(),
            other => panic!("{other:?} is no address"),
        }
    }

    /// Sets a field: of `record`, or of the struct that the path names.
    #[track_caller]
    pub fn set(&mut self, record: &str, path: &str, value: Value) {
        if let Some((key, _)) = self.inputs.get_key_value(path) {
            self.inputs.insert(*key, value);
            return;
        }
        let (name, field) = path.split_once('.').unwrap_or((record, path));
        let (field, index) = match field.split_once('[') {
            Some((field, index)) => (field, index.trim_end_matches(']').parse::<usize>().unwrap()),
            None => (field, 0),
        };
        let address = match value {
            Value::Int(_) | Value::Real(_) => std::ptr::null(),
            other => self.address(other),
        };
        let target = self.records.get_mut(name).unwrap_or_else(|| panic!("no struct {name}"));
        let field = target.of.field(field);
        match (&field.ty, value) {
            (Type::Size, Value::Int(n)) => target.put(field.offset, n as usize),
            (Type::U64, Value::Int(n)) => target.put(field.offset, n as u64),
            (Type::U64s(count), Value::Int(n)) if index < *count => target.put(field.offset + 8 * index, n as u64),
            (Type::U32, Value::Int(n)) => target.put(field.offset, u32::try_from(n).unwrap()),
            (Type::I32, Value::Int(n)) => target.put(field.offset, i32::try_from(n).unwrap()),
            (Type::F32, Value::Real(x)) => target.put(field.offset, x),
            (Type::Pointer(_), Value::Int(_) | Value::Real(_)) => panic!("{path} is a pointer"),
            (Type::Pointer(_), _) => target.put(field.offset, address),
            (ty, value) => panic!("{path} is a {ty:?}, not {value:?}"),
        }
    }

    /// A field that is an `int32_t`.
    pub fn number(&self, record: &str, field: &str) -> i64 {
        let record = &self.records[record];
        let offset = record.of.field(field).offset;
        // SAFETY: within the struct, aligned as in C.
        i64::from(unsafe { record.words.as_ptr().cast::<u8>().add(offset).cast::<i32>().read() })
    }

    /// What all memory holds.
    pub fn contents(&self) -> BTreeMap<&'static str, Vec<f64>> {
        self.memory.iter().map(|(name, memory)| (*name, memory.values())).collect()
    }

    /// The address of a struct, for the call.
    pub fn at<T>(&self, name: &str) -> *const T {
        self.records[name].at()
    }

    pub fn handle<T>(&self, name: &str) -> *const T {
        self.handles[name].cast()
    }
}
