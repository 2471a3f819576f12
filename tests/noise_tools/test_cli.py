from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from noise_tools import cli

HEAVY = ("numpy", "scipy", "SimpleITK", "torch", "nnunetv2", "skimage", "matplotlib", "yaml", "tqdm")


@pytest.mark.parametrize("words", [[], ["corrupt"], ["phantom"], ["list"], ["replay"], ["report"], ["preview"]])
def test_help_imports_nothing_heavy(words):
    code = (
        "import sys\nfrom noise_tools import cli\n"
        f"try: cli.main({words!r} + ['--help'])\nexcept SystemExit as stop: assert stop.code == 0\n"
        f"print('LOADED', [name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("LOADED []")
    assert "usage: noise_tools" in done.stdout


def test_help_names_all_commands(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    out = capsys.readouterr().out
    assert all(name in out for name in ("corrupt", "phantom", "list", "replay", "report", "preview"))


@pytest.mark.parametrize("words", [["corrupt", "--noise", "erosion"], ["shake"], []])
def test_usage_errors_exit_with_two(words, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(words)
    assert stop.value.code == 2


def test_noise_recipe_and_preset_exclude_each_other(capsys):
    with pytest.raises(SystemExit):
        cli.main("corrupt -d 3 -o 4 --noise erosion --preset l2b-20".split())
    assert "not allowed with" in capsys.readouterr().err


def test_number_and_names_of_trusted_cases_exclude_each_other(capsys):
    with pytest.raises(SystemExit):
        cli.main("corrupt -d 3 -o 4 --noise erosion --trusted 2 --trusted-cases a".split())
    assert "not allowed with" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("-o Dataset590_X --noise erosion", "'Dataset590_X' is no number; give the id alone, and a name with --name"),
        ("-o 590", "one of the arguments --noise --recipe --preset is required"),
    ],
)
def test_usage_errors_are_one_sentence(capsys, words, says):
    with pytest.raises(SystemExit):
        cli.main(f"corrupt -d 4 {words}".split())
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and says in lines[0]
    assert lines[0].endswith("see 'noise_tools corrupt --help'.")


@pytest.mark.parametrize(("number", "processes"), [("SIGTERM", 1), ("SIGTERM", 2), ("SIGHUP", 1)])
def test_what_ends_it_leaves_nothing_behind(tmp_path, hangups_are_heard, number, processes):
    number = signal.Signals[number]
    words = f"phantom -o 7 -n 60 --test 0 -np {processes}".split()
    command = [sys.executable, "-m", "noise_tools.cli", *words]
    with subprocess.Popen(command, env={**os.environ, "nnUNet_raw": str(tmp_path)}, stderr=subprocess.PIPE) as drawing:
        while drawing.poll() is None and not list(tmp_path.glob(".noise_tools-*/imagesTr/*")):
            time.sleep(0.05)
        drawing.send_signal(number)
        assert drawing.wait(timeout=60) == 128 + number
    assert not list(tmp_path.iterdir())


def test_a_closed_terminal_does_not_end_what_nohup_started():
    earlier = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        cli.main(["list", "erosion"])
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, earlier)


def test_what_the_system_refuses_is_one_sentence(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("nnUNet_raw", str(tmp_path))
    (tmp_path / "file").touch()
    assert cli.main(["preview", "-d", "1", "-o", str(tmp_path / "file" / "p.png")]) == 2
    assert cli.main(["report", str(tmp_path), str(tmp_path), "-o", str(tmp_path / "file")]) == 2
    assert cli.main(["corrupt", "-d", "²", "-o", "7", "--noise", "erosion"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 and all(line.startswith("error: ") for line in lines)
    assert "file is no folder that you may write to" in lines[1]


def test_list_runs(capsys):
    assert cli.main(["list", "erosion"]) == 0
    assert "erosion: shrinks structures" in capsys.readouterr().out
    assert cli.main(["list", "nothing"]) == 2
    assert capsys.readouterr().err.startswith("error: Unknown noise type or preset 'nothing'")


def test_a_reader_that_stops_early_is_no_error():
    code = "import sys; from noise_tools import cli; sys.exit(cli.main(['list']))"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as listing:
        listing.stdout.close()
        assert listing.wait(timeout=60) == 0
        assert listing.stderr.read() == b""
