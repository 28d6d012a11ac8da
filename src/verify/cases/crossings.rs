//! The constants at which kernels and launches change their path, with the compared extent: the
//! selection has cases on both sides of each. The test fails for a constant of such a name that no
//! list has.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::limits::{LIMITS, Limit};
use super::{Case, selection};

/// File, constant or condition in it, op, extent, and the largest extent on its near side.
type Crossing = (&'static str, &'static str, &'static str, Extent, usize);

/// The compared extent of a case.
#[derive(Debug, Clone, Copy)]
enum Extent {
    /// A parameter.
    Of(&'static str),
    /// The product of several.
    Product(&'static [&'static str]),
    /// Keys of both segments.
    Keys,
    /// Query heads of one K/V head.
    Group,
    /// (row, query head of one K/V head) pairs of a problem.
    Pairs,
}

use Extent::{Group, Keys, Of, Pairs, Product};

const ROWS: &[&str] = &["batch", "rows"];

const CROSSINGS: &[Crossing] = &[
    ("kernels/lib/attention_rows.cuh", "BLOCK = 64", "attention", Keys, 64),
    ("kernels/lib/attention_ffma.cuh", "V_KEYS = 16", "attention", Keys, 16),
    ("kernels/lib/attention_ffma.cuh", "PANEL = 32", "attention", Of("d"), 32),
    ("kernels/attention_media.cu", "first += 32", "attention", Of("media"), 32),
    ("kernels/attention_decode.cu", "HEAD_DIM / WIDE <= 8", "attention", Of("d"), 64),
    ("kernels/attention_decode.cu", "MOST_HEADS = 8", "attention", Group, 8),
    ("src/backend/cuda/attention/variant.rs", "FEW_PAIRS: usize = 8", "attention", Pairs, 8),
    ("src/backend/cuda/attention/variant.rs", "LONG: usize = 1024", "attention", Keys, 1024),
    ("src/backend/cuda/attention/variant.rs", "DECODE_HEADS: usize = 8", "attention", Group, 8),
    ("src/backend/cuda/attention/variant.rs", "head_dim <= 128", "attention", Of("d"), 128),
    ("src/backend/cuda/attention/instance.rs", "BLOCK: usize = 64", "attention", Keys, 64),
    ("src/backend/cuda/media_index.rs", "THREADS: u32 = 256", "media_index", Of("rows"), 256 * 8),
    ("kernels/media_index.cu", "EACH = 8", "media_index", Of("rows"), 256 * 8),
    ("src/backend/cuda/norm.rs", "0..=128 => head", "norm", Of("width"), 128),
    ("src/backend/cuda/norm.rs", "129..=1024 => warp", "norm", Of("width"), 1024),
    ("kernels/norm.cu", "f32 held[HELD][COLUMNS]", "norm", Of("width"), 8192),
    ("kernels/lib/columns.cuh", "COLUMNS = 8", "norm", Of("width"), 8),
    ("kernels/lib/columns.cuh", "COLUMNS = 8", "gated_residual", Of("width"), 8),
    ("src/backend/cuda/gated_residual.rs", "ROWS: usize = 4", "gated_residual", Product(ROWS), 4),
    ("src/backend/cuda/linear/kernel.rs", "FEW: usize = 8", "linear", Product(ROWS), 8),
    ("kernels/linear_few.cu", "MOST_ROWS = 8, LANE_COLUMNS = 4", "linear", Product(ROWS), 8),
    ("kernels/lib/linear_params.cuh", "SUM_BLOCK = 256", "linear", Of("k"), 256),
    ("src/backend/cuda/linear.rs", "PART: usize = 256", "linear", Of("n"), 256),
    ("kernels/linear_hopper.cu", "TILE_K = 64", "linear", Of("k"), 64),
    ("kernels/lib/attention_hopper.cuh", "PANEL_COLUMNS = 32", "attention", Of("d"), 32),
    ("kernels/linear_any.cu", "TILE = 16", "linear", Of("n"), 16),
    ("kernels/linear_any.cu", "DEPTH = 32", "linear", Of("k"), 32),
    ("src/backend/wgpu/attention/variant.rs", "PAIRS: usize = 32", "attention", Pairs, 32),
    ("src/backend/wgpu/attention/variant.rs", "PANEL: usize = 128", "attention", Of("d"), 128),
    ("src/backend/wgpu/attention/variant.rs", "FEW_ROWS: usize = 2", "attention", Of("q"), 2),
    ("src/backend/wgpu/attention/variant.rs", "FEW_HEADS: usize = 8", "attention", Group, 8),
    ("src/backend/wgpu/attention/variant.rs", "LONG: usize = 1024", "attention", Keys, 1024),
    ("shaders/lib/attention_tile.wgsl", "BLOCK = 64u", "attention", Keys, 64),
    ("shaders/lib/attention_rows.wgsl", "PANEL = min(QUADS, 32u)", "attention", Of("d"), 128),
    ("shaders/attention_decode.wgsl", "BLOCK = 128u", "attention", Keys, 128),
    ("shaders/media_index.wgsl", "EACH = 8u", "media_index", Of("rows"), 256 * 8),
    ("shaders/linear.wgsl", "BLOCK = 256u", "linear", Of("k"), 256),
    ("src/backend/wgpu/linear.rs", "0..=16 => Variant::Tiled { rows: 1 }", "linear", Of("rows"), 16),
    ("src/backend/wgpu/weight.rs", "TILE_N: usize = 64", "linear", Of("n"), 64),
    ("src/backend/wgpu/weight.rs", "TILE_K: usize = 16", "linear", Of("k"), 16),
    ("src/backend/cpu/attention/tile.rs", "CHUNK: usize = 64", "attention", Keys, 64),
    ("src/backend/cpu/attention/tile.rs", "TILE: usize = 64", "attention", Pairs, 64),
    ("src/backend/cpu/linear.rs", "SEGMENT: usize = 256", "linear", Of("n"), 256),
    ("src/backend/cpu/gated_residual.rs", "SEGMENT: usize = 512", "gated_residual", Of("width"), 512),
    (
        "src/backend/cpu/gated_residual.rs",
        "BLOCK: usize = 1 << 15",
        "gated_residual",
        Product(&["batch", "rows", "width"]),
        1 << 15,
    ),
    (
        "src/backend/cpu/norm.rs",
        "BLOCK: usize = 1 << 15",
        "norm",
        Product(&["batch", "rows", "heads", "width"]),
        1 << 15,
    ),
    ("src/backend/cpu/gemm/schedule.rs", "FEW_PANELS: usize = 8", "linear", Of("n"), 8 * 16),
    ("src/backend/cpu/gemm/pack.rs", "STAGE: usize = 256", "linear", Of("k"), 256),
    ("src/backend/cpu/gemm/schedule.rs", "DEPTH: usize = STAGE", "linear", Of("k"), 256),
    ("src/backend/cpu/gemm/schedule.rs", "TASK_ROWS: usize = 144", "linear", Product(ROWS), 144),
    ("src/backend/cpu/gemm/schedule.rs", "MATRIX_TASK_ROWS: usize = 128", "linear", Product(ROWS), 128),
    ("src/backend/cpu/gemm/schedule.rs", "MATRIX_ROWS: usize = 32", "linear", Product(ROWS), 32),
    ("src/backend/cpu/gemm/micro.rs", "PANEL: usize = 16", "linear", Of("n"), 16),
    ("src/backend/cpu/gemm/micro.rs", "WHOLE_DEPTH: usize = 32", "linear", Of("k"), 32),
];

/// Constants that no extent of a case crosses, each with its test.
const ELSEWHERE: &[(&str, &str, &str)] = &[
    ("kernels/roof_copy.cu", "EACH = 4", "no op"),
    ("src/backend/cpu/attention.rs", "SMALLEST_TILE: usize = 16", "how many threads there are: tests/cpu/attention.rs"),
    ("src/backend/cuda/attention.rs", "MANY_BLOCKS: usize = 1024", "a lowered number: its unit tests"),
    ("src/backend/cuda/attention/variant.rs", "MANY_TILES: usize = 64", "the table's own test"),
    (
        "src/backend/cuda/compile/cache.rs",
        "MOST_BYTES: u64 = 64 << 20",
        "files of compiled kernels: tests/cuda/cache.rs",
    ),
    ("src/backend/gpu/operands.rs", "MOST_OPERANDS: usize = 24", "what the ops have is known"),
    ("src/backend/cuda/linear/kernel.rs", "STAGES: usize = 4", "in each text; the depths of k cross it"),
    ("src/backend/cuda/linear/kernel.rs", "PIECE: usize = 8", "behind cuBLASLt: tests/cuda/cublaslt.rs"),
    ("src/backend/cuda/linear/kernel.rs", "ACTIVATION_EACH: u32 = 4", "behind cuBLASLt: tests/cuda/cublaslt.rs"),
    ("src/backend/cuda/cublaslt/mod.rs", "MOST_WORKSPACE: usize = 32 << 20", "what cuBLASLt may take"),
    ("src/backend/wgpu/attention.rs", "MOST_STATE_BYTES: usize = 64 << 20", "the limits of the device: tests/wgpu"),
    ("src/backend/wgpu/attention/variant.rs", "MANY_TILES: usize = 64", "the table's own test"),
    ("src/backend/wgpu/roof.rs", "BLOCK: usize = 16 << 10", "no op"),
];

/// The value of an extent in a case.
fn value(case: &Case, op: &str, extent: Extent) -> Option<usize> {
    let text = case.to_string();
    let (own, list) = text.split_once(':')?;
    let field = |name: &str| list.split(',').find_map(|part| part.strip_prefix(name)?.strip_prefix('='));
    let number = |name: &str| field(name)?.parse::<usize>().ok();
    let group = || {
        let (heads, kv_heads) = field("h")?.split_once('/')?;
        Some(heads.parse::<usize>().ok()? / kv_heads.parse::<usize>().ok()?.max(1))
    };
    if own != op {
        return None;
    }
    match extent {
        Of(name) => number(name),
        Product(names) => names.iter().map(|name| number(name)).product(),
        Keys => Some(number("k")? + number("k2").unwrap_or(0)),
        Group => group(),
        Pairs => Some(number("q")? * group()?),
    }
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn cases_lie_on_both_sides_of_every_constant() {
    let (cases, mut uncrossed) = (selection(), Vec::new());
    for (file, constant, op, extent, at) in CROSSINGS {
        let text = std::fs::read_to_string(root().join(file)).unwrap();
        assert!(text.contains(constant), "{file} has no {constant} any more: what do cases cross now?");
        let values: BTreeSet<usize> = cases.iter().filter_map(|case| value(case, op, *extent)).collect();
        let sides = (values.range(1..=*at).count(), values.range(at + 1..).count());
        if sides.0 == 0 || sides.1 == 0 {
            uncrossed.push(format!("{constant} of {file}: {extent:?} of {op} is on one side of {at}: {values:?}"));
        }
    }
    assert!(uncrossed.is_empty(), "{}", uncrossed.join("\n"));
}

#[test]
fn constants_stand_where_the_list_says_and_cases_are_cases() {
    for Limit { place: [file, constant], .. } in LIMITS {
        let text = std::fs::read_to_string(root().join(file)).unwrap();
        assert!(text.contains(constant), "{file} has no {constant} any more: what are the cases of this list beyond?");
    }
    // Fixed cases may leave parameters out; what they say is what their cases are.
    let limits = LIMITS.iter().flat_map(|limit| limit.cases);
    for text in limits.chain(super::attention_long::LONG) {
        let whole = Case::read(text, true).unwrap().to_string();
        let parts: Vec<&str> = whole.split([':', ',']).collect();
        assert!(text.split([':', ',']).all(|part| parts.contains(&part)), "{text} is {whole}");
    }
}

/// Files of kernels and of launches, without tests.
fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, found);
        } else if !path.ends_with("tests.rs") {
            found.push(path);
        }
    }
}

/// Words in the names of such constants.
const WORDS: [&str; 17] = [
    "TILE", "BLOCK", "STAGE", "STAGES", "HELD", "LONG", "MANY", "FEW", "MOST", "EACH", "CHUNK", "SEGMENT", "DEPTH",
    "PANEL", "PAIRS", "PART", "PIECE",
];

/// The numeric constants of a file with such a name, as written there up to the number's end.
fn constants(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for line in text.lines().map(str::trim_start).filter(|line| !line.starts_with("//")) {
        for start in ["const ", "constexpr u32 "] {
            let Some((_, list)) = line.split_once(start) else { continue };
            for one in list.trim_end_matches(';').split(", ") {
                let Some((left, right)) = one.split_once(" = ") else { continue };
                let name = left.split(':').next().unwrap_or_default().trim();
                let number = right.split(';').next().unwrap_or_default().trim();
                let named = name.split('_').any(|word| WORDS.contains(&word));
                if named && number.trim_end_matches('u').chars().all(|c| c.is_ascii_digit() || " *<+".contains(c)) {
                    found.push(format!("{left} = {number}"));
                }
            }
        }
    }
    found
}

#[test]
fn every_constant_of_such_a_name_is_listed() {
    let mut paths = Vec::new();
    for folder in ["kernels", "shaders", "src/backend/cpu", "src/backend/cuda", "src/backend/wgpu"] {
        files(&root().join(folder), &mut paths);
    }
    let mut unlisted = Vec::new();
    for path in &paths {
        let file = path.strip_prefix(root()).unwrap().to_string_lossy().into_owned();
        let text = std::fs::read_to_string(path).unwrap();
        for constant in constants(&text) {
            let crossed =
                CROSSINGS.iter().any(|c| c.0 == file && c.1.contains(constant.trim_start_matches("pub(super) ")));
            let elsewhere = ELSEWHERE.iter().any(|c| c.0 == file && c.1 == constant);
            if !crossed && !elsewhere {
                unlisted.push(format!("{file}: {constant}"));
            }
        }
    }
    assert!(unlisted.is_empty(), "in neither list:\n{}", unlisted.join("\n"));
    for (file, constant, _) in ELSEWHERE {
        let text = std::fs::read_to_string(root().join(file)).unwrap();
        assert!(constants(&text).iter().any(|c| c == constant), "{file} has no {constant} any more");
    }
}
