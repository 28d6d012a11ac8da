//! Runs a parser on seeded inputs and judges each outcome.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::counting;

/// Numbers that a seed decides.
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        let mut rng = Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x2545_f491_4f6c_dd1d);
        rng.next();
        rng
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Less than `n`; 0 for 0.
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }

    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    pub fn pick<'t, T>(&mut self, from: &'t [T]) -> &'t T {
        &from[self.below(from.len())]
    }
}

/// Accepted, or the message of a refusal; what a judge has against it.
pub type Outcome = Result<(), String>;

/// What a parser is given, and what of its answer is right.
pub struct Target<'t> {
    pub name: &'t str,
    /// A valid or hostile input of that seed.
    pub generate: &'t dyn Fn(&mut Rng) -> Vec<u8>,
    /// The message of a refusal.
    pub parse: &'t dyn Fn(&[u8]) -> Outcome,
    /// What an independent look says against the answer.
    pub judge: &'t dyn Fn(&[u8], &Outcome) -> Outcome,
    /// Bytes of the files beside the input.
    pub beside: usize,
    /// How long one input may take.
    pub limit: Duration,
}

/// A defect, and the input that shows it.
#[derive(Debug)]
pub struct Finding {
    pub what: String,
    pub seed: u64,
    pub input: Vec<u8>,
}

/// How many inputs were accepted, and the refusals.
#[derive(Debug, Default)]
pub struct Report {
    pub accepted: usize,
    pub refusals: Vec<String>,
}

/// Of every parser, unless the environment says otherwise.
const INPUTS: u64 = 6000;

/// Inputs of the environment's, or the usual number.
pub fn inputs() -> u64 {
    std::env::var("XATTN_PARSER_INPUTS").ok().and_then(|n| n.parse().ok()).unwrap_or(INPUTS)
}

impl Target<'_> {
    /// The outcome of one input, or what is wrong with it.
    pub fn run(&self, input: &[u8]) -> Result<Outcome, String> {
        let began = Instant::now();
        let (outcome, peak) = counting::peak_of(|| catch_unwind(AssertUnwindSafe(|| (self.parse)(input))));
        let took = began.elapsed();
        let outcome = outcome.map_err(|panic| {
            let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
            format!("panic: {}", text.unwrap_or("of unknown words"))
        })?;
        let bound = 4 * (input.len() + self.beside) + (1 << 20);
        if peak > bound {
            return Err(format!("memory: {peak} bytes at once for a file of {}, at most {bound}", input.len()));
        }
        if took > self.limit {
            return Err(format!("time: {took:?}, at most {:?}", self.limit));
        }
        (self.judge)(input, &outcome).map_err(|fault| format!("answer {outcome:?}: {fault}"))?;
        Ok(outcome)
    }

    /// Runs the inputs of seeds from 0 on.
    pub fn fuzz(&self, inputs: u64) -> Result<Report, Finding> {
        let mut report = Report::default();
        for seed in 0..inputs {
            let input = (self.generate)(&mut Rng::new(seed));
            match self.run(&input) {
                Ok(Ok(())) => report.accepted += 1,
                Ok(Err(refusal)) => report.refusals.push(refusal),
                Err(what) => return Err(Finding { what, seed, input }),
            }
        }
        Ok(report)
    }

    /// As [`Target::fuzz`], and a failure of the test that says how to see it again.
    #[track_caller]
    pub fn holds(&self) -> Report {
        let again =
            |seed: u64| format!("XATTN_PARSER_SEED={}:{seed} cargo test --test parsers {}", self.name, self.name);
        if let Some(seed) = self.named_seed() {
            let input = (self.generate)(&mut Rng::new(seed));
            println!("{}", String::from_utf8_lossy(&input));
            let outcome = self.run(&input);
            println!("{outcome:?}");
            assert!(outcome.is_ok());
        }
        match self.fuzz(inputs()) {
            Ok(report) => {
                println!("{}: {} accepted, {} refused", self.name, report.accepted, report.refusals.len());
                assert!(
                    report.accepted >= 50,
                    "{}: only {} accepted: nothing valid is left",
                    self.name,
                    report.accepted
                );
                assert!(report.refusals.len() >= 1000, "{}: only {} refused", self.name, report.refusals.len());
                report
            }
            Err(Finding { what, seed, input }) => {
                let text = String::from_utf8_lossy(&input[..input.len().min(2000)]).into_owned();
                panic!("{what}\n{text}\nagain: {}", again(seed));
            }
        }
    }

    fn named_seed(&self) -> Option<u64> {
        std::env::var("XATTN_PARSER_SEED").ok()?.strip_prefix(self.name)?.strip_prefix(':')?.parse().ok()
    }
}

/// Generous, since other tests run beside this one.
pub const LIMIT: Duration = Duration::from_secs(10);

/// A folder that is deleted when the test ends.
pub struct Folder(pub PathBuf);

impl Folder {
    pub fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("xattn-parsers-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    pub fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.0.join(name);
        // Some systems flush a truncated and rewritten file to the disk, which takes milliseconds.
        let _ = std::fs::remove_file(&path);
        std::fs::write(&path, bytes).unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A safetensors file of a header's text and `data` bytes.
pub fn file(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), data].concat()
}

/// The part of an error's text behind the file's name.
pub fn fault(error: &xattn::Error) -> String {
    match error {
        xattn::Error::File { fault, .. } => fault.clone(),
        other => panic!("not an error about a file: {other}"),
    }
}
