//! Resampler, gated block and attention: xattn's beside candle's own ops, errors and times, turn by
//! turn.

use std::process::ExitCode;
use std::time::Instant;

use candle_core::{DType, Device, Error, Result, Tensor};
use xattn_candle::bridges::{GatedBlock, Resampler};
use xattn_candle::flamingo::{BRIDGE_HEADS, FEATURES, LATENTS, MEDIA_WIDTH, RESAMPLER_LAYERS, WIDTH};
use xattn_candle::operand::fault;
use xattn_candle::ops::Attention;
use xattn_candle::plain;
use xattn_candle::weights::{self, values};

/// Turns of each side. The median of each is taken, and their ratio.
const TURNS: usize = 7;

struct Row {
    what: &'static str,
    error: f64,
    bound: f64,
    ours: f64,
    candle: f64,
}

/// Largest difference over the largest value.
fn relative_error(a: &Tensor, b: &Tensor) -> Result<f64> {
    let largest = b.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>()?;
    let error = (a - b)?.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>()?;
    Ok(f64::from(error / largest))
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// Compares once, then times in turns. `sums`: the longest chain of f32 additions on the way to an
/// output, of which either side may lose half an ulp in each, at random: 4 · √sums · 2^-24 of the
/// largest value.
fn row(
    what: &'static str,
    sums: usize,
    mut ours: impl FnMut() -> Result<Tensor>,
    mut candle: impl FnMut() -> Result<Tensor>,
) -> Result<Row> {
    let error = relative_error(&ours()?, &candle()?)?;
    let (mut a, mut b) = (Vec::new(), Vec::new());
    for _ in 0..TURNS {
        for (times, run) in [(&mut a, &mut ours as &mut dyn FnMut() -> Result<Tensor>), (&mut b, &mut candle)] {
            let started = Instant::now();
            run()?;
            times.push(started.elapsed().as_secs_f64() * 1e3);
        }
    }
    Ok(Row { what, error, bound: 4.0 * (sums as f64).sqrt() * 2f64.powi(-24), ours: median(a), candle: median(b) })
}

fn random(name: &str, shape: &[usize]) -> Result<Tensor> {
    Tensor::from_vec(values(name, shape), shape, &Device::Cpu)
}

fn run() -> Result<Vec<Row>> {
    let device = xattn::Device::cpu();
    let inner = BRIDGE_HEADS * 64;
    let mut names = weights::resampler("perceiver.", MEDIA_WIDTH, LATENTS, RESAMPLER_LAYERS, inner);
    names.extend(weights::gated_block("block.", WIDTH, MEDIA_WIDTH, inner));
    let weights = weights::make(names).map_err(fault)?;
    let mut rows = Vec::new();

    // 512 rows of text over 4 images.
    let (text_rows, images) = (512, 4);
    let keys = images * LATENTS;
    let phi: Vec<i32> = (0..text_rows).map(|i| (i * (images + 1) / text_rows) as i32).collect();
    let phi = Tensor::from_vec(phi, (1, text_rows), &Device::Cpu)?;
    let mask = plain::media_mask(&phi, images, LATENTS)?;

    let attention = Attention::new(&device, 64);
    let (q, k, v) = (
        random("q", &[1, text_rows, BRIDGE_HEADS, 64])?,
        random("k", &[1, keys, BRIDGE_HEADS, 64])?,
        random("v", &[1, keys, BRIDGE_HEADS, 64])?,
    );
    let swapped = |t: &Tensor| t.transpose(1, 2)?.contiguous();
    rows.push(row(
        "attention, 512 rows, 4 images",
        64 + LATENTS,
        || attention.same_media(&q, &k, &v, &phi, LATENTS as u32),
        || plain::attention(&swapped(&q)?, &swapped(&k)?, &swapped(&v)?, Some((&mask, &phi)))?.transpose(1, 2),
    )?);

    let features = random("features", &[1, images, FEATURES, MEDIA_WIDTH])?;
    let resampler =
        Resampler::open_flamingo(&device, &weights, "perceiver.", BRIDGE_HEADS, xattn::DType::F32).map_err(fault)?;
    rows.push(row(
        "resampler, 4 images",
        RESAMPLER_LAYERS * (3 * MEDIA_WIDTH + 4 * MEDIA_WIDTH),
        || {
            let media = Tensor::zeros((1, images, LATENTS, MEDIA_WIDTH), DType::F32, &Device::Cpu)?;
            media.inplace_op2(&features, &resampler)?;
            media.squeeze(0)
        },
        || plain::resampler(&weights, "perceiver.", RESAMPLER_LAYERS, BRIDGE_HEADS, &features.squeeze(0)?),
    )?);

    let media = random("media", &[1, keys, MEDIA_WIDTH])?;
    let text = random("text", &[1, text_rows, WIDTH])?;
    let block = GatedBlock::open_flamingo(&device, &weights, "block.", BRIDGE_HEADS, LATENTS as u32, xattn::DType::F32)
        .map_err(fault)?;
    let own = plain::GatedBlock::new(&weights, "block.", BRIDGE_HEADS)?;
    rows.push(row(
        "gated block, 512 rows, 4 images, media projected",
        WIDTH + 64 + LATENTS + inner + WIDTH + 4 * WIDTH,
        || {
            let kv = Tensor::zeros((1, keys, block.kv_width()), DType::F32, &Device::Cpu)?;
            kv.inplace_op2(&media, &block.media())?;
            let x = text.copy()?;
            x.inplace_op3(&kv, &phi, &block)?;
            Ok(x)
        },
        || own.forward(&text, &own.project_media(&media)?, &mask, &phi),
    )?);
    Ok(rows)
}

fn main() -> ExitCode {
    let rows = match run() {
        Ok(rows) => rows,
        Err(error) => {
            eprintln!("{}", Error::to_string(&error));
            return ExitCode::FAILURE;
        }
    };
    println!(
        "{:<50} {:>9} {:>9} {:>10} {:>10} {:>7}",
        "f32, medians of 7 turns", "error", "bound", "xattn, ms", "candle, ms", "ratio"
    );
    for r in &rows {
        println!(
            "{:<50} {:>9.1e} {:>9.1e} {:>10.2} {:>10.2} {:>7.2}",
            r.what,
            r.error,
            r.bound,
            r.ours,
            r.candle,
            r.candle / r.ours
        );
    }
    let failed = rows.iter().filter(|r| r.error.is_nan() || r.error > r.bound).count();
    println!("{} passed, {failed} failed", rows.len() - failed);
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
