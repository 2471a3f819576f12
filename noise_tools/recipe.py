"""Which noise a case gets: weighted components, each one noise type or several applied one after the other."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from noise_tools import noise
from noise_tools.errors import NoiseToolsError
from noise_tools.noise.base import Noise, Pixels, Range

Settings = dict[str, Range | str]
# Keys of a recipe beside 'components': what the command line may override.
DEFAULTS = ("case_fraction", "label_dice", "surface_distance", "label_change", "severity")
_LARGEST_WEIGHT = 1e9  # so that sums and shares are finite


@dataclass(frozen=True)
class Step:
    """One noise type with the settings that replace its defaults; `alternatives` for type 'mixture' only."""

    type: str
    settings: Settings = field(default_factory=dict)
    alternatives: tuple[Component, ...] = ()

    def build(self, labels: Sequence[int]) -> Noise:
        """The noise type, set up for these foreground labels."""
        kind = noise.load(self.type)
        if not self.alternatives:
            return kind(labels, self.settings)
        choices = [(c.weight, [(step.type, step.settings) for step in c.steps]) for c in self.alternatives]
        return kind(labels, self.settings, choices)

    def as_json(self) -> dict[str, Any]:
        content: dict[str, Any] = {"type": self.type}
        if self.settings:
            content["settings"] = {key: _value_as_json(value) for key, value in self.settings.items()}
        if self.alternatives:
            content["alternatives"] = [component.as_json() for component in self.alternatives]
        return content


@dataclass(frozen=True)
class Component:
    """Steps applied in order, and the share of corrupted cases that gets them (relative to the other components)."""

    steps: tuple[Step, ...]
    weight: float = 1.0

    @property
    def name(self) -> str:
        return "+".join(step.type for step in self.steps) or "none"

    def as_json(self) -> dict[str, Any]:
        return {"weight": self.weight, "steps": [step.as_json() for step in self.steps]}


def parse_components(names: Sequence[str], parameters: Sequence[str] = ()) -> tuple[Component, ...]:
    """Components from the command line.

    Args:
        names: noise types; 'erosion+affine' applies both to the same case.
        parameters: settings such as 'erosion.radius=1.5:3' (a range), 'erosion.radius=2px' (pixels) or
            'erosion.scope=foreground'.
    """
    joined = [name for name in names if "," in name]
    if joined:
        apart = " ".join(part for name in names for part in name.split(",") if part)
        raise NoiseToolsError(f"--noise has {joined[0]!r}; separate noise types by spaces: --noise {apart}.")
    plain = tuple(Component(tuple(Step(part) for part in name.split("+"))) for name in dict.fromkeys(names))
    return with_parameters(plain, parameters)


def with_parameters(components: Sequence[Component], parameters: Sequence[str]) -> tuple[Component, ...]:
    """Checked components in which 'type.name=value' settings replace those of every step of that type."""
    check(components)
    changed = tuple(components)
    for type_name, settings in parse_parameters(parameters).items():
        if type_name not in {step.type for component in components for step in component.steps}:
            there = ", ".join(component.name for component in components)
            raise NoiseToolsError(f"--param names {type_name!r}, which is not among the noise asked for ({there}).")
        changed = tuple(
            replace(
                component,
                steps=tuple(
                    replace(step, settings={**step.settings, **settings}) if step.type == type_name else step
                    for step in component.steps
                ),
            )
            for component in changed
        )
    check(changed)
    return changed


def for_nested_labels(components: Sequence[Component]) -> tuple[Component, ...]:
    """`components` for labels that are parts of one structure: 'omission' misses it with all of its parts.

    One part alone would leave a hole in the others. Where `of` is set, or within a mixture, whose objects are single
    parts, nothing changes.
    """
    return tuple(
        replace(
            component,
            steps=tuple(
                replace(step, settings={"of": "foreground", **step.settings}) if step.type == "omission" else step
                for step in component.steps
            ),
        )
        for component in components
    )


def parse_parameters(texts: Sequence[str]) -> dict[str, Settings]:
    """Settings per noise type from 'type.name=value' texts."""
    settings: dict[str, Settings] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        type_name, dot, name = key.partition(".")
        if not (equals and dot and name and value):
            raise NoiseToolsError(f"--param {text!r} is not of the form TYPE.NAME=VALUE, e.g. erosion.radius=1.5:3.")
        settings.setdefault(type_name, {})[name] = parse_value(value)
    return settings


def parse_value(value: Any) -> Range | str:
    """A range from 'low:high', a number or a pair; '2px:3px' counts pixels; any other text stays as it is."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return (float(value), float(value))
    if isinstance(value, list | tuple) and len(value) == 2 and all(isinstance(v, int | float) for v in value):
        return (float(value[0]), float(value[1]))
    low, colon, high = str(value).partition(":")
    high = high if colon else low
    try:
        if low.endswith("px") and high.endswith("px"):
            return Pixels((float(low[:-2]), float(high[:-2])))
        return (float(low), float(high))
    except ValueError:
        return str(value)


def _value_as_json(value: Range | str) -> list[float] | str:
    return str(value) if isinstance(value, Pixels | str) else list(value)


def check(components: Sequence[Component], labels: Sequence[int] = range(1, 256)) -> None:
    """Raises NoiseToolsError for an unknown type, parameter or value, before any file is touched.

    Args:
        labels: foreground values that the noise has to work with.
    """
    if not components:
        raise NoiseToolsError(f"No noise type was given; name at least one of {', '.join(noise.NAMES)}.")
    for component in components:
        if not 0 < component.weight <= _LARGEST_WEIGHT:
            raise NoiseToolsError(
                f"Component {component.name} has weight {component.weight}; "
                f"give a number above 0, up to {_LARGEST_WEIGHT:g}."
            )
        for step in component.steps:
            if step.alternatives and step.type != "mixture":
                raise NoiseToolsError(f"Noise type {step.type!r} takes no alternatives; only 'mixture' does.")
            if any(inner.type == "mixture" for alternative in step.alternatives for inner in alternative.steps):
                raise NoiseToolsError("A 'mixture' has a 'mixture' among its alternatives; list them all in one.")
            if step.alternatives:
                check(step.alternatives, labels)
            step.build(labels)


def spread(components: Sequence[Component], count: int) -> list[int]:
    """Component index of each of `count` cases; at every prefix the shares are as close to the weights as can be."""
    total = sum(component.weight for component in components)
    given = [0] * len(components)
    order = []
    for position in range(1, count + 1):
        lacking = [component.weight / total * position - given[i] for i, component in enumerate(components)]
        index = max(range(len(components)), key=lambda i: (round(lacking[i], 9), -i))
        given[index] += 1
        order.append(index)
    return order


def from_json(content: Sequence[Mapping[str, Any]], where: str = "recipe") -> tuple[Component, ...]:
    """Components from the form `as_json` writes, which is also that of recipe files.

    Args:
        where: what to call the source in error messages.
    """
    if not isinstance(content, list | tuple):
        raise NoiseToolsError(f"{where}: 'components' is {type(content).__name__}; give a list of components.")
    return tuple(_component(entry, where) for entry in content)


def load_recipe(path: Path) -> tuple[tuple[Component, ...], dict[str, Any]]:
    """Components and defaults (`DEFAULTS`) of a recipe file, see docs/noise_manifest.md for the format."""
    import yaml

    try:
        content = yaml.load(path.read_text(), _recipe_loader())
    except OSError as error:
        raise NoiseToolsError(
            f"Recipe {path} cannot be read ({error.strerror}); give an existing YAML file."
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise NoiseToolsError(f"Recipe {path} is not YAML ({' '.join(str(error).split())}); correct it.") from error
    _check_keys(content, {"components", *DEFAULTS}, str(path), required="components")
    defaults = {key: content[key] for key in DEFAULTS if content.get(key) is not None}
    for key in defaults:
        value = parse_value(defaults[key])
        if isinstance(value, str | Pixels) or (key != "severity" and value[0] != value[1]):
            raise NoiseToolsError(f"{path}: {key} is {defaults[key]!r}; give a number.")
        defaults[key] = value if key == "severity" else value[0]
    return from_json(content["components"], str(path)), defaults


def _recipe_loader() -> type:
    """PyYAML's safe loader without numbers to base 60, which would read the range 1:2 as 62."""
    import yaml

    class Loader(yaml.SafeLoader):
        yaml_implicit_resolvers = {
            first: [
                (tag, _without_colon(pattern) if tag.endswith((":int", ":float")) else pattern)
                for tag, pattern in found
            ]
            for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
        }

    return Loader


def _without_colon(pattern: re.Pattern) -> re.Pattern:
    return re.compile(rf"(?!.*:)(?:{pattern.pattern})", pattern.flags)


def _component(entry: Any, where: str) -> Component:
    _check_keys(entry, {"weight", "steps"}, f"{where}: a component", required="steps")
    steps = entry["steps"]
    if not isinstance(steps, list | tuple):
        raise NoiseToolsError(f"{where}: 'steps' is {steps!r}; give a list of noise types.")
    weight = entry.get("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, int | float):
        raise NoiseToolsError(f"{where}: weight is {weight!r}; give a number above 0.")
    return Component(tuple(_step(step, where) for step in steps), float(weight))


def _step(entry: Any, where: str) -> Step:
    if isinstance(entry, str):
        return Step(entry)
    _check_keys(entry, {"type", "settings", "alternatives"}, f"{where}: a step", required="type")
    settings = entry.get("settings") or {}
    if not isinstance(settings, Mapping):
        raise NoiseToolsError(f"{where}: 'settings' is {settings!r}; give NAME: VALUE pairs.")
    return Step(
        str(entry["type"]),
        {key: parse_value(value) for key, value in settings.items()},
        from_json(entry.get("alternatives") or [], where),
    )


def _check_keys(content: Any, known: set[str], where: str, required: str) -> None:
    if not isinstance(content, Mapping):
        raise NoiseToolsError(f"{where} is {content!r}; expected a mapping with the key {required!r}.")
    unknown = sorted(str(key) for key in set(content) - known)
    if unknown:
        raise NoiseToolsError(f"{where} has unknown keys {', '.join(unknown)}; known are {', '.join(sorted(known))}.")
    if required not in content:
        raise NoiseToolsError(f"{where} lacks the key {required!r}; add it.")
