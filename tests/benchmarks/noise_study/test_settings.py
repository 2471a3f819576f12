from __future__ import annotations

import dataclasses

import pytest
import settings
from settings import Run, SettingsError, load_study


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def test_values_and_defaults(config_file):
    study = load_study(config_file)
    cell = study.cell("toy_60")
    assert (cell.steps, cell.steps_per_epoch, cell.epochs) == (50, 25, 2)
    assert cell.noise == ("erosion",) and cell.folds == (0,)
    assert study.dataset_of(cell).configuration == "3d_study"
    assert study.dataset_of(cell).patch_size is None


def test_paths_are_relative_to_the_file(config_file, monkeypatch):
    monkeypatch.delenv(settings.WORK_VARIABLE, raising=False)
    study = load_study(config_file)
    assert study.work == config_file.parent / "work"
    assert study.datasets["toy"].source == config_file.parent / "source" / "Dataset001_Toy"
    assert study.results == config_file.parent / "results"


def test_paths_may_hold_variables_and_the_home_folder(config_file, monkeypatch, tmp_path):
    monkeypatch.delenv(settings.WORK_VARIABLE, raising=False)
    monkeypatch.setenv("SCRATCH", str(tmp_path / "scratch"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    text = config_file.read_text(encoding="utf-8").replace("work: work", "work: $SCRATCH/work\nresults: ~/results")
    study = load_study(write(config_file, text.replace("source/Dataset", "${SCRATCH}/Dataset")))
    assert study.work == tmp_path / "scratch" / "work"
    assert study.results == tmp_path / "home" / "results"
    assert study.datasets["toy"].source == tmp_path / "scratch" / "Dataset001_Toy"


def test_work_folder_order(config_file, monkeypatch, tmp_path):
    monkeypatch.setenv(settings.WORK_VARIABLE, str(tmp_path / "variable"))
    assert load_study(config_file).work == tmp_path / "variable"
    assert load_study(config_file, tmp_path / "argument").work == tmp_path / "argument"


def test_a_work_folder_that_is_not_from_the_file_is_relative_to_where_the_command_runs(
    config_file, monkeypatch, tmp_path
):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert load_study(config_file, "argument").work == tmp_path / "here" / "argument"
    monkeypatch.setenv(settings.WORK_VARIABLE, "variable")
    assert load_study(config_file).work == tmp_path / "here" / "variable"


def test_runs_go_seed_by_seed(config_file):
    runs = load_study(config_file).runs(["toy_60"])
    assert [run.seed for run in runs] == [0, 0, 0, 1, 1, 1]
    assert runs[0] == Run("toy_60", 0, "clean", 0)
    assert len(load_study(config_file).runs(arms=["soft"])) == 2


def test_variant_is_the_built_in_arm_with_other_values(config_file):
    arm = load_study(config_file).arm("soft")
    assert arm.trainer == "nnUNetTrainerMetaDCSeg"
    assert arm.config == {"dcd_strength": 0.5}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("case_fraction: 0.6", "case_fraction: 60", "case_fraction must be in"),
        ("steps: 50", "steps: 60", "multiple of steps_per_epoch"),
        ("id: 502", "id: 501", "501 is used by cell 'toy_60' and by cell 'toy_20'"),
        ("id: 502", "id: 301", "301 is used by cell 'toy_20' and by data set 'toy'"),
        ("id: 502", "id: 1002", "choose 1 to 999"),
        ("name: toy_20", "name: toy_60", "Two cells are called"),
        ("name: toy_20", "name: toy/20", "letters, digits"),
        ("[clean, soft]", "[clean, magic]", "no arm 'magic'"),
        ("dataset: toy, id: 502", "dataset: joy, id: 502", "unknown data set 'joy'"),
        ("noise: [erosion], case_fraction: 0.2", "noise: [], case_fraction: 0.2", "noise is empty"),
        ("noise: [erosion], case_fraction: 0.2", "noize: [erosion], case_fraction: 0.2", "unknown keys \\['noize'\\]"),
        ("features: [4, 8, 16]", "features: [4, 8]", "needs 3 stages"),
        ("    test_cases: 3\n", "", "lacks \\['test_cases'\\]"),
        ("noise: [erosion], case_fraction: 0.2", "noise: erosion", "noise is 'erosion', .*brackets: \\[erosion\\]"),
        ("seeds: [0, 1]", "seeds: 0", "seeds is 0, which is no list; write it in brackets: \\[0\\]"),
        ("seeds: [0, 1]", "seeds: [0, x]", "seeds is 'x', which is no whole number"),
        ("features: [4, 8, 16]", "features: 32", "'toy': features is 32, which is no list"),
        ("steps: 50", "steps: 1e4", "steps is '1e4', which is no whole number"),
        ("steps: 50", "steps: yes", "steps is True, which is no whole number"),
        ("case_fraction: 0.6", "case_fraction: high", "case_fraction is 'high', which is no number"),
        ("test_cases: 3", "test_cases: 0", "'toy': test_cases is 0; it must be 1 or more"),
        ("test_cases: 3", "test_cases: 3\n    val_cases: 0", "val_cases is 0; it must be 1 or more"),
        ("batch_size: 2", "batch_size: 0", "batch_size is 0; it must be 1 or more"),
        ("folds: [0]", "folds: [-1]", "folds is -1; it must be 0 or more"),
        ("seeds: [0, 1]", "seeds: [-1]", "seeds is -1; it must be 0 or more"),
        ("seeds: [0, 1]", "seeds: [0, 1]\n  label_dice: 7", "label_dice must be in \\[0, 1\\], got 7"),
        ("work: work", "work: work\nmemory_format: chanels_last", "memory_format 'chanels_last' is unknown; choose"),
        ("work: work", 'work: work\nmirroring: "false"', "mirroring is 'false'; write true or false"),
        ("work: work", "work: work\noptimizer: adamw", "optimizer 'adamw' is unknown; choose one of sgd, adam"),
        ("work: work", "work: work\nresults:", "results is empty; name a folder"),
        ("cells:\n", "cells:\n  - toy\n", "A cell is 'toy'; write it as 'key: value' pairs"),
        ("defaults:\n", "defaults:\n- 1\n", "is no YAML"),
        ("soft: {config: {dcd_strength: 0.5}}", "soft: {dcd_strength: 0.5}", "'soft' has unknown keys"),
        ("soft: {config:", "soft: {arms: noisy, config:", "'soft' has unknown keys \\['arms'\\]"),
        ("soft: {config:", "soft: {arm: nosy, config:", "unknown arm 'nosy'"),
        ("soft: {config: {dcd_strength: 0.5}}", "soft:", "The variant 'soft' is None"),
        ("soft: {config: {dcd_strength: 0.5}}", "soft: {config: 0.5}", "'soft': config is 0.5"),
        ("soft: {config: {dcd_strength: 0.5}}", "[soft]", "section 'variants' is \\['soft'\\]"),
        ("variants:\n", "variants:\n  noisy: {config: {}}\n", "'noisy' has the name of a built-in arm"),
        ("variants:\n", "variants:\n  3: {config: {}}\n", "The name 3 is no text; put it in quotation marks"),
        ("  toy:\n", "  7:\n", "The name 7 is no text; put it in quotation marks"),
        ("soft: {config:", "soft: {arm: [noisy], config:", "'soft': arm is \\['noisy'\\]; give the name of one arm"),
        ("features: [4, 8, 16]", "features: [4, 0, 16]", "'toy': features is 0; it must be 1 or more"),
        ("test_cases: 3", "test_cases: 3\n    patch_size: [0, 8, 8]", "patch_size is 0; it must be 1 or more"),
        ("seeds: [0, 1]", "seeds: [0, 1]\n  trusted: 0", "trusted is 0; it must be 1 or more"),
    ],
)
def test_what_is_wrong_is_named(config_file, old, new, message):
    text = config_file.read_text(encoding="utf-8")
    assert old in text
    write(config_file, text.replace(old, new))
    with pytest.raises(SettingsError, match=message):
        load_study(config_file)


def test_a_file_that_is_no_text_is_named(config_file):
    config_file.write_bytes(b"work: \xff\n")
    with pytest.raises(SettingsError, match="config.yaml is no YAML: .*can't decode"):
        load_study(config_file)


def test_an_arm_that_no_chosen_cell_has(config_file):
    with pytest.raises(SettingsError, match="arm 'metadsceg'; they have clean, noisy, metadcseg, soft"):
        load_study(config_file).runs(arms=["metadsceg"])
    with pytest.raises(SettingsError, match="they have clean, noisy, metadcseg\\."):
        load_study(config_file).runs(["toy_60"], ["soft"])


def test_missing_file(tmp_path):
    with pytest.raises(SettingsError, match="pass one with --config"):
        load_study(tmp_path / "absent.yaml")


def test_unknown_cell_lists_what_there_is(config_file):
    with pytest.raises(SettingsError, match="toy_60, toy_20"):
        load_study(config_file).cell("toy_40")


def test_signature_is_shared_only_where_the_training_is_the_same(config_file):
    study = load_study(config_file)
    clean = [settings.signature(study, Run(cell, 0, "clean", 0), ["a"]) for cell in ("toy_60", "toy_20")]
    noisy = [settings.signature(study, Run(cell, 0, "noisy", 0), ["a"]) for cell in ("toy_60", "toy_20")]
    trusted = [settings.signature(study, Run(cell, 0, "trusted_only", 0), ["a"]) for cell in ("toy_60", "toy_20")]
    assert clean[0] == clean[1] and trusted[0] == trusted[1]
    assert noisy[0] != noisy[1]
    assert settings.signature(study, Run("toy_60", 0, "trusted_only", 0), ["b"]) != trusted[0]
    assert settings.signature(study, Run("toy_60", 0, "clean", 1), ["a"]) != clean[0]


def test_settings_hash_needs_no_trusted_cases(config_file):
    study = load_study(config_file)
    run = Run("toy_60", 0, "trusted_only", 0)

    def changed(**change):
        cell = dataclasses.replace(study.cell("toy_60"), **change)
        return settings.settings_hash(dataclasses.replace(study, cells=study.cells | {"toy_60": cell}), run)

    hashes = {changed(), changed(trusted=3), changed(noise_seed=1), changed(steps=100)}
    assert len(hashes) == 4 and settings.settings_hash(study, run) in hashes


def test_signature_changes_with_the_length_of_training(config_file):
    study = load_study(config_file)
    longer = dataclasses.replace(study.cell("toy_60"), steps=100)
    changed = dataclasses.replace(study, cells=study.cells | {"toy_60": longer})
    run = Run("toy_60", 0, "clean", 0)
    assert settings.signature(study, run, []) != settings.signature(changed, run, [])


def test_the_committed_configuration_is_valid():
    study = load_study(settings.DEFAULT_CONFIG)
    assert study.runs()
