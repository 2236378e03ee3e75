"""Ablations: which arms there are, that they share what they can, and how they are compared."""

import importlib
import json
from pathlib import Path

import pytest
from command import run
from rich.console import Console

from vrga.evaluation.store import Store
from vrga.training.rollouts import keys_of

pytest.importorskip("trl", reason="TRL needs Python 3.11")
ablation = importlib.import_module("vrga.training.ablate")

PLAIN = "<think> a </think> \\boxed{red}"
LOOKING = "<think> a </think> <back> b </back> <think> c </think> \\boxed{red}"


@pytest.fixture
def done(monkeypatch):
    """Stands in for asking and training; the list of what was asked and trained."""
    made = []

    def ask(questions, model, output, *, samples, resume, **more):
        if resume:
            return
        made.append(("ask", output.name, questions.part, questions.seed))
        trained = model is not None
        store = Store(output, {**questions.settings(), "model": model, "samples": samples})
        keys = [key for item in questions.items() for key in keys_of(item, samples)]
        store.add(
            {"key": key, "id": key.split("/")[0], "sample": int(key[-1]), "tokens": 1,
             "text": LOOKING if trained else PLAIN, "error": None, "reward": 1.0,
             "score": float(trained and (questions.seed or "from-base" not in str(model)))}
            for key in keys
        )  # fmt: skip
        store.finish(keys)

    def trains(name):
        def train(folder, options, *, output=None, from_base=False, **more):
            made.append((name, Path(folder).name, options.seed, from_base))
            where = (output or folder / "sft") / "model"
            where.mkdir(parents=True)
            (where / "config.json").write_text("{}")

        return train

    def make(folder, **more):
        made.append(("rows", folder.name, more["seed"], more["reflection"]))
        (folder / "data").mkdir()
        (folder / "data" / "data.json").write_text("{}")

    monkeypatch.setattr(ablation, "ask", ask)
    monkeypatch.setattr(ablation, "make", make)
    for name in ("sft", "rl"):
        monkeypatch.setattr(ablation, name, trains(name))
    return made


def ablate(folder, name="sft"):
    return ablation.ablate(
        name, folder, seeds=2, questions=3, samples=2, limit=8, answers=2,
        console=Console(quiet=True),
    )  # fmt: skip


def test_arms_are_trained_once_and_compared_over_all_seeds(tmp_path, done):
    found = ablate(tmp_path)
    assert [one for one in done if one[0] in ("sft", "rl")] == [
        ("sft", "semantic-0.5", seed, False) if stage == "sft" else
        ("rl", "semantic-0.5", seed, stage == "base")
        for seed in (0, 1) for stage in ("sft", "rl", "base")
    ]  # fmt: skip
    full, without = found["arms"]["SFT and RL"], found["arms"]["without SFT"]
    assert full["by_seed"] == [1.0, 1.0] and without["by_seed"] == [0.0, 1.0]
    assert without["against"][0] == -0.5 and full["trigger"] == 1.0
    assert found["arms"]["base"]["accuracy"][0] == 0 and found["arms"]["base"]["trigger"] == 0
    assert json.loads((tmp_path / "results-sft.json").read_text())["against"] == "SFT and RL"

    count = len(done)
    assert ablate(tmp_path) == found and len(done) == count
    ablate(tmp_path, "rl")  # SFT and RL, and SFT alone, are there already
    assert [one[0] for one in done[count:]] == ["ask", "ask"]


def test_every_ablation_differs_in_one_thing():
    for name, arms in ablation.ABLATIONS.items():
        first, *others = arms.values()
        assert first == ablation.FULL
        for other in others:
            changed = [f for f in vars(first) if getattr(first, f) != getattr(other, f)]
            assert len(changed) == 1, name
        places = [(arm.rows, arm.model) for arm in arms.values()]
        assert len(set(places)) == len(places)


def test_an_ablation_that_there_is_not_is_refused(tmp_path):
    done = run("train", "ablate", "sftt", "--output", tmp_path)
    assert "known are sft, rl, reflection, style, lambda" in str(done.exception)
    done = run("train", "ablate", "sft", "--seeds", 0, "--output", tmp_path)
    assert "at least 1" in str(done.exception)
