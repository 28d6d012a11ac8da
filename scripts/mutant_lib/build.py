"""Builds what checks run, once, in the copy."""

import json
import os
import pathlib
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
    """Runs cargo in the copy, and returns the executables that it made, by what checks call them: xattn, lib, test:NAME, capi:NAME."""
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
            target = message["target"]
            package = "capi:" if pathlib.Path(target["src_path"]).is_relative_to(tree / "capi") else ""
            kind = target["kind"][0]
            name = {"bin": target["name"], "test": f"{'' if package else 'test:'}{target['name']}"}.get(kind, "lib")
            made[package + name] = message["executable"]
    return made


def build(tree, names):
    """The executables that the named checks need, by what they call them."""
    started = time.monotonic()
    needs = {CHECKS[name].needs for name in names}
    of_capi = any(need.startswith("capi:") for need in needs)
    tests = {need.rsplit(":", 1)[1] for need in needs if need.startswith("test:") or need.startswith("capi:")} - {"lib"}
    # Every test brings the command along; one call for all, so that the library is compiled once.
    chosen = [part for test in sorted(tests or {"heap"}) for part in ("--test", test)]
    libraries = ["--lib"] if any(need.rsplit(":", 1)[-1] == "lib" for need in needs) else []
    packages = ["-p", "xattn", *(["-p", "xattn-capi"] if of_capi else [])]
    built = cargo(tree, "test", "--no-run", "--all-features", *packages, *libraries, *chosen)
    if absent := needs - built.keys():
        raise Failed(f"the build made no {sorted(absent)[0]}")
    print(f"    built: {time.monotonic() - started:.0f} s", flush=True)
    return built
