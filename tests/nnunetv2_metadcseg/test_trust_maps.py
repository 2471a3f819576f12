from __future__ import annotations

import os
import time
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from nnunetv2_metadcseg import trust_maps
from nnunetv2_metadcseg.trust_maps import LEVELS, PreprocessedTrustMaps, find_trust_maps, preprocess, to_trust, to_unit
from tests.nnunetv2_metadcseg import tiny_dataset
from tests.nnunetv2_metadcseg.test_trainer import ShortStart, start, steps


class TestFinding:
    def test_files_by_case(self, tmp_path):
        (tmp_path / "labelsTrust").mkdir()
        for name in ("a_trust.nii.gz", "b_trust.nii.gz", "a_trust.json", "note.txt", ".DS_Store"):
            (tmp_path / "labelsTrust" / name).touch()
        found = find_trust_maps(tmp_path, ".nii.gz", ["a", "b", "c"])
        assert {case: path.name for case, path in found.items()} == {"a": "a_trust.nii.gz", "b": "b_trust.nii.gz"}

    @pytest.mark.parametrize("name", ["a.nii.gz", "a_trust.nii", "a_Trust.nii.gz"])
    def test_another_name(self, tmp_path, name):
        (tmp_path / "labelsTrust").mkdir()
        for file in (name, "b_trust.nii.gz"):
            (tmp_path / "labelsTrust" / file).touch()
        with pytest.raises(ValueError, match=f"holds {name}, expected files named <case>_trust.nii.gz only"):
            find_trust_maps(tmp_path, ".nii.gz", ["a", "b"])

    def test_other_names_are_counted(self, tmp_path):
        (tmp_path / "labelsTrust").mkdir()
        for case in "abc":
            (tmp_path / "labelsTrust" / f"{case}.png").touch()
        with pytest.raises(ValueError, match=r"holds a.png, .* rename or remove it \(and 2 more\)\.$"):
            find_trust_maps(tmp_path, ".png", ["a", "b", "c"])

    def test_none(self, tmp_path):
        assert find_trust_maps(tmp_path, ".nii.gz", ["a"]) == {}

    def test_unknown_case(self, tmp_path):
        (tmp_path / "labelsTrust").mkdir()
        (tmp_path / "labelsTrust" / "z_trust.png").touch()
        with pytest.raises(ValueError, match=r"unknown cases \(z\); name them <case>_trust.png"):
            find_trust_maps(tmp_path, ".png", ["a"])


class TestValues:
    def test_integers_count_to_255(self, tmp_path):
        values = to_unit(np.array([0, 51, 255], np.uint8), tmp_path)
        assert values.tolist() == pytest.approx([0, 0.2, 1])

    @pytest.mark.parametrize("ending", [".png", ".nii.gz"])
    def test_8_bit_images_as_nnunet_reads_them(self, tmp_path, ending):
        image = sitk.GetImageFromArray(np.array([[0, 51], [255, 255]], np.uint8))
        file = tmp_path / f"map{ending}"
        sitk.WriteImage(image if ending == ".png" else sitk.JoinSeries(image), str(file))
        values = (NaturalImage2DIO() if ending == ".png" else SimpleITKIO()).read_seg(str(file))[0]
        assert to_unit(values, file).ravel().tolist() == pytest.approx([0, 0.2, 1, 1])

    def test_floats_are_taken_as_they_are(self, tmp_path):
        assert to_unit(np.array([0.0, 0.5, 1.0]), tmp_path).tolist() == [0, 0.5, 1]

    @pytest.mark.parametrize("values", [[-0.1, 1], [0, 1.5], [0, np.nan]])
    def test_outside_the_range(self, values, tmp_path):
        with pytest.raises(ValueError, match="expected 0 to 1"):
            to_unit(np.array(values, np.float32), tmp_path / "x.nii.gz")

    def test_rounding_is_clipped(self, tmp_path):
        assert to_unit(np.array([-1e-9, 0.5, 1 + 1e-7]), tmp_path).tolist() == [0, 0.5, 1]

    def test_values_are_told_with_their_digits(self, tmp_path):
        with pytest.raises(ValueError, match=r"values from -0\.00200001 to 1\.0020001, expected 0 to 1"):
            to_unit(np.array([-0.00200001, 1.0020001]), tmp_path)

    @pytest.mark.parametrize("values", [[-1, 255], [0, 256]])
    def test_whole_numbers_are_not_rounded(self, values, tmp_path):
        with pytest.raises(ValueError, match=f"values from {values[0]} to {values[1]}, .* whole numbers from 0 to 255"):
            to_unit(np.array(values, np.int16), tmp_path)

    def test_levels_back_to_trust(self):
        levels = torch.tensor([0, 1, 1 + LEVELS // 2, 1 + LEVELS], dtype=torch.int16)
        assert to_trust(levels).tolist() == [1, 0, 0.5, 1]


class TestPreprocessing:
    @staticmethod
    def prepared(values, shape, box, transpose=(0, 1, 2)):
        seen = {}

        def resample(data, new_shape, spacing, target):
            seen.update(spacing=spacing, target=target)
            assert tuple(data.shape[1:]) == tuple(new_shape)
            return data

        plans = SimpleNamespace(transpose_forward=list(transpose))
        configuration = SimpleNamespace(spacing=[1.0] * 3, resampling_fn_probabilities=resample)
        properties = {
            "spacing": [3.0, 2.0, 1.0],
            "bbox_used_for_cropping": box,
            "shape_before_cropping": tuple(values.shape[1 + axis] for axis in transpose),
        }
        return preprocess(values, "map.nii.gz", properties, shape, plans, configuration), seen

    def test_transposed_cropped_and_quantised(self):
        values = np.random.default_rng(0).random((1, 4, 5, 6)).astype(np.float32)
        levels, seen = self.prepared(values, (3, 4, 2), [[1, 4], [0, 4], [2, 4]], transpose=(2, 0, 1))
        expected = values.transpose(0, 3, 1, 2)[:, 1:4, 0:4, 2:4]
        assert levels.dtype == np.uint8
        np.testing.assert_allclose((levels - 1.0) / LEVELS, expected, atol=0.5 / LEVELS + 1e-6)
        assert seen["spacing"] == [1.0, 3.0, 2.0]

    def test_a_picture_in_colour(self):
        values = np.zeros((3, 1, 5, 6), np.float32)
        with pytest.raises(ValueError, match=r"map.png holds 3 channels .*, expected one"):
            preprocess(values, "map.png", {"shape_before_cropping": (1, 5, 6)}, (1, 5, 6), None, None)

    def test_other_shape_than_the_label(self):
        values = np.ones((1, 4, 5, 6), np.float32)
        plans = SimpleNamespace(transpose_forward=[0, 1, 2])
        with pytest.raises(ValueError, match=r"map.nii.gz has shape \(4, 5, 6\).* has \(4, 5, 7\)"):
            preprocess(values, "map.nii.gz", {"shape_before_cropping": (4, 5, 7)}, (4, 5, 7), plans, None)


class TestPreparing:
    """Maps are prepared once, and anew when the map or its preprocessed case has changed."""

    NEW = "1 trust maps of this fold are prepared now, 0 were already."
    OLD = "0 trust maps of this fold are prepared now, 1 were already."
    shape = (2, 3, 4)

    @pytest.fixture
    def begin(self, tmp_path, monkeypatch):
        """A case and its map, both two hours old; calling it starts a training and returns what that logs."""
        for name in ("a_trust.png", "a.pkl", "a_seg.b2nd"):
            (tmp_path / name).touch()
            self.age(tmp_path / name, 2)
        monkeypatch.setattr(trust_maps, "preprocess", self.preprocess)
        reader = SimpleNamespace(read_seg=lambda file: (None, None))
        plans = SimpleNamespace(image_reader_writer_class=lambda: reader)
        dataset = SimpleNamespace(
            identifiers=["a", "b"],
            source_folder=str(tmp_path),
            load_case=lambda case: (None, np.zeros((1, *self.shape), np.int8), None, {}),
        )
        sources = {"a": tmp_path / "a_trust.png", "of another fold": tmp_path / "missing"}

        def run() -> str:
            lines = []
            prepared = PreprocessedTrustMaps(sources, tmp_path / "trust_maps", dataset, plans, None, lines.append)
            assert (prepared("a", self.shape) == np.full((1, *self.shape), 5)).all()
            assert [file.name for file in prepared.folder.iterdir()] == ["a.npy"]
            return "".join(lines)

        return run

    def preprocess(self, values, path, properties, shape, plans, configuration):
        time.sleep(0.02)  # more than the file system's clock can miss
        self.read_at = time.time_ns()
        time.sleep(0.02)
        return np.full((1, *shape), 5, np.uint8)

    @staticmethod
    def age(file, hours: int) -> None:
        then = time.time_ns() - hours * 3_600_000_000_000
        os.utime(file, ns=(then, then))

    def test_used_again(self, begin):
        assert [begin(), begin(), begin()] == [self.NEW, self.OLD, self.OLD]

    @pytest.mark.parametrize("name", ["a_trust.png", "a.pkl", "a_seg.b2nd"])
    def test_anew_where_older_than_a_source(self, begin, tmp_path, name):
        begin()
        self.age(tmp_path / name, -1)
        assert begin() == self.NEW

    def test_anew_where_an_older_map_was_moved_in(self, begin, tmp_path):
        begin()
        self.age(tmp_path / "trust_maps" / "a.npy", 1)
        assert begin() == self.NEW

    def test_anew_where_the_shape_is_another(self, begin):
        begin()
        self.shape = (2, 3, 5)
        assert begin() == self.NEW

    @pytest.mark.parametrize("share", [0, 0.5, 0.9])
    def test_anew_where_it_is_damaged(self, begin, tmp_path, share):
        begin()
        file = tmp_path / "trust_maps" / "a.npy"
        os.truncate(file, int(share * file.stat().st_size))
        assert begin() == self.NEW

    def test_as_old_as_what_it_was_made_from(self, begin, tmp_path):
        """A map that is changed while it is prepared must be newer than what was prepared from the old one."""
        begin()
        assert (tmp_path / "trust_maps" / "a.npy").stat().st_mtime_ns < self.read_at

    def test_a_start_at_the_same_time_reads_no_half_file(self, begin, tmp_path, monkeypatch):
        save, seen = np.save, []

        def save_slowly(file, levels):
            save(file, levels)
            seen.append((tmp_path / "trust_maps" / "a.npy").exists())

        monkeypatch.setattr(np, "save", save_slowly)
        begin()
        assert seen == [False]


@pytest.fixture
def nnunet(tmp_path, monkeypatch):
    """The tiny data set with nnU-Net's folders; returns it and its raw folder for trust maps."""
    for name, value in tiny_dataset.environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    raw = tmp_path / "raw" / tiny_dataset.NAME / "labelsTrust"
    raw.mkdir(parents=True)
    torch.manual_seed(0)
    np.random.seed(0)
    return tiny_dataset.make(tmp_path), raw


def write_map(raw, case: str, value: float) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(np.full((12, 20, 20), value, np.float32)), str(raw / f"{case}_trust.nii.gz"))


def test_trust_zero_takes_the_given_labels_out_of_the_loss(nnunet):
    dataset, raw = nnunet
    for case in dataset.cases:
        write_map(raw, case, 0.0)
    trainer = start(dataset, ShortStart)
    batch = steps(trainer, 3)[-1]
    assert batch["target"].shape[1] == 2
    data = trainer.to_device(batch["data"])
    label, valid = trainer.encoder(batch["target"][:, :1])
    compare, found = trainer.weighting.compare, []
    trainer.weighting.compare = lambda *tensors: found.append(compare(*tensors)) or found[-1]
    _, weight = trainer.training_targets(batch, data, trainer.forward(data), label, valid)
    num_given = batch["num_given"]
    mapped = batch["target"][:num_given, 1:2] > 0
    agree = ~found[0].differs[:num_given]
    assert (mapped & agree).any()
    assert (weight[:num_given][mapped & agree] == 0).all()
    assert torch.equal(weight[num_given:], valid[num_given:])


def test_cases_without_a_map_are_trusted_as_the_method_finds(nnunet):
    dataset, raw = nnunet
    write_map(raw, "case_4", 0.5)
    trainer = start(dataset, ShortStart)
    values = {case: set(trainer.train_loader._data.load_case(case)[1][1].ravel()) for case in dataset.cases[:5]}
    assert values["case_4"] == {1 + LEVELS // 2}
    assert all(values[case] == {0} for case in dataset.cases[:4])
    log = open(trainer.log_file).read()
    assert "1 trust maps are of doubtful cases of this fold" in log
    assert "1 trust maps of this fold are prepared now, 0 were already." in log
    assert "are not used" not in log


def test_maps_of_trusted_cases_are_not_used_and_that_is_said(nnunet):
    dataset, raw = nnunet
    trusted = dataset.trainer(ShortStart).trusted_cases(list(dataset.cases))[0]
    write_map(raw, trusted, 0.5)
    log = open(start(dataset, ShortStart).log_file).read()
    assert "0 trust maps are of doubtful cases" in log and f"WARNING: the trust maps of {trusted} are not used" in log


def test_cases_without_a_map_make_no_volume_of_zeros(tmp_path):
    dataset = SimpleNamespace(identifiers=["a"])
    plans = SimpleNamespace(image_reader_writer_class=SimpleITKIO)
    levels = PreprocessedTrustMaps({}, tmp_path / "trust_maps", dataset, plans, None, print)("a", (100, 200, 300))
    assert levels.shape == (1, 100, 200, 300)
    assert levels.strides == (0, 0, 0, 0)  # one zero, seen from everywhere
    assert levels[0, 99, 199, 299] == 0


def test_without_maps_nothing_is_carried(nnunet):
    dataset, _ = nnunet
    assert steps(start(dataset, ShortStart), 2)[-1]["target"].shape[1] == 1


def test_second_stage_of_a_cascade_says_that_it_cannot_carry_them(nnunet):
    dataset, raw = nnunet
    write_map(raw, "case_4", 0.5)
    stages = dataset.plans["configurations"]
    stages["low"] = dict(stages["tiny"])
    stages["tiny"]["previous_stage"] = "low"
    trainer = dataset.trainer(ShortStart)
    trainer.initialize()
    with pytest.raises(ValueError, match="but a cascade's second stage cannot carry them; train 3d_fullres"):
        trainer.get_tr_and_val_datasets()
