"""The rows of packed documents dealt to a GPU's blocks."""

import torch

from .._memory import to_device
from .._remember import remembered


@remembered
def tiles(cu_seqlens: torch.Tensor, rows: int, device: torch.device, keys: bool = False) -> torch.Tensor:
    """(n, 3) int32 on `device`: first row, document's first row and end, for each tile of `rows` queries, or keys.

    The longest work comes first, and blocks start in about this order: so none is left to run alone at the end.
    """
    bounds = cu_seqlens.tolist()
    spans = zip(bounds, bounds[1:], strict=False)
    found = [(row, a, b) for a, b in spans for row in range(a, b, rows)]
    found.sort(key=lambda tile: tile[0] - tile[2] if keys else tile[1] - tile[0])
    return to_device(torch.tensor(found, dtype=torch.int32).reshape(-1, 3), device)
