"""What scripts/gpu does, stage by stage. Each stage takes at most eight minutes and writes its file as it goes.

    wrappers   each inline-PTX instruction on random registers, lane by lane, against what the PTX ISA says
    verify     every op in f32, f16 and bf16, and the committed fixtures, by the accuracy rule
    sanitize   compute-sanitizer's memcheck, racecheck, initcheck and synccheck on a selection
    bench      cases in a captured graph of at least 50 launches, cold and warm: median of 20 replays, an empty kernel beside
    peers      PyTorch's counterparts of the same cases

Of each stage: OUT/<stage>.json, with the machine, and for every step its command, exit status, seconds and last lines. After bench and peers,
OUT/results.json: a record per case as benches/results/ keeps them. A step that the time does not allow is listed as left out.
"""

import argparse
import datetime
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time

STAGES = ("wrappers", "verify", "sanitize", "bench", "peers")
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
# Without a GPU, the emulator's own means stand in for a tool: sanitizers of the host, poisoned memory, barriers that it counts.
STAND_INS = {"memcheck": "address", "racecheck": "thread", "initcheck": None, "synccheck": None}
# In this order, so that the most telling ones come first where time is short: those with goals (src/profile/targets.rs), growth with images,
# text and batch, whole blocks, products, decode steps.
BENCHED = """
attention/openflamingo-resampler/b32 attention/flamingo-resampler/b32-k2304 attention/flamingo-resampler/b32-k2304-kv4
attention/flamingo-resampler/b1-k2304 attention/flamingo-9b/b8-l2048-n8 attention/flamingo-9b/b8-l2048-n8-kv8
attention/openflamingo/b8-l2048-n8 attention/flamingo-9b/b8-l8192-n32 attention/flamingo-9b-decode/b64-n1 attention/blip2-cross/b32-k257
linear/out-gated/16384x512-4096 resampler/openflamingo/b32 gated_block/openflamingo-9b/b8-l2048-n8 gated_block/openflamingo-9b-decode/n8
qformer/blip2/b32 gated_block/llama-3.2-11b/l512-k6404 linear/gelu/16384x4096-16384 linear/down-gated/16384x16384-4096
attention/openflamingo/b8-l2048-n1 attention/openflamingo/b8-l2048-n4 attention/openflamingo/b8-l2048-n16
attention/openflamingo/b8-l2048-n64 attention/openflamingo/b8-l512-n8 attention/openflamingo/b8-l8192-n8
attention/openflamingo/b32-l2048-n8 resampler/openflamingo/b1 qformer/blip2/b1 gated_block/openflamingo-3b-decode/n4
media_index/l2048-n32/b8 norm/layer/512x2048 norm/rms/512x4096 norm/rms-heads/512x32x128 gated_residual/2048x4096 linear/decode/1x4096-4096
""".split()
# Also in f16 and f32.
OTHER_DTYPES = BENCHED[:10] + ["linear/gelu/64x1024-4096"]
# What an emulator does in seconds.
EMULATED = ["attention/openflamingo-decode/b1-n4", "media_index/l2048-n32/b8", "gated_residual/512x2048"]


def lines_of(command):
    """The lines that a command prints, or none where there is no such command."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.split("\n")
    except (OSError, subprocess.SubprocessError):
        return []


def machine(emulated):
    """Which device this is, and how fast it is set to run."""
    names = ["name", "driver_version", "clocks.sm", "clocks.max.sm", "clocks.mem", "clocks.max.mem", "power.limit"]
    values = [] if emulated else lines_of(["nvidia-smi", f"--query-gpu={','.join(names)}", "--format=csv,noheader"])
    found = dict(zip(names, (value.strip() for value in values[0].split(",")))) if values and values[0] else {}
    commit = os.environ.get("XATTN_COMMIT") or "".join(lines_of(["git", "rev-parse", "--short", "HEAD"])).strip() or None
    return {
        "device": "Emulated CUDA device (no GPU)" if emulated else found.get("name"),
        "driver": found.get("driver_version"),
        "clocks": {name: value for name, value in found.items() if name.startswith(("clocks", "power"))},
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": commit,
    }


class Stage:
    """A stage's file and the time that it has."""

    def __init__(self, name, arguments):
        self.name, self.arguments = name, arguments
        self.ends = time.monotonic() + arguments.seconds
        self.path = arguments.out / f"{name}.json"
        self.report = {"stage": name, "emulated": arguments.emulated, **machine(arguments.emulated), "steps": []}

    def write(self):
        self.path.write_text(json.dumps(self.report, indent=2) + "\n")

    def put(self, name, **values):
        step = {"step": name, **values}
        self.report["steps"].append(step)
        self.write()
        verdict = values.get("verdict")
        print(f"{self.name}: {name}: {verdict}", flush=True)
        return verdict

    def run(self, name, command, judge=None, environment=None):
        """Runs a step and writes what became of it: passed, failed, or what `judge` makes of its status and text."""
        left = self.ends - time.monotonic()
        if left < 1:
            return self.put(name, verdict="left out", reason=f"no time: a stage has {self.arguments.seconds:.0f} s")
        started = time.monotonic()
        try:
            done = subprocess.run(
                [str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
                timeout=left, env={**os.environ, **(environment or {})},
            )
            status, text = done.returncode, done.stdout
        except subprocess.TimeoutExpired as late:
            status, text = None, (late.stdout or b"").decode(errors="replace")
        except OSError as error:
            status, text = None, str(error)
        verdict = "no time" if status is None and time.monotonic() >= self.ends else "passed" if status == 0 else "failed"
        reason = None
        if judge and verdict != "no time":
            verdict, reason = judge(status, text)
        values = {"verdict": verdict, "status": status, "seconds": round(time.monotonic() - started, 1)}
        values |= {"reason": reason} if reason else {}
        return self.put(name, **values, command=" ".join(map(str, command)), said=text.strip().split("\n")[-12:])

    def xattn(self, *rest, sanitizer=None):
        """The command, on the emulated device where that is meant."""
        emulator = ["scripts/emulated-cuda"] + (["--sanitizer", sanitizer] if sanitizer else [])
        return (emulator if self.arguments.emulated else []) + [self.arguments.xattn, *rest]

    def count(self, *verdicts):
        return sum(step["verdict"] in verdicts for step in self.report["steps"])


def wrappers(stage):
    for seed in (1, 2, 3):
        file = stage.arguments.out / f"wrappers-{seed}.json"
        stage.run(f"seed {seed}", stage.xattn("cuda-wrappers", "--seed", seed, "--json", file))


def verify(stage):
    """All cases in all dtypes and all fixtures; an emulated device gets some of each op."""
    some = ["--filter", "seed=21"] if stage.arguments.emulated else []
    for dtype in ("f32", "f16", "bf16"):
        file = stage.arguments.out / f"verify-{dtype}.json"
        stage.run(f"ops in {dtype}", stage.xattn("verify", "--device", "cuda", "--dtype", dtype, "--json", file, *some))
    file = stage.arguments.out / "verify-fixtures.json"
    fixtures = ["tests/golden/A1_tiny.safetensors"] if stage.arguments.emulated else ["tests/golden"]
    stage.run("fixtures", stage.xattn("verify", "--device", "cuda", "--json", file, *fixtures))


def sanitizer_of_toolkit():
    folders = [os.environ.get(name, "") for name in ("CUDA_HOME", "CUDA_PATH")] + ["/usr/local/cuda"]
    places = [shutil.which("compute-sanitizer")] + [f"{folder}/bin/compute-sanitizer" for folder in folders if folder]
    return next((place for place in places if place and os.access(place, os.X_OK)), None)


def judged(status, text):
    """compute-sanitizer's verdict: its summary, or that it did not start."""
    summaries = [line for line in text.split("\n") if "SUMMARY:" in line]
    if summaries and not any("Target application returned an error" in line or "Error: " in line for line in text.split("\n")):
        clean = status == 0 and all(" 0 errors" in line or "0 hazards" in line for line in summaries)
        return ("passed" if clean else "failed"), summaries[-1].strip("= ")
    words = ("not supported", "unable to", "is not compatible", "insufficient permissions", "no attachable process")
    said = [line for line in text.split("\n") if any(word in line.lower() for word in words)]
    if said:
        return "refused", said[0].strip("= ")
    return "failed", "no summary"


def sanitize(stage):
    # Two cases of each op and dtype, small ones: the tools slow a kernel down up to a hundredfold.
    selection = ["verify", "--device", "cuda", "--filter", "seed=21" if stage.arguments.emulated else "seed=2"]
    program = None if stage.arguments.emulated else sanitizer_of_toolkit()
    for tool in TOOLS:
        if stage.arguments.emulated:
            stage.run(f"{tool} (stand-in)", stage.xattn(*selection, sanitizer=STAND_INS[tool]))
        elif program is None:
            stage.put(tool, verdict="refused", reason="no compute-sanitizer in PATH, CUDA_HOME, CUDA_PATH or /usr/local/cuda")
        else:
            extra = ["--racecheck-report", "all"] if tool == "racecheck" else []
            stage.run(tool, [program, "--tool", tool, "--error-exitcode", "99", *extra, *stage.xattn(*selection)], judged)


def bench(stage):
    """A process per case, so that a fault costs one case and what was measured stays."""
    names = [("bf16", name) for name in (EMULATED if stage.arguments.emulated else BENCHED)]
    if not stage.arguments.emulated:
        names += [(dtype, name) for dtype in ("f16", "f32") for name in OTHER_DTYPES]
    stage.report["cases"] = []
    file = stage.arguments.out / "case.json"
    for dtype, name in names:
        if stage.arguments.filter not in name:
            continue
        file.unlink(missing_ok=True)
        stage.run(f"{name} {dtype}", stage.xattn("bench", "--device", "cuda", "--graph", "--dtype", dtype, "--filter", name, "--json", file))
        if file.exists():
            stage.report["cases"] += json.loads(file.read_text())["cases"]
            stage.write()
    file.unlink(missing_ok=True)


def peers(stage):
    out = stage.arguments.out / "peers-cases.json"
    check = ["--check"] if stage.arguments.emulated else []
    seconds = max(stage.arguments.seconds - 60, 10)
    command = [sys.executable, "scripts/gpu_peers.py", "--out", out, "--filter", stage.arguments.filter, "--seconds", seconds, *check]
    stage.run("PyTorch", command)


def results(out):
    """Ours and theirs together, a record per case, as benches/results/ keeps them."""
    timed = json.loads((out / "bench.json").read_text())
    beside = json.loads((out / "peers-cases.json").read_text()) if (out / "peers-cases.json").exists() else {"cases": {}}
    header = {name: timed[name] for name in ("device", "driver", "clocks", "date", "commit", "emulated")}
    header |= {"torch": beside.get("torch"), "peers_on": beside.get("device")}
    records = []
    for record in timed["cases"]:
        peers = {}
        if record.get("cold") and record["dtype"] == "bf16":
            peers = beside["cases"].get(record["case"], {})
        records.append({**record, "peers": peers})
    (out / "results.json").write_text(json.dumps({**header, "cases": records}, indent=2) + "\n")


def main():
    parser = argparse.ArgumentParser(prog="scripts/gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, epilog="""\
The machine needs: an NVIDIA driver, a toolkit with NVRTC (or kernels compiled elsewhere, XATTN_CUDA_IMAGES), compute-sanitizer for `sanitize`,
Python with torch for `peers`. It needs target/release/xattn, built elsewhere from the same commit:
  cargo build --release --features cuda && strip target/release/xattn
Exit status: 0 everything ran and nothing failed, 1 a step failed, 2 wrong usage, 3 nothing failed, but some steps had no time.""")
    parser.add_argument("stages", nargs="*", metavar="STAGE", help=f"of {', '.join(STAGES)}; all where none is named")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("target/gpu"), help="where files go [default: target/gpu]")
    parser.add_argument("--xattn", type=pathlib.Path, default=pathlib.Path("target/release/xattn"), help="the binary")
    parser.add_argument("--filter", default="", help="of bench and peers, only cases whose name contains this text")
    parser.add_argument("--seconds", type=float, default=470, help="for each stage [default: 470]")
    parser.add_argument("--emulated", action="store_true", help="on the emulated device (scripts/emulated-cuda), with few cases and no times")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.stages if name not in STAGES]
    if unknown:
        parser.error(f"no stage {unknown[0]}; there are {', '.join(STAGES)}")
    if not os.access(arguments.xattn, os.X_OK):
        parser.error(f"no program {arguments.xattn}; see --help for how to build it")
    arguments.out.mkdir(parents=True, exist_ok=True)
    failed, unfinished = [], 0
    for name in arguments.stages or STAGES:
        stage = Stage(name, arguments)
        stage.write()
        globals()[name](stage)
        if stage.count("failed"):
            failed.append(name)
        unfinished += stage.count("no time", "left out")
        if name in ("bench", "peers") and (arguments.out / "bench.json").exists():
            results(arguments.out)
    verdict = f"failed: {', '.join(failed)}" if failed else "nothing failed"
    print(f"scripts/gpu: {verdict}, {unfinished} steps had no time; see {arguments.out}")
    return 1 if failed else 3 if unfinished else 0


if __name__ == "__main__":
    sys.exit(main())
