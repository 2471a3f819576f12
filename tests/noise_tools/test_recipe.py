from __future__ import annotations

from pathlib import Path

import pytest

from noise_tools import recipe
from noise_tools.errors import NoiseToolsError
from noise_tools.noise.base import Pixels


def test_components_from_the_command_line():
    components = recipe.parse_components(["erosion", "erosion+affine"], ["erosion.radius=1.5:3", "affine.shear=0"])
    assert [component.name for component in components] == ["erosion", "erosion+affine"]
    assert components[0].steps[0].settings == {"radius": (1.5, 3.0)}
    assert components[1].steps[1].settings == {"shear": (0.0, 0.0)}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1.5:3", (1.5, 3.0)),
        ("2", (2.0, 2.0)),
        (2, (2.0, 2.0)),
        ([1, 3], (1.0, 3.0)),
        ("label", "label"),
        (True, "yes"),
    ],
)
def test_values(text, value):
    assert recipe.parse_value(text) == value


def test_pixel_values_survive_json():
    value = recipe.parse_value("2px:3.5px")
    assert isinstance(value, Pixels) and value == (2.0, 3.5)
    component = recipe.Component((recipe.Step("erosion", {"radius": value}),), 2.0)
    again = recipe.from_json([component.as_json()])[0]
    assert again == component and isinstance(again.steps[0].settings["radius"], Pixels)


@pytest.mark.parametrize(
    ("names", "parameters", "says"),
    [
        ([], [], "No noise type was given; name at least one of erosion"),
        (["erosoin"], [], "Unknown noise type 'erosoin'; choose from erosion, dilation, affine, elastic"),
        (["erosion+"], [], "Unknown noise type ''"),
        (["erosion"], ["radius=3"], "not of the form TYPE.NAME=VALUE"),
        (["erosion"], ["affine.shear=0.1"], "names 'affine', which is not among the noise asked for"),
        (["erosion"], ["erosion.depth=3"], "has no parameter 'depth'; choose from radius, scope"),
        (["erosion"], ["erosion.radius=3:1"], "is 3:1; expected LOW <= HIGH"),
        (["erosion"], ["erosion.radius=nan"], "expected LOW <= HIGH"),
        (["erosion"], ["erosion.radius=1:inf"], "is 1:inf; expected LOW <= HIGH within \\[0, 1e\\+06\\] mm"),
        (["dilation"], ["dilation.radius=infpx"], "is inf:inf; expected LOW <= HIGH"),
        (["elastic"], ["elastic.length=1e300"], "expected LOW <= HIGH within \\[0, 1e\\+06\\] mm"),
        (["swap"], ["swap.confusion=1>2:inf"], "swap.confusion has '1>2:inf'; give pairs"),
        (["erosion"], ["erosion.radius=deep"], "is 'deep'; give a number or a range"),
        (["erosion"], ["erosion.scope=all"], "is 'all'; choose from label, foreground"),
        (["omission"], ["omission.rate=2px"], "is given in pixels but is no length"),
        (["omission"], ["omission.rate=1.5"], "within \\[0, 1\\]"),
    ],
)
def test_bad_input(names, parameters, says):
    with pytest.raises(NoiseToolsError, match=says):
        recipe.parse_components(names, parameters)


def test_spread_follows_the_weights_at_every_prefix():
    components = [recipe.Component((), weight) for weight in (1.0, 2.0, 1.0)]
    order = recipe.spread(components, 40)
    assert [order.count(i) for i in range(3)] == [10, 20, 10]
    for count in range(1, 40):
        assert recipe.spread(components, count) == order[:count]
        assert abs(order[:count].count(1) - count / 2) <= 1


RECIPE = """
case_fraction: 0.5
label_dice: 0.7
components:
  - weight: 2
    steps:
      - {type: erosion, settings: {radius: "1:2"}}
      - elastic
  - steps:
      - type: mixture
        alternatives:
          - {weight: 3, steps: [{type: dilation, settings: {radius: 1.5}}]}
          - {steps: []}
"""


def test_recipe_file(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    components, defaults = recipe.load_recipe(path)
    assert defaults == {"case_fraction": 0.5, "label_dice": 0.7}
    assert [(c.name, c.weight) for c in components] == [("erosion+elastic", 2.0), ("mixture", 1.0)]
    assert components[1].steps[0].alternatives[0].steps[0].settings == {"radius": (1.5, 1.5)}
    recipe.check(components)
    assert recipe.from_json([component.as_json() for component in components]) == components


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("components: [", "is not YAML"),
        ("- erosion", "expected a mapping with the key 'components'"),
        ("case_fraction: 0.5", "lacks the key 'components'"),
        ("components: erosion", "'components' is str; give a list"),
        ("components: []\nseed: 3", "unknown keys seed"),
        ("components: [{steps: erosion}]", "give a list of noise types"),
        ("components: [{weight: heavy, steps: [erosion]}]", "weight is 'heavy'"),
        ("components: [{steps: [{kind: erosion}]}]", "unknown keys kind"),
        ("components: [{steps: [{type: erosion, settings: 3}]}]", "give NAME: VALUE pairs"),
        ("label_dice: much\ncomponents: [{steps: [erosion]}]", "label_dice is 'much'; give a number"),
    ],
)
def test_bad_recipe(tmp_path, text, says):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(NoiseToolsError, match=says):
        recipe.load_recipe(path)


def test_the_recipe_of_the_documentation_works(tmp_path):
    text = (Path(__file__).parents[2] / "docs" / "noise_manifest.md").read_text()
    path = tmp_path / "recipe.yaml"
    path.write_text(text.split("```yaml\n")[1].split("```")[0])
    components, defaults = recipe.load_recipe(path)
    recipe.check(components)
    assert defaults == {"case_fraction": 0.6, "severity": (0.0, 1.0)}
    assert [component.name for component in components] == ["erosion+elastic", "mixture"]


def test_missing_recipe(tmp_path):
    with pytest.raises(NoiseToolsError, match="cannot be read \\(No such file or directory\\)"):
        recipe.load_recipe(tmp_path / "no.yaml")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ([{"steps": [{"type": "erosion", "alternatives": [{"steps": []}]}]}], "takes no alternatives"),
        ([{"weight": 0, "steps": ["erosion"]}], "has weight 0.0; give a number above 0"),
        ([{"weight": float("inf"), "steps": ["erosion"]}], "has weight inf; give a number above 0, up to 1e\\+09"),
        ([{"weight": float("nan"), "steps": ["erosion"]}], "has weight nan; give a number above 0"),
        ([{"steps": [{"type": "mixture", "alternatives": [{"steps": ["erosoin"]}]}]}], "Unknown noise type 'erosoin'"),
    ],
)
def test_recipes_are_checked(content, says):
    with pytest.raises(NoiseToolsError, match=says):
        recipe.check(recipe.from_json(content))


def test_a_range_in_yaml_is_no_number_to_base_60(tmp_path):
    path = tmp_path / "noise.yaml"
    path.write_text("components: [{steps: [{type: erosion, settings: {radius: 1:2.5}}]}]\nseverity: 0.5\n")
    components, defaults = recipe.load_recipe(path)
    assert components[0].steps[0].settings == {"radius": (1.0, 2.5)} and defaults == {"severity": (0.5, 0.5)}


@pytest.mark.parametrize("value", [1, "1", "1.0"])
def test_an_axis_may_be_a_number(value):
    content = [{"steps": [{"type": "slice_shift", "settings": {"axis": value}}]}]
    components = recipe.from_json(content)
    recipe.check(components)
    assert components[0].steps[0].build([1]).settings == {"axis": "1"}


@pytest.mark.parametrize(
    ("alternative", "says"),
    [
        ({"weight": -3, "steps": ["erosion"]}, "has weight -3.0; give a number above 0"),
        ({"weight": 0, "steps": ["erosion"]}, "has weight 0.0; give a number above 0"),
        ({"steps": ["mixture"]}, "a 'mixture' among its alternatives"),
    ],
)
def test_bad_alternatives(alternative, says):
    with pytest.raises(NoiseToolsError, match=says):
        recipe.check(recipe.from_json([{"steps": [{"type": "mixture", "alternatives": [alternative]}]}]))


def test_noise_types_joined_by_a_comma():
    with pytest.raises(NoiseToolsError, match="separate noise types by spaces: --noise affine erosion dilation."):
        recipe.parse_components(["affine", "erosion,dilation"])
