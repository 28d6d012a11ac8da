"""What ThreadSanitizer reported, without what tests/sanitized/excused.txt excuses.

    scripts/sanitizer_report.py EXCUSED LOG...

Its own suppressions look for a name in any frame of a stack, and every kernel that a thread of rayon runs has rayon in its stack: one for rayon would
hide them all. Here only the frames count that lie between the access and the first code of ours: who did it, not who called.

Prints the reports that remain; fails if there are any, or if frames have no file names (no llvm-symbolizer, no addr2line).
"""

import pathlib
import re
import sys

FRAME = re.compile(r"^\s+#\d+ ")
# Location behind a file: "    #1 a::f<of, types> /path/of.rs:12:34 (binary+0x1234) (BuildId: 12ab)"
BINARY = re.compile(r"(:\d+)*( \(\S+\+0x[0-9a-f]+\))?( \(BuildId: \w+\))?$")
ACCESS = re.compile(r"^  (Previous )?(atomic )?(read|write) of size", re.IGNORECASE)
# Code of the standard library's harness and of dependencies is not ours.
FOREIGN = ("/rustc/", "/rust/deps/", "/.cargo/registry/", "/compiler-rt/", "tsan/", "sanitizer_common/")


def accesses(report):
    """The paths of the frames of each of the two accesses, the innermost first."""
    stacks = []
    for line in report.splitlines():
        if ACCESS.match(line):
            stacks.append([])
            continue
        if not line.strip():
            if len(stacks) == 2:
                break
            continue
        if stacks and FRAME.match(line):
            stacks[-1].append(BINARY.sub("", line).split(" ")[-1])
    return stacks


def is_foreign(path):
    return any(part in path for part in FOREIGN)


def before_ours(stack):
    """The frames of others in front of the first one of ours."""
    ours = next((i for i, path in enumerate(stack) if not is_foreign(path)), len(stack))
    return stack[:ours]


def is_excused(report, excused):
    return any(part in path for stack in accesses(report) for path in before_ours(stack) for part in excused)


def remaining(log, excused):
    """How many reports there are, and those that are not excused."""
    reports = [part for part in log.split("==================") if "WARNING: ThreadSanitizer" in part]
    named = [report for report in reports if any("/" in path for stack in accesses(report) for path in stack)]
    if len(named) < len(reports):
        sys.exit("sanitizer_report.py: error: a report without file names; llvm-symbolizer or addr2line gives them")
    return len(reports), [report for report in reports if not is_excused(report, excused)]


def main(excused, *logs):
    lines = pathlib.Path(excused).read_text().splitlines()
    parts = [line.split()[0] for line in lines if line.strip() and not line.startswith("#")]
    left = 0
    for log in logs:
        count, reports = remaining(pathlib.Path(log).read_text(errors="replace"), parts)
        print(f"{log}: {count} reports, {len(reports)} not excused")
        for report in reports:
            print(report.strip())
        left += len(reports)
    sys.exit(1 if left else 0)


if __name__ == "__main__":
    main(*sys.argv[1:])
