"""What every CUDA kernel costs and contains, compiled without a device, against the budget in kernels/budget.json.

    scripts/cuda-resources [--update] [FILTER]

NVRTC compiles each text that `xattn cuda-sources` wrote, for each architecture that it serves, as the crate itself does at run time. Checked, per instance:

* registers and shared memory: at most the budget's; blocks per multiprocessor that follow from them: at least the budget's;
* spills: none, and no local memory in the disassembly (STL, LDL), which also shows arrays that the compiler could not keep in registers;
* complaints: none of the assembler's about products of a warpgroup that it serialises, or a setmaxnreg that it ignores;
* the instructions of the budget's `must`, by name of the instance: tensor core products, matrix loads, asynchronous copies.

A kernel that needs less than its budget passes, with a note; --update writes what was measured.
"""

import argparse
import ctypes
import fnmatch
import json
import multiprocessing
import os
import pathlib
import re
import subprocess
import sys
import tempfile

ARCHITECTURES = ("sm_80", "sm_89", "sm_90a")
# Limits per multiprocessor: threads, blocks, bytes of shared memory (CUDA C++ Programming Guide,
# "Technical Specifications per Compute Capability").
# All three have 65,536 registers in four parts, and reserve 1 KiB of shared memory per block.
LIMITS = {"sm_80": (2048, 32, 167_936), "sm_89": (1536, 24, 102_400), "sm_90a": (2048, 32, 233_472)}
# What a `must` may ask for, and what counts as local memory.
LOCAL = ("STL", "LDL")


def blocks_per_multiprocessor(architecture, threads, registers, shared):
    """Occupancy, as cuda_occupancy.h counts it: registers in units of 256 per warp, warps in fours, shared memory in units of 128 bytes."""
    most_threads, most_blocks, shared_bytes = LIMITS[architecture]
    warps = -(-threads // 32)
    by_threads = most_threads // 32 // warps
    per_warp = -(-max(registers, 1) * 32 // 256) * 256
    by_registers = 65_536 // 4 // per_warp * 4 // warps
    by_shared = shared_bytes // (-(-(shared + 1024) // 128) * 128)
    return min(most_blocks, by_threads, by_registers, by_shared)


class Nvrtc:
    """NVRTC of the tools' folder."""

    def __init__(self, home):
        # By full path, and first: NVRTC looks for it by its name alone.
        ctypes.CDLL(str(next(home.glob("lib/libnvrtc-builtins.so.*"))), mode=ctypes.RTLD_GLOBAL)
        self.library = ctypes.CDLL(str(next(home.glob("lib/libnvrtc.so.*"))))

    def text_of(self, size_of, get, program):
        size = ctypes.c_size_t()
        size_of(program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        get(program, buffer)
        return buffer.raw

    def compile(self, name, text, architecture):
        """The image and the log of its assembler."""
        lib, program = self.library, ctypes.c_void_p()
        lib.nvrtcCreateProgram(ctypes.byref(program), text.encode(), name.encode(), 0, None, None)
        # The options of src/backend/cuda/compile/nvrtc.rs, and the assembler's table.
        options = [f"--gpu-architecture={architecture}", "--std=c++17", "--fmad=true", "--ptxas-options=-v"]
        array = (ctypes.c_char_p * len(options))(*[option.encode() for option in options])
        answer = lib.nvrtcCompileProgram(program, len(options), array)
        log = self.text_of(lib.nvrtcGetProgramLogSize, lib.nvrtcGetProgramLog, program).decode(errors="replace").rstrip("\0")
        if answer != 0:
            raise RuntimeError(f"{name} does not compile for {architecture}:\n{log}")
        image = self.text_of(lib.nvrtcGetCUBINSize, lib.nvrtcGetCUBIN, program)
        lib.nvrtcDestroyProgram(ctypes.byref(program))
        return image, log


def number(pattern, log, missing=None):
    found = re.search(pattern, log)
    if found is None and missing is None:
        raise RuntimeError(f"the assembler says nothing like {pattern!r}:\n{log}")
    return int(found.group(1)) if found else missing


def measure(job):
    """Compiles one instance for one architecture: what it needs, or what went wrong."""
    home, folder, kernel, architecture = job
    entry = kernel["entry"]
    try:
        image, log = Nvrtc(home).compile(f"{entry}.cu", (folder / f"{entry}.cu").read_text(), architecture)
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(image)
            file.flush()
            command = [str(home / "bin/nvdisasm"), "--print-code", file.name]
            code = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        names = re.findall(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\d+ )?([A-Z][A-Z0-9]*)", code, re.MULTILINE)
        if not names:
            raise RuntimeError(f"{entry}: the disassembler shows no instruction")
        registers = number(r"Used (\d+) registers", log)
        shared = kernel["shared_bytes"] + number(r"(\d+) bytes smem", log, 0)
        return entry, architecture, {
            "registers": registers,
            "shared": shared,
            "blocks": blocks_per_multiprocessor(architecture, kernel["threads"], registers, shared),
            "spills": number(r"(\d+) bytes spill stores", log) + number(r"(\d+) bytes spill loads", log),
            "complaints": re.findall(r"\(C\d+\) .*(?:Performance Loss|setmaxnreg).*", log),
            "instructions": {name: names.count(name) for name in set(names)},
        }
    except (RuntimeError, OSError, subprocess.CalledProcessError) as error:
        return entry, architecture, str(error)


def judge(entry, architecture, found, budget, must):
    """Everything in which a kernel breaks its budget."""
    where = f"{entry} {architecture}"
    wrong = [f"{where}: {found['spills']} bytes of spills"] if found["spills"] else []
    wrong += [f"{where}: {line}" for line in found["complaints"]]
    instructions = found["instructions"]
    wrong += [f"{where}: {instructions[name]} {name}: local memory" for name in LOCAL if name in instructions]
    for pattern, names in must.items():
        if fnmatch.fnmatchcase(entry, pattern):
            wrong += [f"{where}: no {name}, which {pattern} must have" for name in names if name not in instructions]
    if found["blocks"] == 0:
        wrong.append(f"{where}: not one block fits on a multiprocessor")
    if budget is None:
        return wrong + [f"{where}: no budget; --update writes one"]
    for name in ("registers", "shared"):
        if found[name] > budget[name]:
            wrong.append(f"{where}: {found[name]} {name}, budget {budget[name]}")
    if found["blocks"] < budget["blocks"]:
        wrong.append(f"{where}: {found['blocks']} blocks per multiprocessor, budget {budget['blocks']}")
    return wrong


def write(path, budget, results):
    """One line per instance, so that a change shows which."""
    lines = []
    for entry in sorted(results):
        row = {a: {name: found[name] for name in ("registers", "shared", "blocks")} for a, found in results[entry].items()}
        lines.append(f"    {json.dumps(entry)}: {json.dumps(row)}")
    must = ",\n".join(f"    {json.dumps(pattern)}: {json.dumps(names)}" for pattern, names in budget["must"].items())
    path.write_text('{\n  "must": {\n' + must + '\n  },\n  "instances": {\n' + ",\n".join(lines) + "\n  }\n}\n")


def main():
    parser = argparse.ArgumentParser(prog="cuda-resources", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("filter", nargs="?", default="", help="only instances whose name contains this text")
    parser.add_argument("--update", action="store_true", help="write what was measured to the budget")
    parser.add_argument("--tools", type=pathlib.Path, required=True, help="folder with bin/nvdisasm and lib/libnvrtc.so")
    parser.add_argument("--sources", type=pathlib.Path, required=True, help="folder that xattn cuda-sources wrote")
    parser.add_argument("--budget", type=pathlib.Path, default=pathlib.Path("kernels/budget.json"))
    arguments = parser.parse_args()

    budget = json.loads(arguments.budget.read_text())
    kernels = json.loads((arguments.sources / "kernels.json").read_text())
    chosen = [kernel for kernel in kernels if arguments.filter in kernel["entry"]]
    if not chosen:
        sys.exit(f"cuda-resources: no instance has {arguments.filter!r} in its name")
    jobs = [(arguments.tools, arguments.sources, kernel, a) for kernel in chosen for a in ARCHITECTURES if kernel["only"] in (None, a)]
    results, wrong, notes = {}, [], []
    print(f"{'instance':<36} {'for':<7} {'registers':>9} {'shared':>7} {'blocks':>6}  HMMA LDSM LDGSTS")
    with multiprocessing.Pool(os.cpu_count()) as pool:
        for entry, architecture, found in pool.imap(measure, jobs):
            if isinstance(found, str):
                wrong.append(found)
                continue
            results.setdefault(entry, {})[architecture] = found
            count = [found["instructions"].get(name, 0) for name in ("HMMA", "LDSM", "LDGSTS")]
            columns = f"{found['registers']:>9} {found['shared']:>7} {found['blocks']:>6}  {count[0]:>4} {count[1]:>4} {count[2]:>6}"
            print(f"{entry:<36} {architecture:<7} {columns}", flush=True)
            kept = budget["instances"].get(entry, {}).get(architecture)
            if arguments.update:
                kept = {name: found[name] for name in ("registers", "shared", "blocks")}
            wrong += judge(entry, architecture, found, kept, budget["must"])
            if kept is not None and (found["registers"] < kept["registers"] or found["blocks"] > kept["blocks"]):
                notes.append(f"{entry} {architecture}: needs less than its budget")
    if not arguments.filter:
        names = {kernel["entry"] for kernel in kernels}
        for pattern in budget["must"]:
            if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
                wrong.append(f"must: no instance is called {pattern}")
        if not arguments.update:
            wrong += [f"{name}: has a budget, but is no instance any more" for name in budget["instances"] if name not in names]
    if arguments.update:
        kept = {} if not arguments.filter else budget["instances"]
        write(arguments.budget, budget, kept | results)
    for note in notes:
        print(f"note: {note}")
    for line in wrong:
        print(f"WRONG: {line}")
    print(f"{len(chosen)} instances, {len(ARCHITECTURES)} architectures, {len(wrong)} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
