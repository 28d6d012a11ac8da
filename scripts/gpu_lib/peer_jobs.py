"""Which of PyTorch's forms are timed, in order of value, how long each may take, and where its value goes."""

from gpu_lib import cases

# Seconds: a call that only runs, one that compiles a kernel, one that tunes many.
RUNS, COMPILES, TUNES = 40, 70, 150
LIBRARY = ["sdpa_flash", "sdpa_cudnn", "sdpa_efficient", "varlen"]
FLEX = ["flex_128x64", "flex_64x64", "flex_128x128", "flex_256x64"]


def job(kind, name, form, seconds, **more):
    """With the sizes of the case, which the process that measures it is told."""
    return {"kind": kind, "name": name, "form": form, "seconds": seconds, "shape": cases.shape_of(name), **more}


def product_key(shape):
    """A bare product's name, as cases name theirs: rows x terms - columns."""
    rows, n, k, batch = shape
    return f"{rows}x{k}-{n}" + (f" x {batch}" if batch > 1 else "")


def products_of(records):
    """The shapes of the bare products of benched cases, each once: rows, n, k, batch."""
    shapes = []
    for record in records:
        for step in record.get("steps") or []:
            p = step.get("product")
            shape = p and (p["rows"], p["n"], p["k"], p.get("batch", 1))
            if shape and shape not in shapes:
                shapes.append(shape)
    return shapes


def asked(records):
    """The records whose products are timed bare: in bf16 and cold. Blocks and the FFN first, whose floors and goals want them."""
    found = [r for r in records if r["dtype"] == "bf16" and r.get("cold")]
    return sorted(found, key=lambda r: not (cases.is_block(r["case"]) or r["case"].startswith("ffn/")))


def library(name):
    packed = ["varlen_packed"] if cases.shares_keys(cases.CASES[name]) else []
    return [job("attention", name, form, RUNS) for form in [*LIBRARY, *packed]]


def flex(name):
    """The forms of FlexAttention: one per size of block where something is hidden."""
    forms = FLEX if cases.attention(cases.shape_of(name))["media"] > 1 else ["flex"]
    return [job("attention", name, form, COMPILES) for form in forms]


def bare_form(name):
    return "bare_products_and_activation" if name.startswith("ffn/") else "bare_product"


def jobs(records):
    """All of them. `records`: of bench, whose steps say which products blocks are made of."""
    # Cases that this binary lacks have no shape.
    attention = [name for name in cases.ATTENTION if name in cases.CASES]
    blocks = [*cases.BLOCKS, *cases.SMALL]
    chains = [cases.FFN, cases.OUT_PROJECTION]
    chains += [name for dtype, name in cases.BENCHED if dtype == "bf16" and name not in chains and name.startswith(("linear/", "ffn/"))]
    gated = [name for name in blocks if name.startswith("gated_block/")]
    bars = len(cases.BAR_ATTENTION)

    # First the rows with goals that need no compiler; then one form of each kind that does.
    found = [one for name in attention[:bars] for one in library(name)]
    found += [job("product", product_key(shape), "bare", RUNS, shape=shape) for shape in products_of(asked(records))]
    found += [job("chain", name, form, RUNS) for name in chains[:2] for form in (bare_form(name), "eager")]
    found += [flex(name)[0] for name in attention[:bars]]
    found += [job("block", name, "eager", COMPILES) for name in blocks]
    found += [job("block", name, "compile", TUNES) for name in cases.BLOCKS]
    found += [job("block", name, "compile_graphs", TUNES) for name in cases.SMALL]
    found += [job("chain", name, "compile", TUNES) for name in chains[:2]]
    # The other sizes of block masks, and blocks as ours are given their media.
    found += [one for name in attention[:bars] for one in flex(name)[1:]]
    found += [job("block", name, "compile_cached", TUNES) for name in gated]
    found += [one for name in attention[bars:] for one in library(name)]
    found += [one for name in attention[bars:] for one in flex(name)]
    found += [job("block", name, "compile", TUNES) for name in cases.SMALL]
    for name in chains[2:]:
        found += [job("chain", name, bare_form(name), RUNS), job("chain", name, "eager", RUNS), job("chain", name, "compile", TUNES)]
    found += [job("block", name, "eager_cached", COMPILES) for name in gated]
    return found + [job("attention", name, "sdpa_math", RUNS) for name in attention]


def best_flex(peers):
    """The best of FlexAttention's forms, or why there is none."""
    forms = {name: value for name, value in peers.items() if name.startswith("flex_")}
    times = [value for value in forms.values() if isinstance(value, (int, float))]
    if times:
        return min(times)
    return next(iter(forms.values()), None)
