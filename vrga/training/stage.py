"""What SFT and RL share: the model, the record of steps, checkpoints, going on."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from rich.console import Console
from transformers import TrainerCallback

from vrga.config import FILE
from vrga.evaluation.items import Item
from vrga.evaluation.store import Store, read_samples, read_settings, write_json
from vrga.hf.checkpoints import save_processor
from vrga.hf.families import family_of
from vrga.hf.files import embedded
from vrga.images import read_image
from vrga.training.hacking import hacking
from vrga.training.model import loaded
from vrga.training.questions import Questions
from vrga.training.settings import Common

MODEL, WHOLE = "model", "whole.json"  # the model at the end; written when a checkpoint is whole
TESTED = "1.16"
STEP = {"step": (int,)}


def check_trl() -> None:
    """Say whether TRL is there, and the version that this was tested with.

    Raises:
        ImportError: it is missing.
    """
    try:
        import trl
    except ImportError as error:
        raise ImportError("training needs TRL: pip install 'vrga[train]'") from error
    if not trl.__version__.startswith(TESTED + "."):
        warnings.warn(
            f"training was tested with TRL {TESTED}, and this is {trl.__version__}: if it fails, "
            f"pip install 'trl=={TESTED}.*'",
            stacklevel=2,
        )


def rank() -> int:
    """Of this process, as torchrun and accelerate launch tell it."""
    return int(os.environ.get("RANK", 0))


def processes() -> int:
    """Of this run."""
    return int(os.environ.get("WORLD_SIZE", 1))


class Stage:
    """One training in a folder: its settings, its record of steps, its checkpoints.

    Args:
        folder: of the stage; base: the checkpoint it begins from, None is the embedded model.
        options: numbers; settings: whatever else decides what is trained, the base by a name.
        resume: go on from the newest whole checkpoint.

    Attributes:
        checkpoint: to go on from, or None.
        store: the record, in the first process alone; None in others.

    Raises:
        ValueError: as of `Store`: another run there, or one with other settings.
    """

    def __init__(
        self, folder: Path, base: str | None, options: Common, settings: dict, resume: bool
    ):
        self.folder, self.base, self.options = folder, base, options
        settings = {**settings, "processes": processes(), **dataclasses.asdict(options)}
        self.store = Store(folder, settings, resume=resume, fields=STEP) if rank() == 0 else None
        self.checkpoint = newest(folder) if resume else None

    def load(self, questions: Questions) -> tuple[torch.nn.Module, object]:
        """The model to go on with, and its processor.

        The Trainer reads no weights when it resumes, for a file's names are not the model's, and
        says nothing of it: so the model comes from the checkpoint itself.

        Raises:
            ValueError: as of `loaded`.
        """
        adapted = self.options.lora and self.checkpoint is not None
        where = self.base if self.checkpoint is None or adapted else self.checkpoint
        return loaded(where, questions.tag)

    def arguments(self, kind: type, rows: int) -> dict[str, object]:
        """Arguments that SFTConfig and GRPOConfig have in common.

        Args:
            kind: which of them.
            rows: that go through the model at one step, of all processes.

        Raises:
            ValueError: a step that processes and passes do not divide.
        """
        options, alone = self.options, not torch.cuda.is_available()
        at_once = options.per_device * processes()
        if rows % at_once:
            raise ValueError(
                f"a step has {rows} rows, which {processes()} processes of per_device="
                f"{options.per_device} do not divide: change batch or per_device"
            )
        # transformers renamed it in its version 5, and older ones do not know the new name.
        names = {field.name for field in dataclasses.fields(kind)}
        recompute = {"activation_checkpointing", "gradient_checkpointing"} & names
        return {min(recompute): options.checkpointing} | dict(
            output_dir=str(self.folder),
            per_device_train_batch_size=options.per_device,
            gradient_accumulation_steps=rows // at_once,
            learning_rate=options.learning_rate,
            warmup_steps=options.warmup,
            lr_scheduler_type=options.schedule,
            num_train_epochs=options.epochs,
            max_steps=options.max_steps or -1,
            save_strategy="steps",
            save_steps=options.save_every,
            save_total_limit=options.keep,
            logging_steps=1,
            report_to="none",
            disable_tqdm=True,
            seed=options.seed,
            use_cpu=alone,
            bf16=not alone and torch.cuda.is_bf16_supported(),
            dataloader_pin_memory=not alone,
            remove_unused_columns=False,
            # One process with a backend fails in some versions; several without GPUs need one.
            ddp_backend="gloo" if alone and processes() > 1 else None,
        )

    def adapter(self, model: torch.nn.Module) -> object | None:
        """What PEFT puts on a model's text layers, or None.

        Raises:
            ImportError: PEFT is missing.
        """
        if not self.options.lora:
            return None
        try:
            from peft import LoraConfig
        except ImportError as error:
            raise ImportError("lora needs PEFT: pip install 'vrga[train]'") from error
        if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
            raise ValueError("lora is merged at the end, which ZeRO-3 prevents: leave out one")
        return LoraConfig(
            r=self.options.lora, lora_alpha=2 * self.options.lora, task_type="CAUSAL_LM",
            target_modules=rf".*{family_of(model).text}.*\.(q|k|v|o|gate|up|down)_proj",
        )  # fmt: skip

    def run(self, trainer, processor, record: Record) -> str | None:
        """Train, write the model into `folder`/model; what stopped it, or None.

        Raises:
            OSError: the disk is full.
        """
        from transformers import PrinterCallback

        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(record)
        if self.checkpoint is not None and not self.options.lora:
            # Its own way finds no weight under its name, and says so of every one.
            trainer._load_from_checkpoint = lambda *args, **more: None
        with _disk_errors(), warnings.catch_warnings():
            # A call of TRL's own, which a user can do nothing about.
            warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
            trainer.train(resume_from_checkpoint=self.checkpoint and str(self.checkpoint))
            self._write(trainer, processor)
        _together()  # no process goes on before the model is written
        if self.store is not None:
            self.store.finish()
        return record.stopped

    def _write(self, trainer, processor) -> None:
        target = self.folder / MODEL
        if self.options.lora:
            if rank() == 0:
                merged = trainer.accelerator.unwrap_model(trainer.model).merge_and_unload()
                merged.save_pretrained(target)
        else:
            trainer.save_model(str(target))
        if rank() == 0:
            complete(target, processor, self.base)
            (target / "training_args.bin").unlink(missing_ok=True)


class Record(TrainerCallback):
    """Keeps what is logged of each step, completes checkpoints, and stops a hacked run.

    Args:
        stage: whose steps these are.
        stop: whether a run that is hacked ends.

    Attributes:
        answers: some of the step under way, with what they were paid.
        stopped: why the run was ended early, or None.
    """

    def __init__(self, stage: Stage, processor, stop: bool = False, console: Console | None = None):
        self.stage, self.processor, self.stop = stage, processor, stop
        self.console = console if rank() == 0 else None
        self.answers: list[dict] = []
        self.stopped: str | None = None
        kept = {} if stage.store is None else stage.store.done
        begun = 0 if stage.checkpoint is None else step_of(stage.checkpoint)
        self.steps = [one for one in _in_order(kept.values()) if one["step"] <= begun]

    def keep(self, answers: list[dict]) -> None:
        """Take some answers of the step under way."""
        self.answers = answers

    def on_log(self, args, state, control, logs=None, **more):
        if logs is None or "train_runtime" in logs:
            return
        line = {name.replace("/", "_"): value for name, value in logs.items()}
        line = {"key": f"step-{state.global_step:06d}", "step": state.global_step, **line}
        self.steps.append(line)
        if self.stage.store is not None:
            self.stage.store.add([line | {"answers": self.answers}])
        if self.console is not None:
            self.console.print(_told(line, state.max_steps), style="dim", soft_wrap=True)
        if self.stop and self.stopped is None and "reward" in line:
            # Every process sees the same averages, and so ends at the same step.
            self.stopped = hacking([_named(one) for one in self.steps])
            if self.stopped is not None:
                control.should_training_stop = control.should_save = True

    def on_step_end(self, args, state, control, model=None, **more):
        if control.should_save and rank() == 0:
            check_room(self.stage.folder, model)

    def on_save(self, args, state, control, **more):
        _together()  # others may still be writing their part
        if rank() == 0:
            where = self.stage.folder / f"checkpoint-{state.global_step}"
            complete(where, self.processor, self.stage.base)
            write_json(where / WHOLE, {"step": state.global_step})


def complete(where: Path, processor, base: str | None) -> None:
    """Make what a trainer saved a checkpoint that loads: processor, cache, configuration of VRGA.

    Args:
        base: the checkpoint that it comes from.
    """
    save_processor(processor, where)
    config = where / "config.json"
    if config.exists():
        found = json.loads(config.read_text("utf-8"))
        for part in (found, found.get("text_config") or {}):
            part.pop("use_cache", None)  # off while it was trained; answers need their cache
        config.write_text(json.dumps(found, indent=2, sort_keys=True) + "\n", "utf-8")
    own = (embedded() if base is None else Path(base)) / FILE
    if own.is_file():
        shutil.copy(own, where / FILE)


def newest(folder: Path) -> Path | None:
    """The newest whole checkpoint of a stage, or None."""
    found = [path.parent for path in folder.glob(f"checkpoint-*/{WHOLE}")]
    return max(found, key=step_of, default=None)


def step_of(checkpoint: Path) -> int:
    """The step that a checkpoint was saved at."""
    return int(checkpoint.name.removeprefix("checkpoint-"))


def check_room(folder: Path, model: torch.nn.Module) -> None:
    """Refuse to begin a checkpoint that the disk cannot hold.

    Raises:
        OSError: the disk is full, with how much is needed.
    """
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    moments = sum(8 * p.numel() for p in model.parameters() if p.requires_grad)
    free = shutil.disk_usage(folder).free
    if free < weights + moments:
        raise OSError(
            errno.ENOSPC,
            f"a checkpoint takes {(weights + moments) / 1e9:.2f} GB, and {folder} has "
            f"{free / 1e9:.2f} GB left: make room",
        )


def read_steps(folder: Path) -> list[dict]:
    """The record of a stage in the order of its steps.

    Raises:
        ValueError: no run there, or a damaged one.
    """
    held = read_settings(folder)
    found: dict[int, dict] = {}
    for path in sorted(folder.glob("samples*.jsonl")):
        for one in read_samples(path, held["hash"], STEP)[0]:
            found[one["step"]] = one  # those that were trained again come later
    return [_named(found[step]) for step in sorted(found)]


def dataset(rows: Sequence[Mapping], items: Mapping[str, Item]):
    """Rows for TRL whose images are read when their turn comes, as they were for rollouts.

    Args:
        rows: with "id" and "prompt"; images are those of the item.
    """
    from datasets import Dataset

    table = Dataset.from_list([{**row, "images": row["id"]} for row in rows])

    def read(batch: dict) -> dict:
        images = [[read_image(x) for x in items[id].images] for id in batch["images"]]
        return {**batch, "images": images}

    return table.with_transform(read)


def _together() -> None:
    """Wait for the other processes."""
    if torch.distributed.is_initialized():
        torch.distributed.barrier()


def _in_order(lines) -> list[dict]:
    return sorted(lines, key=lambda one: one["step"])


def _named(line: Mapping) -> dict:
    """A line of the record under our names."""
    ours = {"rewards_accuracy_mean": "accuracy", "rewards_format_mean": "form",
            "completions_mean_length": "length"}  # fmt: skip
    return {ours.get(name, name): value for name, value in line.items()}


def _told(line: Mapping, steps: int) -> str:
    shown = ("loss", "reward", "accuracy", "trigger", "valid", "empty", "copied", "length")
    named = _named(line)
    figures = [f"{name} {named[name]:.3f}" for name in shown if named.get(name) is not None]
    return f"step {line['step']} of {steps}: {', '.join(figures)}"


@contextlib.contextmanager
def _disk_errors() -> Iterator[None]:
    """What libraries say of a full disk, as the error that it is."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, OSError) and "No space left" in str(error):
            raise OSError(errno.ENOSPC, f"the disk is full: {error}") from error
        raise
