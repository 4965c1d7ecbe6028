"""The head of the page: what this is, on which machine, how far it is; and the gates."""

from typing import Any

from ..data import Data

# Gates told at the top in large figures, by how their names begin, and what to call them there.
HIGHLIGHTS = {
    "validation bits per byte": "bits to tell a byte of text it never read",
    "recital of passages told": "of passages told most often, recited word for word",
    "known facts answered right": "of known facts answered right",
    "invented entities refused": "of questions about what does not exist, refused",
    "later facts answered through search": "of facts published later, answered by looking them up",
    "held-out problems solved": "of held-out problems solved after trial and error",
}


def headline(data: Data, live: bool) -> dict[str, Any]:
    """Seed, machine, versions, size, total time."""
    run = data.run
    markers = [
        m for path in sorted(run.path("stages").glob("*.json")) if (m := data.json("stages", path.name))
    ]
    finished = [m for m in markers if m.get("state") == "finished" and m["stage"] != "report"]
    made = [m for m in finished or markers if m.get("machine")]
    machine = max(made, key=lambda m: m.get("finished", ""))["machine"] if made else {}
    pretrain = data.summary("pretrain")
    return {
        "seed": run.config.seed,
        "source": run.config.web.source,
        # not the command last given, which may have run a stage alone: the stored settings repeat the whole
        "command": f"python -m pyengine.train --config runs/{run.config.name}/config.toml --name again",
        "machine": machine,
        "seconds": sum(m.get("seconds", 0.0) for m in finished),
        "cpu_seconds": sum(m.get("cpu_seconds", 0.0) for m in finished),
        "finished_at": max((m.get("finished", "") for m in finished), default=""),
        "parameters": pretrain.get("parameters"),
        "stage": next((m["stage"] for m in markers if m.get("state") == "started"), "") if live else "",
    }


def gates(data: Data) -> dict[str, Any] | None:
    """The table of gates: value, bound, whether it holds, the command that repeats it."""
    found = data.json("gates.json")
    if not found:
        return None
    rows = []
    for name, gate in found.items():
        repeat = f"python -m pyengine.train {gate['stage']} --name {data.run.config.name} --resume --force"
        rows.append({"name": name, "command": gate.get("command", repeat), **gate})
    tiles = [
        (gate, said)
        for begins, said in HIGHLIGHTS.items()
        for gate in rows
        if gate["name"].startswith(begins)
    ]
    return {"gates": rows, "held": sum(gate["holds"] for gate in rows), "tiles": tiles}
