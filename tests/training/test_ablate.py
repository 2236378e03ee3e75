"""Ablations: which arms there are, that they share what they can, and how they are compared."""

import functools
import importlib
import json
import shutil
from pathlib import Path

import pytest
from command import run
from rich.console import Console

from vrga.evaluation.store import Store, read_settings
from vrga.training.questions import Questions
from vrga.training.rollouts import keys_of

pytest.importorskip("trl", reason="TRL needs Python 3.11")
ablation = importlib.import_module("vrga.training.ablate")
arms = importlib.import_module("vrga.training.arms")
zoomed = importlib.import_module("vrga.training.zoomed")

PLAIN = "<think> a </think> \\boxed{red}"
LOOKING = "<think> a </think> <back> b </back> <think> c </think> \\boxed{red}"


@pytest.fixture
def done(monkeypatch):
    """Stands in for asking and training; the list of what was asked and trained."""
    made = []

    def ask(questions, model, output, *, samples, resume, trained, **more):
        settings = {**questions.settings(), "model": model, "samples": samples, "trained": trained}
        store = Store(output, settings, resume=resume)
        if resume:
            store.close()
            return
        made.append(("ask", output.name, questions.part, questions.seed))
        trained = model is not None
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
            (where.parent / "samples.jsonl").write_text(str(len(made)))

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


SMALL = {"seeds": 2, "questions": 3, "samples": 2, "limit": 8, "answers": 2}


def ablate(folder, name="sft", **other):
    return ablation.ablate(name, folder, **{**SMALL, **other}, console=Console(quiet=True))


def test_arms_are_trained_once_and_compared_over_all_seeds(tmp_path, done):
    found = ablate(tmp_path)
    assert [one for one in done if one[0] in ("sft", "rl")] == [
        ("sft", "semantic-0.5", seed, False) if stage == "sft" else
        ("rl", "semantic-0.5", seed, stage == "base")
        for seed in (0, 1) for stage in ("sft", "rl", "base")
    ]  # fmt: skip
    full, without = found["arms"]["SFT and RL"], found["arms"]["without SFT"]
    assert {one["compared_with"] for one in found["arms"].values()} == {"SFT and RL"}
    assert full["by_seed"] == [1.0, 1.0] and without["by_seed"] == [0.0, 1.0]
    assert without["against"][0] == -0.5 and full["trigger"] == 1.0
    assert found["arms"]["base"]["accuracy"][0] == 0 and found["arms"]["base"]["trigger"] == 0
    held = json.loads((tmp_path / "results-sft.json").read_text())
    assert held["arms"]["without SFT"]["by_seed"] == [0.0, 1.0]

    count = len(done)
    assert ablate(tmp_path) == found and len(done) == count
    ablate(tmp_path, "rl")  # SFT and RL, and SFT alone, are there already
    assert [one[0] for one in done[count:]] == ["ask", "ask"]


def test_every_ablation_differs_in_one_thing():
    for name, own in arms.ABLATIONS.items():
        trained = [arm for arm in own.values() if arm.model]
        assert name in ("zoom", "mix") or trained[0] == arms.FULL
        for other in trained:
            changed = {f for f in vars(other) if getattr(other, f) != getattr(arms.FULL, f)}
            # zoom has pairs of things, and mix asks each training two kinds of questions.
            assert len(changed - {"asked"}) == (other != arms.FULL) or name == "zoom"
        places = [arm.answers for arm in own.values()]
        assert len(set(places)) == len(places)


def test_trainings_on_two_kinds_are_compared_on_each_kind(tmp_path, done):
    """And are trained once; the kind of the command is that which other ablations train on."""
    ablate(tmp_path)
    count = len(done)
    found = ablate(tmp_path, "mix")["arms"]
    assert {done[i][1] for i in range(count, len(done)) if done[i][0] == "rows"} == {
        "semantic-0.5-similar+long", "semantic-0.5-long",
    }  # fmt: skip
    asked = [Questions.of(read_settings(path)["settings"]) for path in
             (tmp_path / "seed-1" / "answers").iterdir()]  # fmt: skip
    assert sorted(one.split for one in asked) == ["long"] * 4 + ["similar"] * 5  # and without SFT
    for kind in arms.KINDS:
        own = [one["compared_with"] for name, one in found.items() if name.startswith(kind)]
        assert own == [f"{kind}: trained on similar and long"] * 4


def test_another_word_is_trained_asked_and_counted(tmp_path, done):
    ablate(tmp_path, "tag")
    tags = {path.name: Questions.of(read_settings(path)["settings"]).tag
            for path in (tmp_path / "seed-0" / "answers").iterdir()}  # fmt: skip
    assert tags == {
        "base": "back", "semantic-0.5-rl-0.1": "back", "semantic-0.5-recheck-rl-0.1": "recheck",
    }  # fmt: skip
    found = json.loads((tmp_path / "results-tag.json").read_text())["arms"]
    # What stands in for the model says <back> in any case.
    assert found["<back>"]["trigger"] == 1 and found["<recheck>"]["trigger"] == 0


@pytest.mark.parametrize(
    ("other", "told"),
    [
        ({"seeds": 41}, "--seeds 41: at least 1, at most 40"),
        ({"samples": 0}, "--samples 0"),
        ({"answers": 0}, "--answers 0"),
        ({"split": "x"}, "split 'x': known are"),
        ({"limit": 10_001}, "at most 10000"),
        ({"config": "x"}, "--config x: no such file"),
    ],
    ids=lambda one: next(iter(one)) if isinstance(one, dict) else "",
)
def test_what_would_be_refused_after_a_training_is_refused_before(tmp_path, done, other, told):
    with pytest.raises((ValueError, OSError), match=told):
        ablate(tmp_path, **other)
    assert not done


def test_trainings_of_other_rows_or_settings_do_not_stand_for_those_that_were_asked_for(
    tmp_path, done
):
    ablate(tmp_path)
    for other in ({"rows": 20}, {"config": "chain"}, {"model": "m"}):
        with pytest.raises(ValueError, match="are of other --rows, --config or --model"):
            ablate(tmp_path, **other)
    # Nor do answers of a model that was trained anew since.
    shutil.rmtree(tmp_path / "seed-0" / "semantic-0.5" / "rl-0.1")
    with pytest.raises(ValueError, match="other settings .trained: '"):
        ablate(tmp_path)
    (tmp_path / "trainings.json").write_text("{")
    with pytest.raises(ValueError, match="trainings.json is damaged"):
        ablate(tmp_path)


def test_an_ablation_that_there_is_not_is_refused(tmp_path):
    done = run("train", "ablate", "sftt", "--output", tmp_path)
    assert "known are sft, rl, reflection, style, lambda" in str(done.exception)
    done = run("train", "ablate", "sft", "--seeds", 0, "--output", tmp_path)
    assert "at least 1" in str(done.exception)


def test_the_ablation_zoom_asks_every_model_in_its_ways_and_pairs_their_questions(
    tmp_path, done, monkeypatch
):
    """Each seed's models once, what is there already not again."""
    asked = []

    def told(folder, samples, model):
        asked.append(model)
        right = {zoomed.BACK: "1111", zoomed.OFF: "0000"}
        own = {name: "1111" for name in ("back", "looks", "first", "second")}
        return {way: {**own, "right": right.get(way, "0100")} for way in zoomed.WAYS[model]}

    monkeypatch.setattr(zoomed, "_asked", told)
    monkeypatch.setattr(zoomed, "make_chain_samples", lambda n, **more: [None] * n)
    quick = functools.partial(zoomed.paired_difference, resamples=50)
    monkeypatch.setattr(zoomed, "paired_difference", quick)

    def ablate_zoom(model="base", folder=tmp_path):
        return ablation.ablate(
            "zoom", folder, seeds=2, questions=2, samples=1, limit=4, split="chain-small",
            model=model, console=Console(quiet=True),
        )  # fmt: skip

    found = ablate_zoom()
    assert sorted(asked) == sorted([*zoomed.WAYS] * 2)
    assert ablate_zoom()["models"] == found["models"] and len(asked) == 2 * len(zoomed.WAYS)
    told = {(model, name): cells for model, name, *cells in zoomed.differences(found)}
    # The one that was shown one look is asked in two of its ways, and not compared with itself.
    assert len(told) == len(zoomed.TRAINED) * len(zoomed.ALONE) - 3
    alone = told["SFT", "trained alone"]
    assert alone[0].startswith("+100.0 %") and alone[1:] == ["0.0078", "+100.0 +100.0", "0.12"]
    before = told["SFT and RL", "closer look alone, before the answer"]
    assert before[2:] == ["+75.0 +75.0", "0.25"]
    asked_for = told["SFT", "asked to look back, not trained, closer look"]
    assert asked_for[0].startswith("+0.0 %")
    cells = list(zoomed.rows(found))
    assert len(cells) == sum(map(len, zoomed.WAYS.values())) and {one[3] for one in cells} == {"2"}
    # Of a model that was not trained with every seed, those seeds are compared.
    found["models"]["SFT and RL"].pop()
    found["models"][zoomed.ONE].pop()
    told = {(model, name): cells for model, name, *cells in zoomed.differences(found)}
    assert told["SFT and RL", "trained alone"][2] == "+100.0"
    assert told["SFT", "trained alone"][2] == "+100.0 +100.0"
    assert told["SFT", "trained on one look, closer look at it"][2] == "+0.0"
    assert json.loads((tmp_path / "results-zoom.json").read_text())["questions"] == 4
    with pytest.raises(ValueError, match="--split chain: the embedded model was not"):
        ablate_zoom(None, tmp_path / "other")
