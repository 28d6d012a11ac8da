//! Defaults without `config.json`'s fields: layers with cross-attention, places of tensors.

use xattn::checkpoint::{Family, Overrides};

use crate::small::*;

/// Numbers of the gated blocks that are found, or the refusal.
fn layers(name: &str, tensors: &Tensors, config: &str) -> Result<Vec<usize>, String> {
    let numbers = |bridges: &xattn::checkpoint::Bridges<'_>| bridges.gated_blocks.iter().map(|b| b.index).collect();
    opened(name, tensors, Some(config), None, &Overrides::default(), |_, bridges| numbers(bridges))
}

/// Llama-3.2-Vision with cross-attention in these layers.
fn mllama(numbers: &[usize]) -> Tensors {
    let layer = |i: &usize| below(&format!("language_model.model.layers.{i}."), &mllama_layer());
    dense("multi_modal_projector", 32, 20).into_iter().chain(numbers.iter().flat_map(layer)).collect()
}

/// transformers' `MllamaTextConfig` has 40 layers, with cross-attention in 3, 8, 13, ….
#[test]
fn every_fifth_layer_of_mllama_from_the_fourth() {
    let config = |count: &str| {
        MLLAMA_CONFIG.replace(r#""num_hidden_layers": 4"#, count).replace(r#", "cross_attention_layers": [1, 3]"#, "")
    };
    let of = |count: usize| config(&format!(r#""num_hidden_layers": {count}"#));
    let silent = config(r#""rms_norm_eps": 1e-5"#);
    let all = [3, 8, 13, 18, 23, 28, 33, 38];
    assert_eq!(layers("every-fifth", &mllama(&all), &silent), Ok(all.to_vec()));
    for (count, found) in [(4, &all[..1]), (8, &all[..1]), (9, &all[..2]), (13, &all[..2]), (14, &all[..3])] {
        assert_eq!(layers("fifth", &mllama(found), &of(count)), Ok(found.to_vec()), "{count} layers");
    }
    // One that does not belong there, and one that is not there.
    let said = layers("surplus", &mllama(&[3, 7]), &of(8)).unwrap_err();
    assert_eq!(
        said,
        ". (mllama): language_model.model.layers.7.cross_attn: surplus, not in cross_attention_layers of config.json"
    );
    assert_eq!(layers("missing", &mllama(&[3]), &of(9)).unwrap_err(), mllama_misses(8, 13));
}

/// What is said of Llama-3.2-Vision without this layer, and other tensors.
fn mllama_misses(layer: usize, count: usize) -> String {
    let layer = format!("language_model.model.layers.{layer}");
    format!(
        ". (mllama): {layer}.input_layernorm.weight: missing, expected [32]; {layer}.cross_attn.q_proj.weight: missing, expected [32, 32]; \
         {layer}.cross_attn.k_proj.weight: missing, expected [16, 32]; and {} more",
        count - 3
    )
}

/// transformers' `IdeficsConfig` has a gated block before every layer.
#[test]
fn a_gated_block_of_idefics_before_every_layer() {
    let silent = IDEFICS_CONFIG.replace(r#""cross_layer_interval": 1, "#, "");
    assert_ne!(silent, IDEFICS_CONFIG);
    assert_eq!(layers("every-layer", &idefics_checkpoint(), &silent), Ok(vec![0, 1]));
    let third = silent.replace(r#""num_hidden_layers": 2"#, r#""num_hidden_layers": 3"#);
    let said = layers("no-third", &idefics_checkpoint(), &third).unwrap_err();
    let third = "model.gated_cross_attn_layers.2";
    let expected = format!(
        ". (idefics): {third}.cross_attn.k_proj.weight: missing, expected [32, 12]; {third}.cross_attn.v_proj.weight: missing, \
         expected [32, 12]; {third}.input_layernorm.weight: missing, expected [32]; and 8 more"
    );
    assert_eq!(said, expected);
}

/// Blocks of a file of which the configuration promises none.
#[test]
fn gated_blocks_of_idefics_beyond_the_last_layer() {
    let none = IDEFICS_CONFIG.replace(r#""cross_layer_interval": 1"#, r#""cross_layer_interval": 3"#);
    assert_ne!(none, IDEFICS_CONFIG);
    let said = layers("none", &idefics_checkpoint(), &none).unwrap_err();
    let first = "model.gated_cross_attn_layers.0.alpha_cross_attn: surplus, expected no such tensor, found [1, 1, 32]";
    assert!(said.starts_with(&format!(". (idefics): {first}; ")), "{said}");
}

/// transformers' Q-Formers have cross-attention in every second layer.
#[test]
fn every_second_layer_of_a_qformer() {
    let config = qformer_config("blip-2");
    let crossing = |tensors: &Tensors| {
        opened("crossing", tensors, Some(&config), None, &Overrides::default(), |_, bridges| {
            bridges.qformer.as_ref().unwrap().1.layers.iter().map(|l| l.cross_attention.is_some()).collect::<Vec<_>>()
        })
    };
    assert_eq!(crossing(&blip2()), Ok(vec![true, false]));
    // The second layer has one, too.
    let cross: Tensors = blip2().into_iter().filter(|(name, _)| name.contains("layer.0.crossattention.")).collect();
    let both = all([blip2(), renamed(&cross, &[("layer.0.", "layer.1.")])]);
    let said = crossing(&both).unwrap_err();
    let surplus = "qformer.encoder.layer.1.crossattention.attention.key.weight: surplus";
    assert_eq!(said, format!(". (blip-2): {surplus}, according to cross_attention_frequency 2 of config.json"));
}

/// Places of missing tensors: those in which transformers and OpenFlamingo save them.
#[test]
fn places_of_tensors_that_are_not_there() {
    let projector = dense("multi_modal_projector", 32, 20);
    assert_eq!(refused("no-layers", &projector, Some(MLLAMA_CONFIG)), mllama_misses(1, 26));
    let resampler = below("model.perceiver_resampler.", &idefics().0);
    let said = refused("no-blocks", &resampler, Some(IDEFICS_CONFIG));
    assert_eq!(said, ". (idefics): model.gated_cross_attn_layers.0.alpha_cross_attn: missing");
    let blocks: Tensors = idefics_checkpoint().into_iter().filter(|(name, _)| !name.contains("resampler")).collect();
    let said = refused("no-resampler", &blocks, Some(IDEFICS_CONFIG));
    assert_eq!(said, ". (idefics): model.perceiver_resampler.latents: missing");
}

/// The first tensor that each family looks for in a file that holds nothing of it.
#[test]
fn the_first_tensor_of_a_family() {
    let nothing = dense("lm_head", 4, 4);
    let expected = [
        (Family::OpenFlamingo, "perceiver.latents: missing (a resampler or gated blocks under any of the known names)"),
        (Family::XgenMm, "perceiver.latents: missing (a resampler or gated blocks under any of the known names)"),
        (Family::Idefics, "model.gated_cross_attn_layers.0.alpha_cross_attn: missing"),
        (Family::Idefics2, "model.connector.perceiver_resampler.latents: missing"),
        (Family::Mllama, "language_model.model.layers.3.cross_attn.q_proj.weight: missing"),
        (Family::Blip2, "qformer.encoder.layer.0.attention.output.dense.weight: missing"),
        (Family::InstructBlip, "qformer.encoder.layer.0.attention.output.dense.weight: missing"),
        (Family::Lavis, "Qformer.bert.encoder.layer.0.attention.output.dense.weight: missing"),
    ];
    let mut wrong = Vec::new();
    for (family, missing) in expected {
        let said = opened("nothing", &nothing, None, Some(family), &Overrides::default(), |_, _| ()).unwrap_err();
        let wanted = format!(". ({}): {missing}", family.name());
        if said != wanted {
            wrong.push(format!("expected {wanted}\n     got {said}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
