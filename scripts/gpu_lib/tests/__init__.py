"""Tests of scripts/gpu's parts: scripts/test-gpu runs them. None needs a GPU; those of PyTorch's forms need PyTorch."""
