"""Which noise a case gets: weighted components, each one noise type or several applied one after the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from noise_tools import noise
from noise_tools.errors import NoiseToolsError
from noise_tools.noise.base import Noise, Pixels, Range

Settings = dict[str, Range | str]


@dataclass(frozen=True)
class Step:
    """One noise type with the settings that replace its defaults."""

    type: str
    settings: Settings = field(default_factory=dict)

    def build(self, labels: Sequence[int]) -> Noise:
        """The noise type, set up for these foreground labels."""
        return noise.load(self.type)(labels, self.settings)

    def as_json(self) -> dict[str, Any]:
        settings = {key: _value_as_json(value) for key, value in self.settings.items()}
        return {"type": self.type, **({"settings": settings} if settings else {})}


@dataclass(frozen=True)
class Component:
    """Steps applied in order, and the share of corrupted cases that gets them (relative to the other components)."""

    steps: tuple[Step, ...]
    weight: float = 1.0

    @property
    def name(self) -> str:
        return "+".join(step.type for step in self.steps)

    def as_json(self) -> dict[str, Any]:
        return {"weight": self.weight, "steps": [step.as_json() for step in self.steps]}


def parse_components(names: Sequence[str], parameters: Sequence[str] = ()) -> tuple[Component, ...]:
    """Components from the command line.

    Args:
        names: noise types; 'erosion+affine' applies both to the same case.
        parameters: settings such as 'erosion.radius=1.5:3' (a range), 'erosion.radius=2' or 'erosion.scope=foreground'.
    """
    settings = parse_parameters(parameters)
    components = tuple(
        Component(tuple(Step(part, settings.get(part, {})) for part in name.split("+")))
        for name in dict.fromkeys(names)
    )
    used = {step.type for component in components for step in component.steps}
    check(components)
    for type_name in settings:
        if type_name not in used:
            raise NoiseToolsError(
                f"--param names {type_name!r}, which is not among --noise {' '.join(names)}; add it there."
            )
    return components


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
    if isinstance(value, list | tuple) and len(value) == 2:
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


def check(components: Sequence[Component]) -> None:
    """Raises NoiseToolsError for an unknown type, parameter or value, before any file is touched."""
    if not components:
        raise NoiseToolsError(f"No noise type was given; name at least one of {', '.join(noise.NAMES)}.")
    for component in components:
        if not component.weight > 0:
            raise NoiseToolsError(f"Component {component.name} has weight {component.weight}; give a number above 0.")
        for step in component.steps:
            step.build(labels=range(1, 256))


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


def from_json(content: Sequence[Mapping[str, Any]]) -> tuple[Component, ...]:
    """Components from the form `as_json` writes (also that of recipe files)."""
    return tuple(
        Component(
            tuple(
                Step(step["type"], {key: parse_value(value) for key, value in step.get("settings", {}).items()})
                for step in entry["steps"]
            ),
            float(entry.get("weight", 1.0)),
        )
        for entry in content
    )
