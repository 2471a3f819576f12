"""The README's commands exist, take the options shown, and its links lead somewhere."""

from __future__ import annotations

import re
import shlex
from importlib import metadata
from pathlib import Path

import pytest

from nnunetv2_metadcseg import cli as metadcseg
from noise_tools import cli as noise_tools

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
README = PAGES[0].read_text()


def command_lines() -> list[list[str]]:
    """The commands in the README's bash blocks, split into words, without comments."""
    blocks = re.findall(r"^ *```bash\n(.*?)^ *```", README, re.DOTALL | re.MULTILINE)
    return [words for block in blocks for line in block.splitlines() if (words := shlex.split(line, comments=True))]


def lines_of(command: str) -> list[list[str]]:
    return [words[1:] for words in command_lines() if words[0] == command]


@pytest.mark.parametrize("words", lines_of("metadcseg"), ids=" ".join)
def test_metadcseg_takes_these_options(words):
    assert metadcseg.build_parser(words[0]).parse_args(words).command == words[0]


@pytest.mark.parametrize("words", lines_of("noise_tools"), ids=" ".join)
def test_noise_tools_takes_these_options(words):
    assert noise_tools.build_parser(words[0]).parse_args(words).command == words[0]


def test_the_examples_cover_both_commands():
    assert {words[0] for words in lines_of("metadcseg")} == {"doctor", "audit", "small-config"}
    assert [words[0] for words in lines_of("noise_tools")] == ["corrupt"]


def test_nnunet_commands_are_installed():
    installed = {script.name for script in metadata.entry_points(group="console_scripts")}
    used = {words[0] for words in command_lines() if words[0].startswith("nnUNetv2_")}
    assert used and used <= installed


def test_make_targets_exist():
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {words[0] for words in lines_of("make")} == {"demo", "test"} <= set(targets)


def test_exports_name_the_variables_that_doctor_checks():
    exported = {words[1].partition("=")[0] for words in command_lines() if words[0] == "export"}
    assert {"nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results", "nnUNet_extTrainer"} <= exported


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_files(page):
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)[^)]*\)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.integration
def test_trainers_exist():
    import nnunetv2.training.nnUNetTrainer.nnUNetTrainer as stock

    from nnunetv2_metadcseg.nnunet_ext import metadcseg_trainers

    names = set(re.findall(r"nnUNetTrainer\w*", README))
    assert len(names) > 5
    assert [name for name in names if not hasattr(metadcseg_trainers, name) and not hasattr(stock, name)] == []
