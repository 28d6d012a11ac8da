"""The last word on each case: ours, the floor, the goal, the best of the others, and whether that is what was asked."""

from gpu_lib import cases
from gpu_lib.results import number

# The allowed lag behind the best on rows that are not attention under φ.
BEHIND = 0.03


def rivals(record):
    """Times of forms that do the same work; bare products do less, and single forms of FlexAttention stand behind its best."""
    return {name: us for name, us in record["peers"].items() if number(us) and not name.startswith(("bare_", "flex_"))}


def ahead_of_each(record):
    """Whether every form must be slower: attention under φ, and whole blocks."""
    return cases.is_phi(record) or cases.is_block(record["case"])


def strongest(record):
    """The forms that count most, one of which must have a time: flash attention over variable lengths under φ, torch.compile of blocks."""
    if cases.is_phi(record):
        return ["varlen", "varlen_packed"] if cases.shares_keys(record) else ["varlen"]
    if cases.is_small(record["case"]):
        return ["compile_graphs"]
    return ["compile"] if record["case"] in cases.BLOCKS else []


def judged(record):
    """What is wrong with a case, and what is not known of it."""
    faults, unknown = [], []
    ours, bar = record.get("median_us"), record.get("bar_us")
    if record.get("failed"):
        return [f"its check: {'; '.join(record['failed'])}"], []
    if not number(ours):
        return [], ["no time"]
    if number(bar) and ours > bar:
        faults.append(f"over the bar by {100 * (ours / bar - 1):.1f} %")
    if not number(bar) and (record["case"] in cases.BLOCKS or record["case"].startswith("ffn/")):
        unknown.append(f"no bar: {record.get('floor_reason') or 'nothing bare to compare with'}")
    others = rivals(record)
    for name, us in sorted(others.items(), key=lambda item: item[1]):
        if (ours >= us) if ahead_of_each(record) else (ours > (1 + BEHIND) * us):
            faults.append(f"behind {name} by {100 * (ours / us - 1):.1f} %")
    needed = strongest(record)
    if needed and not any(name in others for name in needed):
        unknown += [f"{name}: {record['peers'].get(name, 'not measured')}" for name in needed]
    if not needed and not others and record["case"] in cases.BARS:
        unknown.append("no peer was timed")
    return faults, unknown


def verdict(record):
    faults, unknown = judged(record)
    if faults:
        return "fail: " + ", ".join(faults)
    return "open: " + ", ".join(unknown) if unknown else "pass"


def rows(report):
    """Of each case in bf16 and cold, the ones with goals first."""
    found = {r["case"]: r for r in report["cases"] if r["dtype"] == "bf16" and r.get("backend") == "cuda" and (r.get("cold") or r.get("failed"))}
    order = [name for name in cases.BARS if name in found] + [name for name in found if name not in cases.BARS]
    return [found[name] for name in order]


def text(us):
    return f"{us:.2f}" if number(us) else "-"


def table(report):
    """Lines of the table, and the count of its verdicts last."""
    lines = [f"{'case (bf16, cold)':<46} {'ours':>9} {'floor':>9} {'bar':>9} {'best of the others':>28} {'launches':>12}  verdict"]
    counts = {"pass": 0, "fail": 0, "open": 0}
    for record in rows(report):
        others = rivals(record)
        best = min(others, key=others.get) if others else None
        theirs = record.get("peer_notes", {}).get("launches", {})
        least = min((n for n in theirs.values() if number(n)), default=None)
        launches = f"{record.get('launches', '-')}" + (f" / {least}" if least else "")
        word = verdict(record)
        counts[word.split(":")[0]] += 1
        named = f"{best} {others[best]:.2f}" if best else "-"
        lines.append(f"{record['case']:<46} {text(record.get('median_us')):>9} {text(record.get('floor_us')):>9} {text(record.get('bar_us')):>9} "
                     f"{named:>28} {launches:>12}  {word}"[:220])
    missing = [name for name in cases.BARS if name not in {r["case"] for r in rows(report)}]
    lines += [f"{name:<46} {'-':>9} {'-':>9} {'-':>9} {'-':>28} {'-':>12}  open: not run" for name in missing]
    counts["open"] += len(missing)
    if "H200" not in str(report.get("device")):
        lines.append("floors and bars of single ops are of an NVIDIA H200: they are not what this device allows")
    lines.append(f"{report.get('device')}: {counts['pass']} pass, {counts['fail']} fail, {counts['open']} open; microseconds, launches ours / theirs")
    return lines
