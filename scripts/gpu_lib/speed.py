"""The stages that time kernels of ours on CUDA: bench and variants."""

import json

from gpu_lib import cases
from gpu_lib.stage import ended
from gpu_lib.variables import DEPENDENT, words_of

# What the reports of `xattn bench` say of the device.
MEASURED = ("roofs", "multiprocessors", "l2_bytes", "compute_capability", "details")
# Cases per process, and seconds for each until it counts as hung.
GROUP, CASE = 8, 45
# A process's message about the cases after it lost the device: another process runs them.
LOST = "the device was lost before"
REFUSALS = ("is not supported by", "is unavailable", "out of memory", "cannot run here")


def judge(status, text):
    """A case that a device or a kernel cannot serve is refused, in its own words; a check that fails is a failure."""
    if status == 0:
        return "passed", None
    said = [line for line in text.split("\n") if line.startswith(("error:", "cannot run here:"))]
    if said and any(words in said[-1] for words in REFUSALS):
        return "refused", said[-1].removeprefix("error: ")
    return "failed", (said or text.strip().split("\n"))[-1]


def records_of(file):
    """What a bench has written so far: its report, or nothing while it writes."""
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError):
        return {"cases": []}


def verdict_of(records):
    """Of one case's records: whether it was timed, failed its check, or cannot run."""
    for word, verdict in (("failed", "failed"), ("refused", "refused")):
        for record in records:
            if record.get(word):
                return verdict, "; ".join(record[word]) if isinstance(record[word], list) else record[word]
    return "passed", None


class Timed:
    """Cases that one process after another times. Each is a step of the stage as soon as its records are there."""

    def __init__(self, stage, names, dtype, step_of, environment=None, mark=None):
        self.stage, self.pending, self.dtype, self.step_of = stage, list(names), dtype, step_of
        self.environment, self.mark = environment or {}, mark or {}
        self.file = stage.arguments.out / "case.json"

    def take(self, finished):
        """Makes steps of the pending cases that have records, the last one of which may be half done while the process runs. Says whether the process
        lost the device, and with it the others."""
        report = records_of(self.file)
        self.stage.report |= {key: report[key] for key in MEASURED if key in report}
        seen = [record["case"] for record in report["cases"]]
        for name in list(self.pending):
            if name not in seen or (not finished and seen[-1] == name):
                break
            records = [{**record, **self.mark} for record in report["cases"] if record["case"] == name]
            verdict, reason = verdict_of(records)
            if reason == LOST:
                return True
            self.pending.remove(name)
            self.stage.report["cases"] += [record for record in records if not record.get("refused")]
            self.put(name, verdict, reason)
        return False

    def put(self, name, verdict, reason, **more):
        self.stage.put(self.step_of(name), verdict=verdict, **({"reason": reason} if reason else {}), **more)

    def run(self):
        """Runs processes until every case has its step. One that ends before its cases do costs the case at which it ended."""
        while self.pending:
            left = self.stage.left()
            if left < 1:
                for name in self.pending:
                    self.put(name, "left out", f"no time: this stage had {self.stage.seconds:.0f} s")
                return
            group, rest = self.pending[:GROUP], self.pending[GROUP:]
            self.pending = group
            self.file.unlink(missing_ok=True)
            options = ["--dtype", self.dtype, "--filter", ",".join(group), "--json", self.file]
            command = self.stage.xattn("bench", "--device", "cuda", *options)
            seconds = min(left, CASE * len(group) + CASE)
            status, text = ended(command, seconds, self.environment, lambda: self.take(False))
            lost = self.take(True)
            if self.pending and not lost:
                name = self.pending.pop(0)
                late = status is None and left <= seconds
                verdict, reason = ("no time", f"stopped after {seconds:.0f} s") if late else judge(status, text)
                # A process that succeeded has reported every case.
                verdict = "failed" if verdict == "passed" else verdict
                self.put(name, verdict, reason, status=status, command=" ".join(map(str, command)), said=text.strip().split("\n")[-12:])
            self.pending += rest
        self.file.unlink(missing_ok=True)


def known_or_refused(stage, names, step_of):
    """Those that the binary has; the others become steps that say so."""
    known = cases.listed(stage.arguments.xattn)
    for name in names:
        if name not in known:
            stage.put(step_of(name), verdict="refused", reason="this binary has no such case")
    return [name for name in names if name in known]


def chosen(stage, names):
    return [name for name in names if stage.arguments.filter in name]


def bench(stage):
    """Every case, cold and warm, in order of value."""
    names = [("bf16", name) for name in cases.EMULATED] if stage.arguments.emulated else cases.BENCHED
    stage.report |= {key: stage.kept[key] for key in MEASURED if key in stage.kept}
    stage.report["cases"] = stage.kept_records(lambda record: f"{record['case']} {record['dtype']}")
    for dtype in dict.fromkeys(dtype for dtype, _ in names):
        def step_of(name, dtype=dtype):
            return f"{name} {dtype}"

        asked = [name for name in chosen(stage, (name for d, name in names if d == dtype)) if step_of(name) not in stage.settled]
        Timed(stage, known_or_refused(stage, asked, step_of), dtype, step_of).run()
        stage.write()


def forms_of(name, words, emulated=False):
    """Every kernel that may serve a case: its name and the variables that ask for it. An emulated device is asked for each, to be refused by some."""
    if emulated:
        return {variant: {"XATTN_CUDA_ATTENTION": variant} for variant in words["XATTN_CUDA_ATTENTION"]}
    if name in cases.ATTENTION:
        variants = [variant for variant in cases.attention_variants(name) if variant in words["XATTN_CUDA_ATTENTION"]]
        return {variant: {"XATTN_CUDA_ATTENTION": variant} for variant in variants}
    if cases.is_block(name):
        # Small cases are bound by launches and by the loads that few blocks keep in flight, large
        # ones by GEMMs.
        own = [word for word in words["XATTN_CUDA_LINEAR"] if ("deep" if cases.is_small(name) else "hopper") in word]
        forms = {"dependent launches": DEPENDENT, "cublaslt": {"XATTN_CUDA_CUBLASLT": "on"},
                 "two-pass": {"XATTN_CUDA_CUBLASLT": "two-pass"}}
        return forms | {f"linear {word}": {"XATTN_CUDA_LINEAR": word} for word in own}
    own = [word for word in words["XATTN_CUDA_LINEAR"] if word != "auto"]
    forms = {f"linear {word}": {"XATTN_CUDA_LINEAR": word, "XATTN_CUDA_CUBLASLT": "off"} for word in own}
    return forms | {"cublaslt": {"XATTN_CUDA_CUBLASLT": "on"}, "two-pass": {"XATTN_CUDA_CUBLASLT": "two-pass"}}


def variants(stage):
    """The same cases by each kernel that may serve them, and which was the fastest; `table` is what the backend chooses by itself."""
    words = {variable: words_of(stage, variable) for variable in ("XATTN_CUDA_ATTENTION", "XATTN_CUDA_LINEAR")}
    names = ["attention/openflamingo-decode/b1-n4"] if stage.arguments.emulated else [*cases.VARIED_ATTENTION, *cases.VARIED_PRODUCTS, *cases.VARIED_BLOCKS]
    by_table = load(stage.arguments.out / "bench.json").get("cases", [])
    stage.report |= {"words": words, "cases": stage.kept_records(lambda record: f"{record['case']} by {record['variant']}"), "fastest": []}
    names = known_or_refused(stage, chosen(stage, names), str)
    asked = {}
    for name in names:
        for variant, environment in forms_of(name, words, stage.arguments.emulated).items():
            asked.setdefault(variant, (environment, []))[1].append(name)
    # Cases that no GPU has measured yet come first.
    for variant, (environment, served) in sorted(asked.items(), key=lambda item: "hopper" not in item[0]):
        def step_of(name, variant=variant):
            return f"{name} by {variant}"

        Timed(stage, [name for name in served if step_of(name) not in stage.settled], "bf16", step_of, environment, {"variant": variant}).run()
        table = [{**r, "variant": "table"} for r in by_table if r["dtype"] == "bf16"]
        stage.report["fastest"] = [row for name in names for row in fastest(name, table + stage.report["cases"])]
        stage.write()


def fastest(name, records):
    """Of a case, cold and warm: which kernel was the fastest, and the times of all."""
    rows = []
    for cold in (True, False):
        times = {r["variant"]: r["median_us"] for r in records if r["case"] == name and r.get("cold") == cold and r.get("median_us") is not None}
        if times:
            rows.append({"case": name, "cold": cold, "fastest": min(times, key=times.get), "times_us": times})
    return rows


def table_of_fastest(rows):
    lines = [f"{'case':<44} {'L2':<4} fastest"]
    for row in rows:
        times = ", ".join(f"{variant} {us:.2f}" for variant, us in sorted(row["times_us"].items(), key=lambda item: item[1]))
        lines.append(f"{row['case']:<44} {'cold' if row['cold'] else 'warm':<4} {times}")
    return lines if rows else []


def load(path):
    return json.loads(path.read_text()) if path.exists() else {}
