from __future__ import annotations

import os
from pathlib import Path

import pytest

from nnunetv2_metadcseg import cli, doctor
from nnunetv2_metadcseg.doctor import Finding

FOUND = {"cuda": False, "torch": "2.9.0", "trainer": "nnunetv2_metadcseg.trainer.nnUNetTrainerMetaDCSeg"}


def statuses(findings) -> list[str]:
    return [finding.status for finding in findings]


@pytest.fixture
def environment(tmp_path) -> dict[str, str]:
    """All that training needs on two cores."""
    variables = {"nnUNet_extTrainer": str(cli.ext_path()), "nnUNet_n_proc_DA": "0", "nnUNet_def_n_proc": "2"}
    for name in doctor.PATH_VARIABLES:
        (tmp_path / name).mkdir()
        variables[name] = str(tmp_path / name)
    return variables


@pytest.mark.parametrize("version", ["2.8.1", "2.8.2", "2.9", "2.10.0", "2.9+local", "2.8.1rc1", "2.9.dev0"])
def test_nnunet_version_accepted(version):
    assert doctor.check_nnunet_version(version).status == "ok"


@pytest.mark.parametrize(
    ("version", "status"),
    [("2.8.0", "missing"), ("2.6", "missing"), ("2.8+local", "missing"), ("x", "missing"), ("3.0rc1", "hint")],
)
def test_nnunet_version_refused(version, status):
    finding = doctor.check_nnunet_version(version)
    assert finding.status == status and "'nnunetv2>=2.8.1,<3'" in finding.mend


def test_versions_name_python_and_missing_packages(monkeypatch):
    monkeypatch.setattr(doctor, "PACKAGES", ("nnunetv2", "no-such-package-of-ours"))
    python, nnunet, missing = doctor.check_versions()
    assert python.text.startswith("python 3.") and nnunet.text.startswith("nnunetv2 ")
    assert missing.status == "missing" and missing.mend.endswith("pip install no-such-package-of-ours")


def test_this_package_is_installed_from_its_source(monkeypatch, tmp_path):
    assert doctor.source("torch") == "torch"
    assert Path(doctor.source("nnunetv2-metadcseg").strip("'"), "pyproject.toml").is_file()
    monkeypatch.setattr(doctor, "__file__", str(tmp_path / "site-packages" / "nnunetv2_metadcseg" / "doctor.py"))
    broken = doctor.check_trainer("T", {"error": "ModuleNotFoundError: No module named 'nnunetv2_metadcseg'"}, {})
    assert broken.mend.endswith("--no-deps '<folder of the source>'")


def test_paths_present(environment):
    assert statuses(doctor.check_paths(environment)) == ["ok", "ok", "ok"]


def test_paths_unset_or_no_folder(environment):
    del environment["nnUNet_raw"]
    environment["nnUNet_results"] += "/not there"
    raw, preprocessed, results = doctor.check_paths(environment)
    assert raw.mend == "export nnUNet_raw=/path/to/nnUNet_raw"
    assert preprocessed.status == "ok"
    assert results.status == "missing" and results.mend == f"mkdir -p '{environment['nnUNet_results']}'"


def test_tilde_that_nothing_expands(environment):
    environment["nnUNet_raw"] = "~/data/raw"
    raw, *_ = doctor.check_paths(environment)
    assert raw.status == "missing" and raw.mend == 'export nnUNet_raw="$HOME/data/raw"'


def test_numbers_that_are_none(environment):
    assert list(doctor.check_numbers(environment, cores=2)) == [] and list(doctor.check_numbers({}, cores=2)) == []
    findings = list(doctor.check_numbers({"nnUNet_def_n_proc": "two", "nnUNet_n_proc_DA": ""}, cores=2))
    assert [f.mend for f in findings] == ["unset nnUNet_def_n_proc", "unset nnUNet_n_proc_DA"]
    on_cpu = doctor.check_cpu_variables({"nnUNet_def_n_proc": "two"}, cores=2)
    assert not [f.text for f in on_cpu if "nnUNet_def_n_proc" in f.text]  # not missing and ok at once


def test_no_helper_process_at_all_is_missing():
    environment = {"nnUNet_def_n_proc": "0", "nnUNet_n_proc_DA": "0"}  # augmentation in the main process is fine
    (finding,) = doctor.check_numbers(environment, cores=2)
    assert finding.status == "missing" and finding.mend == "export nnUNet_def_n_proc=2"
    assert "nnUNet_def_n_proc=0, expected at least 1" in finding.text
    on_cpu = doctor.check_cpu_variables(environment, cores=2)
    assert not [f.text for f in on_cpu if "nnUNet_def_n_proc" in f.text]  # not missing and ok at once


def test_read_only_results(environment, monkeypatch):
    monkeypatch.setattr(doctor.os, "access", lambda path, mode: False)
    assert statuses(doctor.check_paths(environment)) == ["ok", "missing", "missing"]


def test_trainer_folder_unset():
    finding = doctor.check_trainer_folder({})
    assert finding.status == "missing" and finding.mend == 'export nnUNet_extTrainer="$(metadcseg ext-path)"'


def test_trainer_folder_among_several(environment, tmp_path):
    environment["nnUNet_extTrainer"] = f"{tmp_path}{os.pathsep}{cli.ext_path()}"
    assert doctor.check_trainer_folder(environment).status == "ok"


def test_other_trainer_folder_is_kept_by_the_mending_line(tmp_path):
    finding = doctor.check_trainer_folder({"nnUNet_extTrainer": str(tmp_path)})
    assert finding.status == "missing" and "$nnUNet_extTrainer" in finding.mend


def test_trainer_found():
    assert doctor.check_trainer("T", FOUND, {}) == Finding("ok", f"nnU-Net finds T: {FOUND['trainer']}")


def test_trainer_not_found_or_broken():
    error = {"error": "RuntimeError: Could not find requested nnunet trainer T in x. Move it"}
    lost = doctor.check_trainer("T", error, {})
    assert lost.mend == 'export nnUNet_extTrainer="$(metadcseg ext-path)"' and "Move" not in lost.text
    misspelt = doctor.check_trainer("T", error, {"nnUNet_extTrainer": f"{cli.ext_path()}{os.pathsep}/my/trainers"})
    assert misspelt.status == "missing" and misspelt.mend is None and "correct the name" in misspelt.text
    broken = doctor.check_trainer("T", {"error": "ModuleNotFoundError: No module named 'nnunetv2_metadcseg'"}, {})
    assert broken.status == "missing" and "pip install" in broken.mend
    typo = doctor.check_trainer("T", {"error": "SyntaxError: expected ':' (my_choice.py, line 3)"}, {})
    assert typo.mend is None and typo.text.endswith("(my_choice.py, line 3); correct what the error names")


def test_cpu_variables_set(environment):
    findings = list(doctor.check_device(environment, FOUND, cores=2))
    assert set(statuses(findings)) == {"ok"}
    assert "-device cpu" in findings[0].text


def test_cpu_variables_missing_on_few_cores():
    mends = [f.mend for f in doctor.check_cpu_variables({"nnUNet_compile": "t"}, cores=2) if f.status == "hint"]
    assert mends == [
        "export nnUNet_n_proc_DA=0",
        "export nnUNet_compile=f",
        "export nnUNet_def_n_proc=2",
    ]


def test_cpu_variables_are_left_alone_on_many_cores():
    assert set(statuses(doctor.check_cpu_variables({}, cores=32))) == {"ok"}


def test_cuda_needs_no_cpu_variables():
    assert statuses(doctor.check_device({}, {**FOUND, "cuda": True}, cores=2)) == ["ok"]


def test_run_reports_and_returns_a_status(environment, monkeypatch, capsys):
    monkeypatch.setattr(doctor, "probe", lambda trainer, environment: FOUND)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert cli.main(["doctor"]) == 0
    assert capsys.readouterr().out.endswith("all is there\n")
    monkeypatch.delenv("nnUNet_raw")
    assert cli.main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "mend it with: export nnUNet_raw=" in out and out.endswith("1 missing: run the lines after 'mend it with'\n")


def test_probe_of_a_broken_python(monkeypatch):
    monkeypatch.setattr(doctor, "PROBE", "raise SystemExit('no torch here')")
    probed = doctor.probe("T", os.environ)
    assert "status 1: no torch here" in probed["error"]
    assert list(doctor.check_device({}, probed, cores=2)) == []


@pytest.mark.integration
def test_fresh_process_finds_the_trainer(environment):
    probed = doctor.probe(doctor.DEFAULT_TRAINER, {**os.environ, **environment})
    assert probed["trainer"] == "nnunetv2_metadcseg.trainer.nnUNetTrainerMetaDCSeg"


@pytest.mark.integration
def test_fresh_process_without_the_variable():
    variables = {name: value for name, value in os.environ.items() if name != "nnUNet_extTrainer"}
    probed = doctor.probe(doctor.DEFAULT_TRAINER, variables)
    assert probed["error"].startswith("RuntimeError: Could not find requested nnunet trainer")
