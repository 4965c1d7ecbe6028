"""The GPU suite: `python -m bench gpu` builds, checks every kernel, then times it, in minutes on one card.

    python -m bench gpu [NAME ...] [--seconds 540] [--json FILE] [--page FILE] [--dry-run]

Each case compares with the reference first, then times ours and the peers in turns. Cases run in a worker
process (worker.py); one that crashes or hangs costs its own row, and the next worker goes on behind it. `--dry-run`
does the same without a GPU, on small tensors under Triton's interpreter, with a clock that always says one second.
Besides what was measured each row has a prediction for an H100 (prediction.py), made before any measurement.
"""
