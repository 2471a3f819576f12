"""Noise settings of the literature by name, with their sources and what differs here.

Published generators count pixels of their own images. 'px' settings count the finest voxel edge of each case instead,
so they are the same only on images of the same resolution; `mapping` says what is known about it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from noise_tools.errors import NoiseToolsError
from noise_tools.recipe import Component, from_json

_PIXELS = "Pixels are the finest voxel edge of each case; the source's images have their own size."


@dataclass(frozen=True)
class Preset:
    """Components in recipe form, defaults of the command line, where the numbers come from and how they map."""

    components: list[dict[str, Any]]
    source: str
    mapping: str
    defaults: Mapping[str, Any] = field(default_factory=dict)

    def build(self, labels: Sequence[int] = (1, 2)) -> tuple[Component, ...]:
        """The components; steps that need several labels are left out where there is one."""
        components = from_json(self.components)
        if len(labels) > 1:
            return components
        return tuple(replace(c, steps=tuple(step for step in c.steps if step.type != "swap")) for c in components)


def find(name: str) -> Preset:
    """The preset of this name; NoiseToolsError lists the names if there is none."""
    if name not in PRESETS:
        raise NoiseToolsError(f"Unknown preset {name!r}; choose from {', '.join(PRESETS)}.")
    return PRESETS[name]


def _step(kind: str, **settings: str) -> dict[str, Any]:
    return {"type": kind, "settings": settings}


def _cases(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"steps": list(steps)}


def _l2b(dice: float) -> Preset:
    turn = _step("affine", translation="0", rotation="0:20", scale="0", shear="0")
    ellipse = _step("approximation", shape="ellipse")
    return Preset(
        [_cases(turn, {"type": first}, *extra) for first in ("erosion", "dilation") for extra in ((), (ellipse,))],
        "L2B (Zhou et al., arXiv 2202.04291), script L2B_segmentation/data_preprocess.py: every slice is turned by up "
        "to 20 degrees, eroded or dilated (even odds) and in half of the cases replaced by an ellipse; the script has "
        "levels 0.8, 0.6 and 0.4 of mean label Dice, and its README calls 0.6 a corrupted ratio of 40 % (20 and 60 % "
        "by analogy).",
        "The source draws square kernels of 7 to 35 pixels (0.6) so that the mean over all labels is near the target; "
        "here strength is searched until the mean over the labels of every case is, in 3D instead of slice by slice, "
        "in mm. Only an approximation: angle, radius and how far a structure becomes its ellipse grow together with "
        "that strength, which is small (on hippocampus and nuclei about 0.07 for a Dice of 0.8, 0.15 for 0.6 and 0.2 "
        "for 0.4), so turns are of 1 to 4 degrees, about the centre of the whole foreground, and an ellipse is a blend "
        "by that share where the source replaces the structure.",
        {"case_fraction": 1.0, "label_dice": dice},
    )


def _markov(source: str, steps: int, theta1: float, theta2: float, theta3: float, smoothing: str) -> Preset:
    return Preset(
        [
            _cases(
                _step(
                    "markov",
                    steps=f"{steps}:{steps}",
                    theta1=str(theta1),
                    theta2=str(theta2),
                    theta3=str(theta3),
                    smoothing=smoothing,
                )
            )
        ],
        source,
        f"One step of the walk is one pixel. {_PIXELS} Flips (theta3) are drawn around the structure, not in the "
        "whole image.",
        {"case_fraction": 1.0},
    )


def _kernels(source: str, low: float, high: float) -> Preset:
    # The source compares distances between voxel centres with k in [low, high]; our surface lies a quarter nearer.
    radius = f"{low - 0.25:g}px:{high - 0.25:g}px"
    return Preset(
        [_cases(_step("erosion", radius=radius)), _cases(_step("dilation", radius=radius))],
        source,
        f"Even odds of erosion and dilation by k pixels between voxel centres, here k - 0.25 from the surface. "
        f"{_PIXELS}",
        {"case_fraction": 1.0},
    )


_SC = "Spatial Correction (Yao et al., ICLR 2023, arXiv 2308.02498), setting {} of the table in the authors' README"
_SC_JSRT = "; numbers for lung and heart (clavicle: {}). Their scripts blur with a 5 x 5 kernel of sigma 2 (1.3 pixels)"
_GSD = (
    "GSD-Net (Wang et al., arXiv 2509.02419), setting {} for Kvasir, Shenzhen and BU-SUC in the authors' "
    "scripts/README.md; {}. An older README swaps the names S_R and S_E"
)


def _coco(share: float, tolerance: int, deviation: int, kernel: int, flips: float) -> Preset:
    half = f"{(kernel - 1) / 2:g}px"
    alternatives = [
        {"weight": share, "steps": [_step("approximation", tolerance=f"{tolerance}px")]},
        {"weight": share, "steps": [_step("elastic", amplitude=f"{deviation}px", length=f"{2 * deviation}px")]},
        {"weight": share / 2, "steps": [_step("dilation", radius=half)]},
        {"weight": share / 2, "steps": [_step("erosion", radius=half)]},
        {"weight": 1 - 3 * share, "steps": []},
    ]
    mixture = {"type": "mixture", "settings": {"share": "1"}, "alternatives": alternatives}
    return Preset(
        [_cases(mixture, _step("swap", rate=f"{flips}"))],
        "COCO-N (Grad, Kimhi et al., arXiv 2406.10891v1), script noise_annotations.py: each object gets approximation "
        f"(tolerance {tolerance} px), localisation (vertex jitter {deviation} px) or scale noise (kernel {kernel} "
        f"px), each with probability {share:g}, and another class with probability {flips:g}. A later version uses "
        "class flips and deletions of 0.05 instead.",
        "Objects are connected components. Vertex jitter is an elastic field of that deviation and twice that length "
        f"here; the class is drawn from all labels, not from a super-category, and not at all where there is one "
        f"label. {_PIXELS}",
        {"case_fraction": 1.0},
    )


PRESETS: dict[str, Preset] = {
    "l2b-20": _l2b(0.8),
    "l2b-40": _l2b(0.6),
    "l2b-60": _l2b(0.4),
    "sp-guided": Preset(
        [
            _cases({"type": "dilation"}),
            _cases({"type": "erosion"}),
            _cases(_step("affine", rotation="0:30", scale="0", shear="0")),
        ],
        "Superpixel-guided learning (Li, Gao, He, MICCAI 2021, arXiv 2107.10100), script "
        "data_process/noise_generation.py: a share alpha of the cases is dilated, eroded or turned by up to 30 "
        "degrees and shifted until the changed area is a share beta of the structure; alpha 0.3 and beta 0.5 are "
        "those of the repository's experiment files (a3b5).",
        "alpha is --case-fraction, beta is --label-change. The source moves in whole pixels and per class; here in "
        "mm, all labels of a case together.",
        {"case_fraction": 0.3, "label_change": 0.5},
    ),
    "sc-j1": _markov(_SC.format("J1 (JSRT)") + _SC_JSRT.format("T 100, theta2 0.02"), 180, 0.8, 0.05, 0.2, "1.3px"),
    "sc-j2": _markov(_SC.format("J2 (JSRT)") + _SC_JSRT.format("T 100, theta2 0.02"), 180, 0.2, 0.05, 0.2, "1.3px"),
    "sc-j3": _kernels(_SC.format("J3 (JSRT)") + "; numbers for lung and heart (clavicle: 3 to 5 pixels)", 7, 9),
    "sc-b1": _markov(_SC.format("B1 (BraTS 2020, 3D)"), 80, 0.7, 0.05, 0.0, "1px"),
    "sc-b2": _markov(_SC.format("B2 (BraTS 2020, 3D)"), 80, 0.3, 0.05, 0.0, "1px"),
    "sc-b3": _kernels(_SC.format("B3 (BraTS 2020, 3D)"), 3, 5),
    "gsd-sr": _markov(_GSD.format("S_R", "BraTS: the same"), 200, 0.8, 0.05, 0.0, "1.3px"),
    "gsd-se": _markov(_GSD.format("S_E", "BraTS: T 50, theta1 0.4"), 200, 0.2, 0.05, 0.0, "1.3px"),
    "gsd-sde": _kernels(_GSD.format("S_DE", "BraTS: 2 to 4 pixels"), 9, 11),
    "coco-n-easy": _coco(0.2, 5, 2, 3, 0.2),
    "coco-n-medium": _coco(0.25, 10, 3, 5, 0.3),
    "coco-n-hard": _coco(0.3, 15, 4, 7, 0.4),
}
