//! Reads the prompt, answers, and compares every logit with what `flamingo.py` computed in float64.

use std::process::ExitCode;
use std::time::Instant;

use candle_core::{Error, Result};
use xattn_candle::flamingo::{END_OF_CHUNK, Flamingo, IMAGE, PROMPT, features, make_weights, reply, tokens};

/// What `flamingo.py` wrote.
const EXPECTED: &str = include_str!("../../flamingo.json");

fn run() -> Result<bool> {
    let expected: serde_json::Value = serde_json::from_str(EXPECTED).map_err(Error::wrap)?;
    let number = |v: &serde_json::Value| v.as_f64().ok_or_else(|| Error::msg("flamingo.json: expected a number"));
    let list =
        |v: &serde_json::Value| v.as_array().cloned().ok_or_else(|| Error::msg("flamingo.json: expected a list"));
    let prompt = tokens(PROMPT);
    let ids = list(&expected["prompt"])?.iter().map(|v| Ok(number(v)? as u32)).collect::<Result<Vec<u32>>>()?;
    if ids != prompt {
        return Err(Error::msg("flamingo.json was made for another prompt"));
    }
    let wanted = list(&expected["reply"])?.iter().map(|v| Ok(number(v)? as u32)).collect::<Result<Vec<u32>>>()?;
    let split = number(&expected["split"])? as usize;

    println!("{PROMPT}");
    let started = Instant::now();
    let weights = make_weights().map_err(Error::wrap)?;
    let mut model = Flamingo::new(&xattn::Device::cpu(), &weights)?;
    println!("weights made and packed: {:.1} s", started.elapsed().as_secs_f64());
    let started = Instant::now();
    model.see(&features()?)?;
    let answer = reply(&mut model, split, wanted.len())?;
    println!(
        "images, {} tokens in two chunks, {} tokens of reply: {:.2} s",
        prompt.len(),
        wanted.len(),
        started.elapsed().as_secs_f64()
    );

    let (mut error, mut largest) = (0f64, 0f64);
    let truth = list(&expected["logits"])?;
    for (ours, truth) in answer.logits.iter().zip(&truth) {
        let truth = list(truth)?;
        if truth.len() != ours.len() {
            return Err(Error::msg("flamingo.json has another vocabulary"));
        }
        for (ours, truth) in ours.iter().zip(&truth) {
            let truth = number(truth)?;
            error = error.max((f64::from(*ours) - truth).abs());
            largest = largest.max(truth.abs());
        }
    }
    let torch = number(&expected["torch_f32_error"])?;
    let words: String = answer
        .tokens
        .iter()
        .map(|&id| match id {
            IMAGE => "<image>".to_string(),
            END_OF_CHUNK => "<|endofchunk|>".into(),
            byte => format!("{:?} ", u8::try_from(byte).map(char::from).unwrap_or('?')),
        })
        .collect();
    println!("reply: {:?} ({words}); the weights are random", answer.tokens);
    println!(
        "largest logit {largest:.3}; largest error {error:.2e}, PyTorch's in f32 {torch:.2e}: {:.2} of its",
        error / torch
    );
    let same = answer.tokens == wanted && answer.logits.len() == truth.len();
    // As everywhere in this project: at most twice the error of the public code in the same
    // precision.
    Ok(same && error <= 2.0 * torch)
}

fn main() -> ExitCode {
    match run() {
        Ok(true) => {
            println!("passed");
            ExitCode::SUCCESS
        }
        Ok(false) => {
            eprintln!("failed: tokens differ, or the error is more than twice PyTorch's");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
