"""The GPU suite without a GPU: a whole dry run of one case of each kind, and cases that fail in every way."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench.gpu import suite
from bench.gpu.case import Case
from bench.gpu.cases import CASES
from bench.gpu.prediction import (
    H100,
    Work,
    attention_backward,
    attention_backward_by_warps,
    attention_backward_on_hopper,
    attention_forward,
    attention_forward_by_warps,
    attention_forward_on_hopper,
    cross_entropy,
    cross_entropy_on_hopper,
    decode_step,
    encoding,
    layer_launches,
    linear_backward_on_hopper,
    one_after_another,
    pairs,
    product,
    product_on_hopper,
)
from bench.gpu.rows import level

pytest.importorskip("triton")


def test_a_failing_case_hides_no_other(monkeypatch, tmp_path):
    monkeypatch.setattr(suite, "DRY_SLACK", 60.0)
    report, page = tmp_path / "rows.json", tmp_path / "page.html"
    arguments = [
        "--dry-run",
        "--cases",
        "tests.bench.broken_cases",
        "--json",
        str(report),
        "--page",
        str(page),
    ]
    assert suite.main(arguments) == 1
    rows = {row["area"]: row for row in json.loads(report.read_text())["rows"]}
    assert list(rows) == ["first", "wrong", "crash", "peer", "hang", "last"]
    assert rows["first"]["error"] == rows["last"]["error"] == rows["peer"]["error"] == ""
    assert rows["first"]["ratio"] == 1.0 and rows["first"]["level"] == "dry run"
    assert "ones are not zeros" in rows["wrong"]["error"]
    assert "ended with 9" in rows["crash"]["error"]
    assert rows["hang"]["error"] == "no answer in time"
    assert rows["peer"]["peers_failed"] == {"peer": "RuntimeError: no such kernel here"}
    assert not any(row["holds"] for row in rows.values()), "a dry run holds nothing"
    text = page.read_text()
    assert all(row["what"] in text for row in rows.values()) and "A dry run" in text


def test_time_runs_out_for_what_was_not_reached():
    rows, _ = suite.run("tests.bench.broken_cases", [0, 5], 0.0, dry=True)
    assert [row["error"] for row in rows] == ["not reached within the time given"] * 2


def test_the_level_is_the_best_goal_reached():
    case = Case("area", "name", lambda place: None, "peer", (0.5, 1.0, 2.0))
    levels = [level(case, reached) for reached in (None, 0.4, 0.5, 1.9, 2.0)]
    assert levels == ["no peer", "below", "floor", "good", "moonshot"]


def test_names_choose_cases():
    assert [CASES[i].area for i in suite.choose(CASES, ["adamw"], False)] == ["adamw"] * 2
    hopper = suite.choose(CASES, ["Hopper's engines"], False)
    assert hopper == list(range(len(CASES) - 15, len(CASES)))  # last, see there
    with pytest.raises(SystemExit, match="attention forward"):
        suite.choose(CASES, ["no such thing"], False)


def test_all_of_it_fits_into_nine_minutes():
    assert sum(case.seconds for case in CASES) < 530
    assert len({case.title for case in CASES}) == len(CASES)


def test_a_prediction_is_the_bound_over_the_share_reached():
    work = Work(bytes=2.95e9, launches=2, reach=0.5)
    assert work.bound(H100) == (pytest.approx(1e-3), "memory")
    assert work.predicted(H100) == pytest.approx(2e-3 + 6e-6)
    assert pairs([1, 3]) == 7
    whole, halves = (attention_forward(lengths, 16, 128) for lengths in ([4096], [2048, 2048]))
    assert whole.products / halves.products == pytest.approx(2.0, rel=1e-3)


@pytest.mark.slow
def test_a_dry_run_of_everything(tmp_path):
    """Every case: made, checked against its peers, timed by a clock that stands, and written down."""
    report = tmp_path / "rows.json"
    command = [sys.executable, "-m", "bench", "gpu", "--dry-run", "--seconds", "3000", "--json", str(report)]
    done = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ))
    rows = json.loads(report.read_text())["rows"]
    assert done.returncode == 0, [(row["what"], row["error"]) for row in rows if row["error"]]
    assert len(rows) == len(CASES) and all(row["predicted_h100"] > 0 for row in rows)


def test_the_document_tells_the_prediction():
    """docs/gpu.md: a captured step beside a kernel that never leaves the card."""
    from bench.gpu.models import SIZES

    page = (Path(__file__).parents[2] / "docs" / "gpu.md").read_text(encoding="utf-8")
    for name, batch in (("1M", 1), ("1M", 8), ("0.6B", 1), ("0.6B", 8)):
        graph, stays = (decode_step(SIZES[name], [1024] * batch, persistent) for persistent in (False, True))
        bound, replayed, stayed = (
            1e3 * t for t in (graph.bound(H100)[0], graph.predicted(H100), stays.predicted(H100))
        )
        gain = replayed / stayed
        assert f"| {name} | {batch} | {bound:.3f} | {replayed:.3f} | {stayed:.3f} | {gain:.1f}x |" in page
    for heads, dim in ((16, 128), (32, 64)):
        for length in (2048, 8192, 16384):
            documents = [length] * (16384 // length)
            kernels = (attention_forward, attention_forward_by_warps, attention_forward_on_hopper)
            times = [kernel(documents, heads, dim).predicted(H100) for kernel in kernels]
            flops = 4 * dim * heads * pairs(documents)
            cells = " | ".join(f"{1e3 * t:.2f} ({flops / t / 1e12:.0f})" for t in times)
            assert f"| {dim} | {length:,} | {cells} |" in page
    for heads, dim, length in ((16, 128, 2048), (16, 128, 8192), (32, 64, 4096)):
        documents = [length] * (16384 // length)
        kernels = (attention_backward, attention_backward_by_warps, attention_backward_on_hopper)
        times = [kernel(documents, heads, dim).predicted(H100) for kernel in kernels]
        flops = 10 * dim * heads * pairs(documents)
        cells = " | ".join(f"{1e3 * t:.2f} ({flops / t / 1e12:.0f})" for t in times)
        assert f"| backward | {dim} | {length:,} | {cells} |" in page
    for n, k in ((4096, 4096), (3072, 768)):
        sizes, flops = (16384, n, k), 2 * 16384 * n * k
        triton, ours, backward = (
            kernel(*sizes).predicted(H100)
            for kernel in (product, product_on_hopper, linear_backward_on_hopper)
        )
        cells = " | ".join(
            f"{1e3 * t:.2f} ({f * flops / t / 1e12:.0f})" for t, f in ((triton, 1), (ours, 1), (backward, 2))
        )
        assert f"| {n:,} | {k:,} | {cells} |" in page
    for channels, vocabulary in ((768, 50257), (1024, 151936)):
        sizes, flops = (16384, channels, vocabulary), 6 * 16384 * channels * vocabulary
        times = [kernel(*sizes).predicted(H100) for kernel in (cross_entropy, cross_entropy_on_hopper)]
        cells = " | ".join(f"{1e3 * t:.1f} ({flops / t / 1e12:.0f})" for t in times)
        assert f"| {channels:,} | {vocabulary:,} | {cells} |" in page


def test_a_norm_is_part_of_its_product_where_rows_are_few():
    """The prediction counts the launches that the kernels make: their bounds are the kernels' own."""
    from pyengine.kernels.linear import triton

    from bench.gpu.models import SIZES

    for c in SIZES.values():
        for batch in (1, 2, 5, 8, 9, 64):
            fused = 0
            for outputs, gated in (
                ((c.heads + 2 * c.kv_heads) * c.head_dim, False),
                (c.intermediate_size, True),
            ):
                size = outputs * (1 + gated), c.hidden_size
                weight = torch.empty(size, dtype=torch.bfloat16, device="meta")
                fused += triton.normalises(batch, weight, gated)
            assert layer_launches(c, batch) == 9 - 0.5 * fused


def test_the_document_of_text_tells_the_prediction():
    """docs/text.md: 64 MiB of English on an H100 with a fortieth of the pieces met first, with none, and 4 KB."""
    page = (Path(__file__).parents[2] / "docs" / "text.md").read_text(encoding="utf-8")
    size, short = 64 << 20, 4000
    pieces = size * 10 // 43
    first, later = (encoding(size, pieces, merged) for merged in (pieces // 40, 0))
    few, terms = encoding(short, short * 10 // 43, 0), first.terms(H100)
    memory, issue, fresh, known = (
        f"{size / t / 1e9:.0f} GB/s"
        for t in (terms["memory"], terms["instructions"], first.predicted(H100), later.predicted(H100))
    )
    assert f"| memory: {first.bytes / size:.1f} bytes moved for each byte of text | {memory} |" in page
    assert f"| issue: some {first.instructions / size:.0f} lane instructions a byte (" in page
    assert f" | {issue} |\n| expected, if 0.4 of the issue bound is reached" in page
    assert f"; once all pieces are known | {fresh}; {known} |" in page
    assert f"| a text of 4 KB, mostly launches and the wait | {few.predicted(H100) * 1e6:.0f} us |" in page


def test_steps_in_turn_add_up():
    one = Work(bytes=2e9, nodes=10, reach=0.5)
    both = one_after_another([one, one])
    assert both.predicted(H100) == pytest.approx(2 * one.predicted(H100))
    assert one.predicted(H100) - replace(one, nodes=0).predicted(H100) == pytest.approx(10 * H100.node)
