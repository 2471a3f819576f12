from __future__ import annotations

import pytest

from noise_tools import listing, noise
from noise_tools.errors import NoiseToolsError
from noise_tools.presets import PRESETS


def test_everything_is_listed_with_units_defaults_and_source():
    text = listing.text()
    for name in noise.NAMES:
        assert f"\n{name}: " in text
        for parameter in noise.load(name).parameters:
            assert f"    {parameter.name} = " in text
    for name in PRESETS:
        assert f"\n{name}: " in text
    assert text.count("    source: ") == len(noise.NAMES) + len(PRESETS)
    assert "radius = 0:1.5 typical radii [mm], grows with severity: how deep to erode" in text
    assert "(--case-fraction 1 --label-dice 0.6)" in text


def test_only_what_is_named():
    text = listing.text(["markov", "sc-b1"])
    assert "markov: " in text and "sc-b1: " in text and "erosion" not in text


def test_unknown_name():
    with pytest.raises(NoiseToolsError, match="Unknown noise type or preset 'erode'; choose from erosion"):
        listing.text(["erode"])
