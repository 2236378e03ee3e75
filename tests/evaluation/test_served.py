"""A server is asked as a model is, and its answers are kept as a model's."""

import contextlib
import json
from http.server import BaseHTTPRequestHandler

import pytest
from command import ended
from PIL import Image
from talking import serve

from vrga.config import VRGAConfig
from vrga.engine.client import ServerError, context_of, model_of
from vrga.evaluation.request import request
from vrga.evaluation.served import ServerAsker

LOOKED = {
    "steered": True, "config": "paper", "grids": [[2, 3]], "boxes": [[[0, 0, 1, 0.5]]],
    "tokens": 3, "heads": [[1, 2], [2, 0]], "query": 12, "share": {"mean": 0.5, "steps": [0.5]},
}  # fmt: skip


@contextlib.contextmanager
def serving(reply):
    """A stand-in for a server; `reply` makes of a request (status, the body's JSON)."""
    heard = []

    class Handler(BaseHTTPRequestHandler):
        def _send(self, status, content):
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self):
            self._send(200, {"data": [{"id": "small", "max_model_len": 512}]})

        def do_POST(self):
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            heard.append(asked)
            self._send(*reply(asked))

        def log_message(self, *args):
            """Says nothing."""

    with serve(Handler) as address:
        yield address, heard


def said(text, looked=None):
    tokens = [{"token": word, "logprob": -0.5} for word in text.split()]
    return 200, {
        "choices": [{"message": {"content": text}, "logprobs": {"content": tokens}}],
        "kv_transfer_params": None if looked is None else {"vrga": looked},
    }


def questions(**options):
    image = Image.new("RGB", (84, 56), "red")
    return [request("one", "what? say a word.", [image], "what?", options=options)]


def test_a_steered_answer_is_kept_as_a_models():
    with serving(lambda asked: said("a red one", LOOKED)) as (url, heard):
        config = VRGAConfig.paper(gain=2)
        asker = ServerAsker(url, model_of(url), config, batch=2, seed=3)
        (found,) = asker.ask(questions(max_new_tokens=16, until=["\n"], do_sample=False))
    assert found.text == "a red one" and found.tokens == 3 and found.steered
    assert found.region == {
        "image_tokens": 6, "region_tokens": 3, "visual_heads": 2, "query": 12
    }  # fmt: skip
    assert found.steps["steered"] == 1 and sum(found.steps["left_alone"].values()) == 1
    (asked,) = heard
    steering = json.loads(asked["vllm_xargs"]["vrga"])
    assert steering.pop("query") == "what?" and VRGAConfig.from_dict(steering) == config
    assert asked["model"] == "small" and asked["max_tokens"] == 16 and asked["stop"] == ["\n"]
    assert asked["temperature"] == 0 and asked["seed"] == 3
    image, text = asked["messages"][0]["content"]
    assert image["image_url"]["url"].startswith("data:image/png;base64,")
    assert text == {"type": "text", "text": "what? say a word."}


def test_the_base_arm_asks_not_to_be_steered():
    with serving(lambda asked: said("blue")) as (url, heard):
        (found,) = ServerAsker(url, "small", None).ask(questions())
    assert json.loads(heard[0]["vllm_xargs"]["vrga"]) is False
    assert found.text == "blue" and not found.steered and found.region is None


def test_a_refused_request_is_an_error_of_its_sample():
    def reply(asked):
        return 400, {"error": {"message": "vrga: no box at all"}}

    with serving(reply) as (url, _):
        (found,) = ServerAsker(url, "small", VRGAConfig()).ask(questions())
        (odd,) = ServerAsker(url, "small", None).ask(questions(num_beams=4))
    assert found.error == "ServerError: the server says 400: vrga: no box at all"
    assert "num_beams: a server is asked for" in odd.error


def test_a_server_that_does_not_steer_ends_the_run():
    with serving(lambda asked: said("blue")) as (url, _):
        with pytest.raises(ServerError, match="did not steer it"):
            list(ServerAsker(url, "small", VRGAConfig()).ask(questions()))


def test_a_server_without_room_for_the_answers_ends_the_run_before_it_is_asked():
    """Else every sample would fail, and count as wrong."""
    with serving(lambda asked: said("blue")) as (url, heard):
        assert context_of(url) == 512
        asker = ServerAsker(url, "small", None, context=512)
        with pytest.raises(ServerError, match="2048 tokens, and .* has room for 512 .*--max-new"):
            list(asker.ask(questions(max_new_tokens=2048)))
        assert not heard
        (found,) = asker.ask(questions(max_new_tokens=64))
    assert found.text == "blue"


def test_a_request_that_ended_with_a_fault_is_an_error():
    looked = {"steered": False, "config": "paper", "fault": "broken"}
    with serving(lambda asked: said("", looked)) as (url, _):
        (found,) = ServerAsker(url, "small", VRGAConfig()).ask(questions())
    assert found.error == "broken" and found.text is None


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--engine", "vlm"], "transformers, vllm, or the address"),
        (["--engine", "vllm", "--compare"], "--preset or --config"),
        (["--engine", "vllm", "--compare", "--preset", "paper", "--dtype", "float32"], "--dtype"),
        (["--engine", "vllm", "--no-vrga", "--max-pixels", "9"], "--max-pixels"),
    ],
    ids=["name", "config", "dtype", "pixels"],
)
def test_what_the_server_decides_itself_is_refused(given, told, tmp_path, capsys):
    arm = [] if {"--compare", "--no-vrga"} & set(given) else ["--compare"]
    assert ended("eval", "--tasks", "grid", "--output", tmp_path / "run", *arm, *given) == 2
    assert told in " ".join(capsys.readouterr().err.split())
