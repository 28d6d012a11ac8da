"""What scripts/gpu does, stage by stage, in order of value. Each stage writes its file as it goes.

    wrappers   each inline-PTX instruction on random registers, lane by lane, against what the PTX ISA says
    verify     every op in f32, f16 and bf16, and the committed fixtures, by the accuracy rule
    sanitize   compute-sanitizer's memcheck, racecheck, initcheck and synccheck on a selection
    bench      cases in a captured graph of at least 50 launches, cold and warm: median of 20 replays, an empty kernel beside
    peers      PyTorch's counterparts of the same cases
    variants   the same cases by every kernel that may serve them: which is the fastest
    wgpu       the WGSL kernels through Vulkan on the same GPU: a selection verified, the same cases timed

Of each stage: OUT/<stage>.json, with the machine, and for every step its command, exit status, seconds and last lines; then OUT/results.json, a
record per case as benches/results/ keeps them, and OUT/verdict.txt, which is printed last. A step that the time does not allow is listed as left
out. A further call with the same binary on the same device goes on: what passed stays, what failed or had no time is run.
"""

import argparse
import os
import pathlib
import sys
import traceback

from gpu_lib import cases, correct, speed, vulkan
from gpu_lib.budget import WEIGHTS, Budget
from gpu_lib.delivery import Delivery, put
from gpu_lib.results import results
from gpu_lib.stage import Stage, aside, machine
from gpu_lib.verdict import table


def peers(stage):
    """In a process of its own, which goes on with what its file has; it ends a moment before the stage does."""
    out = stage.arguments.out
    if stage.arguments.again and (out / "peers-cases.json").exists():
        aside(out / "peers-cases.json")
    check = ["--check"] if stage.arguments.emulated else []
    seconds = max(stage.left() - 10, 5)
    command = [sys.executable, "scripts/gpu_peers.py", "--xattn", stage.arguments.xattn, "--out", out / "peers-cases.json", "--bench", out / "bench.json"]

    def judge(status, text):
        absent = [line for line in text.split("\n") if line.startswith(("ModuleNotFoundError: ", "no CUDA device that PyTorch sees"))]
        if status and absent:
            return "refused", f"{sys.executable}: {absent[0]}"
        return ("passed", None) if status == 0 else ("failed", text.strip().split("\n")[-1])

    # Values skipped for lack of time are in its file; the step itself is never settled.
    stage.settled.pop("PyTorch", None)
    stage.run("PyTorch", [*command, "--filter", stage.arguments.filter, "--seconds", f"{seconds:.0f}", *check], judge)
    found = speed.load(out / "peers-cases.json").get("cases", {})
    left_out = sum(str(value).startswith("left out") for forms in found.values() for value in forms.values())
    if left_out:
        stage.put("forms without time", verdict="left out", reason=f"{left_out} of PyTorch's forms; a further call goes on with them")


STAGES = {
    "wrappers": correct.wrappers, "verify": correct.verify, "sanitize": correct.sanitize,
    "bench": speed.bench, "peers": peers, "variants": speed.variants, "wgpu": vulkan.wgpu,
}


def parsed():
    parser = argparse.ArgumentParser(prog="scripts/gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, epilog="""\
The machine needs: an NVIDIA driver, a toolkit with NVRTC (or kernels compiled elsewhere, XATTN_CUDA_IMAGES), compute-sanitizer for `sanitize`,
Python with torch for `peers`, a Vulkan loader for `wgpu`. It needs the binary, built elsewhere from the same commit: scripts/gpu-pack makes
target/device/xattn.
Exit status: 0 everything ran and nothing failed, 1 a step failed, 2 wrong usage, 3 nothing failed, but some steps had no time.""")
    parser.add_argument("stages", nargs="*", metavar="STAGE", help=f"of {', '.join(STAGES)}; all where none is named")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("target/gpu"), help="where files go [default: target/gpu]")
    parser.add_argument("--deliver", type=pathlib.Path, help="also keep results.json, verdict.txt and an archive of all files here")
    parser.add_argument("--xattn", type=pathlib.Path, help=f"the binary [default: the first of {' and '.join(map(str, cases.BINARIES))}]")
    parser.add_argument("--filter", default="", help="of bench, peers, variants and wgpu, only cases whose name contains this text")
    parser.add_argument("--seconds", type=float, default=470, help="for each stage [default: 470]")
    parser.add_argument("--within", type=float, help="for all stages together, instead: they share it, and what one leaves the next ones have")
    parser.add_argument("--again", action="store_true", help="run what passed in an earlier call too")
    parser.add_argument("--emulated", action="store_true", help="on the emulated device (scripts/emulated-cuda), with few cases and no times")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.stages if name not in STAGES]
    if unknown:
        parser.error(f"no stage {unknown[0]}; there are {', '.join(STAGES)}")
    arguments.xattn = arguments.xattn or cases.binary()
    if not os.access(arguments.xattn, os.X_OK):
        parser.error(f"no program {arguments.xattn}; scripts/gpu-pack makes one")
    arguments.stages = [name for name in WEIGHTS if name in (arguments.stages or STAGES)]
    return arguments


def concluded(out):
    """Writes results.json and verdict.txt from what is there so far."""
    if report := results(out):
        lines = [*vulkan.table(report["cases"]), *speed.table_of_fastest(report.get("fastest", [])), *table(report)]
        put(out / "verdict.txt", ("\n".join(lines) + "\n").encode())


def main():
    arguments = parsed()
    arguments.out.mkdir(parents=True, exist_ok=True)
    cases.load(arguments.xattn)
    if not cases.CASES:
        raise SystemExit(f"scripts/gpu: error: {arguments.xattn} tells no cases (bench --list --json)")
    delivery = Delivery(arguments.out, arguments.deliver, lambda: concluded(arguments.out))
    budget = Budget(arguments.stages, arguments.within, arguments.seconds)
    print(f"scripts/gpu: {budget.said()}", flush=True)
    failed, left_out, unfinished = [], [], 0
    for name in arguments.stages:
        seconds = budget.take(name)
        if seconds is None:
            print(f"{name}: left out: no time is left in this call", flush=True)
            left_out.append(name)
            continue
        print(f"{name}: {seconds:.0f} s", flush=True)
        stage = Stage(name, arguments, seconds, delivery)
        try:
            STAGES[name](stage)
        except Exception as error:  # the later stages still have their time
            traceback.print_exc()
            stage.put("the stage", verdict="failed", reason=f"scripts/gpu itself: {type(error).__name__}: {error}")
        stage.report["clocks_after"] = machine(arguments)["clocks"]
        stage.write()
        if stage.count("failed"):
            failed.append(name)
        unfinished += stage.count("no time", "left out")
        delivery.update(now=True)
    said = arguments.out / "verdict.txt"
    print(said.read_text().rstrip() if said.exists() else "no case was timed")
    for fault in delivery.faults():
        print(f"scripts/gpu: {fault}")
    verdict = f"failed: {', '.join(failed)}" if failed else "nothing failed"
    stages = f", without time: {', '.join(left_out)}" if left_out else ""
    print(f"scripts/gpu: {verdict}, {unfinished} steps had no time{stages}; see {arguments.out}")
    return 1 if failed or delivery.faults() else 3 if unfinished or left_out else 0


if __name__ == "__main__":
    sys.exit(main())
