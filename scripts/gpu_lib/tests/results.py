"""Results: floors and goals that follow from what was measured, verdicts, the table, the plots. All numbers here are made up."""

import json
import pathlib
import subprocess
import sys
import tempfile
import unittest
import xml.etree.ElementTree

from gpu_lib import cases, plots
from gpu_lib.results import floor_of_steps, results
from gpu_lib.verdict import rows, table, verdict

PHI, KEYS, BLOCK, SMALL = "attention/openflamingo/b8-l2048-n8", "attention/blip2-cross/b32-k257", cases.BLOCKS[0], "resampler/openflamingo/b1"
ROOFS = {"copy_bytes_per_second": 4e12, "product_flops": 800e12, "fp32_flops": 60e12}
STEPS = [
    {"op": "norm", "bytes": 8_000_000, "flops": 1000, "product": None, "count": 2},
    {"op": "linear", "bytes": 1, "flops": 1, "product": {"rows": 64, "n": 128, "k": 256, "batch": 1}, "count": 3},
    {"op": "attention", "bytes": 1000, "flops": 4_000_000_000, "product": None, "count": 1},
]


def record(case, median, **more):
    return {"case": case, "backend": "cuda", "dtype": "bf16", "cold": True, "median_us": median, "floor_us": None, "bar_us": None, "launches": 1,
            "shape": cases.shape_of(case), "peers": {}, **more}


class TestFloors(unittest.TestCase):
    def test_products_count_as_measured_and_the_rest_by_the_roofs(self):
        # 2 x 2 us of memory, 3 x 7 us of products, 5 us of operations.
        floor, why = floor_of_steps(STEPS, {"64x256-128": 7.0}, ROOFS)
        self.assertAlmostEqual(floor, 30.0)
        self.assertIsNone(why)

    def test_without_a_product_or_a_roof_there_is_none(self):
        self.assertEqual(floor_of_steps(STEPS, {}, ROOFS), (None, "no bare time of the product 64x256-128: not measured"))
        why = floor_of_steps(STEPS, {"64x256-128": "left out: no time"}, ROOFS)[1]
        self.assertEqual(why, "no bare time of the product 64x256-128: left out: no time")
        roofs = {"copy_bytes_per_second": 4e12, "product_flops": None, "product_reason": "no cuBLASLt"}
        floor, why = floor_of_steps(STEPS, {"64x256-128": 7.0}, roofs)
        self.assertEqual((floor, why), (None, "the device's roofs are not measured: no cuBLASLt"))


class TestVerdict(unittest.TestCase):
    def said(self, *arguments, **more):
        return verdict(record(*arguments, **more))

    def test_under_phi_each_must_be_slower(self):
        peers = {"varlen": 12.0, "sdpa_flash": "refused: no mask", "flex": 30.0, "flex_64x64": 9.0}
        self.assertEqual(self.said(PHI, 11.9, bar_us=14.0, peers=peers), "pass")
        self.assertEqual(self.said(PHI, 12.0, bar_us=14.0, peers=peers), "fail: behind varlen by 0.0 %")
        self.assertEqual(self.said(PHI, 15.0, bar_us=14.0, peers=peers), "fail: over the bar by 7.1 %, behind varlen by 25.0 %")

    def test_elsewhere_three_percent_are_allowed(self):
        self.assertEqual(self.said(KEYS, 10.3, bar_us=11.0, peers={"sdpa_cudnn": 10.0}), "pass")
        self.assertEqual(self.said(KEYS, 10.4, bar_us=11.0, peers={"sdpa_cudnn": 10.0}), "fail: behind sdpa_cudnn by 4.0 %")

    def test_what_is_not_measured_is_open(self):
        self.assertEqual(self.said(PHI, None), "open: no time")
        self.assertEqual(self.said(PHI, 10.0, bar_us=14.0, peers={"varlen": "refused: head_dim"}), "open: varlen: refused: head_dim")
        grouped = "attention/flamingo-9b/b8-l2048-n8-kv8"
        self.assertEqual(self.said(grouped, 80.0, bar_us=82.0), "open: varlen: not measured, varlen_packed: not measured")
        self.assertEqual(self.said(grouped, 80.0, bar_us=82.0, peers={"varlen": "refused: groups", "varlen_packed": 90.0}), "pass")
        self.assertEqual(self.said(KEYS, 9.0, bar_us=9.5), "open: no peer was timed")
        self.assertEqual(self.said(BLOCK, 9.0, peers={"compile": 10.0}, floor_reason="no roofs"), "open: no bar: no roofs")
        self.assertEqual(self.said(SMALL, 9.0, peers={"compile": 10.0}), "open: compile_graphs: not measured")

    def test_bare_products_are_no_rivals(self):
        self.assertEqual(self.said(cases.OUT_PROJECTION, 100.0, bar_us=105.0, peers={"bare_product": 80.0, "eager": 240.0}), "pass")

    def test_a_failed_check_is_a_failure(self):
        self.assertEqual(verdict({"case": PHI, "backend": "cuda", "dtype": "bf16", "failed": ["row 1", "row 2"]}), "fail: its check: row 1; row 2")


class InFolder(unittest.TestCase):
    def setUp(self):
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.out = pathlib.Path(temporary.name)

    def put(self, name, **report):
        (self.out / name).write_text(json.dumps(report))

    def measured(self, theirs="Test GPU"):
        header = {"device": "Test GPU", "driver": "1.2", "clocks": {"clocks.sm": "1980 MHz"}, "date": "2026-01-02T03:04:05+00:00",
                  "commit": "abc1234", "emulated": False, "roofs": ROOFS}
        ours = [record(PHI, 11.0, floor_us=10.0, bar_us=14.0), {**record(PHI, 9.0), "cold": False}, {**record(PHI, 11.5), "dtype": "f16"},
                record(BLOCK, 33.0, steps=STEPS, launches=7), record(cases.FFN, 105.0, steps=STEPS), record(KEYS, 9.9, floor_us=6.6, bar_us=9.5)]
        ours += [record(f"attention/openflamingo/b8-l2048-n{n}", us, floor_us=8.0) for n, us in ((1, 10.5), (64, 13.0))]
        self.put("bench.json", **header, cases=ours)
        forms = {PHI: {"varlen": 13.0, "sdpa_flash": "refused: no mask"}, BLOCK: {"compile": 40.0}, KEYS: {"sdpa_flash": 12.0},
                 cases.FFN: {"bare_products_and_activation": 100.0, "eager": 120.0}, "attention/openflamingo/b8-l2048-n64": {"varlen": 26.0}}
        notes = {BLOCK: {"launches": {"compile": 11}}}
        self.put("peers-cases.json", device=theirs, torch="2.0", cases=forms, products={"64x256-128": 7.0}, notes=notes)
        return results(self.out)


class TestResults(InFolder):
    def one(self, report, name):
        [found] = [r for r in report["cases"] if r["case"] == name and r.get("cold") and r["dtype"] == "bf16"]
        return found

    def test_records_have_goals_and_peers(self):
        report = self.measured()
        self.assertEqual(report, json.loads((self.out / "results.json").read_text()))
        self.assertEqual([report[key] for key in ("device", "driver", "date", "commit")], ["Test GPU", "1.2", "2026-01-02T03:04:05+00:00", "abc1234"])
        block = self.one(report, BLOCK)
        self.assertAlmostEqual(block["floor_us"], 30.0)
        self.assertAlmostEqual(block["bar_us"], 34.5)
        self.assertEqual(block["peer_notes"], {"launches": {"compile": 11}})
        ffn = self.one(report, cases.FFN)
        self.assertAlmostEqual(ffn["bar_us"], 106.0)
        self.assertAlmostEqual(ffn["bar_fused_us"], 103.0)
        self.assertEqual(self.one(report, PHI)["peers"], {"varlen": 13.0, "sdpa_flash": "refused: no mask"})
        # Peers are timed in bf16 with a cold cache; other records have none.
        self.assertEqual([r["peers"] for r in report["cases"] if not r["cold"] or r["dtype"] == "f16"], [{}, {}])

    def test_peers_of_another_device_are_not_beside_ours(self):
        report = self.measured(theirs="Other GPU")
        self.assertEqual([r["peers"] for r in report["cases"]], [{}] * len(report["cases"]))
        self.assertEqual(report["peers_on"], "Other GPU")
        self.assertEqual(self.one(report, BLOCK)["bar_us"], None)

    def test_the_table_has_a_line_per_row_and_the_rows_that_were_not_run(self):
        lines = table(self.measured())
        [block] = [line for line in lines if line.startswith(BLOCK)]
        self.assertEqual(block.split(), [BLOCK, "33.00", "30.00", "34.50", "compile", "40.00", "7", "/", "11", "pass"])
        [keys] = [line for line in lines if line.startswith(KEYS)]
        self.assertTrue(keys.endswith("fail: over the bar by 4.2 %"), keys)
        self.assertEqual(len([line for line in lines if "not run" in line]), len(cases.BARS) - 4)
        self.assertEqual(lines[-1], "Test GPU: 4 pass, 1 fail, 19 open; microseconds, launches ours / theirs")

    def test_wgpu_and_variants_come_along(self):
        self.put("wgpu.json", device="Test GPU", cases=[{**record(PHI, 300.0), "backend": "wgpu", "cold": False}])
        self.put("variants.json", device="Test GPU", cases=[], fastest=[{"case": PHI, "cold": True, "fastest": "media", "times_us": {"media": 11.0}}])
        report = self.measured()
        self.assertEqual([r["median_us"] for r in report["cases"] if r["backend"] == "wgpu"], [300.0])
        self.assertEqual(report["fastest"][0]["fastest"], "media")
        self.assertEqual([r["case"] for r in rows(report)].count(PHI), 1)


class TestPlots(InFolder):
    def texts(self, svg):
        """Texts and titles of an SVG that an XML parser accepts."""
        root = xml.etree.ElementTree.fromstring(svg)
        return [element.text for element in root.iter() if element.tag.endswith(("}text", "}title"))]

    def test_a_family_shows_numbers_and_labels(self):
        drawn = plots.plots(self.measured())
        self.assertEqual(sorted(drawn), ["gpu-blocks.svg", "gpu-growth.svg", "gpu-keys.svg", "gpu-phi.svg", "gpu-products.svg"])
        phi = self.texts(drawn["gpu-phi.svg"])
        for text in (PHI, "11.00 us", "xattn: 11.00 us", "varlen: 13.00 us", "floor", "bar", "varlen", "1x", "2x"):
            self.assertIn(text, phi)
        self.assertIn("Attention under φ: time over the floor, Test GPU, bf16, L2 cold, 2026-01-02, abc1234", phi)
        self.assertNotIn("sdpa_flash", phi)
        self.assertIn("compile: 40.00 us", self.texts(drawn["gpu-blocks.svg"]))

    def test_a_point_stands_where_its_ratio_says(self):
        root = xml.etree.ElementTree.fromstring(plots.family("t", [record(PHI, 20.0, floor_us=10.0, peers={"varlen": 40.0})], "here"))
        across = {title.text: float(dot.get("cx")) for dot in root.iter("{http://www.w3.org/2000/svg}circle") for title in dot}
        # From 1x at 330 to 4x at 850.
        self.assertEqual((across["xattn: 20.00 us"], across["varlen: 40.00 us"]), (590.0, 850.0))

    def test_growth_has_a_point_per_number(self):
        texts = self.texts(plots.plots(self.measured())["gpu-growth.svg"])
        for text in ("xattn, 1: 10.50 us", "xattn, 8: 11.00 us", "xattn, 64: 13.00 us", "varlen, 64: 26.00 us", "images in 2048 rows, batch 8"):
            self.assertIn(text, texts)
        # One point of the growth with text is no line.
        self.assertNotIn("rows of text, 8 images, batch 8", texts)

    def test_the_same_results_give_the_same_bytes(self):
        report = self.measured()
        self.assertEqual(plots.plots(report), plots.plots(json.loads(json.dumps(report))))

    def test_results_without_times_are_refused(self):
        report = self.measured()
        for changed, why in (
            ({"emulated": True}, "f.json: of an emulated device, which tells no time; there is nothing to plot"),
            ({"cases": [record(PHI, None)]}, "f.json: no record has a time (median_us); there is nothing to plot"),
        ):
            with self.assertRaises(plots.Refused) as refused:
                plots.merged([("f.json", {**report, **changed})])
            self.assertEqual(str(refused.exception), why)
        with self.assertRaises(plots.Refused) as refused:
            plots.merged([("a.json", report), ("b.json", {**report, "device": "Other GPU"})])
        self.assertEqual(str(refused.exception), "b.json: of Other GPU, the files before it of Test GPU; times of two devices are not comparable")

    def test_the_command_writes_files_and_refuses_aloud(self):
        self.measured()
        command = [sys.executable, pathlib.Path(__file__).parents[2] / "plot-results", "--out", self.out / "images", self.out / "results.json"]
        done = subprocess.run(command, capture_output=True, text=True)
        self.assertEqual((done.returncode, len(done.stdout.split())), (0, 5), done.stderr)
        self.assertIn("varlen: 13.00 us", (self.out / "images" / "gpu-phi.svg").read_text())
        warm = json.dumps({"device": "Test GPU", "cases": [{**record(PHI, 9.0, floor_us=8.0), "cold": False}]})
        for text, why in (
            (json.dumps({"emulated": True, "cases": []}), "of an emulated device, which tells no time; there is nothing to plot"),
            (warm, "no case in bf16 with a cold cache has a time and a floor; there is nothing to plot"),
            ("{", "Expecting property name enclosed in double quotes"),
            ("[]", "no results of scripts/gpu: AttributeError: 'list' object has no attribute 'get'"),
        ):
            (self.out / "results.json").write_text(text)
            done = subprocess.run(command, capture_output=True, text=True)
            self.assertEqual((done.returncode, done.stdout), (1, ""), text)
            self.assertIn("plot-results: error: ", done.stderr)
            self.assertIn(why, done.stderr)


if __name__ == "__main__":
    unittest.main()
