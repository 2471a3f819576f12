"""The page: what it says, and, in headless Chromium, that it sorts and opens cases."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from nnunetv2_metadcseg.label_audit import Disagreement, ErrorDirection, pooled
from nnunetv2_metadcseg.label_audit_findings import Audit, CaseFinding, LabelFinding
from nnunetv2_metadcseg.label_audit_page import page
from nnunetv2_metadcseg.label_audit_score import score
from nnunetv2_metadcseg.label_audit_tables import as_json, write_csv

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
)
PIXEL = "data:image/gif;base64,R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw=="
NAMES = ("good", "a<b> & c", "case_10", "case_9")
RATES = (0.1, 0.8, 0.4, 0.2)
SHIFTS = (1.0, np.nan, 12.0, 3.5)


@pytest.fixture(scope="module")
def audit() -> Audit:
    findings = []
    for name, rate in zip(NAMES, RATES, strict=True):
        parts = {"head": Disagreement(rate, 0, 1, 1), "tail": Disagreement(0, rate / 2, 1, 1)}
        findings.append(
            CaseFinding(
                name, True, name == "good", parts, pooled(list(parts.values())), None, (4, 9, 9), (2.0, 1.0, 1.0)
            )
        )
    score(findings)
    for finding, shift in zip(findings, SHIFTS, strict=True):
        finding.labels[0].direction = ErrorDirection("shifted", 0.5, shift, 1.0, 0, 0)
    findings.sort(key=lambda f: f.rank)
    about = {"dataset": "Dataset504_X", "model": "T__P__c", "trainer": "T", "folds": ["0"]}
    return Audit(findings, about | {"signals": ["one", "two"], "notes": ["<note>"], "file_ending": ".nii.gz"})


@pytest.fixture(scope="module")
def html_file(audit, tmp_path_factory):
    file = tmp_path_factory.mktemp("page") / "audit.html"
    file.write_text(page(audit, {audit.findings[0].case: PIXEL}), encoding="utf-8")
    return file


def dom(file, view: str) -> str:
    """The page after its script ran, with `view` behind the #."""
    if not CHROMIUM:
        pytest.skip("no Chromium here")
    line = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=3000", "--dump-dom"]
    done = subprocess.run([*line, f"{file.as_uri()}#{view}"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def order(text: str) -> list[str]:
    """Cases of the ranking, from top to bottom."""
    body = text.split("<tbody>")[1].split("</tbody>")[0]
    return [
        case.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
        for case in re.findall(r'<tr data-case="([^"]*)"', body)
    ]


def opened(text: str) -> list[str]:
    return re.findall(r'<details class="case" data-case="([^"]*)" open=""', text)


def test_page_is_well_formed_and_loads_nothing(html_file):
    text = html_file.read_text(encoding="utf-8")
    stack, void = [], {"meta", "img"}

    class Checker(HTMLParser):
        def handle_startendtag(self, tag, attrs):
            pass

        def handle_starttag(self, tag, attrs):
            if tag not in void:
                stack.append(tag)
            for name, value in attrs:
                if name == "src":
                    assert value.startswith("data:")
                if name == "href":
                    assert value.startswith(("#case=", "suspicion/", "proposed/", "given/"))

        def handle_endtag(self, tag):
            assert stack.pop() == tag

    Checker().feed(text)
    assert not stack and "http" not in text


def test_names_are_escaped_and_notes_shown(html_file):
    text = html_file.read_text(encoding="utf-8")
    assert "a<b>" not in text and "a&lt;b&gt; &amp; c" in text
    assert 'href="given/a%3Cb%3E%20%26%20c.nii.gz"' in text
    assert "&lt;note&gt;" in text and "one; two" in text


def test_least_reliable_case_comes_first(html_file):
    assert order(html_file.read_text(encoding="utf-8")) == ["a<b> & c", "case_10", "case_9", "good"]


def test_the_label_that_decided_is_named(audit, tmp_path):
    marked = replace(audit.findings[0], decided_by="tail<")
    about = Audit([marked, *audit.findings[1:]], audit.about)
    assert page(about, {}).count(" (tail&lt;)") == 2  # in the table and in the heading of the case
    write_csv(about, tmp_path / "audit.csv", ".nii.gz")
    with (tmp_path / "audit.csv").open(newline="") as stream:
        assert [row["decided_by"] for row in csv.DictReader(stream)][:3] == ["tail<", "", ""]


def test_histogram_counts_every_case(html_file):
    counts = re.findall(r": (\d+) cases, (\d+) of them", html_file.read_text(encoding="utf-8"))
    assert sum(int(n) for n, _ in counts) == 4 and sum(int(n) for _, n in counts) == 1


def test_chromium_sorts_numbers_as_numbers_and_leaves_gaps_last(html_file):
    assert order(dom(html_file, "sort=shift:asc")) == ["good", "case_9", "case_10", "a<b> & c"]
    assert order(dom(html_file, "sort=shift:desc")) == ["case_10", "case_9", "good", "a<b> & c"]


def test_chromium_sorts_names_naturally_and_marks_the_heading(html_file):
    text = dom(html_file, "sort=case:asc")
    assert order(text) == ["a<b> & c", "case_9", "case_10", "good"]
    assert re.search(r'<button data-column="case" data-order="asc">', text)


def test_chromium_opens_the_case_of_the_address(html_file):
    assert opened(dom(html_file, "")) == []
    assert opened(dom(html_file, "sort=rank:desc&case=case_9")) == ["case_9"]


def test_chromium_clicks_sort_and_open(html_file, tmp_path):
    clicks = (
        "document.querySelector('th button[data-column=reliability]').click();"
        "document.querySelector('th button[data-column=reliability]').click();"
        "document.querySelector('#ranking tr[data-case=good] a').click();"
    )
    file = tmp_path / "clicked.html"
    file.write_text(html_file.read_text(encoding="utf-8").replace("</body>", f"<script>{clicks}</script></body>"))
    text = dom(file, "")
    assert order(text) == ["good", "case_9", "case_10", "a<b> & c"]
    assert opened(text) == ["good"]


def test_csv_and_json_agree_with_the_findings(audit, tmp_path):
    write_csv(audit, tmp_path / "audit.csv", ".nii.gz")
    with (tmp_path / "audit.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["case"] for row in rows if not row["label"]] == [f.case for f in audit.findings]
    assert [row["label"] for row in rows[:3]] == ["", "head", "tail"] and rows[1]["shift"] == ""
    content = json.loads(json.dumps(as_json(audit, ".nii.gz"), allow_nan=False))
    first = content["cases"]["a<b> & c"]
    assert first["rank"] == 1 and first["labels"]["head"]["shift"] is None
    assert first["reliability"] == pytest.approx(audit.findings[0].reliability)
    assert float(rows[0]["reliability"]) == pytest.approx(first["reliability"], rel=1e-5)
    assert content["notes"] == ["<note>"]


def test_score_gives_every_group_its_own_expectation():
    def finding(name, rate, out_of_fold):
        part = Disagreement(rate, 0, 1, 1)
        return CaseFinding(name, out_of_fold, False, {"x": part}, part, None, (1, 1, 1), (1, 1, 1))

    # Seen cases disagree ten times less, the odd ones of both groups are found all the same.
    seen = [finding(f"s{i}", 0.01 + 0.001 * i, False) for i in range(6)] + [finding("s_bad", 0.09, False)]
    unseen = [finding(f"u{i}", 0.1 + 0.01 * i, True) for i in range(6)] + [finding("u_bad", 0.9, True)]
    score(seen + unseen)
    assert {f.case for f in seen + unseen if f.rank <= 2} == {"s_bad", "u_bad"}
    assert isinstance(seen[0].labels[0], LabelFinding)
