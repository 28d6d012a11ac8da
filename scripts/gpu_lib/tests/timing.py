"""How PyTorch's forms are timed, with stand-ins for a GPU: what is captured, replayed and counted. Shows that the path runs, not what it measures."""

import contextlib
import importlib.util
import sys
import types
import unittest
from unittest import mock

from gpu_lib import cases, peer_jobs, peer_worker

TORCH = importlib.util.find_spec("torch")


class Device:
    """Stands in for torch.cuda. Time goes on by a call's cost, in microseconds, whenever something is run or replayed."""

    def __init__(self, cost=100.0, l2=1 << 20):
        self.l2 = l2
        self.now, self.cost, self.captured, self.calls, self.capturing = 0.0, cost, [], 0, False

    def call(self):
        if self.capturing:
            self.captured[-1] += 1
        else:
            self.calls += 1
            self.now += self.cost

    def event(self, enable_timing):
        event = types.SimpleNamespace(at=None)
        event.record = lambda: setattr(event, "at", self.now)
        event.elapsed_time = lambda end: (end.at - event.at) / 1e3
        return event

    def graph(self):
        self.captured.append(0)
        calls = self.captured
        at = len(calls) - 1

        def replay():
            self.now += self.cost * calls[at]

        return types.SimpleNamespace(replay=replay)

    @contextlib.contextmanager
    def capture(self, graph):
        self.capturing = True
        yield
        self.capturing = False

    def patches(self):
        stream = types.SimpleNamespace(wait_stream=lambda other: None)
        properties = types.SimpleNamespace(L2_cache_size=self.l2)
        return mock.patch.multiple(
            "torch.cuda", Stream=lambda: stream, current_stream=lambda: stream, stream=lambda s: contextlib.nullcontext(), synchronize=lambda: None,
            Event=self.event, CUDAGraph=self.graph, graph=self.capture, get_device_properties=lambda n: properties,
        )


@unittest.skipUnless(TORCH, f"{sys.executable} has no torch; PYTHON names another interpreter")
class TestTiming(unittest.TestCase):
    def median(self, cost, operands):
        from gpu_lib.peer_timing import median_us

        device = Device(cost)
        with device.patches():
            us = median_us(lambda one: device.call(), operands)
        return us, device.captured

    def test_a_graph_has_fifty_calls_and_whole_rounds(self):
        self.assertEqual(self.median(100.0, [1]), (100.0, [50]))
        self.assertEqual(self.median(100.0, [1, 2, 3, 4]), (100.0, [52]))

    def test_long_calls_are_fewer(self):
        self.assertEqual(self.median(5000.0, [1]), (5000.0, [5]))
        self.assertEqual(self.median(50_000.0, [1, 2]), (50_000.0, [4]))

    def test_a_function_with_graphs_of_its_own_is_replayed(self):
        from gpu_lib.peer_timing import replayed_us

        device = Device(20.0)
        with device.patches():
            self.assertEqual(replayed_us(lambda one: device.call(), [1, 2, 3]), 20.0)
        self.assertEqual(device.calls, 51 * 23)

    def test_copies_exceed_twice_the_cache(self):
        from gpu_lib.peer_timing import copies

        with Device().patches():
            # 2 MiB of copies and one more; never a single one; 256 at most.
            self.assertEqual(len(copies(lambda: 0, 0, 1 << 19)), 6)
            self.assertEqual(len(copies(lambda: 0, 0, 1 << 30)), 2)
            self.assertEqual(len(copies(lambda: 0, 0, 1)), 256)


@unittest.skipUnless(TORCH, f"{sys.executable} has no torch; PYTHON names another interpreter")
class TestPaths(unittest.TestCase):
    """Each kind of form once along the path that a GPU takes, with small operands on a processor."""

    SMALL = {
        "attention/openflamingo/b8-l2048-n8": dict(batch=2, rows=12, heads=4, kv_heads=2, head_dim=8, keys=[3 * 64, 0],
                                                   visibility={"rule": "same_media", "media": 3}),
        "attention/openflamingo-resampler/b32": dict(batch=2, rows=8, heads=2, kv_heads=2, head_dim=8, keys=[16, 4], visibility={"rule": "all"}),
        "linear/decode/1x64-64": dict(rows=1, n=64, k=64, activation="none", epilogue="gated_residual"),
    }

    def value(self, kind, name, form, **more):
        import torch

        from gpu_lib import peer_attention, peer_blocks, peer_modules, peer_timing

        build = peer_modules.build
        with contextlib.ExitStack() as planted:
            for patch in (
                Device(l2=1 << 10).patches(), mock.patch.object(peer_timing, "where", lambda check: ("cpu", torch.float32)),
                mock.patch.object(peer_timing, "LAUNCHES", 2), mock.patch.object(torch, "compile", lambda function, **options: function),
                mock.patch.dict(cases.CASES, {name: {"case": name, "shape": shape} for name, shape in self.SMALL.items()}),
                mock.patch.object(peer_attention, "over_lengths", lambda device: peer_attention.each_sequence),
                mock.patch.object(peer_modules, "build", lambda name, shape, check: build(name, shape, True)),
                mock.patch.object(peer_blocks, "launches", lambda run: run() is not None and 7),
            ):
                planted.enter_context(patch)
            return peer_worker.value_of(peer_jobs.job(kind, name, form, 20, **more), check=False)

    def test_attention(self):
        for form in ("sdpa_flash", "sdpa_math", "varlen", "varlen_packed", "flex_64x64", "flex_128x128"):
            answer = self.value("attention", "attention/openflamingo/b8-l2048-n8", form)
            # Nothing tells the stand-in's clock that time goes by.
            self.assertEqual(answer["value"], 0.0, (form, answer))
        self.assertEqual(list(answer["notes"]), ["mask_us"])
        self.assertEqual(self.value("attention", "attention/openflamingo-resampler/b32", "flex"), {"value": 0.0, "notes": {}})
        self.assertTrue(self.value("attention", "attention/openflamingo-resampler/b32", "sdpa_cudnn")["value"].startswith("refused: RuntimeError: "))

    def test_products_and_chains(self):
        self.assertEqual(self.value("product", "p", "bare", shape=(5, 6, 7, 1))["value"], 0.0)
        self.assertEqual(self.value("product", "p", "bare", shape=(5, 6, 7, 2))["value"], 0.0)
        for form in ("bare_product", "eager", "compile"):
            self.assertEqual(self.value("chain", "linear/decode/1x64-64", form)["value"], 0.0, form)

    def test_blocks(self):
        for name in ("resampler/openflamingo/b1", "gated_block/openflamingo-9b-decode/n8"):
            for form in ("eager", "compile", "compile_graphs"):
                self.assertEqual(self.value("block", name, form), {"value": 0.0, "notes": {"launches": 7}}, (name, form))
        self.assertEqual(self.value("block", "gated_block/openflamingo-9b-decode/n8", "compile_cached")["value"], 0.0)
        self.assertEqual(self.value("block", "no/such", "eager")["value"], "refused: ValueError: no public module for no/such")

    def test_a_form_that_is_wrong_there_is_told(self):
        import torch

        from gpu_lib import peer_attention

        name = "attention/openflamingo/b8-l2048-n8"
        with mock.patch.object(peer_attention, "phi", lambda case, device, phi=peer_attention.phi: phi(case, device) % case["media"] + 1):
            self.assertTrue(self.value("attention", name, "sdpa_math")["value"].startswith("wrong: differs by "))
        with mock.patch.object(torch.Tensor, "tanh", lambda gate: 2 * gate):
            self.assertTrue(self.value("chain", "linear/decode/1x64-64", "eager")["value"].startswith("wrong: differs by "))

    def test_what_is_near_in_bf16(self):
        import torch

        from gpu_lib.peer_timing import Wrong, near

        near(torch.tensor([1.0, 2.05]), torch.tensor([1.0, 2.0]))
        for wrong, said in ((2.07, "differs by 0.07 where the largest value is 2"), (float("nan"), "differs by nan where the largest value is 2")):
            with self.assertRaises(Wrong) as refused:
                near(torch.tensor([1.0, wrong]), torch.tensor([1.0, 2.0]))
            self.assertEqual(str(refused.exception), said)

    def test_a_broken_device_is_told(self):
        from gpu_lib import peer_products

        with mock.patch.object(peer_products, "bare", side_effect=RuntimeError("CUDA error: an illegal memory access was encountered")):
            answer = self.value("product", "p", "bare", shape=(1, 1, 1, 1))
        self.assertEqual(answer, {"value": "refused: RuntimeError: CUDA error: an illegal memory access was encountered", "notes": {}, "fatal": True})


if __name__ == "__main__":
    unittest.main()
