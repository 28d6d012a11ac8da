// From a score (q k^T) to its logit, of which the softmax is taken: a soft cap or a bias is written
// here, and nowhere else.

DEVICE f32 logit_of(const AttentionParams& params, f32 score) {
    return params.scale * score;
}

// Whether a score may stand for its logit until the exponential, where a positive scale costs
// nothing. With another one the largest score would not be that of the largest logit.
DEVICE bool scale_in_exponent(const AttentionParams& params) {
    return params.scale > 0.0f;
}

// The unit in which to_logits leaves logits.
DEVICE f32 logit_unit(const AttentionParams& params) {
    return scale_in_exponent(params) ? params.scale : 1.0f;
}

// The logits of a tensor core fragment, in logit_unit.
template <u32 COUNT> DEVICE void to_logits(const AttentionParams& params, f32 (&s)[COUNT]) {
    if (!scale_in_exponent(params)) {
#pragma unroll
        for (u32 i = 0; i < COUNT; i++) {
            s[i] = logit_of(params, s[i]);
        }
    }
}
