"""The stage wgpu: the WGSL kernels through Vulkan on the same GPU, beside CUDA."""

import json
import os
import pathlib

from gpu_lib import cases
from gpu_lib.speed import chosen, judge, known_or_refused, load
from gpu_lib.stage import ended

# Where a container may keep a driver's description, and loaders do not look.
DRIVERS = "*/share/vulkan/icd.d/*.json"


def adapter(stage):
    """The command's line about its Vulkan device, and the variables with which it finds one."""
    environment = {}
    line = told(stage, environment)
    if "unavailable" in line and not os.environ.get("VK_DRIVER_FILES") and (files := sorted(pathlib.Path("/usr/local").glob(DRIVERS))):
        environment = {"VK_DRIVER_FILES": ":".join(map(str, files))}
        line = told(stage, environment)
    return line, environment


def told(stage, environment):
    _, text = ended([stage.arguments.xattn, "devices"], 60, environment)
    return next((line for line in text.split("\n") if line.startswith("wgpu")), "")


def step_of(name, dtype):
    return f"{name} {dtype}"


def wgpu(stage):
    """A selection verified, then the cases of bench that have goals, each in a process of its own."""
    emulated = stage.arguments.emulated
    line, environment = adapter(stage)
    software = any(word in line for word in ("llvmpipe", "SwiftShader"))
    stage.report |= {"adapter": line, "cases": stage.kept_records(lambda record: step_of(record["case"], record["dtype"]))}
    if not line or "unavailable" in line:
        stage.put("a Vulkan device", verdict="refused", reason=line or "this binary is built without the feature wgpu")
        return
    if software and not emulated:
        stage.put("a Vulkan device", verdict="refused", reason=f"only a software adapter: {line}")
        return
    selection = "gated_residual:" if emulated else "seed=2"
    stage.run("verify", [stage.arguments.xattn, "verify", "--device", "wgpu", "--filter", selection], environment=environment, share=0.4)
    names = [("bf16", name) for name in (cases.EMULATED[2:] if emulated else cases.ON_WGPU)]
    names += [] if emulated else [("f32", name) for name in cases.BAR_ATTENTION]
    for dtype in dict.fromkeys(dtype for dtype, _ in names):
        asked = chosen(stage, (name for d, name in names if d == dtype))
        for name in known_or_refused(stage, asked, lambda name, dtype=dtype: step_of(name, dtype)):
            timed(stage, name, dtype, environment)


def table(records):
    """A line per case: ours through Vulkan, its share of the FP32 peak, and CUDA beside; nothing without times."""
    lines = [
        f"{r['case']:<46} {r['dtype']:<5} {r['median_us']:>10.2f} {100 * (r['fp32_share'] or 0):>8.1f} % {r['cuda_us'] or float('nan'):>10.2f}"
        for r in records if r.get("backend") == "wgpu" and r.get("median_us") is not None
    ]
    return [f"{'case through Vulkan':<46} {'':<5} {'us':>10} {'of FP32':>10} {'CUDA, us':>10}", *lines] if lines else []


def timed(stage, name, dtype, environment):
    step = step_of(name, dtype)
    if step in stage.settled:
        return
    file = stage.arguments.out / "case.json"
    file.unlink(missing_ok=True)
    command = [stage.arguments.xattn, "bench", "--device", "wgpu", "--dtype", dtype, "--filter", name, "--json", file]
    if stage.run(step, command, judge, environment, share=0.5) == "passed":
        ours = load(stage.arguments.out / "bench.json").get("cases", [])
        # Operands are reused, as in CUDA's warm row; a case beyond the L2 cache has only a cold
        # one.
        cuda = {(r["case"], r["dtype"]): r.get("median_us") for r in sorted(ours, key=lambda r: not r.get("cold"))}
        stage.report["cases"] += records(json.loads(file.read_text()), dtype, cuda)
        stage.write()
    file.unlink(missing_ok=True)


def records(report, dtype, cuda):
    """As results have them. A software adapter's times are left out: they say nothing about a GPU."""
    told = report.get("warning") is None
    found = []
    for row in report["cases"]:
        found.append({
            "case": row["case"], "backend": "wgpu", "dtype": dtype, "cold": False,
            "median_us": 1e3 * row["ms"] if told else None, "floor_us": None, "bar_us": None,
            "fp32_share": row["fp32_share"] if told else None, "roof_share": row["roof_share"] if told else None,
            "fp32_peak_gflops": row["roof_gflop_per_s"] if told else None, "cuda_us": cuda.get((row["case"], dtype)) if told else None,
            "bytes": row["bytes"], "flops": row["flops"], "peers": {},
        })
    return found
