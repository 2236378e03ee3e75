"""vrga eval --zoom: an arm that looks closer, beside the base and the steered one."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from command import status
from untrained import NARROW, untrained

pytest.importorskip("lmms_eval")

from rich.console import Console

from vrga import VRGAConfig, Zoom, look_closer
from vrga.demo import build
from vrga.demo.fine.data import fine_split_options, make_fine_samples
from vrga.demo.fine.settings import FINDING
from vrga.evaluation.closer_asker import CloserAsker
from vrga.evaluation.compare import compare
from vrga.evaluation.harness import check_closer_tasks
from vrga.evaluation.request import request
from vrga.steering.patching import patch_of

OPTIONS = ("crops=1", "threshold=1", "within=map", "margin=0", f"pixels={36 * 784}")
SAMPLES = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint, and questions about pictures that it sees four times smaller."""
    from lmms_eval.api import task

    where = tmp_path_factory.mktemp("closer")
    build.save(*untrained(), where / "model", FINDING)
    drawn = make_fine_samples(SAMPLES, seed=3, **fine_split_options("fine-easy"))
    rows = []
    for i, sample in enumerate(drawn):
        sample.image.save(where / f"{i}.png")
        rows.append({"question": sample.question, "answer": sample.answer, "image": f"{i}.png"})
    (where / "GeoMath.json").write_text(json.dumps(rows))
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("LMMS_EVAL_DATASETS_CACHE", str(where / "datasets"))
        patched.delenv("VRGA_BOX", raising=False)
        task._resolve_hf_datasets_cache_dir.cache_clear()
        yield where
        task._resolve_hf_datasets_cache_dir.cache_clear()
        os.environ.pop("VRGA_BOX", None)


def evaluate(folder, output, *more):
    options = [part for option in OPTIONS for part in ("--zoom-option", option)]
    command = ["eval", "--model", folder / "model", "--tasks", "GeoMath", "--data", folder]
    command += ["--output", output, "--max-new-tokens", 4, "--zoom", *options, *more]
    return status(*command)


def samples(output):
    return [json.loads(line) for line in (output / "samples.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_the_arm_stands_beside_the_others_and_says_what_it_did(folder, tmp_path, capsys):
    assert evaluate(folder, tmp_path / "run", "--compare") == 0
    found = samples(tmp_path / "run")
    assert [one["arm"] for one in found] == [
        arm for arm in ("base", "vrga", "zoom") for _ in range(SAMPLES)
    ]
    base, steered, zoomed = (found[i : i + SAMPLES] for i in (0, SAMPLES, 2 * SAMPLES))
    assert all(one["zoom"] is None for one in base + steered)
    drawn = make_fine_samples(SAMPLES, seed=3, **fine_split_options("fine-easy"))
    for one, sample, other in zip(zoomed, drawn, steered, strict=True):
        question = one["prompt"].partition("<|vision_end|>")[2].partition("<|im_end|>")[0]
        single = look_closer(
            *untrained(), sample.image, question, FINDING, NARROW, max_new_tokens=4
        )
        assert one["text"] == single.text and one["tokens"] == single.cost.answer
        assert one["zoom"]["decision"] == json.loads(json.dumps(single.numbers()["decision"]))
        assert one["zoom"]["decision"]["crops"][0]["box"] == list(single.boxes[0])
        assert one["zoom"]["cost"]["crops"] == 16 and one["zoom"]["cost"]["reused"] > 36
        assert one["seconds"] == pytest.approx(one["zoom"]["cost"]["total"], abs=1e-3)
        assert one["region"] == other["region"] and one["steps"]["generated"] > 0
    told = json.loads((tmp_path / "run" / "results.json").read_text())
    assert told["settings"]["zoom"]["threshold"] == 1.0
    arms = told["tasks"]["vrga_geomath"]["arms"]
    assert arms["zoom"]["zoom"]["looked_closer"][0] == 1.0
    assert arms["zoom"]["zoom"]["tokens"]["crops"] == 16 and "zoom" not in arms["base"]
    assert arms["zoom"]["difference"]["pairs"] == arms["vrga"]["difference"]["pairs"] == SAMPLES
    assert "| zoom |" in (tmp_path / "run" / "table.md").read_text()

    turned = compare(tmp_path / "run", None, Console(quiet=True), html=tmp_path / "page.html")
    assert set(turned) == {"vrga_geomath base -> vrga", "vrga_geomath base -> zoom"}

    # Killed after the first sample of the arm, and gone on with: nothing is asked twice.
    path = tmp_path / "run" / "samples.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[: 2 * SAMPLES + 1]))
    assert evaluate(folder, tmp_path / "run", "--compare", "--resume") == 0
    again = samples(tmp_path / "run")
    assert [one["text"] for one in again] == [one["text"] for one in found]
    assert [one["seconds"] for one in again[: 2 * SAMPLES + 1]] == [
        one["seconds"] for one in found[: 2 * SAMPLES + 1]
    ]
    with pytest.raises(ValueError, match="other settings .*zoom"):
        evaluate(folder, tmp_path / "run", "--compare", "--resume", "--zoom-option", "least=200")


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (("--zoom-option", "crops=2"), "add --zoom"),
        (("--zoom", "--zoom-option", "crops=0"), "crops=0"),
        (("--zoom", "--zoom-option", "crop"), "field=value"),
    ],
)
def test_options_that_do_not_fit_are_refused_before_anything_is_made(tmp_path, more, told):
    with pytest.raises(ValueError, match=told):
        status("eval", "--tasks", "grid", "--vrga", "--output", tmp_path / "x", *more)
    assert not (tmp_path / "x").exists()


def test_a_model_that_cuts_tiles_is_refused_by_its_config_alone(tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({"model_type": "internvl"}))
    (model / "model.safetensors").write_bytes(b"")
    for command in (
        ("eval", "--tasks", "grid", "--output", tmp_path / "x"),
        ("generate", "--question", "?", "--image", _picture(tmp_path)),
    ):
        with pytest.raises(ValueError, match="internvl models cannot look closer here"):
            status(*command, "--model", model, "--zoom")
    assert not (tmp_path / "x").exists()


def _picture(folder: Path) -> Path:
    path = folder / "picture.png"
    make_fine_samples(1, seed=0)[0].image.save(path)
    return path


def task(kinds=("image", "text"), **generation):
    parts = [{"type": kind} for kind in kinds]
    return SimpleNamespace(
        config=SimpleNamespace(generation_kwargs=generation),
        eval_docs=[{}],
        doc_to_messages=lambda doc: [{"role": "user", "content": parts}],
    )


def test_tasks_of_videos_of_sampling_and_of_beams_are_refused_by_name():
    check_closer_tasks({"greedy": task(), "cold": task(do_sample=True, temperature=0)})
    for name, one, told in (
        ("films", task(kinds=("video", "text")), "task films asks about videos"),
        ("drawn", task(do_sample=True, temperature=0.7), "task drawn asks for sampled"),
        ("wide", task(num_beams=3), "task wide asks for sampled answers or beams"),
    ):
        with pytest.raises(ValueError, match=told):
            check_closer_tasks({"group": {name: one}})


def ask(*requests, zoom=NARROW, config=FINDING):
    asker = CloserAsker(*untrained(), config, zoom)
    return {answer.id: answer for answer in asker.ask(requests)}


def test_what_fails_fails_alone_and_a_text_alone_is_answered_as_before(tmp_path):
    picture = make_fine_samples(1, seed=3)[0].image
    options = {"max_new_tokens": 3}
    found = ask(
        request("good", "which letter is on the red card?", [picture], options=options),
        request("text", "which letter?", options=options),
        request("missing", "which letter?", [tmp_path / "none.png"], options=options),
        request("drawn", "which?", [picture], options=options | {"do_sample": True}),
        request("wide", "which?", [picture], options=options | {"num_beams": 2}),
    )
    assert patch_of(untrained()[0]) is None
    assert found["good"].zoom["decision"]["zooms"] and found["good"].error is None
    assert found["text"].zoom == {
        "decision": {"zooms": False, "reason": "no picture in the question"}
    }
    assert found["text"].text is not None and "none.png" in found["missing"].error
    assert "sampled" in found["drawn"].error and "beams" in found["wide"].error


def test_crops_stand_behind_the_last_picture_also_of_a_chat_with_text_between():
    pictures = [one.image for one in make_fine_samples(2, seed=4)]
    content = [
        {"type": "text", "text": "which letter"},
        {"type": "image", "image": pictures[0]},
        {"type": "text", "text": "is on"},
        {"type": "image", "image": pictures[1]},
        {"type": "text", "text": "the red card?"},
    ]
    one = request("a", "the red card?", options={"max_new_tokens": 3})
    chat = [{"role": "user", "content": content}]
    object.__setattr__(one, "chat", lambda: (chat, "the red card?"))
    seen = []
    model = untrained()[0]
    hook = model.model.register_forward_pre_hook(
        lambda m, a, kwargs: seen.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    try:
        zoom = Zoom(**{**NARROW.settings(), "reuse": False})
        found = ask(one, zoom=zoom)["a"]
        reused = ask(one)["a"]
    finally:
        hook.remove()
    cost = found.zoom["cost"]
    assert found.zoom["decision"]["zooms"] and cost["second"] == cost["prompt"] + 18
    assert seen[:2] == [cost["prompt"], cost["prompt"] + 18]  # 16 tokens between two
    assert reused.text == found.text and reused.zoom["cost"]["reused"] > 2 * 38


def test_without_room_for_crops_the_first_answer_goes_on(monkeypatch):
    model = untrained()[0]
    picture = make_fine_samples(1, seed=3)[0].image
    one = request("a", "which letter?", [picture], options={"max_new_tokens": 3})
    length = ask(one)["a"].zoom["cost"]["prompt"]
    context = model.config.get_text_config()
    monkeypatch.setattr(context, "max_position_embeddings", length + 3 + 17)
    told = ask(one)["a"].zoom["decision"]
    assert not told["zooms"] and "18 tokens; the model's context has 17 left" in told["reason"]
    monkeypatch.setattr(context, "max_position_embeddings", length + 3 + 18)
    assert ask(one)["a"].zoom["decision"]["zooms"]


def test_a_config_that_does_not_steer_finds_the_place_as_well():
    picture = make_fine_samples(1, seed=3)[0].image
    one = request("a", "which letter?", [picture], options={"max_new_tokens": 3})
    found = ask(one, config=VRGAConfig(gain=1.0))["a"]
    assert found.zoom["decision"]["zooms"] and not found.steered
    assert not torch.is_grad_enabled() or patch_of(untrained()[0]) is None
