//! Shader text: constants, operand accessors and helpers from `shaders/lib/`, and the op's file.
//!
//! There is no preprocessor. An operand's template is a file in which the words `NAME`, `SLOT`,
//! `ACCESS` and `DTYPE` are replaced. Everything else is plain WGSL; instances differ in constants
//! at the top.

use std::borrow::Cow;
use std::fmt::{Display, Write};

use crate::{DType, Error, Result};

pub(super) mod lib {
    macro_rules! library {
        ($($name:ident = $file:literal;)*) => {
            $(pub const $name: &str = include_str!(concat!("../../../shaders/lib/", $file, ".wgsl"));)*
        };
    }
    library! {
        ATTENTION_KEYS = "attention_keys";
        ATTENTION_LOGIT = "attention_logit";
        ATTENTION_PARAMS = "attention_params";
        ATTENTION_ROWS = "attention_rows";
        ATTENTION_SEGMENT = "attention_segment";
        ATTENTION_STATE = "attention_state";
        ATTENTION_TILE = "attention_tile";
        BF16 = "bf16";
        COLUMNS = "columns";
        COUNT = "count";
        COUNT_ABSENT = "count_absent";
        EPILOGUE = "epilogue";
        F16 = "f16";
        GRID = "grid";
        LOG = "log";
        LINEAR_PARAMS = "linear_params";
        LINEAR_TILE = "linear_tile";
        MATH = "math";
        STATES = "states";
        STATES_ABSENT = "states_absent";
        STAGE_ABSENT = "stage_absent";
        STAGE_PREPARED = "stage_prepared";
        STAGE_VIEW = "stage_view";
        STORE_ABSENT = "store_absent";
        STORE_U32 = "store_u32";
        TEAM_SUM = "team_sum";
        TEAM_SUM_SUBGROUPS = "team_sum_subgroups";
        PREPARED_BF16 = "prepared_bf16";
        PREPARED_F16 = "prepared_f16";
        PREPARED_F32 = "prepared_f32";
        NORM_ROWS = "norm_rows";
        READ_F32 = "read_f32";
        READ_F16 = "read_f16";
        READ_BF16 = "read_bf16";
        READ_I32 = "read_i32";
        READ_PACKED = "read_packed";
        READ_U32 = "read_u32";
        ABSENT_REAL = "absent_real";
        ABSENT_I32 = "absent_i32";
        ABSENT_U32 = "absent_u32";
        WRITE_ABSENT = "write_absent";
        WRITE_F32 = "write_f32";
        WRITE_16 = "write_16";
        WRITE_I32 = "write_i32";
        WRITE_U32 = "write_u32";
    }
}

/// A binding of a shader, in the order of `Params`' offsets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Binding {
    Absent,
    /// Bound `read_write`, written or not: the buffer may recur in the same dispatch (an arena, a
    /// pool), where one buffer cannot be both `read` and `read_write`.
    Shared,
    /// Bound `read`: a buffer of our own that holds only a prepared weight.
    Constant,
}

/// The form of an operand in a text.
#[derive(Clone)]
pub(super) struct Text {
    form: Form,
    slot: Binding,
    dtype: DType,
    fragments: Vec<Cow<'static, str>>,
}

#[derive(Clone, Copy)]
enum Form {
    Template(&'static str),
    Read,
    Write,
}

impl Text {
    fn new(form: Form, slot: Binding, dtype: DType) -> Self {
        Text { form, slot, dtype, fragments: Vec::new() }
    }

    pub fn template(template: &'static str, slot: Binding) -> Self {
        Text::new(Form::Template(template), slot, DType::U32)
    }

    /// Reals to read: `name_at(i)`, `name_quad(i)`, `name_columns(i, n)`. `None`: no binding.
    pub fn real(dtype: Option<DType>) -> Self {
        let text = match dtype {
            Some(dtype) => Text::new(Form::Read, Binding::Shared, dtype),
            None => Text::template(lib::ABSENT_REAL, Binding::Absent),
        };
        text.and(lib::COLUMNS)
    }

    /// Signed integers to read: `name_at(i)`.
    pub fn i32(present: bool) -> Self {
        match present {
            true => Text::new(Form::Read, Binding::Shared, DType::I32),
            false => Text::template(lib::ABSENT_I32, Binding::Absent),
        }
    }

    /// Unsigned integers to read: `name_at(i)`.
    pub fn u32(present: bool) -> Self {
        match present {
            true => Text::new(Form::Read, Binding::Shared, DType::U32),
            false => Text::template(lib::ABSENT_U32, Binding::Absent),
        }
    }

    /// Elements to write: `name_store` (reals) or the array `name` (integers).
    pub fn write(dtype: DType) -> Self {
        Text::new(Form::Write, Binding::Shared, dtype)
    }

    /// Words to write: `name_set`.
    pub fn store(present: bool) -> Self {
        match present {
            true => Text::template(lib::STORE_U32, Binding::Shared),
            false => Text::template(lib::STORE_ABSENT, Binding::Absent),
        }
    }

    pub fn unnamed() -> Self {
        Text::template("", Binding::Absent)
    }

    /// Adds a fragment, in which `NAME` stands for the operand.
    pub fn and(mut self, fragment: impl Into<Cow<'static, str>>) -> Self {
        self.fragments.push(fragment.into());
        self
    }
}

/// The text of one shader instance, and its bindings.
#[derive(Clone)]
pub(super) struct ShaderText {
    op: &'static str,
    entry: &'static str,
    body: &'static str,
    prelude: String,
    libraries: Vec<&'static str>,
    operands: Vec<(&'static str, Binding)>,
    workgroup_bytes: u32,
    subgroups: bool,
}

impl ShaderText {
    /// A shader of `op` whose entry point is `entry` and whose own text is `body`.
    pub fn new(op: &'static str, entry: &'static str, body: &'static str) -> Self {
        ShaderText {
            op,
            entry,
            body,
            prelude: String::new(),
            libraries: Vec::new(),
            operands: Vec::new(),
            workgroup_bytes: 0,
            subgroups: false,
        }
    }

    /// Sets the workgroup memory that the text declares, in bytes: wgpu does not check that limit.
    pub fn workgroup_bytes(mut self, bytes: u32) -> Self {
        self.workgroup_bytes = bytes;
        self
    }

    /// The text uses subgroup operations: a browser, unlike naga, wants `enable subgroups;`.
    pub fn subgroups(mut self) -> Self {
        self.subgroups = true;
        self
    }

    /// `const name = value;` with `value` printed as it is: `"4u"`, `true`.
    pub fn constant(mut self, name: &str, value: impl Display) -> Self {
        let _ = writeln!(self.prelude, "const {name} = {value};");
        self
    }

    /// Adds a helper, once.
    pub fn library(mut self, text: &'static str) -> Self {
        if !self.libraries.contains(&text) {
            self.libraries.push(text);
        }
        self
    }

    /// The operands, in the order of their list.
    pub fn operands_of(mut self, names: &[&'static str], texts: impl IntoIterator<Item = Text>) -> Result<Self> {
        for (&name, text) in names.iter().zip(texts) {
            self = self.operand(name, text)?;
        }
        Ok(self)
    }

    fn operand(mut self, name: &'static str, text: Text) -> Result<Self> {
        let Text { form, slot, dtype, fragments } = text;
        let (template, library) = match form {
            Form::Template(template) => (template, None),
            Form::Read => match dtype {
                DType::F32 => (lib::READ_F32, None),
                DType::F16 => (lib::READ_F16, None),
                DType::BF16 => (lib::READ_BF16, None),
                DType::I32 => (lib::READ_I32, None),
                DType::U32 => (lib::READ_U32, None),
                DType::F64 => return Err(self.unsupported(name, dtype)),
            },
            Form::Write => match dtype {
                DType::F32 => (lib::WRITE_F32, None),
                DType::F16 => (lib::WRITE_16, Some(lib::F16)),
                DType::BF16 => (lib::WRITE_16, Some(lib::BF16)),
                DType::I32 => (lib::WRITE_I32, None),
                DType::U32 => (lib::WRITE_U32, None),
                DType::F64 => return Err(self.unsupported(name, dtype)),
            },
        };
        let binding = 1 + self.operands.iter().filter(|(_, s)| *s != Binding::Absent).count();
        let access = if slot == Binding::Constant { "read" } else { "read_write" };
        let text = template
            .replace("NAME", name)
            .replace("SLOT", &binding.to_string())
            .replace("ACCESS", access)
            .replace("DTYPE", dtype.name());
        self.prelude.push_str(&text);
        self.operands.push((name, slot));
        for fragment in fragments {
            self = self.fragment(name, &fragment);
        }
        Ok(library.into_iter().fold(self, Self::library))
    }

    /// Adds a template, with `name` for `NAME`: an operand's, or the common part of several names.
    pub fn fragment(mut self, name: &'static str, template: &str) -> Self {
        self.prelude.push_str(&template.replace("NAME", name));
        self
    }

    fn unsupported(&self, name: &str, dtype: DType) -> Error {
        Error::Unsupported {
            op: self.op,
            what: format!("{name} of {dtype}"),
            backend: "wgpu",
            available: "f32, f16, bf16".into(),
        }
    }

    pub fn op(&self) -> &'static str {
        self.op
    }

    pub fn entry(&self) -> &'static str {
        self.entry
    }

    /// Operands in order, absent ones included.
    pub fn operands(&self) -> &[(&'static str, Binding)] {
        &self.operands
    }

    /// Whether the text needs the tier with subgroups.
    pub fn needs_subgroups(&self) -> bool {
        self.subgroups
    }

    pub fn workgroup_memory(&self) -> u32 {
        self.workgroup_bytes
    }

    pub fn text(&self) -> String {
        let mut text = self.prelude.clone();
        for library in &self.libraries {
            text.push_str(library);
        }
        text.push_str("@group(0) @binding(0) var<uniform> params: Params;\n");
        text.push_str(self.body);
        text
    }
}
