from __future__ import annotations

import json

import pytest

from nnunetv2_metadcseg.trusted_cases import (
    TrustedCasesError,
    declared_cases,
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


class TestTrustedInTraining:
    def test_own_choice_wins_over_what_is_declared(self):
        assert trusted_in_training({"state": {"self_trusted": {"chosen": ["c"]}}}, ["a"]) == ["c"]

    def test_what_was_declared_then_wins_over_what_is_declared_now(self):
        assert trusted_in_training({"state": {"trusted": ["b"]}}, ["a", "b"]) == ["b"]

    @pytest.mark.parametrize("state", [{}, {"self_trusted": {"chosen": []}, "trusted": None}])
    def test_declared_otherwise(self, state):
        assert trusted_in_training({"state": state}, ["a"]) == ["a"]
