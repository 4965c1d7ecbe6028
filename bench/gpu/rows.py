"""The rows of the GPU suite's report: one a case, with numbers or with the reason why there are none."""

from bench.gpu.case import Case


def failure(case: Case, error: str) -> dict:
    """The row of a case that gave no numbers."""
    return {
        "what": case.title, "area": case.area, "ours": None, "peer": None, "peer_name": case.versus, "ratio": None,
        "ratios": {}, "peers_failed": {}, "ceiling": None, "percent": None, "bound": None, "bound_by": "",
        "predicted_h100": None, "memory": {}, "goals": case.goals, "level": "failed", "equal": False,
        "goal": case.goals[0], "holds": False, "error": error,
    }  # fmt: skip


def level(case: Case, reached: float | None) -> str:
    """The best of the case's three goals that was reached."""
    if reached is None:
        return "no peer"
    names = ("floor", "good", "moonshot")
    met = [name for name, goal in zip(names, case.goals, strict=True) if reached >= goal]
    return met[-1] if met else "below"


def text(row: dict) -> str:
    """A row as one line."""
    if row["error"]:
        return f"{row['what']:58s} FAILED {row['error']}"
    ratios = ", ".join(f"{ratio:.2f}x {name}" for name, ratio in row["ratios"].items())
    return (
        f"{row['what']:58s} {row['ours'] * 1e6:10.1f} us {row['percent']:5.1f} % of ceiling, "
        f"predicted on H100 {row['predicted_h100'] * 1e6:.1f} us; {ratios} [{row['level']}]"
    )
