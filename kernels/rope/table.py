"""The cosines and sines of rotary embeddings, computed once in float64 and rounded once to float32.

Every backend reads the same table, so position and theta mean the same bits everywhere.
"""

from collections.abc import Sequence

import torch

CHUNK = 1024  # positions computed at a time: a longer table repeats a shorter one bit for bit
SHORTEST = 4096

_tables: dict[tuple, torch.Tensor] = {}
_outgrown: list[
    torch.Tensor
] = []  # kept, since captured steps point into them; together at most one table more


def table(
    theta: float,
    dim: int,
    positions: int,
    device: torch.device | str = "cpu",
    divisors: Sequence[float] = (),
) -> torch.Tensor:
    """(2, N, D / 2) float32, cosines then sines, for at least the first `positions` positions; cached.

    divisors: D / 2 numbers that divide the frequencies, or none.

    Before a step that turns positions is captured, call this with the largest it will ever see.
    """
    key = (theta, dim, torch.device(device), tuple(divisors))
    found = _tables.get(key)
    if found is None or found.shape[1] < positions:
        length = 1 << (max(positions, SHORTEST) - 1).bit_length()
        made = torch.cat([_chunk(theta, dim, first, divisors) for first in range(0, length, CHUNK)], 1)
        if found is not None:
            _outgrown.append(found)
        found = _tables[key] = made.to(device)
    return found


def _chunk(theta: float, dim: int, first: int, divisors: Sequence[float]) -> torch.Tensor:
    frequencies = torch.tensor([theta ** (-2 * i / dim) for i in range(dim // 2)], dtype=torch.float64)
    if divisors:
        frequencies /= torch.tensor(list(divisors), dtype=torch.float64)
    angles = torch.arange(first, first + CHUNK, dtype=torch.float64)[:, None] * frequencies
    return torch.stack([angles.cos(), angles.sin()]).float()
