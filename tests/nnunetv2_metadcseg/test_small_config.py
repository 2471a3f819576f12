from __future__ import annotations

import json
import math
import os
import stat

import pytest

from nnunetv2_metadcseg import cli, small_config
from nnunetv2_metadcseg.small_config import add_small_configuration, shrink_patch, small_configuration


def network(n_stages: int, dim: int, residual: bool = False) -> dict:
    """arch_kwargs as nnU-Net's planner writes them."""
    blocks = "n_blocks_per_stage" if residual else "n_conv_per_stage"
    return {
        "n_stages": n_stages,
        "features_per_stage": [min(32 * 2**i, 320) for i in range(n_stages)],
        "conv_op": f"torch.nn.modules.conv.Conv{dim}d",
        "kernel_sizes": [[3] * dim] * n_stages,
        "strides": [[1] * dim] + [[2] * dim] * (n_stages - 1),
        blocks: [2] * n_stages,
        "n_conv_per_stage_decoder": [2] * (n_stages - 1),
        "conv_bias": True,
        "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dim}d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }


def configuration(patch: list[int], n_stages: int, spacing: list[float], residual: bool = False) -> dict:
    kind = "unet.ResidualEncoderUNet" if residual else "unet.PlainConvUNet"
    return {
        "data_identifier": f"nnUNetPlans_{len(patch)}d",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 9,
        "patch_size": patch,
        "spacing": spacing,
        "architecture": {
            "network_class_name": f"dynamic_network_architectures.architectures.{kind}",
            "arch_kwargs": network(n_stages, len(patch), residual),
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
        "batch_dice": False,
    }


@pytest.fixture
def plans() -> dict:
    return {
        "dataset_name": "Dataset504_Phantom",
        "plans_name": "nnUNetPlans",
        "configurations": {
            "2d": configuration([256, 224], 6, [1.0, 1.0]),
            "3d_fullres": configuration([40, 56, 40], 4, [1.0, 1.0, 1.0]),
            "3d_large": configuration([128, 128, 128], 6, [1.0, 1.0, 1.0]),
            "3d_residual": configuration([128, 128, 128], 6, [1.0, 1.0, 1.0], residual=True),
            "3d_lowres": {"inherits_from": "3d_fullres", "next_stage": "3d_cascade_fullres", "data_identifier": "low"},
        },
    }


@pytest.fixture
def plans_file(tmp_path, monkeypatch, plans):
    folder = tmp_path / "Dataset504_Phantom"
    folder.mkdir()
    file = folder / "nnUNetPlans.json"
    file.write_text(json.dumps(plans))
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    return file


def resolve(plans: dict, name: str) -> dict:
    entry = plans["configurations"][name]
    return {**resolve(plans, entry["inherits_from"]), **entry} if "inherits_from" in entry else entry


def test_keeps_a_small_planned_patch_and_shares_the_data(plans):
    small = small_configuration(plans, "3d_fullres")
    plans["configurations"]["small"] = small
    resolved = resolve(plans, "small")
    assert small["inherits_from"] == "3d_fullres"
    assert resolved["data_identifier"] == "nnUNetPlans_3d"
    assert resolved["patch_size"] == [40, 56, 40] and resolved["batch_size"] == 2
    planned = plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    assert small["architecture"]["arch_kwargs"] == {**planned, "features_per_stage": [8, 16, 32, 64]}


def test_features_keep_the_planned_ratios_and_cap(plans):
    widths = small_configuration(plans, "3d_large", features=16, patch=[128, 128, 128])["architecture"]["arch_kwargs"]
    assert widths["features_per_stage"] == [16, 32, 64, 128, 160, 160]


@pytest.mark.parametrize("parent", ["3d_large", "3d_residual"])
@pytest.mark.parametrize("features", [8, 16])
def test_large_patch_is_shrunk_with_its_topology(plans, parent, features):
    small = small_configuration(plans, parent, features=features)
    patch, kwargs = small["patch_size"], small["architecture"]["arch_kwargs"]
    n_stages = kwargs["n_stages"]
    blocks = "n_blocks_per_stage" if parent == "3d_residual" else "n_conv_per_stage"
    assert math.prod(patch) * 2 <= 1.2 * small_config.BATCH_VOXELS
    for key in ("features_per_stage", "kernel_sizes", "strides", blocks):
        assert len(kwargs[key]) == n_stages, key
    assert len(kwargs["n_conv_per_stage_decoder"]) == n_stages - 1
    total_stride = [math.prod(s[axis] for s in kwargs["strides"]) for axis in range(3)]
    assert all(edge % stride == 0 and edge // stride >= 4 for edge, stride in zip(patch, total_stride, strict=True))


def test_does_not_change_the_plans_it_reads(plans):
    before = json.dumps(plans)
    small_configuration(plans, "3d_large")
    assert json.dumps(plans) == before


def test_cascade_output_is_switched_off(plans):
    assert small_configuration(plans, "3d_lowres")["next_stage"] is None


@pytest.mark.integration
@pytest.mark.parametrize(
    ("parent", "patch"), [("2d", None), ("2d", [64, 48]), ("3d_large", None), ("3d_residual", [24, 32, 24])]
)
def test_nnunet_builds_and_runs_the_network(plans, parent, patch):
    import torch
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    plans["configurations"]["small"] = small_configuration(plans, parent, patch=patch)
    manager = PlansManager(plans)
    small = manager.get_configuration("small")
    net = nnUNetTrainer.build_network_architecture(manager, small, 1, 3, True)
    with torch.no_grad():
        outputs = net(torch.zeros(2, 1, *small.patch_size))
    assert outputs[0].shape == (2, 3, *small.patch_size)
    assert net.decoder.seg_layers[-1].in_channels == 8


def test_writes_once_and_is_idempotent(plans_file, plans, capsys):
    assert cli.main(["small-config", "-d", "504", "-c", "3d_fullres"]) == 0
    assert capsys.readouterr().out == "3d_fullres_small\n"
    first = plans_file.read_bytes()
    written = json.loads(first)
    assert "3d_fullres_small" in written["configurations"]
    del written["configurations"]["3d_fullres_small"]
    assert written == plans
    modified = plans_file.stat().st_mtime_ns
    assert cli.main(["small-config", "-d", "Dataset504_Phantom", "-c", "3d_fullres"]) == 0
    assert plans_file.read_bytes() == first and plans_file.stat().st_mtime_ns == modified
    assert [f.name for f in plans_file.parent.iterdir()] == ["nnUNetPlans.json"]


def test_name_and_options(plans_file, capsys):
    argv = ["small-config", "-d", "504", "-c", "2d", "--name", "tiny", "--features", "4", "--batch-size", "4"]
    assert cli.main([*argv, "--patch", "64", "64"]) == 0
    assert capsys.readouterr().out == "tiny\n"
    tiny = json.loads(plans_file.read_text())["configurations"]["tiny"]
    assert (tiny["batch_size"], tiny["patch_size"]) == (4, [64, 64])
    assert tiny["architecture"]["arch_kwargs"]["features_per_stage"][0] == 4


def test_other_settings_under_a_taken_name_need_overwrite(plans_file):
    add_small_configuration(plans_file, "3d_fullres")
    before = plans_file.read_bytes()
    with pytest.raises(ValueError, match="already has a configuration '3d_fullres_small'"):
        add_small_configuration(plans_file, "3d_fullres", features=16)
    assert plans_file.read_bytes() == before
    add_small_configuration(plans_file, "3d_fullres", features=16, overwrite=True)
    small = json.loads(plans_file.read_text())["configurations"]["3d_fullres_small"]
    assert small["architecture"]["arch_kwargs"]["features_per_stage"][0] == 16


@pytest.mark.parametrize(
    ("parent", "name", "why"),
    [
        ("3d_fullres", "3d_fullres", "'3d_fullres' .-c. is or inherits from it"),
        ("tiny", "3d_fullres", "'tiny' .-c. is or inherits from it"),
        ("tiny", "middle", "'tiny' .-c. is or inherits from it"),
        ("3d_fullres", "2d", "small-config did not make it"),
        ("3d_fullres", "own", "small-config did not make it"),
    ],
)
def test_never_replaces_what_it_needs_or_did_not_make(plans_file, parent, name, why):
    add_small_configuration(plans_file, "3d_fullres", name="middle")
    add_small_configuration(plans_file, "middle", name="tiny", features=4)
    plans = json.loads(plans_file.read_text())
    plans["configurations"] |= {"2d": {"spacing": [1, 1]}, "own": {"inherits_from": "3d_fullres", "batch_size": 8}}
    plans_file.write_text(json.dumps(plans))
    before = plans_file.read_bytes()
    with pytest.raises(ValueError, match=f"already has a configuration '{name}'.* give another --name, since {why}"):
        add_small_configuration(plans_file, parent, name=name, features=16, overwrite=True)
    assert plans_file.read_bytes() == before


def test_failed_write_leaves_the_file_and_no_litter(plans_file, monkeypatch):
    before = plans_file.read_bytes()

    def full_disk(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(small_config.json, "dump", full_disk)
    assert cli.main(["small-config", "-d", "504"]) == 2
    assert plans_file.read_bytes() == before
    assert os.listdir(plans_file.parent) == ["nnUNetPlans.json"]


def test_keeps_the_file_mode(plans_file):
    plans_file.chmod(0o664)
    add_small_configuration(plans_file, "3d_fullres")
    assert stat.S_IMODE(plans_file.stat().st_mode) == 0o664


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-d", "505"], "Found none for data set '505'"),
        (["-d", "Dataset504"], "Found none for data set 'Dataset504'"),
        (["-d", "504", "-p", "otherPlans"], "no plans file"),
        (["-d", "504", "-c", "3d_nothing"], "Unknown configuration '3d_nothing'; the plans file has: 2d, 3d_fullres"),
        (["-d", "504", "--batch-size", "1"], "batch size of 1, expected at least 2"),
        (["-d", "504", "--features", "0"], "Got 0 features, expected at least 2"),
        (["-d", "504", "--patch", "32", "32"], "expected 3 positive edges (the planned patch is 40 56 40)"),
        (["-d", "504", "--patch", "4", "4", "4"], "too small to pool"),
    ],
)
def test_bad_input(plans_file, capsys, options, message):
    before = plans_file.read_bytes()
    assert cli.main(["small-config", *options]) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ") and error.count("\n") == 1
    assert plans_file.read_bytes() == before


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "is not valid JSON"), ("{}", 'no "configurations"'), ("[]", 'no "configurations"')]
    + [('{"configurations": {"2d": []}}', 'no "configurations"')]
    + [('{"configurations": {"2d": {"architecture": {}}}}', "has no 'patch_size'")],
)
def test_broken_plans_file(plans_file, capsys, content, message):
    plans_file.write_text(content)
    assert cli.main(["small-config", "-d", "504", "-c", "2d"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error
    assert str(plans_file) in error or "'2d'" in error


def test_old_plans_format(plans):
    del plans["configurations"]["2d"]["architecture"]
    with pytest.raises(ValueError, match="no 'architecture' entry"):
        small_configuration(plans, "2d")


def test_second_stage_of_a_cascade(plans):
    plans["configurations"]["3d_cascade_fullres"] = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}
    with pytest.raises(ValueError, match="'3d_cascade_fullres' is the second stage of a cascade .*'3d_lowres'"):
        small_configuration(plans, "3d_cascade_fullres")


@pytest.mark.parametrize("patch", [None, [16, 16, 16]])
@pytest.mark.parametrize(
    "architecture",
    [
        None,
        {},
        {"network_class_name": "their.Primus", "arch_kwargs": {"embed_dim": 8}},
        {"arch_kwargs": {"strides": 2}},
    ],
)
def test_a_network_that_nnunet_does_not_plan_is_refused(plans, architecture, patch):
    plans["configurations"]["3d_fullres"]["architecture"] = architecture
    with pytest.raises(ValueError, match="expected a U-Net with one value per stage in features_per_stage, strides"):
        small_configuration(plans, "3d_fullres", patch=patch)


def test_one_number_of_convolutions_for_all_stages_stays(plans):
    network = plans["configurations"]["3d_large"]["architecture"]["arch_kwargs"]
    network |= {"n_conv_per_stage": 2, "n_conv_per_stage_decoder": 1}
    small = small_configuration(plans, "3d_large")["architecture"]["arch_kwargs"]
    assert small["n_stages"] < 6 and (small["n_conv_per_stage"], small["n_conv_per_stage_decoder"]) == (2, 1)


def test_circular_inheritance(plans):
    plans["configurations"]["3d_fullres"]["inherits_from"] = "3d_lowres"
    with pytest.raises(ValueError, match="in a circle"):
        small_configuration(plans, "3d_lowres")


def test_shrink_patch_cuts_the_longest_edges_first():
    assert shrink_patch([20, 320, 256], 20 * 128 * 128) == [20, 128, 128]
    assert shrink_patch([40, 56, 40], 1e6) == [40, 56, 40]
    assert shrink_patch([128, 128, 128], 1) == [16, 16, 16]
