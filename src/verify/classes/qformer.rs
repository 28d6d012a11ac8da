//! Classes that are Q-Formers.

use super::run::Run;
use crate::Result;
use crate::bridge::{
    HeadArgs, HeadCall, ItcHeads, ItmHead, LanguageProjection, LmHead, Objective, QFormer, QFormerArgs, itc_similarity,
};
use crate::checkpoint::blip2::{self, Layout, NORM_EPS};
use crate::device::Tensor;
use crate::ops::Keys;
use crate::tensor::HostTensor;
use crate::{Dispatch, PreparedBridge, View, ViewMut};

/// Everything that a pass may read.
#[derive(Default)]
struct Pass<'t> {
    features: Option<&'t Tensor>,
    feature_bits: Option<&'t Tensor>,
    queries: Option<&'t Tensor>,
    query_bits: Option<&'t Tensor>,
    text: Option<&'t Tensor>,
    text_bits: Option<&'t Tensor>,
    past: &'t [Tensor],
    objective: Objective,
}

/// Named intermediates of a pass.
type Taps = Vec<(String, HostTensor<'static>)>;

impl Pass<'_> {
    fn run(&self, qformer: &QFormer, present: &mut [Tensor], hidden: &mut Tensor) -> Result<Taps> {
        let keys = |bits: Option<&Tensor>| bits.map_or(Keys::All, |b| Keys::Bits(b.spec()));
        let shapes = QFormerArgs {
            features: self.features.map(Tensor::spec),
            feature_keys: keys(self.feature_bits),
            queries: self.queries.map(Tensor::spec),
            query_keys: keys(self.query_bits),
            text: self.text.map(Tensor::spec),
            text_keys: keys(self.text_bits),
            past: self.past.iter().map(Tensor::spec).collect(),
            past_keys: Keys::All,
            present: present.iter().map(Tensor::spec).collect(),
            hidden: hidden.spec(),
        };
        let prepared = qformer.prepare(self.objective, 0, shapes)?;
        prepared.run_tapped(QFormerArgs {
            features: self.features.map(Tensor::view),
            feature_keys: self.feature_bits.map_or(Keys::All, |b| Keys::Bits(b.view())),
            queries: self.queries.map(Tensor::view),
            query_keys: self.query_bits.map_or(Keys::All, |b| Keys::Bits(b.view())),
            text: self.text.map(Tensor::view),
            text_keys: self.text_bits.map_or(Keys::All, |b| Keys::Bits(b.view())),
            past: self.past.iter().map(Tensor::view).collect(),
            past_keys: Keys::All,
            present: present.iter_mut().map(Tensor::view_mut).collect(),
            hidden: hidden.view_mut(),
        })
    }
}

/// What the BLIP-2 classes share.
struct Inputs {
    qformer: QFormer,
    batch: usize,
    features: Tensor,
    feature_bits: Option<Tensor>,
    text: Option<Tensor>,
    text_rows: usize,
    text_bits: Option<Tensor>,
}

impl Inputs {
    fn read(run: &Run<'_>, layout: Layout, features: &str, text_mask: &str) -> Result<Self> {
        let eps = run.ctor_real(&["eps", "layer_norm_eps"], NORM_EPS)?;
        let (heads, queries) = (run.ctor(&["heads"])?, run.ctor(&["nq"])?);
        let (config, weights) = blip2::read_qformer(&run.fixture.weights, "", layout, heads, queries, eps)?;
        let qformer = QFormer::new(run.device, &config, &weights, run.precision)?;
        let [batch, tokens, width] = run.shape(features)?;
        let image = run.activations(features, &[batch, tokens, width])?;
        let image_flags = run.flags("encoder_attention_mask", &[batch, tokens])?;
        let text = if run.fixture.inputs.contains_key("input_ids") { Some(run.ids("input_ids")?) } else { None };
        let text_rows = text.as_ref().map_or(0, |t| t.spec().dim(1));
        let text_flags = run.flags(text_mask, &[batch, text_rows])?;
        Ok(Inputs {
            qformer,
            batch,
            features: image,
            feature_bits: image_flags.map(|f| run.bits(f, &[batch], tokens)).transpose()?,
            text,
            text_rows,
            text_bits: text_flags.map(|f| run.bits(f, &[batch], text_rows)).transpose()?,
        })
    }

    fn queries(&self) -> usize {
        self.qformer.config().queries
    }

    fn hidden(&self, rows: usize) -> [usize; 3] {
        [self.batch, rows, self.qformer.config().width]
    }

    fn image_pass(&self) -> Pass<'_> {
        Pass { features: Some(&self.features), feature_bits: self.feature_bits.as_ref(), ..Pass::default() }
    }

    fn text_pass(&self) -> Pass<'_> {
        Pass { text: self.text.as_ref(), text_bits: self.text_bits.as_ref(), ..Pass::default() }
    }

    fn joint_pass(&self, objective: Objective) -> Pass<'_> {
        Pass { text: self.text.as_ref(), text_bits: self.text_bits.as_ref(), objective, ..self.image_pass() }
    }
}

/// `Blip2QFormerModel`: queries over an image, or with text (`mode` itg: with the ITG mask).
pub(super) fn blip2(run: &mut Run<'_>) -> Result<()> {
    let inputs = Inputs::read(run, Layout::Blip2, "encoder_hidden_states", "text_attention_mask")?;
    let mode = run.fixture.config.get("mode").and_then(serde_json::Value::as_str);
    let objective = match mode {
        Some("itg") => Objective::TextGeneration,
        Some("bidir") | None => Objective::Bidirectional,
        Some(other) => return Err(run.fault(format!("config: mode is {other}, expected itg or bidir"))),
    };
    expect_mask(run, &inputs, objective)?;
    let rows = inputs.queries() + inputs.text_rows;
    let mut hidden = run.result("last_hidden_state", &inputs.hidden(rows))?;
    let taps = inputs.joint_pass(objective).run(&inputs.qformer, &mut [], &mut hidden)?;
    run.keep("last_hidden_state", &hidden)?;
    run.keep_taps(taps, str::to_string)?;
    if run.fixture.outputs.contains_key("pooler_output") {
        let first = hidden.view().narrow(1, 0, 1)?;
        run.keep_host("pooler_output", run.device.download(&first)?)?;
    }
    if run.fixture.weights.contains_key("language_projection.weight") {
        let weights = blip2::read_dense(&run.fixture.weights, "language_projection")?;
        let head = LanguageProjection::new(run.device, &weights, run.precision)?;
        let width = weights.weight[0].shape()[0];
        let mut out = run.result("language_projection", &[inputs.batch, rows, width])?;
        through(head.prepare(HeadArgs { hidden: hidden.spec(), out: out.spec() })?, hidden.view(), out.view_mut())?;
        run.keep("language_projection", &out)?;
    }
    Ok(())
}

/// `Blip2ForImageTextRetrieval`: the ITM pass and the two ITC passes.
pub(super) fn blip2_retrieval(run: &mut Run<'_>) -> Result<()> {
    let inputs = Inputs::read(run, Layout::Blip2, "image_embeds", "attention_mask")?;
    let (batch, queries) = (inputs.batch, inputs.queries());
    let mut joint = run.result("itm_hidden", &inputs.hidden(queries + inputs.text_rows))?;
    let taps = inputs.joint_pass(Objective::Bidirectional).run(&inputs.qformer, &mut [], &mut joint)?;
    run.keep("itm_hidden", &joint)?;
    run.keep_taps(taps, str::to_string)?;
    let itm = ItmHead::new(run.device, &blip2::read_dense(&run.fixture.weights, "itm_head")?, run.precision)?;
    let mut logits = run.result("itm_logits", &[batch, 1, 2])?;
    let rows = joint.view().narrow(1, 0, queries)?;
    through(itm.prepare(HeadArgs { hidden: rows.spec(), out: logits.spec() })?, rows, logits.view_mut())?;
    run.keep("itm_logits", &logits)?;

    let vision = blip2::read_dense(&run.fixture.weights, "vision_projection")?;
    let text = blip2::read_dense(&run.fixture.weights, "text_projection")?;
    let width = vision.weight[0].shape()[0];
    let heads = ItcHeads::new(run.device, &vision, &text, run.precision)?;
    let mut image_hidden = run.scratch(&inputs.hidden(queries))?;
    inputs.image_pass().run(&inputs.qformer, &mut [], &mut image_hidden)?;
    let mut image = run.result("itc_image_embeds", &[batch, queries, width])?;
    let prepared = heads.prepare_image(HeadArgs { hidden: image_hidden.spec(), out: image.spec() })?;
    through(prepared, image_hidden.view(), image.view_mut())?;
    run.keep("itc_image_embeds", &image)?;
    let mut text_hidden = run.result("itc_text_hidden", &inputs.hidden(inputs.text_rows))?;
    inputs.text_pass().run(&inputs.qformer, &mut [], &mut text_hidden)?;
    run.keep("itc_text_hidden", &text_hidden)?;
    let mut embeds = run.result("itc_text_embeds", &[batch, 1, width])?;
    let first = text_hidden.view().narrow(1, 0, 1)?;
    through(heads.prepare_text(HeadArgs { hidden: first.spec(), out: embeds.spec() })?, first, embeds.view_mut())?;
    run.keep("itc_text_embeds", &embeds)?;

    let mut similarity = run.result("itc_logits_per_image", &[batch, 1, batch])?;
    let (op, args) = itc_similarity(image.view(), embeds.view().merge(0)?, similarity.view_mut());
    op.run(run.device, args)?;
    run.keep("itc_logits_per_image", &similarity)
}

/// `InstructBlipQFormerModel`: queries and instruction, given query embeddings.
pub(super) fn instructblip(run: &mut Run<'_>) -> Result<()> {
    // Its mask covers queries and text, and is read separately.
    let inputs = Inputs::read(run, Layout::InstructBlip, "encoder_hidden_states", "no separate text mask")?;
    let (batch, queries, rows) = (inputs.batch, inputs.queries(), inputs.queries() + inputs.text_rows);
    let embeds = run.activations("query_embeds", &inputs.hidden(queries))?;
    let (mut query_bits, mut text_bits) = (None, None);
    if let Some(flags) = run.flags("attention_mask", &[batch, rows])? {
        let part = |from: usize, to: usize| -> Result<Tensor> {
            let flags: Vec<u8> = flags.chunks(rows.max(1)).flat_map(|row| row[from..to].to_vec()).collect();
            run.bits(&flags, &[batch], to - from)
        };
        query_bits = Some(part(0, queries)?);
        text_bits = Some(part(queries, rows)?);
    }
    let pass = Pass {
        queries: Some(&embeds),
        query_bits: query_bits.as_ref(),
        text: inputs.text.as_ref(),
        text_bits: text_bits.as_ref(),
        ..inputs.image_pass()
    };
    let mut hidden = run.result("last_hidden_state", &inputs.hidden(rows))?;
    let taps = pass.run(&inputs.qformer, &mut [], &mut hidden)?;
    run.keep("last_hidden_state", &hidden)?;
    run.keep_taps(taps, str::to_string)?;
    let output = hidden.view().narrow(1, 0, queries)?;
    run.keep_host("query_output", run.device.download(&output)?)
}

/// LAVIS' `BertLMHeadModel`: query pass, joint and cached ITG pass, bidirectional pass, text alone.
pub(super) fn lavis(run: &mut Run<'_>) -> Result<()> {
    let inputs = Inputs::read(run, Layout::Lavis, "encoder_hidden_states", "text_attention_mask")?;
    expect_mask(run, &inputs, Objective::TextGeneration)?;
    let (batch, queries, text) = (inputs.batch, inputs.queries(), inputs.text_rows);
    let config = inputs.qformer.config();
    let weights = blip2::read_lm_head(&run.fixture.weights, "cls.predictions.")?;
    let vocabulary = weights.decoder.weight[0].shape()[0];
    let lm_head = LmHead::new(run.device, &weights, config.norm_eps, run.precision)?;
    let logits = |run: &Run<'_>, rows: View<'_>, name: &str| -> Result<Tensor> {
        let mut logits = run.result(name, &[batch, text, vocabulary])?;
        let shapes = HeadArgs { hidden: rows.spec(), out: logits.spec() };
        through(lm_head.prepare(shapes)?, rows, logits.view_mut())?;
        Ok(logits)
    };

    let mut present = Vec::new();
    for _ in 0..config.layers {
        present.push(run.scratch(&[batch, queries, 2 * config.width])?);
    }
    let mut query_hidden = run.result("query_hidden", &inputs.hidden(queries))?;
    inputs.image_pass().run(&inputs.qformer, &mut present, &mut query_hidden)?;
    run.keep("query_hidden", &query_hidden)?;

    let mut cached = run.scratch(&inputs.hidden(text))?;
    let pass = Pass { past: &present, objective: Objective::TextGeneration, ..inputs.text_pass() };
    pass.run(&inputs.qformer, &mut [], &mut cached)?;
    let cached = logits(run, cached.view(), "cached_logits")?;
    run.keep("cached_logits", &cached)?;

    let mut joint = run.result("joint_hidden", &inputs.hidden(queries + text))?;
    let taps = inputs.joint_pass(Objective::TextGeneration).run(&inputs.qformer, &mut [], &mut joint)?;
    run.keep("joint_hidden", &joint)?;
    // The file numbers hidden states: 0 behind the embedding, i + 1 behind layer i.
    run.keep_taps(taps, |name| match (name, name.strip_prefix("layer.").and_then(|i| i.parse::<usize>().ok())) {
        ("embeddings", _) => "hidden.0".into(),
        (_, Some(i)) => format!("hidden.{}", i + 1),
        (other, None) => other.into(),
    })?;
    let joint = logits(run, joint.view().narrow(1, queries, text)?, "joint_logits")?;
    run.keep("joint_logits", &joint)?;

    let mut both = run.result("bidirectional_hidden", &inputs.hidden(queries + text))?;
    inputs.joint_pass(Objective::Bidirectional).run(&inputs.qformer, &mut [], &mut both)?;
    run.keep("bidirectional_hidden", &both)?;

    let mut alone = run.result("text_only_hidden", &inputs.hidden(text))?;
    inputs.text_pass().run(&inputs.qformer, &mut [], &mut alone)?;
    run.keep("text_only_hidden", &alone)
}

fn through(prepared: PreparedBridge<HeadCall>, hidden: View<'_>, out: ViewMut<'_>) -> Result<()> {
    prepared.run(HeadArgs { hidden, out })
}

/// Compares the file's mask matrix with the objective's rule.
fn expect_mask(run: &Run<'_>, inputs: &Inputs, objective: Objective) -> Result<()> {
    let (queries, rows) = (inputs.queries(), inputs.queries() + inputs.text_rows);
    let Some(mask) = run.flags("allow_mask", &[inputs.batch, rows, rows])? else { return Ok(()) };
    let text = run.flags("text_attention_mask", &[inputs.batch, inputs.text_rows])?;
    for (at, &allowed) in mask.iter().enumerate() {
        let (sample, row, key) = (at / (rows * rows), at / rows % rows, at % rows);
        let exists = key < queries || text.is_none_or(|t| t[sample * inputs.text_rows + key - queries] != 0);
        let ruled = objective == Objective::Bidirectional || key < queries || (row >= queries && key <= row);
        if (allowed != 0) != (exists && ruled) {
            let what = format!("row {row} of sample {sample}, key {key}: {allowed} is not what {objective:?} means");
            return Err(run.fault(format!("tensor inputs.allow_mask: {what}")));
        }
    }
    Ok(())
}
