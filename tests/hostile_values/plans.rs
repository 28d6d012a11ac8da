//! Media plans that contradict φ.

#![allow(dead_code, reason = "each test uses a part")]

/// A plan of one problem, `[1 + rows, 2]`.
pub struct Plan {
    pub name: String,
    pub words: Vec<u32>,
}

/// Numbers of runs from none to far more than there can be; begins beyond the rows, descending,
/// equal, back and forth, and such as a plan may have; φ of no medium. `rows` is at least 4.
pub fn plans(rows: usize) -> Vec<Plan> {
    let rows = rows as u32;
    type Begin = fn(u32, u32) -> u32;
    let begins: [(&str, Begin); 7] = [
        ("ascending", |run, _| 3 * run),
        ("beyond", |run, rows| rows + run),
        ("far beyond", |run, _| u32::MAX - run),
        ("descending", |run, rows| rows - 1 - run),
        ("equal", |_, rows| rows / 2),
        ("back and forth", |run, rows| [0, rows, 2, u32::MAX][run as usize % 4]),
        ("wrapping", |run, _| run.wrapping_mul(0x4000_0001)),
    ];
    let counts = [0, 1, 2, rows, rows + 1, 0x7fff_ffff, u32::MAX];
    let plan = |count: u32, (name, begin): (&str, Begin)| {
        let runs = (0..rows).flat_map(|run| [begin(run, rows), 0x8000_0000 | run]);
        Plan { name: format!("{count} runs, {name}"), words: [count, 0xdead_beef].into_iter().chain(runs).collect() }
    };
    counts.into_iter().flat_map(|count| begins.map(|kind| plan(count, kind))).collect()
}

impl Plan {
    /// Whether a row is in a run: run n ends where n + 1 begins, the last one after the last row.
    pub fn holds(&self, row: usize) -> bool {
        let rows = self.words.len() / 2 - 1;
        let runs = (self.words[0] as usize).min(rows);
        let begin = |run: usize| if run < runs { self.words[2 + 2 * run] as usize } else { rows };
        (0..runs).any(|run| (begin(run)..begin(run + 1)).contains(&row))
    }
}
