"""Writing a new raw data set so that it is there complete or not at all."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TextIO

from noise_tools.dataset_json import read_dataset_json
from noise_tools.errors import NoiseToolsError
from noise_tools.manifest import FILE_NAME as MANIFEST
from noise_tools.raw_dataset import folders_with_id, referenced_files

PHANTOM_MARK = "Synthetic phantom by noise_tools"  # starts the description of phantoms; of older ones, too
# What a file system says that has no hard links, not for this file, or not to there.
_NO_LINKS = frozenset(
    {errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}
)


@contextlib.contextmanager
def reserved(root: Path, dataset_id: int) -> Iterator[None]:
    """Keeps other runs off the id of a new data set, from the check whether it is free until the data set is there.

    The reservation is a lock that the system holds for this process, so it ends with it, be it by kill -9.

    Raises:
        NoiseToolsError: another run has the id.
    """
    path = root / f".noise_tools-Dataset{dataset_id:03d}.lock"
    file = _open_locked(path)
    if file is None:
        raise NoiseToolsError(
            f"Data set {dataset_id} is being written by another run; wait for it, or choose another id with -o."
        )
    with file:
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                path.unlink()


def _open_locked(path: Path) -> TextIO | None:
    """The file, created if need be, open and locked; None if another run has the lock."""
    while True:
        try:
            file = open(path, "a")
        except OSError as error:
            raise NoiseToolsError(
                f"Cannot write in {path.parent} ({error.strerror}); mend this and run again."
            ) from error
        if not _lock(file):
            file.close()
            return None
        if _is_at(file, path):
            return file
        file.close()  # the run before removed it just now: a lock on it keeps nobody off


def _lock(file: TextIO) -> bool:
    """Whether this run has the lock; it has, too, where the system or the file system knows no locks."""
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError):
        pass
    return True


def _is_at(file: TextIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def output_folder(root: Path, dataset_id: int, short_name: str, overwrite: bool, source: Path | None = None) -> Path:
    """Where data set `dataset_id` goes; a taken id is refused, unless by the same name with `overwrite` set.

    Even then, if another data set than `source` uses its files. Of the source's files, see `check_not_replaced`.
    """
    if not 1 <= dataset_id <= 999:
        raise NoiseToolsError(f"-o is {dataset_id}; nnU-Net data set ids go from 1 to 999.")
    if not short_name or not all(c.isalnum() or c in "_-" for c in short_name):
        raise NoiseToolsError(f"--name is {short_name!r}; use letters, digits, '_' and '-' only.")
    if re.match(r"Dataset\d", short_name):
        raise NoiseToolsError(
            f"--name is {short_name!r}; give the name without its number, which -o gives: "
            f"{_without_number(short_name)!r}."
        )
    folder = root / f"Dataset{dataset_id:03d}_{short_name}"
    _check_place(folder)
    for taken in folders_with_id(root, dataset_id):
        if source is not None and taken.resolve() == source.resolve():
            raise NoiseToolsError(
                f"-o {dataset_id} is the source {source.name} itself; choose another id (never in place)."
            )
        if taken != folder:
            raise NoiseToolsError(f"Id {dataset_id} belongs to {taken.name} already; choose another id with -o.")
        if not overwrite:
            raise NoiseToolsError(
                f"{folder.name} exists already; choose another id with -o, or pass --overwrite to replace it."
            )
        if not _made_here(folder):
            raise NoiseToolsError(
                f"{folder.name} was not made by noise_tools, which --overwrite never removes; choose another id "
                "with -o, or remove it yourself."
            )
        _check_not_used(folder, [path for path in root.glob("Dataset*") if path not in (folder, source)])
    for variable in ("nnUNet_preprocessed", "nnUNet_results"):
        taken = other_folder(variable, f"Dataset{dataset_id:03d}_*")
        if taken is not None and taken.name != folder.name:
            raise NoiseToolsError(
                f"Id {dataset_id} belongs to {taken.name} in {variable}, nnU-Net takes one name per id; use another."
            )
    return folder


def _without_number(name: str) -> str:
    return re.sub(r"^Dataset\d+_?", "", name) or "NAME"


def _check_place(folder: Path) -> None:
    """Raises NoiseToolsError for a link or file where the data set goes: renaming would keep a link to the old one."""
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        kind = f"a link to {os.readlink(folder)}" if folder.is_symlink() else "a file"
        raise NoiseToolsError(
            f"{folder} is {kind}, expected a folder or nothing; choose another id with -o, or remove it yourself."
        )


def _made_here(folder: Path) -> bool:
    """Whether noise_tools wrote a data set: it has a manifest, or is a phantom by its description."""
    if (folder / MANIFEST).is_file():
        return True
    try:
        description = read_dataset_json(folder / "dataset.json").get("description")
    except (OSError, NoiseToolsError):
        return False
    return isinstance(description, str) and description.startswith(PHANTOM_MARK)


def check_not_replaced(folder: Path, files: Iterable[Path]) -> None:
    """Raises NoiseToolsError if one of `files` lies in `folder`: with --overwrite it would go with the old folder.

    A corrupted data set refers to the images of its source, so to write over that source takes them from both.
    """
    if not folder.exists():
        return
    place = folder.resolve()
    for file in files:
        if _lies_in(place, file):
            raise NoiseToolsError(
                f"The source uses {file}, which --overwrite would remove with the old {folder.name}; "
                "choose another id with -o."
            )


def _check_not_used(folder: Path, others: Iterable[Path]) -> None:
    """Raises NoiseToolsError if dataset.json of one of `others` lists files in `folder`.

    A corrupted data set refers to the images of its source: its labels would belong to other images without a word.
    """
    place = folder.resolve()
    users = [other.name for other in sorted(others) if any(_lies_in(place, file) for file in referenced_files(other))]
    if users:
        raise NoiseToolsError(
            f"Files of {folder.name} are used by {', '.join(users)}, to which --overwrite would give other ones; "
            "choose another id with -o, or remove what uses them first and make it again afterwards."
        )


def _lies_in(place: Path, file: Path) -> bool:
    """Whether a file is in the folder `place`; as it is named, too: of a link in an old folder the link would go."""
    return file.resolve().is_relative_to(place) or (file.parent.resolve() / file.name).is_relative_to(place)


def other_folder(variable: str, pattern: str) -> Path | None:
    """The first folder that matches `pattern` where an nnU-Net variable points, or None."""
    root = os.environ.get(variable)
    found = sorted(path for path in Path(root).glob(pattern) if path.is_dir()) if root else []
    return found[0] if found else None


@contextlib.contextmanager
def written_whole(folder: Path) -> Iterator[Path]:
    """A temporary sibling of `folder` to write in; it takes the folder's place when the block ends well, else it goes.

    A folder that is replaced is removed only after the new one is complete. The temporary name does not start with
    'Dataset', so nnU-Net never sees it, even after a kill.
    """
    temporary = _free_name(folder)
    replaced = _replaced(temporary)
    try:
        temporary.mkdir()
        yield temporary
        if folder.exists():
            folder.rename(replaced)
        try:
            temporary.rename(folder)
        except BaseException:
            if replaced.exists():
                replaced.rename(folder)
            raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise NoiseToolsError(
            f"Could not write {folder.name} ({reason}); nothing was kept, mend this and run again."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if folder.exists():  # never the only copy
            shutil.rmtree(replaced, ignore_errors=True)


def _free_name(folder: Path) -> Path:
    """A hidden name beside `folder`; a killed run may have left one of the same process number, as in containers."""
    numbers = itertools.count(1)
    path = start = folder.with_name(f".noise_tools-{folder.name}-{os.getpid()}")
    while path.exists() or _replaced(path).exists():
        path = start.with_name(f"{start.name}-{next(numbers)}")
    return path


def _replaced(temporary: Path) -> Path:
    return temporary.with_name(f"{temporary.name}-replaced")


def link_or_copy(source: Path, target: Path) -> None:
    """A hard link, or a copy where links cannot be made; never over a file that is there already.

    Raises:
        FileExistsError: `target` exists. It may be a link to the source's own file, which a copy would overwrite.
    """
    try:
        os.link(os.path.realpath(source), target)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        copy_new(source, target)


def copy_new(source: Path, target: Path) -> None:
    """A copy of a file's content; FileExistsError if `target` exists."""
    with open(source, "rb") as old, open(target, "xb") as new:
        shutil.copyfileobj(old, new, 1 << 20)
