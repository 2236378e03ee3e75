"""SFT and GRPO by TRL's trainers: what is learned from, what is saved, and going on."""

import dataclasses
import errno
import json
import shutil
import sys
from collections import namedtuple
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from command import run
from safetensors.torch import load_file

import vrga
from vrga.evaluation.store import Store
from vrga.hf.files import embedded
from vrga.training import checkpoints, model, record, settings, stage
from vrga.training.data import read_data
from vrga.training.questions import Questions
from vrga.training.settings import RL, SFT, read

trl = pytest.importorskip("trl", reason="TRL needs Python 3.11")
SMALL = {
    "sft": ("--set", "max_steps=3", "--set", "batch=4", "--set", "per_device=4"),
    # Two steps pass over all questions, and the third begins anew.
    "rl": ("--set", "max_steps=3", "--set", "batch=12", "--set", "group=2",
           "--set", "per_device=24", "--set", "max_new_tokens=48", "--set", "beta=0.1",
           "--scale-rewards", "batch", "--lambda", 0.2),
}  # fmt: skip
EVERY = ("--set", "save_every=2")


def weights(folder):
    return load_file(folder / "model.safetensors")


def differ(one, other):
    """The names of tensors that differ, and the greatest difference."""
    assert one.keys() == other.keys()
    apart = {name: (one[name] - other[name]).abs().max().item() for name in one}
    return sorted(name for name, most in apart.items() if most), max(apart.values())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A whole training: rollouts, rows, SFT of three steps, GRPO of three; read only."""
    folder = tmp_path_factory.mktemp("trained")
    for command in (
        ("rollouts", "--limit", 24, "--samples", 4, "--max-new-tokens", 48, "--output", folder),
        ("data", folder, "--difficulty", "0,1", "--reflection", 0.5),
        ("sft", folder, *SMALL["sft"], *EVERY),
        ("rl", folder, *SMALL["rl"], *EVERY),
    ):
        done = run("train", *command)
        assert done.exit_code == 0, (done.output, done.exception)
    return folder


@pytest.fixture
def begun(trained, tmp_path):
    """The same, stopped in the third step of both: what came after the checkpoint is not there."""
    folder = tmp_path / "begun"
    shutil.copytree(trained, folder)
    for name in ("sft", "rl"):
        shutil.rmtree(folder / name / "model")
        shutil.rmtree(folder / name / "checkpoint-3")
    return folder


@pytest.mark.slow
def test_both_stages_change_weights_and_save_what_loads(trained):
    before = weights(vrga.hf.files.embedded())
    for name in ("sft", "rl"):
        after = weights(trained / name / "model")
        changed, most = differ(before, after)
        assert len(changed) > 100 and most > 1e-5, name
        model, processor = vrga.load(trained / name / "model")
        assert model.config.text_config.use_cache is not False
        assert type(processor).__name__ == "ImageOnlyProcessor"
        assert vrga.VRGAConfig.from_pretrained(trained / name / "model").name == "sparing"
        assert differ(dict(weights(trained / name / "checkpoint-3")), after) == ([], 0.0)
        before = after


@pytest.mark.slow
def test_a_saved_processor_is_named_for_autoprocessor(trained):
    """Under a name of this package's, AutoProcessor would return a tokenizer, in silence."""
    from transformers import AutoProcessor
    from transformers.utils import is_torchvision_available

    for where in (trained / "sft" / "model", trained / "rl" / "checkpoint-2"):
        for name in ("preprocessor_config.json", "tokenizer_config.json"):
            held = json.loads((where / name).read_text())
            assert held["processor_class"] == "Qwen2_5_VLProcessor"
        assert not (where / "processor_config.json").exists()
        if is_torchvision_available():
            assert hasattr(AutoProcessor.from_pretrained(where), "image_processor")
        else:
            with pytest.raises(ImportError, match="[Tt]orchvision"):
                AutoProcessor.from_pretrained(where)


@pytest.mark.slow
def test_every_step_is_recorded_with_what_was_paid_for(trained):
    assert [one["step"] for one in record.read_steps(trained / "sft")] == [1, 2, 3]
    steps = record.read_steps(trained / "rl")
    for one in steps:
        assert one["reward"] == pytest.approx(one["accuracy"] + 0.2 * one["form"], abs=1e-6)
        assert {"trigger", "valid", "empty", "copied", "length"} <= one.keys()
        assert (
            len(one["answers"]) == 4 and {"id", "text", "right", "form"} <= one["answers"][0].keys()
        )
    assert [one["step"] for one in steps] == [1, 2, 3]


@pytest.mark.slow
def test_rl_does_not_go_on_behind_sft_that_was_trained_anew(trained, tmp_path):
    folder = shutil.copytree(trained, tmp_path / "R", ignore=shutil.ignore_patterns("checkpoint-*"))
    (folder / "sft" / "samples.jsonl").write_text("{}\n")
    refused = run("train", "rl", folder, *SMALL["rl"], *EVERY, "--resume")
    assert "has other settings (sft: '" in str(refused.exception)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sft", "rl"])
def test_a_resumed_run_ends_bit_for_bit_as_the_one_that_was_not_interrupted(begun, trained, name):
    if name == "rl":
        shutil.copytree(trained / "sft" / "model", begun / "sft" / "model")
    refused = run("train", name, begun, *SMALL[name], *EVERY)
    assert "holds a run already" in str(refused.exception)
    other = run("train", name, begun, *SMALL[name], *EVERY, "--set", "seed=1", "--resume")
    assert "other settings (seed: 0, now 1)" in str(other.exception)
    # A checkpoint whose writing was cut short counts for nothing, and so does one cut short later.
    (begun / name / "checkpoint-3").mkdir()
    cut = shutil.copytree(begun / name / "checkpoint-2", begun / name / "checkpoint-4")
    (cut / "optimizer.pt").write_bytes((cut / "optimizer.pt").read_bytes()[:-9])
    done = run("train", name, begun, *SMALL[name], *EVERY, "--resume")
    assert done.exit_code == 0, (done.output, done.exception)
    assert "step 3 of 3" in done.output and "step 2 of 3" not in done.output
    paths = (begun / name / "model", trained / name / "model")
    assert differ(*map(weights, paths)) == ([], 0.0)
    # A run that is through takes no step more.
    shutil.rmtree(paths[0])
    assert run("train", name, begun, *SMALL[name], *EVERY, "--resume").exit_code == 0
    assert differ(*map(weights, paths)) == ([], 0.0)
    kept = ("step", "loss", "reward", "answers")
    one, whole = (
        [{key: step.get(key) for key in kept} for step in record.read_steps(path.parent)]
        for path in paths
    )
    assert one == whole


@pytest.mark.parametrize("name", ["loss", "grad_norm"])
def test_weights_that_a_step_has_spoilt_are_not_saved(tmp_path, name):
    made = stage.Stage(tmp_path, None, SFT(), {}, False)
    kept, state = record.Record(made, None), SimpleNamespace(global_step=3, max_steps=9)
    kept.on_log(None, state, None, {"loss": 1.0, "grad_norm": 2.0})
    with pytest.raises(ValueError, match=f"step 3: {name} is nan, and the weights are lost"):
        kept.on_log(None, state, None, {"loss": 1.0, "grad_norm": 2.0, name: float("nan")})


def test_an_adapter_wider_than_the_model_is_refused(tmp_path):
    made = stage.Stage(tmp_path, None, SFT(lora=99_999), {}, False)
    with pytest.raises(ValueError, match="lora=99999: must be at most 128, this model's width"):
        made.adapter(vrga.load()[0])


def test_a_model_whose_writing_was_cut_short_is_not_there(tmp_path, monkeypatch):
    made = stage.Stage(tmp_path, None, SFT(), {}, False)

    class Trainer:
        def save_model(self, path):
            Path(path).mkdir(exist_ok=True)
            (Path(path) / "config.json").write_text("{}")

    def killed(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(stage, "complete", killed)
        with pytest.raises(KeyboardInterrupt):
            made._write(Trainer(), None)
    assert not (tmp_path / "model").exists()
    monkeypatch.setattr(stage, "complete", lambda *args: None)
    for _ in range(2):
        made._write(Trainer(), None)
        assert (tmp_path / "model" / "config.json").exists()
        assert not (tmp_path / "model.new").exists()


@pytest.mark.slow
def test_an_adapter_is_merged_and_resumes_too(begun):
    folder = begun / "lora"
    lora = ("sft", begun, *SMALL["sft"], *EVERY, "--lora", 4, "--output")
    assert run("train", *lora, folder).exit_code == 0
    base, merged = weights(vrga.hf.files.embedded()), weights(folder / "model")
    changed, _ = differ(base, merged)
    assert changed and all(".layers." in name and "_proj" in name for name in changed)
    vrga.load(folder / "model")
    shutil.rmtree(folder / "model")
    shutil.rmtree(folder / "checkpoint-3")
    done = run("train", *lora, folder, "--resume")
    assert done.exit_code == 0 and "step 2 of 3" not in done.output
    assert differ(weights(folder / "model"), merged) == ([], 0.0)
    assert run("train", *lora, folder, "--resume").exit_code == 0
    assert differ(weights(folder / "model"), merged) == ([], 0.0)


@pytest.mark.slow
def test_labels_are_on_the_completion_alone_and_images_are_those_that_were_asked(
    trained, tmp_path, monkeypatch
):
    made = []
    monkeypatch.setattr(stage.Stage, "run", lambda self, trainer, *more: made.append(trainer))
    done = run("train", "sft", trained, *SMALL["sft"], "--output", tmp_path)
    assert done.exit_code == 0, done.exception
    (trainer,) = made
    rows, items = read_data(trained)[0], {i.id: i for i in Questions(limit=24).items()}
    kinds = {row["kind"]: number for number, row in enumerate(rows)}
    chosen = [kinds["back"], kinds["plain"]]
    batch = trainer.data_collator([trainer.train_dataset[number] for number in chosen])
    processor = trainer.processing_class
    for number, labels, ids in zip(chosen, batch["labels"], batch["input_ids"], strict=True):
        said = processor.tokenizer.decode(labels[labels != -100])
        assert said.strip() == rows[number]["completion"] + "<|im_end|>"
        asked = processor.tokenizer.decode(ids[labels == -100])
        assert items[rows[number]["id"]].texts["cot"] in asked
    images = [items[rows[number]["id"]].images[0] for number in chosen]
    whole = processor(text=["<|image_pad|>"] * 2, images=images, return_tensors="pt")
    assert torch.equal(batch["pixel_values"], whole["pixel_values"])


@pytest.mark.slow
def test_a_run_begins_where_it_is_told_to(begun, trained, tmp_path):
    shutil.rmtree(begun / "sft")
    refused = run("train", "rl", begun, *SMALL["rl"], "--output", tmp_path / "a")
    assert "run vrga train sft" in str(refused.exception)
    assert "--from-base" in str(refused.exception)
    both = run("train", "rl", begun, "--from-base", "--base", trained / "sft" / "model")
    assert "leave out --from-base" in str(both.exception)
    many = run("train", "rl", begun, "--from-base", "--set", "batch=60", "--output", tmp_path / "b")
    assert "batch=60 questions, and 24 are of mixed success" in str(many.exception)
    odd = run("train", "sft", begun, "--set", "batch=77", "--set", "per_device=2")
    assert "do not divide" in str(odd.exception)
    assert "a step takes batch=77 rows, and there are" in odd.output


@pytest.mark.slow
def test_a_full_disk_stops_a_run_that_goes_on_later(trained, begun, monkeypatch):
    shutil.rmtree(begun / "sft")
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(checkpoints.shutil, "disk_usage", lambda path: usage(1, 1, 1000))
    how = ("train", "sft", begun, *SMALL["sft"], *EVERY)
    done = run(*how)
    assert done.exit_code == 3 and "make room" in done.output and "--resume" in done.output
    assert checkpoints.newest(begun / "sft") is None
    monkeypatch.undo()
    assert run(*how, "--resume").exit_code == 0
    same = [weights(folder / "sft" / "model") for folder in (begun, trained)]
    assert differ(*same) == ([], 0.0)


def test_what_a_library_says_of_a_full_disk_is_that_error():
    with pytest.raises(OSError) as raised, checkpoints.disk_errors():
        raise RuntimeError("I/O error: No space left on device (os error 28)")
    assert raised.value.errno == errno.ENOSPC
    with pytest.raises(RuntimeError), checkpoints.disk_errors():
        raise RuntimeError("something else")


def test_trl_absent_or_of_another_version_is_told(monkeypatch):
    monkeypatch.setattr(trl, "__version__", "9.9.9")
    with pytest.warns(UserWarning, match="tested with TRL 1.16, and this is 9.9.9"):
        stage.check_trl()
    monkeypatch.setitem(sys.modules, "trl", None)
    with pytest.raises(ImportError, match=r"pip install 'vrga\[train\]'"):
        stage.check_trl()


def test_weights_that_are_trained_are_whole_also_on_a_gpu(monkeypatch, tmp_path):
    """In bfloat16 most steps of a small rate change nothing; an adapter, and ZeRO-3's own copy of
    the weights, are in float32 in any case."""
    asked, loaded = [], vrga.load()

    def load(where, dtype):
        asked.append(dtype)
        return loaded

    monkeypatch.setattr(model, "load", load)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.delenv("ACCELERATE_USE_DEEPSPEED", raising=False)

    def dtype_of(lora):
        with closing(stage.Stage(tmp_path, None, SFT(lora=lora), {}, False)) as one:
            one.load(Questions())
        return asked.pop()

    assert dtype_of(0) == torch.float32 and dtype_of(4) == "auto"
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    assert dtype_of(0) == "auto"
    model.loaded(None, "back")  # is asked, not trained
    assert asked == ["auto"]


def test_a_checkpoint_brings_the_configuration_of_the_model_that_it_was_trained_from(tmp_path):
    _, processor = vrga.load()
    for base in (None, "chain"):
        (tmp_path / str(base)).mkdir()
        checkpoints.complete(tmp_path / str(base), processor, base)
        own = tmp_path / str(base) / "vrga_config.json"
        assert own.read_bytes() == (embedded(base) / "vrga_config.json").read_bytes()


# --- settings ---


def test_the_settings_of_the_paper_are_its_own():
    options, name = read(RL, None, "Qwen/Qwen2.5-VL-7B-Instruct")
    assert name == "paper-7b"
    paper = (options.weight, options.epochs, options.batch, options.temperature)
    assert paper == (0.1, 2.0, 128, 1.0)
    assert options.batch * options.group == 8 * options.per_device * 32
    assert read(SFT, "paper-7b.yaml", None)[0].epochs == 1
    assert read(SFT, None, None)[1] == "embedded"


def test_what_is_given_counts_over_the_file(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text("rl: {batch: 4, learning_rate: 1e-5, weight: 1}\n")
    options, _ = read(RL, str(path), None, ["batch=6", "checkpointing=false"], weight=0.3)
    assert (options.batch, options.learning_rate, options.weight) == (6, 1e-5, 0.3)
    assert options.checkpointing is False and options.epochs == RL().epochs


@pytest.mark.parametrize(
    ("text", "given", "told"),
    [
        ("rl: {bach: 4}", [], "bach: no setting of rl; there are learning_rate"),
        ("rl: {batch: 4.5}", [], "batch=4.5: give a whole number"),
        ("rl: {batch: true}", [], "batch=True: give a whole number"),
        ("rl: {beta: .nan}", [], "beta=nan: give a number"),
        ("grpo: {}", [], "has a section grpo"),
        ("- 1", [], "write sections sft: and rl:"),
        ("rl: [", [], "is no YAML"),
        ("rl:", ["batch"], "give field=value"),
        ("rl:", ["batch=many"], "batch='many': give a whole number"),
        ("rl:", ["group=1"], "at least 2"),
        ("rl:", ["scale_rewards=row"], "one of group, batch, none"),
        ("rl:", ["warmup=1"], "from 0 to below 1"),
        ("rl:", ["temperature=0"], "above 0"),
    ],
)
def test_settings_that_there_are_not_are_refused(tmp_path, text, given, told):
    path = tmp_path / "own.yaml"
    path.write_text(text)
    with pytest.raises(ValueError) as refused:
        read(RL, str(path), None, given)
    assert told in str(refused.value)
    with pytest.raises(FileNotFoundError, match="embedded, chain, paper-7b"):
        read(RL, "no-such.yaml", None)


def test_the_files_in_the_package_have_settings_that_there_are():
    for kind in (SFT, RL):
        for name in settings.SHIPPED:
            assert read(kind, name, None)[1] == name


def test_the_files_of_the_package_are_printed():
    for name in (*settings.SHIPPED, "zero3.yaml"):
        done = run("train", "config", name)
        assert done.exit_code == 0 and done.stdout == settings.shipped(name).read_text()
    assert "in the package are" in str(run("train", "config", "zero2").exception)


def test_questions_without_images_are_rows_without_that_column():
    item = dataclasses.replace(Questions(limit=1).items()[0], images=())
    row = {"id": "0", "prompt": [{"role": "user", "content": "why?"}]}
    assert stage.dataset([row], {"0": item}).column_names == ["id", "prompt"]


def test_a_hacked_run_is_stopped_where_that_is_asked_for(tmp_path, monkeypatch):
    """By its record alone: reward rises with the share of empty spans."""
    for stop in (True, False):
        held = SimpleNamespace(store=None, checkpoint=None, folder=tmp_path)
        kept = record.Record(held, None, stop)
        control = SimpleNamespace(should_training_stop=False, should_save=False)
        for step in range(1, 31):
            logs = {"reward": 0.3 + step / 50 + step % 2 / 100, "empty": step / 30, "copied": 0.0}
            state = SimpleNamespace(global_step=step, max_steps=30)
            kept.on_log(None, state, control, logs)
            if control.should_training_stop:
                break
        assert control.should_training_stop is control.should_save is stop
        assert (kept.stopped is not None) is stop and (step < 30) is stop

    store = Store(tmp_path / "rollouts", {**Questions().settings(), "model": None}, fields={})
    store.add([{"key": "0/0", "id": "0", "sample": 0, "text": "", "tokens": 1, "score": 1.0,
                "reward": 0.0, "error": None}])  # fmt: skip
    hacked = (tmp_path / "rl" / "model", "reward hacking: told")
    monkeypatch.setattr("vrga.training.rl.rl", lambda *given, **more: hacked)
    done = run("train", "rl", tmp_path, "--stop-on-hacking")
    assert done.exit_code == 5 and "reward hacking: told" in done.output


def test_an_adapter_is_refused_where_it_could_not_be_merged(tmp_path, monkeypatch):
    begun = stage.Stage(tmp_path, None, SFT(lora=4), {}, False)
    model, _ = vrga.load()
    assert begun.adapter(model).r == 4
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(ValueError, match="ZeRO-3 prevents"):
        begun.adapter(model)
