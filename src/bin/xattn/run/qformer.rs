//! Q-Formers and their heads.

use xattn::bridge::{HeadArgs, ItcHeads, ItmHead, LanguageProjection, QFormer, QFormerArgs, QFormerWeights};
use xattn::checkpoint::Bridges;
use xattn::ops::Keys;
use xattn::{DType, Error, HostTensor, Tensor};

use super::finite::States;
use super::tensors::{Context, upload};

/// Text on the device.
struct Text {
    ids: Tensor,
    bits: Option<Tensor>,
    rows: usize,
}

/// `features` and perhaps `text_ids` to `queries`, `projected` and the heads' outputs.
pub fn run(run: &mut Context, bridges: &Bridges<'_>) -> Result<(), Error> {
    let Some((config, weights)) = &bridges.qformer else { return Ok(()) };
    // A Q-Former that was saved alone has no queries: they are an input.
    let mut config = config.clone();
    let given = match &weights.query_tokens {
        Some(_) => None,
        None => {
            let [batch, queries, width] = run.inputs.shape("query_embeds")?;
            if width != config.width {
                let expected = format!("[batch, queries, {}]", config.width);
                return Err(run.inputs.fault("query_embeds", expected, format!("{:?}", [batch, queries, width])));
            }
            config.queries = queries;
            Some(upload(run, "query_embeds", run.inputs.real("query_embeds")?)?)
        }
    };
    let config = &config;
    let (given, given_states) = given.unzip();
    let features = run.inputs.real("features")?;
    let [batch, tokens, feature_width] = run.inputs.shape("features")?;
    if feature_width != config.encoder_width {
        let expected = format!("[batch, tokens, {}]", config.encoder_width);
        return Err(run.inputs.fault("features", expected, format!("{:?}", [batch, tokens, feature_width])));
    }
    let (features, states) = upload(run, "features", features)?;
    run.progress("Q-Former: packing weights");
    let qformer = QFormer::new(&run.device, config, weights, run.precision)?;
    let text = if run.inputs.has("text_ids") { Some(text(run, weights, batch)?) } else { None };
    let (width, queries) = (config.width, config.queries);
    // A model that reads instructions has no matching head: text and queries meet in its only pass.
    let contrastive = bridges.image_projection.as_ref().or(bridges.text_projection.as_ref());
    let instructed = bridges.itm.is_none() && contrastive.is_none();
    let joint = if instructed { text.as_ref() } else { None };

    run.progress("Q-Former");
    let hidden = pass(run, &qformer, [Some(&features), given.as_ref()], joint, &[batch, queries, width])?;
    let query_rows = hidden.view().narrow(1, 0, queries)?;
    let queries_host = run.device.download(&query_rows)?;
    let before: Vec<&States> = std::iter::once(&states).chain(&given_states).collect();
    let states_of_queries = run.outputs.keep("queries", queries_host, "the Q-Former", &before)?;
    let zeros = |shape: &[usize]| Tensor::zeros(&run.device, run.precision.activations, shape);
    let rows_of = |w: &xattn::bridge::DenseWeights<'_>| w.weight.first().map_or(0, |w| w.shape()[0]);

    if let Some(weights) = &bridges.language_projection {
        let head = LanguageProjection::new(&run.device, weights, run.precision)?;
        let mut out = zeros(&[batch, queries, rows_of(weights)])?;
        head.prepare(HeadArgs { hidden: query_rows.spec(), out: out.spec() })?
            .run(HeadArgs { hidden: query_rows.clone(), out: out.view_mut() })?;
        run.outputs.keep("projected", out.download(&run.device)?, "the language projection", &[&states_of_queries])?;
    }
    if let Some(either) = contrastive {
        // Classes with one projection have one of the two heads; the other is never prepared.
        let [image, language] = [&bridges.image_projection, &bridges.text_projection].map(Option::as_ref);
        let heads = ItcHeads::new(&run.device, image.unwrap_or(either), language.unwrap_or(either), run.precision)?;
        if let Some(image) = image {
            let mut out = zeros(&[batch, queries, rows_of(image)])?;
            heads
                .prepare_image(HeadArgs { hidden: query_rows.spec(), out: out.spec() })?
                .run(HeadArgs { hidden: query_rows.clone(), out: out.view_mut() })?;
            run.outputs.keep(
                "image_embeds",
                out.download(&run.device)?,
                "the image projection",
                &[&states_of_queries],
            )?;
        }
        if let (Some(language), Some(text)) = (language, &text) {
            let hidden = pass(run, &qformer, [None, None], Some(text), &[batch, 0, width])?;
            let first = hidden.view().narrow(1, 0, 1)?;
            let mut out = Tensor::zeros(&run.device, run.precision.activations, &[batch, 1, rows_of(language)])?;
            heads
                .prepare_text(HeadArgs { hidden: first.spec(), out: out.spec() })?
                .run(HeadArgs { hidden: first, out: out.view_mut() })?;
            let before = ["the Q-Former over text", "the text projection"];
            keep_behind(run, "text_embeds", &out, before, &hidden, &States::default())?;
        }
    }
    if let (Some(weights), Some(text)) = (&bridges.itm, &text) {
        let hidden = pass(run, &qformer, [Some(&features), given.as_ref()], Some(text), &[batch, queries, width])?;
        let rows = hidden.view().narrow(1, 0, queries)?;
        let head = ItmHead::new(&run.device, weights, run.precision)?;
        let mut out = Tensor::zeros(&run.device, run.precision.activations, &[batch, 1, rows_of(weights)])?;
        head.prepare(HeadArgs { hidden: rows.spec(), out: out.spec() })?
            .run(HeadArgs { hidden: rows, out: out.view_mut() })?;
        let before = ["the Q-Former over queries and text", "the matching head"];
        keep_behind(run, "itm_logits", &out, before, &hidden, &states)?;
    }
    Ok(())
}

/// Keeps a head's hidden rows, which are no output, to examine them if the output is not finite.
fn keep_behind(
    run: &mut Context,
    name: &str,
    out: &Tensor,
    [pass, head]: [&str; 2],
    hidden: &Tensor,
    states: &States,
) -> Result<(), Error> {
    let out = out.download(&run.device)?;
    let states = match States::after(head, &out, &[states])?.since() {
        Some(_) => States::after(pass, &hidden.download(&run.device)?, &[states])?,
        None => states.clone(),
    };
    run.outputs.keep(name, out, head, &[&states]).map(drop)
}

fn text(run: &Context, weights: &QFormerWeights<'_>, batch: usize) -> Result<Text, Error> {
    let [text_batch, rows] = run.inputs.shape("text_ids")?;
    let found = format!("{:?}", [text_batch, rows]);
    let Some(embedding) = &weights.text_embedding else {
        return Err(run.inputs.fault("text_ids", "no text, since the checkpoint has no word embeddings", found));
    };
    let [words, positions] = [&embedding.words, &embedding.positions].map(|t| t.shape()[0]);
    if text_batch != batch || !(1..=positions).contains(&rows) {
        return Err(run.inputs.fault("text_ids", format!("[{batch}, 1 to {positions}]"), found));
    }
    let ids = run.inputs.indices("text_ids", &[batch, rows], words.saturating_sub(1))?;
    let ids = HostTensor::from_slice(&ids, &[batch, rows])?;
    let bits = match run.inputs.has("text_mask") {
        true => Some(run.inputs.bits(&run.device, "text_mask", &[batch, rows], &[batch], rows)?),
        false => None,
    };
    Ok(Text { ids: Tensor::upload(&run.device, &ids, DType::I32)?, bits, rows })
}

/// One bidirectional pass over queries (if there are features) and text. The queries are the
/// caller's, else the learned ones.
fn pass(
    run: &Context,
    qformer: &QFormer,
    [features, given]: [Option<&Tensor>; 2],
    text: Option<&Text>,
    shape: &[usize; 3],
) -> Result<Tensor, Error> {
    let [batch, queries, width] = *shape;
    let rows = queries + text.map_or(0, |t| t.rows);
    let mut hidden = Tensor::zeros(&run.device, run.precision.activations, &[batch, rows, width])?;
    fn arguments<'t, R, W>(
        [features, given]: [Option<&'t Tensor>; 2],
        text: Option<&'t Text>,
        operand: impl Fn(&'t Tensor) -> R,
        hidden: W,
    ) -> QFormerArgs<R, W> {
        QFormerArgs {
            features: features.map(&operand),
            feature_keys: Keys::All,
            queries: given.map(&operand),
            query_keys: Keys::All,
            text: text.map(|t| operand(&t.ids)),
            text_keys: text.and_then(|t| t.bits.as_ref()).map_or(Keys::All, |bits| Keys::Bits(operand(bits))),
            past: Vec::new(),
            past_keys: Keys::All,
            present: Vec::new(),
            hidden,
        }
    }
    let specs = arguments([features, given], text, Tensor::spec, hidden.spec());
    let prepared = qformer.prepare(xattn::bridge::Objective::Bidirectional, 0, specs)?;
    prepared.run(arguments([features, given], text, Tensor::view, hidden.view_mut()))?;
    Ok(hidden)
}
