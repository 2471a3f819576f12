"""noise_manifest.json: what was asked, what each case got, and the parameters that make every label again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from noise_tools.errors import NoiseToolsError

SCHEMA = "noise_tools.manifest"
SCHEMA_VERSION = 1
FILE_NAME = "noise_manifest.json"


def make(
    source: str,
    settings: dict[str, Any],
    trusted: list[str],
    test: list[str],
    cases: dict[str, Any],
    corrupted_before: Collection[str] = (),
) -> dict[str, Any]:
    """The manifest as a dict; no dates or host names, so that equal runs give equal bytes."""
    before = {"corrupted_before": sorted(corrupted_before)} if corrupted_before else {}
    return {
        "schema": SCHEMA,
        "schema_version": SCHEMA_VERSION,
        "versions": _versions(),
        "source": source,
        "settings": settings,
        "trusted_cases": sorted(trusted),
        "test_cases": sorted(test),
        **before,
        "cases": dict(sorted(cases.items())),
    }


def write(manifest: dict[str, Any], path: Path) -> None:
    path.write_text(json.dumps(manifest, indent=1, allow_nan=False) + "\n")


def read(path: Path) -> dict[str, Any]:
    """Reads and checks a manifest."""
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise NoiseToolsError(
            f"Manifest {path} does not exist; give the noise_manifest.json of a corrupted data set."
        ) from error
    except (json.JSONDecodeError, UnicodeDecodeError, IsADirectoryError) as error:
        raise NoiseToolsError(f"{path} is not a JSON file ({error}); give a noise_manifest.json.") from error
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise NoiseToolsError(f"{path} is not a noise manifest: expected the key 'schema' to be {SCHEMA!r}.")
    if content.get("schema_version") != SCHEMA_VERSION:
        raise NoiseToolsError(
            f"{path} has schema_version {content.get('schema_version')}, this noise_tools reads {SCHEMA_VERSION}; "
            "use the noise_tools version named in it."
        )
    missing = [key for key in ("versions", "source", "trusted_cases", "test_cases", "cases") if key not in content]
    if missing:
        raise NoiseToolsError(f"{path} lacks the key {missing[0]!r}; give the noise_manifest.json as it was written.")
    return content


def corrupted_cases(manifest: Mapping[str, Any]) -> frozenset[str]:
    """Cases whose label is wrong by this manifest, or was so in the data set that it was made from."""
    own = {name for name, entry in manifest["cases"].items() if entry.get("noise") is not None}
    return frozenset(own | set(manifest.get("corrupted_before", ())))


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _versions() -> dict[str, str]:
    found = {}
    for package in ("nnunetv2-metadcseg", "numpy", "scipy", "SimpleITK"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "unknown"
    return found
