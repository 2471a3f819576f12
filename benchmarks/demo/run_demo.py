"""`make demo`: wrong labels on the phantom, three trainers, prediction by stock nnU-Net, a table and a picture.

Every step is a command that a user would type; it is printed before it runs, its output goes to FOLDER/logs.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic

CLEAN, NOISY = "Dataset900_Phantom", "Dataset901_PhantomNoisy"
# Row of the table: (name, trainer without its epoch variant).
ARMS = (("nnU-Net", "nnUNetTrainer"), ("mixed", "nnUNetTrainerMixed"), ("MetaDCSeg", "nnUNetTrainerMetaDCSeg"))
OWN_FOLDER = ".made_by_make_demo"
CPU_SETTINGS = {"nnUNet_n_proc_DA": "0", "nnUNet_def_n_proc": "2", "nnUNet_compile": "f"}


class DemoError(Exception):
    """A step failed or the folder is not ours; the message is what the user reads."""


@dataclass(frozen=True)
class Demo:
    """The demo's folder, device and environment, and how commands run in it."""

    folder: Path
    device: str
    started: float = field(default_factory=monotonic)

    def environment(self) -> dict[str, str]:
        """The four variables of nnU-Net and, without a GPU, the settings for few cores."""
        variables = {
            f"nnUNet_{kind}": str(self.folder / f"nnUNet_{kind}") for kind in ("raw", "preprocessed", "results")
        }
        variables["nnUNet_extTrainer"] = subprocess.check_output(
            [console_script("metadcseg"), "ext-path"], text=True
        ).strip()
        return variables | (CPU_SETTINGS if self.device == "cpu" else {})

    def run(self, environment: Mapping[str, str], *line: object, **variables: str) -> str:
        """Runs one command (with more variables, where given), its output in a log file, and returns that output."""
        command, *arguments = map(str, line)
        prefix = [f"{name}={value}" for name, value in variables.items()]
        print(f"[{clock(monotonic() - self.started)}] $ {' '.join([*prefix, command, *arguments])}", flush=True)
        logs = sorted((self.folder / "logs").glob("*.log"))
        log = self.folder / "logs" / f"{len(logs):02d}_{command}.log"
        with log.open("w") as file:
            done = subprocess.run(
                [console_script(command), *arguments],
                env={**os.environ, **environment, **variables},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        if done.returncode:
            last = (log.read_text().strip().splitlines() or ["no output"])[-1]
            raise DemoError(f"{command} ended with status {done.returncode}: {last}; all of its output is in {log}")
        return log.read_text()


def console_script(name: str) -> str:
    """A command of the environment that runs this script, whether it is activated or not.

    Raises:
        DemoError: that environment lacks it.
    """
    command = Path(sys.executable).parent / name
    if not command.is_file():
        raise DemoError(
            f"There is no {command}: the package is not installed for this Python; start it with: make demo"
        )
    return str(command)


def clock(seconds: float) -> str:
    return f"{int(seconds) // 60:2d}:{int(seconds) % 60:02d}"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("demo"), help="made anew (default: demo)")
    parser.add_argument(
        "--epochs", type=int, default=5, choices=(1, 5, 10, 20, 50, 100, 250), help="epochs per trainer"
    )
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda", "mps"))
    args = parser.parse_args(argv)
    try:
        console_script("metadcseg")  # before an earlier demo is removed
        demo = Demo(fresh_folder(args.folder.resolve()), args.device)
        run_demo(demo, "_1epoch" if args.epochs == 1 else f"_{args.epochs}epochs")
    except DemoError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def fresh_folder(folder: Path) -> Path:
    """Empties a folder that an earlier demo made; refuses any other that holds something."""
    if any(path.exists() and not path.is_dir() for path in (folder, *folder.parents)):
        raise DemoError(f"{folder} is or lies in a file, expected a new folder; name one with --folder")
    if folder.exists() and any(folder.iterdir()):
        if not (folder / OWN_FOLDER).is_file():
            raise DemoError(f"{folder} holds files that no demo wrote, expected a new folder; name one with --folder")
        shutil.rmtree(folder)
    (folder / "logs").mkdir(parents=True)
    (folder / OWN_FOLDER).touch()
    for kind in ("raw", "preprocessed", "results"):
        (folder / f"nnUNet_{kind}").mkdir()
    return folder


def run_demo(demo: Demo, variant: str) -> None:
    """Data, training, prediction, score, report."""
    environment = demo.environment()
    for name, value in environment.items():
        print(f"export {name}={value}")
    configuration = prepare_data(demo, environment)
    shown = link_shown_cases(demo.folder)
    for arm, trainer in ARMS:
        demo.run(
            *(environment, "nnUNetv2_train", 901, configuration, 0, "-tr", trainer + variant),
            *("-device", demo.device),
        )
        predict(demo, environment, configuration, trainer + variant, demo.folder / "predictions" / arm)
    arm, trainer = ARMS[-1]
    predict(demo, environment, configuration, trainer + variant, demo.folder / "shown" / "predictions", shown)
    report(demo, environment, configuration, trainer + variant)


def prepare_data(demo: Demo, environment: Mapping[str, str]) -> str:
    """Phantom, corrupted copy, preprocessing; returns the name of the small configuration."""
    demo.run(environment, "noise_tools", "phantom", "-o", 900, "-n", 24, "--seed", 0, "-np", 2)
    demo.run(
        *(environment, "noise_tools", "corrupt", "-d", 900, "-o", 901, "--noise", "erosion", "dilation", "affine"),
        *("--case-fraction", 0.6, "--label-dice", 0.6, "--trusted", 5, "--seed", 0, "-np", 2),
    )
    plan = ("nnUNetv2_plan_and_preprocess", "-d", 901, "-c", "3d_fullres", "-np", 2, "-npfp", 2)
    # nnU-Net's planner sets as many threads as nnUNet_n_proc_DA says, and refuses the 0 that is fastest for training.
    demo.run(environment, *plan, nnUNet_n_proc_DA="1")
    small = demo.run(
        *(environment, "metadcseg", "small-config", "-d", 901, "-c", "3d_fullres"),
        *("--batch-size", 2, "--patch", 24, 32, 32),
    )
    return small.strip()


def link_shown_cases(folder: Path) -> Path:
    """Links the images of one corrupted training case per noise type, the case with the lowest label Dice."""
    raw = folder / "nnUNet_raw" / NOISY
    images = folder / "shown" / "images"
    images.mkdir(parents=True)
    for case in worst_cases(json.loads((raw / "noise_manifest.json").read_text())):
        dataset = json.loads((raw / "dataset.json").read_text())["dataset"]
        for channel, image in enumerate(dataset[case]["images"]):
            source = (raw / image).resolve()
            (images / f"{case}_{channel:04d}.nii.gz").symlink_to(source)
    return images


def worst_cases(manifest: Mapping) -> list[str]:
    """For each noise type the corrupted case whose label is furthest from the clean one."""
    worst: dict[str, tuple[float, str]] = {}
    for case, entry in manifest["cases"].items():
        if entry["noise"]:
            found = (entry["label_dice"]["achieved"], case)
            worst[entry["noise"]] = min(worst.get(entry["noise"], found), found)
    return [case for _, case in worst.values()]


def predict(
    demo: Demo,
    environment: Mapping[str, str],
    configuration: str,
    trainer: str,
    output: Path,
    images: Path | None = None,
) -> None:
    """Stock nnU-Net predicts, by default the clean test cases, and then scores them against the clean labels."""
    raw = demo.folder / "nnUNet_raw" / CLEAN
    demo.run(
        *(environment, "nnUNetv2_predict", "-d", 901, "-i", images or raw / "imagesTs", "-o", output),
        *("-c", configuration, "-f", 0, "-tr", trainer, "-device", demo.device, "-npp", 1, "-nps", 1),
    )
    if images is None:
        demo.run(
            *(environment, "nnUNetv2_evaluate_folder", raw / "labelsTs", output, "-np", 2),
            *("-djfile", output / "dataset.json", "-pfile", output / "plans.json"),
        )


def report(demo: Demo, environment: Mapping[str, str], configuration: str, trainer: str) -> None:
    """The table on the screen and in report.md, and the picture."""
    scores = {arm: read_scores(demo.folder / "predictions" / arm / "summary.json") for arm, _ in ARMS}
    dataset = json.loads((demo.folder / "nnUNet_raw" / NOISY / "dataset.json").read_text())
    table = score_table(scores, {str(value): name for name, value in dataset["labels"].items() if value != 0})
    (demo.folder / "report.md").write_text(table)
    print(f"\n{table}", flush=True)
    model = demo.folder / "nnUNet_results" / NOISY / f"{trainer}__nnUNetPlans__{configuration}"
    demo.run(
        environment, "python", Path(__file__).with_name("draw_report.py"), "--folder", demo.folder, "--model", model
    )
    print(f"[{clock(monotonic() - demo.started)}] wrote {demo.folder / 'report.md'} and {demo.folder / 'report.png'}")


def read_scores(summary: Path) -> dict[str, float]:
    """Mean Dice over the test cases: "mean" over the labels, and each label by its number."""
    content = json.loads(summary.read_text())
    labels = {label: values["Dice"] for label, values in content["mean"].items()}
    return {"mean": content["foreground_mean"]["Dice"], **labels}


def score_table(scores: Mapping[str, Mapping[str, float]], label_names: Mapping[str, str]) -> str:
    """A Markdown table with one row per arm."""
    header = ["trained with", "mean Dice", *label_names.values()]
    lines = ["Dice on the clean test cases (all arms trained on the same wrong labels).\n"]
    lines += [f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
    for arm, score in scores.items():
        cells = [f"{score[key]:.3f}" for key in ("mean", *label_names)]
        lines.append(f"| {' | '.join([arm, *cells])} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
