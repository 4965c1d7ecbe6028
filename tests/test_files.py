"""What is written can be read: JSON as the standard has it."""

import json
import math

from pyengine.files import write_json


def test_a_number_that_is_none_is_null(tmp_path):
    value = {"a": math.nan, "b": [1.5, math.inf, (2, -math.inf)], "c": {"d": None, "e": True, "f": 3}}
    write_json(tmp_path / "x.json", value)

    def refuse(text):
        raise AssertionError(f"{text} is no JSON")

    read = json.loads((tmp_path / "x.json").read_text(), parse_constant=refuse)
    assert read == {"a": None, "b": [1.5, None, [2, None]], "c": {"d": None, "e": True, "f": 3}}
