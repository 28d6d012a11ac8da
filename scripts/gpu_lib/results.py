"""Ours and theirs together: results.json, a record per case as benches/results/ keeps them."""

import json

from gpu_lib import cases
from gpu_lib.delivery import put
from gpu_lib.peer_jobs import product_key
from gpu_lib.speed import load

# A block's goal over the sum of its steps' floors.
BLOCK = 1.15
# A gated FFN's goal: over two bare GEMMs and one pass of the activation in place; with our own
# fused GEMM.
FFN, FFN_FUSED = 1.06, 1.03
HEADER = ("device", "driver", "clocks", "clocks_after", "date", "commit", "binary", "emulated", "roofs", "multiprocessors", "l2_bytes",
          "compute_capability", "details")


def number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def floor_of_steps(steps, products, roofs):
    """The sum of the least times of a block's steps, products at the rate that cuBLASLt alone reaches on them: microseconds, or why not."""
    roofs = roofs or {}
    speed, rate = roofs.get("copy_bytes_per_second"), roofs.get("product_flops")
    total = 0.0
    for step in steps:
        if step.get("product"):
            p = step["product"]
            key = product_key((p["rows"], p["n"], p["k"], p.get("batch", 1)))
            bare = products.get(key)
            if not number(bare):
                return None, f"no bare time of the product {key}: {bare or 'not measured'}"
            total += step["count"] * bare
        elif not (number(speed) and number(rate)):
            return None, f"the device's roofs are not measured: {roofs.get('product_reason') or 'no roofs in bench.json'}"
        else:
            total += step["count"] * 1e6 * max(step["bytes"] / speed, step["flops"] / rate)
    return total, None


def with_goals(record, products, roofs):
    """A record with the floor and the goal that follow from what was measured beside it; those of single ops are in it already."""
    name = record["case"]
    if not (record.get("cold") and record["dtype"] == "bf16") or not (cases.is_block(name) or name.startswith("ffn/")):
        return record
    steps = record.get("steps")
    floor, why = floor_of_steps(steps, products, roofs) if steps else (None, "this binary tells no steps")
    # Without bare GEMMs the floor is the binary's: an H200's 4.3 TB/s and 790 TFLOP/s. No goal
    # follows from it.
    found = {**record} | ({"floor_reason": why} if why else {"floor_us": floor})
    if name in cases.BLOCKS:
        found["bar_us"] = BLOCK * floor if floor else None
    bare = record["peers"].get("bare_products_and_activation")
    if name.startswith("ffn/") and number(bare):
        found |= {"bar_us": FFN * bare, "bar_fused_us": FFN_FUSED * bare}
    return found


def results(out):
    """Writes results.json from the files of the stages; the report that it holds, or None before bench has one."""
    timed = load(out / "bench.json")
    if "cases" not in timed:
        return None
    beside = load(out / "peers-cases.json") or {"cases": {}, "products": {}, "notes": {}}
    # A time of another device cannot be compared.
    same = timed["emulated"] or beside.get("device") in (None, timed["device"])
    theirs, products, notes = (beside.get(key, {}) if same else {} for key in ("cases", "products", "notes"))
    header = {name: timed.get(name) for name in HEADER}
    header |= {"torch": beside.get("torch"), "peers_on": beside.get("device"), "products_us": products}
    records = []
    for record in timed["cases"]:
        asked = record.get("cold") and record["dtype"] == "bf16"
        peers = theirs.get(record["case"], {}) if asked else {}
        about = {"peer_notes": notes[record["case"]]} if asked and record["case"] in notes else {}
        known = {"shape": cases.shape_of(record["case"]), "peers": peers, **about}
        records.append(with_goals({**record, **known}, products, timed.get("roofs")))
    through_vulkan = load(out / "wgpu.json")
    of_variants = load(out / "variants.json")
    records += through_vulkan.get("cases", []) if through_vulkan.get("device") == timed["device"] else []
    report = {**header, "cases": records}
    if of_variants.get("device") == timed["device"]:
        report |= {"variants": of_variants.get("cases", []), "fastest": of_variants.get("fastest", [])}
    put(out / "results.json", (json.dumps(report, indent=2) + "\n").encode())
    return report
