//! Reads `xattn.h`: structs with their fields and where these lie, enums with their numbers.

use std::sync::LazyLock;

/// A type of a field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Type {
    Size,
    U64,
    U32,
    I32,
    F32,
    /// `uint64_t name[n]`.
    U64s(usize),
    /// What it points to, without `const` and `struct`.
    Pointer(String),
}

impl Type {
    fn size(&self) -> usize {
        match self {
            Type::U32 | Type::I32 | Type::F32 => 4,
            Type::U64 => 8,
            Type::Size | Type::Pointer(_) => size_of::<usize>(),
            Type::U64s(n) => 8 * n,
        }
    }

    fn align(&self) -> usize {
        self.size().min(8)
    }
}

#[derive(Clone, Debug)]
pub struct Field {
    pub name: String,
    pub ty: Type,
    /// The comment before it.
    pub comment: String,
    /// Bytes from the start of the struct.
    pub offset: usize,
}

#[derive(Debug)]
pub struct Struct {
    pub name: String,
    pub fields: Vec<Field>,
    pub size: usize,
}

impl Struct {
    #[track_caller]
    pub fn field(&self, name: &str) -> &Field {
        self.fields.iter().find(|f| f.name == name).unwrap_or_else(|| panic!("{} has no field {name}", self.name))
    }
}

#[derive(Debug)]
pub struct Enum {
    pub name: String,
    /// Names and numbers.
    pub values: Vec<(String, i64)>,
}

#[derive(Debug, Default)]
pub struct Header {
    pub structs: Vec<Struct>,
    pub enums: Vec<Enum>,
    /// Structs without fields.
    pub opaque: Vec<String>,
}

impl Header {
    #[track_caller]
    pub fn of(&self, name: &str) -> &Struct {
        self.structs.iter().find(|s| s.name == name).unwrap_or_else(|| panic!("no struct {name} in the header"))
    }

    /// The enum whose number a field is, by the field's comment: "A `xattn_dtype`."
    pub fn enum_of(&self, field: &Field) -> Option<&Enum> {
        let name = field.comment.strip_prefix("A `")?.split('`').next()?;
        (field.ty == Type::I32).then(|| self.enums.iter().find(|e| e.name == name)).flatten()
    }

    pub fn parse(text: &str) -> Header {
        let mut header = Header::default();
        let (mut comment, mut within_comment) = (String::new(), false);
        let mut fields: Option<Vec<Field>> = None;
        let mut values: Option<Vec<(String, i64)>> = None;
        for line in text.lines().map(str::trim) {
            if within_comment {
                match line.strip_suffix("*/") {
                    Some(_) => within_comment = false,
                    None => comment = format!("{comment} {line}").trim().to_string(),
                }
            } else if line.starts_with("/*") {
                (comment, within_comment) = (String::new(), !line.ends_with("*/"));
            } else if let Some(rest) = line.strip_prefix("typedef struct ") {
                match rest.strip_suffix('{') {
                    Some(_) => fields = Some(Vec::new()),
                    None => header.opaque.push(rest.split(' ').next().unwrap().to_string()),
                }
            } else if line.starts_with("enum ") {
                values = Some(Vec::new());
                header.enums.push(Enum { name: line.split(' ').nth(1).unwrap().to_string(), values: Vec::new() });
            } else if line.starts_with('}') {
                let name = line.trim_matches(['}', ' ', ';']).to_string();
                if let Some(fields) = fields.take() {
                    let align = fields.iter().map(|f| f.ty.align()).max().unwrap_or(1);
                    let size = fields.last().map_or(0, |f| f.offset + f.ty.size()).next_multiple_of(align);
                    header.structs.push(Struct { name, fields, size });
                } else if let Some(values) = values.take() {
                    header.enums.last_mut().unwrap().values = values;
                }
            } else if let (Some(fields), Some(declaration)) = (&mut fields, line.strip_suffix(';')) {
                let (ty, name) = declared(declaration);
                let end = fields.last().map_or(0, |f| f.offset + f.ty.size());
                let offset = end.next_multiple_of(ty.align());
                fields.push(Field { name, ty, comment: std::mem::take(&mut comment), offset });
            } else if let (Some(values), Some((name, number))) =
                (&mut values, line.trim_end_matches(',').split_once(" = "))
            {
                values.push((name.to_string(), number.parse().unwrap()));
            }
        }
        header
    }
}

/// Type and name of a field.
fn declared(text: &str) -> (Type, String) {
    if let Some((ty, name)) = text.rsplit_once('*') {
        let pointee = ty.replace("const", "").replace("struct", "").trim().to_string();
        return (Type::Pointer(pointee), name.to_string());
    }
    let (ty, name) = text.rsplit_once(' ').unwrap_or_else(|| panic!("no field: {text}"));
    match (ty, name.split_once('[')) {
        ("uint64_t", Some((name, "XATTN_MAX_RANK]"))) => (Type::U64s(8), name.to_string()),
        ("size_t", None) => (Type::Size, name.to_string()),
        ("uint64_t", None) => (Type::U64, name.to_string()),
        ("uint32_t", None) => (Type::U32, name.to_string()),
        ("int32_t", None) => (Type::I32, name.to_string()),
        ("float", None) => (Type::F32, name.to_string()),
        _ => panic!("a type that capi/tests/fields does not know: {text}"),
    }
}

pub fn text() -> String {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("include/xattn.h");
    std::fs::read_to_string(path).unwrap()
}

/// The header as it is.
pub fn committed() -> &'static Header {
    static HEADER: LazyLock<Header> = LazyLock::new(|| Header::parse(&text()));
    &HEADER
}
