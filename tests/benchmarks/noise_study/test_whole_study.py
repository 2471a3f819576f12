"""The whole way on synthetic images: corrupt, plan, preprocess, train four arms, score, tables."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from .conftest import STUDY

CONFIG = """
work: work
datasets:
  phantom:
    source: raw/Dataset001_Phantom
    clean_id: 301
    base_configuration: 2d
    features: [4, 8, 16]
    batch_size: 2
    patch_size: [32, 32]
    test_cases: 2
    val_cases: 2
cells:
  - {name: toy, dataset: phantom, id: 501, noise: [dilation], trusted: 2, steps: 4, steps_per_epoch: 2, seeds: [0],
     arms: [clean, noisy, finetune, metadcseg], label_dice: 0.7}
"""


@pytest.mark.integration
def test_from_clean_labels_to_tables(tmp_path):
    (tmp_path / "raw").mkdir()
    (tmp_path / "config.yaml").write_text(CONFIG, encoding="utf-8")
    page = tmp_path / "results.md"
    environment = os.environ | {"nnUNet_raw": str(tmp_path / "raw")}

    def call(*command: object) -> str:
        done = subprocess.run(
            [sys.executable, *map(str, command)], capture_output=True, text=True, env=environment, cwd=tmp_path
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    call("-m", "noise_tools.cli", "phantom", "-o", "1", "-n", "10", "--test", "1", "--dim", "2")
    config = ["--config", tmp_path / "config.yaml"]
    out = call(STUDY / "run_queue.py", *config, "-np", "1")
    assert out.count("trained in") == 4
    assert call(STUDY / "run_queue.py", *config).count("exists") == 4, "a second call has nothing to do"

    sys.path.insert(0, str(STUDY))
    import result_store
    import tables

    rows = result_store.read_rows(tmp_path / "results", "toy")
    assert {row["arm"] for row in rows} == {"clean", "noisy", "finetune", "metadcseg"}
    assert all(row["cases"] == "2" and 0 <= float(row["dice"]) <= 1 for row in rows)
    assert [row["alpha_auroc"] != "" for row in rows if row["class"] == rows[0]["class"]] == [False, False, True, False]
    log = tmp_path / "work" / "runs" / "toy" / "fold_0" / "finetune" / "seed_0" / "log.txt"
    assert "Desired fold" in log.read_text(encoding="utf-8")
    assert not list((tmp_path / "work" / "runs").rglob("*.pth")), "checkpoints are deleted"

    page.write_text(f"{tables.BEGIN}\n{tables.END}\n", encoding="utf-8")
    call(STUDY / "tables.py", *config, "--page", page, "--no-figures")
    assert "### toy" in page.read_text(encoding="utf-8")
