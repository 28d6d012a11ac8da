// From a score (q k^T) to the logit that the softmax takes. A soft cap or a bias belongs only here.

fn logit_of(score: f32) -> f32 {
    return params.scale * score;
}

fn logits_of(scores: vec4<f32>) -> vec4<f32> {
    return vec4<f32>(logit_of(scores.x), logit_of(scores.y), logit_of(scores.z), logit_of(scores.w));
}
