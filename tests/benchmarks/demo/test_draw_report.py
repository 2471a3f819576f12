from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

DEMO = Path(__file__).parents[3] / "benchmarks" / "demo"


@pytest.fixture
def draw_report(monkeypatch):
    monkeypatch.syspath_prepend(str(DEMO))
    import draw_report

    yield draw_report
    del sys.modules["draw_report"]


def shown(draw_report, title: str):
    rng = np.random.default_rng(0)
    clean = np.zeros((6, 12, 10), np.uint8)
    clean[1:5, 3:8, 2:6] = 1
    given = np.roll(clean, 2, axis=1)
    alpha = np.where(clean != given, 0.1, 1.0)
    return draw_report.Shown(title, (2.0, 1.0, 1.0), rng.normal(size=clean.shape), clean, given, alpha, clean)


def test_one_row_per_case_and_one_column_per_map(draw_report):
    figure = draw_report.draw([shown(draw_report, "case_1"), shown(draw_report, "case_2")])
    panels = [axes for axes in figure.axes if axes.images or axes.collections][: 2 * len(draw_report.COLUMNS)]
    assert len(panels) == 2 * len(draw_report.COLUMNS)
    assert [axes.get_title() for axes in panels[: len(draw_report.COLUMNS)]] == list(draw_report.COLUMNS)
    assert panels[0].get_ylabel() == "case_1" and panels[5].get_ylabel() == "case_2"


def test_weights_are_shown_on_a_fixed_scale(draw_report):
    figure = draw_report.draw([shown(draw_report, "case_1")])
    weights = figure.axes[3].images[0]
    assert weights.get_clim() == (0, 1)
    assert weights.get_array().min() == pytest.approx(0.1) and weights.get_array().max() == 1
