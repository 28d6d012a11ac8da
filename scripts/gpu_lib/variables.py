"""The variables that name a kernel in place of the backend's own choice, and what they may say in this binary."""

import re

from gpu_lib.stage import ended

# A kernel is placed on the device while the one before it still runs.
DEPENDENT = {"XATTN_CUDA_DEPENDENT_LAUNCH": "1"}
# By op.
VARIABLES = {"attention": "XATTN_CUDA_ATTENTION", "linear": "XATTN_CUDA_LINEAR"}


def words_of(stage, variable):
    """What a variable may say, in the words with which the binary refuses another."""
    _, text = ended(stage.xattn("devices"), 60, {variable: "?"})
    found = re.search(r"expected (.+), got \?", text)
    return found[1].split(", ") if found else []


def for_hopper(stage):
    """Op, variable and word of each kernel that only Hopper has, and that no table chooses before a GPU has measured it."""
    return [(op, variable, word) for op, variable in VARIABLES.items() for word in words_of(stage, variable) if "hopper" in word]
