from __future__ import annotations

import errno
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from noise_tools import cli, corrupt
from noise_tools import manifest as manifests
from noise_tools.output import reserved
from noise_tools.raw_dataset import open_dataset
from noise_tools.recipe import parse_components
from tests.noise_tools.label_files import two_balls, write, write_dataset

USUAL = "--noise erosion dilation affine --case-fraction 0.6 --label-dice 0.7 --trusted 2 --seed 0".split()


def run(*words: object) -> int:
    return cli.main(["corrupt", *(str(word) for word in words)])


def read(path: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def content_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def dice(a: np.ndarray, b: np.ndarray) -> float:
    scores = [2 * ((a == v) & (b == v)).sum() / ((a == v).sum() + (b == v).sum()) for v in (1, 2)]
    return float(np.mean(scores))


# --- what is written --------------------------------------------------------------------------------------------------


def test_writes_a_data_set_nnunet_can_use(raw, capsys):
    assert run("-d", 3, "-o", 503, *USUAL) == 0
    folder = raw / "Dataset503_BallsNoisy"
    assert sorted(path.name for path in folder.iterdir()) == ["dataset.json", "labelsTr", "noise_manifest.json"]
    from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

    content = json.loads((folder / "dataset.json").read_text())
    found = get_filenames_of_train_images_and_targets(str(folder))
    assert len(found) == content["numTraining"] == 10
    for name, files in found.items():
        assert Path(files["label"]) == folder / "labelsTr" / f"{name}.nii.gz" and Path(files["label"]).is_file()
        assert files["images"] == [str(raw / "Dataset003_Balls" / "imagesTr" / f"{name}_0000.nii.gz")]
    assert content["name"] == "BallsNoisy" and content["labels"] == {"background": 0, "head": 1, "tail": 2}
    out = capsys.readouterr().out
    assert "10 training cases: 5 corrupted, 2 trusted, 3 clean but not trusted" in out
    assert "0.700" in out and "label Dice asked" in out


def test_paths_in_dataset_json_are_relative_inside_nnunet_raw_and_absolute_outside(raw, tmp_path, monkeypatch):
    run("-d", 3, "-o", 503, *USUAL)
    first = json.loads((raw / "Dataset503_BallsNoisy" / "dataset.json").read_text())["dataset"]["case_00"]
    assert first == {"images": ["../Dataset003_Balls/imagesTr/case_00_0000.nii.gz"], "label": "labelsTr/case_00.nii.gz"}
    # A data set of referenced images is a source like any other.
    assert run("-d", 503, "-o", 504, "--name", "Twice", *USUAL) == 0
    again = json.loads((raw / "Dataset504_Twice" / "dataset.json").read_text())["dataset"]["case_00"]
    assert again["images"] == first["images"]
    elsewhere = tmp_path / "elsewhere.nii.gz"
    shutil.copy(raw / "Dataset003_Balls" / "imagesTr" / "case_00_0000.nii.gz", elsewhere)
    path = raw / "Dataset503_BallsNoisy" / "dataset.json"
    content = json.loads(path.read_text())
    content["dataset"]["case_00"]["images"] = ["$SOMEWHERE/elsewhere.nii.gz"]
    path.write_text(json.dumps(content))
    monkeypatch.setenv("SOMEWHERE", str(tmp_path))
    assert run("-d", 503, "-o", 505, "--name", "Thrice", *USUAL) == 0
    outside = json.loads((raw / "Dataset505_Thrice" / "dataset.json").read_text())["dataset"]["case_00"]
    assert outside["images"] == [str(elsewhere)]


def test_an_unset_variable_in_a_path_is_named(raw, capsys, monkeypatch):
    from noise_tools.label_folders import open_label_folder

    monkeypatch.delenv("SOMEWHERE", raising=False)
    run("-d", 3, "-o", 503, *USUAL)
    path = raw / "Dataset503_BallsNoisy" / "dataset.json"
    content = json.loads(path.read_text())
    content["dataset"]["case_00"]["label"] = "${SOMEWHERE}/case_00.nii.gz"
    path.write_text(json.dumps(content))
    assert run("-d", 503, "-o", 504, "--name", "Twice", *USUAL) == 2
    says = "set SOMEWHERE, which is not set in the environment"
    assert says in capsys.readouterr().err
    with pytest.raises(ValueError, match=says):
        open_label_folder("503").read_label("case_00")


def test_a_split_of_the_source_is_said(raw, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "pre"))
    (tmp_path / "pre" / "Dataset003_Balls").mkdir(parents=True)
    assert run("-d", 3, "-o", 503, *USUAL) == 0
    assert "splits_final" not in capsys.readouterr().out
    (tmp_path / "pre" / "Dataset003_Balls" / "splits_final.json").write_text("[]")
    assert run("-d", 3, "-o", 504, "--name", "Twice", *USUAL) == 0
    assert "splits_final.json does not come along" in capsys.readouterr().out


def test_labels_are_as_wrong_as_asked_and_the_rest_keeps_its_bytes(raw):
    run("-d", 3, "-o", 503, *USUAL)
    manifest = manifests.read(raw / "Dataset503_BallsNoisy" / "noise_manifest.json")
    trusted = json.loads((raw / "Dataset503_BallsNoisy" / "dataset.json").read_text())["trusted_cases"]
    assert trusted == manifest["trusted_cases"] and len(trusted) == 2
    kinds = []
    for name, entry in manifest["cases"].items():
        clean = raw / "Dataset003_Balls" / "labelsTr" / f"{name}.nii.gz"
        noisy = raw / "Dataset503_BallsNoisy" / "labelsTr" / f"{name}.nii.gz"
        if entry["noise"] is None:
            assert clean.read_bytes() == noisy.read_bytes()
            continue
        kinds.append(entry["noise"])
        assert name not in trusted
        assert dice(read(clean), read(noisy)) == pytest.approx(entry["label_dice"]["achieved"])
        assert entry["label_dice"]["achieved"] == pytest.approx(0.7, abs=0.035)
        assert entry["label_dice"]["reached"] is True
        assert set(entry["regions"]) == {"head", "tail"}
        assert entry["regions"]["head"]["hd95_mm"] > 0
    assert sorted(kinds) == ["affine", "affine", "dilation", "erosion", "erosion"] or len(set(kinds)) == 3


def test_same_seed_same_bytes_whatever_the_number_of_processes(raw):
    for processes in (1, 2):
        run("-d", 3, "-o", 503, "--overwrite", "-np", processes, *USUAL)
        written = content_of(raw / "Dataset503_BallsNoisy")
        if processes == 1:
            first = written
    assert written == first
    run("-d", 3, "-o", 503, "--overwrite", *USUAL[:-1], 1)
    assert content_of(raw / "Dataset503_BallsNoisy") != first


def test_images_are_not_read_again_for_every_case(raw, monkeypatch):
    """nnU-Net reads one to choose a reader, which takes seconds where it is a CT."""
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

    read, images = [], SimpleITKIO.read_images

    def counted(self, files):
        read.extend(file for file in files if "imagesTr" in str(file))
        return images(self, files)

    monkeypatch.setattr(SimpleITKIO, "read_images", counted)
    assert run("-d", 3, "-o", 503, "--noise", "erosion", "--trusted", 2) == 0
    assert len(read) == 1


def test_a_larger_fraction_corrupts_the_same_cases_and_more(raw):
    dataset = open_dataset(3)
    components = parse_components(["erosion", "dilation", "affine"])
    plans = [
        corrupt.make_plan(dataset, corrupt.Request(components, fraction, seed=4, trusted=2))
        for fraction in (0.0, 0.01, 0.25, 0.5, 1.0)
    ]
    assert [len(plan.noisy) for plan in plans] == [0, 1, 2, 4, 8]
    for small, large in zip(plans, plans[1:], strict=False):
        assert small.noisy.items() <= large.noisy.items() and small.trusted == large.trusted


def test_trusted_cases_can_be_named(raw):
    run("-d", 3, "-o", 503, "--noise", "erosion", "--label-dice", 0.7, "--trusted-cases", "case_03", "case_01")
    manifest = manifests.read(raw / "Dataset503_BallsNoisy" / "noise_manifest.json")
    assert manifest["trusted_cases"] == ["case_01", "case_03"]
    assert [name for name, entry in manifest["cases"].items() if entry["noise"] is None] == ["case_01", "case_03"]


@pytest.mark.parametrize("asked", [["3"], ["case_02", "case_04", "case_09"]])
def test_held_out_test_cases(raw, asked):
    run("-d", 3, "-o", 503, "--test-cases", *asked, *USUAL)
    folder = raw / "Dataset503_BallsNoisy"
    content = json.loads((folder / "dataset.json").read_text())
    test = manifests.read(folder / "noise_manifest.json")["test_cases"]
    assert len(test) == 3 and content["numTraining"] == 7 and not set(test) & set(content["dataset"])
    if len(asked) == 3:
        assert test == asked
    for name in test:
        for part, file in (("labels", f"{name}.nii.gz"), ("images", f"{name}_0000.nii.gz")):
            source = raw / "Dataset003_Balls" / f"{part}Tr" / file
            assert (folder / f"{part}Ts" / file).read_bytes() == source.read_bytes()
        assert not (folder / "labelsTr" / f"{name}.nii.gz").exists()


def add_second_channel(folder: Path) -> Path:
    for label in (folder / "labelsTr").iterdir():
        shutil.copy(label, folder / "imagesTr" / label.name.replace(".", "_0001.", 1))
    return folder


@pytest.mark.parametrize(
    "taken", ["imagesTs/case_00_0000.nii.gz", "imagesTs/case_00_0001.nii.gz", "labelsTs/case_00.nii.gz"]
)
def test_a_held_out_case_never_replaces_a_test_case_of_the_source(raw, capsys, taken):
    source = add_second_channel(raw / "Dataset003_Balls")
    (source / taken).parent.mkdir()
    (source / taken).write_bytes(b"precious")
    before = content_of(source)
    assert run("-d", 3, "-o", 503, *USUAL, "--test-cases", "case_00") == 2
    assert "has a test case case_00 already" in capsys.readouterr().err
    assert content_of(source) == before and not (raw / "Dataset503_BallsNoisy").exists()


@pytest.mark.parametrize("links", [True, False])
def test_images_of_test_cases_are_links_where_there_are_links(raw, monkeypatch, links):
    def refuse(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    if not links:
        monkeypatch.setattr("os.link", refuse)
    assert run("-d", 3, "-o", 503, *USUAL, "--test-cases", "case_00") == 0
    ours = raw / "Dataset503_BallsNoisy" / "imagesTs" / "case_00_0000.nii.gz"
    theirs = raw / "Dataset003_Balls" / "imagesTr" / "case_00_0000.nii.gz"
    assert ours.samefile(theirs) == links and ours.read_bytes() == theirs.read_bytes()


def test_a_missing_channel_is_said_before_anything_is_written(raw, capsys):
    source = raw / "Dataset003_Balls"
    images = ["imagesTr/case_00_0000.nii.gz", "imagesTr/case_00_0001.nii.gz"]
    content = json.loads((source / "dataset.json").read_text())
    content["dataset"] = {"case_00": {"images": images, "label": "labelsTr/case_00.nii.gz"}} | {
        name: {"images": [f"imagesTr/{name}_0000.nii.gz"], "label": f"labelsTr/{name}.nii.gz"}
        for name in ("case_01", "case_02")
    }
    (source / "dataset.json").write_text(json.dumps(content))
    assert run("-d", 3, "-o", 503, "--noise", "erosion", "--trusted", 1) == 2
    assert "Case case_00: " in (error := capsys.readouterr().err)
    assert "case_00_0001.nii.gz does not exist; restore it or drop the case" in error
    assert "Corrupting" not in error and len(list(raw.iterdir())) == 1


@pytest.mark.parametrize("channel", ["0000", "0001"])
@pytest.mark.parametrize("command", [["corrupt", *USUAL], ["corrupt", *USUAL, "--test-cases", "case_03"], ["replay"]])
def test_a_case_without_a_channel_that_others_have_is_refused(raw, capsys, channel, command):
    """Held out, its second channel would be renamed to the first."""
    source = add_second_channel(raw / "Dataset003_Balls")
    assert run("-d", 3, "-o", 503, *USUAL) == 0
    if command == ["replay"]:
        command = ["replay", "--manifest", str(raw / "Dataset503_BallsNoisy" / "noise_manifest.json")]
    (source / "imagesTr" / f"case_03_{channel}.nii.gz").unlink()
    capsys.readouterr()
    assert cli.main([command[0], "-d", "3", "-o", "504", "--name", "Other", *command[1:]]) == 2
    says = f"Case case_03 lacks imagesTr/case_03_{channel}.nii.gz, a channel that case case_09 has; give all cases"
    assert says in (error := capsys.readouterr().err) and "Corrupting" not in error
    assert not list(raw.glob("*504*"))


def test_a_case_listed_with_fewer_images_than_others_is_refused(raw, capsys):
    """As a copy is that an older version made of a data set with a missing channel."""
    add_second_channel(raw / "Dataset003_Balls")
    run("-d", 3, "-o", 503, *USUAL)
    path = raw / "Dataset503_BallsNoisy" / "dataset.json"
    content = json.loads(path.read_text())
    del content["dataset"]["case_03"]["images"][0]
    path.write_text(json.dumps(content))
    assert run("-d", 503, "-o", 504, *USUAL) == 2
    assert "Case case_03 lacks image 2 under 'dataset' in dataset.json, a channel that case" in capsys.readouterr().err
    assert not list(raw.glob("*504*"))


def test_labels_of_test_cases_can_be_changed_without_changing_the_source(raw):
    label = raw / "Dataset003_Balls" / "labelsTs" / "there.nii.gz"
    label.parent.mkdir(exist_ok=True)
    label.write_bytes(b"clean")
    assert run("-d", 3, "-o", 503, *USUAL) == 0
    (raw / "Dataset503_BallsNoisy" / "labelsTs" / "there.nii.gz").write_bytes(b"changed")
    assert label.read_bytes() == b"clean"


def test_a_numeric_name_is_a_case_and_no_count():
    assert corrupt._count_or_names(["003"], ["001", "002", "003"]) == ("003",)
    assert corrupt._count_or_names(["3"], ["001", "002", "003"]) == 3


def test_test_cases_of_the_source_come_along(raw):
    source = raw / "Dataset003_Balls"
    write(source / "imagesTs" / "test_0000.nii.gz", two_balls())
    write(source / "labelsTs" / "test.nii.gz", two_balls())
    run("-d", 3, "-o", 503, *USUAL)
    for name in ("imagesTs/test_0000.nii.gz", "labelsTs/test.nii.gz"):
        assert (raw / "Dataset503_BallsNoisy" / name).read_bytes() == (source / name).read_bytes()


@pytest.mark.parametrize("target", [["--surface-distance", 2.5], ["--label-change", 0.4]])
def test_other_targets(raw, target, capsys):
    run("-d", 3, "-o", 503, "--noise", "dilation", "--trusted", 2, *target)
    manifest = manifests.read(raw / "Dataset503_BallsNoisy" / "noise_manifest.json")
    measure = target[0][2:].replace("-", "_")
    values = [entry[measure] for entry in manifest["cases"].values() if entry["noise"]]
    assert len(values) == 8 and all(value["asked"] == target[1] for value in values)
    assert np.mean([value["achieved"] for value in values]) == pytest.approx(target[1], rel=0.2)
    assert f"{target[1]:.3f}" in capsys.readouterr().out


def test_an_unreachable_target_is_reported_not_hidden(raw, capsys):
    run(
        "-d", 3, "-o", 503, "--noise", "dilation", "--param", "dilation.radius=0:1", "--label-dice", 0.2, "--trusted", 2
    )
    manifest = manifests.read(raw / "Dataset503_BallsNoisy" / "noise_manifest.json")
    noisy = [entry for entry in manifest["cases"].values() if entry["noise"]]
    assert all(entry["label_dice"]["reached"] is False and entry["severity"] == 1.0 for entry in noisy)
    assert "8 corrupted labels could not be brought to the asked value" in capsys.readouterr().out


def test_an_unchanged_label_is_said_and_has_not_reached_its_target(raw, capsys):
    run("-d", 3, "-o", 503, "--noise", "omission", "--param", "omission.rate=0", "--label-dice", 0.96, "--trusted", 2)
    out = capsys.readouterr().out
    assert "0 of 8 corrupted labels changed; in the others" in out and "8 corrupted labels could not be brought" in out
    manifest = manifests.read(raw / "Dataset503_BallsNoisy" / "noise_manifest.json")
    assert [entry["changed"] for entry in manifest["cases"].values() if entry["noise"]] == [False] * 8


def test_changed_says_whether_any_voxel_differs(raw, capsys):
    """Whether one of two structures is missed is luck at this rate."""
    words = ["--param", "omission.rate=0.3", "omission.keep_one=no", "--allow-empty"]
    run("-d", 3, "-o", 503, "--noise", "omission", *words, "--trusted", 2)
    manifest = manifests.read(raw / "Dataset503_BallsNoisy" / "noise_manifest.json")
    entries = {name: entry for name, entry in manifest["cases"].items() if entry["noise"]}
    for name, entry in entries.items():
        clean, noisy = (
            read(raw / d / "labelsTr" / f"{name}.nii.gz") for d in ("Dataset003_Balls", "Dataset503_BallsNoisy")
        )
        assert entry["changed"] == bool((clean != noisy).any())
    changed = sum(entry["changed"] for entry in entries.values())
    assert 0 < changed < 8 and f"{changed} of 8 corrupted labels changed; " in capsys.readouterr().out


@pytest.mark.parametrize("asked", [0.96, 0.999])
def test_a_changed_label_that_can_be_had_is_taken(raw, capsys, asked):
    """One of two balls may be missed, which is far from the Dice asked for, but a label as it was is no answer."""
    run("-d", 3, "-o", 503, "--noise", "omission", "--label-dice", asked, "--trusted", 2)
    manifest = manifests.read(raw / "Dataset503_BallsNoisy" / "noise_manifest.json")
    noisy = [entry for entry in manifest["cases"].values() if entry["noise"]]
    assert all(entry["changed"] and entry["label_dice"]["achieved"] == 0.5 for entry in noisy)
    out = capsys.readouterr().out
    assert "corrupted labels changed" not in out and "8 corrupted labels could not be brought" in out


def test_a_label_that_could_only_vanish_stays_and_is_said(raw, capsys):
    dot = two_balls() * 0
    dot[5, 5, 5], dot[5, 15, 5] = 1, 2
    write_dataset(raw / "Dataset007_Dots", {name: dot for name in "ab"})
    assert run("-d", 7, "-o", 507, "--noise", "erosion", "--label-dice", 0.7, "--trusted", 1) == 0
    assert "0 of 1 corrupted labels changed" in capsys.readouterr().out


@pytest.mark.parametrize("target", [["--severity", 1], ["--label-dice", 0]])
def test_one_label_that_would_vanish_does_not_end_the_run(raw, capsys, target):
    dot = two_balls() * 0
    dot[5, 5, 5] = 1
    write_dataset(raw / "Dataset007_Some", {"a": two_balls(), "b": two_balls(), "dot": dot})
    words = ["--noise", "erosion", "--param", "erosion.radius=2:2", "--trusted-cases", "a", *target]
    assert run("-d", 7, "-o", 507, *words) == 0
    out = capsys.readouterr().out
    assert "1 corrupted labels (dot) were left as they were, since the noise would have removed their whole" in out
    folder = raw / "Dataset507_SomeNoisy"
    entry = manifests.read(folder / "noise_manifest.json")["cases"]["dot"]
    assert entry["changed"] is False and entry["steps"] == [] and "left as it was" in entry["note"]
    assert entry["label_dice"]["achieved"] == 1 and entry["label_dice"]["reached"] in (None, False)
    assert (folder / "labelsTr" / "dot.nii.gz").read_bytes() == (
        raw / "Dataset007_Some" / "labelsTr" / "dot.nii.gz"
    ).read_bytes()
    assert not np.array_equal(read(folder / "labelsTr" / "b.nii.gz"), two_balls())


def test_ranges_of_the_user_without_target(raw):
    run("-d", 3, "-o", 503, "--noise", "erosion", "--param", "erosion.radius=0.5:1.5", "--trusted", 2)
    manifest = manifests.read(raw / "Dataset503_BallsNoisy" / "noise_manifest.json")
    radii = [entry["steps"][0]["params"]["radius"] for entry in manifest["cases"].values() if entry["noise"]]
    assert all(0.5 <= radius <= 1.5 for radius in radii) and len(set(radii)) == 8


def test_ranges_of_alternatives_are_used_from_end_to_end(raw, tmp_path):
    """Without them severity would be drawn from 0.1 to 0.3."""
    recipe = tmp_path / "recipe.yaml"
    grow = "{type: dilation, settings: {radius: '0:4'}}"
    recipe.write_text(f"components: [{{steps: [{{type: mixture, alternatives: [{{steps: [{grow}]}}]}}]}}]")
    run("-d", 3, "-o", 503, "--recipe", recipe, "--trusted", 2)
    manifest = manifests.read(raw / "Dataset503_BallsNoisy" / "noise_manifest.json")
    strengths = [entry["severity"] for entry in manifest["cases"].values() if entry["noise"]]
    assert min(strengths) < 0.1 or max(strengths) > 0.5
    assert len(set(strengths)) == 8 and all(0 <= strength <= 1 for strength in strengths)


def test_composition_and_recipe(raw, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("label_dice: 0.8\ncomponents:\n  - steps: [elastic, {type: omission, settings: {rate: 0}}]\n")
    assert run("-d", 3, "-o", 503, "--recipe", recipe, "--trusted", 2) == 0
    manifest = manifests.read(raw / "Dataset503_BallsNoisy" / "noise_manifest.json")
    noisy = [entry for entry in manifest["cases"].values() if entry["noise"]]
    assert {entry["noise"] for entry in noisy} == {"elastic+omission"}
    assert [step["type"] for step in noisy[0]["steps"]] == ["elastic", "omission"]
    assert manifest["settings"]["label_dice"] == 0.8
    run("-d", 3, "-o", 503, "--recipe", recipe, "--trusted", 2, "--label-dice", 0.6, "--overwrite")
    assert manifests.read(raw / "Dataset503_BallsNoisy" / "noise_manifest.json")["settings"]["label_dice"] == 0.6


def test_preset_prints_its_source(raw, capsys):
    assert run("-d", 3, "-o", 503, "--preset", "l2b-20", "--trusted", 2) == 0
    out = capsys.readouterr().out
    assert "Source: L2B" in out and "How it maps:" in out
    assert manifests.read(raw / "Dataset503_BallsNoisy" / "noise_manifest.json")["settings"]["label_dice"] == 0.8


def test_regions_and_ignore_label(raw):
    label = two_balls((14, 30, 24), radius=6)
    label[0:3] = np.where(label[0:3] > 0, label[0:3], 3)
    declared = {"background": 0, "whole": [1, 2], "core": [2], "ignore": 3}
    write_dataset(raw / "Dataset006_Regions", {name: label for name in "abcd"}, declared=declared)
    assert run("-d", 6, "-o", 506, "--noise", "dilation", "--label-dice", 0.7, "--trusted", 1) == 0
    manifest = manifests.read(raw / "Dataset506_RegionsNoisy" / "noise_manifest.json")
    for name, entry in manifest["cases"].items():
        noisy = read(raw / "Dataset506_RegionsNoisy" / "labelsTr" / f"{name}.nii.gz")
        assert np.array_equal(noisy == 3, label == 3)
        if entry["noise"]:
            assert set(entry["regions"]) == {"whole", "core"}
            scores = [
                2 * (np.isin(label, v) & np.isin(noisy, v)).sum() / (np.isin(label, v).sum() + np.isin(noisy, v).sum())
                for v in ((1, 2), (2,))
            ]
            assert entry["label_dice"]["achieved"] == pytest.approx(np.mean(scores))


@pytest.mark.parametrize(("words", "of"), [([], "foreground"), (["omission.of=component"], "component")])
def test_omission_of_nested_regions_takes_whole_structures(raw, words, of):
    declared = {"background": 0, "whole": [1, 2], "core": [2]}
    write_dataset(raw / "Dataset006_Regions", {name: two_balls() for name in "ab"}, declared=declared)
    words = ["--param", "omission.keep_one=no", *words]
    assert run("-d", 6, "-o", 506, "--noise", "omission", *words, "--severity", 1, "--trusted", 1, "--allow-empty") == 0
    manifest = manifests.read(raw / "Dataset506_RegionsNoisy" / "noise_manifest.json")
    assert [entry["steps"][0]["params"]["of"] for entry in manifest["cases"].values() if entry["noise"]] == [of]


def test_allow_empty(raw):
    labels = {name: two_balls() for name in "abc"} | {"empty": two_balls() * 0}
    write_dataset(raw / "Dataset007_Some", labels)
    words = ["-d", 7, "-o", 507, "--noise", "erosion", "--trusted-cases", "a"]
    assert run(*words, "--label-dice", 0.6, "--allow-empty") == 0
    manifest = manifests.read(raw / "Dataset507_SomeNoisy" / "noise_manifest.json")
    assert manifest["cases"]["empty"]["noise"] is None and "no foreground" in manifest["cases"]["empty"]["note"]
    assert run(*words, "--severity", 1, "--allow-empty", "--overwrite") == 0
    assert not read(raw / "Dataset507_SomeNoisy" / "labelsTr" / "b.nii.gz").any()


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--trusted 0", "--trusted is 0, but training needs a case known to be clean; give 1 or more."),
        ("--trusted 10", "All 10 training cases are to be trusted, which leaves none to corrupt; lower --trusted."),
        ("--trusted 11", "--trusted is 11, but Dataset003_Balls has 10 cases to choose from; give fewer."),
        (
            "--trusted-cases nobody",
            "--trusted names nobody, which Dataset003_Balls does not have; its cases are like case_",
        ),
        ("--trusted-cases case_01 --test-cases case_01", "--trusted names case_01, a test case;"),
        ("--trusted -1", "--trusted is -1; give a number of cases, 0 or more."),
        ("--test-cases -1", "--test-cases is -1; give a number of cases, 0 or more."),
        ("--test-cases 10", "--test-cases is 10, but Dataset003_Balls has 10 cases to choose from; give fewer."),
        ("--test-cases nobody", "--test-cases names nobody, which Dataset003_Balls does not have"),
        ("--case-fraction 1.2", "--case-fraction is 1.2; give a fraction in [0, 1]."),
        ("--case-fraction -0.1", "--case-fraction is -0.1; give a fraction in [0, 1]."),
        ("--case-fraction nan", "--case-fraction is nan; give a fraction in [0, 1]."),
        ("--label-dice 60", "--label-dice is 60; give a fraction in [0, 1]."),
        ("--surface-distance -2", "--surface-distance is -2; give a number above 0."),
        ("--label-dice 0.5 --severity 0.5", "--label-dice and --severity exclude each other; give one target."),
        ("--severity 0.5:0.2", "--severity is 0.5:0.2; expected LOW <= HIGH within [0, 1]."),
        ("--seed -1", "--seed is -1; give a whole number from 0."),
        ("-np 0", "-np is 0; give at least 1 process."),
        ("--noise erosoin", "Unknown noise type 'erosoin'; choose from erosion, dilation, affine"),
        ("--param dilation.radius=2", "--param names 'dilation', which is not among the noise asked for (erosion)."),
        ("-d 77", "No data set with id 77 in "),
        ("-d Dataset077_No", "No data set Dataset077_No in "),
        ("-d balls", "Data set 'balls' is neither an id nor a name; give e.g. 4 or Dataset004_Hippocampus."),
        ("-o 3", "-o 3 is the source Dataset003_Balls itself; choose another id (never in place)."),
        ("-o 1000", "-o is 1000; nnU-Net data set ids go from 1 to 999."),
        ("--name a/b", "--name is 'a/b'; use letters, digits, '_' and '-' only."),
        (
            "--severity 1",
            "erosion would remove the whole foreground of every label chosen for noise (8); ask for less noise",
        ),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(raw, capsys, words, says):
    before = sorted(path.name for path in raw.iterdir())
    trusted = () if "--trusted-cases" in words else ("--trusted", 2)
    assert run("-d", 3, "-o", 503, "--noise", "erosion", *trusted, *words.split()) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and says in error
    assert sorted(path.name for path in raw.iterdir()) == before


def test_missing_argument_is_named(raw, capsys):
    with pytest.raises(SystemExit) as stop:
        run("-o", 503, "--noise", "erosion")
    assert stop.value.code == 2 and "-d" in capsys.readouterr().err


def test_nnunet_raw_not_set(monkeypatch, capsys):
    monkeypatch.delenv("nnUNet_raw", raising=False)
    assert run("-d", 3, "-o", 503, "--noise", "erosion") == 2
    assert "nnUNet_raw is not set" in capsys.readouterr().err


def spoil(raw: Path, name: str, change) -> None:
    path = raw / "Dataset003_Balls" / "labelsTr" / f"{name}.nii.gz"
    write(path, change(read(path)))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda label: label + 5 * (label == 2),
            "case_04.nii.gz has label values [7], but dataset.json declares [0, 1, 2]",
        ),
        (lambda label: label[:-2], "Case case_04: the label has shape (12, 30, 24) but the image (14, 30, 24)"),
        (lambda label: label * 0, "Case case_04: case_04.nii.gz has no foreground to corrupt; pass --allow-empty"),
        (lambda label: label * np.float32(0.5), "holds values that are no whole numbers; expected a label map."),
    ],
)
@pytest.mark.parametrize("processes", [1, 2])
def test_bad_labels(raw, capsys, change, says, processes):
    spoil(raw, "case_04", change)
    before = content_of(raw)
    assert run("-d", 3, "-o", 503, "--noise", "erosion", "--trusted", 2, "--seed", 1, "-np", processes) == 2
    assert says in capsys.readouterr().err
    assert content_of(raw) == before


def test_all_bad_labels_are_listed_before_any_is_corrupted(raw, capsys):
    for i in range(3):
        spoil(raw, f"case_{i:02d}", lambda label: label + 5 * (label == 2))
    assert run("-d", 3, "-o", 503, "--noise", "erosion", "--trusted", 2) == 2
    error = capsys.readouterr().err
    assert "error: 3 of 10 labels cannot be used; mend them first:\n  Case case_00: case_00.nii.gz has" in error
    assert error.count("has label values [7]") == 3 and "Corrupting" not in error


def test_of_many_bad_labels_ten_are_listed(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("nnUNet_raw", str(tmp_path))
    write_dataset(tmp_path / "Dataset007_Bad", {f"c{i:02d}": two_balls() * 9 for i in range(12)})
    assert run("-d", 7, "-o", 507, "--noise", "erosion") == 2
    error = capsys.readouterr().err
    assert error.count("Case c") == 10 and "... and 2 more." in error


def test_truncated_label_file(raw, capsys):
    path = raw / "Dataset003_Balls" / "labelsTr" / "case_04.nii.gz"
    path.write_bytes(path.read_bytes()[:100])
    assert run("-d", 3, "-o", 503, "--noise", "erosion", "--trusted", 2) == 2
    assert "check that it is a whole image file" in capsys.readouterr().err


def test_swap_on_one_label_is_refused_before_any_work(raw, capsys):
    write_dataset(
        raw / "Dataset008_One", {n: (two_balls() > 0) * np.uint8(1) for n in "abc"}, declared={"background": 0, "a": 1}
    )
    assert run("-d", 8, "-o", 508, "--noise", "swap", "--trusted", 1) == 2
    assert "needs two foreground labels or more, but there is 1" in capsys.readouterr().err


def test_existing_data_set_stays_without_overwrite(raw, capsys):
    run("-d", 3, "-o", 503, *USUAL)
    before = content_of(raw)
    assert run("-d", 3, "-o", 503, "--noise", "erosion", "--trusted", 2) == 2
    assert (
        "Dataset503_BallsNoisy exists already; choose another id with -o, or pass --overwrite"
        in capsys.readouterr().err
    )
    assert run("-d", 3, "-o", 503, "--name", "Other", "--overwrite", "--noise", "erosion", "--trusted", 2) == 2
    assert "Id 503 belongs to Dataset503_BallsNoisy already" in capsys.readouterr().err
    assert content_of(raw) == before


def test_a_data_set_that_holds_the_images_of_the_source_is_not_overwritten(raw, capsys):
    assert run("-d", 3, "-o", 503, *USUAL) == 0
    again = ("-o", 3, "--name", "Balls", "--overwrite")
    assert run("-d", 503, *again, *USUAL) == 2
    assert "Dataset003_Balls was not made by noise_tools" in capsys.readouterr().err
    (raw / "Dataset003_Balls" / "noise_manifest.json").write_text("{}")  # as if it was
    before = content_of(raw / "Dataset003_Balls")
    assert run("-d", 503, *again, *USUAL) == 2
    assert "would remove with the old Dataset003_Balls; choose another id with -o." in capsys.readouterr().err
    manifest = raw / "Dataset503_BallsNoisy" / "noise_manifest.json"
    assert cli.main(["replay", "-d", "503", "--manifest", str(manifest), *map(str, again)]) == 2
    assert "choose another id" in capsys.readouterr().err
    assert content_of(raw / "Dataset003_Balls") == before


@pytest.mark.parametrize("link", [False, True])
@pytest.mark.parametrize("command", ["corrupt", "replay"])
def test_a_data_set_whose_files_another_one_lists_is_not_overwritten(raw, tmp_path, capsys, command, link):
    assert run("-d", 3, "-o", 503, *USUAL) == 0
    user = raw / "Dataset504_User"
    user.mkdir()
    named = "../Dataset503_BallsNoisy"
    if link:
        (raw / "other_name").symlink_to(raw / "Dataset503_BallsNoisy", target_is_directory=True)
        named = "$ROOT/other_name"
    content = json.loads((raw / "Dataset503_BallsNoisy" / "dataset.json").read_text())
    for name, entry in content["dataset"].items():
        entry["label"] = f"{named}/labelsTr/{name}.nii.gz"
    (user / "dataset.json").write_text(json.dumps(content))
    before = content_of(raw)
    words = USUAL
    if command == "replay":
        words = ["--manifest", str(shutil.copy(raw / "Dataset503_BallsNoisy" / "noise_manifest.json", tmp_path))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROOT", str(raw))
        assert cli.main([command, "-d", "3", "-o", "503", "--overwrite", *words]) == 2
    assert "Files of Dataset503_BallsNoisy are used by Dataset504_User, to which" in capsys.readouterr().err
    assert content_of(raw) == before


def test_id_with_another_name_among_the_preprocessed(raw, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "pre"))
    (tmp_path / "pre" / "Dataset503_Old").mkdir(parents=True)
    assert run("-d", 3, "-o", 503, *USUAL) == 2
    assert "Id 503 belongs to Dataset503_Old in nnUNet_preprocessed" in capsys.readouterr().err
    (tmp_path / "pre" / "Dataset503_Old").rename(tmp_path / "pre" / "Dataset503_BallsNoisy")
    assert run("-d", 3, "-o", 503, *USUAL) == 0
    assert "run nnUNetv2_plan_and_preprocess again" in capsys.readouterr().out


@pytest.mark.parametrize("existing", [False, True])
@pytest.mark.parametrize(
    ("failure", "status", "says"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device"),
            2,
            "Could not write Dataset503_BallsNoisy (No space left on device)",
        ),
        (RuntimeError("sitk::ERROR: cannot write"), 2, "(sitk::ERROR: cannot write); nothing was kept"),
        (KeyboardInterrupt(), 130, "interrupted; nothing was kept"),
    ],
)
def test_a_failure_half_way_leaves_everything_as_it_was(raw, capsys, monkeypatch, failure, status, says, existing):
    if existing:
        run("-d", 3, "-o", 503, "--noise", "elastic", "--label-dice", 0.8, "--trusted", 3)
    before = content_of(raw)
    calls = []

    def fail_late(*args) -> None:
        calls.append(args)
        if len(calls) == 3:
            raise failure

    monkeypatch.setattr(
        corrupt, "write_label_like", lambda *args, write=corrupt.write_label_like: write(*args) or fail_late()
    )
    assert run("-d", 3, "-o", 503, "--overwrite", *USUAL) == status
    assert says in capsys.readouterr().err
    assert len(calls) == 3 and content_of(raw) == before
    assert not list(raw.glob(".noise_tools*"))


@pytest.mark.parametrize("command", ["corrupt -d 3 --noise erosion", "phantom -n 1 --test 0"])
def test_an_id_that_another_run_is_writing_is_refused(raw, capsys, command):
    with reserved(raw, 503):
        before = content_of(raw)
        assert cli.main(f"{command} -o 503 --overwrite".split()) == 2
        assert "Data set 503 is being written by another run" in capsys.readouterr().err
        assert content_of(raw) == before
    assert cli.main(f"{command} -o 503".split()) == 0


def test_of_two_runs_at_the_same_time_one_wins_whole(raw):
    """Different names would both have the id, and different seeds show whose labels they are."""
    runs = [
        subprocess.Popen(
            [sys.executable, "-m", "noise_tools.cli", "corrupt", "-d", "3", "-o", "503", "--noise", "elastic", *own],
            stderr=subprocess.PIPE,
            text=True,
        )
        for own in (["--seed", "0", "--name", "First"], ["--seed", "1", "--name", "Second"])
    ]
    errors = [one.communicate(timeout=120)[1] for one in runs]
    assert sorted(one.returncode for one in runs) == [0, 2]
    winner, loser = sorted((0, 1), key=lambda i: runs[i].returncode)
    assert errors[loser].startswith("error: ") and len(errors[loser].strip().splitlines()) == 1
    names = ("Dataset503_First", "Dataset503_Second")
    assert sorted(path.name for path in raw.iterdir()) == ["Dataset003_Balls", names[winner]]
    manifest = manifests.read(raw / names[winner] / "noise_manifest.json")
    assert manifest["settings"]["seed"] == winner
    for name, entry in manifest["cases"].items():
        assert manifests.sha256(raw / names[winner] / "labelsTr" / f"{name}.nii.gz") == entry["sha256"]


def test_an_old_list_of_trusted_cases_is_said(raw, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "preprocessed"))
    prepared = tmp_path / "preprocessed" / "Dataset503_BallsNoisy"
    prepared.mkdir(parents=True)
    assert run("-d", 3, "-o", 503, *USUAL) == 0
    assert "WARNING" not in capsys.readouterr().out
    (prepared / "trusted_cases.json").write_text("[]")
    assert run("-d", 3, "-o", 503, "--overwrite", *USUAL) == 0
    assert "trusted_cases.json, made for the old one, wins" in capsys.readouterr().out


def test_files_of_another_ending_than_the_data_set(raw, capsys):
    """dataset.json may list any files; what is written under nnU-Net's name must be readable under it."""
    source = raw / "Dataset003_Balls"
    cases = sorted(path.name.removesuffix(".nii.gz") for path in (source / "labelsTr").iterdir())
    for case in cases:
        sitk.WriteImage(sitk.ReadImage(str(source / "labelsTr" / f"{case}.nii.gz")), str(source / f"{case}.mha"))
    content = json.loads((source / "dataset.json").read_text())
    content["dataset"] = {c: {"images": [f"imagesTr/{c}_0000.nii.gz"], "label": f"{c}.mha"} for c in cases}
    (source / "dataset.json").write_text(json.dumps(content))
    assert run("-d", 3, "-o", 503, *USUAL) == 0
    for case in manifests.read(raw / "Dataset503_BallsNoisy" / "noise_manifest.json")["trusted_cases"]:
        label = raw / "Dataset503_BallsNoisy" / "labelsTr" / f"{case}.nii.gz"
        assert np.array_equal(read(label), read(source / f"{case}.mha"))
    assert run("-d", 3, "-o", 504, *USUAL, "--test-cases", 2) == 2
    assert "does not end in .nii.gz" in capsys.readouterr().err
    assert not (raw / "Dataset504_BallsNoisy").exists()


def test_overwrite_replaces_all(raw):
    run("-d", 3, "-o", 503, "--test-cases", 2, *USUAL)
    assert run("-d", 3, "-o", 503, "--overwrite", *USUAL) == 0
    assert sorted(path.name for path in (raw / "Dataset503_BallsNoisy").iterdir()) == [
        "dataset.json",
        "labelsTr",
        "noise_manifest.json",
    ]
    assert not list(raw.glob(".noise_tools*"))
