"""The loops of the CUDA kernels as the assembler left them, compiled without a device, and what they issue by class of instruction.

    scripts/cuda-sass [FILTER] [--arch sm_90a] [--loop] [--code]
    scripts/cuda-sass --self-check                                     counts a text whose loops are known

Each instance is compiled as scripts/cuda-resources compiles it, and disassembled. Loops are the natural loops of its control flow: a branch back to
a block that every way to the branch goes through. Each has a line, indented under the loop around it:

    all     instructions of the loop, without those of the loops inside it
    path    of these, the ones that a warp issues on the best way round: most tensor core products, then most 16-byte accesses to global memory,
            then most multiply-adds and packings, then fewest instructions. Slow ways (elements read one by one, masks, divergence) are not on
            it. Loops inside have lines of their own.

and, of the path, by class:

    mma     HMMA, HGMMA, IMMA                       ldsm    LDSM, STSM (matrices from and to shared memory)
    g128 g  LDG, LDGSTS, STG of 16 bytes; narrower  lds     LDS, STS, ATOMS
    mufu    MUFU and conversions of that unit       fp32    FFMA, FADD, FMUL, FMNMX, FSEL, FSETP; 16-bit arithmetic and packing
    int     IMAD, IADD3, LOP3, SHF, LEA, ISETP ...  int64   of these, the ones that carry or widen to 64 bits: address arithmetic
    uni     uniform registers, constants            shfl    SHFL, VOTE, MATCH, REDUX
    bar     BAR, DEPBAR, WARPSYNC, convergence      bra     branches, calls, exits

The first line of a kernel is what lies outside of all loops. --loop leaves it out; --code prints each loop's path instead of counts.
"""

import argparse
import collections
import dataclasses
import json
import multiprocessing
import os
import pathlib
import re
import subprocess
import sys
import tempfile

from cuda_resources import ARCHITECTURES, Nvrtc

CLASSES = ("mma", "ldsm", "g128", "g", "lds", "mufu", "fp32", "int", "int64", "uni", "shfl", "bar", "bra")
# Classes by the first word of an opcode; others are `int`. The words behind it decide int64.
OPCODES = {
    "mma": {"HMMA", "HGMMA", "IMMA", "QGMMA", "DMMA"},
    "ldsm": {"LDSM", "STSM"},
    "lds": {"LDS", "STS", "ATOMS", "LDL", "STL"},
    "mufu": {"MUFU", "I2F", "F2I", "F2F", "FRND", "I2FP", "FLO", "POPC"},
    "fp32": {"FFMA", "FADD", "FMUL", "FMNMX", "FSEL", "FSETP", "FSET", "FCHK", "FSWZADD", "F2FP", "HADD2", "HMUL2", "HFMA2", "HMNMX2", "HSETP2"},
    "shfl": {"SHFL", "VOTE", "VOTEU", "MATCH", "REDUX"},
    "bar": {"BAR", "DEPBAR", "LDGDEPBAR", "WARPSYNC", "WARPGROUP", "BSSY", "BSYNC", "BREAK", "SYNCS", "MEMBAR", "FENCE", "NOP", "YIELD",
            "ARRIVES", "ERRBAR", "CCTL", "WARPGROUPSET"},
    "bra": {"BRA", "BRX", "EXIT", "CALL", "RET", "JMP", "BMOV", "KILL", "RPCMOV"},
    "uni": {"LDC", "ULDC", "S2UR", "R2UR", "S2R", "CS2R", "UMOV"},
}
CLASS_OF = {opcode: name for name, opcodes in OPCODES.items() for opcode in opcodes}
GLOBAL = {"LDG", "STG", "LDGSTS", "LD", "ST", "RED", "ATOMG", "ATOM", "UBLKCP", "UTMALDG"}


@dataclasses.dataclass
class Instruction:
    offset: int
    predicate: str
    opcode: str
    text: str

    def word(self):
        return self.opcode.split(".")[0]

    def classes(self):
        """One class, and int64 beside int."""
        word, rest = self.word(), self.opcode.split(".")[1:]
        if word in GLOBAL:
            return ["g128" if "128" in rest or word.startswith("U") else "g"]
        if word in CLASS_OF:
            return [CLASS_OF[word]]
        if word.startswith("U"):
            return ["uni"]
        return ["int", "int64"] if {"WIDE", "X", "64", "U64", "HI"} & set(rest) else ["int"]


@dataclasses.dataclass
class Block:
    """A basic block: instructions, and the numbers of the blocks that may follow."""

    code: list
    follow: list


class SassError(Exception):
    pass


LINE = re.compile(r"^\s+/\*([0-9a-f]+)\*/\s+(?:(@!?U?P\w+)\s+)?([A-Z][A-Z0-9_.]*)(.*?)\s*;")
LABEL = re.compile(r"^(\.L_x_\d+):")
# Jumps taken only by diverged warps: never on a counted path, but blocks behind them exist.
DIVERGED = "BRA.DIV"


def blocks_of(text, entry):
    """The control flow of `entry` in what nvdisasm printed."""
    body = re.search(rf"^\.text\.{re.escape(entry)}:$(.*?)(?=^//-----|\Z)", text, re.MULTILINE | re.DOTALL)
    if body is None:
        raise SassError(f"{entry}: the disassembly has no section of that name")
    code, labels = [], {}
    for line in body.group(1).splitlines():
        if label := LABEL.match(line):
            labels[label.group(1)] = len(code)
        elif found := LINE.match(line):
            offset, predicate, opcode, rest = found.groups()
            code.append(Instruction(int(offset, 16), predicate or "", opcode, f"{predicate or '':<6}{opcode} {rest.strip()}"))
    if not code:
        raise SassError(f"{entry}: the disassembly shows no instruction")

    begins = {0} | set(labels.values())
    begins |= {n + 1 for n, i in enumerate(code) if i.word() in ("BRA", "EXIT", "RET", "BRX", "KILL")}
    begins = sorted(n for n in begins if n < len(code))
    number = {begin: n for n, begin in enumerate(begins)}
    blocks = []
    for n, begin in enumerate(begins):
        end = begins[n + 1] if n + 1 < len(begins) else len(code)
        last = code[end - 1]
        follow = []
        if last.word() in ("BRA", "BRX"):
            # An indirect branch lists what it may reach.
            targets = re.findall(r"\.L_x_\d+", last.text)
            if not targets or any(target not in labels for target in targets):
                raise SassError(f"{entry}: a branch to nowhere at {last.offset:#x}: {last.text}")
            follow += [number[labels[target]] for target in targets if labels[target] < len(code)]
        # A branch may fall through if it has a condition: a predicate in front or among its
        # operands, or divergence.
        always = not last.predicate and last.opcode != DIVERGED and not re.search(r"\bBRA(\.\w+)* !?U?P\d", last.text)
        if not (last.word() in ("BRA", "BRX", "EXIT", "RET", "KILL") and always) and end < len(code):
            follow.append(number[end])
        blocks.append(Block(code[begin:end], follow))
    return blocks


@dataclasses.dataclass
class Loop:
    """A natural loop; the outermost `loop` of a kernel is the kernel itself."""

    head: int
    members: set
    inside: list = dataclasses.field(default_factory=list)


def loops_of(blocks):
    """The tree of loops, its root the whole kernel."""
    order, seen, stack = [], {0}, [(0, iter(blocks[0].follow))]
    while stack:
        block, rest = stack[-1]
        following = next((f for f in rest if f not in seen), None)
        if following is None:
            order.append(block)
            stack.pop()
        else:
            seen.add(following)
            stack.append((following, iter(blocks[following].follow)))
    order.reverse()
    before = collections.defaultdict(set)
    for block in order:
        for following in blocks[block].follow:
            before[following].add(block)
    everything = set(order)
    dominators = {block: everything for block in order} | {0: {0}}
    changed = True
    while changed:
        changed = False
        for block in order[1:]:
            new = {block} | set.intersection(*(dominators[b] for b in before[block]))
            changed |= new != dominators[block]
            dominators[block] = new
    found = {}
    for block in order:
        for head in blocks[block].follow:
            if head in dominators[block]:
                members, todo = found.setdefault(head, {head}), [block]
                while todo:
                    member = todo.pop()
                    if member not in members:
                        members.add(member)
                        todo += before[member]
    root = Loop(-1, everything)
    for head, members in sorted(found.items(), key=lambda item: -len(item[1])):
        around = root
        while inner := next((loop for loop in around.inside if members < loop.members), None):
            around = inner
        around.inside.append(Loop(head, members))
    return root


def worth(code):
    """What makes one way better than another: see the head of this file."""
    names = [name for i in code for name in i.classes()]
    return names.count("mma"), names.count("g128"), sum(i.word() in ("FFMA", "F2FP") for i in code), -len(code)


def path_of(blocks, loop):
    """The instructions of the best way through a loop's own blocks, in order. Loops inside count as points that it passes."""
    inner = {member: n for n, inside in enumerate(loop.inside) for member in inside.members}

    def node(block):
        return ("loop", inner[block]) if block in inner else ("block", block)

    # An inner loop's tensor core products alone decide the path.
    value, code, follow = {}, {}, collections.defaultdict(set)
    for n, inside in enumerate(loop.inside):
        value["loop", n] = (worth([i for member in inside.members for i in blocks[member].code])[0], 0, 0, 0)
        code["loop", n] = []
    start = node(0 if loop.head < 0 else loop.head)
    for block in loop.members:
        if block not in inner:
            value["block", block], code["block", block] = worth(blocks[block].code), blocks[block].code
        for following in blocks[block].follow:
            diverges = blocks[block].code[-1].opcode == DIVERGED and following == blocks[block].follow[0]
            if following in loop.members and following != loop.head and node(following) != node(block) and not diverges:
                follow[node(block)].add(node(following))
    best, busy = {}, set()

    def from_here(at):
        if at not in best:
            # A cycle that is no natural loop, which is not expected, ends where it begins.
            busy.add(at)
            ways = [from_here(f) for f in sorted(follow[at]) if f not in busy]
            busy.discard(at)
            further, way = max(ways, key=lambda w: w[0], default=((0, 0, 0, 0), []))
            best[at] = (tuple(a + b for a, b in zip(value[at], further)), [at, *way])
        return best[at]

    return [i for at in from_here(start)[1] for i in code[at]]


def counts(code):
    return collections.Counter(name for i in code for name in i.classes())


def walk(loop, depth=0):
    """A loop and those inside it, outermost first."""
    yield depth, loop
    for inside in sorted(loop.inside, key=lambda l: l.head):
        yield from walk(inside, depth + 1)


def disassemble(home, image):
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(image)
        file.flush()
        command = [str(home / "bin/nvdisasm"), "--print-code", file.name]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def report(job):
    """The text about one instance, and whether it could be made."""
    home, folder, entry, architecture, arguments = job
    try:
        image, _ = Nvrtc(home).compile(f"{entry}.cu", (folder / f"{entry}.cu").read_text(), architecture)
        blocks = blocks_of(disassemble(home, image), entry)
    except (RuntimeError, OSError, SassError, subprocess.CalledProcessError) as error:
        return str(error), False
    lines = [f"{entry} {architecture}"]
    for depth, loop in walk(loops_of(blocks)):
        if depth == 0 and arguments.loop:
            continue
        inner = set().union(*(inside.members for inside in loop.inside))
        own, path = [i for block in loop.members - inner for i in blocks[block].code], path_of(blocks, loop)
        found = counts(path)
        name = "kernel" if depth == 0 else f"{'  ' * (depth - 1)}loop {min(i.offset for b in loop.members for i in blocks[b].code):#x}"
        lines.append(f"  {name:<22} {len(own):>5} {len(path):>5}  " + " ".join(f"{found[c]:>5}" for c in CLASSES))
        if arguments.code:
            lines += [f"      {i.offset:#06x} {i.text}" for i in path]
    return "\n".join(lines), True


# Output of nvdisasm for a kernel with two nested loops. In the inner one, a branch skips two of
# three paths.
KNOWN = """
.text.known:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/                   ULDC.64 UR4, c[0x0][0x208] ;
.L_x_1:
        /*0020*/                   IMAD.WIDE.U32 R2, R3, 0x2, R4 ;
        /*0030*/                   LDG.E.128 R8, desc[UR4][R2.64] ;
        /*0040*/                   BRA.DIV UR6, `(.L_x_6) ;
.L_x_2:
        /*0050*/                   ISETP.NE.AND P0, PT, R3, RZ, PT ;
        /*0060*/              @!P0 BRA `(.L_x_3) ;
        /*0070*/                   LDG.E.U16 R6, desc[UR4][R2.64] ;
        /*0080*/                   FADD R6, R6, R6 ;
        /*0090*/                   BRA `(.L_x_4) ;
.L_x_3:
        /*00a0*/                   BSSY B0, `(.L_x_5) ;
        /*00b0*/                   HMMA.16816.F32.BF16 R12, R8, R6, RZ ;
        /*00c0*/                   HMMA.16816.F32.BF16 R12, R8, R6, R12 ;
        /*00d0*/                   MUFU.EX2 R12, R12 ;
.L_x_5:
        /*00e0*/                   BSYNC B0 ;
.L_x_4:
        /*00f0*/               @P1 BRA `(.L_x_2) ;
        /*0100*/                   LDGSTS.E.BYPASS.128 [R5], desc[UR4][R2.64], P0 ;
        /*0110*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;
        /*0120*/              @!P2 BRA P3, `(.L_x_1) ;
        /*0130*/                   EXIT ;
.L_x_6:
        /*0140*/                   SHFL.BFLY PT, R7, R7, 0x1, 0x1f ;
        /*0150*/                   BRA `(.L_x_2) ;
.L_x_7:
        /*0160*/                   BRA `(.L_x_7);
"""
# For each loop: depth, own instructions, classes of its path.
EXPECTED = [
    (0, 3, {"uni": 2, "bra": 1}),
    (1, 8, {"int": 1, "int64": 1, "g128": 2, "bra": 2, "bar": 1}),
    (2, 11, {"int": 1, "mma": 2, "mufu": 1, "bar": 2, "bra": 2}),
]


def self_check():
    blocks = blocks_of(KNOWN, "known")
    found = []
    for depth, loop in walk(loops_of(blocks)):
        inner = set().union(*(inside.members for inside in loop.inside))
        own = sum(len(blocks[block].code) for block in loop.members - inner)
        found.append((depth, own, dict(counts(path_of(blocks, loop)))))
    if found != EXPECTED:
        raise SystemExit(f"cuda-sass: the known text counts as\n{found}\nexpected\n{EXPECTED}")
    for broken, why in (("known", "a branch to nowhere at 0x150"), ("other", "no section of that name")):
        try:
            blocks_of(KNOWN.replace("`(.L_x_2) ;\n.L_x_7", "`(.L_x_9) ;\n.L_x_7"), broken)
        except SassError as error:
            if why in str(error):
                continue
        raise SystemExit(f"cuda-sass: a broken text is not refused: {why}")
    print("cuda-sass: the known text counts as expected")


def main():
    if "--self-check" in sys.argv[1:]:
        return self_check()
    parser = argparse.ArgumentParser(prog="cuda-sass", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("filter", nargs="?", default="", help="only instances whose name contains this text")
    parser.add_argument("--arch", default="sm_90a", choices=ARCHITECTURES, help="what to compile for (default: sm_90a)")
    parser.add_argument("--loop", action="store_true", help="loops only, not what lies outside of them")
    parser.add_argument("--code", action="store_true", help="the instructions of each path too")
    parser.add_argument("--self-check", action="store_true", help="count a text whose loops are known, alone")
    parser.add_argument("--tools", type=pathlib.Path, required=True, help="folder with bin/nvdisasm and lib/libnvrtc.so")
    parser.add_argument("--sources", type=pathlib.Path, required=True, help="folder that xattn cuda-sources wrote")
    arguments = parser.parse_args()

    names = [kernel["entry"] for kernel in json.loads((arguments.sources / "kernels.json").read_text())]
    chosen = [name for name in names if arguments.filter in name]
    if not chosen:
        sys.exit(f"cuda-sass: no instance has {arguments.filter!r} in its name")
    print(f"  {'':<22} {'all':>5} {'path':>5}  " + " ".join(f"{c:>5}" for c in CLASSES))
    failed = 0
    jobs = [(arguments.tools, arguments.sources, name, arguments.arch, arguments) for name in chosen]
    with multiprocessing.Pool(min(os.cpu_count(), len(jobs))) as pool:
        for text, good in pool.imap(report, jobs):
            print(text if good else f"WRONG: {text}", flush=True)
            failed += not good
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
