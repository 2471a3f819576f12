"""Labels that were corrected in nnUNet_raw, where training reads what was preprocessed from them before."""

from __future__ import annotations

import filecmp
import os
from collections.abc import Sequence
from pathlib import Path

SLACK = 60.0  # seconds: nobody corrects a label so soon, and the dates of files that were copied are as far apart


def outdated_labels(
    cases: Sequence[str], preprocessed: Path, raw: Path, dataset_json: dict, ending: str, identifier: str | None = None
) -> dict[str, str]:
    """Cases whose raw label is not the one that training reads: {case: what is wrong and how to mend it}.

    nnU-Net copies labels to gt_segmentations, with their dates and only where newer than the copy, whichever
    configuration is preprocessed. So what was made of a label by a configuration must be newer than that copy.

    Args:
        preprocessed, raw: the data set's folders. Cases without a raw label here are not compared.
        dataset_json: content of dataset.json. ending: of label files.
        identifier: folder of a configuration's preprocessed cases; None: dates are not compared.
    """
    listed, outdated = listed_labels(dataset_json), {}
    for case in cases:
        label = raw / os.path.expandvars(listed.get(case, f"labelsTr/{case}{ending}"))  # as nnU-Net does
        copy = preprocessed / "gt_segmentations" / f"{case}{ending}"
        if not (label.is_file() and copy.parent.is_dir()):
            continue
        made = preprocessed / (identifier or "") / f"{case}.pkl"
        if not (copy.is_file() and filecmp.cmp(label, copy, False)):
            outdated[case] = (
                f"The label {label} is not the one that was preprocessed, so training would not see it; remove {copy} "
                f"(nnU-Net keeps it where the new label bears an older date), run nnUNetv2_preprocess for "
                f"{preprocessed.name}"
            )
        elif identifier and made.is_file() and made.stat().st_mtime + SLACK < copy.stat().st_mtime:
            outdated[case] = (
                f"The label {label} is newer than what {identifier} in {preprocessed} holds of it, so training would "
                "not see it; run nnUNetv2_preprocess for that configuration (-c), or, where the folder was only copied "
                f"without its dates, touch the .pkl files in {made.parent}"
            )
    return outdated


def listed_labels(dataset_json: dict) -> dict[str, str]:
    """{case: label file} as dataset.json lists them; it lists none where all are in labelsTr."""
    listed = dataset_json.get("dataset")
    entries = listed.items() if isinstance(listed, dict) else ()
    return {case: entry["label"] for case, entry in entries if isinstance(entry, dict) and "label" in entry}
