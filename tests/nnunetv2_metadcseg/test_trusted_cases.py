from __future__ import annotations

import json

import numpy as np
import pytest

from nnunetv2_metadcseg.trusted_cases import (
    TrustedCasesError,
    absent_classes,
    declared_cases,
    empty_cases,
    patches_per_view,
    read_trusted_cases,
    trusted_in_training,
    trusted_training_cases,
)

KNOWN = ["a", "b", "c", "d"]


class TestReading:
    def test_from_dataset_json(self, tmp_path):
        assert read_trusted_cases(tmp_path, {"trusted_cases": ["b", "a", "b"]}) == ["a", "b"]

    def test_the_file_wins(self, tmp_path):
        (tmp_path / "trusted_cases.json").write_text('["c"]')
        assert read_trusted_cases(tmp_path, {"trusted_cases": ["a"]}) == ["c"]

    @pytest.mark.parametrize("dataset_json", [{}, {"trusted_cases": []}, {"trusted_cases": None}])
    def test_none_declared_says_how_to_declare_them(self, tmp_path, dataset_json):
        with pytest.raises(TrustedCasesError) as error:
            read_trusted_cases(tmp_path, dataset_json)
        assert "No trusted cases" in str(error.value)
        assert str(tmp_path / "trusted_cases.json") in str(error.value)
        assert '"trusted_cases" in dataset.json' in str(error.value)
        assert "nnUNetTrainerMetaDCSegSelfTrusted" in str(error.value)
        assert str(error.value).rstrip(".").count(". ") == 0  # one sentence

    def test_empty_file(self, tmp_path):
        (tmp_path / "trusted_cases.json").write_text("[]")
        with pytest.raises(TrustedCasesError, match="No trusted cases"):
            read_trusted_cases(tmp_path, {"trusted_cases": ["a"]})

    @pytest.mark.parametrize("content", [None, "null", "[]"])
    def test_none_is_fine_where_none_is_needed(self, tmp_path, content):
        if content is not None:
            (tmp_path / "trusted_cases.json").write_text(content)
        assert declared_cases(tmp_path, {}) == []

    @pytest.mark.parametrize("content", [{"a": 1}, "a", [1, 2], ["a", None], 3])
    def test_not_a_list_of_strings(self, tmp_path, content):
        (tmp_path / "trusted_cases.json").write_text(json.dumps(content))
        with pytest.raises(TrustedCasesError, match="expected a JSON list of case identifiers"):
            read_trusted_cases(tmp_path, {})

    def test_broken_json(self, tmp_path):
        (tmp_path / "trusted_cases.json").write_text('["a",')
        with pytest.raises(TrustedCasesError, match="not valid JSON"):
            read_trusted_cases(tmp_path, {})

    def test_another_encoding(self, tmp_path):  # what > writes in a Windows PowerShell
        (tmp_path / "trusted_cases.json").write_text('["a"]', encoding="utf-16")
        with pytest.raises(TrustedCasesError, match="trusted_cases.json is not valid JSON in UTF-8"):
            read_trusted_cases(tmp_path, {})

    def test_byte_order_mark(self, tmp_path):
        (tmp_path / "trusted_cases.json").write_text('["ä"]', encoding="utf-8-sig")
        assert read_trusted_cases(tmp_path, {}) == ["ä"]


class TestValidation:
    def test_only_those_of_the_fold(self):
        assert trusted_training_cases(["d", "a"], ["a", "b", "c"], KNOWN) == ["a"]

    def test_unknown_identifiers_are_named_with_examples(self):
        with pytest.raises(TrustedCasesError, match=r"x\.nii\.gz are not among the 4 preprocessed cases .*a, b, c"):
            trusted_training_cases(["a", "x.nii.gz"], ["a", "b"], KNOWN)

    def test_long_lists_are_cut(self):
        with pytest.raises(TrustedCasesError, match=r"x0, x1, x2, x3, x4 \.\.\. are not"):
            trusted_training_cases([f"x{i}" for i in range(9)], ["a", "b"], KNOWN)

    def test_none_in_the_fold(self):
        with pytest.raises(TrustedCasesError, match="None of the 2 trusted cases is in this fold's training split"):
            trusted_training_cases(["c", "d"], ["a", "b"], KNOWN)

    def test_all_of_the_fold(self):
        with pytest.raises(TrustedCasesError, match="All 2 training cases are trusted"):
            trusted_training_cases(["a", "b", "c"], ["a", "b"], KNOWN)


class TestAbsentClasses:
    labels = {"background": 0, "liver": 1, "tumour": 2, "cyst": 3}
    held = {"a": {1: [0], 2: []}, "b": {1: [0], 2: [], 3: []}, "c": {1: [0], 2: [0]}, "d": {1: []}}

    def absent(self, labels: dict, trusted: list[str], held: dict, looked_at: list | None = None) -> list[str]:
        def locations(case: str) -> dict:
            if looked_at is not None:
                looked_at.append(case)
            return held[case]

        return absent_classes(labels, trusted, sorted(held), locations)

    def test_named(self):
        assert self.absent(self.labels, ["a", "b"], self.held) == ["tumour"]
        assert self.absent(self.labels, ["d"], self.held) == ["liver", "tumour"]

    def test_one_that_exists_nowhere_is_not(self):
        assert self.absent(self.labels, ["c"], self.held) == []

    def test_looks_at_no_more_cases_than_needed(self):
        looked_at: list[str] = []
        labels = {"background": 0, "liver": 1}
        assert self.absent(labels, ["a", "b"], self.held, looked_at) == []
        assert looked_at == ["a"]

    def test_regions_and_ignore_label(self):
        labels = {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}
        held = {"a": {(1, 2): [0], 2: [], (-1, 0, 1, 2): [0]}, "b": {(1, 2): [0], 2: [0], (-1, 0, 1, 2): [0]}}
        assert self.absent(labels, ["a"], held) == ["core"]
        assert self.absent(labels, ["b"], held) == []

    def test_a_region_of_one_label_written_as_list(self):
        labels = {"background": 0, "whole": [1, 2], "core": [2]}
        assert self.absent(labels, ["a"], {"a": {(1, 2): [0], (2,): []}, "b": {(2,): [0]}}) == ["core"]


class TestEmptyCases:
    def test_hold_no_class(self):
        held = {"a": {1: [0], 2: []}, "b": {1: [], 2: []}, "c": {}}
        assert empty_cases({"background": 0, "liver": 1, "tumour": 2}, held, held.__getitem__) == ["b", "c"]

    def test_what_is_annotated_is_no_region(self):
        labels = {"background": 0, "whole": [1, 2], "core": [2], "ignore": 3}
        held = {"a": {(1, 2): [], (2,): [], (-1, 0, 1, 2): [0]}, "b": {(1, 2): [0], (2,): []}}
        assert empty_cases(labels, held, held.__getitem__) == ["a"]


class TestTrustedInTraining:
    def test_own_choice_wins_over_what_is_declared(self):
        assert trusted_in_training({"state": {"self_trusted": {"chosen": ["c"]}}}, ["a"]) == ["c"]

    def test_what_was_declared_then_wins_over_what_is_declared_now(self):
        assert trusted_in_training({"state": {"trusted": ["b"]}}, ["a", "b"]) == ["b"]

    @pytest.mark.parametrize("state", [{}, {"self_trusted": {"chosen": []}, "trusted": None}])
    def test_declared_otherwise(self, state):
        assert trusted_in_training({"state": state}, ["a"]) == ["a"]


class TestPatchesPerView:
    LABELS = {"background": 0, "a": 1, "b": 2, "ignore": 3}

    @staticmethod
    def locations(case: str) -> dict:
        """Structure of 1 to `case` slices of 20 rows and 10 columns, by its corners, and all that is annotated."""
        corners = np.array([[0, 5, 30, 7], [0, 4 + int(case), 49, 16]])
        return {1: corners[:1], 2: corners[1:], (-1, 0, 1, 2): np.array([[0, 0, 0, 0], [0, 99, 99, 99]])}

    @pytest.mark.parametrize(
        ("patch", "expected"),
        [
            ((32, 32, 32), 1),  # it holds the structure
            ((4, 10, 32), 2.5 * 2),
            ((32, 32), 10),  # of a 2d configuration: one slice each
        ],
    )
    def test_covers_the_structure_once(self, patch, expected):
        assert patches_per_view(self.LABELS, ["10"], self.locations, patch) == pytest.approx(expected)

    def test_median_of_the_cases_with_structure(self):
        def locations(case: str) -> dict:
            return self.locations(case) if int(case) else {1: np.zeros((0, 4)), 2: []}

        assert patches_per_view(self.LABELS, ["0", "2", "4", "9"], locations, (64, 64)) == 4
        assert patches_per_view(self.LABELS, ["0"], locations, (64, 64)) == 1

    def test_looks_at_some_of_many(self):
        asked = []

        def locations(case: str) -> dict:
            asked.append(case)
            return self.locations(case)

        assert patches_per_view(self.LABELS, [str(i + 1) for i in range(500)], locations, (64, 64)) > 100
        assert len(asked) == 50 and int(asked[-1]) > 450
