from __future__ import annotations

import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor, wait

import prepare_cell
import pytest
import result_store
import run_arm
import run_queue
from prepare_cell import PREPARED
from settings import Run, SettingsError, load_study, noisy_folder_name, signature

from .conftest import result_row


@pytest.fixture
def prepared(config_file):
    """Markers of prepared data for both cells, with the same trusted cases."""
    study = load_study(config_file)
    records = {"Dataset301_toy_clean": prepare_cell.clean_record(study.datasets["toy"], 0)}
    for cell in study.cells.values():
        records[noisy_folder_name(cell, 0)] = prepare_cell.noisy_record(study, cell, 0)
    for folder, record in records.items():
        path = study.work / "nnUNet_preprocessed" / folder
        path.mkdir(parents=True)
        record |= {"trusted_cases": ["a"], "test": ["b"]}
        (path / PREPARED).write_text(json.dumps(record), encoding="utf-8")
    return study


@pytest.fixture
def no_training(monkeypatch):
    """Replaces training and scoring; counts the calls."""
    calls = []

    def execute(study, run, **options):
        calls.append(run)
        return [result_row(run.arm, run.seed, 0.8, cell=run.cell, signature=signature(study, run, ["a"]))]

    monkeypatch.setattr(run_arm, "execute", execute)
    return calls


def perform(study, run, force=False):
    return run_arm.perform(study, run, force=force, threads=1)


def test_a_finished_run_is_skipped(prepared, no_training):
    run = Run("toy_60", 0, "noisy", 0)
    assert [perform(prepared, run), perform(prepared, run)] == ["trained", "exists"]
    assert perform(prepared, run, force=True) == "trained"
    assert len(no_training) == 2


def test_a_run_with_other_settings_is_repeated(prepared, no_training):
    old = result_row("noisy", 0, 0.1, signature="of other settings")
    result_store.store_run(prepared.results, [old])
    assert perform(prepared, Run("toy_60", 0, "noisy", 0)) == "trained"


def test_the_clean_arm_is_trained_once_for_all_cells(prepared, no_training):
    assert perform(prepared, Run("toy_60", 0, "clean", 0)) == "trained"
    assert perform(prepared, Run("toy_20", 0, "clean", 0)) == "copied"
    (row,) = result_store.read_rows(prepared.results, "toy_20")
    assert row["cell"] == "toy_20" and row["copied_from"] == "toy_60" and row["dice"] == "0.8"
    assert perform(prepared, Run("toy_20", 0, "clean", 0)) == "exists"


def test_a_forced_training_renews_its_copies(prepared, no_training, monkeypatch):
    runs = [Run(cell, 0, "clean", 0) for cell in ("toy_60", "toy_20")]
    assert [perform(prepared, run) for run in runs] == ["trained", "copied"]
    settings = [row["settings"] for row in result_store.read_rows(prepared.results, "toy_20")]
    first = run_arm.execute
    monkeypatch.setattr(run_arm, "execute", lambda *a, **options: [row | {"dice": 0.9} for row in first(*a, **options)])
    assert perform(prepared, runs[0], force=True) == "trained"
    assert [(row["cell"], row["dice"], row["copied_from"]) for row in result_store.read_rows(prepared.results)] == [
        ("toy_20", "0.9", "toy_60"),
        ("toy_60", "0.9", ""),
    ]
    assert [row["settings"] for row in result_store.read_rows(prepared.results, "toy_20")] == settings


def test_in_parallel_the_second_cell_waits_and_copies(prepared, no_training, monkeypatch, capsys):
    fast, started, finish = run_arm.execute, threading.Event(), threading.Event()

    def slow(*arguments, **options):
        started.set()
        assert finish.wait(20)
        return fast(*arguments, **options)

    monkeypatch.setattr(run_arm, "execute", slow)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(perform, prepared, Run("toy_60", 0, "clean", 0))
        assert started.wait(20)
        second = pool.submit(perform, prepared, Run("toy_20", 0, "clean", 0))
        assert not wait([second], timeout=0.5).done
        finish.set()
        assert (first.result(20), second.result(20)) == ("trained", "copied")
    assert "waiting" in capsys.readouterr().out and len(no_training) == 1


def test_data_that_are_not_prepared(config_file):
    with pytest.raises(SettingsError, match="prepare_cell.py --cell toy_60 first"):
        perform(load_study(config_file), Run("toy_60", 0, "noisy", 0))


@pytest.mark.parametrize(
    ("old", "new", "differs"), [("[4, 8, 16]", "[8, 16, 32]", "features"), ("[erosion]", "[dilation]", "noise")]
)
def test_data_that_were_prepared_with_other_settings(prepared, no_training, config_file, old, new, differs):
    config_file.write_text(config_file.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")
    with pytest.raises(SettingsError, match=f"prepared with other settings \\({differs} differ\\)"):
        perform(load_study(config_file), Run("toy_60", 0, "noisy", 0), force=True)
    assert not no_training


def test_a_fold_that_the_cell_does_not_have(prepared, no_training):
    with pytest.raises(SettingsError, match="Cell 'toy_60' has no fold 1, only 0"):
        perform(prepared, Run("toy_60", 1, "noisy", 0), force=True)


def test_set_and_steps_make_a_variant(config_file):
    arguments = ["--config", str(config_file), "--cell", "toy_60", "--arm", "soft", "--set", "teacher=false"]
    args = run_arm.build_parser().parse_args([*arguments, "--steps", "75", "--results", "trials"])
    study = run_arm.adjust_study(load_study(config_file), args)
    assert study.cell("toy_60").steps == 75
    assert args.arm == "soft[teacher=false]"
    assert study.arm(args.arm).config == {"dcd_strength": 0.5, "teacher": False}


@pytest.mark.parametrize("steps", ["0", "-25"])
def test_steps_that_are_none(config_file, steps):
    arguments = ["--cell", "toy_60", "--arm", "noisy", "--results", "trials", "--steps", steps]
    with pytest.raises(SettingsError, match=f"--steps is {steps}; give a whole number from 1"):
        run_arm.adjust_study(load_study(config_file), run_arm.build_parser().parse_args(arguments))


@pytest.mark.parametrize("item", ["dcd_strength", "dcd_strength=", "=0.5", "dcd_strength=["])
def test_set_that_cannot_be_read(item):
    with pytest.raises(SettingsError, match="write FIELD=VALUE, such as dcd_strength=0.5"):
        run_arm.parse_setting(item)


def test_trials_leave_the_files_of_the_study_s_own_runs_alone(config_file, tmp_path):
    def folder(*options):
        args = run_arm.build_parser().parse_args(["--cell", "toy_60", "--arm", "noisy", *options])
        return run_arm.adjust_study(load_study(config_file), args).run_folder(Run("toy_60", 0, "noisy", 0))

    own = load_study(config_file).work / "runs" / "toy_60" / "fold_0" / "noisy" / "seed_0"
    results = str(load_study(config_file).results)
    assert folder() == folder("--results", results) == folder("--steps", "50", "--results", results) == own
    elsewhere = ["--results", str(tmp_path / "a" / "trials")], ["--results", str(tmp_path / "b" / "trials")]
    trials = {folder(*options) for options in (*elsewhere, ["--steps", "75", *elsewhere[0]])}
    assert len(trials) == 3 and own not in trials
    with pytest.raises(SettingsError, match="would replace the study's own; name another folder"):
        folder("--steps", "75")


def test_errors_are_one_sentence(config_file, capsys):
    for arguments in (["--arm", "magic"], ["--arm", "noisy"], ["--arm", "noisy", "--steps", "7"]):
        assert run_arm.main(["--config", str(config_file), "--cell", "toy_60", *arguments]) == 2
        message = capsys.readouterr().err
        assert message.startswith("error: ") and message.count("\n") == 1


def test_no_thread_at_all_is_refused(config_file, capsys):
    options = ["--config", str(config_file), "--threads", "0"]
    assert run_arm.main([*options, "--cell", "toy_60", "--arm", "noisy"]) == run_queue.main(options) == 2
    assert capsys.readouterr().err.count("error: --threads is 0; give a whole number from 1.\n") == 2


@pytest.mark.parametrize("given", [None, "", "/home/me/trainers", f"/home/me/trainers{os.pathsep}OWN"])
def test_the_arms_trainers_are_found_beside_the_user_s(monkeypatch, given):
    own = str(run_arm.REPOSITORY / "nnunetv2_metadcseg" / "nnunet_ext")
    monkeypatch.delenv("nnUNet_extTrainer", raising=False)
    if given is not None:
        monkeypatch.setenv("nnUNet_extTrainer", given.replace("OWN", own))
    run_arm.add_trainer_folder()
    assert os.environ["nnUNet_extTrainer"].split(os.pathsep) == [own, *(["/home/me/trainers"] if given else [])]


def test_queue_lists_the_runs(config_file, capsys):
    assert run_queue.main(["--config", str(config_file), "--list", "--cell", "toy_20"]) == 0
    assert capsys.readouterr().out.split()[:2] == ["toy_20/fold_0/clean/seed_0", "toy_20/fold_0/soft/seed_0"]


def test_queue_goes_on_after_a_failed_run(prepared, monkeypatch, capsys):
    monkeypatch.setattr(run_queue, "prepare", lambda *arguments: True)
    calls = []

    def run_in_child(arguments):
        calls.append(arguments)
        return int("metadcseg" in arguments)

    monkeypatch.setattr(run_queue, "run_in_child", run_in_child)
    monkeypatch.setattr(run_queue, "prepare_process", lambda threads: None)
    config = str(prepared.work.parent / "config.yaml")
    assert run_queue.main(["--config", config, "--cell", "toy_60"]) == 1
    assert len(calls) == 6
    assert run_arm.build_parser().parse_args(calls[0]).cell == "toy_60"
    assert capsys.readouterr().out.count("failed") == 2


@pytest.mark.parametrize("error", [SettingsError("noise_tools corrupt failed"), RuntimeError("no such plan")])
def test_queue_goes_on_after_a_cell_that_cannot_be_prepared(prepared, monkeypatch, capsys, error):
    def prepare_noisy(study, cell, fold, processes):
        tried.append(cell.name)
        if cell.name == "toy_60":
            raise error

    tried, calls = [], []
    monkeypatch.setattr(prepare_cell, "prepare_noisy", prepare_noisy)
    monkeypatch.setattr(run_queue, "run_in_child", lambda arguments: calls.append(arguments) or 0)
    monkeypatch.setattr(run_queue, "prepare_process", lambda threads: None)
    assert run_queue.main(["--config", str(prepared.work.parent / "config.yaml")]) == 1
    assert tried.count("toy_60") == 1, "what is wrong is said once"
    assert len(calls) == 4 and all("toy_20" in call for call in calls)
    out, err = capsys.readouterr()
    assert out.count("failed") == 6 and str(error) in err
    assert ("Traceback" in err) == isinstance(error, RuntimeError)


def test_queue_refuses_an_arm_that_no_cell_has(config_file, capsys):
    assert run_queue.main(["--config", str(config_file), "--arm", "metadsceg"]) == 2
    assert capsys.readouterr().err.startswith("error: No chosen cell has the arm 'metadsceg'")


def test_a_key_error_of_the_training_is_no_message_for_the_user(prepared, monkeypatch):
    def execute(*arguments, **options):
        raise KeyError("case_017")

    monkeypatch.setattr(run_arm, "execute", execute)
    with pytest.raises(KeyError, match="case_017"):
        run_arm.main(["--config", str(prepared.work.parent / "config.yaml"), "--cell", "toy_60", "--arm", "noisy"])
