from __future__ import annotations

import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
from oracle import nnUNetTrainerOracleAlpha, nnUNetTrainerOracleDrop, nnUNetTrainerOracleReplace

from tests.nnunetv2_metadcseg import tiny_dataset


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """A data set and the folder of its clean labels, in which the third case has the label of the fourth."""
    for name, value in tiny_dataset.environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    noisy, clean = tiny_dataset.make(tmp_path), tiny_dataset.make(tmp_path / "clean")
    data = clean.folder / clean.plans["configurations"][tiny_dataset.CONFIGURATION]["data_identifier"]
    for file in sorted(data.glob("case_3*")):
        shutil.copy(file, data / file.name.replace("case_3", "case_2"))
    return noisy, clean.folder


def start(folders, oracle: type):
    """A trainer of that class, without its start phase, ready to step."""
    noisy, clean = folders
    trainer = noisy.trainer(oracle)
    trainer.config = replace(trainer.config, start_fractions=(0.0, 0.0))
    trainer.clean_preprocessed_folder = str(clean)
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    return trainer


@pytest.mark.parametrize("oracle", [nnUNetTrainerOracleDrop, nnUNetTrainerOracleReplace, nnUNetTrainerOracleAlpha])
def test_the_clean_label_tells_the_right_voxels(folders, oracle):
    trainer = start(folders, oracle)
    batch = next(trainer.dataloader_train)
    assert math.isfinite(trainer.train_step(batch)["loss"])
    given, clean = batch["target"][: batch["num_given"], :2].unbind(1)
    np.testing.assert_array_equal(trainer.weighting.right[: batch["num_given"], 0], (given == clean).float())


def test_the_clean_label_is_a_second_channel(folders):
    trainer = start(folders, nnUNetTrainerOracleDrop)
    cases = trainer.get_tr_and_val_datasets()[0]
    labels = {case: cases.load_case(case)[1][:] for case in ("case_1", "case_2")}
    fourth = trainer.dataset_class(trainer.preprocessed_dataset_folder).load_case("case_3")[1][:]
    np.testing.assert_array_equal(labels["case_1"][0], labels["case_1"][1])
    np.testing.assert_array_equal(labels["case_2"][1], fourth[0])
    assert (labels["case_2"][0] != labels["case_2"][1]).any()
