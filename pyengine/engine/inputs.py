"""What a step reads: ids, positions, block tables and what is sampled by, in buffers made once and written in place.

A captured step holds their addresses. On a GPU they are written on the host and copied over in one go before a step.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from ..kernels._capture import Decoder, Loop
from .cache import PAGE
from .scheduler import Request

ALIGN = 64  # of each buffer
DUMMY = ()  # what a dummy's row of the block table holds


class Inputs:
    """What a step reads, at fixed addresses: tensors for the kernels, and numpy views to write them.

    Staged, the views are of memory on the host, which upload() copies to the device: the block table only where it
    has changed, the rest as one piece.
    """

    def __init__(
        self,
        tokens: int,
        rows: int,
        pages_per_request: int,
        dummy_page: int,
        device: torch.device,
        staged: bool = False,
    ):
        i32, i64, f32 = torch.int32, torch.int64, torch.float32
        fields: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {
            "ids": (i64, (tokens,)),
            "positions": (i32, (tokens,)),  # of each token in its request
            "slots": (i32, (tokens,)),  # where in the cache its key and value go
            "starts": (i32, (rows + 1,)),  # first token of each request
            "lengths": (i32, (rows,)),  # of each request, with this step's tokens
            "last": (i64, (tokens,)),  # tokens that are sampled after
            "seeds": (i64, (tokens,)),  # from here on: for each of these
            "sample_positions": (i64, (tokens,)),  # of the token to sample
            "temperature": (f32, (tokens,)),
            "top_k": (i32, (tokens,)),
            "top_p": (f32, (tokens,)),
            "min_p": (f32, (tokens,)),
            "block_table": (i32, (rows, pages_per_request)),
        }
        places, size = {}, 0
        for name, (dtype, shape) in fields.items():
            places[name] = size
            size += -(-math.prod(shape) * dtype.itemsize // ALIGN) * ALIGN
        self._host = torch.zeros(size, dtype=torch.uint8, pin_memory=staged and device.type == "cuda")
        self._device = torch.zeros(size, dtype=torch.uint8, device=device) if staged else self._host

        def views(memory: torch.Tensor) -> Iterator[torch.Tensor]:
            for name, (dtype, shape) in fields.items():
                part = memory[places[name] : places[name] + math.prod(shape) * dtype.itemsize]
                yield part.view(dtype).view(shape)

        (
            self.ids, self.positions, self.slots, self.starts, self.lengths, self.last, self.seeds,
            self.sample_positions, self.temperature, self.top_k, self.top_p, self.min_p, self.block_table,
        ) = views(self._device)  # fmt: skip
        (
            self._ids, self._positions, self._slots, self._starts, self._lengths, self._last, self._seeds,
            self._sample_positions, self._temperature, self._top_k, self._top_p, self._min_p, self._block_table,
        ) = (view.numpy() for view in views(self._host))  # fmt: skip
        self._loop = Loop(  # of decode()
            ids=self._ids.ctypes.data,
            positions=self._positions.ctypes.data,
            slots=self._slots.ctypes.data,
            lengths=self._lengths.ctypes.data,
            sample_positions=self._sample_positions.ctypes.data,
            block_table=self._block_table.ctypes.data,
            width=pages_per_request,
            stops=0,
            stop_count=0,
            sampled=0,
            logprobs=0,
        )
        self._table_at = places["block_table"]
        self._table_changed = False
        self._copied = torch.cuda.Event() if self._device.is_cuda else None
        self._dummy_page = dummy_page
        self._tables: list[tuple | None] = [None] * rows  # what each row of block_table holds
        self._ready: list[Request] = []  # whose parameters the sampling buffers hold
        self._counted = -1  # as many requests of one token each as `starts` describes
        self._decoding: list[Request] = []  # whose next tokens the buffers hold, in a step of `_size` rows
        self._computed: list[int] = []  # the tokens before these
        self._held: list[list[int]] = []  # their pages, and how many there were
        self._counts: list[int] = []
        self._size = 0
        self._stops = np.empty(0, np.int64)  # all ids that end one of these
        self._made = np.empty(0, np.int64), np.empty(0, np.float32)  # ids and logprobs, by decode()

    def upload(self) -> None:
        """Copy what was written to the device, behind what runs there."""
        if self._device is self._host:
            return
        end = len(self._host) if self._table_changed else self._table_at
        self._device[:end].copy_(self._host[:end], non_blocking=True)
        self._table_changed = False
        if self._copied:
            self._copied.record(torch.cuda.current_stream(self._device.device))

    def _begin(self) -> None:
        """Before the host's memory is written again: the copy of the step before must have read it."""
        if self._copied:
            self._copied.synchronize()

    def fill(self, chunks: Sequence[tuple[Request, int]], rows: Sequence[Request]) -> int:
        """Write a plan with its drafts; `rows` names the request of each row to sample. Returns its tokens."""
        self._begin()
        self._counted = -1
        self._decoding = []
        at = 0
        last: list[int] = []
        positions: list[int] = []
        for row, (request, pending) in enumerate(chunks):
            start, end = request.computed, request.computed + pending + len(request.draft)
            count = end - start
            here, there = slice(at, at + count), np.arange(start, end)
            self._ids[here] = request.ids[start : start + pending] + request.draft
            self._positions[here] = there
            pages = np.asarray(request.pages)
            self._slots[here] = pages[there // PAGE] * PAGE + there % PAGE
            self._starts[row], self._lengths[row] = at, end
            self._set_table(row, request)
            at += count
            if start + pending == len(request.ids):
                last += range(at - 1 - len(request.draft), at)
                positions += range(len(request.ids), end + 1)
        self._starts[len(chunks)] = at
        self._last[: len(rows)] = last
        self._set_sampling(rows, positions)
        return at

    def fill_decode(self, requests: Sequence[Request], size: int) -> None:
        """Write one token of each request, and dummies up to `size` rows: nothing but new pages where decode() went
        before."""
        self._begin()
        computed, held = [request.computed for request in requests], [request.pages for request in requests]
        counts = [len(pages) for pages in held]
        if size == self._size and computed == self._computed and requests == self._decoding:
            if held != self._held or counts != self._counts:
                self._set_pages(requests, computed)
                self._held, self._counts = held, counts
            return
        self._set_pages(requests, computed)
        real = len(requests)
        self._ids[:real] = [request.ids[at] for request, at in zip(requests, computed, strict=True)]
        self._positions[:real] = computed
        if self._counted < size:
            self._starts[: size + 1] = np.arange(size + 1)
            self._counted = size
        np.add(self._positions[:real], 1, out=self._lengths[:real])
        self._set_sampling(requests, [len(request.ids) for request in requests])
        for row in range(real, size):
            self._ids[row], self._positions[row], self._lengths[row] = 0, 0, 1
            self._slots[row] = self._dummy_page * PAGE
            if self._tables[row] != DUMMY:
                self._block_table[row, 0], self._tables[row] = self._dummy_page, DUMMY
                self._table_changed = True
        self._decoding, self._computed, self._size = list(requests), computed, size
        self._held, self._counts = held, counts

    def decode(
        self, decoder: Decoder, scored: bool, outputs: Any, most: int
    ) -> tuple[list[int], list[float]]:
        """Up to `most` decode steps after fill_decode(): (ids, logprobs), of each request as many neighbours as steps
        were computed. The buffers then hold what a next step takes. outputs: kept alive, not read.

        Only plain C++ and numpy: weights that have passed through the caches have pushed torch's code out of them,
        and it would take 40 us more to fetch a few numbers.
        """
        rows, decoding = len(self._decoding), self._decoding
        self._decoding = []  # for as long as a refused step may leave the buffers half written
        ids, logprobs = self._results(rows * most)
        done = decoder.run(rows, most, self._loop)
        self._decoding, self._computed = decoding, [at + done for at in self._computed]
        if done < most:
            ids, logprobs = (part.reshape(rows, most)[:, :done].ravel() for part in (ids, logprobs))
        return ids.tolist(), logprobs.tolist() if scored else [math.nan] * len(ids)

    def _results(self, size: int) -> list[np.ndarray]:
        """Where decode() puts ids and logprobs."""
        if len(self._made[0]) < size:
            self._made = np.empty(size, np.int64), np.empty(size, np.float32)
            sampled, logprobs = (part.ctypes.data for part in self._made)
            self._loop = self._loop._replace(sampled=sampled, logprobs=logprobs)
        return [part[:size] for part in self._made]

    def _set_pages(self, requests: Sequence[Request], computed: Sequence[int]) -> None:
        """The pages of requests, and where in them a token of each goes."""
        for row, request in enumerate(requests):
            self._set_table(row, request)
        self._slots[: len(requests)] = [
            r.pages[at // PAGE] * PAGE + at % PAGE for r, at in zip(requests, computed, strict=True)
        ]

    def _set_table(self, row: int, request: Request) -> None:
        held = (request.number, request.preemptions, len(request.pages))
        if self._tables[row] != held:
            self._tables[row] = held
            self._block_table[row, : len(request.pages)] = request.pages
            self._table_changed = True

    def _set_sampling(self, requests: Sequence[Request], positions: Sequence[int]) -> None:
        rows = len(requests)
        if self._ready[:rows] != requests:
            self._ready = list(requests)
            self._seeds[:rows] = [request.seed for request in requests]
            self._temperature[:rows] = [request.params.temperature for request in requests]
            self._top_k[:rows] = [request.params.top_k for request in requests]
            self._top_p[:rows] = [request.params.top_p for request in requests]
            self._min_p[:rows] = [request.params.min_p for request in requests]
            self._stops = np.array(sorted({i for request in requests for i in request.params.stop}), np.int64)
            self._loop = self._loop._replace(stops=self._stops.ctypes.data, stop_count=len(self._stops))
        self._sample_positions[:rows] = positions
