from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import result_store

from .conftest import result_row


def test_rows_come_back(tmp_path):
    result_store.store_run(tmp_path, [result_row("noisy", 0, 0.8125, name=name) for name in ("head", "tail")])
    rows = result_store.read_rows(tmp_path, "toy_60")
    assert [row["class"] for row in rows] == ["head", "tail"]
    assert rows[0]["dice"] == "0.8125" and rows[0]["alpha_auroc"] == ""
    assert list(rows[0]) == list(result_store.COLUMNS)


def test_a_repeated_run_replaces_its_rows(tmp_path):
    result_store.store_run(tmp_path, [result_row("noisy", 0, 0.5)])
    result_store.store_run(tmp_path, [result_row("noisy", 1, 0.6)])
    result_store.store_run(tmp_path, [result_row("noisy", 0, 0.7)])
    rows = result_store.read_rows(tmp_path)
    assert [(row["seed"], row["dice"]) for row in rows] == [("0", "0.7"), ("1", "0.6")]


def test_runs_in_parallel_lose_nothing(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda seed: result_store.store_run(tmp_path, [result_row("noisy", seed, 0.5)]), range(16)))
    assert sorted(int(row["seed"]) for row in result_store.read_rows(tmp_path)) == list(range(16))
    assert not list(tmp_path.glob("*.tmp"))


def test_find_signature_gives_one_run(tmp_path):
    result_store.store_run(tmp_path, [result_row("clean", 0, 0.9, name=name) for name in ("head", "tail")])
    copied = [result_row("clean", 0, 0.9, cell="toy_20", name=name) for name in ("head", "tail")]
    result_store.store_run(tmp_path, copied)
    assert len(result_store.find_signature(tmp_path, "clean0")) == 2
    assert result_store.find_signature(tmp_path, "other") == []


def test_format_value():
    assert result_store.format_value(math.nan) == ""
    assert result_store.format_value(None) == ""
    assert result_store.format_value(1 / 3) == "0.333333"
    assert result_store.format_value(7) == "7"


def test_no_results_yet(tmp_path):
    assert result_store.read_rows(tmp_path / "absent") == []
