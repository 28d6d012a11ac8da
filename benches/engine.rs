//! What an engine pays beside the arithmetic, on the CPU: `prepare` per op, and ragged calls whose
//! problems are equally long beside the same calls without offsets, turn by turn.
//! `cargo bench --no-default-features --bench engine`; docs/engines.md cites it.

use std::time::Instant;

use xattn::bridge::{
    DenseWeights, FfnWeights, GatedBlock, GatedBlockArgs, GatedBlockCall, GatedBlockConfig, GatedBlockWeights,
    NormWeights, Precision,
};
use xattn::ops::{
    Attention, AttentionArgs, GatedResidual, GatedResidualArgs, Linear, LinearArgs, Matrix, Media, MediaIndex,
    MediaIndexArgs, MediaSource, Norm, NormArgs, NormKind, Source, Visibility,
};
use xattn::{DType, Device, Dispatch, HostTensor, Result, Shapes, Spec, View, ViewMut, Workspace};

const F32: DType = DType::F32;
/// Times that are taken of each `prepare`.
const TIMES: usize = 1001;
/// Turns of two calls that are compared.
const TURNS: usize = 101;
/// Calls of `prepare` in one time.
const CALLS: usize = 20;

fn main() -> Result<()> {
    let device = Device::cpu();
    let block = block(&device)?;
    println!("prepare of one op                             median us");
    for rows in [1, 512] {
        prepare_ops(&device, rows)?;
    }
    let args = GatedBlockArgs::new(
        Source::From(Spec::contiguous(F32, &[8, 1, 2048])?),
        Spec::contiguous(F32, &[8, 256, 1024])?,
        block.config().visibility(Spec::contiguous(DType::I32, &[8, 1])?, 64, None)?,
        Spec::contiguous(F32, &[8, 1, 2048])?,
    );
    let steps = block.prepare(args.clone())?.steps().count();
    let whole = prepare("", || block.prepare(args.clone()).map(drop))?;
    println!("gated block, a decode step: {whole:.2} us for {steps} ops, {:.2} us each", whole / steps as f64);

    println!("\nragged, equal lengths                  ragged us    plain us    ratio");
    for (batch, rows) in [(1, 1), (8, 1), (64, 1), (4, 128)] {
        attention(&device, batch, rows)?;
        gated_block(&device, &block, batch, rows)?;
    }
    Ok(())
}

/// Microseconds of one call: the median over samples of a few calls each, short enough that other
/// programs interrupt few of them.
fn prepare(name: &str, mut call: impl FnMut() -> Result<()>) -> Result<f64> {
    let mut times = Vec::with_capacity(TIMES);
    for _ in 0..TIMES {
        let start = Instant::now();
        for _ in 0..CALLS {
            call()?;
        }
        times.push(start.elapsed().as_secs_f64() * 1e6 / CALLS as f64);
    }
    let median = median(times);
    if !name.is_empty() {
        println!("{name:<44} {median:>10.2}");
    }
    Ok(median)
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn prepare_ops(device: &Device, rows: usize) -> Result<()> {
    let spec = |shape: &[usize]| Spec::contiguous(F32, shape);
    let ints = |shape: &[usize]| Spec::contiguous(DType::I32, shape);
    let (q, kv) = (spec(&[1, rows, 8, 64])?, spec(&[1, 256, 8, 64])?);
    let mut args = AttentionArgs::new(q, kv, kv, q);
    args.visibility = Visibility::SameMedia(Media { media_index: ints(&[1, rows])?, keys_per_media: 64, plan: None });
    let op = Attention::for_head_dim(64);
    prepare(&format!("attention, {rows} rows"), || op.prepare(device, args.clone()).map(drop))?;
    let (x, wide) = (spec(&[1, rows, 2048])?, spec(&[1, rows, 8192])?);
    let args = LinearArgs::new(x, Matrix::View(spec(&[8192, 2048])?), wide);
    let op = Linear::default();
    prepare(&format!("linear, {rows} rows"), || op.prepare(device, args.clone()).map(drop))?;
    let (x, vector) = (spec(&[1, rows, 1, 2048])?, spec(&[2048])?);
    let args = NormArgs::new(Source::From(x), Some(vector), Some(vector), x);
    let op = Norm { kind: NormKind::Layer, eps: 1e-5 };
    prepare(&format!("norm, {rows} rows"), || op.prepare(device, args.clone()).map(drop))?;
    let args = MediaIndexArgs::new(MediaSource::Tokens { ids: ints(&[1, rows])?, token: 9 }, ints(&[1, rows])?);
    let op = MediaIndex::default();
    prepare(&format!("media_index, {rows} rows"), || op.prepare(device, args.clone()).map(drop))?;
    let x = spec(&[1, rows, 2048])?;
    let args = GatedResidualArgs::new(Source::InPlace, x, spec(&[1])?, x);
    prepare(&format!("gated_residual, {rows} rows"), || GatedResidual.prepare(device, args.clone()).map(drop))?;
    Ok(())
}

/// OpenFlamingo 3B's block, whose numbers do not count here.
fn block(device: &Device) -> Result<GatedBlock> {
    let config = GatedBlockConfig::open_flamingo_3b();
    let of = |value: f32, shape: &[usize]| HostTensor::from_slice(&vec![value; shape.iter().product()], shape);
    let norm = |width: usize| -> Result<_> { Ok(NormWeights::new(of(1.0, &[width])?, Some(of(0.0, &[width])?))) };
    let dense = |n: usize, k: usize| -> Result<_> { Ok(DenseWeights::plain(vec![of(0.01, &[n, k])?])) };
    let (width, inner, hidden) = (config.width, config.heads * config.head_dim, config.ffn_hidden);
    let weights = GatedBlockWeights::new(
        [norm(width)?, norm(width)?],
        [dense(inner, width)?, dense(config.kv_width(), config.media_width)?, dense(width, inner)?],
        FfnWeights::new(dense(hidden, width)?, dense(width, hidden)?),
        [of(0.5, &[1])?, of(0.5, &[1])?],
    );
    GatedBlock::new(device, &config, &weights, Precision::uniform(F32))
}

/// Numbers of no pattern that a kernel could use.
fn numbers(n: usize) -> Vec<f32> {
    (0..n).map(|i| (i.wrapping_mul(2_654_435_761) % 1024) as f32 / 512.0 - 1.0).collect()
}

/// Operands of calls over a batch of rows, which all see the last of four media; with offsets or
/// without.
struct Data {
    batch: usize,
    rows: usize,
    x: Vec<f32>,
    kv: Vec<f32>,
    phi: Vec<i32>,
    offsets: Vec<u32>,
}

impl Data {
    fn new(batch: usize, rows: usize, width: usize) -> Self {
        let (x, kv) = (numbers(batch * rows * width), numbers(batch * 256 * 1024));
        let offsets = (0..=batch).map(|b| (b * rows) as u32).collect();
        Data { batch, rows, x, kv, phi: vec![4; batch * rows], offsets }
    }

    fn shape(&self, ragged: bool) -> [usize; 2] {
        if ragged { [1, self.batch * self.rows] } else { [self.batch, self.rows] }
    }

    fn offsets(&self, ragged: bool) -> Result<Option<View<'_>>> {
        ragged.then(|| View::new(&self.offsets, &[self.batch + 1])).transpose()
    }

    fn visibility(&self, ragged: bool) -> Result<Visibility<View<'_>>> {
        let media_index = View::new(&self.phi, &self.shape(ragged))?;
        Ok(Visibility::SameMedia(Media { media_index, keys_per_media: 64, plan: None }))
    }

    fn attention<'a>(&'a self, ragged: bool, out: &'a mut [f32]) -> Result<AttentionArgs<View<'a>, ViewMut<'a>>> {
        let [batch, rows] = self.shape(ragged);
        let (shape, kv) = ([batch, rows, 8, 64], View::new(&self.kv, &[self.batch, 256, 1024])?);
        let half = |start| kv.clone().narrow(2, start, 512)?.split(2, 8, 64);
        let q = View::new(&self.x, &shape)?;
        let mut args = AttentionArgs::new(q, half(0)?, half(512)?, ViewMut::new(out, &shape)?);
        (args.q_offsets, args.visibility) = (self.offsets(ragged)?, self.visibility(ragged)?);
        Ok(args)
    }

    fn block<'a>(&'a self, ragged: bool, out: &'a mut [f32]) -> Result<GatedBlockArgs<View<'a>, ViewMut<'a>>> {
        let [batch, rows] = self.shape(ragged);
        let shape = [batch, rows, 2048];
        let (x, kv) = (Source::From(View::new(&self.x, &shape)?), View::new(&self.kv, &[self.batch, 256, 1024])?);
        let mut args = GatedBlockArgs::new(x, kv, self.visibility(ragged)?, ViewMut::new(out, &shape)?);
        args.x_offsets = self.offsets(ragged)?;
        Ok(args)
    }
}

/// Times the ragged call and the plain one by turns, and prints medians. Both compute the same.
fn compare(name: &str, len: usize, mut call: impl FnMut(bool, &mut [f32]) -> Result<()>) -> Result<()> {
    let (mut outs, mut times) = ([vec![0f32; len], vec![0f32; len]], [Vec::new(), Vec::new()]);
    for _ in 0..TURNS {
        for (ragged, (out, times)) in [true, false].into_iter().zip(outs.iter_mut().zip(&mut times)) {
            let start = Instant::now();
            call(ragged, out)?;
            times.push(start.elapsed().as_secs_f64() * 1e6);
        }
    }
    assert_eq!(outs[0], outs[1], "{name}");
    let ratio = median(times[0].iter().zip(&times[1]).map(|(ragged, plain)| ragged / plain).collect());
    let [ragged, plain] = times.map(median);
    println!("{name:<36} {ragged:>11.1} {plain:>11.1} {ratio:>8.3}");
    Ok(())
}

fn attention(device: &Device, batch: usize, rows: usize) -> Result<()> {
    let (data, op) = (Data::new(batch, rows, 512), Attention::for_head_dim(64));
    let mut out = vec![0f32; data.x.len()];
    let mut prepare = |ragged| op.prepare(device, Attention::shapes(&data.attention(ragged, &mut out)?)?);
    let prepared = [prepare(false)?, prepare(true)?];
    let bytes = prepared.iter().map(|p| p.workspace_bytes()).max().unwrap_or(0);
    let (mut workspace, mut recorder) = (Workspace::new(device, bytes)?, device.recorder()?);
    compare(&format!("attention, {batch} x {rows} rows"), data.x.len(), |ragged, out| {
        prepared[usize::from(ragged)].enqueue(&mut recorder, data.attention(ragged, out)?, &mut workspace)
    })
}

fn gated_block(device: &Device, block: &GatedBlock, batch: usize, rows: usize) -> Result<()> {
    let data = Data::new(batch, rows, 2048);
    let mut out = vec![0f32; data.x.len()];
    let mut prepare = |ragged| block.prepare(GatedBlockCall::shapes(&data.block(ragged, &mut out)?)?);
    let prepared = [prepare(false)?, prepare(true)?];
    let bytes = prepared.iter().map(|p| p.workspace_bytes()).max().unwrap_or(0);
    let (mut workspace, mut recorder) = (Workspace::new(device, bytes)?, device.recorder()?);
    compare(&format!("gated block, {batch} x {rows} rows"), data.x.len(), |ragged, out| {
        prepared[usize::from(ragged)].enqueue(&mut recorder, data.block(ragged, out)?, &mut workspace)
    })
}
