"""The command `noise_tools`. Nothing heavy is imported before a sub-command runs, so that --help answers at once."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import NoReturn

from noise_tools.interruption import clean_up_when_ended

# Sub-commands of which the module itself adds the arguments.
_SELF_DESCRIBED = {
    "report": "compare two label folders: CSV and one HTML page",
    "preview": "one PNG with every noise type side by side on one case",
}


class _Parser(argparse.ArgumentParser):
    """Says what is wrong with the arguments in one sentence; the many lines of usage are left to --help."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; see '{self.prog} --help'.\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a sub-command; exit status 0, 2 for bad input (one sentence on stderr), 129, 130 or 143 when ended."""
    argv = list(sys.argv[1:] if argv is None else argv)
    args = build_parser(argv[0] if argv else "").parse_args(argv)
    from noise_tools.errors import NoiseToolsError, access_refused

    clean_up_when_ended()
    try:
        status = import_module(args.module).run(args) or 0
        sys.stdout.flush()  # a closed pipe shows here, not when the interpreter ends
        return status
    except BrokenPipeError:
        # The reader (`| head`) has seen enough. Python would flush into the closed pipe once more on exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (NoiseToolsError, OSError) as error:
        print(f"error: {access_refused(error) or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("error: interrupted; nothing was kept.", file=sys.stderr)
        return 130


def build_parser(command: str = "") -> argparse.ArgumentParser:
    """The parser; `command` is the sub-command to parse, whose module may have to be imported for its arguments."""
    parser = _Parser(
        prog="noise_tools", description="Reproducible label noise for segmentation data sets in nnU-Net's raw format."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_corrupt(commands)
    _add_replay(commands)
    _add_list(commands)
    _add_phantom(commands)
    for name, text in _SELF_DESCRIBED.items():
        sub = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        sub.set_defaults(module=f"noise_tools.{name}")
        if command == name:
            import_module(f"noise_tools.{name}").add_arguments(sub)
    return parser


def _add_corrupt(commands: argparse._SubParsersAction) -> None:
    sub = commands.add_parser(
        "corrupt",
        help="write a data set with wrong labels",
        description="Writes a new raw data set whose labels are partly wrong. Images are referenced, not copied.",
    )
    sub.set_defaults(module="noise_tools.corrupt")
    sub.add_argument("-d", dest="dataset", required=True, metavar="ID|NAME", help="source data set in nnUNet_raw")
    _add_output(sub, "<Name>Noisy")
    kind = sub.add_mutually_exclusive_group(required=True)
    kind.add_argument("--noise", nargs="+", metavar="TYPE", help="noise types; A+B applies both to a case")
    kind.add_argument("--recipe", type=Path, metavar="FILE.yaml", help="a whole mixture (docs/noise_manifest.md)")
    kind.add_argument("--preset", metavar="NAME", help="settings of the literature, see 'noise_tools list'")
    sub.add_argument(
        "--param",
        nargs="+",
        default=[],
        metavar="TYPE.NAME=VALUE",
        help="e.g. erosion.radius=1.5:3 (mm) or erosion.radius=2px (finest voxel edge)",
    )
    sub.add_argument(
        "--case-fraction",
        type=float,
        metavar="F",
        help="share of the cases not trusted to corrupt (default 1)",
    )
    sub.add_argument(
        "--label-dice",
        type=float,
        metavar="D",
        help="Dice of each corrupted label with the clean one, mean over its foreground labels or regions",
    )
    sub.add_argument("--surface-distance", type=float, metavar="MM", help="instead: HD95 in mm (mean likewise)")
    sub.add_argument("--label-change", type=float, metavar="S", help="instead: changed voxels / clean voxels")
    sub.add_argument(
        "--severity", type=_range, metavar="LOW:HIGH", help="instead: range the severity in [0, 1] is drawn from"
    )
    clean = sub.add_mutually_exclusive_group()
    clean.add_argument(
        "--trusted",
        type=int,
        metavar="N",
        help="cases that stay clean, by seed (default: those that the source declares, else 5)",
    )
    clean.add_argument("--trusted-cases", nargs="+", default=[], metavar="CASE", help="name them instead")
    sub.add_argument(
        "--test-cases", nargs="+", default=[], metavar="N|CASE", help="hold out clean cases as imagesTs and labelsTs"
    )
    sub.add_argument("--allow-empty", action="store_true", help="accept labels without foreground")


def _add_replay(commands: argparse._SubParsersAction) -> None:
    sub = commands.add_parser(
        "replay",
        help="write a corrupted data set again from its manifest",
        description="Applies the noise recorded in a noise_manifest.json to the clean data set: the same label bytes.",
    )
    sub.set_defaults(module="noise_tools.replay")
    sub.add_argument("-d", dest="dataset", required=True, metavar="ID|NAME", help="clean data set in nnUNet_raw")
    sub.add_argument("--manifest", type=Path, required=True, metavar="FILE", help="noise_manifest.json to replay")
    _add_output(sub, "<Name>Noisy", seed=False)


def _add_list(commands: argparse._SubParsersAction) -> None:
    sub = commands.add_parser(
        "list",
        help="print noise types and presets",
        description="Prints every noise type with its parameters, defaults, units and source, and the presets.",
    )
    sub.set_defaults(module="noise_tools.listing")
    sub.add_argument("names", nargs="*", metavar="NAME", help="only these types or presets")


def _add_phantom(commands: argparse._SubParsersAction) -> None:
    sub = commands.add_parser(
        "phantom",
        help="write a synthetic data set",
        description="Writes a synthetic, anatomy-like data set with two touching labels, training and test cases.",
    )
    sub.set_defaults(module="noise_tools.phantom")
    _add_output(sub, "Phantom")
    sub.add_argument("-n", dest="training", type=int, default=24, metavar="N", help="training cases (default 24)")
    sub.add_argument("--test", type=int, default=8, metavar="N", help="test cases (default 8)")
    sub.add_argument("--dim", type=int, choices=(2, 3), default=3, help="3: .nii.gz volumes (default), 2: .png images")
    sub.add_argument("--spacing", type=float, nargs="+", metavar="MM", help="voxel size z y x (default 1 1 1; 3D only)")


def _add_output(sub: argparse.ArgumentParser, default_name: str, seed: bool = True) -> None:
    sub.add_argument("-o", dest="output", type=_dataset_id, required=True, metavar="ID", help="id of the new data set")
    sub.add_argument("--name", metavar="NAME", help=f"name of the new data set (default {default_name})")
    if seed:
        sub.add_argument("--seed", type=int, default=0, help="same seed, same bytes (default 0)")
    sub.add_argument("-np", dest="processes", type=int, default=1, metavar="N", help="processes (default 1)")
    sub.add_argument("--overwrite", action="store_true", help="replace the data set if it exists")


def _dataset_id(text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no number; give the id alone, and a name with --name") from error


def _range(text: str) -> tuple[float, float]:
    low, colon, high = text.partition(":")
    try:
        return float(low), float(high if colon else low)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor LOW:HIGH") from error


if __name__ == "__main__":
    sys.exit(main())
