"""Requests of every kind in one batch, each as `vrga.patch` answers it alone."""

import pytest
import torch
from engine_cases import KINDS, asked, logits_of, prompt_of, samples

NEAR = 1e-4  # of logits
RELEASED = {"released": {"preset": "released"}, "mask": {"preset": "released_mask"}}


def told(output):
    """What came back with an answer of where it looked; None for nothing."""
    return (output.kv_transfer_params or {}).get("vrga")


def check(output, found):
    """An answer against `Reference.answer`'s, its logits and its region."""
    logits, tokens = logits_of(output)
    wanted, ids, region = found
    assert tokens == ids
    torch.testing.assert_close(logits, wanted, atol=NEAR, rtol=0)
    if region is None:
        assert told(output) is None
        return
    summary = told(output)
    assert summary["steered"] and summary["query"] == region.query
    assert summary["tokens"] == int(region.mask.sum())
    assert summary["heads"] == region.visual.nonzero().tolist()


def test_every_kind_in_one_batch_is_as_alone_in_transformers(engine, reference):
    kinds = [*KINDS, *RELEASED] * 2
    questions = samples(len(kinds))
    every = KINDS | RELEASED
    outputs = engine.generate(
        [prompt_of(one) for one in questions], [asked(every[kind]) for kind in kinds],
        use_tqdm=False,
    )  # fmt: skip
    moved = []
    for output, kind, sample in zip(outputs, kinds, questions, strict=True):
        found = reference.answer(sample, every[kind])
        check(output, found)
        moved.append(float((found[0] - reference.answer(sample, None)[0]).abs().max()))
    steered = [far for far, kind in zip(moved, kinds, strict=True) if kind != "base"]
    assert min(steered) > 100 * NEAR  # else nothing was compared


def test_a_gain_of_one_and_a_prompt_without_image_are_left_untouched(engine):
    sample = samples(1)[0]
    text = {"prompt": "<|im_start|>user\nwhat color is the K?<|im_end|>\n<|im_start|>assistant\n"}
    plain, one, words, steered_words, steered = engine.generate(
        [prompt_of(sample), prompt_of(sample), text, text, prompt_of(sample)],
        [asked(None, 8), asked({"preset": "paper", "gain": 1}, 8), asked(None, 8),
         asked("paper", 8), asked("paper", 8)],
        use_tqdm=False,
    )  # fmt: skip
    torch.testing.assert_close(logits_of(one)[0], logits_of(plain)[0], atol=NEAR, rtol=0)
    torch.testing.assert_close(logits_of(steered_words)[0], logits_of(words)[0], atol=NEAR, rtol=0)
    assert told(one) is told(steered_words) is told(plain) is None
    assert told(steered)["share"]["steps"] and len(told(steered)["share"]["steps"]) == 7


def test_given_boxes_take_the_place_of_the_region(engine, reference):
    sample = samples(1)[0]
    cells = torch.zeros(6, 6, dtype=torch.bool)
    cells[1:3, 2:5] = True
    asking = {"preset": "published", "given": [[[2 / 6, 1 / 6, 5 / 6, 3 / 6]]]}
    (output,) = engine.generate([prompt_of(sample)], [asked(asking)], use_tqdm=False)
    check(output, reference.answer(sample, asking, given=[[cells]]))
    assert told(output)["boxes"] == [[(0.333333, 0.166667, 0.833333, 0.5)]]
    # What comes back can be given again.
    again = asking | {"given": told(output)["boxes"]}
    (second,) = engine.generate([prompt_of(sample)], [asked(again)], use_tqdm=False)
    assert told(second)["boxes"] == told(output)["boxes"]


def test_several_images_of_different_sizes(engine, reference):
    one, two = samples(1)[0], samples(1, "large")[0]
    text = prompt_of(one)["prompt"]
    block = "<|vision_start|><|image_pad|><|vision_end|>"
    prompt = {"prompt": text.replace(block, block * 2),
              "multi_modal_data": {"image": [one.image, two.image]}}  # fmt: skip
    inputs = reference.processor(
        text=[prompt["prompt"]], images=[one.image, two.image], return_tensors="pt"
    )
    given = [[], [[0.5, 0.5, 1, 1]]]
    asking = ["paper", {"preset": "published", "given": given}]
    outputs = engine.generate([prompt] * 2, [asked(one, 12) for one in asking], use_tqdm=False)
    quarter = torch.zeros(10, 10, dtype=torch.bool)
    quarter[5:, 5:] = True
    masks = [[torch.zeros(6, 6, dtype=torch.bool), quarter]]
    for output, one, cells in zip(outputs, asking, (None, masks), strict=True):
        check(output, reference.answer(None, one, 12, inputs=inputs, given=cells))
        assert told(output)["grids"] == [[6, 6], [10, 10]]


def test_back_spans_are_followed_in_each_request(engine, reference):
    questions = samples(3)
    asking = {"preset": "published", "when": "back"}
    outputs = engine.generate(
        [prompt_of(one, "back") for one in questions] * 2,
        [asked(asking, 96)] * 3 + [asked("dynamic", 96)] * 3,
        use_tqdm=False,
    )
    for output, sample in zip(outputs[:3], questions, strict=True):
        check(output, reference.answer(sample, asking, 96, prompt="back"))
        assert 0 < len(told(output)["share"]["steps"]) < 95
    assert len(told(outputs[3])["share"]["steps"]) == 95


def test_the_question_may_be_named(engine, reference):
    sample = samples(1)[0]
    asking = {"preset": "published", "query": "what color"}
    (output,) = engine.generate([prompt_of(sample)], [asked(asking, 4)], use_tqdm=False)
    (other,) = engine.generate([prompt_of(sample)], [asked("dynamic", 4)], use_tqdm=False)
    assert told(output)["query"] < told(other)["query"]


def test_several_answers_of_one_request_are_each_steered(engine, reference):
    sample = samples(1)[0]
    (output,) = engine.generate([prompt_of(sample)], [asked("dynamic", 12, n=2)], use_tqdm=False)
    wanted = reference.answer(sample, "dynamic", 12)[1]
    assert [list(one.token_ids) for one in output.outputs] == [wanted, wanted]


@pytest.mark.parametrize(
    ("steering", "told"),
    [
        ({"preset": "papers"}, "preset 'papers'"),
        ({"gian": 2}, "did you mean gain"),
        ({"gain": -1}, "gain=-1 must be"),
        ({"relocate": "back"}, "does not run in vLLM"),
        ({"preset": "published", "method": "ablation", "ablate": "visual"}, "does not run in vLLM"),
        ({"given": [[[0, 0, 1, 1]], []]}, "boxes for 2 images"),
        ({"query": "where is the cat?"}, "does not occur"),
        (7, "give false, true"),
    ],
    ids=lambda one: str(one)[:24],
)
def test_what_cannot_be_is_refused_and_the_engine_goes_on(engine, steering, told):
    sample = samples(1)[0]
    with pytest.raises(ValueError, match=told):
        engine.generate([prompt_of(sample)], [asked(steering, 4)], use_tqdm=False)
    # The same image again, which the engine was never given.
    (output,) = engine.generate([prompt_of(sample)], [asked("paper", 4)], use_tqdm=False)
    assert output.outputs[0].finish_reason == "length"


def test_a_plan_of_the_clients_own_is_refused(engine):
    from vllm import SamplingParams

    given = SamplingParams(max_tokens=4, extra_args={"vrga_plan": {}})
    with pytest.raises(ValueError, match="made at admission"):
        engine.generate([prompt_of(samples(1)[0])], [given], use_tqdm=False)


def test_a_fault_in_a_worker_ends_its_request_alone(engine, monkeypatch):
    from vrga.engine.steered import Steered

    def fails(self, rows):
        raise ArithmeticError("broken")

    sample = samples(1)[0]
    monkeypatch.setattr(Steered, "locate", fails)
    broken, plain = engine.generate(
        [prompt_of(sample)] * 2, [asked("paper", 6), asked(None, 6)], use_tqdm=False
    )
    assert broken.outputs[0].finish_reason == "error"
    assert plain.outputs[0].finish_reason == "length" and len(plain.outputs[0].token_ids) == 6
    monkeypatch.undo()
    (output,) = engine.generate([prompt_of(sample)], [asked("paper", 6)], use_tqdm=False)
    assert told(output)["steered"]
