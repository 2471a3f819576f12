"""The command `metadcseg`: what a user needs around `nnUNetv2_train`.

Sub-commands are imported when they are asked for, so that `--help` needs neither torch nor nnU-Net.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

from nnunetv2_metadcseg import __version__
from noise_tools.errors import access_refused
from noise_tools.interruption import clean_up_when_ended

# name: (module with add_arguments(parser) and run(args) -> exit status, help text)
SUB_COMMANDS = {
    "ext-path": (
        "nnunetv2_metadcseg.cli",
        'print the trainer folder: export nnUNet_extTrainer="$(metadcseg ext-path)"',
    ),
    "small-config": ("nnunetv2_metadcseg.small_config", "add a configuration for two CPU cores to a plans file"),
    "doctor": ("nnunetv2_metadcseg.doctor", "check the installation and say how to mend what is missing"),
    "audit": ("nnunetv2_metadcseg.label_audit_cli", "rank cases whose labels look wrong and map the voxels"),
    "benchmark": ("nnunetv2_metadcseg.step_benchmark", "time a training step against stock nnU-Net"),
}


def ext_path() -> Path:
    """The folder that the environment variable nnUNet_extTrainer should name."""
    return Path(__file__).resolve().parent / "nnunet_ext"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`metadcseg ext-path` takes no options."""


def run(args: argparse.Namespace) -> int:
    """Prints the folder of `metadcseg ext-path`."""
    print(ext_path())
    return 0


def build_parser(command: str | None) -> argparse.ArgumentParser:
    """The parser; only the sub-command `command` gets its options, so that no other module is imported."""
    parser = argparse.ArgumentParser(
        prog="metadcseg", description="MetaDCSeg for nnU-Net: training that withstands wrong labels."
    )
    parser.add_argument("--version", action="version", version=__version__)
    sub_parsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (module, text) in SUB_COMMANDS.items():
        if importlib.util.find_spec(module) is None:
            continue
        sub_parser = sub_parsers.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        if name == command:
            importlib.import_module(module).add_arguments(sub_parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one sub-command; bad input ends with one `error: ...` line on stderr and status 2."""
    argv = list(sys.argv[1:] if argv is None else argv)
    args = build_parser(argv[0] if argv else None).parse_args(argv)
    clean_up_when_ended()
    try:
        return importlib.import_module(SUB_COMMANDS[args.command][0]).run(args) or 0
    except (ValueError, OSError) as error:
        print(f"error: {access_refused(error) or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
