"""Run by torchrun in a test: SFT, then GRPO, and what each process holds at the end of both."""

import hashlib
import sys
from pathlib import Path

from rich.console import Console

from vrga.training import ranks, stage
from vrga.training.rl import rl
from vrga.training.settings import RL, SFT
from vrga.training.sft import sft

folder = Path(sys.argv[1])
write = stage.Stage._write


def written(self, trainer, processor):
    """Beside writing the model: a digest of this process's own weights."""
    digest = hashlib.sha256()
    for parameter in trainer.accelerator.unwrap_model(trainer.model).parameters():
        digest.update(parameter.detach().numpy().tobytes())
    name = f"{self.folder.name}-{ranks.rank()}-of-{ranks.processes()}.txt"
    (folder / name).write_text(digest.hexdigest())
    write(self, trainer, processor)


stage.Stage._write = written
console = Console(quiet=True)
common = dict(max_steps=2, save_every=1, checkpointing=False, warmup=0.0)
sft(folder, SFT(batch=4, per_device=2, learning_rate=1e-5, **common), console=console)
rl(
    folder,
    RL(
        batch=4,
        group=4,
        per_device=8,
        max_new_tokens=40,
        temperature=1.5,
        learning_rate=1e-3,
        **common,
    ),
    console=console,
)
