"""PyTorch's counterparts of the cases that `scripts/gpu bench` times, timed the same way: in a captured graph, cold, the median of 20 replays.

    python scripts/gpu_peers.py --out peers.json [--xattn FILE] [--bench bench.json] [--filter TEXT] [--seconds N]
    python scripts/gpu_peers.py --out peers.json --check      on a processor: small shapes, values compared, no time told

Attention: scaled_dot_product_attention with each backend forced, and a dense mask where a rule needs one; FlexAttention with block masks of
several sizes, whose making is timed apart; flash attention over variable lengths, under the media rule with one sequence per run of text and its
medium. Products: bare ones of cuBLASLt, of every shape that the steps in bench.json name; chains of what `linear` and a gated FFN fuse. Blocks:
public modules eagerly and under torch.compile. A form that cannot serve a case is listed with its reason, one that had no time as left out.
"""

import argparse
import json
import os
import pathlib
import queue
import signal
import subprocess
import sys
import threading
import time

from gpu_lib import cases, peer_jobs, peer_worker
from gpu_lib.delivery import put
from gpu_lib.stage import aside

# The longest start of a worker: it imports PyTorch.
STARTS = 90


class Worker:
    """A process that measures one form at a time, and is replaced when one hangs or breaks the device."""

    def __init__(self, command):
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, errors="replace")
        self.process = subprocess.Popen(command, **pipes, start_new_session=True)
        self.lines = queue.Queue()
        threading.Thread(target=self.read, daemon=True).start()
        try:
            self.about = self.answer(STARTS)
        except queue.Empty:
            self.about = None

    def read(self):
        for line in self.process.stdout:
            if line.startswith(peer_worker.ANSWER):
                self.lines.put(json.loads(line.removeprefix(peer_worker.ANSWER)))
        self.lines.put(None)

    def answer(self, seconds):
        """The next answer; None where the process ended without one. Raises queue.Empty where it takes too long."""
        return self.lines.get(timeout=seconds)

    def ask(self, job, seconds):
        try:
            self.process.stdin.write(json.dumps(job) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            return None
        return self.answer(seconds)

    def end(self):
        """With the compilers that it may have started."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()


class Workers:
    """One worker, and another after a fault."""

    def __init__(self, command):
        self.command, self.worker = command, None

    def about(self):
        """What a worker says of PyTorch and the device; None where none starts."""
        self.worker = self.worker or Worker(self.command)
        return self.worker.about

    def measured(self, job, seconds):
        """What became of a job."""
        try:
            self.about()
            answer = self.worker.ask(job, seconds)
        except queue.Empty:
            self.end()
            return {"value": f"left out: not done within {seconds:.0f} s", "notes": {}}
        if answer is None:
            status = self.worker.process.wait()
            self.end()
            return {"value": f"refused: the process ended with status {status}", "notes": {}}
        if answer.get("fatal"):
            self.end()
        return answer

    def noted(self, job, left):
        """The same, at most as long as the job may take, with the seconds that it took."""
        began = time.monotonic()
        answer = self.measured(job, min(job["seconds"], left))
        if job["kind"] == "block" and "captur" in str(answer["value"]):
            # A module that waits for the device cannot be captured: its record says that it is
            # timed call by call.
            answer = self.measured({**job, "captured": False}, max(min(job["seconds"], left - (time.monotonic() - began)), 1))
            answer["notes"]["captured"] = False
        answer["notes"]["seconds"] = round(time.monotonic() - began, 1)
        return answer

    def end(self):
        if self.worker:
            self.worker.end()
        self.worker = None


class Report:
    """The file: a map of forms for each case, and bare products by shape. What another call found on the same device stays."""

    def __init__(self, path, about):
        self.path = path
        self.values = {**about, "cases": {}, "products": {}, "notes": {}}
        if path.exists():
            earlier = json.loads(path.read_text())
            if all(earlier.get(key) == about[key] for key in about):
                self.values |= {key: earlier.get(key, {}) for key in ("cases", "products", "notes")}
            else:
                aside(path)

    def settled(self, job):
        value = self.place(job).get(self.key(job))
        return value is not None and not str(value).startswith(("left out", "wrong"))

    def place(self, job):
        return self.values["products"] if job["kind"] == "product" else self.values["cases"].setdefault(job["name"], {})

    def key(self, job):
        return job["name"] if job["kind"] == "product" else job["form"]

    def put(self, job, answer):
        place = self.place(job)
        place[self.key(job)] = answer["value"]
        if any(form.startswith("flex_") for form in place):
            place["flex"] = peer_jobs.best_flex(place)
        for note, value in answer["notes"].items():
            self.values["notes"].setdefault(job["name"], {}).setdefault(note, {})[self.key(job)] = value
        put(self.path, (json.dumps(self.values, indent=2) + "\n").encode())
        print(job["name"], self.key(job), answer["value"], flush=True)


def wrong(values):
    forms = [(name, form, value) for name, forms in values["cases"].items() for form, value in forms.items()]
    forms += [(name, "bare", value) for name, value in values["products"].items()]
    return [f"{name} {form}" for name, form, value in forms if str(value).startswith("wrong")]


def chosen(arguments):
    records = json.loads(arguments.bench.read_text())["cases"] if arguments.bench and arguments.bench.exists() else []
    found = [job for job in peer_jobs.jobs(records) if arguments.filter in job["name"]]
    if arguments.check:
        found += [peer_jobs.job("product", peer_jobs.product_key(shape), "bare", 1, shape=shape) for shape in ((5, 6, 7, 1), (3, 4, 5, 2))]
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--bench", type=pathlib.Path, help="the file of `scripts/gpu bench`, whose steps say which bare products to time")
    parser.add_argument("--xattn", type=pathlib.Path, help="the binary, which tells the sizes of its cases")
    parser.add_argument("--filter", default="", help="only cases whose name contains this text")
    parser.add_argument("--seconds", type=float, default=420, help="for all of it; what has no time is left out")
    parser.add_argument("--check", action="store_true", help="small shapes on the processor: values, no times")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        return peer_worker.main()
    if not arguments.out:
        parser.error("--out says where the file goes")
    cases.load(arguments.xattn or cases.binary())
    if not cases.CASES:
        raise SystemExit(f"{arguments.xattn or cases.binary()} tells no cases (bench --list --json)")
    ends = time.monotonic() + arguments.seconds
    workers = Workers([sys.executable, __file__, "--worker"])
    about = peer_worker.about() if arguments.check else workers.about()
    if about is None or (not arguments.check and about["device"].startswith("cpu")):
        workers.end()
        raise SystemExit("no CUDA device that PyTorch sees; --check compares values on the processor")
    report = Report(arguments.out, about)
    for job in chosen(arguments):
        left = ends - time.monotonic()
        if report.settled(job):
            continue
        if arguments.check:
            report.put(job, peer_worker.value_of(job, check=True))
        elif left < 5:
            report.put(job, {"value": f"left out: no time within {arguments.seconds:.0f} s", "notes": {}})
        else:
            report.put(job, workers.noted(job, left))
    workers.end()
    if faults := wrong(report.values):
        raise SystemExit(f"wrong values: {', '.join(faults)}")


if __name__ == "__main__":
    main()
