"""How stages share the time of one call."""

import time

# By value: a wrong instruction makes all else worthless, a wrong result its time.
WEIGHTS = {"wrappers": 1, "verify": 5, "sanitize": 4, "bench": 8, "peers": 12, "variants": 6, "wgpu": 4}
# Reserved for the end: results, verdicts, the archive.
RESERVE = 10
# A stage with less is not begun.
LEAST = 5


class Budget:
    """Seconds for the stages that are still to come. What a stage does not use, the later ones share."""

    def __init__(self, stages, within=None, each=470, clock=time.monotonic):
        self.stages, self.each, self.clock = list(stages), each, clock
        self.ends = None if within is None else clock() + within - RESERVE

    def shares(self):
        """Seconds of each stage still to come, if none ends early."""
        if self.ends is None:
            return {stage: self.each for stage in self.stages}
        left = max(self.ends - self.clock(), 0)
        total = sum(WEIGHTS[stage] for stage in self.stages)
        return {stage: left * WEIGHTS[stage] / total for stage in self.stages}

    def take(self, stage):
        """Begins the next stage: its seconds, or None where so few are left that it cannot begin."""
        seconds = self.shares()[stage]
        self.stages.remove(stage)
        return seconds if seconds >= LEAST else None

    def said(self):
        return ", ".join(f"{stage} {seconds:.0f} s" for stage, seconds in self.shares().items())
