from __future__ import annotations

from noise_tools.severity import MEASURES
from noise_tools.summary import summary


def region(dice: float | None, volume_change: float | None) -> dict:
    return {"dice": dice, "hd95_mm": None, "volume_change": volume_change}


def entry(changed: bool = True, **regions: dict) -> dict:
    measures = {name: {"asked": None, "achieved": 0.5, "reached": None} for name in MEASURES}
    return {"noise": "erosion", "severity": 0.5, "changed": changed, "regions": regions, "steps": [], **measures}


def told(**cases: dict) -> list[str]:
    content = {"cases": cases, "settings": dict.fromkeys(MEASURES), "trusted_cases": [], "test_cases": []}
    return summary(content).splitlines()


def test_structures_that_are_gone_and_labels_that_are_empty_are_counted():
    some = entry(liver=region(0.8, -0.3), gland=region(0.0, -1.0))
    none = entry(liver=region(0.0, -1.0), gland=region(None, None))
    lines = told(a=some, b=none, c=entry(liver=region(1.0, 0.0), gland=region(0.5, -0.5)))
    assert lines[-3:] == [
        "liver is gone from 1 of 3 corrupted labels.",
        "gland is gone from 1 of 2 corrupted labels.",
        "1 corrupted labels are empty.",
    ]


def test_a_label_under_another_name_is_not_empty():
    lines = told(a=entry(liver=region(0.0, -1.0), gland=region(0.0, None)))
    assert lines[-1] == "liver is gone from 1 of 1 corrupted labels."


def test_nothing_lost_nothing_said():
    assert "gone" not in (text := " ".join(told(a=entry(liver=region(0.8, -0.3))))) and "empty" not in text


def test_cases_without_foreground_are_counted():
    lines = told(a=entry(liver=region(0.8, 0.1)), b={"noise": None, "note": "no foreground"}, c={"noise": None})
    assert "1 of the 2 cases chosen for noise have no foreground and stayed as they are." in lines
