from __future__ import annotations

import numpy as np
import pytest

from nnunetv2_metadcseg.class_locations import absent_classes, empty_cases, patches_per_view, unlabelled_cases


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


class TestUnlabelledCases:
    def test_hold_ignored_voxels_only(self):
        held = {"a": {1: [0], (-1, 0, 1): [0]}, "b": {1: [], (-1, 0, 1): []}, "healthy": {1: [], (-1, 0, 1): [0]}}
        assert unlabelled_cases(sorted(held), held.__getitem__) == ["b"]

    def test_without_an_ignore_label_there_are_none(self):
        assert unlabelled_cases(["a"], {"a": {1: []}}.__getitem__) == []


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
