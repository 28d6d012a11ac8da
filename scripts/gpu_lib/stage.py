"""A stage: its file, its time, its steps. Every step is written as soon as it ends."""

import datetime
import hashlib
import json
import os
import signal
import subprocess
import time

from gpu_lib.delivery import put

# A step that passed is not repeated by a later call.
SETTLED = ("passed",)
# Seconds between checks of a long step's output.
MEANWHILE = 5


def lines_of(command):
    """The lines that a command prints, or none where there is no such command."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.split("\n")
    except (OSError, subprocess.SubprocessError):
        return []


def commit_of(binary):
    """From XATTN_COMMIT, the checkout, or the file that scripts/gpu-pack leaves beside the binary."""
    beside = binary.with_name("commit")
    checkout = "".join(lines_of(["git", "rev-parse", "--short", "HEAD"])).strip()
    return os.environ.get("XATTN_COMMIT") or (beside.read_text().strip() if beside.exists() else checkout) or None


def machine(arguments):
    """Which device and binary these are, and how fast the device is set to run."""
    names = ["name", "driver_version", "clocks.sm", "clocks.max.sm", "clocks.mem", "clocks.max.mem", "power.limit", "utilization.gpu"]
    values = [] if arguments.emulated else lines_of(["nvidia-smi", f"--query-gpu={','.join(names)}", "--format=csv,noheader"])
    found = dict(zip(names, (value.strip() for value in values[0].split(",")))) if values and values[0] else {}
    return {
        "device": "Emulated CUDA device (no GPU)" if arguments.emulated else found.get("name"),
        "driver": found.get("driver_version"),
        "clocks": {name: value for name, value in found.items() if name.startswith(("clocks", "power", "utilization"))},
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": commit_of(arguments.xattn),
        "binary": hashlib.sha256(arguments.xattn.read_bytes()).hexdigest()[:16],
    }


def ended(command, seconds, environment, meanwhile=None):
    """Runs a command with all that it starts: its status (None: time was up, or it could not start) and what it said. Calls `meanwhile` often."""
    try:
        process = subprocess.Popen(
            [str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
            env={**os.environ, **environment}, start_new_session=True,
        )
    except OSError as error:
        return None, str(error)
    ends = time.monotonic() + seconds
    while True:
        try:
            text, _ = process.communicate(timeout=max(min(MEANWHILE, ends - time.monotonic()), 0))
            return process.returncode, text
        except subprocess.TimeoutExpired:
            if time.monotonic() >= ends:
                os.killpg(process.pid, signal.SIGKILL)
                return None, process.communicate()[0]
        if meanwhile:
            meanwhile()


def aside(path):
    """Keeps a file of another device or binary under another name."""
    path.replace(path.with_name(f"{path.stem}-before{path.suffix}"))


class Stage:
    """A stage's file and the time that it has. What an earlier call settled on the same device with the same binary stays."""

    def __init__(self, name, arguments, seconds, delivery):
        self.name, self.arguments, self.seconds, self.delivery = name, arguments, seconds, delivery
        self.ends = time.monotonic() + seconds
        self.path = arguments.out / f"{name}.json"
        self.report = {"stage": name, "emulated": arguments.emulated, **machine(arguments), "steps": []}
        self.kept = self.earlier()
        self.settled = {step["step"]: step for step in self.kept.get("steps", []) if step["verdict"] in SETTLED}
        self.report["steps"] += [{**step, "kept": True} for step in self.settled.values()]

    def earlier(self):
        """The report of an earlier call that this one goes on with, or nothing."""
        if self.arguments.again or not self.path.exists():
            return {}
        report = json.loads(self.path.read_text())
        if all(report.get(key) == self.report[key] for key in ("device", "binary", "emulated")):
            return report
        aside(self.path)
        return {}

    def left(self):
        return self.ends - time.monotonic()

    def write(self):
        put(self.path, (json.dumps(self.report, indent=2) + "\n").encode())
        self.delivery.update()

    def put(self, name, **values):
        self.report["steps"].append({"step": name, **values})
        self.write()
        reason = f": {values['reason']}" if values.get("reason") else ""
        print(f"{self.name}: {name}: {values.get('verdict')}{reason}"[:240], flush=True)
        return values.get("verdict")

    def kept_records(self, step_of):
        """The records of steps that are settled."""
        return [record for record in self.kept.get("cases", []) if step_of(record) in self.settled]

    def run(self, name, command, judge=None, environment=None, share=1.0):
        """Runs a step, unless it is settled, in at most that share of what is left. Passed, failed, or what `judge` makes of status and text."""
        if name in self.settled:
            return self.settled[name]["verdict"]
        if self.left() < 1:
            return self.put(name, verdict="left out", reason=f"no time: this stage had {self.seconds:.0f} s")
        started, seconds = time.monotonic(), self.left() * share
        status, text = ended(command, seconds, environment or {}, self.delivery.update)
        late = status is None and time.monotonic() - started >= seconds
        verdict, reason = ("no time", f"stopped after {seconds:.0f} s") if late else ("passed" if status == 0 else "failed", None)
        if judge and not late:
            verdict, reason = judge(status, text)
        values = {"verdict": verdict, "status": status, "seconds": round(time.monotonic() - started, 1)}
        values |= {"reason": reason} if reason else {}
        variables = [f"{key}={value}" for key, value in (environment or {}).items()]
        return self.put(name, **values, command=" ".join([*variables, *map(str, command)]), said=text.strip().split("\n")[-12:])

    def xattn(self, *rest, sanitizer=None):
        """The command, on the emulated device where that is meant."""
        emulator = ["scripts/emulated-cuda"] + (["--sanitizer", sanitizer] if sanitizer else [])
        return (emulator if self.arguments.emulated else []) + [self.arguments.xattn, *rest]

    def count(self, *verdicts):
        return sum(step["verdict"] in verdicts for step in self.report["steps"])
