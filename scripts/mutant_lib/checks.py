"""The checks that mutants meet: those of the gate, each with what it needs and the command that runs it."""

import dataclasses
import os
import re

# A fixed schedule of the emulator and fixed ends of asynchronous copies.
EMULATED = {"XATTN_EMULATOR_SEED": "14"}


@dataclasses.dataclass(frozen=True)
class Check:
    # What the build makes: "xattn" (the command), "lib" (unit tests), "test:NAME", "capi:NAME".
    needs: str
    # Arguments behind the executable.
    arguments: tuple = ()
    # In front of it.
    before: tuple = ()
    environment: tuple = ()
    # `verify`'s cases for a mutant of an op.
    by_op: bool = False

    def command(self, built, op):
        # The beginning of a case's string.
        filtered = ("--filter", f"{op}:") if self.by_op and op else ()
        return [*self.before, built[self.needs], *self.arguments, *filtered]


def verify(*arguments, **more):
    return Check("xattn", ("verify", *arguments), **more)


def emulated(needs, *arguments, **more):
    return Check(needs, arguments, before=("scripts/emulated-cuda",), environment=tuple(EMULATED.items()), **more)


def on(adapter, needs, *arguments, **more):
    return Check(needs, arguments, before=("scripts/wgpu-adapters", "--on", adapter), **more)


TESTS = ["cpu", "reference", "properties", "threads", "bench", "heap", "pool", "soundness", "checkpoint", "verify_cli", "parsers", "golden"]
CAPI = ["lib", "misuse", "fields", "header", "threads", "checkpoint"]

CHECKS = {
    "verify": verify("--device", "cpu", by_op=True),
    **{f"verify-{set}": verify("--device", "cpu", by_op=True, environment=(("XATTN_CPU", set),)) for set in ("avx2", "portable")},
    "verify-full": verify("--device", "cpu", "--full"),
    "golden": verify("--device", "cpu", "tests/golden"),
    "lib": Check("lib", ("--skip", "backend::cuda", "--skip", "backend::wgpu")),
    **{f"{name}-tests" if name == "golden" else name: Check(f"test:{name}") for name in TESTS},
    **{f"capi-{name}": Check(f"capi:{name}") for name in CAPI},
    # f32 first: most bugs show in every dtype.
    "swiftshader": on("swiftshader", "xattn", "verify", "--device", "wgpu", "--every-case", "--dtype", "f32", by_op=True),
    "swiftshader-bf16": on("swiftshader", "xattn", "verify", "--device", "wgpu", "--every-case", "--dtype", "bf16", by_op=True),
    "swiftshader-golden": on("swiftshader", "xattn", "verify", "--device", "wgpu", "tests/golden"),
    "swiftshader-full": on("swiftshader", "xattn", "verify", "--device", "wgpu", "--full", by_op=True),
    "lavapipe": on("lavapipe", "xattn", "verify", "--device", "wgpu", "--filter", "seed=2"),
    "lavapipe-baseline": on("lavapipe-baseline", "xattn", "verify", "--device", "wgpu", "--filter", "seed=2"),
    "wgpu": Check("test:wgpu"),
    "wgpu-lib": Check("lib", ("backend::wgpu",)),
    "cuda-verify": emulated("xattn", "verify", "--device", "cuda", by_op=True),
    "cuda-full": emulated("xattn", "verify", "--device", "cuda", "--full", by_op=True),
    "cuda-golden": emulated("xattn", "verify", "--device", "cuda", "tests/golden"),
    "cuda-lib": emulated("lib", "backend::cuda", "trust::"),
    "cuda": emulated("test:cuda"),
    **{
        f"cuda-linear-{kernel}": Check(
            "xattn", ("verify", "--device", "cuda", "--filter", "linear"), before=("scripts/emulated-cuda",),
            environment=(*EMULATED.items(), ("XATTN_CUDA_LINEAR", kernel)),
        )
        for kernel in ("hopper", "hopper-turns")
    },
}

# A line that ends a check: of the test harness, of `verify`, of the emulator or a sanitizer.
FAILING = re.compile(r"\bFAILED\b|^emulator: |Sanitizer: ")
# A line that tells why a finished check failed, if none of the former does.
TELLING = re.compile(r"panicked at|^error: |: error: ")
# A script that cannot run a command here says so and succeeds.
SKIPPED = re.compile(r"==> skipped: (.*)")


def environment(check, mutant, reached):
    """The environment of a check under a mutant."""
    given = {k: v for k, v in os.environ.items() if not k.startswith("XATTN_") or k == "XATTN_CUDA_CACHE"}
    if mutant:
        given |= {"XATTN_MUTANT": mutant, "XATTN_MUTANT_REACHED": str(reached)}
    return given | dict(check.environment)
