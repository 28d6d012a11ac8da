/* xattn: bridge kernels between a vision encoder and a language model. C interface, generated from capi/src: do not edit.
 *
 * Every function returns a status; xattn_last_error() has the text of the calling thread's last failure. Structs begin with their size:
 * set struct_size to sizeof of the struct and the rest to zeros before you fill it in. A pointer to a tensor that is null means that the
 * operand is absent. An operand that is written shares no element with another operand of the call, unless the field says so; where that
 * cannot be told from the strides, the call is refused. Handles are freed by the xattn_..._free of their kind; a handle that was freed, or is of another kind, is refused. */

#ifndef XATTN_H
#define XATTN_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

/*
 Raised when a function or struct changes incompatibly; fields are added behind `struct_size`
 without that.
 */
#define XATTN_ABI_VERSION 2

/*
 Dimensions that a `xattn_tensor` has room for.
 */
#define XATTN_MAX_RANK 8

/*
 What became of a call. Everything but `XATTN_STATUS_OK` leaves a text behind:
 `xattn_last_error`.
 */
enum xattn_status
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  /*
   Done.
   */
  XATTN_STATUS_OK = 0,
  /*
   An argument does not fit the contract; the text names it, what was expected and what came.
   */
  XATTN_STATUS_INVALID_ARGUMENT = 1,
  /*
   A handle that is null, of another kind, or was freed.
   */
  XATTN_STATUS_INVALID_HANDLE = 2,
  /*
   The backend cannot be used on this machine or in this build.
   */
  XATTN_STATUS_UNAVAILABLE = 3,
  /*
   The backend is there, but does not offer this.
   */
  XATTN_STATUS_UNSUPPORTED = 4,
  /*
   Memory could not be had.
   */
  XATTN_STATUS_OUT_OF_MEMORY = 5,
  /*
   The device stopped answering.
   */
  XATTN_STATUS_DEVICE_LOST = 6,
  /*
   A file cannot be read or does not hold what it should.
   */
  XATTN_STATUS_FILE = 7,
  /*
   Tensors of a checkpoint do not form the bridge that was asked for.
   */
  XATTN_STATUS_WEIGHTS = 8,
  /*
   A defect of this library. Nothing is known about outputs of the call.
   */
  XATTN_STATUS_PANIC = 9,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum xattn_status xattn_status;
#else
typedef int32_t xattn_status;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/*
 Element types.
 */
enum xattn_dtype
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  /*
   64-bit reals; only the reference computes with them.
   */
  XATTN_F64 = 0,
  /*
   32-bit reals.
   */
  XATTN_F32 = 1,
  /*
   IEEE half precision.
   */
  XATTN_F16 = 2,
  /*
   bfloat16.
   */
  XATTN_BF16 = 3,
  /*
   Signed integers: media indices, token ids.
   */
  XATTN_I32 = 4,
  /*
   Unsigned integers: lengths, slots, offsets, bits, media plans.
   */
  XATTN_U32 = 5,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum xattn_dtype xattn_dtype;
#else
typedef int32_t xattn_dtype;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/*
 Which existing keys a row may see.
 */
enum xattn_visibility
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  /*
   All.
   */
  XATTN_VISIBILITY_ALL = 0,
  /*
   Those of the row's medium (Flamingo).
   */
  XATTN_VISIBILITY_SAME_MEDIA = 1,
  /*
   Those of the row's medium and of all before it.
   */
  XATTN_VISIBILITY_PRECEDING_MEDIA = 2,
  /*
   A prefix, then causal (Q-Former, image-grounded text).
   */
  XATTN_VISIBILITY_PREFIX_CAUSAL = 3,
  /*
   A bit per row and block of keys (IDEFICS, Llama-3.2).
   */
  XATTN_VISIBILITY_MEDIA_BITS = 4,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum xattn_visibility xattn_visibility;
#else
typedef int32_t xattn_visibility;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/*
 What a row gets that sees no key.
 */
enum xattn_empty_row
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  /*
   Zeros.
   */
  XATTN_EMPTY_ROW_ZERO = 0,
  /*
   The mean of V over every key slot.
   */
  XATTN_EMPTY_ROW_UNIFORM = 1,
  /*
   The softmax over every key slot.
   */
  XATTN_EMPTY_ROW_ATTEND_ALL = 2,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum xattn_empty_row xattn_empty_row;
#else
typedef int32_t xattn_empty_row;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/*
 Activations of `linear`.
 */
enum xattn_activation
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  /*
   None.
   */
  XATTN_ACTIVATION_NONE = 0,
  /*
   GELU with erf (not the tanh form).
   */
  XATTN_ACTIVATION_GELU = 1,
  /*
   ReLU.
   */
  XATTN_ACTIVATION_RELU = 2,
  /*
   The square of ReLU.
   */
  XATTN_ACTIVATION_SQUARED_RELU = 3,
  /*
   silu(x W_gate) * (x W_up): needs a pair of matrices.
   */
  XATTN_ACTIVATION_SWIGLU = 4,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum xattn_activation xattn_activation;
#else
typedef int32_t xattn_activation;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/*
 Reductions over the rows of a batch entry.
 */
enum xattn_row_reduce
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  /*
   None.
   */
  XATTN_ROW_REDUCE_NONE = 0,
  /*
   The largest.
   */
  XATTN_ROW_REDUCE_MAX = 1,
  /*
   The mean.
   */
  XATTN_ROW_REDUCE_MEAN = 2,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum xattn_row_reduce xattn_row_reduce;
#else
typedef int32_t xattn_row_reduce;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/*
 Kinds of `norm`.
 */
enum xattn_norm_kind
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  /*
   LayerNorm, biased variance.
   */
  XATTN_NORM_LAYER = 0,
  /*
   RMSNorm.
   */
  XATTN_NORM_RMS = 1,
  /*
   Division by the Euclidean norm.
   */
  XATTN_NORM_L2 = 2,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum xattn_norm_kind xattn_norm_kind;
#else
typedef int32_t xattn_norm_kind;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/*
 What the end of a document does to a media index.
 */
enum xattn_document_end
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  /*
   Nothing.
   */
  XATTN_DOCUMENT_END_IGNORE = 0,
  /*
   0 until the next medium; media are still counted through the row.
   */
  XATTN_DOCUMENT_END_HIDE = 1,
  /*
   0, and counting starts again at 1.
   */
  XATTN_DOCUMENT_END_RESTART = 2,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum xattn_document_end xattn_document_end;
#else
typedef int32_t xattn_document_end;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/*
 Who sees what among queries and text.
 */
enum xattn_objective
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  /*
   Everyone sees everyone (ITC, ITM, InstructBLIP).
   */
  XATTN_OBJECTIVE_BIDIRECTIONAL = 0,
  /*
   Text sees queries and the text up to itself (ITG).
   */
  XATTN_OBJECTIVE_TEXT_GENERATION = 1,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum xattn_objective xattn_objective;
#else
typedef int32_t xattn_objective;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/*
 Weights of a published model, as its public library saves them.
 */
typedef struct xattn_checkpoint xattn_checkpoint;

/*
 Where ops run. Any number of threads may use one device.
 */
typedef struct xattn_device xattn_device;

/*
 A gated cross-attention block, its weights on a device.
 */
typedef struct xattn_gated_block xattn_gated_block;

/*
 An op or bridge call, checked and planned for one device and one set of shapes. Any thread may
 enqueue it.
 */
typedef struct xattn_prepared xattn_prepared;

/*
 A Q-Former, its weights on a device.
 */
typedef struct xattn_qformer xattn_qformer;

/*
 A Perceiver resampler or connector, its weights on a device.
 */
typedef struct xattn_resampler xattn_resampler;

/*
 A constant matrix, packed for one device.
 */
typedef struct xattn_weight xattn_weight;

/*
 How to read a checkpoint. All zeros: what `config.json` and the tensors' names say.
 */
typedef struct xattn_checkpoint_options {
  /*
   `sizeof(xattn_checkpoint_options)`.
   */
  size_t struct_size;
  /*
   open-flamingo, xgen-mm, idefics, idefics2, mllama, blip-2, instructblip or lavis. Or null.
   */
  const char *family;
  /*
   Query heads of the resampler or Q-Former where no configuration says how many; 0: as
   configured.
   */
  uint32_t heads;
  /*
   Query heads of the gated blocks where no configuration says how many; 0: as configured.
   */
  uint32_t block_heads;
  /*
   1: text sees all media before it, not only the last one (OpenFlamingo).
   */
  uint32_t attend_preceding;
  /*
   1: Llama-3.2-Vision's text before the first image attends to everything, as in transformers;
   0: to nothing, as in Meta's code.
   */
  uint32_t transformers_empty_rows;
  /*
   Of several copies in one checkpoint (an EMA, a teacher), the one whose tensors' names begin
   with this; "": the one that no copy's prefix precedes. Or null.
   */
  const char *prefix;
  /*
   A PEFT adapter (LoRA) to merge: its folder or its file of weights; "none": not the one
   beside the checkpoint. Null: that one.
   */
  const char *adapter;
} xattn_checkpoint_options;

/*
 What a checkpoint holds.
 */
typedef struct xattn_checkpoint_contents {
  /*
   1: a Perceiver resampler or connector.
   */
  uint32_t has_resampler;
  /*
   Gated blocks.
   */
  uint32_t gated_blocks;
  /*
   1: a Q-Former.
   */
  uint32_t has_qformer;
  /*
   1: a projection of its queries into the language model.
   */
  uint32_t has_language_projection;
} xattn_checkpoint_contents;

/*
 Sizes of a gated block.
 */
typedef struct xattn_gated_block_sizes {
  /*
   Width of the text stream.
   */
  uint64_t width;
  /*
   Width of the media tokens.
   */
  uint64_t media_width;
  /*
   Width of a projected media token: K heads, then V heads.
   */
  uint64_t kv_width;
} xattn_gated_block_sizes;

/*
 A tensor in memory of the caller's. Host memory for a host device, a CUDA address for a CUDA
 device.

 `struct_size` is `sizeof(xattn_tensor)`. The memory stays the caller's and must stay alive until
 the call, or the work that it enqueued on a stream, has finished.
 */
typedef struct xattn_tensor {
  /*
   `sizeof(xattn_tensor)`.
   */
  size_t struct_size;
  /*
   The first element, aligned to the element's size. May be null if the tensor has no elements.
   */
  void *data;
  /*
   Bytes of memory from `data` on: at least the span of shape and strides.
   */
  uint64_t bytes;
  /*
   A `xattn_dtype`.
   */
  int32_t dtype;
  /*
   Dimensions.
   */
  uint32_t rank;
  /*
   Extents, outermost first.
   */
  uint64_t shape[XATTN_MAX_RANK];
  /*
   `rank` strides in elements, or null: without gaps. 0 repeats an input.
   */
  const uint64_t *strides;
} xattn_tensor;

/*
 Operands of the projection of media: once per image, kept for every step.
 */
typedef struct xattn_project_media_args {
  /*
   `sizeof(xattn_project_media_args)`.
   */
  size_t struct_size;
  /*
   Media tokens `[entries, keys, media_width]`.
   */
  const struct xattn_tensor *media;
  /*
   K and V `[entries, keys, kv_width]`.
   */
  const struct xattn_tensor *kv;
} xattn_project_media_args;

/*
 Operands and parameters of a gated block call.
 */
typedef struct xattn_gated_block_args {
  /*
   `sizeof(xattn_gated_block_args)`.
   */
  size_t struct_size;
  /*
   Text stream `[batch, rows, width]`; ragged: `[1, total, width]`. Null with `x_in_place`.
   */
  const struct xattn_tensor *x;
  /*
   1: the text stream is what `out` holds.
   */
  uint32_t x_in_place;
  /*
   Ragged text: `u32 [batch + 1]`. Or null.
   */
  const struct xattn_tensor *x_offsets;
  /*
   K and V `[entries, keys, kv_width]`, as `xattn_project_media` writes them.
   */
  const struct xattn_tensor *kv;
  /*
   `u32 [batch]`: media tokens that exist. Or null.
   */
  const struct xattn_tensor *lengths;
  /*
   `u32 [batch, words]`, or null; not beside `lengths`.
   */
  const struct xattn_tensor *bits;
  /*
   `u32 [batch]`: which entry of `kv` a problem reads. Or null.
   */
  const struct xattn_tensor *slots;
  /*
   Ragged media: `u32 [batch + 1]`. Or null.
   */
  const struct xattn_tensor *kv_offsets;
  /*
   A `xattn_visibility`.
   */
  int32_t visibility;
  /*
   As in `xattn_attention_args`.
   */
  const struct xattn_tensor *media_index;
  /*
   As in `xattn_attention_args`.
   */
  const struct xattn_tensor *plan;
  /*
   As in `xattn_attention_args`.
   */
  const struct xattn_tensor *media_bits;
  /*
   As in `xattn_attention_args`.
   */
  uint32_t keys_per_media;
  /*
   As in `xattn_attention_args`.
   */
  uint32_t causal_prefix;
  /*
   As in `xattn_attention_args`.
   */
  const struct xattn_tensor *causal_offset;
  /*
   Result, like `x`.
   */
  const struct xattn_tensor *out;
} xattn_gated_block_args;

/*
 Sizes of a Q-Former.
 */
typedef struct xattn_qformer_sizes {
  /*
   Learned queries.
   */
  uint64_t queries;
  /*
   Width of its rows.
   */
  uint64_t width;
  /*
   Width of the features it reads.
   */
  uint64_t encoder_width;
  /*
   Width of the projected queries; 0 without a projection.
   */
  uint64_t language_width;
} xattn_qformer_sizes;

/*
 Operands and parameters of a Q-Former call.
 */
typedef struct xattn_qformer_args {
  /*
   `sizeof(xattn_qformer_args)`.
   */
  size_t struct_size;
  /*
   A `xattn_objective`.
   */
  int32_t objective;
  /*
   Image features `[batch, tokens, encoder_width]`, or null for text alone.
   */
  const struct xattn_tensor *features;
  /*
   `u32 [batch]`, or null.
   */
  const struct xattn_tensor *feature_lengths;
  /*
   `u32 [batch, words]`, or null; not beside `feature_lengths`.
   */
  const struct xattn_tensor *feature_bits;
  /*
   Token ids `i32 [batch, text rows]`: an instruction, or the text to match. Or null.
   */
  const struct xattn_tensor *text;
  /*
   `u32 [batch]`, or null.
   */
  const struct xattn_tensor *text_lengths;
  /*
   `u32 [batch, words]`, or null; not beside `text_lengths`.
   */
  const struct xattn_tensor *text_bits;
  /*
   The last layer's rows, queries first: `[batch, queries + text rows, width]`; without
   features only text.
   */
  const struct xattn_tensor *hidden;
} xattn_qformer_args;

/*
 Operands of the projection of query rows into the language model.
 */
typedef struct xattn_qformer_head_args {
  /*
   `sizeof(xattn_qformer_head_args)`.
   */
  size_t struct_size;
  /*
   Query rows `[batch, queries, width]` (strides may skip text rows).
   */
  const struct xattn_tensor *hidden;
  /*
   `[batch, queries, language_width]`.
   */
  const struct xattn_tensor *out;
} xattn_qformer_head_args;

/*
 Sizes of a resampler.
 */
typedef struct xattn_resampler_sizes {
  /*
   Learned queries: media tokens that a medium becomes.
   */
  uint64_t latents;
  /*
   Width of the features it reads.
   */
  uint64_t feature_width;
  /*
   Width of the media tokens it writes.
   */
  uint64_t output_width;
} xattn_resampler_sizes;

/*
 Operands and parameters of a resampler call.
 */
typedef struct xattn_resampler_args {
  /*
   `sizeof(xattn_resampler_args)`.
   */
  size_t struct_size;
  /*
   Frames of each medium, for models with frame embeddings; 0 counts as 1.
   */
  uint64_t frames;
  /*
   `[batch, media, tokens, feature_width]`, a medium's frames one after the other; ragged:
   `[1, 1, total, ...]`.
   */
  const struct xattn_tensor *features;
  /*
   `u32 [batch * media]`: feature tokens that exist. Or null.
   */
  const struct xattn_tensor *lengths;
  /*
   `u32 [batch * media, words]`, or null; not beside `lengths`.
   */
  const struct xattn_tensor *bits;
  /*
   Ragged: `u32 [problems + 1]`. Or null.
   */
  const struct xattn_tensor *offsets;
  /*
   `[batch, media, latents, output_width]`; ragged: `[problems, 1, ...]`.
   */
  const struct xattn_tensor *out;
} xattn_resampler_args;

/*
 Keys and values of one segment.
 */
typedef struct xattn_segment {
  /*
   `sizeof(xattn_segment)`.
   */
  size_t struct_size;
  /*
   Keys `[entries, Lk, Hk, d]`; ragged: `[1, total, Hk, d]`.
   */
  const struct xattn_tensor *k;
  /*
   Values, like `k`.
   */
  const struct xattn_tensor *v;
  /*
   `u32 [B]`: the first so many keys exist. Or null.
   */
  const struct xattn_tensor *lengths;
  /*
   `u32 [B, ceil(Lk/32)]`: the keys whose bit is set exist. Or null; not beside `lengths`.
   */
  const struct xattn_tensor *bits;
  /*
   Ragged: `u32 [B+1]`. Or null.
   */
  const struct xattn_tensor *offsets;
  /*
   `u32 [B]`: which entry a problem reads. Or null: entry b.
   */
  const struct xattn_tensor *slots;
} xattn_segment;

/*
 Operands and parameters of `xattn_attention`.
 */
typedef struct xattn_attention_args {
  /*
   `sizeof(xattn_attention_args)`.
   */
  size_t struct_size;
  /*
   Factor on the scores, usually head_dim^-1/2.
   */
  float scale;
  /*
   A `xattn_empty_row`: for rows without a medium.
   */
  int32_t empty_no_media;
  /*
   A `xattn_empty_row`: for rows whose medium is not there.
   */
  int32_t empty_beyond_media;
  /*
   A `xattn_empty_row`: for rows all of whose keys are masked.
   */
  int32_t empty_masked;
  /*
   Queries `[B, Lq, H, d]`; ragged: `[1, total, H, d]`.
   */
  const struct xattn_tensor *q;
  /*
   Ragged: `u32 [B+1]`. Or null.
   */
  const struct xattn_tensor *q_offsets;
  /*
   The first segment (features, media, cached keys).
   */
  const struct xattn_segment *first;
  /*
   The second one (latents, new keys), or null.
   */
  const struct xattn_segment *second;
  /*
   A `xattn_visibility`.
   */
  int32_t visibility;
  /*
   SAME_MEDIA, PRECEDING_MEDIA: `i32 [B, Lq]` (ragged: `[1, total]`), 1-based, 0 and less is
   none.
   */
  const struct xattn_tensor *media_index;
  /*
   SAME_MEDIA, PRECEDING_MEDIA: the media plan of the same index, or null. Never changes the
   result. One of other contents causes no access outside of the operands; on CUDA, rows in
   none of its runs may then keep what the outputs held before.
   */
  const struct xattn_tensor *plan;
  /*
   MEDIA_BITS: `u32 [B, Lq, words]`.
   */
  const struct xattn_tensor *media_bits;
  /*
   SAME_MEDIA, PRECEDING_MEDIA: keys of a medium. MEDIA_BITS: keys of a bit.
   */
  uint32_t keys_per_media;
  /*
   PREFIX_CAUSAL: keys that every row sees.
   */
  uint32_t causal_prefix;
  /*
   PREFIX_CAUSAL: key position of query row 0 of each problem, `u32 [B]`, values beyond 2^31 -
   1 count as that; or null: 0.
   */
  const struct xattn_tensor *causal_offset;
  /*
   Result, like `q`.
   */
  const struct xattn_tensor *out;
  /*
   `f32 [B, Lq, H]`, or null.
   */
  const struct xattn_tensor *log_sum_exp;
  /*
   `u32 [B, Lq]`: 1 for rows that saw a key. Or null.
   */
  const struct xattn_tensor *row_visible;
} xattn_attention_args;

/*
 Operands of `xattn_gated_residual`: out = x + tanh(gate) * row_mask * y.
 */
typedef struct xattn_gated_residual_args {
  /*
   `sizeof(xattn_gated_residual_args)`.
   */
  size_t struct_size;
  /*
   The residual stream `[batch, rows, D]`; null with `x_in_place`.
   */
  const struct xattn_tensor *x;
  /*
   1: the residual stream is what `out` holds.
   */
  uint32_t x_in_place;
  /*
   The branch `[batch, rows, D]`.
   */
  const struct xattn_tensor *y;
  /*
   Raw gate, `[1]` or per channel `[D]`.
   */
  const struct xattn_tensor *gate;
  /*
   `u32 [batch, rows]`: where it is 0, only x remains. Or null.
   */
  const struct xattn_tensor *row_mask;
  /*
   Result `[batch, rows, D]`.
   */
  const struct xattn_tensor *out;
} xattn_gated_residual_args;

/*
 Operands and parameters of `xattn_linear`: out = residual + tanh(gate) * row_mask * activation(x
 W^T + bias).
 */
typedef struct xattn_linear_args {
  /*
   `sizeof(xattn_linear_args)`.
   */
  size_t struct_size;
  /*
   A `xattn_activation`.
   */
  int32_t activation;
  /*
   A `xattn_row_reduce`; not beside residual, gate or row mask.
   */
  int32_t reduce;
  /*
   `[batch, rows, K]`.
   */
  const struct xattn_tensor *x;
  /*
   `[N, K]`, read as it is; null with `prepared`.
   */
  const struct xattn_tensor *weight;
  /*
   `[N, K]`, the second matrix of a SwiGLU. Or null.
   */
  const struct xattn_tensor *weight_up;
  /*
   A prepared matrix or pair; null with `weight`.
   */
  const struct xattn_weight *prepared;
  /*
   `[N]`, or null.
   */
  const struct xattn_tensor *bias;
  /*
   `[batch, rows, N]`, or null.
   */
  const struct xattn_tensor *residual;
  /*
   1: the residual is what `out` holds.
   */
  uint32_t residual_in_place;
  /*
   Raw gate, `[1]` or `[N]`, or null: factor 1.
   */
  const struct xattn_tensor *gate;
  /*
   `u32 [batch, rows]`: where it is 0, only the residual remains. Or null.
   */
  const struct xattn_tensor *row_mask;
  /*
   `[batch, rows, N]`; with a reduction `[batch, 1, N]`.
   */
  const struct xattn_tensor *out;
} xattn_linear_args;

/*
 Operands and parameters of `xattn_media_index`.
 */
typedef struct xattn_media_index_args {
  /*
   `sizeof(xattn_media_index_args)`.
   */
  size_t struct_size;
  /*
   `i32 [B, L]`: token ids; a medium stands where the id is `media_token`. Or null, with
   `locations`.
   */
  const struct xattn_tensor *tokens;
  /*
   The id of the media token.
   */
  int32_t media_token;
  /*
   `u32 [B, L]`: nonzero where a medium stands. Or null, with `tokens`.
   */
  const struct xattn_tensor *locations;
  /*
   1: tokens that are not media see the next medium instead of the last one.
   */
  uint32_t next;
  /*
   A `xattn_document_end`.
   */
  int32_t document_end;
  /*
   The id that ends a document.
   */
  int32_t document_end_token;
  /*
   `i32 [B]`: state before the first token. Or null: 0.
   */
  const struct xattn_tensor *carry_in;
  /*
   `i32 [B]`: media of the whole row, for `next` over a chunk. Or null.
   */
  const struct xattn_tensor *media_count;
  /*
   `i32 [B]`: state after the last token. May be the memory of `carry_in`, in the same layout.
   Or null.
   */
  const struct xattn_tensor *carry_out;
  /*
   Result: `i32 [B, L]`.
   */
  const struct xattn_tensor *media_index;
  /*
   `u32 [B, 1 + L, 2]`: the media plan. Or null.
   */
  const struct xattn_tensor *plan;
} xattn_media_index_args;

/*
 Operands and parameters of `xattn_norm`, over the last dimension of `[A, B, C, D]`.
 */
typedef struct xattn_norm_args {
  /*
   `sizeof(xattn_norm_args)`.
   */
  size_t struct_size;
  /*
   A `xattn_norm_kind`.
   */
  int32_t kind;
  /*
   Under the root; of L2 the least norm.
   */
  float eps;
  /*
   Input `[A, B, C, D]`, or with `rows` a table `[1, V, 1, D]`; null with `x_in_place`.
   */
  const struct xattn_tensor *x;
  /*
   1: the input is what `out` holds.
   */
  uint32_t x_in_place;
  /*
   `i32 [A, B]`: which rows of the table. Or null.
   */
  const struct xattn_tensor *rows;
  /*
   Added to the input first, `[A, B, C, D]`, usually with strides 0. Or null.
   */
  const struct xattn_tensor *add;
  /*
   Factor `[D]`, or null.
   */
  const struct xattn_tensor *weight;
  /*
   Offset `[D]`, or null.
   */
  const struct xattn_tensor *bias;
  /*
   Result `[A, B, C, D]`.
   */
  const struct xattn_tensor *out;
} xattn_norm_args;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/*
 Opens a safetensors file, an index of shards, or a folder with either.

 The files stay open and are never mapped: weights are read when a bridge is loaded. A file that
 was written, shortened or replaced since it was opened is XATTN_STATUS_FILE then, and harms
 nothing.

 # Safety
 `path` is null or a C string; `options` is null or as described; `out` is null or may be
 written.
 */
xattn_status xattn_checkpoint_open(const char *path,
                                   const struct xattn_checkpoint_options *options,
                                   struct xattn_checkpoint **out);

/*
 What a checkpoint holds.

 # Safety
 `out` is null or may be written.
 */
xattn_status xattn_checkpoint_describe(const struct xattn_checkpoint *checkpoint,
                                       struct xattn_checkpoint_contents *out);

/*
 Frees a checkpoint. Bridges that were loaded from it stay usable. Null is fine.
 */
xattn_status xattn_checkpoint_free(struct xattn_checkpoint *checkpoint);

/*
 Packs the weights of the checkpoint's gated block number `index` (from 0, in the order of the
 layers) for a device.

 # Safety
 `out` is null or may be written.
 */
xattn_status xattn_gated_block_load(const struct xattn_checkpoint *checkpoint,
                                    const struct xattn_device *device,
                                    uint32_t index,
                                    int32_t dtype,
                                    struct xattn_gated_block **out);

/*
 Sizes that the tensors of its calls have.

 # Safety
 `out` is null or may be written.
 */
xattn_status xattn_gated_block_describe(const struct xattn_gated_block *gated_block,
                                        struct xattn_gated_block_sizes *out);

/*
 Frees it. Calls that were prepared with it stay usable. Null is fine.
 */
xattn_status xattn_gated_block_free(struct xattn_gated_block *gated_block);

/*
 Media tokens to the K and V that the block reads: checks, runs and waits.

 # Safety
 `args` points to a `xattn_project_media_args`, and everything it points to is as described,
 alive, and not used in conflict until this returns.
 */
xattn_status xattn_project_media_run(const struct xattn_gated_block *gated_block,
                                     const struct xattn_project_media_args *args);

/*
 Checks and plans for these shapes. Addresses are not kept: `xattn_project_media_enqueue` takes
 them again.

 # Safety
 `args` as for `xattn_project_media_run`; `out` is null or may be written.
 */
xattn_status xattn_project_media_prepare(const struct xattn_gated_block *gated_block,
                                         const struct xattn_project_media_args *args,
                                         struct xattn_prepared **out);

/*
 Enqueues a prepared call, as `xattn_attention_enqueue` does.

 # Safety
 As `xattn_project_media_run`, until the stream has passed this point; nothing else uses the
 workspace until then.
 */
xattn_status xattn_project_media_enqueue(const struct xattn_prepared *prepared,
                                         const struct xattn_project_media_args *args,
                                         void *workspace,
                                         uint64_t workspace_bytes,
                                         void *stream);

/*
 The text stream through the block: checks, runs and waits.

 # Safety
 `args` points to a `xattn_gated_block_args`, and everything it points to is as described, alive,
 and not used in conflict until this returns.
 */
xattn_status xattn_gated_block_run(const struct xattn_gated_block *gated_block,
                                   const struct xattn_gated_block_args *args);

/*
 Checks and plans for these shapes. Addresses are not kept: `xattn_gated_block_enqueue` takes
 them again.

 # Safety
 `args` as for `xattn_gated_block_run`; `out` is null or may be written.
 */
xattn_status xattn_gated_block_prepare(const struct xattn_gated_block *gated_block,
                                       const struct xattn_gated_block_args *args,
                                       struct xattn_prepared **out);

/*
 Enqueues a prepared call, as `xattn_attention_enqueue` does.

 # Safety
 As `xattn_gated_block_run`, until the stream has passed this point; nothing else uses the
 workspace until then.
 */
xattn_status xattn_gated_block_enqueue(const struct xattn_prepared *prepared,
                                       const struct xattn_gated_block_args *args,
                                       void *workspace,
                                       uint64_t workspace_bytes,
                                       void *stream);

/*
 Packs the weights of the checkpoint's Q-Former, and of its projection if there is one, for a
 device.

 # Safety
 `out` is null or may be written.
 */
xattn_status xattn_qformer_load(const struct xattn_checkpoint *checkpoint,
                                const struct xattn_device *device,
                                int32_t dtype,
                                struct xattn_qformer **out);

/*
 Sizes that the tensors of its calls have.

 # Safety
 `out` is null or may be written.
 */
xattn_status xattn_qformer_describe(const struct xattn_qformer *qformer, struct xattn_qformer_sizes *out);

/*
 Frees it. Calls that were prepared with it stay usable. Null is fine.
 */
xattn_status xattn_qformer_free(struct xattn_qformer *qformer);

/*
 Image features and text through the Q-Former: checks, runs and waits.

 # Safety
 `args` points to a `xattn_qformer_args`, and everything it points to is as described, alive, and
 not used in conflict until this returns.
 */
xattn_status xattn_qformer_run(const struct xattn_qformer *qformer, const struct xattn_qformer_args *args);

/*
 Checks and plans for these shapes. Addresses are not kept: `xattn_qformer_enqueue` takes them
 again.

 # Safety
 `args` as for `xattn_qformer_run`; `out` is null or may be written.
 */
xattn_status xattn_qformer_prepare(const struct xattn_qformer *qformer,
                                   const struct xattn_qformer_args *args,
                                   struct xattn_prepared **out);

/*
 Enqueues a prepared call, as `xattn_attention_enqueue` does.

 # Safety
 As `xattn_qformer_run`, until the stream has passed this point; nothing else uses the workspace
 until then.
 */
xattn_status xattn_qformer_enqueue(const struct xattn_prepared *prepared,
                                   const struct xattn_qformer_args *args,
                                   void *workspace,
                                   uint64_t workspace_bytes,
                                   void *stream);

/*
 Query rows into the language model: checks, runs and waits.

 # Safety
 `args` points to a `xattn_qformer_head_args`, and everything it points to is as described,
 alive, and not used in conflict until this returns.
 */
xattn_status xattn_qformer_head_run(const struct xattn_qformer *qformer, const struct xattn_qformer_head_args *args);

/*
 Checks and plans for these shapes. Addresses are not kept: `xattn_qformer_head_enqueue` takes
 them again.

 # Safety
 `args` as for `xattn_qformer_head_run`; `out` is null or may be written.
 */
xattn_status xattn_qformer_head_prepare(const struct xattn_qformer *qformer,
                                        const struct xattn_qformer_head_args *args,
                                        struct xattn_prepared **out);

/*
 Enqueues a prepared call, as `xattn_attention_enqueue` does.

 # Safety
 As `xattn_qformer_head_run`, until the stream has passed this point; nothing else uses the
 workspace until then.
 */
xattn_status xattn_qformer_head_enqueue(const struct xattn_prepared *prepared,
                                        const struct xattn_qformer_head_args *args,
                                        void *workspace,
                                        uint64_t workspace_bytes,
                                        void *stream);

/*
 Packs the weights of the checkpoint's resampler for a device. `dtype`: a real `xattn_dtype`, of
 activations and matrices.

 # Safety
 `out` is null or may be written.
 */
xattn_status xattn_resampler_load(const struct xattn_checkpoint *checkpoint,
                                  const struct xattn_device *device,
                                  int32_t dtype,
                                  struct xattn_resampler **out);

/*
 Sizes that the tensors of its calls have.

 # Safety
 `out` is null or may be written.
 */
xattn_status xattn_resampler_describe(const struct xattn_resampler *resampler, struct xattn_resampler_sizes *out);

/*
 Frees it. Calls that were prepared with it stay usable. Null is fine.
 */
xattn_status xattn_resampler_free(struct xattn_resampler *resampler);

/*
 Features to media tokens: checks, runs and waits.

 # Safety
 `args` points to a `xattn_resampler_args`, and everything it points to is as described, alive,
 and not used in conflict until this returns.
 */
xattn_status xattn_resampler_run(const struct xattn_resampler *resampler, const struct xattn_resampler_args *args);

/*
 Checks and plans for these shapes. Addresses are not kept: `xattn_resampler_enqueue` takes them
 again.

 # Safety
 `args` as for `xattn_resampler_run`; `out` is null or may be written.
 */
xattn_status xattn_resampler_prepare(const struct xattn_resampler *resampler,
                                     const struct xattn_resampler_args *args,
                                     struct xattn_prepared **out);

/*
 Enqueues a prepared call, as `xattn_attention_enqueue` does.

 # Safety
 As `xattn_resampler_run`, until the stream has passed this point; nothing else uses the
 workspace until then.
 */
xattn_status xattn_resampler_enqueue(const struct xattn_prepared *prepared,
                                     const struct xattn_resampler_args *args,
                                     void *workspace,
                                     uint64_t workspace_bytes,
                                     void *stream);

/*
 Bytes of scratch memory that enqueueing needs, aligned to 64, per stream.

 # Safety
 `bytes` is null or may be written.
 */
xattn_status xattn_prepared_workspace_bytes(const struct xattn_prepared *prepared, uint64_t *bytes);

/*
 Frees a prepared call. Null is fine.
 */
xattn_status xattn_prepared_free(struct xattn_prepared *prepared);

/*
 Opens a device by the name of its kind: "cpu", "reference" (plain f64 loops that judge the
 others), "cuda".

 # Safety
 `kind` is null or a C string; `out` is null or may be written.
 */
xattn_status xattn_device_open(const char *kind, struct xattn_device **out);

/*
 Opens the processor with `threads` threads of its own; 1 is the calling thread alone. Results
 have the same bits for any number. The device of `xattn_device_open` with "cpu" has one thread
 per core, shared with everything that uses the library's default threads.

 After `fork()` without `exec`, a device that the parent opened runs on the calling thread of the
 child, with the same bits; devices of a GPU answer `XATTN_STATUS_UNAVAILABLE` there.

 # Safety
 `out` is null or may be written.
 */
xattn_status xattn_device_open_cpu(uint32_t threads, struct xattn_device **out);

/*
 Uses an engine's CUDA context (`CUcontext`), in which the engine's addresses and streams live.
 No stream is created on it. A library that was built without CUDA says so.

 # Safety
 `context` is null or a live context, which stays so until everything that was made with the
 device is freed; `out` is null or may be written.
 */
xattn_status xattn_device_from_cuda(void *context, struct xattn_device **out);

/*
 Writes name and properties of a device for people, as many bytes as fit `capacity`, with a zero
 at the end.

 # Safety
 `buffer` is null or has room for `capacity` bytes.
 */
xattn_status xattn_device_describe(const struct xattn_device *device, char *buffer, size_t capacity);

/*
 Frees a device. What was prepared on it stays usable. Null is fine.
 */
xattn_status xattn_device_free(struct xattn_device *device);

/*
 Handles of every kind that were made and not freed: 0 at the end of a program that leaks none.
 */
size_t xattn_live_handles(void);

/*
 Packs constant matrices `[n_i, K]` for `linear`, stacked by rows, stored as `dtype`. With
 `up_count` > 0, the matrices of `parts` are the gate rows of a SwiGLU and those of `up` the rows
 that the gate multiplies, equally many. All in host memory, without gaps.

 # Safety
 `parts` points to `part_count` pointers to tensors, `up` to `up_count`; `out` is null or may be
 written.
 */
xattn_status xattn_weight_prepare(const struct xattn_device *device,
                                  const struct xattn_tensor *const *parts,
                                  size_t part_count,
                                  const struct xattn_tensor *const *up,
                                  size_t up_count,
                                  int32_t dtype,
                                  struct xattn_weight **out);

/*
 Frees a prepared weight. Bridges and calls that hold it keep it. Null is fine.
 */
xattn_status xattn_weight_free(struct xattn_weight *weight);

/*
 softmax(scale * q k^T) v over one or two segments: checks, runs and waits.

 # Safety
 `args` points to a `xattn_attention_args`, and everything it points to is as described, alive,
 and not used in conflict until this returns.
 */
xattn_status xattn_attention(const struct xattn_device *device, const struct xattn_attention_args *args);

/*
 Checks and plans for these shapes and this device. Addresses are not kept:
 `xattn_attention_enqueue` takes them again.

 # Safety
 `args` as for `xattn_attention`; `out` is null or may be written.
 */
xattn_status xattn_attention_prepare(const struct xattn_device *device,
                                     const struct xattn_attention_args *args,
                                     struct xattn_prepared **out);

/*
 Enqueues a prepared call: allocates, compiles and waits for nothing. Parameters and layouts are
 those that were prepared: others are refused. `workspace` has `xattn_prepared_workspace_bytes`
 bytes from an address that is a multiple of 64. `stream` is null on a host device, which runs at
 once, and a `CUstream` on CUDA.

 # Safety
 As `xattn_attention`, until the stream has passed this point; nothing else uses the workspace
 until then.
 */
xattn_status xattn_attention_enqueue(const struct xattn_prepared *prepared,
                                     const struct xattn_attention_args *args,
                                     void *workspace,
                                     uint64_t workspace_bytes,
                                     void *stream);

/*
 x + tanh(gate) * y: checks, runs and waits.

 # Safety
 `args` points to a `xattn_gated_residual_args`, and everything it points to is as described,
 alive, and not used in conflict until this returns.
 */
xattn_status xattn_gated_residual(const struct xattn_device *device, const struct xattn_gated_residual_args *args);

/*
 Checks and plans for these shapes and this device. Addresses are not kept:
 `xattn_gated_residual_enqueue` takes them again.

 # Safety
 `args` as for `xattn_gated_residual`; `out` is null or may be written.
 */
xattn_status xattn_gated_residual_prepare(const struct xattn_device *device,
                                          const struct xattn_gated_residual_args *args,
                                          struct xattn_prepared **out);

/*
 Enqueues a prepared call: allocates, compiles and waits for nothing. Parameters and layouts are
 those that were prepared: others are refused. `workspace` has `xattn_prepared_workspace_bytes`
 bytes from an address that is a multiple of 64. `stream` is null on a host device, which runs at
 once, and a `CUstream` on CUDA.

 # Safety
 As `xattn_gated_residual`, until the stream has passed this point; nothing else uses the
 workspace until then.
 */
xattn_status xattn_gated_residual_enqueue(const struct xattn_prepared *prepared,
                                          const struct xattn_gated_residual_args *args,
                                          void *workspace,
                                          uint64_t workspace_bytes,
                                          void *stream);

/*
 A product with its epilogue: checks, runs and waits.

 # Safety
 `args` points to a `xattn_linear_args`, and everything it points to is as described, alive, and
 not used in conflict until this returns.
 */
xattn_status xattn_linear(const struct xattn_device *device, const struct xattn_linear_args *args);

/*
 Checks and plans for these shapes and this device. Addresses are not kept:
 `xattn_linear_enqueue` takes them again.

 # Safety
 `args` as for `xattn_linear`; `out` is null or may be written.
 */
xattn_status xattn_linear_prepare(const struct xattn_device *device,
                                  const struct xattn_linear_args *args,
                                  struct xattn_prepared **out);

/*
 Enqueues a prepared call: allocates, compiles and waits for nothing. Parameters and layouts are
 those that were prepared: others are refused. `workspace` has `xattn_prepared_workspace_bytes`
 bytes from an address that is a multiple of 64. `stream` is null on a host device, which runs at
 once, and a `CUstream` on CUDA.

 # Safety
 As `xattn_linear`, until the stream has passed this point; nothing else uses the workspace until
 then.
 */
xattn_status xattn_linear_enqueue(const struct xattn_prepared *prepared,
                                  const struct xattn_linear_args *args,
                                  void *workspace,
                                  uint64_t workspace_bytes,
                                  void *stream);

/*
 For each text token the 1-based number of the last medium at or before it: checks, runs and
 waits.

 # Safety
 `args` points to a `xattn_media_index_args`, and everything it points to is as described, alive,
 and not used in conflict until this returns.
 */
xattn_status xattn_media_index(const struct xattn_device *device, const struct xattn_media_index_args *args);

/*
 Checks and plans for these shapes and this device. Addresses are not kept:
 `xattn_media_index_enqueue` takes them again.

 # Safety
 `args` as for `xattn_media_index`; `out` is null or may be written.
 */
xattn_status xattn_media_index_prepare(const struct xattn_device *device,
                                       const struct xattn_media_index_args *args,
                                       struct xattn_prepared **out);

/*
 Enqueues a prepared call: allocates, compiles and waits for nothing. Parameters and layouts are
 those that were prepared: others are refused. `workspace` has `xattn_prepared_workspace_bytes`
 bytes from an address that is a multiple of 64. `stream` is null on a host device, which runs at
 once, and a `CUstream` on CUDA.

 # Safety
 As `xattn_media_index`, until the stream has passed this point; nothing else uses the workspace
 until then.
 */
xattn_status xattn_media_index_enqueue(const struct xattn_prepared *prepared,
                                       const struct xattn_media_index_args *args,
                                       void *workspace,
                                       uint64_t workspace_bytes,
                                       void *stream);

/*
 LayerNorm, RMSNorm or L2 normalisation: checks, runs and waits.

 # Safety
 `args` points to a `xattn_norm_args`, and everything it points to is as described, alive, and
 not used in conflict until this returns.
 */
xattn_status xattn_norm(const struct xattn_device *device, const struct xattn_norm_args *args);

/*
 Checks and plans for these shapes and this device. Addresses are not kept: `xattn_norm_enqueue`
 takes them again.

 # Safety
 `args` as for `xattn_norm`; `out` is null or may be written.
 */
xattn_status xattn_norm_prepare(const struct xattn_device *device,
                                const struct xattn_norm_args *args,
                                struct xattn_prepared **out);

/*
 Enqueues a prepared call: allocates, compiles and waits for nothing. Parameters and layouts are
 those that were prepared: others are refused. `workspace` has `xattn_prepared_workspace_bytes`
 bytes from an address that is a multiple of 64. `stream` is null on a host device, which runs at
 once, and a `CUstream` on CUDA.

 # Safety
 As `xattn_norm`, until the stream has passed this point; nothing else uses the workspace until
 then.
 */
xattn_status xattn_norm_enqueue(const struct xattn_prepared *prepared,
                                const struct xattn_norm_args *args,
                                void *workspace,
                                uint64_t workspace_bytes,
                                void *stream);

/*
 The text of this thread's last failure, empty before the first and while the thread ends. Valid
 until the thread's next failure. Never null.
 */
const char *xattn_last_error(void);

/*
 The name of a status, for example `XATTN_STATUS_OK`; of another number `unknown status`. Never
 null, valid for ever.
 */
const char *xattn_status_name(int32_t status);

/*
 `XATTN_ABI_VERSION` of the library that is linked.
 */
uint32_t xattn_abi_version(void);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* XATTN_H */
