from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from noise_tools import cli
from noise_tools.errors import NoiseToolsError
from noise_tools.raw_dataset import open_dataset, read_label, read_segmentation, write_label_like
from tests.noise_tools.label_files import two_balls, write, write_dataset, write_sheared

ANGLE = np.deg2rad(20)
DIRECTION = (np.cos(ANGLE), -np.sin(ANGLE), 0.0, np.sin(ANGLE), np.cos(ANGLE), 0.0, 0.0, 0.0, 1.0)


# --- finding and listing ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [3, "3", "003", "Dataset003_Balls"])
def test_id_or_name(raw, name):
    dataset = open_dataset(name)
    assert dataset.name == "Dataset003_Balls" and dataset.short_name == "Balls" and len(dataset.cases) == 10


def test_cases_are_those_of_nnunet(raw):
    from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

    folder = raw / "Dataset004_Channels"
    write_dataset(folder, {"a": two_balls(), "a_b": two_balls(), "a_0001": two_balls()})
    write(folder / "imagesTr" / "a_0001.nii.gz", two_balls())  # second channel of 'a'
    (folder / "imagesTr" / "notes.txt").write_text("no image")
    ours = {
        name: {"images": [str(p) for p in case.images], "label": str(case.label)}
        for name, case in open_dataset(4).cases.items()
    }
    assert ours == {str(k): v for k, v in get_filenames_of_train_images_and_targets(str(folder)).items()}
    assert len(ours["a"]["images"]) == 2


def test_two_data_sets_of_one_id(raw):
    write_dataset(raw / "Dataset003_Again", {"a": two_balls()})
    with pytest.raises(NoiseToolsError, match="Id 3 has 2 data sets .*Dataset003_Again, Dataset003_Balls.*; keep one"):
        open_dataset(3)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda f: (f / "dataset.json").unlink(), "has no dataset.json"),
        (lambda f: (f / "dataset.json").write_text("{"), "is not valid JSON"),
        (lambda f: (f / "dataset.json").write_text('{"labels": {}}'), "has no key 'file_ending'"),
        (
            lambda f: (f / "labelsTr" / "case_02.nii.gz").unlink(),
            "1 of 10 cases in .* have no file in labelsTr .first: case_02",
        ),
        (lambda f: (f / "labelsTr").rename(f / "labels"), "has no folder labelsTr"),
        (lambda f: [p.unlink() for p in (f / "imagesTr").iterdir()], "has no training cases: imagesTr is empty"),
        (lambda f: change_json(f, labels={"background": 0}), "declares no foreground label"),
    ],
)
def test_data_sets_that_are_none(raw, spoil, says):
    spoil(raw / "Dataset003_Balls")
    with pytest.raises(NoiseToolsError, match=says):
        open_dataset(3)


@pytest.mark.parametrize(
    ("image", "ending", "says"),
    [
        (
            "case_00_0000.nii",
            ".nii.gz",
            "case_00_0000.nii, expected images named CASE_0000.nii.gz, by its file_ending in dataset.json; correct "
            "file_ending, or convert the files.",
        ),
        (
            "case_00_0000.NII.GZ",
            ".nii.gz",
            "case_00_0000.NII.GZ, expected images named CASE_0000.nii.gz, by .*; rename the files or correct file_end",
        ),
        ("case_00_0000.nii.gz", ".NII.GZ", "case_00_0000.nii.gz, .* CASE_0000.NII.GZ, by .* or correct file_ending"),
        (
            "case_00.nii.gz",
            ".nii.gz",
            "case_00.nii.gz, expected images named CASE_0000.nii.gz, by .*; rename the files, with the number of the "
            "channel as four digits before the ending.",
        ),
        (None, ".nii.gz", "ABOUT.txt, expected images named CASE_0000.nii.gz, by"),
    ],
)
def test_names_that_nnunet_does_not_take_are_said(raw, image, ending, says):
    folder = raw / "Dataset003_Balls"
    for path in (folder / "imagesTr").iterdir():
        path.unlink()
    for name in (".hidden", "ABOUT.txt", *([image] if image else [])):
        (folder / "imagesTr" / name).write_bytes(b"")
    change_json(folder, file_ending=ending)
    with pytest.raises(NoiseToolsError, match=f"Dataset003_Balls has no training cases: imagesTr holds {says}"):
        open_dataset(3)


def test_a_data_set_that_lists_no_case(raw):
    change_json(raw / "Dataset003_Balls", dataset={})
    with pytest.raises(NoiseToolsError, match="dataset.json lists no cases under 'dataset'; add them or remove that"):
        open_dataset(3)


def change_json(folder: Path, **entries) -> None:
    path = folder / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def test_missing_image(raw):
    dataset = open_dataset(3)
    (raw / "Dataset003_Balls" / "imagesTr" / "case_01_0000.nii.gz").unlink()
    with pytest.raises(NoiseToolsError, match="case_01_0000.nii.gz does not exist"):
        read_label(dataset, dataset.cases["case_01"])


def test_an_image_nobody_can_read(raw):
    (raw / "Dataset003_Balls" / "imagesTr" / "case_00_0000.nii.gz").write_bytes(b"no image")
    with pytest.raises(NoiseToolsError, match="nnU-Net has no reader for"):
        _ = open_dataset(3).reader_writer


# --- file formats -----------------------------------------------------------------------------------------------------


def save_volume(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix in (".tif", ".tiff"):
        import tifffile

        tifffile.imwrite(path, array)
        name = path.name.removesuffix(path.suffix)
        aux = path.with_name((name[:-5] if path.parent.name == "imagesTr" else name) + ".json")
        aux.write_text(json.dumps({"spacing": [2.5, 1.0, 0.5]}))
        return
    if path.name.endswith(".nii"):
        import nibabel

        image = nibabel.Nifti1Image(array.transpose(), np.diag([-0.5, 1.0, 2.5, 1.0]) + 0.0)
        image.header["descrip"] = b"by hand"
        nibabel.save(image, path)
        return
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((0.5, 1.0, 2.5))
    image.SetOrigin((10.0, -20.0, 30.0))
    image.SetDirection(DIRECTION)
    sitk.WriteImage(image, str(path), True)


def save_picture(path: Path, array: np.ndarray) -> None:
    from skimage import io

    path.parent.mkdir(parents=True, exist_ok=True)
    io.imsave(path, array, check_contrast=False)


VOLUMES = [".nii.gz", ".nii", ".nrrd", ".mha", ".gipl", ".tif", ".tiff"]
PICTURES = [".png", ".bmp", ".tif"]
KINDS = [(ending, 3, kind) for ending in VOLUMES for kind in ("uint8", "int16")]
KINDS += [(ending, 3, kind) for ending in (".nii.gz", ".nii", ".nrrd", ".mha") for kind in ("float32", "uint16")]
KINDS += [(ending, 2, "uint8") for ending in PICTURES] + [(".png", 2, "uint16"), (".tif", 2, "uint16")]


def native(path: Path) -> tuple[np.ndarray, np.dtype]:
    """Array and pixel type as stored, without nnU-Net."""
    if path.suffix in (".png", ".bmp", ".tif", ".tiff"):
        from skimage import io

        array = io.imread(path)
        return array, array.dtype
    if path.suffix == ".nii":
        import nibabel

        image = nibabel.load(path)
        return np.asarray(image.dataobj), image.get_data_dtype()
    array = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    return array, array.dtype


@pytest.mark.parametrize(("ending", "ndim", "kind"), KINDS)
def test_every_format_keeps_pixel_type_and_geometry(raw, ending, ndim, kind):
    label = two_balls((10, 24, 20) if ndim == 3 else (24, 20), radius=5).astype(kind)
    save = save_volume if ndim == 3 else save_picture
    folder = raw / "Dataset009_Format"
    for name in ("a", "b", "c"):
        save(folder / "imagesTr" / f"{name}_0000{ending}", (label * 50).astype(np.uint8))
        save(folder / "labelsTr" / f"{name}{ending}", label)
    declared = {"background": 0, "one": 1, "two": 2}
    content = {"channel_names": {"0": "x"}, "labels": declared, "numTraining": 3, "file_ending": ending}
    (folder / "dataset.json").write_text(json.dumps(content))

    command = "corrupt -d 9 -o 509 --noise erosion --label-dice 0.7 --trusted-cases a --seed 0"
    assert cli.main(command.split()) == 0
    dataset, noisy_set = open_dataset(9), open_dataset(509)
    assert (noisy_set.folder / "labelsTr" / f"a{ending}").read_bytes() == dataset.cases["a"].label.read_bytes()
    reader = dataset.reader_writer
    for name in ("b", "c"):
        clean, noisy = dataset.cases[name].label, noisy_set.cases[name].label
        before, after = native(clean), native(noisy)
        assert before[1] == after[1] == np.dtype(kind)
        assert before[0].shape == after[0].shape and (before[0] != after[0]).any()
        old, new = reader.read_seg(str(clean)), reader.read_seg(str(noisy))
        assert str(old[1]) == str(new[1])  # spacing, origin, direction or affine
        assert old[0].shape == new[0].shape
        array, spacing = read_label(noisy_set, noisy_set.cases[name])
        assert np.array_equal(array, new[0][0] if ndim == 3 else new[0][0, 0])
        if ndim == 3 and ending not in (".tif", ".tiff"):
            assert spacing == pytest.approx((2.5, 1.0, 0.5))
    if ending == ".nii":
        import nibabel

        header = nibabel.load(noisy_set.cases["b"].label).header
        assert bytes(header["descrip"]).startswith(b"by hand") and header.get_zooms() == (0.5, 1.0, 2.5)


def test_volume_tiff_spacing_comes_from_its_side_file(raw):
    folder = raw / "Dataset009_Tiff"
    for name in ("a", "b"):
        save_volume(folder / "imagesTr" / f"{name}_0000.tif", two_balls())
        save_volume(folder / "labelsTr" / f"{name}.tif", two_balls())
    declared = {"background": 0, "one": 1, "two": 2}
    content = {"channel_names": {"0": "x"}, "labels": declared, "numTraining": 2, "file_ending": ".tif"}
    (folder / "dataset.json").write_text(json.dumps(content))
    dataset = open_dataset(9)
    assert type(dataset.reader_writer).__name__ == "Tiff3DIO"
    assert read_label(dataset, dataset.cases["a"])[1] == (2.5, 1.0, 0.5)
    assert cli.main("corrupt -d 9 -o 509 --noise erosion --label-dice 0.7 --trusted 1".split()) == 0
    assert json.loads((raw / "Dataset509_TiffNoisy" / "labelsTr" / "b.json").read_text())["spacing"] == [2.5, 1.0, 0.5]


def test_a_label_of_another_voxel_size_than_the_image_is_refused(raw):
    write(raw / "Dataset003_Balls" / "labelsTr" / "case_01.nii.gz", two_balls((14, 30, 24)), (1.0, 1.0, 1.0))
    dataset = open_dataset(3)
    says = r"label has spacing \(1.0, 1.0, 1.0\) but the image \(2.0, 1.0, 1.0\).*; correct the header of the label"
    with pytest.raises(NoiseToolsError, match=says):
        read_label(dataset, dataset.cases["case_01"])
    read_label(dataset, dataset.cases["case_00"])


def test_a_volume_tiff_whose_label_lacks_the_spacing_of_the_image_is_refused(raw):
    folder = raw / "Dataset009_Tiff"
    save_volume(folder / "imagesTr" / "a_0000.tif", two_balls())
    save_volume(folder / "labelsTr" / "a.tif", two_balls())
    (folder / "labelsTr" / "a.json").unlink()
    content = {"channel_names": {"0": "x"}, "labels": {"background": 0, "one": 1, "two": 2}, "numTraining": 1}
    (folder / "dataset.json").write_text(json.dumps({**content, "file_ending": ".tif"}))
    dataset = open_dataset(9)
    with pytest.raises(NoiseToolsError, match=r"label has spacing \(1.0, 1.0, 1.0\) but the image \(2.5, 1.0, 0.5\)"):
        read_label(dataset, dataset.cases["a"])


def test_side_files_come_along_with_a_case_held_out(raw):
    folder = raw / "Dataset009_Tiff"
    for name in ("a", "b", "c"):
        save_volume(folder / "imagesTr" / f"{name}_0000.tif", two_balls())
        save_volume(folder / "labelsTr" / f"{name}.tif", two_balls())
    declared = {"background": 0, "one": 1, "two": 2}
    content = {"channel_names": {"0": "x"}, "labels": declared, "numTraining": 3, "file_ending": ".tif"}
    (folder / "dataset.json").write_text(json.dumps(content))
    assert cli.main("corrupt -d 9 -o 509 --noise erosion --trusted 1 --test-cases b".split()) == 0
    for part in ("imagesTs", "labelsTs"):
        side = raw / "Dataset509_TiffNoisy" / part / "b.json"
        assert json.loads(side.read_text())["spacing"] == [2.5, 1.0, 0.5]


AFFINES = {
    "as read": np.diag([0.5, 1.0, 2.5, 1.0]),
    "left, back": np.diag([-0.5, -1.0, 2.5, 1.0]),
    "other order": np.array([[0, 0, 2.5, 7], [-0.5, 0, 0, 8], [0, 1.0, 0, 9], [0, 0, 0, 1]]),
    "oblique": np.array([[0.48, -0.28, 0, 3], [0.14, 0.96, 0, 4], [0, 0, 2.5, 5], [0, 0, 0, 1.0]]),
}


@pytest.mark.parametrize("kind", ["int16", "float32"])
@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
@pytest.mark.parametrize("reader", ["NibabelIOWithReorient", "SimpleITKIOWithReorient", "NibabelIO"])
def test_a_reader_that_turns_axes_changes_neither_type_nor_geometry(raw, reader, affine, kind):
    import nibabel

    folder = raw / "Dataset009_Turned"
    label = nibabel.Nifti1Image(two_balls(radius=5).transpose().astype(kind), affine)
    label.header["descrip"] = b"by hand"
    for name in ("a", "b"):
        for part, tail in (("imagesTr", "_0000"), ("labelsTr", "")):
            (folder / part).mkdir(parents=True, exist_ok=True)
            nibabel.save(label, folder / part / f"{name}{tail}.nii.gz")
    label = nibabel.load(folder / "labelsTr" / "b.nii.gz")  # as stored, with an affine of float32
    declared = {"background": 0, "one": 1, "two": 2}
    content = {"channel_names": {"0": "x"}, "labels": declared, "numTraining": 2, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(content | {"overwrite_image_reader_writer": reader}))
    assert cli.main("corrupt -d 9 -o 509 --noise erosion --label-dice 0.7 --trusted-cases a".split()) == 0

    noisy = nibabel.load(raw / "Dataset509_TurnedNoisy" / "labelsTr" / "b.nii.gz")
    assert np.allclose(noisy.affine, label.affine, atol=1e-6)
    if reader.startswith("Nibabel"):  # ITK writes a header of its own
        assert noisy.header == label.header
    before, after = np.asarray(label.dataobj), np.asarray(noisy.dataobj)
    assert before.dtype == after.dtype == np.dtype(kind)
    # Erosion takes away only: voxels that are left are where they were.
    assert np.array_equal(after[after > 0], before[after > 0]) and 0 < (after > 0).sum() < (before > 0).sum()


@pytest.mark.parametrize("reader", ["NibabelIOWithReorient", "SimpleITKIOWithReorient"])
def test_a_turned_image_of_another_shape_is_said(raw, reader):
    change_json(raw / "Dataset003_Balls", overwrite_image_reader_writer=reader)
    dataset = open_dataset(3)
    assert read_label(dataset, dataset.cases["case_01"])[0].shape == (14, 30, 24)
    write(dataset.cases["case_01"].images[0], two_balls((14, 30, 23)))
    with pytest.raises(NoiseToolsError, match=r"label has shape \(14, 30, 24\) but the image \(14, 30, 23\)"):
        read_label(dataset, dataset.cases["case_01"])
    dataset.cases["case_01"].images[0].unlink()
    with pytest.raises(NoiseToolsError, match="Cannot read image .*case_01_0000.nii.gz"):
        read_label(dataset, dataset.cases["case_01"])


def test_a_reader_of_another_kind_writes_by_itself(raw):
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

    class OwnIO(SimpleITKIO):
        pass

    dataset = open_dataset(3)
    case = dataset.cases["case_00"]
    label, _ = read_label(dataset, case)
    target = raw / "out.nii.gz"
    write_label_like(case.label, np.where(label == 2, 0, label), target, OwnIO())
    assert np.array_equal(read_segmentation(OwnIO(), target)[0], np.where(label == 2, 0, label))


def test_a_volume_of_one_slice_is_treated_as_a_picture(raw):
    write_dataset(raw / "Dataset010_Slice", {"a": two_balls((24, 20), radius=5)[None]})
    dataset = open_dataset(10)
    label, spacing = read_label(dataset, dataset.cases["a"])
    assert label.shape == (24, 20) and spacing == (1.0, 1.0)


def test_a_rotated_picture_size_is_not_mistaken(raw):
    write_dataset(raw / "Dataset011_Png", {"a": two_balls((24, 20), radius=5)}, ".png")
    dataset = open_dataset(11)
    write(dataset.cases["a"].label, two_balls((24, 20), radius=5).T.copy())
    with pytest.raises(NoiseToolsError, match=r"label has shape \(20, 24\) but the image \(24, 20\)"):
        read_label(dataset, dataset.cases["a"])


SHARED = Path(__file__).parents[3] / "shared" / "data"


@pytest.mark.skipif(not (SHARED / "Dataset004_Hippocampus").is_dir(), reason="shared data are not there")
def test_real_labels_stored_as_float(tmp_path, monkeypatch):
    """hippocampus_003 keeps its float32 pixels."""
    monkeypatch.setenv("nnUNet_raw", str(SHARED))
    dataset = open_dataset(4)
    case = dataset.cases["hippocampus_003"]
    label, spacing = read_label(dataset, case)
    assert label.dtype == np.int16 and spacing == (1.0, 1.0, 1.0) and set(np.unique(label)) == {0, 1, 2}
    target = tmp_path / "out.nii.gz"
    write_label_like(case.label, np.where(label == 2, 1, label), target, dataset.reader_writer)
    clean, noisy = sitk.ReadImage(str(case.label)), sitk.ReadImage(str(target))
    assert clean.GetPixelID() == noisy.GetPixelID() == sitk.sitkFloat32
    assert (clean.GetSpacing(), clean.GetOrigin(), clean.GetDirection()) == (
        noisy.GetSpacing(),
        noisy.GetOrigin(),
        noisy.GetDirection(),
    )


def test_a_one_bit_picture_keeps_its_values(tmp_path):
    from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
    from PIL import Image
    from skimage import io as skimage_io

    mask = two_balls((24, 20), radius=5) > 0
    Image.fromarray(mask).convert("1").save(tmp_path / "clean.png")
    write_label_like(tmp_path / "clean.png", mask.astype(np.uint8)[None], tmp_path / "new.png", NaturalImage2DIO())
    assert np.array_equal(skimage_io.imread(tmp_path / "new.png"), mask.astype(np.uint8))


@pytest.mark.parametrize("ending", [".nii.gz", ".mha", ".png", ".tif", ".tiff"])
@pytest.mark.parametrize("kind", [None, "NibabelIO"])
def test_a_new_label_value_that_the_pixel_type_cannot_hold_is_written_as_it_is(raw, ending, kind):
    """As by swap: a file of bytes has the labels 1 and 2 only, dataset.json declares 300 as well."""
    if kind and ending != ".nii.gz":
        pytest.skip("a reader of NIfTI")
    small = two_balls((24, 20) if ending == ".png" else (5, 24, 20), radius=5)
    folder = write_dataset(raw / "Dataset010_Wide", {"a": small}, ending, {"background": 0, "organ": 1, "far": 300})
    if kind:
        content = json.loads((folder / "dataset.json").read_text())
        (folder / "dataset.json").write_text(json.dumps({**content, "overwrite_image_reader_writer": kind}))
    dataset, target = open_dataset(10), raw / f"new{ending}"
    label, _ = read_segmentation(dataset.reader_writer, dataset.cases["a"].label)
    write_label_like(dataset.cases["a"].label, np.where(label == 2, 300, label), target, dataset.reader_writer)
    assert np.array_equal(read_segmentation(dataset.reader_writer, target)[0], np.where(label == 2, 300, label))


def colours(label: np.ndarray) -> np.ndarray:
    return np.stack([label, label * 0, label * 0], axis=-1)


@pytest.mark.parametrize("ending", [".png", ".tif"])
def test_a_picture_in_colours_is_no_label(raw, ending, capsys):
    folder = write_dataset(raw / "Dataset009_Colours", {"a": two_balls((24, 20)), "b": two_balls((24, 20))}, ending)
    save_picture(folder / "labelsTr" / f"b{ending}", colours(two_balls((24, 20))))
    for command in (
        "corrupt -d 9 -o 509 --noise erosion --trusted-cases a",
        f"preview -d 9 --case b -o {raw / 'p.png'}",
    ):
        assert cli.main(command.split()) == 2
        assert f"b{ending} holds several values per voxel (colours or time points" in capsys.readouterr().err


@pytest.mark.parametrize("several", ["colours", "times"])
def test_a_volume_of_several_values_is_no_label(raw, several):
    dataset = open_dataset(3)
    label = two_balls((14, 30, 24))
    image = (
        sitk.GetImageFromArray(colours(label), isVector=True)
        if several == "colours"
        else sitk.JoinSeries([sitk.GetImageFromArray(label)] * 2)
    )
    sitk.WriteImage(image, str(dataset.cases["case_00"].label))
    with pytest.raises(NoiseToolsError, match=r"case_00.nii.gz holds several values per voxel"):
        read_label(dataset, dataset.cases["case_00"])


def test_a_label_that_was_cut_off_is_refused(tmp_path):
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

    label = np.random.default_rng(0).integers(0, 2, (12, 24, 20), dtype=np.uint8)  # compresses badly
    path = write(tmp_path / "cut.nii.gz", label)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    with pytest.raises(NoiseToolsError, match="Cannot read .*cut.nii.gz .*end-of-stream marker"):
        read_segmentation(SimpleITKIO(), path)


ORTHONORMAL = r"ITK ERROR: ITK only supports orthonormal direction cosines[^\n]*\); "


def test_why_simpleitk_refuses_a_label_is_said(raw):
    dataset = open_dataset(3)
    write_sheared(dataset.cases["case_00"].label, two_balls((14, 30, 24)))
    advice = "check that it is a whole image file that nnU-Net's SimpleITKIO takes, and restore or convert it"
    with pytest.raises(NoiseToolsError, match=f"Cannot read .*case_00.nii.gz .{ORTHONORMAL}{advice}") as error:
        read_label(dataset, dataset.cases["case_00"])
    assert ".cxx" not in str(error.value)


def test_why_simpleitk_refuses_an_image_is_said(raw):
    change_json(raw / "Dataset003_Balls", overwrite_image_reader_writer="SimpleITKIOWithReorient")
    dataset = open_dataset(3)
    write_sheared(dataset.cases["case_00"].images[0], two_balls((14, 30, 24)))
    with pytest.raises(NoiseToolsError, match=f"case_00_0000.nii.gz .{ORTHONORMAL}restore or convert it, or drop"):
        read_label(dataset, dataset.cases["case_00"])
