"""Builds what checks run, once, in the copy."""

import json
import os
import subprocess
import sys
import time

from mutant_lib import plant
from mutant_lib.checks import CHECKS

# Seconds that a build may take.
LONGEST = 1800


class Failed(Exception):
    """A build that does not succeed."""


def cargo(tree, *arguments):
    """Runs cargo in the copy, and returns the executables that it made: by kind and name of the target."""
    print(f"==> cargo {' '.join(arguments)}", flush=True)
    command = ["cargo", *arguments, "--locked", "--message-format=json-render-diagnostics"]
    environment = {**os.environ, "CARGO_TARGET_DIR": str(plant.target())}
    try:
        done = subprocess.run(command, cwd=tree, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=LONGEST)
    except subprocess.TimeoutExpired:
        raise Failed(f"cargo {' '.join(arguments)}: not done after {LONGEST} s") from None
    if done.returncode:
        sys.stderr.write(done.stderr)
        raise Failed(f"cargo {' '.join(arguments)} failed in the copy, {tree}")
    made = {}
    for line in done.stdout.splitlines():
        message = json.loads(line)
        if message["reason"] == "compiler-artifact" and message["executable"]:
            made[message["target"]["kind"][0], message["target"]["name"]] = message["executable"]
    return made


def build(tree, names):
    """The executables that the named checks need, by what they call them."""
    started = time.monotonic()
    needs = {CHECKS[name].needs for name in names}
    # Every test of the package brings the command along; a build of its own would resolve other features, and compile everything again.
    tests = sorted(need.removeprefix("test:") for need in needs if need.startswith("test:")) or ["heap"]
    built = {}
    if needs - {need for need in needs if need.startswith("capi:")}:
        chosen = (["--lib"] if "lib" in needs else []) + [part for test in tests for part in ("--test", test)]
        for (kind, name), path in cargo(tree, "test", "--no-run", "--all-features", *chosen).items():
            built[{"bin": name, "lib": "lib"}.get(kind, f"test:{name}")] = path
    if any(need.startswith("capi:") for need in needs):
        for (kind, name), path in cargo(tree, "test", "--no-run", "-p", "xattn-capi", "--features", "cuda").items():
            built[f"capi:{name}" if kind == "test" else "capi:lib"] = path
    if absent := needs - built.keys():
        raise Failed(f"the build made no {sorted(absent)[0]}")
    print(f"    built: {time.monotonic() - started:.0f} s", flush=True)
    return built
