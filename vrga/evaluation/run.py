"""`vrga eval`: benchmarks of lmms-eval with and without VRGA, on the same samples and backend."""

from __future__ import annotations

import contextlib
import dataclasses
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from rich.console import Console

from vrga.closer.zoom import Zoom
from vrga.config import VRGAConfig
from vrga.demo.data import split_options
from vrga.evaluation.harness import TASKS, check_closer_tasks, load_tasks, quiet, silent, task_index
from vrga.evaluation.progress import progress
from vrga.evaluation.scoring import sample_score
from vrga.evaluation.store import ANSWERED, Store, fingerprint, write_json
from vrga.evaluation.tables import page, rich_table, summary
from vrga.evaluation.wording import say_config
from vrga.recording.package_versions import versions_and_device

RESULTS, TABLE = "results.json", "table.md"
BASE, STEERED, ZOOM = "base", "vrga", "zoom"
LOCAL = "transformers"
DRAWN = 10_000  # questions of the grid task at most; other commands' begin behind them
FIELDS = {**ANSWERED, "task": (str,)}
NOT_SETTINGS = ("batch", "device_map", "told")  # decide how fast, not what


@dataclass(frozen=True)
class Evaluation:
    """What to evaluate.

    Args:
        model: as of `vrga.load`; None is the embedded model.
        tasks: of lmms-eval or of this package.
        arms: some of "base", "vrga" and "zoom".
        config: how the arms "vrga" and "zoom" steer.
        zoom: when and where the arm "zoom" looks closer.
        told: that configuration in words, for the console.
        data: folder with the tasks' files; None takes them from the hub.
        prompt: "task", "direct", "cot", "back", "solution", or a text with {question}.
        limit: samples of each task; None is all.
        split: of the grid task's questions, a key of `vrga.demo.data.SPLITS`.
        engine: "transformers", or the address of a server that runs VRGA in vLLM.
    """

    model: str | None
    tasks: tuple[str, ...]
    arms: tuple[str, ...]
    config: VRGAConfig
    told: str = ""
    zoom: Zoom | None = None
    data: Path | None = None
    prompt: str = "task"
    limit: int | None = None
    split: str = "clean"
    max_new_tokens: int | None = None
    min_pixels: int | None = None
    max_pixels: int | None = None
    seed: int = 0
    dtype: str = "auto"
    attn_implementation: str | None = None
    batch: int = 1
    device_map: str | None = None
    engine: str = LOCAL

    def __post_init__(self):
        if self.split != "clean" and "vrga_grid" not in map(own_task, self.tasks):
            raise ValueError("--split is for the grid task: leave it out with others")
        if "vrga_grid" in map(own_task, self.tasks) and (self.limit or 0) > DRAWN:
            raise ValueError(f"--limit {self.limit}: the grid task has at most {DRAWN} questions")
        if self.data is not None and not self.files():
            raise ValueError(
                f"--data {self.data}: none of the tasks {', '.join(self.tasks)} is read from "
                "files: leave it out, or name one that is"
            )
        if (ZOOM in self.arms) != (self.zoom is not None):
            raise ValueError(f"arms={self.arms}, zoom={self.zoom}: one without the other")

    def files(self) -> dict[str, Path]:
        """The files that tasks are read from, by the tasks' names."""
        from vrga.evaluation import local

        if self.data is None:
            return {}
        names = [own_task(name) for name in self.tasks]
        return {
            name: local.find(name, self.data)
            for name in names
            if name is not None and name != "vrga_grid"
        }

    def settings(self) -> dict:
        """What a resumed run must have in common, as JSON values."""
        own = dataclasses.asdict(self)
        for name in NOT_SETTINGS:
            own.pop(name)
        own["data"] = None if self.data is None else str(self.data)
        own["data_hash"] = {task: fingerprint(path) for task, path in self.files().items()}
        own["config"] = own["config"] if set(self.arms) - {BASE} else None
        return {"command": "eval", **own}


def evaluate(chosen: Evaluation, output: Path, *, resume: bool, console: Console) -> dict | None:
    """Run it; write samples.jsonl, results.json and table.md, and print the table.

    Returns:
        What results.json holds; None in all processes but the first.

    Raises:
        ImportError: lmms-eval is not installed.
        ValueError: unknown tasks; settings other than those of the run to resume.
    """
    _check_harness()
    quiet()
    from accelerate import Accelerator

    from vrga.evaluation import lmms

    processes = Accelerator(cpu=not torch.cuda.is_available())
    first = processes.is_main_process
    settings = chosen.settings()
    if first:
        # Refuses before anything is loaded.
        Store(output, settings, resume=resume, fields=FIELDS).close()
    processes.wait_for_everyone()
    names, manager = _tasks(chosen, output, first, processes.wait_for_everyone)
    loaded = None if chosen.engine != LOCAL else lmms.loaded(
        processes, chosen.model, chosen.device_map, chosen.dtype, chosen.attn_implementation
    )  # fmt: skip
    rank, ranks = processes.process_index, processes.num_processes
    store = Store(output, settings, resume=True, rank=rank, ranks=ranks, fields=FIELDS)
    if first and store.damaged:
        console.print(f"{store.damaged} damaged lines in {output}: their samples are asked again")
    if first and set(chosen.arms) - {BASE}:
        say_config(console, chosen.told or chosen.config.name)
    found = {}
    try:
        with progress(console) if first else contextlib.nullcontext() as bar:
            for arm in chosen.arms:
                found[arm] = _arm(chosen, arm, loaded, names, manager, store, bar)
                processes.wait_for_everyone()
    finally:
        store.close()
    processes.wait_for_everyone()
    if not first:
        return None
    results = {"settings": settings, "processes": ranks, "batch": chosen.batch}
    results |= _results(store, found)
    write_json(output / RESULTS, results)
    (output / TABLE).write_text(page(results["tasks"]), "utf-8")
    console.print(rich_table(results["tasks"]))
    return results


def _results(store: Store, found: dict[str, dict]) -> dict:
    """What all processes answered, scored; `found` has what lmms-eval returned of each arm."""
    store.gather()
    for arm, results in found.items():
        for task, logged in results["samples"].items():
            for one in logged:
                _score(store.done.get(f"{arm}/{task}/{one['doc_id']}"), one)
    samples = store.finish(sorted(store.done, key=_order))
    return {
        "versions": versions_and_device() | {"lmms-eval": version("lmms-eval")},
        "tasks": summary(samples, {arm: found[arm]["results"] for arm in found}),
        "failed": sum(one["error"] is not None for one in samples),
    }


def _check_harness() -> None:
    try:
        import lmms_eval  # noqa: F401
    except ImportError as error:
        raise ImportError(
            'evaluation needs lmms-eval: pip install "vrga[eval]", then pip install --no-deps '
            "lmms-eval==0.7.3 (its own requirements would replace torch)"
        ) from error


def own_task(name: str) -> str | None:
    """This package's task of a name such as "MathVista" or "grid", or None."""
    from vrga.evaluation import local

    try:
        return local.task_name(name)
    except ValueError:
        return None


def _tasks(chosen: Evaluation, output: Path, first: bool, wait) -> tuple[list[str], object]:
    """The tasks' names, and lmms-eval's index of tasks; local files are made into tasks."""
    from vrga.evaluation import local
    from vrga.evaluation.tasks.grid import Grid

    folder = output / TASKS
    names: list[str] = []
    own: list[str] = []
    for name in chosen.tasks:
        ours = own_task(name)
        if ours is not None and (ours == "vrga_grid" or chosen.data is not None):
            own.append(ours)
            names.append(ours)
        else:
            names.append(name)
    if first:
        grid = Grid(samples=chosen.limit or 1000, **split_options(chosen.split))
        local.write_tasks(own, chosen.data or Path(), folder, grid)
    wait()
    manager = task_index(folder, names)
    unknown = [name for name in names if name not in manager.all_tasks]
    if unknown:
        raise ValueError(
            f"no task {', '.join(unknown)} in lmms-eval or in this package, whose own are "
            f"{', '.join(local.TASKS)} (all but vrga_grid from files: --data)"
        )
    for name in names:
        if name not in own or ZOOM in chosen.arms:
            found = load_tasks(name, manager)  # refuses before a model is loaded for it
            if ZOOM in chosen.arms:
                check_closer_tasks(found)
    return names, manager


def _arm(chosen: Evaluation, arm: str, loaded, names, manager, store: Store, bar) -> dict:
    """One arm: the samples, answered or known already, and lmms-eval's metrics of them."""
    from lmms_eval.evaluator import simple_evaluate

    from vrga.evaluation.lmms import VRGAModel

    model = VRGAModel(
        loaded,
        vrga=arm != BASE,
        config="default" if arm == BASE else chosen.config,
        zoom=chosen.zoom if arm == ZOOM and chosen.zoom is not None else False,
        prompt=chosen.prompt,
        batch_size=chosen.batch,
        max_new_tokens=chosen.max_new_tokens,
        min_pixels=chosen.min_pixels,
        max_pixels=chosen.max_pixels,
        seed=chosen.seed,
        server=None if chosen.engine == LOCAL else chosen.engine,
    )
    model.store = store
    if bar is not None:
        line = bar.add_task(arm, total=None)
        model.begin = lambda total: bar.update(line, total=total)
        model.advance = lambda count: bar.advance(line, count)
    with silent():
        found = simple_evaluate(
            model,
            tasks=list(names),
            task_manager=manager,
            limit=chosen.limit,
            bootstrap_iters=1000,
            log_samples=True,
            random_seed=chosen.seed,
            torch_random_seed=chosen.seed,
            verbosity="ERROR",
        )
    return found or {"results": {}, "samples": {}}


def _score(sample: dict | None, logged: dict) -> None:
    """Give a sample the score that its task's own code found."""
    if sample is None or sample["error"] is not None:
        return
    known = {"doc_id", "doc", "target", "arguments", "resps", "filtered_resps", "token_counts",
             "doc_hash", "input_media"}  # fmt: skip
    sample["score"] = sample_score({k: v for k, v in logged.items() if k not in known})


def _order(key: str) -> tuple:
    arm, task, number = key.split("/")[0], "/".join(key.split("/")[1:-1]), key.rsplit("/", 1)[-1]
    digits = number.rstrip("+")
    return arm, task, int(digits) if digits.isdigit() else 0, number
