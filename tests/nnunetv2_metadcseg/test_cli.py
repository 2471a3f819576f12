from __future__ import annotations

import ast
import errno
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nnunetv2_metadcseg import __version__, cli


def test_ext_path_names_a_folder_with_one_module(capsys):
    assert cli.main(["ext-path"]) == 0
    folder = Path(capsys.readouterr().out.strip())
    assert folder.is_dir() and folder.is_absolute()
    # nnU-Net imports every module it finds there.
    assert [f.name for f in folder.glob("*.py")] == ["metadcseg_trainers.py"]


def test_ext_module_defines_no_class_of_its_own():
    source = (cli.ext_path() / "metadcseg_trainers.py").read_text()
    assert not [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ClassDef)]


def test_help_imports_neither_torch_nor_numpy_nor_nnunet():
    code = (
        "import sys\n"
        "from nnunetv2_metadcseg import cli\n"
        "try:\n"
        "    cli.main(['--help'])\n"
        "except SystemExit as end:\n"
        "    assert end.code == 0\n"
        "print([m for m in ('torch', 'numpy', 'nnunetv2', 'SimpleITK') if m in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]")
    assert "small-config" in done.stdout and "doctor" in done.stdout


@pytest.mark.parametrize("command", ["ext-path", "small-config", "doctor"])
def test_every_sub_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main([command, "--help"])
    assert end.value.code == 0
    assert f"metadcseg {command}" in capsys.readouterr().out


def test_version(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out.strip() == __version__


@pytest.mark.parametrize("argv", [[], ["no-such-command"]])
def test_unknown_command_ends_with_status_2(argv, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(argv)
    assert end.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


def test_bad_input_is_one_line_on_stderr(monkeypatch, capsys):
    monkeypatch.delenv("nnUNet_preprocessed", raising=False)
    assert cli.main(["small-config", "-d", "504"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1
    assert "export nnUNet_preprocessed=" in captured.err


def test_refused_access_is_a_sentence(monkeypatch, capsys):
    def refuse(args):
        raise PermissionError(errno.EACCES, "Permission denied", "/plans/.nnUNetPlans.json.x7d")

    monkeypatch.setattr(cli, "run", refuse)
    assert cli.main(["ext-path"]) == 2
    assert capsys.readouterr().err.startswith("error: Cannot write in /plans (Permission denied); ")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_an_audit_that_is_ended_leaves_nothing(tmp_path, hangups_are_heard, number):
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from nnunetv2_metadcseg import cli\n"
        "from nnunetv2_metadcseg.label_audit_output import written_whole\n"
        "def run(args):\n"
        "    with written_whole(Path(sys.argv[1]) / 'audit') as folder:\n"
        "        (folder / 'map').touch()\n"
        "        time.sleep(60)\n"
        "cli.run = run\n"  # of `ext-path`
        "sys.exit(cli.main(['ext-path']))\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)]) as audit:
        while audit.poll() is None and not list(tmp_path.glob(".audit.*/map")):
            time.sleep(0.05)
        audit.send_signal(number)
        assert audit.wait(timeout=30) == 128 + number
    assert not list(tmp_path.iterdir())
