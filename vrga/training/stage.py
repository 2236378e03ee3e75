"""What SFT and RL share: the model, the record of steps, checkpoints, going on."""

from __future__ import annotations

import dataclasses
import os
import shutil
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from vrga.annotations import Model, Processor
from vrga.evaluation.items import Item
from vrga.evaluation.store import Store
from vrga.hf.families import family_of
from vrga.hf.files import check_model, embedded
from vrga.images import read_image
from vrga.training.checkpoints import MODEL, complete, disk_errors, is_last, newest
from vrga.training.model import loaded
from vrga.training.questions import Questions
from vrga.training.ranks import processes, rank, together
from vrga.training.record import STEP, Record
from vrga.training.settings import Common

TESTED = "1.16"  # the minor release of TRL


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

    def close(self) -> None:
        """Let others have the folder; what was kept stays."""
        if self.store is not None:
            self.store.close()

    def load(self, questions: Questions) -> tuple[Model, Processor]:
        """The model to go on with, and its processor.

        The Trainer reads no weights when it resumes, for a file's names are not the model's, and
        says nothing of it: so the model comes from the checkpoint itself.

        Raises:
            ValueError: as of `loaded`.
        """
        where = self.base if self.checkpoint is None or self.options.lora else self.checkpoint
        # An adapter is float32 in any case, and ZeRO-3 keeps a copy of the weights that is.
        exact = not (self.options.lora or _sharded())
        model, processor = loaded(where, questions.tag, exact=exact)
        # By this name GRPO loads what divergence is measured from: the start, also later.
        model.config._name_or_path = str(check_model(self.base) or embedded())
        return model, processor

    def arguments(self, kind: type, rows: int) -> dict[str, Any]:
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
        warmup = {"warmup_ratio", "warmup_steps"} & names  # a share of the steps in either
        return {min(recompute): options.checkpointing, min(warmup): options.warmup} | dict(
            output_dir=str(self.folder),
            per_device_train_batch_size=options.per_device,
            gradient_accumulation_steps=rows // at_once,
            learning_rate=options.learning_rate,
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

    def adapter(self, model: Model) -> Any:
        """What PEFT puts on a model's text layers, or None.

        Raises:
            ImportError: PEFT is missing.
            ValueError: a rank above the model's width, or ZeRO-3.
        """
        if not self.options.lora:
            return None
        widest = model.config.get_text_config().hidden_size
        if self.options.lora > widest:
            raise ValueError(
                f"setting lora={self.options.lora}: must be at most {widest}, this model's width; "
                "an adapter is smaller than the weights it is added to"
            )
        try:
            from peft import LoraConfig
        except ImportError as error:
            raise ImportError("lora needs PEFT: pip install 'vrga[train]'") from error
        if _sharded():
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
        with disk_errors(), warnings.catch_warnings():
            # A call of TRL's own, which a user can do nothing about.
            warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
            ended = record.stopped is not None
            if self.checkpoint is not None and (ended or is_last(self.checkpoint)):
                trainer._load_from_checkpoint(str(self.checkpoint))  # training takes one more step
            else:
                trainer.train(resume_from_checkpoint=self.checkpoint and str(self.checkpoint))
            self._write(trainer, processor)
        together()  # no process goes on before the model is written
        if self.store is not None:
            self.store.finish()
        return record.stopped

    def _write(self, trainer, processor) -> None:
        target = self.folder / f"{MODEL}.new"  # what is there as `MODEL` is whole
        if self.options.lora:
            if rank() == 0:
                merged = trainer.accelerator.unwrap_model(trainer.model).merge_and_unload()
                merged.save_pretrained(target)
        else:
            trainer.save_model(str(target))
        if rank() == 0:
            complete(target, processor, self.base)
            (target / "training_args.bin").unlink(missing_ok=True)
            shutil.rmtree(self.folder / MODEL, ignore_errors=True)
            target.rename(self.folder / MODEL)


def _sharded() -> bool:
    """Whether DeepSpeed shares the weights out."""
    return os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true"


def dataset(rows: Sequence[Mapping], items: Mapping[str, Item]):
    """Rows for TRL whose images are read when their turn comes, as they were for rollouts.

    Args:
        rows: with "id" and "prompt"; images are those of the item.
    """
    from datasets import Dataset

    if not any(items[row["id"]].images for row in rows):
        return Dataset.from_list(list(rows))  # a column of no images is none for TRL
    table = Dataset.from_list([{**row, "images": row["id"]} for row in rows])

    def read(batch: dict) -> dict:
        images = [[read_image(x) for x in items[id].images] for id in batch["images"]]
        return {**batch, "images": images}

    return table.with_transform(read)
