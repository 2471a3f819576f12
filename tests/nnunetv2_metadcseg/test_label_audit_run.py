"""The whole audit on a made-up model: which numbers, which files, and nothing half written."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.special import expit, logit

from nnunetv2_metadcseg.label_audit_output import check_output
from nnunetv2_metadcseg.label_audit_predict import AuditError, CasePrediction, Structure, same_geometry
from nnunetv2_metadcseg.label_audit_run import in_percent, run_audit, voxel_suspicion

SHAPE = (6, 20, 20)
PROPERTIES = {"spacing": (2.0, 1.0, 1.0)}


def square(low: int, high: int) -> np.ndarray:
    label = np.zeros(SHAPE, np.int16)
    label[1:5, low:high, low:high] = 1
    return label


class FakeModel:
    """Knows the truth of four cases; the label of `large` is too large. Files are .npy."""

    folder = Path("Trainer__Plans__conf")
    file_ending = ".npy"
    configuration = SimpleNamespace(data_identifier="Plans_conf")
    folds = (0,)
    label_manager = SimpleNamespace(has_regions=False, ignore_label=None)
    predictor = SimpleNamespace(plans_manager=SimpleNamespace(dataset_name="Dataset504_Fake"))
    structures = [Structure("organ", (1,), 1)]
    labels = {"fine_1": square(6, 14), "fine_2": square(6, 14), "large": square(3, 17), "trusted": square(6, 14)}

    def __init__(self, preprocessed: Path, learned: bool = False, broken: bool = False) -> None:
        self.preprocessed, self.learned, self.broken = preprocessed, learned, broken
        self.maps = "learned" if learned else "prediction"
        self.networks = {0: SimpleNamespace(trainer_record=learned or None, trainer=None, note=None)}
        self.trusted, self.offsets = ["trusted"], {}
        self.dataset = SimpleNamespace(load_case=lambda case: (None, None, None, PROPERTIES))
        self.reader = SimpleNamespace(read_seg=lambda file: (np.load(file)[None], PROPERTIES))
        (preprocessed / "gt_segmentations").mkdir(parents=True)
        for case, label in self.labels.items():
            self.write_label(case, label)

    def cases(self):
        return sorted(self.labels)

    def write_label(self, case, label):
        np.save(self.given_file(case), label)

    def given_file(self, case):
        return self.preprocessed / "gt_segmentations" / f"{case}{self.file_ending}"

    def split_notes(self):
        return []

    def image(self, case):
        if self.broken:
            raise OSError("no image")
        return square(6, 14) + np.linspace(0, 1, 20)

    def write(self, array, file, properties):
        assert properties is PROPERTIES
        np.save(file, array)

    def predict(self, case):
        inside = np.where(square(6, 14) > 0, 0.9, 0.1)
        inside[0, 0, 0] = 0.2 if case == "fine_1" else 0.1
        learned = np.where(self.labels[case] != square(6, 14), 0.95, 0.0) if self.learned else None
        probabilities = np.stack([1 - inside, inside])
        return CasePrediction(
            self.labels[case],
            square(6, 14),
            probabilities,
            np.ones(SHAPE, bool),
            PROPERTIES,
            case != "trusted",
            learned,
        )


def test_finds_the_wrong_case_and_writes_everything(tmp_path):
    model, out = FakeModel(tmp_path / "pre"), tmp_path / "new" / "out"
    audit = run_audit(model, out, worst=2)
    first = audit.findings[0]
    assert first.case == "large" and first.direction == "too large"
    assert 1 < first.labels[0].direction.bias < 4.5
    suspicion, proposed = (np.load(out / kind / "large.npy") for kind in ("suspicion", "proposed"))
    assert suspicion.dtype == np.uint8 and suspicion.max() <= 100 and suspicion.shape == SHAPE
    assert (proposed == square(6, 14)).all()
    assert (np.load(out / "given" / "large.npy") == square(3, 17)).all()
    assert sorted(f.name for f in out.iterdir()) == [
        "audit.csv",
        "audit.html",
        "audit.json",
        "given",
        "proposed",
        "suspicion",
    ]
    assert (out / "audit.html").read_text().count("data:image/png") == 2
    with (out / "audit.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 8 and rows[0]["case"] == "large" and rows[0]["unit"] == "mm"
    assert (out / rows[0]["suspicion_file"]).is_file()
    content = json.loads((out / "audit.json").read_text())
    assert content["balances"]["out of fold"] == {"center": 0, "side": pytest.approx(1, abs=0.01)}
    assert content["trainer"] == "Trainer" and content["cases"]["trusted"]["trusted"] is True
    assert any("No learned weights" in note for note in content["notes"])
    assert any(note.startswith("1 of 4 cases") for note in content["notes"])


class TiffModel(FakeModel):
    """As nnU-Net keeps TIFF: the spacing lies beside the file, but not in the preprocessed folder."""

    file_ending = ".tif"

    def __init__(self, preprocessed: Path) -> None:
        from nnunetv2.imageio.tif_reader_writer import Tiff3DIO

        self.tiff = Tiff3DIO()
        super().__init__(preprocessed)
        self.reader = self.tiff

    def write_label(self, case, label):
        self.write(label, self.given_file(case), PROPERTIES)
        self.given_file(case).with_suffix(".json").unlink()

    def write(self, array, file, properties):
        self.tiff.write_seg(array, str(file), properties)


def test_the_spacing_beside_a_tiff_goes_with_every_map(tmp_path):
    model = TiffModel(tmp_path / "pre")
    run_audit(model, tmp_path / "out")
    for kind in ("given", "proposed", "suspicion"):
        content, properties = model.reader.read_seg(str(tmp_path / "out" / kind / "large.tif"))
        assert content.shape == (1, *SHAPE) and list(properties["spacing"]) == list(PROPERTIES["spacing"])
    check_output(tmp_path / "out", overwrite=True)  # none of them counts as the work of a person


class MovedLabelModel(FakeModel):
    """NIfTI, as nnU-Net reads it; the header of one label says another place than that of its image."""

    file_ending = ".nii.gz"
    header = {"spacing": (1.0, 1.0, 2.0), "origin": (5.0, -7.0, 30.0), "direction": (1.0, 0, 0, 0, 1, 0, 0, 0, 1)}
    properties = {"spacing": [2.0, 1.0, 1.0], "sitk_stuff": header, "shape_before_cropping": SHAPE}

    def __init__(self, preprocessed: Path) -> None:
        from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

        nifti = SimpleITKIO()
        super().__init__(preprocessed)
        self.reader = nifti
        self.dataset = SimpleNamespace(load_case=lambda case: (None, None, None, self.properties))
        for case, label in self.labels.items():
            moved = {"origin": (0.0, 0.0, 0.0)} if case == "large" else {}
            nifti.write_seg(label, str(self.given_file(case)), {"sitk_stuff": self.header | moved})

    def write_label(self, case, label):
        pass

    def write(self, array, file, properties):
        self.reader.write_seg(array, str(file), properties)


def test_the_given_label_overlays_the_proposed_one_whatever_its_header_says(tmp_path):
    model, out = MovedLabelModel(tmp_path / "pre"), tmp_path / "out"
    run_audit(model, out, worst=0)
    for case, label in model.labels.items():
        for kind in ("given", "proposed"):
            content, properties = model.reader.read_seg(str(out / kind / f"{case}.nii.gz"))
            assert same_geometry(properties, model.properties)
        (given, _), file = model.reader.read_seg(str(out / "given" / f"{case}.nii.gz")), model.given_file(case)
        assert (given[0] == label).all()
        assert ((out / "given" / file.name).read_bytes() == file.read_bytes()) is (case != "large")


def test_uses_learned_weights_where_there_are_some(tmp_path):
    model = FakeModel(tmp_path / "pre", learned=True)
    audit = run_audit(model, tmp_path / "out", worst=0)
    assert "learned weights: 1 - alpha per voxel (maps only)" in audit.about["signals"]
    wrong = model.labels["large"] != square(6, 14)
    assert np.load(tmp_path / "out" / "suspicion" / "large.npy")[wrong].min() >= 90


def test_only_some_cases_are_measured_by_the_trusted_ones_too(tmp_path):
    model = FakeModel(tmp_path / "pre")
    audit = run_audit(model, tmp_path / "out", worst=0, cases=["large", "fine_1"])
    assert {f.case for f in audit.findings} == {"large", "fine_1", "trusted"}
    assert not any("can tell" in note for note in audit.about["notes"])
    model.trusted = []
    audit = run_audit(model, tmp_path / "other", worst=0, cases=["large", "fine_1"])
    assert {f.case for f in audit.findings} == {"large", "fine_1"}
    assert any("No trusted case" in note for note in audit.about["notes"])
    assert any("Only 2 of these cases can tell" in note for note in audit.about["notes"])


def test_failure_leaves_the_earlier_audit_alone(tmp_path):
    out = tmp_path / "out"
    run_audit(FakeModel(tmp_path / "pre"), out, worst=0)
    before = (out / "audit.html").read_bytes()
    with pytest.raises(AuditError, match="--overwrite"):
        run_audit(FakeModel(tmp_path / "pre2"), out)
    message = r"not the tables or the page \(OSError: no image\); what is complete lies in .*/out_2, and nothing was"
    with pytest.raises(AuditError, match=message):
        run_audit(FakeModel(tmp_path / "pre3", broken=True), out, overwrite=True)
    assert (out / "audit.html").read_bytes() == before
    assert sorted(f.name for f in tmp_path.iterdir()) == ["out", "out_2", "pre", "pre2", "pre3"]
    assert len(list((tmp_path / "out_2").glob("*/large.npy"))) == 3 and (tmp_path / "out_2" / "audit.csv").is_file()
    run_audit(FakeModel(tmp_path / "pre4"), out, worst=1, overwrite=True)
    assert (out / "audit.html").read_bytes() != before


def test_learned_weights_only_raise_the_suspicion():
    p, learned = np.array([0.9, 0.9]), np.array([0.0, 0.8])
    assert voxel_suspicion(p, learned, 1).tolist() == pytest.approx([0.05, 0.8])
    assert voxel_suspicion(p, None, 1).tolist() == pytest.approx([0.05, 0.05])


class LeaningModel(FakeModel):
    """Has learned labels that are too large: unsure of a rim around every structure. Two cases are trusted."""

    labels = FakeModel.labels | {"trusted_2": square(6, 14)}

    def __init__(self, preprocessed: Path) -> None:
        super().__init__(preprocessed)
        self.trusted = ["trusted", "trusted_2"]

    def predict(self, case, folds=None, learned=True):
        rings = sum(np.where(square(low, 20 - low) > 0, 0.1, 0.0) for low in (3, 4, 5))
        inside = np.where(square(6, 14) > 0, 0.99, np.where(rings > 0, 0.45 + rings, 0.01))
        if self.offsets:
            inside = expit(logit(inside) + self.offsets[0][1])
        probabilities = np.stack([1 - inside, inside])
        predicted = (inside > 0.5).astype(np.int16)
        valid = np.ones(SHAPE, bool)
        return CasePrediction(self.labels[case], predicted, probabilities, valid, PROPERTIES, case not in self.trusted)


def test_a_prediction_that_leans_as_the_labels_do_is_calibrated_on_the_trusted_cases(tmp_path):
    audit = run_audit(LeaningModel(tmp_path / "pre"), tmp_path / "out", worst=0)
    assert audit.findings[0].case == "large" and audit.findings[0].direction == "too large"
    assert audit.findings[1].ratio < 0.1 * audit.findings[0].ratio
    assert (np.load(tmp_path / "out" / "proposed" / "large.npy") <= square(5, 15)).all()
    assert audit.about["offsets"]["organ"] == pytest.approx([np.log(0.25 / 0.75)], abs=0.01)
    assert any("organ were mostly larger" in note for note in audit.about["notes"])


def test_a_kind_of_cases_without_trusted_ones_is_said_and_bounded(tmp_path):
    class Model(
        FakeModel
    ):  # all labels out of fold are wrong, and the trusted case is known by heart, but for a little
        labels = dict.fromkeys(("fine_1", "fine_2", "large"), square(3, 17)) | {"trusted": square(6, 14)}
        labels["trusted"][2, 5, 5] = 1

    audit = run_audit(Model(tmp_path / "pre"), tmp_path / "out", worst=0)
    assert all(f.reliability < 0.05 for f in audit.findings if not f.trusted)
    assert any(note.startswith("No trusted case is among those predicted out of fold") for note in audit.about["notes"])


def test_a_diverged_network_is_an_error(tmp_path):
    class Model(FakeModel):
        def predict(self, case):
            prediction = super().predict(case)
            prediction.probabilities[:] = np.nan
            return prediction

    with pytest.raises(AuditError, match="predicts nan or infinite probabilities for fine_1"):
        run_audit(Model(tmp_path / "pre"), tmp_path / "out", worst=0)
    assert not (tmp_path / "out").exists()


def test_a_label_of_another_shape_names_its_case(tmp_path):
    class Model(FakeModel):
        labels = FakeModel.labels | {"fine_2": square(6, 14)[:, :, :-1]}

        def predict(self, case):
            return replace(super().predict("fine_1"), given=self.labels[case], out_of_fold=case != "trusted")

    with pytest.raises(AuditError, match="The label of fine_2 has the shape"):
        run_audit(Model(tmp_path / "pre"), tmp_path / "out", worst=0)


def test_a_missing_label_is_said_before_any_prediction(tmp_path, monkeypatch):
    model = FakeModel(tmp_path / "pre")
    model.given_file("large").unlink()
    monkeypatch.setattr(FakeModel, "predict", lambda *_: pytest.fail("predicted"))
    with pytest.raises(AuditError, match=r"1 of 4 cases have no label in .*\(first: large\)"):
        run_audit(model, tmp_path / "out", worst=0)


def test_the_map_agrees_with_what_is_counted_and_proposed():
    suspicion = np.array([0, 0.4949, 0.4999, 0.5, 1], np.float32)
    assert in_percent(suspicion).tolist() == [0, 49, 49, 50, 100]


class NamesInFrench(FakeModel):
    """Where the system's encoding cannot write the names of labels."""

    structures = [Structure("rate œdème", (1,), 1)]


def test_files_are_utf_8_whatever_the_system_writes(tmp_path):
    code = (
        "import sys, test_label_audit_run as t; t.run_audit(t.NamesInFrench(t.Path(sys.argv[1])), t.Path(sys.argv[2]))"
    )
    line = [sys.executable, "-X", "utf8=0", "-c", code, str(tmp_path / "pre"), str(tmp_path / "out")]
    paths = [str(Path(__file__).parent), *sys.path]
    environment = os.environ | {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(line, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "rate œdème" in (tmp_path / "out" / "audit.csv").read_text(encoding="utf-8")


def test_a_label_of_another_size_is_said_before_any_prediction(tmp_path, monkeypatch):
    model = MovedLabelModel(tmp_path / "pre")
    model.reader.write_seg(square(6, 14)[:, :, :-1], str(model.given_file("trusted")), {"sitk_stuff": model.header})
    monkeypatch.setattr(FakeModel, "predict", lambda *_: pytest.fail("predicted"))
    with pytest.raises(AuditError, match="label of trusted has 19 x 20 x 6 voxels, expected .* image, 6 x 20 x 20 "):
        run_audit(model, tmp_path / "out", worst=0)
