"""Capturing a step: run it once as Python, and from then on as one call of the compiled module.

    with capture() as step:
        y = model_step()        # runs, and notes each kernel call with its pointers
    step.replay()               # the same calls on the same memory, without Python

As with a CUDA graph, every address and size is frozen. Inputs are written into the tensors that the step read, outputs
are read from the tensors that it returned, and each size of batch has a capture of its own. The step keeps all memory
alive that its calls touch.

Only kernel calls are recorded. Three things that torch would do itself become kernel calls too: table[ids],
contiguous(), and the sum of two gradients of one tensor. Any other torch operator that would compute something raises,
because a replay would miss it. With `gradients` the step may call backward(); the kernels that autograd calls are
recorded as it calls them.
"""

import struct
import weakref
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from . import _native
from ._memory import large_empty

# Operators that make or view memory and compute nothing.
_HARMLESS = frozenset(
    "empty empty_like new_empty empty_strided new_empty_strided view _unsafe_view reshape _reshape_alias slice select "
    "split split_with_sizes narrow unbind detach alias t transpose permute unsqueeze squeeze expand "
    "as_strided".split()
)


_NEW = frozenset("empty empty_like new_empty empty_strided new_empty_strided".split())
LENT = 1 << 20  # bytes of a tensor that is better lent a place in an arena than asked of the allocator


class Arena:
    """Memory for what captured steps allocate. A tensor that dies leaves its place to a later one of its step.

    So a step writes over and over the same few pages, which stay in the processor's cache, and replaying it is
    sound: the calls follow in the order in which the places were given away.
    """

    ALIGN = 64

    def __init__(self, bytes: int = 1 << 28):
        self.overflowed = False  # whether a tensor found no room
        self._memory = large_empty([bytes], torch.uint8).numpy()  # pages come when they are written to
        self._base = self._memory.ctypes.data
        start = -self._base % self.ALIGN
        self._free = [(start, bytes - start)]  # (start, size), by start

    def like(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """A contiguous tensor of this shape and type; None if there is no room."""
        size = -(-max(tensor.nbytes, 1) // self.ALIGN) * self.ALIGN
        for i, (start, room) in enumerate(self._free):
            if room >= size:
                self._free[i] = (start + size, room - size)
                block = self._memory[start : start + size]
                weakref.finalize(block, self._give_back, start, size)  # with the last view of its tensor
                return torch.from_numpy(block)[: tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        self.overflowed = True
        return None

    def lending(self) -> TorchDispatchMode:
        """A context in which tensors of LENT bytes or more that kernels ask of torch lie here while they live.

        From the allocator, blocks of megabytes that come and go leave holes between the small ones that stay.
        """
        return _Lending(self)

    def lent(self, tensor: torch.Tensor) -> torch.Tensor:
        """The same numbers, for a result that is read before another step runs: its place may be given to others."""
        if not self.holds(tensor):
            return tensor
        start = tensor.data_ptr() - self._base
        block = self._memory[start : start + tensor.nbytes]
        return torch.from_numpy(block).view(tensor.dtype).view(tensor.shape)

    def holds(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor lies in this memory."""
        return self._base <= tensor.data_ptr() < self._base + self._memory.nbytes

    def _give_back(self, start: int, size: int) -> None:
        merged: list[tuple[int, int]] = []
        for begin, room in sorted([*self._free, (start, size)]):
            if merged and sum(merged[-1]) == begin:
                merged[-1] = (merged[-1][0], merged[-1][1] + room)
            else:
                merged.append((begin, room))
        self._free = merged


class Call(NamedTuple):
    """One call of a step."""

    name: str  # of the kernel
    arguments: tuple[int, ...]  # as the 64-bit words that are handed over; a float is the bits of a double
    run: Callable[[], None]


class Step:
    """A recorded list of kernel calls; made by capture()."""

    def __init__(self):
        self.kept: list[Any] = []  # all memory that the calls touch, each piece of it once
        self.names: list[str] = []  # of the calls, in order
        self.in_team = True  # whether all of them may be a team's (csrc/cpu/replay.h)
        self._words = array("Q")
        self._module, self._threads = _native.cpu, _native.threads()

    @property
    def nbytes(self) -> int:
        """Of the recording itself, not of the memory that it touches."""
        return 8 * (len(self._words) + len(self.names) + len(self.kept))

    def replay(self) -> None:
        """Run the recorded calls again; ValueError if a kernel refuses its new inputs."""
        address, count = self._words.buffer_info()
        refused = self._module.replay(address, count, self._threads)
        if refused >= 0:
            raise self.refusal(refused)

    def calls(self) -> Iterator[Call]:
        """The recorded calls, each of which may be run again by itself."""
        address, _ = self._words.buffer_info()
        start = 0
        for name in self.names:
            end = start + 3 + self._words[start + 2]

            def run(place: int = address + start * self._words.itemsize, count: int = end - start) -> None:
                self._module.replay(place, count, self._threads)

            yield Call(name, tuple(self._words[start + 3 : end]), run)
            start = end

    def refusal(self, call: int) -> ValueError:
        """What is wrong where a kernel refuses its new inputs."""
        return ValueError(f"replay: call {call}, {self.names[call]}, refuses what it was given")

    def note(self, name: str, arguments: tuple) -> None:
        caller, function, kinds, in_team = self._module.entry(name)
        self._words.extend((caller, function, len(arguments)))
        self._words.frombytes(struct.pack(f"={kinds}", *arguments))
        self.names.append(name)
        self.in_team &= in_team


class Loop(NamedTuple):
    """What decode steps of a batch read and write beside their captures: addresses, and two sizes."""

    ids: int  # (rows,) int64, the tokens computed
    positions: int  # (rows,) int32, theirs
    slots: int  # (rows,) int32, where in the cache their keys and values go
    lengths: int  # (rows,) int32, of the requests with them
    sample_positions: int  # (rows,) int64
    block_table: int  # (rows, width) int32, with the pages of all these steps
    width: int
    stops: int  # (stop_count,) int64, ids that end a request
    stop_count: int
    sampled: int  # (rows, most) int64, written
    logprobs: int  # (rows, most) float32, written where a step scores


class Decoder:
    """Decode steps that follow each other in one call: what a step sampled is the next one's input.

    A step is one captured for all rows, or several for rows one behind the other, each captured on one thread and with
    an arena of its own, which run at once. parts: of each (its rows, the step, the addresses of ids (rows,) int64 that
    it sampled and of their logprobs (rows,) float32 or 0). threads: of the whole.
    """

    def __init__(self, parts: Sequence[tuple[int, Step, int, int]], threads: int):
        self._parts, self._threads = parts, threads
        self._module = parts[0][1]._module
        self._programs, self._rows = array("Q"), 0

    def run(self, rows: int, most: int, loop: Loop) -> int:
        """Up to `most` steps of which the first `rows` rows are requests; how many it was: the last is one in which a
        request sampled an id that ends it. ValueError as in replay().
        """
        if rows != self._rows:
            self._describe(rows)
        programs, _ = self._programs.buffer_info()
        words = array("Q", loop)  # csrc/cpu/decode.h: Loop
        done, part, refused = self._module.decode(
            programs, len(self._parts), self._threads, most, words.buffer_info()[0]
        )
        if refused >= 0:
            raise self._parts[part][1].refusal(refused)
        return done

    def _describe(self, rows: int) -> None:
        first = 0
        programs = array("Q")  # csrc/cpu/decode.h: Program
        for size, step, ids, logprobs in self._parts:
            here = max(0, min(size, rows - first))
            programs.extend((*step._words.buffer_info(), first, here, ids, logprobs, step.in_team))
            first += size
        self._programs, self._rows = programs, rows


class _Recorder:
    """Stands in for the compiled module: runs each call and notes it."""

    def __init__(self, module, step: Step):
        self._module, self._step = module, step

    def __getattr__(self, name: str) -> Any:
        function = getattr(self._module, name)
        if not callable(function):
            return function

        def run(*arguments):
            result = function(*arguments)
            self._step.note(name, arguments)
            return result

        return run


class _Guard(TorchDispatchMode):
    """Allocates from the arena, moves rows by kernels, and refuses what else torch would compute."""

    def __init__(self, arena: Arena):
        super().__init__()
        self._arena = arena

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name == "index":
            result = _gather(*args)
        elif name == "clone":
            result = _contiguous(args[0])
        elif name == "copy_" and args[0].is_contiguous() and args[0].dtype == args[1].dtype:
            result = _contiguous(args[1].expand_as(args[0]), args[0])
        elif name in ("add", "add_") and len(args) == 2 and not kwargs:
            out = args[0] if name == "add_" else _allocate(self._arena, torch.empty_like, args[:1])
            result = _add(args[0], args[1], out)
        elif name in _NEW:
            result = _allocate(self._arena, function, args, kwargs)
        elif name in _HARMLESS:
            result = function(*args, **(kwargs or {}))
        else:
            raise RuntimeError(f"capture: the step runs torch's {name}, which a replay would miss")
        return result


class _Lending(TorchDispatchMode):
    """Allocates what is large from an arena, at some microseconds for each operator: too much where steps are small."""

    def __init__(self, arena: Arena):
        super().__init__()
        self._arena = arena

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket.__name__ in _NEW:
            return _allocate(self._arena, function, args, kwargs, least=LENT)
        return function(*args, **(kwargs or {}))


def _allocate(
    arena: Arena, function, args: Sequence, kwargs: dict | None = None, least: int = 0
) -> torch.Tensor:
    """The CPU tensor of an operator that makes new memory: in the arena if it has `least` bytes and finds room."""
    kwargs = kwargs or {}
    wish = function(*args, **{**kwargs, "device": "meta"})  # takes nothing from the allocator
    found = arena.like(wish) if wish.nbytes >= least and wish.is_contiguous() else None
    return function(*args, **kwargs) if found is None else found


def _gather(table: torch.Tensor, indices: list[torch.Tensor]) -> torch.Tensor:
    """table[ids] for a contiguous table (N, C) and int64 ids (T,)."""
    (ids,) = indices
    out = table.new_empty(len(ids), table.shape[1])
    _native.cpu.gather_rows(
        _native.address(table, table.dtype, table.numel()),
        _native.address(ids, torch.int64, ids.numel()),
        _native.address(out, table.dtype, len(ids) * table.shape[1]),
        len(ids), table.shape[1] * table.itemsize,
    )  # fmt: skip
    return out


def _add(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """out = a + b, contiguous and of one shape and type."""
    if not isinstance(b, torch.Tensor) or a.shape != b.shape:
        raise RuntimeError("capture: the step adds what are not two tensors of one shape")
    _native.kernel("add", a.dtype)(
        *(_native.address(t, a.dtype, a.numel()) for t in (a, b, out)), a.numel(), _native.threads()
    )
    return out


def _contiguous(source: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """A contiguous copy, in `out` if given, of a tensor whose blocks lie at one stride, such as columns of a matrix."""
    if source.device.type != "cpu":
        raise RuntimeError(
            f"capture: the step copies a tensor on {source.device}; it can replay the CPU's alone"
        )
    block, blocks, stride = 1, 1, 0
    for size, step in zip(reversed(source.shape), reversed(source.stride()), strict=True):
        if size == 1:
            continue
        if blocks == 1 and step == block:
            block *= size
        elif blocks == 1:
            blocks, stride = size, step
        elif step == stride * blocks:
            blocks *= size
        else:
            raise RuntimeError(f"capture: cannot copy strides {source.stride()} of {tuple(source.shape)}")
    out = torch.empty(source.shape, dtype=source.dtype) if out is None else out
    width = source.itemsize
    if _native.keep is None:
        raise RuntimeError("capture: the step copies a tensor after its recording has ended")
    _native.keep(source)
    _native.keep(out)
    _native.cpu.copy_blocks(source.data_ptr(), out.data_ptr(), blocks, block * width, stride * width)
    return out


@contextmanager
def capture(arena: Arena | None = None, gradients: bool = False) -> Iterator[Step]:
    """Record the CPU kernel calls made inside the block; RuntimeError for what cannot be replayed.

    What the block allocates comes from `arena`, which steps that never run at once may share. gradients: the block
    may call backward(); a gradient that it makes is written again by each replay.
    """
    arena = arena or Arena()
    step, module = Step(), _native.cpu
    step.kept.append(arena)
    known: set[int] = set()  # where what is kept begins

    def keep(tensor: torch.Tensor) -> None:
        if not arena.holds(tensor):
            storage = tensor.untyped_storage()  # a step reads weights through hundreds of views
            if storage.data_ptr() not in known:
                known.add(storage.data_ptr())
                step.kept.append(storage)

    _native.cpu, _native.keep = _Recorder(module, step), keep  # type: ignore[assignment]  # plays the module
    try:
        with torch.set_grad_enabled(gradients), _Guard(arena):
            yield step
    finally:
        _native.cpu, _native.keep = module, None
