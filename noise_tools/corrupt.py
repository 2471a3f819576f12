"""`noise_tools corrupt`: a copy of a raw data set with some of its training labels made wrong on purpose."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from noise_tools import manifest as manifests
from noise_tools.errors import NoiseToolsError, reason_of
from noise_tools.metrics import label_metrics
from noise_tools.output import (
    check_not_replaced,
    copy_new,
    link_or_copy,
    other_folder,
    output_folder,
    reserved,
    written_whole,
)
from noise_tools.parallel import Workers
from noise_tools.plan import Plan, generator, make_plan, with_trusted
from noise_tools.presets import find as find_preset
from noise_tools.raw_dataset import (
    Case,
    RawDataset,
    check_files,
    open_dataset,
    raw_root,
    read_label,
    relative_to,
    side_file,
    write_label_like,
)
from noise_tools.recipe import DEFAULTS, Component, for_nested_labels, load_recipe, parse_components, with_parameters
from noise_tools.recipe import check as check_components
from noise_tools.severity import MEASURES, Found, Target, Trial, find_severity, measure
from noise_tools.source_cases import KnownCases, known_cases
from noise_tools.summary import summary
from noise_tools.trusted_classes import classes_not_trusted

if TYPE_CHECKING:
    import argparse

DEFAULT_SEVERITY = (0.1, 0.3)
_LISTED = 10  # labels that cannot be used, of which the error says why


@dataclass(frozen=True)
class Request:
    """What to corrupt and how. Fractions in [0, 1].

    Attributes:
        components: the noise, see recipe.py.
        case_fraction: share of the cases that are neither trusted nor test cases.
        label_dice, surface_distance, label_change: what each corrupted label should be in comparison with the clean
            one, as in severity.py (at most one of them; surface distance is HD95 in mm). Without any, `severity` is
            drawn.
        severity: range that severity is drawn from without a target; None means
            `DEFAULT_SEVERITY`, or the whole range of a strength that the user set.
        trusted: how many cases stay clean and are named trusted, or which; None: those that the source declares, or 5
            where it declares none.
        test: how many clean cases to hold out as test cases, or which.
        allow_empty: accept cases without foreground (kept as they are) and labels that lose all of it.
    """

    components: tuple[Component, ...]
    case_fraction: float
    seed: int
    label_dice: float | None = None
    surface_distance: float | None = None
    label_change: float | None = None
    severity: tuple[float, float] | None = None
    trusted: int | tuple[str, ...] | None = None
    test: int | tuple[str, ...] = 0
    allow_empty: bool = False

    @property
    def target(self) -> Target | None:
        """The measure asked for, if any."""
        asked = [Target(name, getattr(self, name)) for name in MEASURES if getattr(self, name) is not None]
        return asked[0] if asked else None

    def as_json(self) -> dict[str, Any]:
        content = asdict(self)
        content["components"] = [component.as_json() for component in self.components]
        return content


@dataclass(frozen=True)
class Job:
    """Everything a worker needs."""

    dataset: RawDataset
    request: Request
    plan: Plan
    labels_folder: Path

    def has_foreground(self, label: np.ndarray) -> bool:
        """Whether any declared label occurs."""
        return bool(np.isin(label, self.dataset.labels.foreground).any())


def run(args: argparse.Namespace) -> int:
    """Entry point of the command line."""
    dataset = open_dataset(args.dataset)
    components, numbers, note = _noise_of(args, dataset)
    request = Request(
        components=components,
        seed=args.seed,
        trusted=tuple(args.trusted_cases) if args.trusted_cases else args.trusted,
        test=_count_or_names(args.test_cases, dataset.cases),
        allow_empty=args.allow_empty,
        **numbers,
    )
    name = args.name or f"{dataset.short_name}Noisy"
    with reserved(raw_root(), args.output):
        folder = output_folder(raw_root(), args.output, name, args.overwrite, dataset.folder)
        known = known_cases(dataset)
        content, lacking = corrupt(dataset, folder, request, args.processes, known)
    print(summary(content))
    print(f"{trusted_note(dataset.name, known, content)}{note}Wrote {folder}")
    if lacking:
        print(
            f"WARNING: no trusted case holds {', '.join(lacking)}, so nothing vouches for such labels; name cases that "
            "do with --trusted-cases."
        )
    _say_what_preprocessing_needs(dataset, folder)
    return 0


def _say_what_preprocessing_needs(dataset: RawDataset, folder: Path) -> None:
    """Prints what in nnUNet_preprocessed does not come along or is out of date."""
    split = other_folder("nnUNet_preprocessed", dataset.name)
    if split and (split / "splits_final.json").is_file():
        print(
            f"{split / 'splits_final.json'} does not come along: where its folds matter (several cases of one "
            "patient), copy it to the new data set's folder there before training, without cases held out."
        )
    prepared = other_folder("nnUNet_preprocessed", folder.name)
    if prepared is not None:
        print(f"{prepared} was made from the old one: run nnUNetv2_plan_and_preprocess again.")
        if (prepared / "trusted_cases.json").is_file():
            print("WARNING: its trusted_cases.json, made for the old one, wins over the new trusted cases: remove it.")


def _noise_of(args: argparse.Namespace, dataset: RawDataset) -> tuple[tuple[Component, ...], dict[str, Any], str]:
    """Components, the request's numbers (command line before recipe or preset before default), a note to print."""
    defaults: dict[str, Any] = {}
    note = ""
    if args.preset:
        preset = find_preset(args.preset)
        components, defaults = preset.build(dataset.labels.foreground), dict(preset.defaults)
        note = f"Preset {args.preset}. Source: {preset.source}\nHow it maps: {preset.mapping}\n"
    elif args.recipe:
        components, defaults = load_recipe(args.recipe)
    else:
        components = parse_components(args.noise)
    given = {key: getattr(args, key) for key in DEFAULTS if getattr(args, key) is not None}
    if any(key in given for key in (*MEASURES, "severity")):
        # A target on the command line replaces that of the recipe or preset.
        defaults = {key: value for key, value in defaults.items() if key == "case_fraction"}
    components = with_parameters(components, args.param)
    if dataset.labels.nested:
        components = for_nested_labels(components)
    return components, {"case_fraction": 1.0, **defaults, **given}, note


def corrupt(
    dataset: RawDataset, folder: Path, request: Request, processes: int = 1, known: KnownCases | None = None
) -> tuple[dict[str, Any], list[str]]:
    """Writes the corrupted data set to `folder`, which it replaces once complete.

    The result depends on the data set and `request` only, not on `processes`.

    Args:
        known: what `known_cases` reads of the data set, where it has been read already.

    Returns:
        The manifest, and the names of classes or regions that some training case holds, but no trusted one.
    """
    check_request(request)
    check_components(request.components, dataset.labels.foreground)
    known = known or known_cases(dataset)
    request = with_trusted(request, known)
    plan = make_plan(dataset, request, known)
    check_files(dataset)
    check_not_replaced(folder, dataset.files)
    test_files = find_test_files(dataset, plan.test)
    with written_whole(folder) as temporary:
        labels = temporary / "labelsTr"
        labels.mkdir()
        job = Job(dataset, request, plan, labels)
        training = [name for name in dataset.cases if name not in plan.test]
        with Workers(job, min(processes, len(training))) as workers:
            check_labels(workers, training)
            done = workers.run(corrupt_case, training, "Corrupting")
        entries = {name: entry for name, (entry, _) in done.items()}
        check_done(request, entries)
        content = manifests.make(
            dataset.name, request.as_json(), list(plan.trusted), list(plan.test), entries, known.corrupted
        )
        manifests.write(content, temporary / manifests.FILE_NAME)
        write_dataset_json(dataset, folder, temporary, training, plan.trusted)
        put_test_files(test_files, temporary)
    held = {name: values for name, (_, values) in done.items()}
    return content, classes_not_trusted(dataset.labels.regions, held, plan.trusted)


def trusted_note(source: str, known: KnownCases, content: Mapping[str, Any]) -> str:
    """Lines that say what became of the trusted cases that the source declares, if it does."""
    note = ""
    if known.declared:
        kept = len(set(known.declared) & set(content["trusted_cases"]))
        note += f"Of the {len(known.declared)} trusted cases that {source} declares, {kept} are trusted here.\n"
    if known.contradicted:
        note += (
            f"WARNING: {source} declares {', '.join(known.contradicted)} trusted, but by its "
            f"{manifests.FILE_NAME} their labels are corrupted: they are not trusted here.\n"
        )
    return note


def check_request(request: Request) -> None:
    """Raises NoiseToolsError for a number outside its range."""
    for flag, value in (("--case-fraction", request.case_fraction), ("--label-dice", request.label_dice)):
        if value is not None and not 0 <= value <= 1:
            raise NoiseToolsError(f"{flag} is {value:g}; give a fraction in [0, 1].")
    for flag, value in (("--surface-distance", request.surface_distance), ("--label-change", request.label_change)):
        if value is not None and not 0 < value < float("inf"):
            raise NoiseToolsError(f"{flag} is {value:g}; give a number above 0.")
    asked = [name for name in (*MEASURES, "severity") if getattr(request, name) is not None]
    if len(asked) > 1:
        flags = " and ".join("--" + name.replace("_", "-") for name in asked)
        raise NoiseToolsError(f"{flags} exclude each other; give one target.")
    if request.severity is not None:
        low, high = request.severity
        if not 0 <= low <= high <= 1:
            raise NoiseToolsError(f"--severity is {low:g}:{high:g}; expected LOW <= HIGH within [0, 1].")
    if request.seed < 0:
        raise NoiseToolsError(f"--seed is {request.seed}; give a whole number from 0.")


def check_labels(workers: Workers, training: Sequence[str]) -> None:
    """Reads every label before any is corrupted; raises NoiseToolsError that says what is wrong with them.

    The workers' `Job` says which cases need foreground.
    """
    found = workers.run(problem_of, training, "Checking")
    problems = [problem for problem in found.values() if problem]
    if len(problems) == 1:
        raise NoiseToolsError(problems[0])
    if problems:
        more = [f"... and {len(problems) - _LISTED} more."] if len(problems) > _LISTED else []
        lines = [
            f"{len(problems)} of {len(training)} labels cannot be used; mend them first:",
            *problems[:_LISTED],
            *more,
        ]
        raise NoiseToolsError("\n  ".join(lines))


def problem_of(job: Job, identifier: str) -> str | None:
    """Why the label of a case cannot be used, if so."""
    case = job.dataset.cases[identifier]
    try:
        label, _ = read_label(job.dataset, case)
    except NoiseToolsError as error:
        return str(error)
    if identifier not in job.plan.noisy or job.request.allow_empty or job.has_foreground(label):
        return None
    return (
        f"Case {identifier}: {case.label.name} has no foreground to corrupt; pass --allow-empty to leave such cases as "
        "they are."
    )


def check_done(request: Request, entries: Mapping[str, Any]) -> None:
    """Raises NoiseToolsError if noise of a drawn strength would have removed everything wherever it was applied.

    Single labels are left as they are then, but where all are, nothing was corrupted.
    """
    noisy = [entry for entry in entries.values() if entry["noise"]]
    if request.target is None and noisy and all("note" in entry for entry in noisy):
        kinds = ", ".join(dict.fromkeys(entry["noise"] for entry in noisy))
        raise NoiseToolsError(
            f"{kinds} would remove the whole foreground of every label chosen for noise ({len(noisy)}); ask for less "
            "noise, or pass --allow-empty to accept it."
        )


def corrupt_case(job: Job, identifier: str) -> tuple[dict[str, Any], list[int]]:
    """Writes the label of one case and returns its manifest entry, and the foreground values of the clean label."""
    case = job.dataset.cases[identifier]
    label, spacing = read_label(job.dataset, case)
    target = job.labels_folder / f"{identifier}{job.dataset.file_ending}"
    foreground = np.array(job.dataset.labels.foreground)
    held = foreground[np.isin(foreground, label)].tolist()
    entry: dict[str, Any] = {"noise": None}
    noisy = label
    if identifier in job.plan.noisy:
        component = job.request.components[job.plan.noisy[identifier]]
        if held:
            noisy, entry = make_noisy(job, component, case, label, spacing)
        else:
            entry["note"] = "chosen for noise, but the clean label has no foreground"
    write_label(job.dataset, case, label, noisy, target)
    entry["clean_sha256"] = manifests.sha256(case.label)
    entry["sha256"] = manifests.sha256(target)
    return entry, held


def write_label(dataset: RawDataset, case: Case, clean: np.ndarray, noisy: np.ndarray, target: Path) -> None:
    """Writes a label; one that did not change keeps its bytes, unless its file has another ending than the data set."""
    beside = side_file(case.label, dataset.file_ending)
    if beside is not None:
        copy_new(beside, target.with_name(f"{case.identifier}.json"))
    if np.array_equal(clean, noisy) and case.label.name.endswith(dataset.file_ending):
        copy_new(case.label, target)
    else:
        try:
            write_label_like(case.label, noisy, target, dataset.reader_writer)
        except RuntimeError as error:  # what SimpleITK says of a full disk
            raise NoiseToolsError(
                f"Could not write {target.name} ({reason_of(error)}); nothing was kept, mend this and run again."
            ) from error


def make_noisy(
    job: Job, component: Component, case: Case, label: np.ndarray, spacing: Sequence[float]
) -> tuple[np.ndarray, dict[str, Any]]:
    """The corrupted label and its manifest entry."""
    request, declared = job.request, job.dataset.labels
    regions = list(declared.regions.values())
    noises = [step.build(declared.foreground) for step in component.steps]

    def make(severity: float) -> tuple[np.ndarray, list[dict[str, Any]]]:
        current, steps = label, []
        for position, noise in enumerate(noises):
            # The same random numbers for every severity: the search moves strength only.
            rng = generator(request.seed, "case", case.identifier, str(position))
            params = noise.sample(rng, current, spacing, severity)
            current = noise.apply(current, spacing, params)
            steps.append({"type": noise.name, "params": params})
        return current, steps

    def attempt(severity: float) -> Trial:
        noisy = make(severity)[0]
        kept = request.allow_empty or job.has_foreground(noisy)
        changed = not np.array_equal(noisy, label)
        value = measure(target.measure, label, noisy, regions, spacing)
        return Trial(value, usable=kept and (changed or not target.wants_change), kept=kept)

    target = request.target
    if target is None:
        found = Found(_draw_severity(request, noises, case.identifier), 0.0, reached=True)
    else:
        found = find_severity(attempt, target.value, target.rising)
    noisy, steps = make(found.severity)
    note = {}
    if not request.allow_empty and not job.has_foreground(noisy):
        # One tiny structure must not cost the work on all other cases.
        noisy, steps, note = label, [], {"note": "left as it was: the noise would have removed the whole foreground"}
        found = replace(found, reached=target is None)
    return noisy, {
        "noise": component.name,
        **note,
        "severity": found.severity,
        "changed": not np.array_equal(noisy, label),
        **_achieved(request, found, label, noisy, regions, spacing),
        "regions": region_metrics(label, noisy, spacing, declared.regions),
        "steps": steps,
    }


def _achieved(
    request: Request,
    found: Found,
    label: np.ndarray,
    noisy: np.ndarray,
    regions: Sequence[Sequence[int]],
    spacing: Sequence[float],
) -> dict[str, Any]:
    """For every measure what was asked (or None), what came out, and whether that is what was asked."""
    result = {}
    for name in MEASURES:
        asked = getattr(request, name)
        result[name] = {
            "asked": asked,
            "achieved": _number(measure(name, label, noisy, regions, spacing)),
            "reached": None if asked is None else found.reached,
        }
    return result


def region_metrics(
    clean: np.ndarray, noisy: np.ndarray, spacing: Sequence[float], regions: Mapping[str, Sequence[int]]
) -> dict[str, dict[str, float | None]]:
    """Dice, HD95 in mm and relative volume change of every region; None where it is not defined."""
    names = {"dice": "dice", "hd95_mm": "hd95", "volume_change": "volume_change"}
    return {
        region: {ours: _number(values[theirs]) for ours, theirs in names.items()}
        for region, values in label_metrics(clean, noisy, spacing, dict(regions)).items()
    }


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _draw_severity(request: Request, noises: Sequence[Any], identifier: str) -> float:
    low, high = request.severity or ((0.0, 1.0) if any(noise.sets_strength for noise in noises) else DEFAULT_SEVERITY)
    return float(generator(request.seed, "severity", identifier).uniform(low, high))


def write_dataset_json(
    dataset: RawDataset, folder: Path, temporary: Path, training: Sequence[str], trusted: Sequence[str]
) -> None:
    """dataset.json of the new data set: images referenced where they are, labels in its own labelsTr."""
    root = folder.parent
    content = {
        **dataset.json,
        "name": folder.name[11:],
        "numTraining": len(training),
        "trusted_cases": sorted(trusted),
        "dataset": {
            name: {
                "images": [relative_to(image, folder, root) for image in dataset.cases[name].images],
                "label": f"labelsTr/{name}{dataset.file_ending}",
            }
            for name in sorted(training)
        },
    }
    (temporary / "dataset.json").write_text(json.dumps(content, indent=1) + "\n")


def find_test_files(dataset: RawDataset, held_out: Sequence[str]) -> dict[str, Path]:
    """Every file of imagesTs and labelsTs, by its place in the new data set: those of the source and cases held out.

    Raises:
        NoiseToolsError: a file of a case held out has the name of one that the source has. Test and training cases are
            often numbered alike.
    """
    files = {
        f"{part}/{path.name}": path
        for part in ("imagesTs", "labelsTs")
        if (dataset.folder / part).is_dir()
        for path in sorted((dataset.folder / part).iterdir())
        if path.is_file()
    }
    for name in held_out:
        own = _files_of(dataset, name)
        if not files.keys().isdisjoint(own):
            raise NoiseToolsError(
                f"{dataset.folder.name} has a test case {name} already, so the training case {name} cannot become one; "
                "choose others with --test-cases, or rename it in the source."
            )
        files |= own
    return files


def _files_of(dataset: RawDataset, name: str) -> dict[str, Path]:
    """Files of a training case by their place as a test case: all channels, the label, and what lies beside them.

    Raises:
        NoiseToolsError: a file has another ending than the data set (dataset.json may list such), so a copy under the
            name that nnU-Net expects would not be readable.
    """
    case, ending = dataset.cases[name], dataset.file_ending
    for path in (*case.images, case.label):
        if not path.name.endswith(ending):
            raise NoiseToolsError(
                f"{path.name} of case {name} does not end in {ending} as {dataset.name} says its files do, so the case "
                "cannot be held out; convert it, or choose others with --test-cases."
            )
    files = {f"imagesTs/{name}_{channel:04d}{ending}": image for channel, image in enumerate(case.images)}
    files[f"labelsTs/{name}{ending}"] = case.label
    beside = {"imagesTs": side_file(case.images[0], f"_0000{ending}"), "labelsTs": side_file(case.label, ending)}
    return files | {f"{part}/{name}.json": path for part, path in beside.items() if path is not None}


def put_test_files(files: Mapping[str, Path], folder: Path) -> None:
    """Brings files into `folder`, as `find_test_files` says.

    Images are hard links where possible, labels are copies: people correct labels, and the source must not change then.
    """
    for place, path in files.items():
        target = folder / place
        target.parent.mkdir(exist_ok=True)
        (link_or_copy if target.parent.name == "imagesTs" else copy_new)(path, target)


def _count_or_names(values: Sequence[str], cases: Collection[str]) -> int | tuple[str, ...]:
    if len(values) == 1 and values[0].removeprefix("-").isdecimal() and values[0] not in cases:
        return int(values[0])
    return tuple(values) if values else 0
