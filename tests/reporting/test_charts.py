"""Charts: values stand where the axis says, every text is escaped, and nothing is drawn of what is not finite."""

import math
import re
import xml.etree.ElementTree as ET

import pytest

from library.reporting import pages
from library.reporting.charts import (
    Chart,
    Line,
    Mark,
    cells_chart,
    lines_chart,
    nice_scale,
    number,
    percent,
    smoothed,
    spread,
    thinned,
)

NASTY = """<b onclick='x()'>"5" & 'six'</b>"""
FALLING = Line("loss", [(0, 0.4), (1, 0.2), (2, 0.1)])


def parsed(chart: Chart) -> ET.Element:
    """It must be whole, as a browser that is told XML would insist."""
    return ET.fromstring(chart.drawing)


def texts(chart: Chart) -> list[str]:
    return [node.text for node in parsed(chart).iter("text")]


def points(chart: Chart) -> list[tuple[float, float]]:
    """Of the last line that is drawn over the axis."""
    drawn = [node for node in parsed(chart).findall("path")]
    return [tuple(map(float, pair.split())) for pair in drawn[-1].get("d")[1:].split("L")]


def ticks(chart: Chart, anchor: str) -> dict[float, float]:
    """What stands at an axis: number -> where."""
    nodes = [node for node in parsed(chart).iter("text") if node.get("text-anchor") == anchor]
    at = "y" if anchor == "end" else "x"
    return {float(node.text): float(node.get(at)) for node in nodes if re.fullmatch(r"[\d.e-]+", node.text)}


def test_a_value_stands_where_the_axis_says():
    chart = lines_chart("t", [FALLING], x_name="epoch")
    up, across = ticks(chart, "end"), ticks(chart, "middle")
    (x0, y0), (x1, y1), (x2, _) = points(chart)
    assert across[0] == pytest.approx(x0)
    assert across[1] == pytest.approx(x1)
    assert across[2] == pytest.approx(x2)
    assert up[0.4] - 4 == pytest.approx(y0, abs=0.11)  # a text is centred on its tick
    assert up[0.2] - 4 == pytest.approx(y1, abs=0.11)
    assert y0 < y1  # more is higher: y runs downwards


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (0.0312, 0.19), (-0.4, 7), (1e-5, 1e-4), (3, 3), (0, 0), (90, 12345)]
)
def test_ticks_are_few_even_and_within_the_axis(low, high):
    scale = nice_scale(low, high)
    assert scale.low <= low <= high <= scale.high
    assert 2 <= len(scale.ticks) <= 6
    steps = {round((b - a) / (scale.high - scale.low), 9) for a, b in zip(scale.ticks, scale.ticks[1:], strict=False)}
    assert len(steps) == 1
    assert all(scale.low - 1e-9 <= tick <= scale.high + 1e-9 for tick in scale.ticks)


def test_epochs_are_whole():
    assert nice_scale(0, 3, 6, whole=True).ticks == [0, 1, 2, 3]
    assert nice_scale(0, 100, 6, whole=True).ticks == [0, 20, 40, 60, 80, 100]


@pytest.mark.parametrize(
    ("value", "step", "text"),
    [(0.1234, 0, "0.123"), (0.0836, 0, "0.0836"), (0.15, 0.05, "0.15"), (3, 1, "3"), (1e-3, 5e-4, "1e-3"),
     (0, 5e-4, "0"), (2.7e-8, 0, "2.7e-8"), (1e-17, 0.1, "0")],
)  # fmt: skip
def test_numbers_are_as_short_as_their_axis_allows(value, step, text):
    assert number(value, step) == text


def test_changes_have_a_sign():
    assert [percent(value) for value in (0.05, -0.32, 0)] == ["+5.0 %", "\N{MINUS SIGN}32 %", "0 %"]
    assert percent(-1e-9, 0.1) == "0 %"


def test_all_text_is_shown_as_it_is():
    drawn = lines_chart(
        NASTY, [Line(NASTY, [(0, 1), (1, 2)]), Line("b", [(0, 2), (1, 3)], 1)], x_name=NASTY, y_name=NASTY,
        mark=Mark(1, NASTY, 0, 1), below=NASTY,
    )  # fmt: skip
    for chart in (drawn, cells_chart(NASTY, [(NASTY, [1.0])], [NASTY], x_name=NASTY, below=NASTY)):
        tree = parsed(chart)
        assert "onclick" not in {name for node in tree.iter() for name in node.attrib}
        assert NASTY in "".join(tree.itertext())
    assert (drawn.title, drawn.unit, drawn.below) == (NASTY, NASTY, NASTY)  # escaped by the template
    assert [entry.name for entry in drawn.legend] == [NASTY, "b"]


def test_values_are_told_without_a_script():
    chart = lines_chart("t", [FALLING, Line("other", [(1, 0.5)], 1)], x_name="epoch")
    told = [node.text for node in parsed(chart).iter("title")]
    assert told == ["epoch 0: loss 0.400", "epoch 1: loss 0.200; other 0.500", "epoch 2: loss 0.100"]


def test_lines_differ_by_more_than_colour_and_carry_their_names():
    chart = lines_chart("t", [Line(f"line {at}", [(0, at), (1, at)], at) for at in range(6)], x_name="x")
    paths = parsed(chart).findall("path")
    assert len({path.get("stroke-dasharray") for path in paths}) == 6
    assert {f"line {at}" for at in range(6)} <= set(texts(chart))


def test_names_at_the_ends_do_not_overlap():
    found = spread([100.0, 101.0, 99.0, 10.0], 13, 0, 110)
    ordered = sorted(found)
    assert all(b - a >= 13 for a, b in zip(ordered, ordered[1:], strict=False))
    assert ordered[-1] <= 110
    assert found[3] == 10.0
    assert found[2] < found[0] < found[1]  # in their order


def test_what_is_not_finite_is_left_out():
    chart = lines_chart("t", [Line("loss", [(0, 1.0), (1, math.nan), (2, math.inf), (3, 2.0)])], x_name="x")
    assert len(points(chart)) == 2
    assert "nan" not in chart.drawing
    assert lines_chart("t", [Line("loss", [(0, math.nan)])], x_name="x") is None
    assert lines_chart("t", [], x_name="x") is None
    assert cells_chart("t", [("a", [0.0])], ["1"], x_name="x") is None


def test_one_point_is_a_dot():
    assert parsed(lines_chart("t", [Line("loss", [(1, 0.5)])], x_name="x")).find("circle") is not None


def test_cells_are_the_stronger_the_larger_the_number():
    tree = parsed(cells_chart("t", [("IN01", [0.0, 1.0, 4.0])], ["1", "2", "3"], x_name="epoch"))
    cells = [node.get("style") for node in tree.iter("rect") if node.get("class") == "cell"]
    assert [float(style.rpartition(":")[2]) for style in cells] == [0, 0.5, 1]
    assert [node.text for node in tree.iter("title")][2] == "IN01, epoch 3: 4"


def test_smoothing_has_no_bias_at_the_beginning():
    assert [y for _, y in smoothed([(x, 5.0) for x in range(4)], 20)] == pytest.approx([5.0] * 4)
    late = smoothed([(x, float(x >= 50)) for x in range(200)], 20)
    assert late[49][1] == 0
    assert late[69][1] == pytest.approx(1 - math.exp(-1), abs=0.05)  # a window after the change


def test_thinning_keeps_the_mean_and_the_last_value():
    many = [(float(x), math.sin(x / 50)) for x in range(1000)]
    few = thinned(many, 100)
    assert len(few) == 100
    assert few[-1] == many[-1]
    assert few[0] == pytest.approx((4.5, sum(y for _, y in many[:10]) / 10))
    assert thinned(many[:5], 100) == many[:5]


def test_nothing_is_fetched():
    files = [
        (pages.TEMPLATES / name).read_text(encoding="utf-8") for name in ("charts.css", "charts.js", "charts.html")
    ]
    everything = "".join([*files, lines_chart("t", [FALLING], x_name="x").drawing])
    assert not re.search(r"https?:|url\(|@import|src=|href=|fetch|XMLHttp", everything)
