from __future__ import annotations

import pytest

from noise_tools.errors import NoiseToolsError
from noise_tools.presets import PRESETS, find
from noise_tools.recipe import DEFAULTS, check

EXPECTED = (
    "l2b-20 l2b-40 l2b-60 sp-guided sc-j1 sc-j2 sc-j3 sc-b1 sc-b2 sc-b3 gsd-sr gsd-se gsd-sde coco-n-easy coco-n-medium"
    " coco-n-hard"
).split()


def test_all_are_there():
    assert list(PRESETS) == EXPECTED


@pytest.mark.parametrize("name", EXPECTED)
@pytest.mark.parametrize("labels", [(1,), (1, 2, 3)])
def test_every_preset_works_with_one_label_and_with_several(name, labels):
    preset = find(name)
    check(preset.build(labels), labels)
    assert set(preset.defaults) <= set(DEFAULTS) and "case_fraction" in preset.defaults


@pytest.mark.parametrize("name", EXPECTED)
def test_every_preset_says_where_it_comes_from_and_how_it_maps(name):
    preset = find(name)
    assert "arXiv" in preset.source and preset.source.endswith((".", "names S_R and S_E", "README", "pixels)"))
    assert len(preset.mapping) > 40
    uses_pixels = "px" in str(preset.components)
    assert uses_pixels == ("Pixels are the finest voxel edge" in preset.mapping)


def test_numbers_of_the_sources():
    markov = find("sc-j1").build()[0].steps[0].settings
    assert (markov["steps"], markov["theta1"], markov["theta2"], markov["theta3"]) == (
        (180.0, 180.0),
        (0.8, 0.8),
        (0.05, 0.05),
        (0.2, 0.2),
    )
    assert find("gsd-se").build()[0].steps[0].settings["theta1"] == (0.2, 0.2)
    assert [component.weight for component in find("coco-n-hard").build()[0].steps[0].alternatives] == pytest.approx(
        [0.3, 0.3, 0.15, 0.15, 0.1]
    )
    assert [find(f"l2b-{level}").defaults["label_dice"] for level in (20, 40, 60)] == [0.8, 0.6, 0.4]


@pytest.mark.parametrize("level", [20, 40, 60])
def test_l2b_says_that_it_is_an_approximation(level):
    """The ellipse's amount and the angle rise with the one strength that is searched."""
    preset = find(f"l2b-{level}")
    steps = [step for component in preset.build() for step in component.steps]
    assert all("amount" not in step.settings for step in steps if step.type == "approximation")
    assert "Only an approximation" in preset.mapping and "blend" in preset.mapping


def test_unknown_preset_names_the_known_ones():
    with pytest.raises(NoiseToolsError, match="Unknown preset 'l2b'; choose from l2b-20, l2b-40"):
        find("l2b")
