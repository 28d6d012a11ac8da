"""Stages: steps, what stays between calls, cases that fail, are refused or end a process, the sanitizers' verdicts."""

import argparse
import json
import os
import pathlib
import stat
import subprocess
import sys
import tempfile
import time
import unittest
from unittest import mock

from gpu_lib import correct, speed, variables, vulkan
from gpu_lib.correct import judged
from gpu_lib.delivery import Delivery
from gpu_lib.stage import Stage

SCRIPTS = pathlib.Path(__file__).parents[2]

# Stands in for the command: times its cases, but one fails, one is refused, and at one it dies.
FAKE = '''#!/usr/bin/env python3
import json, os, sys
words = sys.argv[1:]
if words[0] == "devices":
    print(f"cuda  unavailable  device: XATTN_CUDA_LINEAR: expected auto, any, hopper-128, got {os.environ.get('XATTN_CUDA_LINEAR')}")
elif "--list" in words:
    print(json.dumps({"cases": [{"case": name} for name in ("a/one", "a/two", "fails", "refused", "dies")]}))
else:
    value = lambda name: words[words.index(name) + 1]
    cases, lost = [], False
    for name in value("--filter").split(","):
        if name == "dies":
            sys.exit("error: cuda: device lost in attention: 700")
        record = {"case": name, "dtype": value("--dtype"), "backend": "cuda"}
        if name == "fails":
            cases.append({**record, "failed": ["row 3: 1.0 for 2.0"]})
        elif lost:
            cases.append({**record, "refused": "the device was lost before"})
        elif name == "loses":
            cases.append({**record, "failed": ["cuda: device lost in attention: 700"]})
            lost = True
        elif name == "refused":
            cases.append({**record, "refused": "attention: 7 is not supported by cuda; available: 8"})
        else:
            cases += [{**record, "cold": cold, "median_us": 5.0 + cold} for cold in (True, False)]
        with open(value("--json"), "w") as file:
            json.dump({"cases": cases, "roofs": {"copy_bytes_per_second": 1e12}}, file)
    sys.exit(any("failed" in case for case in cases))
'''


class InFolder(unittest.TestCase):
    def setUp(self):
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.folder = pathlib.Path(temporary.name)
        self.xattn = self.folder / "xattn"
        self.xattn.write_text(FAKE)
        self.xattn.chmod(self.xattn.stat().st_mode | stat.S_IXUSR)

    def stage(self, name="bench", seconds=60.0, **options):
        given = {"out": self.folder, "xattn": self.xattn, "emulated": False, "filter": "", "again": False, **options}
        return Stage(name, argparse.Namespace(**given), seconds, Delivery(self.folder, None))

    def verdicts(self, stage):
        return [(step["step"], step["verdict"]) for step in stage.report["steps"]]


class TestStage(InFolder):
    def test_steps_pass_fail_and_have_no_time(self):
        stage = self.stage(seconds=1.5)
        self.assertEqual(stage.run("good", ["true"]), "passed")
        self.assertEqual(stage.run("bad", ["sh", "-c", "echo oh; exit 3"]), "failed")
        self.assertEqual(stage.run("absent", ["/no/such/program"]), "failed")
        self.assertEqual(stage.run("slow", ["sleep", "30"], share=0.5), "no time")
        self.assertEqual(stage.run("late", ["true"]), "left out")
        steps = json.loads((self.folder / "bench.json").read_text())["steps"]
        self.assertEqual([step["verdict"] for step in steps], ["passed", "failed", "failed", "no time", "left out"])
        self.assertEqual((steps[1]["status"], steps[1]["said"]), (3, ["oh"]))

    def test_a_step_that_is_stopped_takes_its_children_along(self):
        stage = self.stage(seconds=2.0)
        stage.run("parent", ["sh", "-c", f"sleep 60 & echo $! >{self.folder}/child; wait"], share=0.2)
        child = int((self.folder / "child").read_text())
        status = pathlib.Path(f"/proc/{child}/stat")
        for _ in range(50):
            # Gone, or dead and not yet waited for.
            if not status.exists() or status.read_text().split()[2] == "Z":
                return
            time.sleep(0.1)
        self.fail(f"the child is still there: {status.read_text()}")

    def test_what_passed_stays_and_what_failed_runs_again(self):
        first = self.stage()
        first.run("good", ["true"])
        first.run("bad", ["false"])
        second = self.stage()
        self.assertEqual(second.run("good", ["false"]), "passed")
        self.assertEqual(second.run("bad", ["true"]), "passed")
        self.assertEqual([step.get("kept") for step in second.report["steps"]], [True, None])

    def test_another_binary_or_again_begins_anew(self):
        self.stage().run("good", ["true"])
        self.assertEqual(self.stage(again=True).run("good", ["false"]), "failed")
        self.stage().run("good", ["true"])
        self.xattn.write_text(FAKE + "\n")
        self.assertEqual(self.stage().run("good", ["false"]), "failed")
        # What the other binary had is not lost.
        before = json.loads((self.folder / "bench-before.json").read_text())
        self.assertEqual([step["verdict"] for step in before["steps"]], ["passed"])


class TestCases(InFolder):
    def timed(self, stage, names):
        stage.report["cases"] = []
        speed.Timed(stage, names, "bf16", lambda name: f"{name} bf16").run()

    def test_one_case_costs_only_itself(self):
        stage = self.stage()
        self.timed(stage, ["a/one", "fails", "refused", "dies", "a/two"])
        self.assertEqual(self.verdicts(stage), [("a/one bf16", "passed"), ("fails bf16", "failed"), ("refused bf16", "refused"),
                                                ("dies bf16", "failed"), ("a/two bf16", "passed")])
        reasons = [step.get("reason") for step in stage.report["steps"]]
        self.assertEqual(reasons[1:4], ["row 3: 1.0 for 2.0", "attention: 7 is not supported by cuda; available: 8",
                                        "error: cuda: device lost in attention: 700"])
        self.assertEqual([record["case"] for record in stage.report["cases"]], ["a/one", "a/one", "fails", "a/two", "a/two"])
        self.assertEqual(stage.report["roofs"], {"copy_bytes_per_second": 1e12})

    def test_cases_after_a_lost_device_run_in_another_process(self):
        stage = self.stage()
        self.timed(stage, ["a/one", "loses", "a/two", "refused"])
        self.assertEqual(self.verdicts(stage), [("a/one bf16", "passed"), ("loses bf16", "failed"), ("a/two bf16", "passed"),
                                                ("refused bf16", "refused")])
        self.assertEqual(stage.report["steps"][3]["reason"], "attention: 7 is not supported by cuda; available: 8")

    def test_a_further_call_runs_only_what_is_not_settled(self):
        with mock.patch.object(speed.cases, "BENCHED", [("bf16", "a/one"), ("bf16", "fails"), ("f16", "a/two"), ("bf16", "unheard/of")]):
            speed.bench(self.stage())
            again = self.stage()
            speed.bench(again)
        self.assertEqual(self.verdicts(again), [("a/one bf16", "passed"), ("a/two f16", "passed"), ("unheard/of bf16", "refused"),
                                                ("fails bf16", "failed")])
        self.assertEqual(sorted((r["case"], r["dtype"]) for r in again.report["cases"] if "cold" in r),
                         [("a/one", "bf16")] * 2 + [("a/two", "f16")] * 2)

    def test_without_time_cases_are_left_out(self):
        stage = self.stage(seconds=0.5)
        self.timed(stage, ["a/one", "a/two"])
        self.assertEqual(self.verdicts(stage), [("a/one bf16", "left out"), ("a/two bf16", "left out")])

    def test_variants_are_those_that_the_binary_knows(self):
        stage = self.stage("variants")
        words = {"XATTN_CUDA_LINEAR": variables.words_of(stage, "XATTN_CUDA_LINEAR"), "XATTN_CUDA_ATTENTION": ["general", "media", "resampler"]}
        self.assertEqual(words["XATTN_CUDA_LINEAR"], ["auto", "any", "hopper-128"])
        forms = speed.forms_of("linear/out-gated/16384x512-4096", words)
        self.assertEqual(list(forms), ["linear any", "linear hopper-128", "cublaslt", "two-pass"])
        self.assertEqual(forms["linear hopper-128"], {"XATTN_CUDA_LINEAR": "hopper-128", "XATTN_CUDA_CUBLASLT": "off"})
        self.assertEqual(list(speed.forms_of("attention/openflamingo/b8-l2048-n8", words)), ["general", "media"])

    def test_blocks_are_varied_by_what_bounds_them(self):
        words = {"XATTN_CUDA_LINEAR": ["auto", "any", "64", "64-deep", "128", "hopper"], "XATTN_CUDA_ATTENTION": []}
        small = speed.forms_of("qformer/blip2/b1", words)
        self.assertEqual(list(small), ["dependent launches", "cublaslt", "two-pass", "linear 64-deep"])
        self.assertEqual(small["dependent launches"], {"XATTN_CUDA_DEPENDENT_LAUNCH": "1"})
        self.assertEqual(list(speed.forms_of("qformer/blip2/b32", words)), ["dependent launches", "cublaslt", "two-pass", "linear hopper"])

    def test_the_fastest_is_the_least_time(self):
        times = {"table": 3.0, "media": 2.5, "general": None}
        records = [{"case": "c", "cold": True, "variant": variant, "median_us": us} for variant, us in times.items()]
        self.assertEqual(speed.fastest("c", records), [{"case": "c", "cold": True, "fastest": "media", "times_us": {"table": 3.0, "media": 2.5}}])
        self.assertIn("media 2.50, table 3.00", speed.table_of_fastest(speed.fastest("c", records))[1])

    def test_names_are_cases_of_the_binary(self):
        cases = speed.cases
        names = {name for _, name in cases.BENCHED} | {*cases.VARIED_ATTENTION, *cases.ON_WGPU, *cases.VARIED_BLOCKS, *cases.EMULATED}
        self.assertEqual([name for name in sorted(names) if name not in cases.CASES], [])

    def test_goals_are_those_of_the_binary(self):
        cases = speed.cases
        asked = {name for name, case in cases.CASES.items() if case["bar_us"] is not None}
        self.assertEqual(asked, {*cases.BAR_ATTENTION, cases.OUT_PROJECTION})
        phi = cases.CASES["attention/flamingo-9b/b8-l2048-n8-kv8"]
        self.assertEqual((phi["floor_us"], phi["bar_us"], cases.is_phi(phi), cases.shares_keys(phi)), (66.0, 82.0, True, True))
        self.assertEqual(cases.attention(phi["shape"]), dict(batch=8, rows=2048, heads=32, kv_heads=8, head_dim=128, keys=512, media=8))
        # Two segments; all tiles of the one image are visible.
        two = cases.attention(cases.shape_of("attention/openflamingo-resampler/b32"))
        self.assertEqual((two["keys"], two["media"]), (256 + 64, 0))
        self.assertFalse(cases.is_phi(cases.CASES["attention/llama-3.2-11b/l256-k6404"]))


class TestCommand(InFolder):
    def run_all(self, *words):
        command = [sys.executable, SCRIPTS / "gpu.py", "--xattn", self.xattn, "--out", self.folder / "work", "--deliver", self.folder / "out", *words]
        return subprocess.run(command, capture_output=True, text=True, cwd=SCRIPTS.parent, timeout=120)

    def test_stages_run_in_order_of_value_and_verdicts_come_last(self):
        done = self.run_all("--within", "60", "wgpu", "bench")
        lines = done.stdout.split("\n")
        self.assertRegex(lines[0], r"^scripts/gpu: bench 3\d s, wgpu 1\d s$")
        self.assertIn("wgpu: a Vulkan device: refused: this binary is built without the feature wgpu", lines)
        self.assertTrue(lines[-3].endswith(f" 0 pass, 0 fail, {len(speed.cases.BARS)} open; microseconds, launches ours / theirs"), lines[-3])
        self.assertEqual((lines[-2], done.returncode), (f"scripts/gpu: nothing failed, 0 steps had no time; see {self.folder / 'work'}", 0))
        self.assertEqual(sorted(path.name for path in (self.folder / "out").iterdir()), ["gpu.tar.gz", "results.json", "verdict.txt"])

    def test_a_call_too_short_says_what_it_left_out(self):
        done = self.run_all("--within", "12", "bench", "wgpu")
        self.assertIn("bench: left out: no time is left in this call", done.stdout)
        last = done.stdout.split("\n")[-2].split("; ")[0]
        self.assertEqual((last, done.returncode), ("scripts/gpu: nothing failed, 0 steps had no time, without time: bench, wgpu", 3))

    def test_without_pytorch_peers_are_refused(self):
        (self.folder / "torch.py").write_text("raise ModuleNotFoundError(\"No module named 'torch'\")\n")
        with mock.patch.dict(os.environ, {"PYTHONPATH": str(self.folder)}):
            done = self.run_all("--within", "60", "peers")
        self.assertIn(f"peers: PyTorch: refused: {sys.executable}: ModuleNotFoundError: No module named 'torch'", done.stdout.split("\n"))
        self.assertEqual(done.returncode, 0)

    def test_wrong_usage(self):
        done = self.run_all("benchmark")
        self.assertEqual(done.returncode, 2)
        self.assertIn("no stage benchmark; there are wrappers, verify, sanitize, bench, peers, variants, wgpu", done.stderr)


class TestWgpu(unittest.TestCase):
    ROW = {"case": "c", "ms": 0.25, "fp32_share": 0.3, "roof_share": 0.5, "roof_gflop_per_s": 60e3, "bytes": 1, "flops": 2}

    def test_records_stand_beside_cuda(self):
        [record] = vulkan.records({"warning": None, "cases": [self.ROW]}, "bf16", {("c", "bf16"): 40.0})
        self.assertEqual((record["backend"], record["median_us"], record["fp32_share"], record["cuda_us"]), ("wgpu", 250.0, 0.3, 40.0))
        self.assertEqual(vulkan.table([record])[1].split(), ["c", "bf16", "250.00", "30.0", "%", "40.00"])

    def test_cases_stand_beside_the_warm_row_where_there_is_one(self):
        with tempfile.TemporaryDirectory() as name:
            folder = pathlib.Path(name)
            script = "#!/usr/bin/env python3\nimport json, sys\nw = sys.argv[1:]\nif w == ['devices']: print('wgpu  available  NVIDIA')\n"
            script += "elif '--list' in w: print(json.dumps({'cases': [{'case': 'c'}]}))\n"
            script += f"elif w[0] == 'bench': open(w[-1], 'w').write(json.dumps({{'warning': None, 'cases': [{self.ROW!r}]}}))\n"
            (folder / "xattn").write_text(script)
            (folder / "xattn").chmod(0o755)
            ours = [{"case": "c", "dtype": "bf16", "cold": cold, "median_us": us} for cold, us in ((True, 40.0), (False, 30.0))]
            (folder / "bench.json").write_text(json.dumps({"cases": ours}))
            given = argparse.Namespace(out=folder, xattn=folder / "xattn", emulated=False, filter="", again=False)
            stage = Stage("wgpu", given, 60.0, Delivery(folder, None))
            with mock.patch.object(vulkan.cases, "ON_WGPU", ["c"]), mock.patch.object(vulkan.cases, "BAR_ATTENTION", ["absent"]):
                vulkan.wgpu(stage)
        verdicts = [(step["step"], step["verdict"]) for step in stage.report["steps"]]
        self.assertEqual(verdicts, [("verify", "passed"), ("c bf16", "passed"), ("absent f32", "refused")])
        self.assertEqual([(r["median_us"], r["cuda_us"]) for r in stage.report["cases"]], [(250.0, 30.0)])

    def test_without_a_loader_the_stage_is_refused_in_the_command_s_words(self):
        with tempfile.TemporaryDirectory() as name:
            folder = pathlib.Path(name)
            (folder / "xattn").write_text("#!/bin/sh\necho 'wgpu  unavailable  no adapter: vulkan could not be loaded'\n")
            (folder / "xattn").chmod(0o755)
            given = argparse.Namespace(out=folder, xattn=folder / "xattn", emulated=False, filter="", again=False)
            stage = Stage("wgpu", given, 60.0, Delivery(folder, None))
            vulkan.wgpu(stage)
        self.assertEqual([(step["verdict"], step["reason"]) for step in stage.report["steps"]],
                         [("refused", "wgpu  unavailable  no adapter: vulkan could not be loaded")])

    def test_a_software_adapter_tells_no_times(self):
        [record] = vulkan.records({"warning": "software adapter", "cases": [self.ROW]}, "bf16", {("c", "bf16"): 40.0})
        self.assertEqual((record["median_us"], record["fp32_share"], record["cuda_us"]), (None, None, None))
        self.assertEqual(vulkan.table([record]), [])


class TestHopper(InFolder):
    """Kernels that no table chooses are verified and sanitized by name."""

    def test_verify(self):
        self.xattn.write_text(FAKE.replace("elif \"--list\" in words:", "elif words[0] == \"verify\":\n    pass\nelif \"--list\" in words:"))
        stage = self.stage("verify")
        correct.verify(stage)
        self.assertEqual([name for name, verdict in self.verdicts(stage) if verdict == "passed"],
                         ["ops in bf16", "ops in f16", "ops in f32", "fixtures", "fixtures, dependent launches",
                          "linear by hopper-128"])
        command = stage.report["steps"][-1]["command"]
        self.assertTrue(command.startswith("XATTN_CUDA_LINEAR=hopper-128 "), command)
        self.assertTrue(command.endswith("--filter linear:"), command)

    def test_sanitize(self):
        tool = self.folder / "compute-sanitizer"
        clean, refuses = "========= ERROR SUMMARY: 0 errors", "========= Error: Device not supported"
        tool.write_text(f"#!/bin/sh\ncase $2 in racecheck) echo '{refuses}';; *) echo '{clean}';; esac\n")
        tool.chmod(0o755)
        stage = self.stage("sanitize")
        with mock.patch.object(correct, "sanitizer_of_toolkit", lambda: tool):
            correct.sanitize(stage)
        names = [f"{tool}, {rest}" for rest in ("seed=21", "seed=2, hopper-128", "seed=2") for tool in correct.TOOLS]
        self.assertEqual(self.verdicts(stage), [(name, "refused" if name.startswith("racecheck") else "passed") for name in names])
        self.assertEqual([step["reason"] for step in stage.report["steps"] if step["step"].startswith("racecheck")],
                         ["Error: Device not supported", "racecheck refused seed=21", "racecheck refused seed=21"])


class TestSanitizer(unittest.TestCase):
    def test_verdicts(self):
        clean = "========= COMPUTE-SANITIZER\n8 passed\n========= ERROR SUMMARY: 0 errors"
        self.assertEqual(judged(0, clean), ("passed", "ERROR SUMMARY: 0 errors"))
        race = "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)"
        self.assertEqual(judged(0, race)[0], "passed")
        self.assertEqual(judged(99, "========= ERROR SUMMARY: 12 errors"), ("failed", "ERROR SUMMARY: 12 errors"))
        # The program's own failure under a clean tool is a failure.
        self.assertEqual(judged(1, clean)[0], "failed")
        self.assertEqual(judged(0, "========= ERROR SUMMARY: 10 errors")[0], "failed")

    def test_a_tool_that_does_not_work_there_is_refused_in_its_words(self):
        text = "========= Error: Device not supported. Please refer to the documentation\n========= ERROR SUMMARY: 0 errors"
        self.assertEqual(judged(1, text), ("refused", "Error: Device not supported. Please refer to the documentation"))
        self.assertEqual(judged(None, "Segmentation fault"), ("failed", "no summary"))


if __name__ == "__main__":
    unittest.main()
