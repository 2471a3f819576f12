"""Where an audit is written: complete or not at all, and never over what a person has put there."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shutil
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path

from nnunetv2_metadcseg.label_audit_predict import AuditError
from nnunetv2_metadcseg.label_audit_trust import TO_CHECK, is_answered, read_audit

MAPS = ("suspicion", "proposed", "given")
TABLES = ("audit.csv", "audit.json", "audit.html")
MINUTE = 60.0  # an audit writes its files one after the other; some file systems keep time badly
# Of the Finder, the Explorer and Linux's file managers, and of LibreOffice while it shows a table: nobody's work.
LITTER = re.compile(r"\.DS_Store|\._.*|Thumbs\.db|desktop\.ini|\.directory|\.~lock\..*#", re.IGNORECASE)


def check_output(out: Path, overwrite: bool) -> None:
    """Raises AuditError unless `out` is new, or an earlier audit to which nobody has added anything."""
    if out.resolve() == Path.cwd():
        raise AuditError(f"{out} is the current directory, expected a folder of the audit's own; choose another.")
    if os.path.ismount(out.resolve()):  # of Docker or NFS: it can be neither renamed nor replaced
        raise AuditError(f"{out} is a mount point, expected a folder in it; give {out / 'audit'}, for instance.")
    if not out.exists():
        return
    if not overwrite:
        raise AuditError(f"{out} exists already; choose another folder, or give --overwrite to replace it.")
    if not out.is_dir():
        raise AuditError(f"{out} is a file, expected the folder of an earlier audit; choose another folder.")
    if not any(out.iterdir()):
        return
    if not (out / "audit.json").is_file():
        raise AuditError(f"{out} is not the folder of an earlier audit (no audit.json), so it is not replaced.")
    file = work_of_a_person(out)
    if file is not None:
        raise AuditError(
            f"{file} is not as the audit wrote it, and --overwrite would delete it; move it away, or choose another "
            "folder (the date tells; where the folder was only copied without dates, remove the file)."
        )


def work_of_a_person(out: Path) -> Path | None:
    """A file of the audit in `out` that a person has added or edited; None if there is none."""
    if is_answered(out / TO_CHECK):
        return out / TO_CHECK
    cases = read_audit(out / "audit.json")["cases"]
    for file in sorted(file for file in out.rglob("*") if not (file.is_dir() or LITTER.fullmatch(file.name))):
        if file == out / TO_CHECK:
            continue
        if not _is_of_audit(file.relative_to(out).parts, cases) or _is_edited(file, out):
            return file
    return None


def _is_of_audit(parts: tuple[str, ...], cases: Collection[str]) -> bool:
    top, *rest = parts
    if not rest:
        return top in TABLES
    return top in MAPS and len(rest) == 1 and any(rest[0].startswith(f"{case}.") for case in cases)


def _is_edited(file: Path, out: Path) -> bool:
    """Whether it is newer than audit.json, which gets the date of the audit's end, as audit.csv does."""
    last = out / ("audit.csv" if file.name == "audit.json" else "audit.json")
    return last.is_file() and file.stat().st_mtime > last.stat().st_mtime + MINUTE


def left_over(out: Path) -> list[Path]:
    """Hidden folders beside `out` of audits that were killed, or still run."""
    out = out.resolve()
    ours = re.compile(re.escape(f".{out.name}.") + r"\w{8}(\.replaced)?")  # as `written_whole` names them
    return sorted(f for f in out.parent.glob(".*") if ours.fullmatch(f.name)) if out.parent.is_dir() else []


class UnfinishedError(Exception):
    """Something failed when most of the audit, which takes hours, was there already."""


@contextlib.contextmanager
def worth_keeping(what: str) -> Iterator[None]:
    """Whatever fails in the block, `written_whole` keeps what there is; `what`: that cannot be written then."""
    try:
        yield
    except Exception as error:
        raise UnfinishedError(
            f"The maps of all cases are written, but not {what} ({type(error).__name__}: {str(error) or 'no reason'})"
        ) from error


@contextlib.contextmanager
def written_whole(out: Path) -> Iterator[Path]:
    """A temporary folder beside `out` that takes its place when the block ends well, and goes otherwise.

    An earlier audit is deleted only when the new one is in its place.

    Raises:
        AuditError: the complete folder cannot take its place, or a person has worked in `out` while the block ran, or
            what failed was `worth_keeping`; it is kept beside `out`, and the message names it.
    """
    out = out.resolve()  # of a link, what it points to
    existed = out.exists()
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        yield temporary
    except UnfinishedError as error:
        raise AuditError(
            f"{error}; what is complete lies in {_kept_beside(temporary, out)}, and nothing was replaced."
        ) from error.__cause__
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    with contextlib.suppress(OSError):  # some file systems have no modes
        temporary.chmod(0o755)
    changed = _changed_meanwhile(out, existed)
    if changed is not None:
        raise AuditError(
            f"{changed} was added or edited while the audit ran, so nothing is replaced and the new audit, which is "
            f"complete, lies in {_kept_beside(temporary, out)}."
        )
    _put_in_place(temporary, out)


def _changed_meanwhile(out: Path, existed: bool) -> Path | None:
    """What a person has put into `out` since `check_output` looked, hours ago; None if nothing."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    if not existed:
        return out
    try:
        return work_of_a_person(out)
    except (AuditError, OSError):  # no audit any longer, or answers that cannot be read
        return out


def _put_in_place(temporary: Path, out: Path) -> None:
    """Never deletes `temporary`: hours may have gone into it."""
    replaced = temporary.with_name(f"{temporary.name}.replaced")
    try:
        if out.exists():
            out.rename(replaced)
        temporary.rename(out)
    except BaseException as error:
        if replaced.exists() and not out.exists():
            replaced.rename(out)
        if not isinstance(error, OSError):
            raise
        raise AuditError(
            f"The audit is complete, but cannot be moved to {out} ({error.strerror or error}), so it lies in "
            f"{_kept_beside(temporary, out)}; move it from there."
        ) from error
    shutil.rmtree(replaced, ignore_errors=True)


def _kept_beside(temporary: Path, out: Path) -> Path:
    """Where the complete folder lies now: OUT_2, the next free number, or where it was if it cannot be renamed."""
    names = (out.with_name(f"{out.name}_{number}") for number in itertools.count(2))
    kept = next(name for name in names if not os.path.lexists(name))
    with contextlib.suppress(OSError):
        return temporary.rename(kept)
    return temporary
