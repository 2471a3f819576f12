from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

from noise_tools import cli
from noise_tools import manifest as manifests

DOCS = Path(__file__).parents[2] / "docs" / "noise_manifest.md"


def keys_of(content, prefix: str = "") -> set[str]:
    """Names of all keys, case and region names left out."""
    found = set()
    for key, value in content.items():
        found.add(key)
        if isinstance(value, dict) and key not in ("versions", "params", "cases", "regions", "settings"):
            found |= keys_of(value)
    return found


def test_every_key_is_documented(raw):
    cli.main("corrupt -d 3 -o 503 --noise dilation --label-dice 0.7 --trusted 2 --test-cases 1".split())
    content = json.loads((raw / "Dataset503_BallsNoisy" / "noise_manifest.json").read_text())
    noisy = next(entry for entry in content["cases"].values() if entry["noise"])
    keys = keys_of(content) | keys_of(content["settings"]) | keys_of(noisy) | keys_of(noisy["regions"]["head"])
    documented = set(re.findall(r"`([a-z0-9_]+)`", DOCS.read_text()))
    assert keys <= documented, sorted(keys - documented)
    assert f"Schema version {manifests.SCHEMA_VERSION}" in DOCS.read_text()


def test_no_dates_paths_or_process_numbers(raw, tmp_path):
    cli.main("corrupt -d 3 -o 503 --noise dilation --label-dice 0.7 --trusted 2 -np 2".split())
    text = (raw / "Dataset503_BallsNoisy" / "noise_manifest.json").read_text()
    assert str(tmp_path) not in text and "processes" not in text and "date" not in text


def test_hashes_are_those_of_the_files(raw):
    cli.main("corrupt -d 3 -o 503 --noise dilation --label-dice 0.7 --trusted 2".split())
    folder = raw / "Dataset503_BallsNoisy"
    for name, entry in manifests.read(folder / "noise_manifest.json")["cases"].items():
        for key, path in (("sha256", folder), ("clean_sha256", raw / "Dataset003_Balls")):
            data = (path / "labelsTr" / f"{name}.nii.gz").read_bytes()
            assert entry[key] == hashlib.sha256(data).hexdigest()
