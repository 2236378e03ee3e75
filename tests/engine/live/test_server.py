"""`vrga serve`: the server checks itself, and answers over HTTP as transformers does."""

import concurrent.futures
import json
import os
import signal
import socket
import subprocess
import sys
import time

import openai
import pytest
from engine_cases import KINDS, samples

from vrga.config import VRGAConfig
from vrga.demo.data import PROMPTS
from vrga.engine.client import ServerError, address, ask, model_of
from vrga.evaluation.asker import Asker
from vrga.evaluation.items import drawn_items
from vrga.evaluation.served import ServerAsker

NEAR = 1e-4
TOKENS = 32


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.fixture(scope="module")
def server(folder, tmp_path_factory):
    """(its address, the model's name, what it had printed when it was ready)."""
    port, told = free_port(), tmp_path_factory.mktemp("server") / "told.txt"
    command = [
        sys.executable, "-m", "vrga", "serve", str(folder), "--port", str(port), "--",
        "--max-model-len", "512", "--max-num-seqs", "8",
        "--num-gpu-blocks-override", "96", "--block-size", "32",
    ]  # fmt: skip
    # The engine stands in a process of its own, as it does by default.
    environment = {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    with told.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env=environment)
    url = f"http://127.0.0.1:{port}"
    while "serving" not in told.read_text():
        assert process.poll() is None, told.read_text()[-3000:]
        time.sleep(1)
    yield url, model_of(url), told.read_text()
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) in (0, -signal.SIGTERM, 128 + signal.SIGTERM)


def test_it_checks_itself_against_transformers(server):
    told = server[2]
    assert "checked: steered and not, each alike twice" in told
    assert "checked: as transformers answers: within" in told


def test_requests_at_once_are_answered_as_in_transformers(server, reference):
    url, model, _ = server
    questions, kinds = samples(12), list(KINDS) * 3

    def one(number):
        sample, kind = questions[number], kinds[number]
        text = PROMPTS["cot"].format(question=sample.question)
        vrga = False if KINDS[kind] is None else KINDS[kind]
        return ask(url, model, [sample.image], text, vrga=vrga, max_tokens=TOKENS)

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        replies = list(pool.map(one, range(12)))
    for reply, sample, kind in zip(replies, questions, kinds, strict=True):
        logits, ids, region = reference.answer(sample, kind, TOKENS)
        rows = logits.log_softmax(-1)
        wanted = [float(row[i]) for row, i in zip(rows, ids, strict=True)]
        count = len(reply.logprobs)
        assert count > 8
        far = max(abs(a - b) for a, b in zip(reply.logprobs, wanted[:count], strict=True))
        assert far < NEAR
        if region is None:
            assert reply.looked is None
        else:
            assert reply.looked["tokens"] == int(region.mask.sum())
            assert len(reply.looked["share"]["steps"]) == count - 1


def test_the_openai_client_asks_and_hears_where_it_looked(server):
    url, model, _ = server
    sample = samples(1)[0]
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
    found = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": [
            {"type": "image_url", "image_url": {"url": address(sample.image)}},
            {"type": "text", "text": sample.question},
        ]}],
        max_tokens=8,
        temperature=0,
        extra_body={"vllm_xargs": {"vrga": json.dumps({"preset": "published", "gain": 2})}},
    )  # fmt: skip
    looked = found.model_extra["kv_transfer_params"]["vrga"]
    assert looked["steered"] and looked["config"] == "published, gain 2"
    assert looked["grids"] == [[6, 6]] and looked["boxes"][0] and looked["share"]["mean"] > 0


@pytest.mark.parametrize("usage", [False, True], ids=["plain", "with usage"])
def test_a_stream_tells_at_its_end_what_the_whole_answer_tells(server, usage):
    url, model, _ = server
    sample = samples(1)[0]
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")

    def asked(vrga, **more):
        return client.chat.completions.create(
            model=model, max_tokens=8, temperature=0,
            messages=[{"role": "user", "content": [
                {"type": "image_url", "image_url": {"url": address(sample.image)}},
                {"type": "text", "text": sample.question},
            ]}],
            extra_body={"vllm_xargs": {"vrga": json.dumps(vrga)}}, **more,
        )  # fmt: skip

    options = {"include_usage": True} if usage else None
    chunks = list(asked("paper", stream=True, stream_options=options))
    told = [(one.model_extra or {}).get("kv_transfer_params") for one in chunks]
    ends = [bool(one.choices and one.choices[0].finish_reason) for one in chunks]
    assert [one is not None for one in told] == ends and sum(ends) == 1
    whole = asked("paper")
    assert told[ends.index(True)]["vrga"] == whole.model_extra["kv_transfer_params"]["vrga"]
    text = "".join(one.choices[0].delta.content or "" for one in chunks if one.choices)
    assert text == whole.choices[0].message.content
    plain = list(asked(False, stream=True))
    assert not [one for one in plain if (one.model_extra or {}).get("kv_transfer_params")]


def test_what_cannot_be_is_refused_with_400_and_the_reason(server):
    url, model, _ = server
    sample = samples(1)[0]
    for vrga, told in (
        ({"preset": "papers"}, "400: .*preset 'papers'"),
        ({"relocate": "back"}, "400: .*does not run in vLLM"),
        ({"given": [[], []]}, "400: .*no box at all"),
    ):
        with pytest.raises(ServerError, match=told):
            ask(url, model, [sample.image], sample.question, vrga=vrga, max_tokens=4)
    assert ask(url, model, [sample.image], sample.question, vrga="paper", max_tokens=4).looked


def test_an_evaluation_over_a_server_has_the_answers_of_one_in_transformers(server, reference):
    """Both askers of `vrga eval`, on questions of its grid task, in both arms."""
    url, model, _ = server
    items = drawn_items(samples(8))
    for config in (None, VRGAConfig.published()):
        requests = [one.request("cot", one.id, max_new_tokens=48) for one in items]
        here = Asker(reference.model, reference.processor, config, batch=4)
        there = ServerAsker(url, model, config, batch=4)
        wanted = {one.id: one for one in here.ask(requests)}
        found = {one.id: one for one in there.ask(requests)}
        assert {one.error for one in [*found.values(), *wanted.values()]} == {None}
        for name, one in found.items():
            assert one.text == wanted[name].text and one.tokens == wanted[name].tokens
            assert one.region == wanted[name].region and one.steered == wanted[name].steered
