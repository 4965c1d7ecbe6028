"""The world as files, in the formats that a user's own data has too.

FOLDER/site/...                     the site's pages, as a static server would hold them
FOLDER/truth.jsonl                  what is true of each page: path, kind, fate, text, duplicate_of, ...
FOLDER/conversations.jsonl          {"messages": [...]}
FOLDER/facts-GROUP-SPLIT.jsonl      {"question", "answer", "passage", "aliases", "id"}
FOLDER/problems-SPLIT.jsonl         {"problem", "answer", "grade", "kind"}
FOLDER/passages.jsonl               {"text", "repetitions"}; 0 marks the held-out control
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

from ..errors import UserError
from ..files import naming
from .facts import GROUPS
from .problems import KINDS
from .world import World

_HIDDEN = ("body", "headers")  # of a page's fields, what the site's own files hold


def write_world(world: World, folder: Path, published: str = "cutoff", problems: int = 200) -> int:
    """Write everything into `folder`, which must not exist yet; returns how many pages the site has.

    The folder appears whole or not at all. published: "later" includes the pages dated after the cut-off.
    problems: how many of each kind and split.
    """
    if folder.exists():
        raise UserError(f"{folder} exists already: name a new folder")
    shown = [page for page in world.pages if page.status == 200 and (published == "later" or not page.later)]
    pages = list({page.path: page for page in shown}.values())  # a later edition takes the place of the first
    folder.parent.mkdir(parents=True, exist_ok=True)
    with naming(folder), TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
        here = Path(temporary) / "world"
        for page in pages:
            name = page.path.lstrip("/") + ("index.html" if page.path.endswith("/") else "")
            file = here / "site" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(page.body)
        truth = ({k: v for k, v in vars(page).items() if k not in _HIDDEN} for page in pages)
        _write_lines(here / "truth.jsonl", truth)
        _write_lines(here / "conversations.jsonl", world.conversations())
        for split in ("train", "test"):
            for group in GROUPS:
                rows = (question.row() for question in world.questions(group, split))
                _write_lines(here / f"facts-{group}-{split}.jsonl", rows)
            drawn = (p.row() for kind in KINDS for p in world.problems.take(problems, kind, split))
            _write_lines(here / f"problems-{split}.jsonl", drawn)
        _write_lines(here / "passages.jsonl", (vars(passage) for passage in world.passages))
        os.replace(here, folder)
    return len(pages)


def _write_lines(path: Path, rows: Iterable[dict]) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
