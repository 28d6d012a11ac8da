"""PyTorch's forms of products: the bare product of cuBLASLt, and chains of what `linear` and a gated FFN fuse."""

import torch
from torch.nn.functional import gelu

from gpu_lib import peer_timing
from gpu_lib.peer_timing import close, compiled, copies, median_us, near


class Operands:
    """One copy: x [rows, k], the matrices [n, k] as modules keep them, residual, gate, and memory for results."""

    def __init__(self, rows, widths, device, dtype):
        def made(*shape, scale=1.0):
            return scale * torch.randn(*shape, device=device, dtype=dtype)

        self.x = made(rows, widths[0])
        self.matrices = [made(n, k, scale=k**-0.5) for k, n in zip(widths, widths[1:])]
        self.residual, self.gate = made(rows, widths[-1]), made(1)
        self.results = [torch.empty(rows, n, device=device, dtype=dtype) for n in widths[1:]]

    def bytes(self):
        return sum(t.numel() * t.element_size() for t in (self.x, *self.matrices, self.residual, *self.results))


def gated(o):
    return o.residual + o.gate.tanh() * (o.x @ o.matrices[0].t())


def activated(o):
    return gelu(o.x @ o.matrices[0].t())


def feed_forward(o):
    return o.residual + o.gate.tanh() * (gelu(o.x @ o.matrices[0].t()) @ o.matrices[1].t())


def bare_product(o):
    return torch.mm(o.x, o.matrices[0].t(), out=o.results[0])


def bare_products_and_activation(o):
    """Two products of the library and one pass of GELU in place."""
    torch.mm(o.x, o.matrices[0].t(), out=o.results[0])
    torch.ops.aten.gelu_(o.results[0])
    return torch.mm(o.results[0], o.matrices[1].t(), out=o.results[1])


def chain(shape):
    """Rows, widths, the chain and the bare products of a case."""
    if "hidden" in shape:
        return shape["rows"], [shape["width"], shape["hidden"], shape["width"]], feed_forward, bare_products_and_activation
    form = {("gelu", None): activated, ("none", "gated_residual"): gated}[shape["activation"], shape["epilogue"]]
    return shape["rows"], [shape["k"], shape["n"]], form, bare_product


def exact(form, o, rows):
    """The first rows by plain arithmetic in f64, written apart from the forms."""
    x, residual, gate = (t.to(torch.float64) for t in (o.x[:rows], o.residual[:rows], o.gate))
    y = x
    for at, matrix in enumerate(o.matrices):
        y = torch.einsum("rk,nk->rn", y, matrix.to(torch.float64))
        last = at == len(o.matrices) - 1
        if (form is activated and last) or (len(o.matrices) == 2 and not last):
            y = y * 0.5 * (1 + torch.erf(y / 2**0.5))
    return residual + torch.tanh(gate) * y if form in (gated, feed_forward) else y


def measure(shape, form, check):
    """Microseconds of a form of a case, or None of one that was checked and is right."""
    rows, widths, whole, bare = chain(shape)
    device, dtype = peer_timing.where(check)
    rows, widths = (min(rows, 5), [min(n, 24 + 8 * at) for at, n in enumerate(widths)]) if check else (rows, widths)
    torch.manual_seed(1)
    run = bare if form.startswith("bare") else compiled(whole, check) if form == "compile" else whole
    first = Operands(rows, widths, device, dtype)
    form = bare if run is bare else whole
    with torch.no_grad():
        if check:
            close(run(first), exact(form, first, rows))
            return None
        some = min(rows, 4)
        near(run(first)[:some], exact(form, first, some))
        return median_us(run, copies(lambda: Operands(rows, widths, device, dtype), first, first.bytes()))


def bare(rows, n, k, batch, check):
    """Microseconds of `batch` bare products, each with a matrix of its own."""
    device, dtype = peer_timing.where(check)

    def made():
        x = torch.randn(batch, rows, k, device=device, dtype=dtype)
        w = torch.randn(batch, n, k, device=device, dtype=dtype)
        out = torch.empty(batch, rows, n, device=device, dtype=dtype)
        return (x[0], w[0], out[0]) if batch == 1 else (x, w, out)

    def run(o):
        x, w, out = o
        return torch.mm(x, w.t(), out=out) if batch == 1 else torch.bmm(x, w.transpose(1, 2), out=out)

    torch.manual_seed(1)
    first = made()
    if check:
        close(run(first), torch.einsum("...rk,...nk->...rn", *(t.to(torch.float64) for t in first[:2])))
        return None
    return median_us(run, copies(made, first, sum(t.numel() * t.element_size() for t in first)))
