"""PyTorch's forms: their order, processes that hang or die, and that a form which computes something else is found."""

import importlib.util
import json
import os
import pathlib
import sys
import tempfile
import time
import unittest
from unittest import mock

import gpu_peers
from gpu_lib import cases, peer_jobs, peer_worker

# Stands in for a worker: the job's form says whether it answers, is slow, dies, or reports a broken
# device.
FAKE = f"""
import json, os, sys, time
print({peer_worker.ANSWER!r} + json.dumps({{"torch": "2.0", "cuda": "13.0", "device": "Test GPU"}}), flush=True)
for line in sys.stdin:
    job = json.loads(line)
    print("chatter of a compiler", flush=True)
    if job["form"] == "hangs":
        time.sleep(60)
    if job["form"] == "dies":
        os._exit(7)
    value = float(os.getpid())
    if job["form"] == "waits" and job.get("captured", True):
        value = "refused: AcceleratorError: CUDA error: operation not permitted when stream is capturing"
    print({peer_worker.ANSWER!r} + json.dumps({{"value": value, "notes": {{}}, "fatal": job["form"] == "breaks"}}), flush=True)
"""


class TestWorkers(unittest.TestCase):
    def setUp(self):
        self.workers = gpu_peers.Workers([sys.executable, "-c", FAKE])
        self.addCleanup(self.workers.end)

    def value(self, form, seconds=20):
        return self.workers.measured({"kind": "attention", "name": "a", "form": form}, seconds)["value"]

    def test_one_process_serves_until_it_fails(self):
        self.assertEqual(self.workers.about(), {"torch": "2.0", "cuda": "13.0", "device": "Test GPU"})
        first = self.value("runs")
        self.assertEqual(self.value("runs"), first)
        self.assertEqual(self.value("breaks"), first)
        self.assertNotEqual(self.value("runs"), first)

    def test_a_form_that_hangs_is_left_out(self):
        started = time.monotonic()
        self.assertEqual(self.value("hangs", 0.5), "left out: not done within 0 s")
        self.assertLess(time.monotonic() - started, 10)
        self.assertIsInstance(self.value("runs"), float)

    def test_a_module_that_cannot_be_captured_is_timed_call_by_call(self):
        answer = self.workers.noted(peer_jobs.job("block", "b", "waits", 20), 60)
        self.assertIsInstance(answer["value"], float)
        self.assertIs(answer["notes"]["captured"], False)
        self.assertNotIn("captured", self.workers.noted(peer_jobs.job("block", "b", "runs", 20), 60)["notes"])
        self.assertIn("seconds", answer["notes"])

    def test_a_process_that_dies_costs_one_form(self):
        self.assertEqual(self.value("dies"), "refused: the process ended with status 7")
        self.assertIsInstance(self.value("runs"), float)


class TestJobs(unittest.TestCase):
    STEPS = [{"product": {"rows": 64, "n": 128, "k": 256, "batch": 1}}, {"product": None}, {"product": {"rows": 8, "n": 2, "k": 4, "batch": 3}}]

    def test_the_strongest_forms_of_rows_with_goals_come_first(self):
        jobs = peer_jobs.jobs([])
        order = [(job["name"], job["form"]) for job in jobs]
        self.assertEqual(len(order), len(set(order)))
        self.assertEqual(order[:4], [(cases.BAR_ATTENTION[0], form) for form in ("sdpa_flash", "sdpa_cudnn", "sdpa_efficient", "varlen")])
        self.assertLess(order.index((cases.FFN, "bare_products_and_activation")), order.index((cases.BLOCKS[0], "compile")))
        self.assertLess(order.index((cases.BLOCKS[0], "compile")), order.index(("attention/openflamingo/b8-l2048-n64", "varlen")))

    def test_every_row_has_every_form(self):
        forms = {}
        for job in peer_jobs.jobs([]):
            forms.setdefault(job["name"], set()).add(job["form"])
        library = {"sdpa_flash", "sdpa_cudnn", "sdpa_efficient", "sdpa_math", "varlen"}
        for name in cases.ATTENTION:
            case = cases.attention(cases.shape_of(name))
            # With one medium nothing is hidden, and no form needs a mask.
            masks = {"flex_128x64", "flex_64x64", "flex_128x128", "flex_256x64"} if case["media"] > 1 else {"flex"}
            packed = {"varlen_packed"} if case["kv_heads"] < case["heads"] else set()
            self.assertEqual(forms[name], library | masks | packed, name)
        for name in [*cases.BLOCKS, *cases.SMALL]:
            cached = {"eager_cached", "compile_cached"} if name.startswith("gated_block/") else set()
            graphs = {"compile_graphs"} if cases.is_small(name) else set()
            self.assertEqual(forms[name], {"eager", "compile"} | cached | graphs, name)
        self.assertEqual(forms[cases.FFN], {"bare_products_and_activation", "eager", "compile"})
        self.assertEqual(forms[cases.OUT_PROJECTION], {"bare_product", "eager", "compile"})

    def test_bare_products_are_those_of_the_steps(self):
        asked = {"case": cases.BLOCKS[0], "dtype": "bf16", "cold": True, "steps": self.STEPS}
        other = {"case": "linear/q/512x2048-512", "dtype": "bf16", "cold": True, "steps": [{"product": {"rows": 1, "n": 1, "k": 1, "batch": 1}}]}
        products = [job for job in peer_jobs.jobs([other, asked, asked, {**asked, "dtype": "f16"}]) if job["kind"] == "product"]
        self.assertEqual([job["name"] for job in products], ["64x256-128", "8x4-2 x 3", "1x1-1"])
        self.assertEqual(products[1]["shape"], (8, 2, 4, 3))

    def test_the_best_block_mask_stands_for_flex(self):
        self.assertEqual(peer_jobs.best_flex({"flex_64x64": 9.0, "flex_128x64": 7.5, "flex_128x128": "refused: blocks", "varlen": 1.0}), 7.5)
        self.assertEqual(peer_jobs.best_flex({"flex_64x64": "refused: no"}), "refused: no")


class TestReport(unittest.TestCase):
    ABOUT = {"torch": "2.0", "cuda": "13.0", "device": "Test GPU"}

    def test_what_was_found_stays_and_what_was_left_out_is_tried_again(self):
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "peers-cases.json"
            report = gpu_peers.Report(path, self.ABOUT)
            jobs = {form: peer_jobs.job("attention", "a", form, 1) for form in ("varlen", "sdpa_flash", "flex_64x64", "flex_128x64")}
            report.put(jobs["varlen"], {"value": 3.0, "notes": {}})
            report.put(jobs["sdpa_flash"], {"value": "refused: no mask", "notes": {}})
            report.put(jobs["flex_64x64"], {"value": 8.0, "notes": {"mask_us": 900.0}})
            report.put(jobs["flex_128x64"], {"value": "left out: no time", "notes": {}})
            jobs["eager"] = peer_jobs.job("attention", "a", "eager", 1)
            report.put(jobs["eager"], {"value": "wrong: differs by 1", "notes": {}})
            again = gpu_peers.Report(path, self.ABOUT)
            self.assertEqual([again.settled(job) for job in jobs.values()], [True, True, True, False, False])
            self.assertEqual(again.values["cases"]["a"]["flex"], 8.0)
            self.assertEqual(again.values["notes"], {"a": {"mask_us": {"flex_64x64": 900.0}}})
            self.assertEqual(gpu_peers.Report(path, {**self.ABOUT, "device": "Other GPU"}).values["cases"], {})
            self.assertEqual(json.loads((path.parent / "peers-cases-before.json").read_text())["device"], "Test GPU")


@unittest.skipUnless(importlib.util.find_spec("torch"), f"{sys.executable} has no torch; PYTHON names another interpreter")
class TestValues(unittest.TestCase):
    """Planted errors: each is something that a wrong form would do."""

    PHI = "attention/openflamingo/b8-l2048-n8"

    def value(self, kind, name, form):
        return peer_worker.value_of(peer_jobs.job(kind, name, form, 20), check=True)["value"]

    def test_right_forms_are_right(self):
        self.assertEqual(self.value("attention", self.PHI, "varlen"), "right")
        self.assertEqual(self.value("chain", cases.OUT_PROJECTION, "eager"), "right")
        self.assertEqual(self.value("block", cases.SMALL[0], "eager"), "right")

    def test_a_neighbour_s_medium_is_found(self):
        from gpu_lib import peer_attention

        with mock.patch.object(peer_attention, "phi", lambda case, device, phi=peer_attention.phi: phi(case, device) % case["media"] + 1):
            for form in ("sdpa_math", "sdpa_cudnn", "flex_64x64"):
                self.assertTrue(self.value("attention", self.PHI, form).startswith("wrong: "), form)

    def test_a_sequence_that_is_a_row_too_long_is_found(self):
        from gpu_lib import peer_attention

        def wrong(case, device, group=1, lengths=peer_attention.lengths):
            rows, *rest = lengths(case, device, group)
            rows[1] += group
            return rows, *rest

        with mock.patch.object(peer_attention, "lengths", wrong):
            self.assertTrue(self.value("attention", self.PHI, "varlen").startswith("wrong: "))
            self.assertTrue(self.value("attention", "attention/flamingo-9b/b8-l2048-n8-kv8", "varlen_packed").startswith("wrong: "))

    def test_a_gate_without_tanh_is_found(self):
        import torch

        for name in (cases.OUT_PROJECTION, cases.FFN):
            # `exact` calls torch.tanh, the forms the method.
            with mock.patch.object(torch.Tensor, "tanh", lambda gate: gate):
                self.assertTrue(self.value("chain", name, "eager").startswith("wrong: "), name)

    def test_the_approximate_gelu_is_found(self):
        from gpu_lib import peer_products

        with mock.patch.object(peer_products, "gelu", lambda x: __import__("torch").nn.functional.gelu(x, approximate="tanh")):
            self.assertTrue(self.value("chain", cases.FFN, "eager").startswith("wrong: "))

    def test_a_block_that_sees_all_media_is_found(self):
        from gpu_lib import peer_modules

        attend = peer_modules.attend
        with mock.patch.object(peer_modules, "theirs", lambda *_, **__: None):
            with mock.patch.object(peer_modules, "attend", lambda q, k, v, mask=None, nothing=None: attend(q, k, v)):
                self.assertTrue(self.value("block", "gated_block/openflamingo-9b/b8-l2048-n8", "eager").startswith("wrong: "))

    def test_a_wrong_form_fails_the_command(self):
        import torch

        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "p.json"
            command = ["gpu_peers.py", "--check", "--xattn", os.environ["XATTN"], "--out", str(path), "--filter", cases.OUT_PROJECTION]
            with mock.patch.object(sys, "argv", command), mock.patch.object(torch.Tensor, "tanh", lambda gate: gate):
                with self.assertRaises(SystemExit) as failed:
                    gpu_peers.main()
            found = json.loads(path.read_text())["cases"][cases.OUT_PROJECTION]
        self.assertEqual(str(failed.exception), f"wrong values: {cases.OUT_PROJECTION} eager, {cases.OUT_PROJECTION} compile")
        self.assertEqual(found["bare_product"], "right")
        self.assertTrue(found["eager"].startswith("wrong: Tensor-likes are not close!"), found["eager"])


if __name__ == "__main__":
    unittest.main()
