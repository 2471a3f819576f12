"""Which slices are shown, and that they can be drawn."""

from __future__ import annotations

import base64

import numpy as np

from nnunetv2_metadcseg.label_audit_pictures import data_url, draw_case, slice_axis, view, worst_planes

PNG = b"\x89PNG\r\n\x1a\n"


def test_slices_run_along_the_widest_spacing():
    assert slice_axis((30, 40, 50), (3.0, 1.0, 1.0)) == 0
    assert slice_axis((30, 40, 50), (1.0, 1.0, 2.0)) == 2
    assert slice_axis((1, 40, 50), (0.1, 1.0, 1.0)) == 0


def test_worst_planes_are_apart_and_in_order():
    suspicion = np.zeros((40, 5, 5))
    suspicion[20], suspicion[21], suspicion[5] = 1.0, 0.9, 0.5
    assert worst_planes(suspicion, 0) == [5, 20]
    assert len(worst_planes(np.zeros((4, 5, 5)), 0)) == 1


def test_view_surrounds_the_masks():
    mask = np.zeros((100, 60), bool)
    assert view([mask], mask.shape) == (slice(0, 100), slice(0, 60))
    mask[50, 3] = True
    assert view([mask], mask.shape) == (slice(38, 63), slice(0, 16))


def test_draws_volumes_flat_images_and_empty_labels():
    rng = np.random.default_rng(0)
    for shape, spacing in (((6, 20, 24), (2.0, 1.0, 1.0)), ((1, 20, 24), (999.0, 1.0, 1.0))):
        given = np.zeros(shape, int)
        given[:, 5:12, 5:12] = 1
        for label in (given, np.zeros(shape, int)):
            png = draw_case(rng.normal(size=shape), label, given, rng.random(shape), spacing)
            assert png.startswith(PNG)
    assert base64.b64decode(data_url(png).split(",")[1]) == png
