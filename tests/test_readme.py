"""The commands of README and docs exist and take the options shown; links lead to files and headings that are there."""

from __future__ import annotations

import re
import shlex
from importlib import metadata
from pathlib import Path

import pytest

from nnunetv2_metadcseg import cli as metadcseg
from noise_tools import cli as noise_tools

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "benchmarks").glob("*/README.md"))]
README = PAGES[0].read_text()


def command_lines(text: str = README) -> list[list[str]]:
    """The commands in the blocks of a page that are bash or of no language, split into words, without comments."""
    blocks = re.findall(r"^ *```(\w*)\n(.*?)^ *```$", text, re.DOTALL | re.MULTILINE)
    lines = [line for language, block in blocks if language in ("", "bash") for line in block.splitlines()]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def lines_of(command: str) -> list[list[str]]:
    return [words[1:] for words in command_lines() if words[0] == command]


def lines_anywhere(command: str) -> list[list[str]]:
    """Those of all pages, and those that stand in a sentence with options."""
    lines = []
    for text in map(Path.read_text, PAGES):
        in_sentences = re.findall(rf"`({command} \w[^`]* -[^`.]*)`", text.replace("\n", " "))
        lines += [*command_lines(text), *map(shlex.split, in_sentences)]
    return [words[1:] for words in lines if words[0] == command]


@pytest.mark.parametrize("words", lines_anywhere("metadcseg"), ids=" ".join)
def test_metadcseg_takes_these_options(words):
    assert metadcseg.build_parser(words[0]).parse_args(words).command == words[0]


@pytest.mark.parametrize("words", lines_anywhere("noise_tools"), ids=" ".join)
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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_headings(page):
    links = re.findall(r"\]\((?!https?:)([^)#]*)#([^)]+)\)", page.read_text())
    assert [link for file, link in links if link not in anchors(page.parent / file if file else page)] == []


def anchors(page: Path) -> set[str]:
    """What links may name: the page's headings as GitHub makes them, and anchors of its own."""
    text = page.read_text()
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings} | {
        *re.findall(r'<a id="([^"]+)"', text)
    }


@pytest.mark.integration
def test_trainers_exist():
    import nnunetv2.training.nnUNetTrainer.nnUNetTrainer as stock

    from nnunetv2_metadcseg.nnunet_ext import metadcseg_trainers

    names = set(re.findall(r"nnUNetTrainer\w*", README))
    assert len(names) > 5
    assert [name for name in names if not hasattr(metadcseg_trainers, name) and not hasattr(stock, name)] == []
