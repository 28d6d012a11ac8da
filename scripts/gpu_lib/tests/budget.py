"""How stages share time, and what comes back of their files."""

import os
import pathlib
import re
import sys
import tarfile
import tempfile
import unittest
from unittest import mock

import gpu
from gpu_lib import delivery
from gpu_lib.budget import LEAST, RESERVE, WEIGHTS, Budget

ROOT = pathlib.Path(__file__).parents[3]


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class TestBudget(unittest.TestCase):
    def test_shares_are_by_weight_and_together_all_but_the_reserve(self):
        shares = Budget(WEIGHTS, 560, clock=Clock()).shares()
        self.assertEqual(list(shares), list(WEIGHTS))
        self.assertAlmostEqual(sum(shares.values()), 560 - RESERVE)
        self.assertAlmostEqual(shares["bench"] / shares["wrappers"], WEIGHTS["bench"] / WEIGHTS["wrappers"])

    def test_what_a_stage_leaves_the_later_ones_have(self):
        clock = Clock()
        budget = Budget(["wrappers", "bench"], 10 + 90, clock=clock)
        self.assertAlmostEqual(budget.take("wrappers"), 10)
        clock.now += 2
        self.assertAlmostEqual(budget.take("bench"), 88)

    def test_a_stage_without_time_is_not_begun(self):
        clock = Clock()
        budget = Budget(["wrappers", "bench"], 100, clock=clock)
        budget.take("wrappers")
        clock.now += 90 - LEAST + 0.5
        self.assertIsNone(budget.take("bench"))

    def test_without_a_limit_each_has_the_same(self):
        self.assertEqual(Budget(["verify", "peers"], None, 30).said(), "verify 30 s, peers 30 s")


class TestPlan(unittest.TestCase):
    """The calls that docs/hardware.md writes out."""

    # Limits of such a machine: characters of a command, seconds per call and in all, and the
    # overhead of a start and transfers.
    CHARACTERS, CALL, SESSION, START = 2000, 600, 1800, 200

    def test_calls_fit_the_machine_and_are_understood(self):
        text = (ROOT / "docs/hardware.md").read_text()
        plan = text[text.index("## The plan") : text.index("## The stages")]
        blocks = [block.strip() for block in re.findall(r"```sh\n(.*?)```", plan, re.S)]
        first, calls = blocks[0], blocks[1:]
        limits = [int(seconds) for seconds in re.findall(r"limit (\d+) s", plan)]
        within = [float(re.search(r"--within (\d+)", call)[1]) for call in calls]
        self.assertEqual((len(calls), len(limits)), (3, 3))
        for call, seconds, limit in zip(calls, within, limits):
            self.assertLess(len(f"{first}; {call}"), self.CHARACTERS)
            # Ends by itself before its limit, since only files under $OUT by then come back.
            self.assertLessEqual(seconds + 30, limit)
            self.assertLessEqual(limit, self.CALL)
        self.assertLessEqual(sum(within) + self.START, self.SESSION)
        for call in calls:
            words = call.split(" 2>&1")[0].replace('"$OUT"', "/tmp/out").split()
            self.assertEqual(words[0], "scripts/gpu")
            with mock.patch("sys.argv", words), mock.patch.object(gpu.cases, "BINARIES", [pathlib.Path(sys.executable)]):
                arguments = gpu.parsed()
            self.assertEqual(str(arguments.deliver), "/tmp/out")
        # The last call names no stage, and so has them all.
        self.assertEqual(arguments.stages, list(WEIGHTS))


class TestDelivery(unittest.TestCase):
    def setUp(self):
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.work, self.out = (pathlib.Path(temporary.name) / name for name in ("work", "out"))
        self.work.mkdir()

    def names(self):
        with tarfile.open(self.out / "gpu.tar.gz") as archive:
            return sorted(archive.getnames())

    def test_everything_comes_back_in_few_files(self):
        for n in range(20):
            (self.work / f"stage-{n}.json").write_text("{}")
        (self.work / "results.json").write_text('{"cases": []}')
        delivered = delivery.Delivery(self.work, self.out)
        delivered.update(now=True)
        self.assertEqual(sorted(path.name for path in self.out.iterdir()), ["gpu.tar.gz", "results.json"])
        self.assertEqual(len(self.names()), 21)
        self.assertEqual(delivered.faults(), [])

    def test_a_file_too_large_stays_out_and_is_named(self):
        (self.work / "verify-f32.json").write_bytes(os.urandom(4000))
        (self.work / "bench.json").write_text("{}")
        with mock.patch.object(delivery, "MOST_BYTES", 2000):
            delivered = delivery.Delivery(self.work, self.out)
            delivered.update(now=True)
            self.assertEqual(self.names(), ["gpu/bench.json"])
            self.assertEqual(delivered.faults(), ["verify-f32.json: too large for the archive"])
        self.assertEqual((self.out / "left-out.txt").read_text(), "verify-f32.json\n")

    def test_files_beyond_the_limits_are_said(self):
        delivered = delivery.Delivery(self.work, self.out)
        delivered.update(now=True)
        (self.out / "log").write_bytes(b"x" * 11)
        with mock.patch.object(delivery, "MOST_BYTES", 10), mock.patch.object(delivery, "MOST_FILES", 1):
            faults = delivered.faults()
        self.assertIn("log: 11 bytes, at most 10 come back", faults)
        self.assertIn("2 files, at most 1 come back: gpu.tar.gz, log", faults)

    def test_what_others_still_write_is_no_file_yet(self):
        (self.work / "bench.json").write_text("{}")
        (self.work / "peers-cases.json.part").write_text("{")
        (self.work / "gone.json").symlink_to(self.work / "nowhere")
        delivery.Delivery(self.work, self.out).update(now=True)
        self.assertEqual(self.names(), ["gpu/bench.json"])

    def test_results_that_cannot_be_made_keep_nothing_back(self):
        (self.work / "bench.json").write_text("{}")
        delivered = delivery.Delivery(self.work, self.out, lambda: {}["cases"])
        delivered.update(now=True)
        self.assertEqual(self.names(), ["gpu/bench.json"])
        self.assertEqual(delivered.faults(), ["results could not be made: KeyError: 'cases'"])

    def test_updates_are_seconds_apart_and_refresh_first(self):
        clock, made = Clock(), []
        delivered = delivery.Delivery(self.work, self.out, lambda: made.append(clock.now), clock)
        delivered.update()
        clock.now += delivery.SECONDS - 1
        delivered.update()
        self.assertEqual(made, [100.0])
        clock.now += 2
        delivered.update()
        self.assertEqual(made, [100.0, 106.0])


if __name__ == "__main__":
    unittest.main()
