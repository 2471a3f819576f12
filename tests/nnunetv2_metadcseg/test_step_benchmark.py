"""The benchmark: options, stop watches, report; the arms on a tiny data set (all step_benchmark*.py)."""

from __future__ import annotations

import json
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import pytest

from nnunetv2_metadcseg import step_benchmark
from nnunetv2_metadcseg.cli import main
from nnunetv2_metadcseg.fusion import fused, unfused
from nnunetv2_metadcseg.step_benchmark import ARMS, ArmCost, Effort, Result, Target, meta_interval
from nnunetv2_metadcseg.step_benchmark_memory import highest, long_run, resident
from nnunetv2_metadcseg.step_benchmark_parts import PARTS, PartTimer, mean_of_medians, median_parts, methods_of, watch
from nnunetv2_metadcseg.step_benchmark_report import ratio, records, table, write_chart, write_json
from tests.nnunetv2_metadcseg import tiny_dataset

# ---- options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arm", "interval"),
    [("stock", 1), ("metadcseg_head", 1), ("metadcseg_head_every_4", 4), ("metadcseg_network_every_10", 10)],
)
def test_the_meta_interval_is_part_of_the_name(arm, interval):
    assert meta_interval(arm) == interval


@pytest.mark.parametrize("arm", ["fast", "stock_every_2", "metadcseg_head_every_", "metadcseg_head_every_0", ""])
def test_unknown_arms_are_refused_with_a_list(arm):
    with pytest.raises(ValueError, match="there are stock, stock_channels_last, mixed"):
        meta_interval(arm)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--arms", "stock", "quick"], "no arm 'quick'"),
        (["--arms", "stock", "stock"], "names an arm twice"),
        (["--steps", "0"], "Got --steps 0, expected at least 4"),
        (["--warm-up", "-1"], "Got --warm-up -1"),
        (["--arms", "stock", "metadcseg_head_every_50"], "give --steps 100 or more"),
        (["--threads", "0"], "Got --threads 0"),
        (["-c", "3d_fullres", "2d"], "Got -c 3d_fullres 2d without a data set, expected 3d_fullres"),
        (["--output", "cost.pdf"], "end it in .png"),
        (["--json", "no_such_folder/cost.json"], "make it first"),
        (["--json", "."], ". is a folder, expected the name of a file"),
    ],
)
def test_bad_options_end_in_one_sentence_before_anything_slow(options, message, capsys, monkeypatch):
    monkeypatch.setattr(step_benchmark, "prepared", lambda *_: pytest.fail("too late"))
    assert main(["benchmark", *options]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1


def test_a_data_set_that_is_not_there_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    assert main(["benchmark", "-d", "777"]) == 2
    assert "nnUNetv2_plan_and_preprocess -d 777" in capsys.readouterr().err


def test_help_needs_neither_torch_nor_nnunet():
    code = (
        "import sys; from nnunetv2_metadcseg.cli import build_parser; build_parser('benchmark'); "
        "sys.exit(any(name in sys.modules for name in ('torch', 'nnunetv2', 'numpy', 'matplotlib')))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_environment_comes_back(monkeypatch):
    import os

    monkeypatch.setenv("METADCSEG_OLD", "1")
    monkeypatch.delenv("METADCSEG_NEW", raising=False)
    with step_benchmark.environment({"METADCSEG_OLD": "2", "METADCSEG_NEW": "3"}):
        assert (os.environ["METADCSEG_OLD"], os.environ["METADCSEG_NEW"]) == ("2", "3")
    assert os.environ["METADCSEG_OLD"] == "1" and "METADCSEG_NEW" not in os.environ


# ---- stop watches ----------------------------------------------------------------------------------------------------


class Ticks:
    """A clock that only moves when told."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_time_inside_an_inner_part_counts_there_only():
    clock = Ticks()
    timer = PartTimer(clock)

    def spend(seconds: float) -> None:
        clock.now += seconds

    inner = timer.watched(lambda: spend(2), "DCD")

    def outer() -> None:
        spend(1)
        inner()
        spend(4)

    def step() -> None:
        spend(8)
        timer.watched(outer, "loss")()

    assert timer.measure(step) == {"other": 8, "loss": 5, "DCD": 2}
    assert timer.measure(inner) == {"other": 0, "DCD": 2}  # starts anew


def test_a_part_that_fails_stops_its_watch():
    timer = PartTimer(Ticks())

    def fail() -> None:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        timer.measure(timer.watched(fail, "loss"))
    assert not timer.enabled and timer.measure(lambda: None) == {"other": 0}


def test_watching_changes_neither_results_nor_untimed_calls():
    owner = Namespace(child=Namespace(double=lambda x: 2 * x))
    timer = PartTimer(Ticks())
    watch(owner, timer, (("child", "double", "loss"),))
    assert owner.child.double(3) == 6 and not timer.seconds
    assert set(timer.measure(lambda: owner.child.double(3))) == {"other", "loss"}
    with pytest.raises(AttributeError):
        watch(owner, timer, (("child", "treble", "loss"),))


def test_rare_expensive_steps_count_at_their_rate():
    assert mean_of_medians([[1, 1, 90], [1, 2, 1], [5, 5, 4], [1, 1, 1]]) == 2
    assert median_parts([[{"loss": 2.0}], [{"loss": 4.0, "influence": 6.0}]]) == {"loss": 3, "influence": 3}
    assert median_parts([]) == {}


# ---- report ----------------------------------------------------------------------------------------------------------


def result(configuration: str = "3d_fullres", arms=("stock", "stock_channels_last", "metadcseg_head")) -> Result:
    seconds = {"stock": 2.0, "stock_channels_last": 1.0, "metadcseg_head": 1.5}
    costs = [
        ArmCost(arm, seconds[arm], {"forward": 0.5} if arm == "metadcseg_head" else {}, 100.0 * seconds[arm])
        for arm in arms
    ]
    target = Target("/data/Dataset904_X", "plans.json", configuration, threads=2)
    return Result(target, costs, {"stock": 0.25}, 0.031, (4, 8, 16, 16), 36)


def test_ratios_are_to_the_arm_asked_for():
    costs = result().costs
    assert ratio(costs[2], costs) == 0.75
    assert ratio(costs[2], costs, "stock_channels_last") == 1.5
    assert ratio(costs[2], costs, attribute="peak_mb") == 0.75
    assert ratio(costs[2], costs[2:]) is None


def test_the_table_has_a_row_per_arm_and_a_line_per_part():
    lines = table(result(), Effort()).splitlines()
    assert lines[0].startswith("Dataset904_X 3d_fullres: 4 patches of 8 x 16 x 16, cpu, 2 thread(s), wall time")
    assert "36 steps per arm" in lines[0]
    assert "3.1% of given-label voxels disagree" in lines[0]
    assert "| metadcseg_head | 1.5000 | 0.75 | 1.50 | 150 | 0.75 |" in lines
    assert "| forward | 500.0 |" in lines
    assert sum(line.split("|")[1].strip() in PARTS for line in lines if line.startswith("|")) == len(PARTS)


def test_json_lists_every_arm_of_every_configuration(tmp_path):
    write_json([result("2d"), result("3d_fullres", ("metadcseg_head",))], tmp_path / "cost.json")
    found = json.loads((tmp_path / "cost.json").read_text())
    assert len(found) == 4 and [path.name for path in tmp_path.iterdir()] == ["cost.json"]
    assert found[0] == {
        "device": "cpu",
        "configuration": "2d",
        "arm": "stock",
        "steps": 36,
        "step_seconds": 2.0,
        "peak_mb": 200.0,
        "ratio_to_stock": 1.0,
    }
    assert found[-1]["ratio_to_stock"] is None


def test_the_chart_is_a_png_also_without_memory(tmp_path):
    costs = [ArmCost("stock", 1.0, {}), ArmCost("mixed", 0.5, {})]
    bare = Result(Target("Dataset1", "plans.json", "2d"), costs, {}, 0.0, (2, 8, 8), 4)
    write_chart([result(), bare], tmp_path / "cost.png")
    assert (tmp_path / "cost.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["cost.png"]
    assert records([bare])[0]["peak_mb"] is None


def test_memory_is_read_from_the_system():
    assert highest() >= resident() > 2**20


# ---- the arms --------------------------------------------------------------------------------------------------------


@pytest.fixture
def tiny(tmp_path, monkeypatch) -> Target:
    """A tiny data set, with its plans file, as the command finds it."""
    data = tiny_dataset.make(tmp_path)
    (data.folder / "nnUNetPlans.json").write_text(json.dumps(data.plans))
    (data.folder / "dataset.json").write_text(json.dumps(data.dataset_json))
    for name, value in tiny_dataset.environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    return Target(str(data.folder), str(data.folder / "nnUNetPlans.json"), tiny_dataset.CONFIGURATION)


def test_the_command_measures_all_arms(tiny, tmp_path, capsys):
    files = ["--json", str(tmp_path / "cost.json"), "--output", str(tmp_path / "cost.png")]
    options = ["-c", "tiny", "--steps", "7", "--warm-up", "1", "--threads", "1", "--no-memory"]
    arms = [*ARMS, "metadcseg_head_every_2"]
    assert main(["benchmark", "-d", tiny_dataset.NAME, *options, *files, "--arms", *arms]) == 0
    found = json.loads((tmp_path / "cost.json").read_text())
    assert [entry["arm"] for entry in found] == arms
    assert all(entry["step_seconds"] > 0 and entry["configuration"] == "tiny" for entry in found)
    assert all(entry["steps"] == 4 for entry in found)  # the whole cycles of 7
    assert found[0]["ratio_to_stock"] == 1 and (tmp_path / "cost.png").is_file()
    printed = capsys.readouterr().out
    assert all(f"| {arm} |" in printed for arm in arms) and "nnU-Net" not in printed


def test_an_arm_that_does_not_fit_is_left_out(tiny, tmp_path, capsys, monkeypatch):
    """Of the others one is too large for the process that measures its memory: it keeps its time."""
    import torch

    def fail(*_) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    def peak_memory(arm: str, *_) -> float:
        if arm == "mixed":
            raise OSError("Measuring the memory of mixed ended with status 1: CUDA out of memory.")
        return 5.0

    monkeypatch.setattr("nnunetv2_metadcseg.step_benchmark_arms.UnrolledL2B.train_step", fail)
    monkeypatch.setattr("nnunetv2_metadcseg.step_benchmark_measure.peak_memory", peak_memory)
    line = ["benchmark", "-d", tiny_dataset.NAME, "-c", "tiny", "--steps", "4", "--warm-up", "1", "--threads", "1"]
    line += ["--arms", "l2b_unrolled", "stock", "mixed", "--json", str(tmp_path / "cost.json")]
    assert main(line) == 0
    found = json.loads((tmp_path / "cost.json").read_text())
    assert [(entry["arm"], entry["peak_mb"]) for entry in found] == [("stock", 5.0), ("mixed", None)]
    error = capsys.readouterr().err
    assert error.count("l2b_unrolled is left out: it does not fit into the memory of cpu") == 1
    assert "status 1: CUDA out of memory.; its memory is left out" in error


def no_memory(*_) -> None:
    raise RuntimeError("CUDA error: out of memory")


@pytest.mark.parametrize(("function", "stand_in"), [("fits", lambda step: False), ("trained_weights", no_memory)])
def test_a_configuration_of_which_no_arm_fits_is_named(tiny, function, stand_in, capsys, monkeypatch):
    monkeypatch.setattr(f"nnunetv2_metadcseg.step_benchmark_measure.{function}", stand_in)
    options = ["-d", tiny_dataset.NAME, "-c", "tiny", "--threads", "1", "--no-memory", "--warm-up", "0"]
    assert main(["benchmark", *options, "--arms", "stock"]) == 2
    assert "error: The configuration 'tiny' does not fit into the memory of cpu" in capsys.readouterr().err


def test_other_errors_of_a_step_are_not_taken_for_too_little_memory():
    from nnunetv2_metadcseg.step_benchmark_measure import fits

    def fail() -> None:
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        fits(fail)


def change_plans(target: Target, **configurations: dict) -> None:
    """Adds configurations to the plans file."""
    plans = json.loads(Path(target.plans_file).read_text())
    plans["configurations"] |= configurations
    Path(target.plans_file).write_text(json.dumps(plans))


@pytest.mark.parametrize(
    ("configuration", "message"),
    [
        ("huge", "Unknown configuration 'huge'; the plans file has: tiny"),
        ("cascade", "second stage of a cascade and needs predictions of 'tiny'"),
        ("new", "'new' is not preprocessed, expected its data in "),
        ("single", "'single' has batches of 1, expected at least 2"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_is(tiny, configuration, message, capsys, monkeypatch):
    monkeypatch.setattr("nnunetv2_metadcseg.step_benchmark_measure.measure", lambda *_: pytest.fail("too late"))
    cascade = {"previous_stage": "tiny", "inherits_from": "tiny"}
    single = {"batch_size": 1, "inherits_from": "tiny"}
    change_plans(tiny, cascade=cascade, new={"data_identifier": "new", "inherits_from": "tiny"}, single=single)
    assert main(["benchmark", "-d", tiny_dataset.NAME, "-c", "tiny", configuration, "--no-memory"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1


def test_a_broken_plans_file_is_named(tiny, capsys):
    Path(tiny.plans_file).write_text("{")
    assert main(["benchmark", "-d", tiny_dataset.NAME, "-c", "tiny"]) == 2
    assert f"error: {tiny.plans_file} is not valid JSON" in capsys.readouterr().err


def test_what_is_measured_stays_where_a_later_configuration_fails(tiny, tmp_path, monkeypatch):
    def measure(target: Target, *_) -> Result:
        if target.configuration == "bad":
            raise OSError("no")
        return result(target.configuration)

    monkeypatch.setattr("nnunetv2_metadcseg.step_benchmark_measure.measure", measure)
    change_plans(tiny, bad={"inherits_from": "tiny"})
    line = ["benchmark", "-d", tiny_dataset.NAME, "-c", "tiny", "bad", "--json", str(tmp_path / "cost.json")]
    assert main(line) == 2
    assert {entry["configuration"] for entry in json.loads((tmp_path / "cost.json").read_text())} == {"tiny"}


def test_every_part_of_the_meta_step_is_timed(tiny):
    from nnunetv2_metadcseg.step_benchmark_arms import build
    from nnunetv2_metadcseg.step_benchmark_measure import draw_batches

    trainer = build("metadcseg_network", tiny)
    assert not trainer.starting and trainer.config.influence == "network"
    (batch,) = draw_batches(trainer, 1)
    timer = PartTimer()
    watch(trainer, timer, methods_of(trainer))
    assert set(timer.measure(lambda: trainer.train_step(batch))) == set(PARTS)


def test_what_is_compiled_together_is_not_looked_into():
    as_they_are, compiled = (methods_of(SimpleNamespace(fuse=fuse)) for fuse in (unfused, fused))
    inside = set(as_they_are) - set(compiled)
    assert set(compiled) < set(as_they_are) and ("weighting", "_mix", "loss") in inside


@pytest.mark.parametrize("kind", ["classes", "regions and ignore"])
def test_stock_targets_are_those_of_nnunets_own_loader(tiny, tmp_path, kind):
    import torch

    from nnunetv2_metadcseg.step_benchmark_arms import build
    from nnunetv2_metadcseg.step_benchmark_measure import batch_for, draw_batches

    data = tiny_dataset.make(tmp_path / "kind", kind)
    (data.folder / "nnUNetPlans.json").write_text(json.dumps(data.plans))
    (data.folder / "dataset.json").write_text(json.dumps(data.dataset_json))
    target = Target(str(data.folder), str(data.folder / "nnUNetPlans.json"), tiny_dataset.CONFIGURATION)
    with step_benchmark.environment({"nnUNet_preprocessed": str(tmp_path / "kind" / "preprocessed")}):
        stock = build("stock", target)
        (batch,) = draw_batches(build("mixed", target), 1)
        theirs = next(stock.dataloader_train)["target"]
    ours = batch_for(stock, batch)["target"]
    assert [t.shape for t in ours] == [t.shape for t in theirs] and ours[0].dtype == theirs[0].dtype
    if kind == "classes":
        torch.testing.assert_close(ours[0], batch["target"][:, :1])
    assert stock.train_step(batch_for(stock, batch))["loss"] < 10


def test_the_unrolled_rule_is_the_influence_of_the_whole_network(tiny):
    """At zero weights the gradient through the unrolled step is the influence, which network_influence estimates."""
    import torch

    from nnunetv2_metadcseg.agreement import hard_labels
    from nnunetv2_metadcseg.influence import network_influence
    from nnunetv2_metadcseg.losses import voxel_cross_entropy
    from nnunetv2_metadcseg.step_benchmark_arms import build, full_resolution
    from nnunetv2_metadcseg.step_benchmark_measure import draw_batches

    trainer = build("l2b_unrolled", tiny)
    network = trainer.network.double()
    (batch,) = draw_batches(trainer, 1)
    batch["data"] = batch["data"].double()
    n = batch["num_given"]
    target, weight = trainer._learn(batch)

    data = trainer.to_device(batch["data"])
    label, valid = trainer.encoder(batch["target"][:, :1])
    loss = trainer.weighted_loss.single(full_resolution(network(data[n:])), label[n:], valid[n:])
    names, parameters = zip(*network.named_parameters(), strict=True)
    slopes = torch.autograd.grad(loss, parameters, allow_unused=True)
    direction = {name: g for name, g in zip(names, slopes, strict=True) if g is not None}
    logits = network(data[:n])[0].detach()
    pseudo = hard_labels(torch.softmax(logits, 1), False).float()
    alpha, beta = (
        network_influence(
            network, direction, data[:n], lambda z, t=t: voxel_cross_entropy(z, t), logits, 1e-2
        ).clamp_min(0)
        for t in (label[:n], pseudo)
    )
    total = alpha + beta
    expected = total * valid[:n].sum() / total.sum()
    assert torch.cosine_similarity(weight.flatten(), expected.flatten(), 0) > 0.99
    clear = (total > total.max() / 20).expand_as(target)
    wanted = (alpha * label[:n] + beta * pseudo) / total.clamp_min(1e-12)
    assert (target - wanted)[clear].abs().median() < 0.02
    assert trainer.learned is None and "loss" in trainer.train_step({**batch, "data": batch["data"]})


@pytest.mark.integration
def test_memory_of_an_arm_is_measured_in_a_process_of_its_own(tiny, tmp_path):
    import torch

    from nnunetv2_metadcseg.step_benchmark_arms import build
    from nnunetv2_metadcseg.step_benchmark_measure import draw_batches, trained_weights

    batches = draw_batches(build("metadcseg_head", tiny), 4)
    torch.save({"batches": batches, "weights": trained_weights(tiny, batches, 1)}, tmp_path / "shared.pt")
    run = long_run("metadcseg_head", tiny, tmp_path / "shared.pt", cycles=3)
    assert 0 < run["peak_mb"] < 2000 and len(run["resident_mb"]) == len(run["cycle_seconds"]) == 3
    with pytest.raises(OSError, match="Measuring the memory of metadcseg_head ended with status 1"):
        long_run("metadcseg_head", tiny, Path("no_such_file.pt"), cycles=1)


@pytest.mark.integration
def test_without_a_data_set_the_phantom_is_measured(tmp_path):
    line = ["benchmark", "--arms", "stock", "metadcseg_head", "--steps", "4", "--warm-up", "2"]
    line += ["--threads", "1", "--json", "cost.json"]  # two threads wait for each other where other work goes on
    done = subprocess.run(
        [sys.executable, "-m", "nnunetv2_metadcseg.cli", *line], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((tmp_path / "cost.json").read_text())
    assert [(entry["arm"], entry["configuration"]) for entry in found] == [
        ("stock", "3d_fullres_small"),
        ("metadcseg_head", "3d_fullres_small"),
    ]
    assert all(entry["peak_mb"] > 0 for entry in found)
