//! Thread use, as the types' documentation has it: what may be shared is `Send + Sync`, and threads
//! that share one device, one prepared call and its inputs, each with a workspace and outputs of
//! its own, get the bits that one thread gets alone.

use std::collections::BTreeMap;
use std::sync::Barrier;

use xattn::bench::RandomWeights;
use xattn::bridge::{
    GatedBlock, GatedBlockArgs, GatedBlockCall, GatedBlockConfig, HeadCall, ItcHeads, ItmHead, LanguageProjection,
    LmHead, MediaCache, PerceiverResampler, Precision, PreparedMediaFill, ProjectMediaCall, QFormer, QFormerCall,
    ResamplerCall,
};
use xattn::checkpoint::Checkpoint;
use xattn::ops::{Op, Operands, Source, visit};
use xattn::verify::cases::{Case, Verdict, selection};
use xattn::verify::generate::Rng;
use xattn::{
    DType, Device, Error, HostTensor, Memory, Prepared, PreparedBridge, Recorder, Result, Spec, Tensor, View, ViewMut,
    Weight, Workspace,
};

const fn shared<T: Send + Sync>() {}
const fn sent<T: Send>() {}

/// What the documentation of these types says, as a compile error where it is no longer so.
const _: () = {
    shared::<Device>();
    shared::<Tensor>();
    shared::<HostTensor<'static>>();
    shared::<Weight>();
    shared::<Workspace>();
    shared::<View<'static>>();
    shared::<ViewMut<'static>>();
    shared::<Spec>();
    shared::<Memory>();
    shared::<Error>();
    shared::<PreparedBridge<GatedBlockCall>>();
    shared::<PreparedBridge<ProjectMediaCall>>();
    shared::<PreparedBridge<ResamplerCall>>();
    shared::<PreparedBridge<QFormerCall>>();
    shared::<PreparedBridge<HeadCall>>();
    shared::<PreparedMediaFill>();
    shared::<PerceiverResampler>();
    shared::<GatedBlock>();
    shared::<MediaCache>();
    shared::<QFormer>();
    shared::<LanguageProjection>();
    shared::<ItcHeads>();
    shared::<ItmHead>();
    shared::<LmHead>();
    shared::<Checkpoint>();
    sent::<Recorder<'static>>();
};

/// More than a wgpu launch keeps sets of operands (eight), so that they also push each other out.
const THREADS: usize = 12;
/// Calls of each thread.
const CALLS: usize = 3;

/// A prepared op or bridge call.
trait Plan<C: Operands>: Send + Sync {
    fn bytes(&self) -> usize;
    fn record(&self, to: &mut Recorder<'_>, args: C::Args<View<'_>, ViewMut<'_>>, with: &mut Workspace) -> Result<()>;
}

impl<O: Op> Plan<O> for Prepared<O>
where
    O::Args<Spec, Spec>: Send + Sync,
{
    fn bytes(&self) -> usize {
        self.workspace_bytes()
    }
    fn record(&self, to: &mut Recorder<'_>, args: O::Args<View<'_>, ViewMut<'_>>, with: &mut Workspace) -> Result<()> {
        self.enqueue(to, args, with)
    }
}

impl<C: Operands> Plan<C> for PreparedBridge<C>
where
    C::Args<Spec, Spec>: Send + Sync,
{
    fn bytes(&self) -> usize {
        self.workspace_bytes()
    }
    fn record(&self, to: &mut Recorder<'_>, args: C::Args<View<'_>, ViewMut<'_>>, with: &mut Workspace) -> Result<()> {
        self.enqueue(to, args, with)
    }
}

/// Repeats a plan with this thread's outputs and workspace; the outputs' bytes after each call.
fn calls<C: Operands>(
    device: &Device,
    plan: &dyn Plan<C>,
    args: &C::Args<&Tensor, Spec>,
    count: usize,
) -> Result<Vec<Vec<u8>>> {
    let mut workspace = Workspace::new(device, plan.bytes())?;
    let mut outs = Vec::new();
    let out = |_: &'static str, w: &Spec| {
        outs.push(Tensor::zeros(device, w.dtype(), w.shape())?);
        Ok(())
    };
    let _ = C::map::<_, _, (), ()>(C::as_ref(args), &mut visit(|_, _| Ok(()), out))?;
    let mut seen = Vec::new();
    for _ in 0..count {
        let mut views = outs.iter_mut().map(Tensor::view_mut);
        let out = |_: &'static str, _: &Spec| Ok(views.next().expect("as many as were made"));
        let args = C::map(C::as_ref(args), &mut visit(|_, r: &&Tensor| Ok(r.view()), out))?;
        let mut recorder = device.recorder()?;
        plan.record(&mut recorder, args, &mut workspace)?;
        device.finish(recorder)?;
        for out in &outs {
            seen.push(out.download(device)?.bytes()?.to_vec());
        }
    }
    Ok(seen)
}

/// One thread alone, then all at once with the same plan, and with plans made meanwhile.
fn check<'t, C: Operands, P: Plan<C>>(
    device: &Device,
    prepare: impl Fn(C::Args<Spec, Spec>) -> Result<P> + Sync,
    args: C::Args<&'t Tensor, Spec>,
) where
    C::Args<&'t Tensor, Spec>: Sync,
{
    let plan = || {
        let shapes = C::map(C::as_ref(&args), &mut visit(|_, r: &&Tensor| Ok(r.spec()), |_, w: &Spec| Ok(*w)));
        prepare(shapes.unwrap()).unwrap()
    };
    let common = plan();
    let expected = calls(device, &common, &args, 1).unwrap();
    assert!(expected.iter().all(|out| out.iter().any(|&byte| byte != 0)), "{}: nothing was computed", C::NAME);
    let begin = Barrier::new(THREADS);
    std::thread::scope(|scope| {
        let threads = (0..THREADS).map(|thread| {
            let (common, expected, args, begin, plan) = (&common, &expected, &args, &begin, &plan);
            scope.spawn(move || {
                begin.wait();
                let own = (thread % 4 == 3).then(plan);
                let seen = calls(device, own.as_ref().unwrap_or(common), args, CALLS).unwrap();
                for (i, out) in seen.iter().enumerate() {
                    let (call, operand) = (i / expected.len(), i % expected.len());
                    assert!(
                        out == &expected[operand],
                        "{} on {device:?}: output {operand} of thread {thread}, call {call} differs",
                        C::NAME
                    );
                }
            })
        });
        join(threads.collect());
    });
}

/// Waits for each thread by itself: the end of a scope orders nothing that ThreadSanitizer sees.
fn join(threads: Vec<std::thread::ScopedJoinHandle<'_, ()>>) {
    threads.into_iter().for_each(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
}

/// Inputs on a device.
struct Lab {
    device: Device,
    rng: Rng,
}

impl Lab {
    fn host(&mut self, shape: &[usize]) -> HostTensor<'static> {
        let n = shape.iter().product();
        let values: Vec<f32> = (0..n).map(|_| self.rng.normal() as f32).collect();
        HostTensor::from_slice(&values, shape).unwrap()
    }

    fn real(&mut self, dtype: DType, shape: &[usize]) -> Tensor {
        let host = self.host(shape);
        Tensor::upload(&self.device, &host, dtype).unwrap()
    }

    /// φ that rises along rows from 0 to `media` and falls back.
    fn media_index(&self, batch: usize, rows: usize, media: usize) -> Tensor {
        let phi: Vec<i32> =
            (0..batch * rows).map(|i| ((i % rows) * 2 * (media + 1) / rows % (media + 1)) as i32).collect();
        let host = HostTensor::from_slice(&phi, &[batch, rows]).unwrap();
        Tensor::upload(&self.device, &host, DType::I32).unwrap()
    }
}

/// Of every op, with prepared and with plain matrices, the largest case of at most so many
/// operations: right alone, and the same bits for threads that share it.
fn ops(device: &Device) {
    const MOST: u64 = 10_000_000;
    let mut largest: BTreeMap<String, (u64, Case)> = BTreeMap::new();
    for case in selection() {
        let text = case.to_string();
        let matrix = text.split(',').find(|part| part.starts_with("matrix=")).unwrap_or_default();
        let key = format!("{} {matrix}", case.op());
        let flops = case.cost().unwrap().flops;
        if flops <= MOST && largest.get(&key).is_none_or(|(most, _)| flops > *most) {
            largest.insert(key, (flops, case));
        }
    }
    for (_, case) in largest.into_values() {
        let verdicts = case.verify(std::slice::from_ref(device));
        let right = matches!(&verdicts[0], Verdict::Compared(all) if all.iter().all(|o| o.failure.is_none()));
        assert!(right, "{case} on {device:?}: {verdicts:?}");
        case.share(device, THREADS, CALLS).unwrap_or_else(|error| panic!("{case} on {device:?}: {error}"));
    }
}

/// A gated block over one projection of media that every thread reads.
fn gated_block(lab: &mut Lab) {
    let config = GatedBlockConfig::new(96, 64, 4, 16);
    let (batch, rows, media, keys) = (2, 40, 3, 16);
    let weights = RandomWeights::new(3).gated_block(&config).unwrap();
    let block = GatedBlock::new(&lab.device, &config, &weights, Precision::uniform(DType::F32)).unwrap();
    let kv = lab.real(DType::F32, &[batch, media * keys, config.kv_width()]);
    let (x, phi) = (lab.real(DType::F32, &[batch, rows, config.width]), lab.media_index(batch, rows, media));
    let visibility = config.visibility(&phi, keys as u32, None).unwrap();
    let args = GatedBlockArgs::new(Source::From(&x), &kv, visibility, x.spec());
    check::<GatedBlockCall, _>(&lab.device, |shapes| block.prepare(shapes), args);
}

#[test]
fn threads_share_the_cpu() {
    let mut lab = Lab { device: Device::cpu(), rng: Rng::new(11) };
    ops(&lab.device);
    gated_block(&mut lab);
}

#[test]
fn threads_share_the_reference() {
    let mut lab = Lab { device: Device::reference(), rng: Rng::new(12) };
    gated_block(&mut lab);
}

/// Without an adapter skipped aloud; with `CI=true` that is a failure.
#[cfg(feature = "wgpu")]
#[test]
fn threads_share_a_wgpu_device() {
    match Device::open_wgpu(&xattn::WgpuOptions::default()) {
        Ok(device) => {
            let mut lab = Lab { device, rng: Rng::new(13) };
            ops(&lab.device);
            gated_block(&mut lab);
        }
        Err(error @ Error::Unavailable { .. }) => {
            assert!(std::env::var("CI").as_deref() != Ok("true"), "{error}");
            eprintln!("skipped: {error}");
        }
        Err(error) => panic!("{error}"),
    }
}
