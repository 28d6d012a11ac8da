"""The stages that ask whether everything is right: wrappers, verify, sanitize."""

import os
import shutil

from gpu_lib.variables import DEPENDENT, for_hopper

TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
# Without a GPU, the emulator stands in for a tool: host sanitizers, poisoned memory, counted
# barriers.
STAND_INS = {"memcheck": "address", "racecheck": "thread", "initcheck": None, "synccheck": None}


def wrappers(stage):
    for seed in (1, 2, 3):
        file = stage.arguments.out / f"wrappers-{seed}.json"
        stage.run(f"seed {seed}", stage.xattn("cuda-wrappers", "--seed", seed, "--json", file))


def verify(stage):
    """All cases in all dtypes and all fixtures; then those of an op by each kernel for Hopper, which a variable must name. An emulated device gets
    some of each op. bf16 is what is timed, so it comes first."""
    some = ["--filter", "seed=21"] if stage.arguments.emulated else []
    for dtype in ("bf16", "f16", "f32"):
        file = stage.arguments.out / f"verify-{dtype}.json"
        stage.run(f"ops in {dtype}", stage.xattn("verify", "--device", "cuda", "--dtype", dtype, "--json", file, *some))
    file = stage.arguments.out / "verify-fixtures.json"
    fixtures = ["tests/golden/A1_tiny.safetensors"] if stage.arguments.emulated else ["tests/golden"]
    stage.run("fixtures", stage.xattn("verify", "--device", "cuda", "--json", file, *fixtures))
    # Fixtures are whole bridges: many dependent kernels.
    stage.run("fixtures, dependent launches", stage.xattn("verify", "--device", "cuda", *fixtures), environment=DEPENDENT)
    for op, variable, word in for_hopper(stage):
        file = stage.arguments.out / f"verify-{word}.json"
        selection = some or ["--filter", f"{op}:"]
        stage.run(f"{op} by {word}", stage.xattn("verify", "--device", "cuda", "--json", file, *selection), environment={variable: word})


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
    """A few cases of each op under every tool, since the tools slow a kernel down up to a hundredfold; then more, by the kernels for Hopper first."""
    few, more = "seed=21", "seed=2"
    program = None if stage.arguments.emulated else sanitizer_of_toolkit()
    refused = set()
    steps = [(tool, few, {}) for tool in TOOLS]
    if not stage.arguments.emulated:
        steps += [(tool, more, {variable: word}) for _, variable, word in for_hopper(stage) for tool in TOOLS]
        steps += [(tool, more, {}) for tool in TOOLS]
    for number, (tool, selection, environment) in enumerate(steps):
        name = ", ".join([tool, selection, *environment.values()])
        command = ["verify", "--device", "cuda", "--filter", selection]
        # One that hangs must leave time to the others.
        share = 1.0 if number == len(steps) - 1 else 0.5
        if stage.arguments.emulated:
            stage.run(f"{name} (stand-in)", stage.xattn(*command, sanitizer=STAND_INS[tool]))
        elif program is None:
            stage.put(name, verdict="refused", reason="no compute-sanitizer in PATH, CUDA_HOME, CUDA_PATH or /usr/local/cuda")
        elif tool in refused:
            stage.put(name, verdict="refused", reason=f"{tool} refused {few}")
        else:
            extra = ["--racecheck-report", "all"] if tool == "racecheck" else []
            command = [program, "--tool", tool, "--error-exitcode", "99", *extra, *stage.xattn(*command)]
            if stage.run(name, command, judged, environment, share=share) == "refused":
                refused.add(tool)
