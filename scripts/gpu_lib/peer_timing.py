"""How PyTorch's forms are timed: as `xattn bench --device cuda` times ours."""

import statistics

import torch

LAUNCHES = 50
REPLAYS = 20
WARM_UP = 3
# Calls longer than this get smaller graphs: at least four per graph, each of many launches.
LONG_US = 500


def where(check):
    """Device and dtype of operands: in a check those in which plain arithmetic can be told from a wrong form."""
    return ("cpu", torch.float32) if check else ("cuda", torch.bfloat16)


def copies(make, first, size):
    """So many copies of operands that calls going round over them exceed twice the L2 cache."""
    l2 = torch.cuda.get_device_properties(0).L2_cache_size
    return [first] + [make() for _ in range(min(2 * l2 // max(size, 1) + 1, 255))]


def elapsed_us(run):
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) * 1e3


def median_us(run, operands):
    """Microseconds of a call: a captured graph of at least 50 calls that go round over the copies of the operands."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for one in operands[:3]:
            run(one)
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    once = elapsed_us(lambda: run(operands[0]))
    calls = min(max(int(LAUNCHES * LONG_US / max(once, LONG_US)), 4), LAUNCHES)
    calls = -(-calls // len(operands)) * len(operands)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in range(calls):
            run(operands[call % len(operands)])
    times = [elapsed_us(graph.replay) / calls for _ in range(WARM_UP + REPLAYS)]
    return statistics.median(times[WARM_UP:])


def replayed_us(run, operands):
    """The same of a function that replays CUDA graphs of its own, and so cannot be captured."""
    calls = -(-LAUNCHES // len(operands)) * len(operands)

    def round_trip():
        for call in range(calls):
            run(operands[call % len(operands)])

    times = [elapsed_us(round_trip) / calls for _ in range(WARM_UP + REPLAYS)]
    return statistics.median(times[WARM_UP:])


def launches(run):
    """Kernels of one call, by PyTorch's profiler; or why it cannot say, which must not cost the time that was taken before."""
    from torch.profiler import ProfilerActivity, profile

    try:
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CUDA]) as seen:
            run()
            torch.cuda.synchronize()
        device = [event for event in seen.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    except Exception as error:  # a profiler fails in ways of its own
        return f"refused: {reason(error)}"
    return sum(not event.name.startswith(("Memcpy", "Memset")) for event in device) or "refused: the profiler saw no kernel"


def reason(error):
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no reason given'}"[:300]


def sticky(error):
    """Whether the device is of no more use to this process."""
    return any(words in str(error) for words in ("CUDA error", "device-side assert", "an illegal memory access", "cudaError"))


def compiled(function, check, mode="max-autotune-no-cudagraphs"):
    """torch.compile; in a check only its capture of the graph, since compilers take minutes and are not what is checked."""
    torch._dynamo.reset()
    return torch.compile(function, backend="eager") if check else torch.compile(function, mode=mode, dynamic=False)


class Wrong(Exception):
    """A form computes something else."""


def close(actual, expected):
    """Refuses a form whose values in f32 are not those of plain arithmetic in f64."""
    try:
        torch.testing.assert_close(actual.to(torch.float64), expected, rtol=1e-4, atol=1e-5)
    except AssertionError as error:
        raise Wrong(" ".join(str(error).split())) from None


def near(actual, expected, share=0.03):
    """Refuses a form whose values in bf16 lie further from the expected ones than roundings on the way explain: that share of the largest."""
    actual, expected = actual.to(torch.float64), expected.to(torch.float64)
    # NaN is not at most anything.
    if not (actual - expected).abs().max() <= share * expected.abs().max():
        raise Wrong(f"differs by {(actual - expected).abs().max().item():.3g} where the largest value is {expected.abs().max().item():.3g}")
