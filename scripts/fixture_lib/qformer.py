"""The Q-Formers of BLIP-2 (transformers and LAVIS) and InstructBLIP, with their heads."""

import numpy as np

from fixture_lib.file import HIDDEN, ROWS, WIDTHS
from fixture_lib.maths import attention, gelu, split


class QFormer:
    """BERT layers behind each other; queries, then text. `word` is the package's own between `attention.` and `.query`."""

    def __init__(self, f, ctor, norm, encoder, embeddings, word, text):
        self.f, self.heads, self.eps = f, ctor["heads"], ctor.get("eps", 1e-12)
        width, self.every = ctor["hidden"], ctor["cross_freq"]
        self.norm = f.ln(norm, width, self.eps)
        if text:
            self.words = f.table(f"{embeddings}word_embeddings.weight", ctor["vocab"], width)
            self.places = f.table(f"{embeddings}position_embeddings.weight", ctor["max_pos"], width)
        self.layers = [self.layer(f"{encoder}layer.{i}.", i, ctor, word, text) for i in range(ctor["layers"])]

    def layer(self, p, i, ctor, word, text):
        width, f, layer = ctor["hidden"], self.f, {}
        crossing = {"crossattention": ctor["enc"]} if i % self.every == 0 else {}
        for name, encoder in {"attention": width, **crossing}.items():
            layer[name] = [f.dense(f"{p}{name}.{word}.{part}", width, n) for part, n in (("query", width), ("key", encoder), ("value", encoder))]
            layer[name].append(self.output(f"{p}{name}.output", width, width))
        for bank in ["_query", ""] if text else ["_query"]:
            layer[f"ff{bank}"] = f.dense(f"{p}intermediate{bank}.dense", ctor["inter"], width), self.output(f"{p}output{bank}", width, ctor["inter"])
        return layer

    def output(self, p, width, columns):
        dense, norm = self.f.dense(f"{p}.dense", width, columns), self.f.ln(f"{p}.LayerNorm", width, self.eps)
        return lambda x, residual: norm(dense(x) + residual)

    def embed(self, ids):
        return self.words[ids] + self.places[: ids.shape[1]]

    def attend(self, parts, x, context, allowed, past=None):
        query, key, value, output = parts
        k, v = (split(part(context), self.heads) for part in (key, value))
        if past is not None:
            k, v = np.concatenate([past[0], k], 1), np.concatenate([past[1], v], 1)
        return output(attention(split(query(x), self.heads), k, v, allowed, "uniform"), x), (k, v)

    def run(self, queries, text, allowed, features, seen=None, past=None):
        """Rows behind the last layer, and each layer's keys and values. `allowed` is [B, rows, past and rows]."""
        n = 0 if queries is None else queries.shape[1]
        x, present = self.norm(np.concatenate([part for part in (queries, text) if part is not None], 1)), []
        for i, layer in enumerate(self.layers):
            x, kv = self.attend(layer["attention"], x, x, allowed, past and past[i])
            present.append(kv)
            q, t = x[:, :n], x[:, n:]
            if n > 0:
                if "crossattention" in layer:
                    q, _ = self.attend(layer["crossattention"], q, features, None if seen is None else seen[:, None])
                up, down = layer["ff_query"]
                q = down(gelu(up(q)), q)
            if t.shape[1] > 0:
                up, down = layer["ff"]
                t = down(gelu(up(t)), t)
            x = np.concatenate([q, t], 1)
        return x, present


def qformer_sizes(f, text):
    heads, _, d = f.heads()
    while heads * d > 128:
        heads, _, d = f.heads()
    ctor = {
        "hidden": heads * d, "heads": heads, "inter": f.pick(HIDDEN[1:]), "layers": f.pick([1, 2, 3, 4]), "nq": f.pick([1, 2, 3, 7, 17, 32]),
        "enc": f.pick(WIDTHS), "cross_freq": f.pick([1, 2, 2, 3]),
    }  # fmt: skip
    if text:
        ctor |= {"vocab": f.pick([8, 32, 47]), "max_pos": f.pick([40, 65])}
    # Default 1e-12.
    if f.chance(3):
        ctor["eps"] = 1e-5
    f.config["ctor"] = ctor
    return ctor, f.pick([1, 2, 3]), f.pick(ROWS), f.pick([r for r in ROWS if r <= 33])


def joint_mask(queries, text, causal):
    """What rows may see of queries and text, [B, rows, rows]; `text` says which tokens are real."""
    batch, length = text.shape
    rows = queries + length
    allowed = np.broadcast_to(np.concatenate([np.ones((batch, queries), bool), text], 1)[:, None], (batch, rows, rows)).copy()
    if causal:
        allowed[:, :queries, queries:] = False
        allowed[:, queries:, queries:] &= np.tril(np.ones((length, length), bool))
    return allowed


def blip2(f, with_text):
    ctor, batch, tokens, length = qformer_sizes(f, with_text)
    qformer = QFormer(f, ctor, "qformer.layernorm", "qformer.encoder.", "embeddings.", "attention", with_text)
    queries = np.broadcast_to(f.table("query_tokens", 1, ctor["nq"], ctor["hidden"]), (batch, ctor["nq"], ctor["hidden"]))
    features = f.reals("encoder_hidden_states", batch, tokens, ctor["enc"])
    seen = f.prefixes("encoder_attention_mask", batch, tokens, 0) if f.chance() else None
    text, allowed = None, None
    if with_text:
        f.config["mode"] = f.pick(["itg", "bidir"])
        text = qformer.embed(f.ids("input_ids", ctor["vocab"], batch, length))
        real = f.prefixes("text_attention_mask", batch, length, 0)
        allowed = f.flags("allow_mask", joint_mask(ctor["nq"], real, f.config["mode"] == "itg"))
    hidden, _ = qformer.run(queries, text, allowed, features, seen)
    f.out("last_hidden_state", hidden)
    if not with_text:
        f.out("pooler_output", hidden[:, 0])
        if f.chance():
            width = f.config["ctor"]["lm_hidden"] = f.pick(WIDTHS)
            f.out("language_projection", f.dense("language_projection", width, ctor["hidden"])(hidden))


def retrieval(f):
    ctor, batch, tokens, length = qformer_sizes(f, True)
    width = ctor["itc_dim"] = f.pick(WIDTHS)
    qformer = QFormer(f, ctor, "qformer.layernorm", "qformer.encoder.", "embeddings.", "attention", True)
    queries = np.broadcast_to(f.table("query_tokens", 1, ctor["nq"], ctor["hidden"]), (batch, ctor["nq"], ctor["hidden"]))
    features = f.reals("image_embeds", batch, tokens, ctor["enc"])
    text = qformer.embed(f.ids("input_ids", ctor["vocab"], batch, length))
    real = f.prefixes("attention_mask", batch, length, 1)
    unit = lambda x: x / np.maximum(np.sqrt((x**2).sum(-1, keepdims=True)), 1e-12)
    joint, _ = qformer.run(queries, text, joint_mask(ctor["nq"], real, False), features)
    f.out("itm_hidden", joint)
    f.out("itm_logits", f.dense("itm_head", 2, ctor["hidden"])(joint[:, : ctor["nq"]]).mean(1))
    image, _ = qformer.run(queries, None, None, features)
    image = unit(f.dense("vision_projection", width, ctor["hidden"])(image))
    alone, _ = qformer.run(None, text, real[:, None], None)
    f.out("itc_text_hidden", alone)
    first = unit(f.dense("text_projection", width, ctor["hidden"])(alone[:, 0]))
    f.out("itc_image_embeds", image)
    f.out("itc_text_embeds", first)
    f.out("itc_logits_per_image", np.einsum("iqd,td->itq", image, first).max(-1))


def instructblip(f):
    ctor, batch, tokens, length = qformer_sizes(f, True)
    qformer = QFormer(f, ctor, "embeddings.layernorm", "encoder.", "embeddings.", "attention", True)
    queries = f.reals("query_embeds", batch, ctor["nq"], ctor["hidden"])
    features = f.reals("encoder_hidden_states", batch, tokens, ctor["enc"])
    seen = f.prefixes("encoder_attention_mask", batch, tokens, 0) if f.chance() else None
    text = qformer.embed(f.ids("input_ids", ctor["vocab"], batch, length))
    real = np.arange(length) < f.rng.integers(0, length + 1, size=batch)[:, None]
    mask = f.flags("attention_mask", np.concatenate([np.ones((batch, ctor["nq"]), bool), real], 1))
    hidden, _ = qformer.run(queries, text, mask[:, None], features, seen)
    f.out("last_hidden_state", hidden)
    f.out("query_output", hidden[:, : ctor["nq"]])


def lavis(f):
    ctor, batch, tokens, length = qformer_sizes(f, True)
    n, width = ctor["nq"], ctor["hidden"]
    qformer = QFormer(f, ctor, "bert.embeddings.LayerNorm", "bert.encoder.", "bert.embeddings.", "self", True)
    queries = np.broadcast_to(f.table("query_tokens", 1, n, width), (batch, n, width))
    p = "cls.predictions."
    dense, norm = f.dense(f"{p}transform.dense", width, width), f.ln(f"{p}transform.LayerNorm", width, qformer.eps)
    decoder = f.dense(f"{p}decoder", ctor["vocab"], width)
    logits = lambda rows: decoder(norm(gelu(dense(rows))))
    features = f.reals("encoder_hidden_states", batch, tokens, ctor["enc"])
    text = qformer.embed(f.ids("input_ids", ctor["vocab"], batch, length))
    real = f.prefixes("text_attention_mask", batch, length, 1)
    causal = f.flags("allow_mask", joint_mask(n, real, True))
    hidden, past = qformer.run(queries, None, None, features)
    f.out("query_hidden", hidden)
    f.out("cached_logits", logits(qformer.run(None, text, causal[:, n:], None, past=past)[0]))
    joint, _ = qformer.run(queries, text, causal, features)
    f.out("joint_hidden", joint)
    f.out("joint_logits", logits(joint[:, n:]))
    f.out("bidirectional_hidden", qformer.run(queries, text, joint_mask(n, real, False), features)[0])
    f.out("text_only_hidden", qformer.run(None, text, real[:, None], None)[0])
