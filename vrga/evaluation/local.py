"""Tasks from files on disk, offline: one YAML file each, and its rows as parquet.

    names = write_tasks(["MathVista", "MME", "vrga_grid"], "DATA", "OUT")
    # python -m lmms_eval --include_path OUT --tasks vrga_mathvista ...

A benchmark NAME is a file DATA/NAME.jsonl, .json, .csv or .parquet in its original format, with
its images in DATA, DATA/images, DATA/NAME or DATA/NAME/images.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow.parquet as pq
import yaml

from vrga.evaluation.files import SUFFIXES, embeds_images, read_rows, to_table
from vrga.evaluation.tasks import documents, grid, hallusionbench, mme, tallyqa
from vrga.images import holds_image, is_link

# The packaged YAML file of every task that can be read from files.
TASKS = {
    "vrga_geomath": "maths.yaml",
    "vrga_grid": "grid.yaml",
    "vrga_hallusionbench": "hallusionbench.yaml",
    "vrga_haloquest": "haloquest.yaml",
    "vrga_math": "maths.yaml",
    "vrga_mathverse": "maths.yaml",
    "vrga_mathvision": "maths.yaml",
    "vrga_mathvista": "maths.yaml",
    "vrga_mme": "mme.yaml",
    "vrga_mmhal": "mmhal.yaml",
    "vrga_pope": "pope.yaml",
    "vrga_rhbench": "rhbench.yaml",
    "vrga_tallyqa": "tallyqa.yaml",
    "vrga_wemath": "maths.yaml",
}
PACKAGED = Path(__file__).with_name("tasks")
# Fields that the scoring of a task reads beside question, answer and images.
_NEEDED = {
    "vrga_hallusionbench": ("category", "subcategory", "set_id", "figure_id", "question_id"),
    "vrga_mme": ("category", "question_id"),
    "vrga_tallyqa": ("issimple",),
}
# Scoring every row once, before anything is generated, finds values it cannot work with.
_SCORED = {
    "vrga_hallusionbench": hallusionbench.process,
    "vrga_mme": mme.process,
    "vrga_tallyqa": tallyqa.process,
}
_KEPT: dict[str, Callable[[dict], bool]] = {"vrga_hallusionbench": hallusionbench.has_figure}


def task_name(name: str) -> str:
    """ "MathVista", "RH-Bench" or "vrga_mme" as the task's name.

    Raises:
        ValueError: no such task.
    """
    task = "vrga_" + _plain(name).removeprefix("vrga")
    if task not in TASKS:
        raise ValueError(f"no task for {name!r}; there are {', '.join(TASKS)}")
    return task


def write_tasks(
    names: Sequence[str],
    data_folder: str | Path,
    output_folder: str | Path,
    samples: grid.Grid | None = None,
) -> list[str]:
    """Write tasks for lmms-eval whose rows are read from files.

    Args:
        names: benchmarks or tasks, such as "MathVista" or "vrga_grid".
        data_folder: where their files are; "vrga_grid" needs none.
        output_folder: gets NAME.yaml and NAME.parquet; for lmms-eval's `--include_path`, before
            the packaged folder if that is given too.
        samples: what "vrga_grid" asks about.

    Returns:
        The tasks' names, in order.

    Raises:
        ValueError: an unknown name, or a file whose content cannot be read; names file and field.
        FileNotFoundError: no file for a name; says what was looked for and what is there.
    """
    output = Path(output_folder).absolute()
    output.mkdir(parents=True, exist_ok=True)
    tasks = [task_name(name) for name in names]
    for task in tasks:
        if task == "vrga_grid":
            rows = grid.rows(samples or grid.Grid())
            file = _write_rows(rows, output / f"{task}.parquet")
        else:
            file = _write_file(task, Path(data_folder).absolute(), output)
        written = {
            "include": str(PACKAGED / TASKS[task]),
            "task": task,
            "dataset_path": "parquet",
            "dataset_kwargs": {"data_files": {"test": str(file)}},
            "test_split": "test",
        }
        (output / f"{task}.yaml").write_text(yaml.safe_dump(written, sort_keys=False))
    return tasks


def find(task: str, folder: Path) -> Path:
    """The file of a task in a folder, whatever its name's case and dashes.

    Raises:
        FileNotFoundError: none; says what was looked for and what is there.
    """
    wanted = task.removeprefix("vrga_")
    there = sorted(path for path in folder.iterdir()) if folder.is_dir() else []
    for suffix in SUFFIXES:
        for path in there:
            if path.suffix.lower() == suffix and _plain(path.stem) == wanted:
                return path
    nothing = "nothing" if folder.is_dir() else "no such folder"
    found = ", ".join(path.name for path in there) or nothing
    looked = ", ".join(wanted + suffix for suffix in SUFFIXES)
    raise FileNotFoundError(f"{task}: looked for {looked} in {folder}; found {found}")


def _write_file(task: str, folder: Path, output: Path) -> Path:
    """The rows of a task's file as parquet, images as absolute paths."""
    path = find(task, folder)
    if embeds_images(path):
        return path  # as exported from the hub: lmms-eval reads it as it is
    rows = [row for row in read_rows(path) if _KEPT.get(task, lambda _: True)(row)]
    if not rows:
        raise ValueError(f"{path}: no rows")
    for i, row in enumerate(rows):
        try:
            documents.question(row), documents.target(row), documents.options(row)
            missing = [name for name in _NEEDED.get(task, ()) if row.get(name) is None]
            if missing:
                raise KeyError(f"no field {', '.join(missing)}")
            if task in _SCORED:
                _SCORED[task](row, [""])
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}, row {i + 1}: {error.args[0]}") from error
    places = _image_folders(task, folder, path)
    for i, row in enumerate(rows, 1):
        name = next((name for name in documents.IMAGE if row.get(name)), None)
        if name is not None:
            values = row.pop(name)
            values = values if isinstance(values, list) else [values]
            row["images"] = [_image(path, i, value, places) for value in values]
    return _write_rows(rows, output / f"{task}.parquet")


def _write_rows(rows: list[dict], file: Path) -> Path:
    pq.write_table(to_table(rows), file)
    return file


def _image_folders(task: str, folder: Path, path: Path) -> list[Path]:
    wanted = (task.removeprefix("vrga_"), _plain(path.stem))
    own = [sub for sub in sorted(folder.iterdir()) if sub.is_dir() and _plain(sub.name) in wanted]
    return [place for base in (folder, *own) for place in (base, base / "images")]


def _image(path: Path, row: int, value: object, places: list[Path]) -> str:
    """An image in base64 as it is, and of others where the file is.

    Raises:
        ValueError: neither a name nor an image.
    """
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{path}, row {row}: the image {value!r} is no name of a file")
    return value if holds_image(value) else str(_found(value, places))


def _found(value: str, places: list[Path]) -> Path:
    """Where an image is, by its path or, as for a link, its name; the first place if nowhere.

    A missing image is an error of its sample, when it is asked about, not of the whole file.
    """
    link = is_link(value)
    names = [value.rsplit("/", 1)[-1]] if link else [value, Path(value).name]
    tried = [place / name for name in names for place in places]
    return next((path for path in tried if _is_file(path)), tried[0])


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name too long, or with a zero byte
        return False


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
