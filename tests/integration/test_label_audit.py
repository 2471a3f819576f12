"""`metadcseg audit` on models that nnU-Net's own commands trained."""

from __future__ import annotations

import json

import pytest

pytestmark = pytest.mark.integration
MODEL = ("-tr", "nnUNetTrainerShortMetaDCSeg")
DATASET = "Dataset901_PhantomNoisy"
FAST = ("-d", 901, "-c", "tiny", "-device", "cpu", "--disable_tta", "--worst", 1)


def test_audit_of_a_metadcseg_model(trained, tmp_path):
    import SimpleITK as sitk

    done = trained.run("metadcseg", "audit", *FAST, "--maps", "learned", *MODEL, "-o", tmp_path / "out")
    assert "learned weights" in done.stdout and "Traceback" not in done.stderr
    content = json.loads((tmp_path / "out" / "audit.json").read_text())
    assert content["trainer"] == "nnUNetTrainerShortMetaDCSeg"
    assert len(content["cases"]) == 10 and sum(case["trusted"] for case in content["cases"].values()) == 4
    split = json.loads(trained.folder("preprocessed", DATASET, "splits_final.json").read_text())[0]
    assert {name for name, case in content["cases"].items() if case["out_of_fold"]} == set(split["val"])
    for name, case in content["cases"].items():
        assert 0 < case["reliability"] < 1 and set(case["labels"]) == {"head", "tail"}
        maps = {
            kind: sitk.ReadImage(str(tmp_path / "out" / case[f"{kind}_file"])) for kind in ("suspicion", "proposed")
        }
        given = trained.folder("preprocessed", DATASET, "gt_segmentations", f"{name}.nii.gz")
        label = sitk.ReadImage(str(given))
        for image in maps.values():
            assert image.GetSize() == label.GetSize() and image.GetDirection() == label.GetDirection()
            assert image.GetSpacing() == label.GetSpacing() and image.GetOrigin() == label.GetOrigin()
        assert sitk.GetArrayFromImage(maps["suspicion"]).max() <= 100
        assert set(sitk.GetArrayFromImage(maps["proposed"]).ravel().tolist()) <= {0, 1, 2}


def test_audit_of_a_stock_model(prepared, tmp_path):
    prepared.train("nnUNetTrainerShortStock")
    done = prepared.run("metadcseg", "audit", *FAST, "-tr", "nnUNetTrainerShortStock", "-o", tmp_path / "out")
    assert "note: No learned weights in this checkpoint" in done.stdout
    wanted = ("--maps", "learned", "-o", tmp_path / "other")
    failed = prepared.run("metadcseg", "audit", *FAST, "-tr", "nnUNetTrainerShortStock", *wanted, expect=2)
    assert "has no learned weights" in failed.stderr
    assert not (tmp_path / "other").exists()
    model = prepared.folder("results", DATASET, "nnUNetTrainerShortStock__nnUNetPlans__tiny")
    label = sorted(prepared.folder("preprocessed", DATASET, "gt_segmentations").iterdir())[0]
    for file, says in ((model / "fold_0" / "checkpoint_final.pth", "cannot be opened from"), (label, "cannot be read")):
        whole = file.read_bytes()
        file.write_bytes(b"broken")
        failed = prepared.run("metadcseg", "audit", *FAST, "-tr", "nnUNetTrainerShortStock", *wanted[2:], expect=2)
        assert failed.stderr.startswith("error: ") and says in failed.stderr and str(file) in failed.stderr
        file.write_bytes(whole)
