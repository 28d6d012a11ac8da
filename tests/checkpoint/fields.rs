//! config.json's fields are obeyed or refused one by one, and values tell their origin.

use xattn::checkpoint::{Bridges, Family, Files, Overrides};
use xattn::ops::Activation;

use crate::small::*;

/// Tensors and a configuration of each family that has one, the section in which its activation
/// stands, and what ops compute there.
fn families() -> [(&'static str, Tensors, String, &'static str, bool); 5] {
    let idefics = idefics_checkpoint();
    let mllama = mllama_checkpoint();
    [
        ("idefics", idefics, IDEFICS_CONFIG.into(), "", true),
        ("idefics2", below("model.connector.", &idefics2()), IDEFICS2_CONFIG.into(), "perceiver_config", true),
        ("mllama", mllama, MLLAMA_CONFIG.into(), "text_config", true),
        ("blip-2", blip2(), qformer_config("blip-2"), "qformer_config", false),
        ("instructblip", instructblip(), qformer_config("instructblip"), "qformer_config", false),
    ]
}

/// A field in front of a section's others; in front of all of them where the section is "".
fn with_field(config: &str, section: &str, field: &str) -> String {
    let at = match section {
        "" => 1,
        section => config.find(&format!("\"{section}\": {{")).unwrap() + section.len() + 5,
    };
    format!("{}{field}, {}", &config[..at], &config[at..])
}

fn activation(bridges: &Bridges<'_>) -> Activation {
    let qformer = bridges.qformer.as_ref().map(|(c, _)| c.activation);
    let block = bridges.gated_blocks.first().map(|b| b.config.activation);
    qformer.or(block).or(bridges.resampler.as_ref().map(|(c, _)| c.activation)).unwrap()
}

#[test]
fn activations_are_obeyed_or_refused_by_name() {
    for (family, tensors, config, section, gated) in families() {
        let of = |name: &str| {
            let config = with_field(&config, section, &format!("\"hidden_act\": {name}"));
            opened("act", &tensors, Some(&config), None, &Overrides::default(), |_, bridges| activation(bridges))
        };
        let computed: &[(&str, Activation)] = if gated {
            &[("silu", Activation::SwiGlu), ("swish", Activation::SwiGlu)]
        } else {
            &[
                ("gelu", Activation::Gelu),
                ("gelu_python", Activation::Gelu),
                ("relu", Activation::Relu),
                ("relu2", Activation::SquaredRelu),
            ]
        };
        for &(name, expected) in computed {
            assert_eq!(of(&format!("\"{name}\"")), Ok(expected), "{family}");
        }
        let field = if section.is_empty() { "hidden_act".to_string() } else { format!("{section}.hidden_act") };
        let known: Vec<_> = computed.iter().map(|(name, _)| *name).collect();
        for name in ["gelu_new", "gelu_pytorch_tanh", "quick_gelu", if gated { "relu" } else { "silu" }] {
            let wanted = format!(
                "config.json: {field}: expected an activation that is computed ({}), found {name}",
                known.join(", ")
            );
            assert_eq!(of(&format!("\"{name}\"")), Err(wanted), "{family}");
        }
        let wanted =
            format!("config.json: {field}: expected an activation that is computed ({}), found NaN", known.join(", "));
        assert_eq!(of("NaN"), Err(wanted));
        assert!(of("null").unwrap_err().ends_with(", found null"), "{family}");
    }
}

#[test]
fn what_stands_in_fields_that_nobody_reads_does_no_harm() {
    for (family, tensors, config, section, _) in families() {
        for value in ["NaN", "Infinity", "-Infinity", "null", r#"["NaN", {"a": -Infinity}]"#, r#""a \" NaN \\""#] {
            let config = with_field(&config, section, &format!("\"time_step_limit\": {value}"));
            opened("unused", &tensors, Some(&config), None, &Overrides::default(), |_, _| ())
                .unwrap_or_else(|e| panic!("{family}, {value}: {e}"));
        }
    }
    let config =
        |value: &str| with_field(&qformer_config("blip-2"), "qformer_config", &format!("\"layer_norm_eps\": {value}"));
    let eps = |value: &str| refused("eps", &blip2(), Some(&config(value)));
    for (value, found) in
        [("NaN", "NaN"), ("Infinity", "Infinity"), ("-1e-5", "-1e-5"), ("1e300", "1e300"), ("\"1e-5\"", "\"1e-5\"")]
    {
        let wanted =
            format!("config.json: qformer_config.layer_norm_eps: expected a number of at least 0, found {found}");
        assert_eq!(eps(value), wanted);
    }
    let heads = |value: &str| {
        refused(
            "heads",
            &blip2(),
            Some(
                &qformer_config("blip-2")
                    .replace("\"num_attention_heads\": 2", &format!("\"num_attention_heads\": {value}")),
            ),
        )
    };
    for value in ["\"4\"", "4.0", "1099511627776"] {
        let wanted = format!(
            "config.json: qformer_config.num_attention_heads: expected a whole number from 1 to 4294967295, found {value}"
        );
        assert_eq!(heads(value), wanted);
    }
    let wanted = "qformer.encoder.layer.0.attention.output.dense.weight: its width 16 is no multiple of 12 heads \
                  (qformer_config.num_attention_heads of config.json)";
    assert!(heads("12").contains(wanted), "{}", heads("12"));
    let error = refused("section", &blip2(), Some(r#"{"model_type": "blip-2", "qformer_config": 3}"#));
    assert!(
        error.starts_with(
            "config.json: qformer_config.hidden_size: expected an object with hidden_size, found 3 at line"
        ),
        "{error}"
    );
}

#[test]
fn the_configuration_of_another_model() {
    let granite = qformer_config("granite_speech");
    let wanted = "config.json: model_type granite_speech is not supported; to read its tensors as those of another family, name it: \
        open-flamingo, xgen-mm, idefics, idefics2, mllama, blip-2, instructblip, lavis";
    assert_eq!(refused("unknown", &blip2(), Some(&granite)), wanted);
    // The fields count also where the type is unknown: 2 heads of 8 instead of 1 of 16.
    let heads = |config: Option<&str>, family| {
        opened("named", &blip2(), config, Some(family), &Overrides::default(), |_, bridges| {
            let origin = bridges.origins.iter().find(|o| o.value == "heads").unwrap();
            (bridges.qformer.as_ref().unwrap().0.heads, origin.from.to_string())
        })
    };
    let field = "qformer_config.num_attention_heads of config.json".to_string();
    assert_eq!(heads(Some(&granite), Family::Blip2), Ok((2, field)));
    let notes =
        opened("named", &blip2(), Some(&granite), Some(Family::Blip2), &Overrides::default(), |_, b| b.notes.clone());
    let note = "config.json has model_type granite_speech: only its fields that blip-2 has too are used";
    assert_eq!(notes, Ok(vec![note.to_string()]));
    let assumed = "assumed: heads of width 64".to_string();
    assert_eq!(heads(None, Family::Blip2), Ok((1, assumed)));
    // Where the names tell the family, its fields count as well.
    let nameless = granite.replace(r#""model_type": "granite_speech", "#, "");
    let heads = opened("nameless", &blip2(), Some(&nameless), None, &Overrides::default(), |checkpoint, b| {
        (checkpoint.family(), b.qformer.as_ref().unwrap().0.heads)
    });
    assert_eq!(heads, Ok((Family::Blip2, 2)));
    // InstructBLIP over video has the same bridge.
    let video = qformer_config("instructblipvideo");
    let found = opened("video", &instructblip(), Some(&video), None, &Overrides::default(), |checkpoint, bridges| {
        (checkpoint.family(), bridges.qformer.as_ref().unwrap().0.heads)
    });
    assert_eq!(found, Ok((Family::InstructBlip, 2)));
    // Granite Speech's projector, of which no configuration is there: a Q-Former alone is nobody's.
    let projector = all([below("projector.qformer.", &qformer_encoder()), dense("projector.linear", 32, 16)]);
    let error = refused("granite", &projector, None);
    assert!(error.starts_with(".: no family's tensors found; name one of open-flamingo"), "{error}");
    let relative =
        with_field(&qformer_config("blip-2"), "qformer_config", r#""position_embedding_type": "relative_key""#);
    let wanted = "config.json: qformer_config.position_embedding_type: expected absolute, which is all that is computed, found relative_key";
    assert_eq!(refused("relative", &blip2(), Some(&relative)), wanted);
    let next = r#"{"model_type": "otter", "only_attend_previous": false}"#;
    let wanted = "config.json: only_attend_previous: expected true, as nothing else is computed, found false";
    assert_eq!(refused("otter", &below("perceiver.", &open_flamingo_resampler()), Some(next)), wanted);
}

#[test]
fn where_each_value_came_from() {
    let tensors = idefics_checkpoint();
    let lines = opened("origins", &tensors, Some(IDEFICS_CONFIG), None, &Overrides::default(), |_, b| {
        b.origins.iter().map(|o| format!("{} {} {}: {}", o.part, o.value, o.shown, o.from)).collect::<Vec<_>>()
    })
    .unwrap();
    for line in [
        "resampler heads 2: perceiver_config.resampler_n_heads of config.json",
        "resampler latents 3: shape of model.perceiver_resampler.latents",
        "gated blocks heads 2: num_attention_heads of config.json",
        "gated blocks activation swiglu: default of idefics, as config.json has no such field",
    ] {
        assert!(lines.iter().any(|l| l == line), "{line} in {lines:#?}");
    }
}

/// Outputs of the public classes of transformers 5.23, whose configurations say what no tensor
/// does: ReLU, and 4 heads of 8.
#[test]
fn numbers_of_the_public_classes() {
    let folder = Folder::new("public");
    for name in ["blip2_relu", "instructblip_video"] {
        let of = |file: &str| format!("{}/tests/checkpoint/public/{name}/{file}", env!("CARGO_MANIFEST_DIR"));
        let output = folder.join(&format!("{name}.safetensors"));
        let arguments =
            ["--checkpoint", &of(""), "--inputs", &of("in.safetensors"), "--output", output.to_str().unwrap()];
        let done = std::process::Command::new(env!("CARGO_BIN_EXE_xattn")).arg("run").args(arguments).output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        let read = |path: &std::path::Path| Files::open_one(path).unwrap().tensor("queries").unwrap().to_f64().unwrap();
        let (found, expected) = (read(&output), read(of("expected.safetensors").as_ref()));
        let largest = expected.iter().fold(0.0, |m: f64, x| m.max(x.abs()));
        let error = found.iter().zip(&expected).fold(0.0, |m: f64, (a, b)| m.max((a - b).abs()));
        // f32 rounds by 6e-8: a wrong activation is off by 0.2, wrong heads by 0.4.
        assert!(found.len() == expected.len() && error < 2e-6 * largest, "{name}: {error:e} of {largest}");
    }
}

/// A configuration must be true: interval, unused parts, heads that an option contradicts.
#[test]
fn configurations_that_disagree_with_the_tensors_or_options() {
    let config = qformer_config("blip-2");
    let every = with_field(&config, "qformer_config", r#""cross_attention_frequency": 1"#);
    let error = refused("every", &blip2(), Some(&every));
    let wanted = ". (blip-2): qformer.encoder.layer.1.crossattention.attention.key.weight: missing, according to \
        cross_attention_frequency 1 of config.json";
    assert_eq!(error, wanted);
    let [(_, tensors, config, ..), (_, connector, connector_config, ..), ..] = families();
    let without = config.replace(r#""use_resampler": true"#, r#""use_resampler": false"#);
    let wanted = ". (idefics): model.perceiver_resampler.latents: surplus, according to use_resampler of config.json";
    assert_eq!(refused("unused", &tensors, Some(&without)), wanted);
    let overrides = Overrides { heads: Some(1), ..Overrides::default() };
    let found = opened("heads", &tensors, Some(&config), None, &overrides, |_, _| ());
    let wanted = ". (idefics): --heads: perceiver_config.resampler_n_heads of config.json says 2, the option 1;";
    assert!(found.as_ref().is_err_and(|e| e.starts_with(wanted)), "{found:?}");
    // transformers takes the vision encoder's width, whatever the Q-Former's own field says.
    let stale = qformer_config("blip-2").replace(r#""encoder_hidden_size": 12"#, r#""encoder_hidden_size": 99"#);
    let stale = with_field(&stale, "", r#""vision_config": {"hidden_size": 12}"#);
    let found = opened("stale", &blip2(), Some(&stale), None, &Overrides::default(), |_, b| {
        b.qformer.as_ref().map(|(c, _)| c.encoder_width)
    });
    assert_eq!(found, Ok(Some(12)));
    // A text of another class has other defaults.
    let gemma = with_field(&connector_config, "text_config", r#""model_type": "gemma""#);
    let wanted =
        ". (idefics2): text_config.hidden_act of config.json: not there, and the default of gemma is not known";
    assert_eq!(refused("gemma", &connector, Some(&gemma)), wanted);
    let said = with_field(&gemma, "text_config", r#""hidden_act": "silu""#);
    assert_eq!(opened("said", &connector, Some(&said), None, &Overrides::default(), |_, _| ()), Ok(()));
}
