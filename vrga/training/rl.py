"""`vrga train rl`: GRPO with R = R_accuracy + lambda * R_format, by TRL's GRPOTrainer."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from rich.console import Console
from trl import GRPOConfig, GRPOTrainer

from vrga.evaluation.store import SAMPLES, fingerprint
from vrga.training.checkpoints import MODEL, step_of
from vrga.training.data import SUMMARY, read_data
from vrga.training.record import Record
from vrga.training.rewards import rewards
from vrga.training.rollouts import read_rollouts
from vrga.training.settings import RL
from vrga.training.stage import Stage, dataset


def rl(
    folder: Path,
    options: RL,
    *,
    base: Path | None = None,
    from_base: bool = False,
    stop_on_hacking: bool = False,
    output: Path | None = None,
    resume: bool = False,
    console: Console,
) -> tuple[Path, str | None]:
    """Reward answers to the questions of mixed success.

    Args:
        folder: of the training, with rollouts and rows in it.
        base: the model to begin with; None is that of sft/.
        from_base: begin with the model of the rollouts, without SFT.
        stop_on_hacking: end a run whose reward rises with empty or copied spans.
        output: of checkpoints; None is rl/ in the folder.
        resume: go on from the newest whole checkpoint.

    Returns:
        The model's folder, and why the run was ended early, or None.

    Raises:
        ValueError: no SFT to begin with, too few questions for a step, settings that do not fit,
            or another run there.
        OSError: the disk is full.
    """
    questions, held, _ = read_rollouts(folder / "rollouts")
    _, summary = read_data(folder)
    items = {item.id: item for item in questions.items()}
    kept = [items[id] for id in summary["kept"]]
    if len(kept) < options.batch:
        raise ValueError(
            f"a step takes batch={options.batch} questions, and {len(kept)} are of mixed success: "
            "lower batch, ask more questions, or widen --difficulty of vrga train data"
        )
    output = output or folder / "rl"
    start = begin(folder, held["model"], base, from_base)
    settings = {
        "command": "train rl", "data": fingerprint(folder / "data" / SUMMARY),
        "base": held["model"] if from_base else str(base.resolve()) if base else f"sft/{MODEL}",
    }  # fmt: skip
    if not from_base and base is None:  # SFT may be trained anew in the same place
        steps = folder / "sft" / SAMPLES
        settings["sft"] = fingerprint(steps if steps.exists() else None)
    with closing(Stage(output, start, options, settings, resume)) as stage:
        arguments = _arguments(stage, options)
        model, processor = stage.load(questions)
        record = Record(stage, processor, stop_on_hacking, console)
        table = dataset(
            [
                {"id": i.id, "prompt": [{"role": "user", "content": questions.text(i)}]}
                for i in kept
            ],
            items,
        )
        trainer = _Trainer(
            model=model, args=arguments, train_dataset=table, processing_class=processor,
            reward_funcs=rewards(questions, items, options.form, record.keep),
            peft_config=stage.adapter(model),
        )  # fmt: skip
        if stage.checkpoint is not None:
            trainer.passed = step_of(stage.checkpoint) // (len(kept) // options.batch)
        stopped = stage.run(trainer, processor, record)
    return output / MODEL, stopped


class _Trainer(GRPOTrainer):
    """TRL's, whose order of questions goes on where it was.

    Each pass draws an order from the sampler's own random numbers, and that of a trainer that goes
    on would begin with the first.

    Attributes:
        passed: passes over the questions that are through.
    """

    passed = 0

    def _get_train_sampler(self, dataset=None):
        sampler = super()._get_train_sampler(dataset)
        for _ in range(self.passed):
            next(iter(sampler))
        return sampler


def _arguments(stage: Stage, options: RL) -> GRPOConfig:
    return GRPOConfig(
        **stage.arguments(GRPOConfig, options.batch * options.group),
        num_generations=options.group,
        max_completion_length=options.max_new_tokens,
        temperature=options.temperature,
        reward_weights=[1.0, options.weight],
        scale_rewards=options.scale_rewards,
        beta=options.beta,
    )


def begin(folder: Path, model: str | None, base: Path | None, from_base: bool) -> str | None:
    """The checkpoint that RL begins with.

    Raises:
        ValueError: there has been no SFT, or both ways to begin are given.
    """
    if base is not None and from_base:
        raise ValueError("--base is a model to begin with: leave out --from-base")
    if from_base:
        return model
    where = base or folder / "sft" / MODEL
    if not (where / "config.json").is_file():
        raise ValueError(
            f"{where} holds no model: run vrga train sft {folder} first, or begin without SFT "
            "(--from-base)"
        )
    return str(where)
