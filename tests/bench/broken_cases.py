"""Cases of which some are wrong, crash or hang: what the GPU suite must survive."""

import os
import time

import torch

from bench.gpu.case import Case, Prepared
from bench.gpu.prediction import Work


def _prepared(ours=lambda: None, peers=None, check=lambda: None) -> Prepared:
    return Prepared(ours, peers if peers is not None else {"peer": lambda: None}, check, Work(bytes=1e6))


def _wrong():
    assert torch.equal(torch.ones(1), torch.zeros(1)), "ones are not zeros"


def _lacking():
    raise RuntimeError("no such kernel here")


CASES = [
    Case("first", "right", lambda place: _prepared(), "peer", (0.5, 1.0, 2.0)),
    Case("wrong", "result", lambda place: _prepared(check=_wrong)),
    Case("crash", "in the kernel", lambda place: _prepared(ours=lambda: os._exit(9))),
    Case("peer", "is missing", lambda place: _prepared(peers={"peer": _lacking}), "peer"),
    Case("hang", "in the kernel", lambda place: _prepared(ours=lambda: time.sleep(600)), seconds=0.0),
    Case("last", "right", lambda place: _prepared()),
]
