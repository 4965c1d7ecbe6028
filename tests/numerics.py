"""The rule every kernel is judged by, and the record of what was measured.

A result passes if its error against the float64 reference is at most twice that of plain torch in the same
type, plus a few units in the last place of the largest value (torch's own error can be zero).
"""

import torch

# (op, what, backend, type) -> (our largest error, torch's), over all cases of a test run
ERRORS: dict[tuple[str, str, str, str], tuple[float, float]] = {}


def assert_as_good_as_torch(ours, torchs, truth, *, op: str, what: str, backend, ulps: float = 2.0) -> None:
    """ours and torchs (same type) against truth (float64); all of one shape."""
    assert ours.shape == truth.shape == torchs.shape, f"{what}: {ours.shape} {torchs.shape} {truth.shape}"
    assert ours.dtype is torchs.dtype, f"{what}: {ours.dtype} instead of {torchs.dtype}"
    if truth.numel() == 0:
        return
    error, allowed = _error(ours, truth), _error(torchs, truth)
    slack = ulps * torch.finfo(ours.dtype).eps * truth.abs().max().item()
    key = (op, what, repr(backend), str(ours.dtype).removeprefix("torch."))
    before = ERRORS.get(key, (0.0, 0.0))
    ERRORS[key] = max(before[0], error), max(before[1], allowed)
    assert error <= 2 * allowed + slack, f"{op} {what} on {backend}: error {error:.3g}, torch's {allowed:.3g}"


def _error(value, truth) -> float:
    value = value.double().cpu()
    assert not torch.isnan(value).any(), "NaN: an output was left unwritten, or computed from what was"
    return (value - truth.cpu()).abs().max().item()
