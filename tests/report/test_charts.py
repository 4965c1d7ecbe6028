"""Charts and words: the numbers drawn and said are the numbers measured."""

import re

import pytest

from pyengine.report.charts import HEIGHT, LEFT, WIDTH, Axis, Line, chart, smooth
from pyengine.report.words import duration, gate_value, percent, size, with_interval


def coordinates(svg: str, kind: str) -> list[tuple[float, float]]:
    if kind == "circle":
        return [(float(a), float(b)) for a, b in re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', svg)]
    path = re.search(r'class="line c1" d="M([^"]*)"', svg)[1]
    return [tuple(map(float, point.split())) for point in path.split("L")]


def test_points_lie_where_they_should():
    svg = chart([Line("a", [(0, 0.0), (5, 1.0), (10, 0.5)], dots=True)], Axis("x"), Axis("y"))
    (x0, y0), (x1, y1), (x2, y2) = coordinates(svg, "circle")
    assert x0 == LEFT and x1 == pytest.approx((x0 + x2) / 2, abs=0.1)
    assert y1 < y2 < y0 and y2 == pytest.approx((y0 + y1) / 2, abs=0.1)
    assert coordinates(svg, "line") == [(x0, y0), (x1, y1), (x2, y2)]


def test_doublings_are_evenly_spaced_on_a_logarithmic_axis():
    ks = [1, 2, 4, 8, 16, 32, 64]
    svg = chart([Line("a", [(k, k / 64) for k in ks], dots=True)], Axis("k", log=True, ticks=ks), Axis("y"))
    xs = [x for x, _ in coordinates(svg, "circle")]
    steps = [b - a for a, b in zip(xs, xs[1:], strict=False)]
    assert max(steps) - min(steps) < 0.2
    assert all(f">{k}</text>" in svg for k in ks)


@pytest.mark.parametrize(
    "points",
    [[(0, 0.0)], [(1, 5.0), (2, 5.0)], [(1, float("nan")), (2, "inf"), (3, 1.0)], [(1, 1e-9), (2, 1e9)]],
)
def test_odd_data_stays_inside(points):
    svg = chart([Line("a", points, dots=True)], Axis("x"), Axis("y"), [(2.0, "level")])
    assert "nan" not in svg and "inf" not in svg
    for x, y in coordinates(svg, "circle"):
        assert 0 <= x <= WIDTH and 0 <= y <= HEIGHT


def test_nothing_to_draw_is_nothing():
    assert chart([Line("a", [])], Axis("x"), Axis("y")) == ""


def test_names_are_escaped():
    assert "<b>x" not in chart(
        [Line("<b>x", [(0, 1), (1, 2)])], Axis("<b>x"), Axis("y"), [(1, "<b>x")], "<b>x"
    )


def test_long_lines_are_thinned_without_moving():
    svg = chart([Line("a", [(i, 3.0) for i in range(10_000)])], Axis("x"), Axis("y", low=0.0, high=6.0))
    places = coordinates(svg, "line")
    assert len(places) <= 300
    assert len({y for _, y in places}) == 1


def test_smooth_keeps_a_constant_and_skips_what_is_no_number():
    points = [(i, 2.0) for i in range(50)] + [(50, float("nan")), (51, "nan"), (52, 2.0)]
    assert all(y == pytest.approx(2.0) for _, y in smooth(points))
    assert len(smooth(points)) == 51


def test_words():
    assert [duration(s) for s in (0.04, 9.94, 48, 252, 3780)] == [
        "0.0 s",
        "9.9 s",
        "48 s",
        "4 min 12 s",
        "1 h 03 min",
    ]
    assert [size(b) for b in (812, 1_340_000)] == ["812 B", "1.34 MB"]
    assert [percent(s) for s in (0.9341, 1.0, 0.0)] == ["93.4 %", "100 %", "0 %"]
    assert with_interval(934, 1000) == "93.4 % (91.7–94.8 %, n = 1,000)"
    assert with_interval(0, 0) == "none measured"


@pytest.mark.parametrize(
    "value, bound, said",
    [
        (0.934, ">= 90 %", "93.4 %"), (0.28, ">= 20 points", "+28.0 points"), (283.0, "<= 10 min", "4 min 43 s"),
        (0.9714, ">= 0.95 (plain resiliparse 0.861)", "0.9714"), (0.4, "< 0.512, a Kneser-Ney 5-gram's", "0.4"),
        (0.0, "= 0", "0"), ("nan", ">= 90 %", "undefined"),
    ],
)  # fmt: skip
def test_gates_are_told_in_the_unit_of_their_bound(value, bound, said):
    assert gate_value({"value": value, "bound": bound}) == said
