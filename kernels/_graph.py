"""Capturing a step on a GPU: its launches as one CUDA graph, replayed without Python.

Every address and size is frozen, as in _capture.py: inputs are written into the tensors that the step read, outputs
are read from the tensors that it returned. The step must not wait for the device, and must not copy from the host.
"""

from collections.abc import Callable
from typing import Any

import torch

Outputs = tuple[torch.Tensor, ...]


class Graphs:
    """Captures steps that never run at once, so that they may share the memory of what they compute on the way."""

    def __init__(self, device: torch.device):
        self.device = device
        self._pool: Any = None

    def capture(self, step: Callable[[], Outputs]) -> tuple[Any, Outputs]:
        """(what replays the step, its outputs); the step runs twice, once to compile what it calls and to make tables.

        Raises RuntimeError for a step that cannot be captured.
        """
        step()
        return self._record(step)

    def _record(self, step: Callable[[], Outputs]) -> tuple[Any, Outputs]:
        torch.cuda.synchronize(self.device)
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            outputs = step()
        graph.replay()  # capturing computes nothing
        return graph, outputs
