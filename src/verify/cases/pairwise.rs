//! Covering selections: every legal pair of parameter values occurs in some case.

use std::collections::HashSet;

use super::declare::Parameters;
use crate::verify::generate::Rng;

/// Attempts to complete a pair to a legal case before the pair counts as impossible.
const ATTEMPTS: usize = 60;
/// Candidates per case; the one with most new pairs is taken.
const CANDIDATES: usize = 6;

/// Cases that cover every pair of values that 60 random completions make legal. Deterministic.
pub fn covering<P: Parameters>() -> Vec<P> {
    let extents = P::extents();
    let mut rng = Rng::named(1, P::OP);
    let mut uncovered: Vec<[usize; 4]> = Vec::new();
    for (i, &ni) in extents.iter().enumerate() {
        for (j, &nj) in extents.iter().enumerate().skip(i + 1) {
            uncovered.extend((0..ni).flat_map(|a| (0..nj).map(move |b| [i, a, j, b])));
        }
    }
    let mut open: HashSet<[usize; 4]> = uncovered.iter().copied().collect();
    let mut cases = Vec::new();
    for pair in uncovered {
        if !open.contains(&pair) {
            continue;
        }
        let [i, a, j, b] = pair;
        let mut best: Option<(usize, Vec<usize>)> = None;
        let mut found = 0;
        for _ in 0..ATTEMPTS {
            let mut choice: Vec<usize> = extents.iter().map(|&n| rng.below(n)).collect();
            (choice[i], choice[j]) = (a, b);
            if !P::choose(&choice, 0).legal() {
                continue;
            }
            found += 1;
            let gain = pairs(&choice).filter(|p| open.contains(p)).count();
            if best.as_ref().is_none_or(|(most, _)| gain > *most) {
                best = Some((gain, choice));
            }
            if found == CANDIDATES {
                break;
            }
        }
        open.remove(&pair);
        if let Some((_, choice)) = best {
            for p in pairs(&choice) {
                open.remove(&p);
            }
            cases.push(P::choose(&choice, cases.len() as u64));
        }
    }
    cases
}

fn pairs(choice: &[usize]) -> impl Iterator<Item = [usize; 4]> + '_ {
    (0..choice.len()).flat_map(move |i| (i + 1..choice.len()).map(move |j| [i, choice[i], j, choice[j]]))
}

/// `count` random legal cases with random lengths, and seeds of their own. Deterministic.
pub fn random<P: Parameters>(count: usize) -> Vec<P> {
    let extents = P::extents();
    let mut rng = Rng::named(2, P::OP);
    let mut cases = Vec::with_capacity(count);
    while cases.len() < count {
        let choice: Vec<usize> = extents.iter().map(|&n| rng.below(n)).collect();
        let mut case = P::choose(&choice, 1_000_000 + cases.len() as u64);
        case.vary(&mut rng);
        if case.legal() {
            cases.push(case);
        }
    }
    cases
}
