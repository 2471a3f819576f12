from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from noise_tools import report, report_page
from tests.noise_tools.label_files import two_balls, write, write_dataset


class Page(HTMLParser):
    """Collects tags, checks that they are closed, and every address the page refers to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.rows = 0
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.rows += tag == "tr"
        self.addresses += [value for name, value in attrs if name in ("src", "href", "data", "srcset")]
        if tag not in ("meta", "img", "br", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets")
    missed = np.where(two_balls() == 2, 0, two_balls())
    clean = {case: two_balls() for case in ("equal", "missed", "moved")}
    noisy = {"equal": two_balls(), "missed": missed, "moved": two_balls(shift=2)}
    return report.compare(write_dataset(folder / "clean", clean), write_dataset(folder / "<noisy> & co", noisy))


def test_one_file_that_needs_nothing_else(comparison):
    text = report_page.page(comparison)
    page = Page(text)
    assert page.open == []
    assert len(page.addresses) == 1 + 2, "one picture of histograms, one per case that differs"
    for address in page.addresses:
        assert address.startswith("data:image/png;base64,")
    assert not re.search(r"https?://|@import|url\(", text)


def test_pictures_are_pictures(comparison):
    from PIL import Image

    for address in Page(report_page.page(comparison)).addresses:
        with Image.open(io.BytesIO(base64.b64decode(address.split(",")[1]))) as image:
            image.load()
            assert min(image.size) > 100
            assert len(np.unique(np.asarray(image.convert("L")))) > 8, "not blank"


def test_names_are_escaped(comparison):
    text = report_page.page(comparison)
    assert "&lt;noisy&gt; &amp; co" in text and "<noisy>" not in text


def test_numbers_on_the_page(comparison):
    text = report_page.page(comparison)
    differing = [v for case, v in comparison.case_dice().items() if case != "equal"]
    assert f"{np.mean(differing):.3f}" in text
    assert "67% of all" in text
    tail = re.search(r"<tr><td>tail</td>(.*?)</tr>", text)[1]
    assert re.findall(r"<td>([^<]*)</td>", tail)[-2:] == ["1", "0"], "label 2 is missing in B once"
    assert "1 case without any difference left out" in text


def test_every_row_is_in_the_table_up_to_a_limit(comparison, monkeypatch):
    text = report_page.page(comparison, worst=0)
    assert Page(text).rows == (1 + 2) + (1 + 6)
    assert "None asked for" in text
    monkeypatch.setattr(report_page, "_MOST_ROWS", 2)
    text = report_page.page(comparison, worst=0)
    assert Page(text).rows == (1 + 2) + (1 + 2)
    assert "The 2 worst of 6 rows" in text


def test_folders_without_any_difference(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / name / "x.nii.gz", two_balls())
    text = report_page.page(report.compare(tmp_path / "a", tmp_path / "b"))
    assert "No case differs." in text and "0% of all" in text


def test_pictures_without_images_and_2d(tmp_path):
    write(tmp_path / "a" / "x.png", two_balls((40, 30)))
    write(tmp_path / "b" / "x.png", two_balls((40, 30), shift=3))
    comparison = report.compare(tmp_path / "a", tmp_path / "b")
    assert len(report_page.case_figure(comparison, "x").axes) == 1
    assert "Give --images" in report_page.page(comparison)


def test_an_image_on_another_grid_is_not_drawn(tmp_path):
    write(tmp_path / "a" / "x.nii.gz", two_balls())
    write(tmp_path / "b" / "x.nii.gz", two_balls(shift=1))
    write(tmp_path / "images" / "x_0000.nii.gz", np.zeros((3, 4, 5), np.uint8))
    comparison = report.compare(tmp_path / "a", tmp_path / "b", images=tmp_path / "images")
    assert len(report_page.case_figure(comparison, "x").axes) == 3


def test_volume_drawn_where_it_differs_most(comparison):
    figure = report_page.case_figure(comparison, "missed")
    differing = two_balls() == 2
    best = [np.flatnonzero(s == s.max()) for s in (differing.sum((1, 2)), differing.sum((0, 2)), differing.sum((0, 1)))]
    titles = [axes.get_title() for axes in figure.axes]
    for axis, title, indices in zip("zyx", titles, best, strict=True):
        assert title in {f"{axis} = {i}" for i in indices}
