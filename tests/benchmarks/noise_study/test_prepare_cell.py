from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import prepare_cell
import pytest
from prepare_cell import PREPARED, corrupt_command, find_planner, main, small_configuration, split_cases
from settings import SettingsError, load_study

CASES = [f"case_{i:02d}" for i in range(20)]


@pytest.fixture
def dataset(config_file):
    return load_study(config_file).datasets["toy"]


@pytest.fixture
def planned():
    return {
        "patch_size": [16, 16, 16],
        "architecture": {
            "arch_kwargs": {
                "n_stages": 4,
                "features_per_stage": [32, 64, 128, 256],
                "kernel_sizes": [[3, 3, 3]] * 4,
                "strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2], [2, 2, 2]],
                "n_conv_per_stage": [2, 2, 2, 2],
                "n_conv_per_stage_decoder": [2, 2, 2],
            }
        },
    }


def test_test_cases_are_never_trained_on(dataset):
    split = split_cases(CASES, dataset, 0)
    assert len(split["test"]) == 3
    assert not set(split["test"]) & set(split["train"])
    assert not set(split["test"]) & set(split["val"])
    assert set(split["test"]) | set(split["train"]) == set(CASES)


def test_split_depends_on_the_seed_and_not_on_the_order(dataset):
    assert split_cases(CASES[::-1], dataset, 0) == split_cases(CASES, dataset, 0)
    other = dataclasses.replace(dataset, split_seed=1)
    assert split_cases(CASES, other, 0)["test"] != split_cases(CASES, dataset, 0)["test"]


def test_folds_have_test_cases_of_their_own(dataset):
    tests = [set(split_cases(CASES, dataset, fold)["test"]) for fold in range(6)]
    assert len(set().union(*tests)) == 18


def test_too_many_folds(dataset):
    with pytest.raises(SettingsError, match="only 20 cases"):
        split_cases(CASES, dataset, 6)


def test_too_few_cases_for_validation(dataset):
    with pytest.raises(SettingsError, match="has 7 cases, of which 3 are test .* with val_cases: 4; use fewer"):
        split_cases(CASES[:7], dataset, 0)


def test_small_configuration(dataset, planned):
    small = small_configuration(planned, "3d_fullres", dataset)
    kwargs = small["architecture"]["arch_kwargs"]
    assert small["inherits_from"] == "3d_fullres"
    assert small["batch_size"] == 2 and small["patch_size"] == [16, 16, 16]
    assert kwargs["features_per_stage"] == [4, 8, 16]
    assert len(kwargs["strides"]) == len(kwargs["kernel_sizes"]) == len(kwargs["n_conv_per_stage"]) == 3
    assert kwargs["n_conv_per_stage_decoder"] == [2, 2]
    assert planned["architecture"]["arch_kwargs"]["n_stages"] == 4, "the planned configuration is left as it was"


def test_small_configuration_of_a_residual_encoder(dataset, planned):
    kwargs = planned["architecture"]["arch_kwargs"]
    del kwargs["n_conv_per_stage"]
    kwargs |= {"n_blocks_per_stage": [1, 3, 4, 6], "n_conv_per_stage_decoder": [1, 1, 1]}
    small = small_configuration(planned, "3d_fullres", dataset)["architecture"]["arch_kwargs"]
    assert small["n_blocks_per_stage"] == [1, 2, 2]
    assert small["n_conv_per_stage_decoder"] == [1, 1]
    assert "n_conv_per_stage" not in small


def test_planner_by_name(dataset):
    residual = find_planner(dataclasses.replace(dataset, planner="nnUNetPlannerResEncM"))
    assert (residual.__name__, find_planner(dataset).__name__) == ("nnUNetPlannerResEncM", "ExperimentPlanner")
    with pytest.raises(SettingsError, match="no planner 'ResEncXXL'"):
        find_planner(dataclasses.replace(dataset, planner="ResEncXXL"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": (4, 8, 16, 32, 64)}, "plans 4 stages, features has 5"),
        ({"patch_size": (15, 16, 16)}, "divisible by \\[4, 4, 4\\]"),
        ({"patch_size": (16, 16)}, "divisible by \\[4, 4, 4\\]"),
    ],
)
def test_small_configuration_that_cannot_be(dataset, planned, change, message):
    with pytest.raises(SettingsError, match=message):
        small_configuration(planned, "3d_fullres", dataclasses.replace(dataset, **change))


def test_a_cascade_has_no_network_of_its_own(dataset):
    cascade = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}
    with pytest.raises(SettingsError, match="'3d_cascade_fullres' takes its network from another one"):
        small_configuration(cascade, "3d_cascade_fullres", dataset)


@pytest.mark.parametrize(
    "change", [{"base_configuration": "2d"}, {"source": Path("elsewhere", "Dataset001_Toy")}, {"features": (8, 16, 32)}]
)
def test_prepared_data_are_not_taken_for_others(dataset, tmp_path, change):
    (tmp_path / PREPARED).write_text(json.dumps(prepare_cell.clean_record(dataset, 0)), encoding="utf-8")
    assert prepare_cell.is_prepared(tmp_path, prepare_cell.clean_record(dataset, 0))
    changed = dataclasses.replace(dataset, **change)
    with pytest.raises(SettingsError, match="prepared with other settings"):
        prepare_cell.is_prepared(tmp_path, prepare_cell.clean_record(changed, 0))


def test_prepared_data_of_older_versions_stay_valid(dataset, tmp_path):
    wanted = prepare_cell.clean_record(dataset, 0)
    old = {key: value for key, value in wanted.items() if key not in prepare_cell.NOT_ALWAYS_RECORDED}
    (tmp_path / PREPARED).write_text(json.dumps(old), encoding="utf-8")
    assert prepare_cell.is_prepared(tmp_path, wanted)


def test_corrupt_command_is_understood_by_noise_tools(config_file):
    from noise_tools.cli import build_parser

    cell = dataclasses.replace(load_study(config_file).cell("toy_60"), label_dice=0.7, trusted=3)
    command = corrupt_command(cell, 301, 501, 2)
    args = build_parser().parse_args(command[3:])
    assert (args.dataset, args.output, args.name) == ("301", 501, "toy_60")
    assert (args.case_fraction, args.label_dice, args.trusted, args.seed) == (0.6, 0.7, 3, 0)
    named = dataclasses.replace(cell, corrupt_arguments=("--trusted-cases", "a", "b", "c"))
    assert build_parser().parse_args(corrupt_command(named, 301, 501, 2)[3:]).trusted_cases == ["a", "b", "c"]


def test_noise_tools_that_fails_is_one_sentence(config_file, monkeypatch):
    study = load_study(config_file)
    monkeypatch.setattr(prepare_cell, "corrupt_command", lambda *arguments: [sys.executable, "-c", "exit(3)"])
    with pytest.raises(SettingsError, match="failed for cell 'toy_60' \\(exit 3\\)"):
        prepare_cell._make_noisy(study, study.cell("toy_60"), 0, study.work, {}, 1)


def test_source_that_is_no_dataset(config_file, capsys):
    assert main(["--config", str(config_file), "--cell", "toy_60"]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and "no dataset.json" in message and message.count("\n") == 1


@pytest.mark.parametrize("arguments", [["--cell", "toy_60"], ["--clean", "toy"]])
def test_a_fold_that_the_file_does_not_list(config_file, capsys, arguments):
    assert main(["--config", str(config_file), *arguments, "--fold", "1"]) == 2
    assert "has no fold 1, only 0; choose one of them" in capsys.readouterr().err


@pytest.mark.parametrize("parent", ["nnUNet_raw", "nnUNet_preprocessed"])
def test_a_number_that_a_data_set_of_another_name_has(config_file, parent):
    study = load_study(config_file)
    taken = study.work / parent
    (taken / "Dataset301_toy_before_clean").mkdir(parents=True)
    with pytest.raises(SettingsError, match="Dataset301_toy_before_clean has the number of Dataset301_toy_clean"):
        prepare_cell.prepare_clean(study, study.datasets["toy"], 0)
    (taken / "Dataset501_before").mkdir()
    with pytest.raises(SettingsError, match="Dataset501_before has the number of Dataset501_toy_60"):
        prepare_cell._make_noisy(study, study.cell("toy_60"), 0, study.work, {}, 1)
    assert len(list(study.work.glob("*/Dataset*"))) == 2, "nothing is left behind"
