"""One form at a time, with PyTorch: what runs in a process of its own, so that a fault or a compiler that hangs costs one form.

Reads a job a line, {"kind", "name", "form", "shape"}, and answers each with a line that begins with ANSWER.
"""

import json
import os
import signal
import sys
import threading
import time

ANSWER = "peer-answer: "


def value_of(job, check):
    """What became of a job: its value, and what is noted beside it."""
    from gpu_lib import peer_attention, peer_blocks, peer_products
    from gpu_lib.cases import attention
    from gpu_lib.peer_timing import Wrong, reason, sticky

    notes = {}
    try:
        if job["kind"] == "attention":
            us, notes = peer_attention.measure(attention(job["shape"]), job["form"], check)
        elif job["kind"] == "product":
            us = peer_products.bare(*job["shape"], check)
        elif job["kind"] == "chain":
            us = peer_products.measure(job["shape"], job["form"], check)
        else:
            us, kernels = peer_blocks.measure(job, check)
            notes = {} if kernels is None else {"launches": kernels}
        return {"value": "right" if us is None else us, "notes": notes}
    except Wrong as error:
        return {"value": f"wrong: {error}"[:300], "notes": {}}
    except Exception as error:  # what a compiler or a library raises is of any kind; the reason is recorded
        return {"value": f"refused: {reason(error)}", "notes": {}, "fatal": sticky(error)}
    finally:
        tidy()


def tidy():
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        try:
            torch.cuda.empty_cache()
        except RuntimeError:
            pass  # the device is gone: the answer says so


def about():
    import torch

    on_gpu = torch.cuda.is_available()
    return {"torch": torch.__version__, "cuda": torch.version.cuda, "device": torch.cuda.get_device_name(0) if on_gpu else "cpu (checks only)"}


def end_with(parent):
    """Ends this process and the compilers that it started when the one that asks is gone."""
    while os.getppid() == parent:
        time.sleep(1)
    os.killpg(os.getpgid(0), signal.SIGKILL)


def main():
    threading.Thread(target=end_with, args=[os.getppid()], daemon=True).start()
    print(ANSWER + json.dumps(about()), flush=True)
    for line in sys.stdin:
        answer = value_of(json.loads(line), check=False)
        print(ANSWER + json.dumps(answer), flush=True)
        if answer.get("fatal"):
            return
