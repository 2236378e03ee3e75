"""`vrga train sft`: the cold start, on the rows of `vrga train data`, by TRL's SFTTrainer."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from rich.console import Console
from trl import SFTConfig, SFTTrainer

from vrga.evaluation.store import fingerprint
from vrga.training.checkpoints import MODEL
from vrga.training.data import ROWS, read_data
from vrga.training.record import Record
from vrga.training.rollouts import read_rollouts
from vrga.training.settings import SFT
from vrga.training.stage import Stage, dataset


def sft(
    folder: Path,
    options: SFT,
    *,
    output: Path | None = None,
    resume: bool = False,
    console: Console,
) -> Path:
    """Train on the rows of a training's folder; labels are the answers' tokens alone.

    Args:
        folder: of the training, with rollouts and rows in it.
        output: of checkpoints; None is sft/ in the folder.
        resume: go on from the newest whole checkpoint.

    Returns:
        The model's folder.

    Raises:
        ValueError: no rows, settings that do not fit, or another run there.
        OSError: the disk is full.
    """
    questions, held, _ = read_rollouts(folder / "rollouts")
    rows, _ = read_data(folder)
    items = {item.id: item for item in questions.items()}
    output = output or folder / "sft"
    settings = {
        "command": "train sft", "rows": fingerprint(folder / "data" / ROWS), "base": held["model"],
    }  # fmt: skip
    if len(rows) < options.batch:
        told = f"a step takes batch={options.batch} rows, and there are {len(rows)}: it has these"
        console.print(told, style="yellow", soft_wrap=True)
    with closing(Stage(output, held["model"], options, settings, resume)) as stage:
        arguments = SFTConfig(
            **stage.arguments(SFTConfig, options.batch),
            max_length=None,  # nothing is cut off: not an answer, and not an image
            completion_only_loss=True,
        )
        model, processor = stage.load(questions)
        table = dataset(
            [
                {
                    "id": row["id"],
                    "prompt": [{"role": "user", "content": questions.text(items[row["id"]])}],
                    "completion": [{"role": "assistant", "content": row["completion"]}],
                }
                for row in rows
            ],
            items,
        )
        trainer = SFTTrainer(
            model=model, args=arguments, train_dataset=table, processing_class=processor,
            peft_config=stage.adapter(model),
        )  # fmt: skip
        stage.run(trainer, processor, Record(stage, processor, console=console))
    return output / MODEL
