"""The rooms of scripts/gpu: what it does lies here, a file per concern. See docs/hardware.md."""
