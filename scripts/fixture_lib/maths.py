"""Activations, norms and attention in float64. Scales and eps are rounded to float32, in which modules are given them."""

import math

import numpy as np

erf = np.frompyfunc(math.erf, 1, 1)


def gelu(x):
    return 0.5 * x * (1.0 + erf(x / math.sqrt(2.0)).astype(np.float64))


def relu(x):
    return np.maximum(x, 0.0)


def squared_relu(x):
    return relu(x) ** 2


def silu(x):
    # Halves of tanh: no overflow, whatever x is.
    return x * (0.5 + 0.5 * np.tanh(x / 2.0))


def layer_norm(x, weight, bias, eps=1e-5):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + float(np.float32(eps))) * weight + bias


def rms_norm(x, weight, eps):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + float(np.float32(eps))) * weight


def split(x, heads):
    """[..., heads * d] as [..., heads, d]."""
    return x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads)


def attention(q, k, v, allowed=None, empty="zero"):
    """q [B, Lq, H, d], k and v [B, Lk, Hk, d], allowed [B, Lq, Lk] or what broadcasts to it -> [B, Lq, H * d].

    A row that may see no key becomes 0 (`zero`), the mean of all values (`uniform`), or as if it saw all keys (`all`). `empty` may be an array of
    flags per row as well: where set, such a row is `uniform`, elsewhere `zero`.
    """
    group = q.shape[2] // k.shape[2]
    k, v = np.repeat(k, group, axis=2), np.repeat(v, group, axis=2)
    scores = np.einsum("bihd,bjhd->bhij", q, k) * float(np.float32(1.0 / math.sqrt(q.shape[3])))
    allowed = np.broadcast_to(True if allowed is None else allowed, (q.shape[0], q.shape[1], k.shape[1]))
    none = ~allowed.any(-1)
    uniform = empty if isinstance(empty, np.ndarray) else np.full(none.shape, empty == "uniform")
    seen = allowed | (none & (uniform | np.full(none.shape, empty == "all")))[..., None]
    scores = np.where((none & uniform)[:, None, :, None], 0.0, scores)
    scores = np.where(seen[:, None], scores, -np.inf)
    most = scores.max(-1, keepdims=True)
    weights = np.exp(scores - np.where(np.isfinite(most), most, 0.0))
    total = weights.sum(-1, keepdims=True)
    weights = weights / np.where(total == 0.0, 1.0, total)
    out = np.einsum("bhij,bjhd->bihd", weights, v)
    return out.reshape(*out.shape[:2], -1)
