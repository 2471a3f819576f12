"""`noise_tools list`: noise types with their parameters, and presets with their sources."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from noise_tools import noise
from noise_tools.errors import NoiseToolsError
from noise_tools.noise.base import Noise, Parameter, Pixels
from noise_tools.presets import PRESETS, Preset

if TYPE_CHECKING:
    import argparse

_WIDTH = 110


def run(args: argparse.Namespace) -> int:
    """Entry point of the command line."""
    print(text(args.names))
    return 0


def text(names: list[str] | None = None) -> str:
    """What the command prints for these types and presets, or for all."""
    unknown = [name for name in names or [] if name not in noise.NAMES and name not in PRESETS]
    if unknown:
        raise NoiseToolsError(
            f"Unknown noise type or preset {unknown[0]!r}; choose from {', '.join((*noise.NAMES, *PRESETS))}."
        )
    kinds = [name for name in noise.NAMES if not names or name in names]
    presets = [name for name in PRESETS if not names or name in names]
    parts = ["NOISE TYPES (--noise)\n"] if kinds else []
    parts += [_type(noise.load(name)) for name in kinds]
    parts += ["PRESETS (--preset)\n"] if presets else []
    parts += [_preset(name, PRESETS[name]) for name in presets]
    return "\n".join(parts).rstrip()


def _type(kind: type[Noise]) -> str:
    lines = [f"{kind.name}: {kind.summary}"]
    lines += [f"    {parameter.name} = {_default(parameter)}: {_help(parameter)}" for parameter in kind.parameters]
    lines.append(_wrapped("source: " + kind.source))
    return "\n".join(lines) + "\n"


def _help(parameter: Parameter) -> str:
    return parameter.help + (f" ({'|'.join(parameter.choices)})" if parameter.choices else "")


def _default(parameter: Parameter) -> str:
    if isinstance(parameter.default, str | Pixels):
        return str(parameter.default)
    low, high = parameter.default
    unit = f"typical radii [{parameter.unit}]" if parameter.relative else parameter.unit
    return f"{low:g}:{high:g} {unit}" + (", grows with severity" if parameter.strength else "")


def _preset(name: str, preset: Preset) -> str:
    flags = " ".join(f"--{key.replace('_', '-')} {value:g}" for key, value in preset.defaults.items())
    noises = ", ".join(dict.fromkeys(component.name for component in preset.build()))
    parts = [f"{name}: {noises} ({flags})", _wrapped("source: " + preset.source), _wrapped("maps: " + preset.mapping)]
    return "\n".join(parts) + "\n"


def _wrapped(line: str) -> str:
    return textwrap.fill(line, _WIDTH, initial_indent="    ", subsequent_indent="      ")
