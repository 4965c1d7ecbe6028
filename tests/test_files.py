"""What is written can be read: JSON as the standard has it, journals after a kill."""

import json
import math

import pytest

from pyengine.files import Journal, write_json


def test_a_number_that_is_none_is_null(tmp_path):
    value = {"a": math.nan, "b": [1.5, math.inf, (2, -math.inf)], "c": {"d": None, "e": True, "f": 3}}
    write_json(tmp_path / "x.json", value)

    def refuse(text):
        raise AssertionError(f"{text} is no JSON")

    read = json.loads((tmp_path / "x.json").read_text(), parse_constant=refuse)
    assert read == {"a": None, "b": [1.5, None, [2, None]], "c": {"d": None, "e": True, "f": 3}}


def test_a_journal_drops_what_a_kill_cut_and_has_one_writer(tmp_path):
    path = tmp_path / "folder" / "journal.jsonl"
    with Journal(path) as journal:
        for row in ({"a": "\u00e9"}, {"b": "x" * 200_000}):
            journal.append(row)
        with pytest.raises(OSError, match="another process writes to it"):
            Journal(path)
    with open(path, "ab") as file:
        file.write(b'{"c": "' + b"y" * 200_000)
    with Journal(path, seconds=60) as journal:
        journal.append({"d": 1})
        assert [value for _, value in journal.rows()] == [{"a": "\u00e9"}, {"b": "x" * 200_000}, {"d": 1}]
        starts = [at for at, _ in journal.rows()]
    data = path.read_bytes()
    assert [data[at : at + 4] for at in starts] == [b'{"a"', b'{"b"', b'{"d"']
