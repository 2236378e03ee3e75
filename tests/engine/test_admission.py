"""The admission of requests: where the question ends, and what is refused before it runs."""

import functools
from types import SimpleNamespace

import pytest

from vrga.config import VRGAConfig
from vrga.engine.admission import Picture, Reader, end_ids
from vrga.engine.door import admit, refused_engine, refused_request
from vrga.engine.plan import PLAN, Plan
from vrga.engine.request import Asked, read_request
from vrga.hf.files import embedded, read_config

IMAGE = "<|vision_start|>" + "<|image_pad|>" * 9 + "<|vision_end|>"
TURN = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
ASKED = TURN.format(IMAGE + "what color is the K?")


@functools.cache
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(embedded())


@functools.cache
def reader():
    config = SimpleNamespace(**read_config(embedded()))
    return Reader(config, str(embedded()), tokenizer(), {419, 417})


def prompt(text):
    """Its ids, and the images in it."""
    ids = tokenizer()(text).input_ids
    starts = [i + 1 for i, one in enumerate(ids) if one == 420]
    return ids, [Picture("image", start, 9) for start in starts]


def plan(text, **asked):
    config = asked.pop("config", VRGAConfig())
    return reader().admit(Asked(config, **asked), *prompt(text))


def said(found, text):
    """What the prompt says up to the plan's question."""
    return tokenizer().decode(prompt(text)[0][: found.query + 1])


def test_the_question_ends_where_the_users_turn_does():
    text = TURN.format(IMAGE + "what color is the K?")
    found = plan(text)
    assert said(found, text).endswith("what color is the K?")
    assert found.images == ((4, 9),) and found.prompt == len(prompt(text)[0])


def test_it_is_the_last_turn_of_a_conversation_and_may_be_named():
    first = TURN.format(IMAGE + "what color is the K?") + "red<|im_end|>\n"
    text = first + TURN.format(IMAGE + "what color is the M?")
    assert said(plan(text), text).endswith("the M?")
    assert said(plan(text, query="is the K?"), text).endswith("the K?")
    assert len(plan(text).images) == 2


def test_there_is_no_plan_where_there_is_nothing_to_steer():
    text = TURN.format(IMAGE + "what color is the K?")
    assert plan(text, config=VRGAConfig(gain=1)) is None
    assert plan(TURN.format("what color is the K?")) is None
    assert plan(text, config=VRGAConfig.released_mask()) is not None


@pytest.mark.parametrize(
    ("text", "asked", "told"),
    [
        (TURN.format(IMAGE + "what?"), {"query": "where?"}, "does not occur in the prompt"),
        (TURN.format(IMAGE + "what?"), {"given": ((), ())}, "boxes for 2 images"),
        (TURN.format(IMAGE * 2 + "what?"), {"config": VRGAConfig.released()}, "one image per row"),
        (TURN.format("what?"), {"given": ((),)}, "boxes for 1 images, and the request has 0"),
    ],
    ids=["question", "boxes", "released", "text with boxes"],
)
def test_what_cannot_be_done_is_refused(text, asked, told):
    with pytest.raises(ValueError, match=told):
        plan(text, **asked)


def test_videos_and_embeddings_are_refused():
    ids, pictures = prompt(TURN.format(IMAGE + "what?"))
    asked = Asked(VRGAConfig())
    with pytest.raises(ValueError, match="request has video, and images alone"):
        reader().admit(asked, ids, [*pictures, Picture("video", 20, 4)])
    with pytest.raises(ValueError, match="given as embeddings"):
        reader().admit(asked, None, pictures)
    with pytest.raises(ValueError, match="lays images out in a way that is not known"):
        reader().admit(asked, ids, [Picture("image", 5, 9)])


def test_a_model_that_was_not_tested_is_refused():
    with pytest.raises(ValueError, match="type 'gemma3' is not steered in vLLM"):
        Reader(SimpleNamespace(model_type="gemma3"), "", None, set())


def test_ids_that_end_a_turn_come_in_any_form():
    assert end_ids(None, 3, [4, 5], (3,)) == {3, 4, 5}


def engine(**changed):
    """vLLM's configuration, as far as it is read, and the processor that holds it."""
    config = SimpleNamespace(
        parallel_config=SimpleNamespace(
            pipeline_parallel_size=1, decode_context_parallel_size=1,
            prefill_context_parallel_size=1, data_parallel_size=1,
        ),
        cache_config=SimpleNamespace(cache_dtype="auto"),
        model_config=SimpleNamespace(
            model=str(embedded()), hf_config=reader().config, skip_tokenizer_init=False,
            hf_text_config=SimpleNamespace(use_sliding_window=False, eos_token_id=419),
            try_get_generation_config=lambda: {"eos_token_id": [419, 417]},
        ),
        device_config=SimpleNamespace(device_type="cpu"),
        speculative_config=None, kv_transfer_config=None, use_v2_model_runner=False,
    )  # fmt: skip
    for path, value in changed.items():
        *parts, name = path.split("__")
        owner = functools.reduce(getattr, parts, config)
        setattr(owner, name, value)
    return SimpleNamespace(vllm_config=config, get_tokenizer=tokenizer)


def request(vrga, text=ASKED, **more):
    """A request as vLLM's processor makes it."""
    ids, pictures = prompt(text)
    features = [
        SimpleNamespace(
            modality=one.kind, mm_position=SimpleNamespace(offset=one.place, length=one.count)
        )
        for one in pictures
    ]
    extra = {} if vrga is None else {"vrga": vrga}
    return SimpleNamespace(
        sampling_params=SimpleNamespace(extra_args=extra), prompt_token_ids=ids,
        mm_features=features, lora_request=None, resumable=False, **more,
    )  # fmt: skip


def test_a_request_that_asks_gets_a_plan_and_others_nothing():
    processor = engine()
    asked, silent = request({"preset": "published"}), request(None)
    admit(processor, asked, None)
    admit(processor, silent, "not here")
    found = Plan.within(asked.sampling_params.extra_args)
    assert found.config == VRGAConfig.published() and found.query == 19
    assert asked.sampling_params.extra_args["vrga"] == {"preset": "published"}
    assert silent.sampling_params.extra_args == {}
    pooling = SimpleNamespace(sampling_params=None)
    admit(processor, pooling, None)


def test_a_plan_is_made_at_admission_alone():
    forged = request("paper")
    forged.sampling_params.extra_args[PLAN] = {}
    with pytest.raises(ValueError, match="made at admission"):
        admit(engine(), forged, None)


REFUSED = {
    "parallel_config__pipeline_parallel_size": (2, "pipeline parallelism"),
    "parallel_config__decode_context_parallel_size": (2, "context parallelism"),
    "parallel_config__data_parallel_size": (2, "data parallelism"),
    "speculative_config": (object(), "speculative decoding"),
    "kv_transfer_config": (object(), "transfer of keys"),
    "cache_config__cache_dtype": ("fp8", "keys in 8 bits"),
    "use_v2_model_runner": (True, "V2 model runner"),
    "device_config__device_type": ("xpu", "CPUs alone"),
    "model_config__hf_text_config__use_sliding_window": (True, "sliding windows"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_engine_that_steers_nothing_says_why(name):
    value, told = REFUSED[name]
    processor = engine(**{name: value})
    assert told in refused_engine(processor.vllm_config)
    with pytest.raises(ValueError, match=told):
        admit(processor, request("paper"), None)
    # What does not ask, and what has nothing to steer, goes on.
    for other in (request(None), request("paper", TURN.format("what?")), request({"gain": 1})):
        admit(processor, other, None)
        assert PLAN not in other.sampling_params.extra_args
    assert refused_engine(engine().vllm_config) is None


def test_a_request_with_an_adapter_or_open_input_is_refused():
    for name, value, told in (("lora_request", object(), "LoRA"), ("resumable", True, "streams")):
        asked = request("paper")
        setattr(asked, name, value)
        assert told in refused_request(asked)
        with pytest.raises(ValueError, match=told):
            admit(engine(), asked, None)


def test_a_plug_in_that_is_off_refuses_and_says_why():
    with pytest.raises(ValueError, match="cannot be done here: no hook. Leave vrga out"):
        admit(engine(), request("paper"), "no hook")


def test_the_default_of_the_server_is_asked_for_silent_requests(monkeypatch):
    monkeypatch.setenv("VRGA_ENGINE_DEFAULT", "paper")
    silent, off = request(None), request(False)
    admit(engine(), silent, None)
    admit(engine(), off, None)
    assert Plan.within(silent.sampling_params.extra_args).config == VRGAConfig.paper()
    assert PLAN not in off.sampling_params.extra_args
    assert read_request({"vrga": False}) is None
