from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.noise_tools.label_files import two_balls, write_dataset


@pytest.fixture
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """nnUNet_raw with Dataset003_Balls: ten small volumes of two touching balls, moved about."""
    root = tmp_path / "nnUNet_raw"
    monkeypatch.setenv("nnUNet_raw", str(root))
    shape = two_balls((14, 30, 24), radius=6)
    labels = {f"case_{i:02d}": np.roll(shape, i - 5, axis=2) for i in range(10)}
    write_dataset(root / "Dataset003_Balls", labels)
    return root
