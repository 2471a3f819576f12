"""nnUNetTrainerMetaDCSegSelfTrusted through nnUNetv2_train, on a data set that declares no trusted case."""

from __future__ import annotations

import json

import pytest

pytestmark = pytest.mark.integration
TRAINER = "nnUNetTrainerShortSelfTrusted"


def test_trains_without_declared_cases(prepared):
    import torch

    preprocessed = prepared.folder("preprocessed", "Dataset901_PhantomNoisy")
    before = (preprocessed / "dataset.json").read_text()
    dataset = json.loads(before)
    del dataset["trusted_cases"]
    (preprocessed / "dataset.json").write_text(json.dumps(dataset))
    try:
        prepared.train(TRAINER)
    finally:
        (preprocessed / "dataset.json").write_text(before)
    fold = prepared.model(TRAINER) / "fold_0"
    choice = json.loads((fold / "self_trusted_cases.json").read_text())
    training = json.loads((preprocessed / "splits_final.json").read_text())[0]["train"]
    assert len(choice["cases"]) == 2 and set(choice["cases"]) < set(training)
    assert set(choice["scores"]) == set(training)
    assert not (preprocessed / "trusted_cases.json").exists()
    saved = torch.load(fold / "checkpoint_final.pth", map_location="cpu", weights_only=False)
    assert saved["trainer_name"] == "nnUNetTrainer" and saved["current_epoch"] == 2
    assert saved["metadcseg"]["state"]["self_trusted"]["chosen"] == choice["cases"]
    log = "".join(file.read_text() for file in sorted(fold.glob("training_log_*.txt")))
    assert "as trusted, by agreement with the predictions" in log
    assert all(case in log for case in choice["cases"])
