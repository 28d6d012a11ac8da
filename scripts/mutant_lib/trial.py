"""Runs checks, without a mutant and with each, and says how it went."""

import dataclasses
import hashlib
import json
import os
import pathlib
import resource
import signal
import subprocess
import tempfile
import time

from mutant_lib import checks, plant
from mutant_lib.checks import CHECKS

# A mutant's check may take this factor longer than without, and at least so many seconds.
FACTOR, LEAST = 5, 60
# Seconds for a check without a mutant.
LONGEST = 1800
# A process with more output than this does not end.
MOST_BYTES = 64 << 20
# Seconds between looks at a check's output.
PAUSE = 0.05


@dataclasses.dataclass
class Outcome:
    passed: bool
    seconds: float
    # The first failing line, or how it ended.
    line: str = ""
    # Why it cannot run here.
    skipped: str = ""


def limits():
    """No core files: crashes are expected."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def end(process):
    """Ends a check and all that it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


def run_check(tree, command, environment, seconds):
    """Runs a command until it ends, says that it fails, or its time is up. Output goes to a file: nobody waits for what may stay behind."""
    started = time.monotonic()
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            command, cwd=tree, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
            preexec_fn=limits,
        )
        size, rest, skipped, telling, failing, hangs = 0, "", "", "", "", ""
        try:
            while True:
                status = process.poll()
                data = os.pread(output.fileno(), MOST_BYTES, size)
                size += len(data)
                *lines, rest = (rest + data.decode(errors="replace")).split("\n")
                if status is not None and rest:
                    lines.append(rest)
                skipped = skipped or next((m[1] for m in map(checks.SKIPPED.search, lines) if m), "")
                telling = telling or next((line.strip() for line in lines if checks.TELLING.search(line)), "")
                failing = next((line.strip() for line in lines if checks.FAILING.search(line)), "")
                spent = time.monotonic() - started
                if spent > seconds:
                    hangs = f"hangs: not done after {seconds:.0f} s"
                elif size > MOST_BYTES:
                    hangs = f"does not end: said more than {MOST_BYTES >> 20} MiB"
                if failing or hangs or (status is not None and not data):
                    break
                if status is None:
                    time.sleep(PAUSE)
        finally:
            end(process)
    spent = time.monotonic() - started
    if failing or hangs:
        return Outcome(False, spent, failing or hangs)
    if status:
        how = f"ended by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
        return Outcome(False, spent, f"{telling} ({how})" if telling else how)
    return Outcome(True, spent, skipped=skipped)


def needed(mutants, full):
    """The checks that some mutant meets, in the order in which they are first named."""
    named = [check for m in mutants for check in [*m.checks, *(m.full if full else [])]]
    unknown = [check for check in named if check not in CHECKS]
    if unknown:
        raise plant.Stale(f"tests/mutants: no check {unknown[0]}; there are {', '.join(CHECKS)}")
    return list(dict.fromkeys(named))


class Baseline:
    """What checks do without a mutant: run when first needed, and remembered as long as the executable is the same."""

    def __init__(self, tree, built):
        self.tree, self.built = tree, built
        self.file = plant.target() / "mutants" / "baseline.json"
        self.known = json.loads(self.file.read_text()) if self.file.exists() else {}
        self.digests = {}

    def key(self, name, op):
        path = self.built[CHECKS[name].needs]
        if path not in self.digests:
            self.digests[path] = hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()
        return f"{name} {op if CHECKS[name].by_op else ''} {self.digests[path]}"

    def of(self, name, op):
        key = self.key(name, op)
        if key not in self.known:
            check = CHECKS[name]
            outcome = run_check(self.tree, check.command(self.built, op), checks.environment(check, None, None), LONGEST)
            print(f"    without a mutant: {name} {op if check.by_op else ''}: {said(outcome)}, {outcome.seconds:.1f} s", flush=True)
            self.known[key] = dataclasses.asdict(outcome)
            lasting = {key: o for key, o in self.known.items() if o["passed"] and not o["skipped"]}
            self.file.write_text(json.dumps(lasting, indent=1) + "\n")
        return Outcome(**self.known[key])

    def unchanged(self):
        """Whether the command is still the one that was built: another build of the same folder replaces it."""
        path = self.built.get("xattn")
        if path not in self.digests:
            return True
        return self.digests[path] == hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()


def said(outcome):
    if outcome.skipped:
        return f"skipped ({outcome.skipped})"
    return "passed" if outcome.passed else f"FAILED: {outcome.line}"


def meet(tree, built, baseline, mutant, names):
    """Runs one mutant's checks in order until one fails: name and outcome of that one, what was passed, and whether the code was reached."""
    passed = []
    reached = plant.target() / "mutants" / "reached"
    reached.unlink(missing_ok=True)
    for name in names:
        before = baseline.of(name, mutant.op)
        if before.skipped or not before.passed:
            continue
        check = CHECKS[name]
        seconds = max(LEAST, FACTOR * before.seconds)
        environment = checks.environment(check, mutant.name, reached)
        outcome = run_check(tree, check.command(built, mutant.op), environment, seconds)
        if not outcome.passed:
            return name, outcome, passed, reached.exists()
        passed.append((name, outcome.seconds))
    return None, None, passed, reached.exists()


def run(tree, built, mutants, names, full, only_baseline):
    """All mutants, one after the other, and the table. The exit status."""
    baseline = Baseline(tree, built)
    table, bad = {}, []
    for mutant in mutants:
        order = [*mutant.checks, *(check for check in mutant.full if full and check not in mutant.checks)]
        for name in order if only_baseline else []:
            if not baseline.of(name, mutant.op).passed:
                bad.append(f"{name} fails without a mutant")
        if only_baseline:
            continue
        name, outcome, passed, reached = meet(tree, built, baseline, mutant, order)
        if not baseline.unchanged():
            print("mutants: error: another build has replaced the command meanwhile; run this again")
            return 1
        row = table.setdefault(mutant.area, {"planted": 0, "caught": 0, "survived": 0, "equivalent": 0})
        row["planted"] += 1
        before = f" (passed: {', '.join(f'{n} {s:.0f} s' for n, s in passed)})" if passed else ""
        if outcome:
            kind, text = "caught", f"caught by {name}, {outcome.seconds:.1f} s: {outcome.line[:200]}{before}"
            if mutant.equivalent or mutant.survives:
                text = f"caught, and marked {'equivalent' if mutant.equivalent else 'a survivor'}: mend its entry; {text}"
        elif mutant.equivalent:
            kind, text = "equivalent", f"equivalent: {mutant.equivalent}{before}"
        else:
            kind, text = "survived", f"SURVIVED{'' if reached else ', never reached'}{' (known: ' + mutant.survives + ')' if mutant.survives else ''}{before}"
            if not mutant.survives:
                bad.append(f"{mutant.name} survives")
        row[kind] += 1
        print(f"{mutant.name}: {mutant.concept}\n    {text}", flush=True)
    failing = [f"{key.split()[0]} fails without a mutant" for key, o in baseline.known.items() if not o["passed"]]
    print("\n| area | planted | caught | survived | equivalent |\n|---|---|---|---|---|")
    everything = {"all": {kind: sum(row[kind] for row in table.values()) for kind in ("planted", "caught", "survived", "equivalent")}}
    for area, row in (table | everything).items():
        print(f"| {area} | {row['planted']} | {row['caught']} | {row['survived']} | {row['equivalent']} |")
    for text in dict.fromkeys(bad + failing):
        print(f"mutants: {text}")
    return 1 if bad or failing else 0
