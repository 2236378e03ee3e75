"""Streamed answers with their summaries, with a stand-in for what makes vLLM's chunks."""

import asyncio
import json
from types import SimpleNamespace

from vrga.engine.streams import telling, with_summary

LOOKED = {"steered": True, "tokens": 3}


async def results(*given):
    for one in given:
        yield SimpleNamespace(kv_transfer_params=one)


async def chunks(serving, request, results, name):
    async for _ in results:
        serving.seen += 1
        end = "length" if serving.seen in serving.ends else None
        yield f"data: {json.dumps({'id': name, 'choices': [{'finish_reason': end}]})}\n\n"
    yield f"data: {json.dumps({'usage': 1, 'choices': []})}\n\n"
    yield "data: [DONE]\n\n"


def streamed(given, ends):
    serving = SimpleNamespace(seen=0, ends=ends)

    async def run():
        return [one async for one in telling(chunks, serving, None, results(*given), "é")]

    found = asyncio.run(run())
    assert found[-1] == "data: [DONE]\n\n"
    return [json.loads(one.removeprefix("data: ")).get("kv_transfer_params") for one in found[:-1]]


def test_the_chunk_that_ends_an_answer_has_its_summary_and_no_other_chunk():
    found = streamed([None, {"other": 1}, {"vrga": LOOKED}], ends={3})
    assert found == [None, None, {"vrga": LOOKED}, None]


def test_each_of_several_answers_has_its_own():
    other = LOOKED | {"tokens": 5}
    found = streamed([None, {"vrga": LOOKED}, None, {"vrga": other}], ends={2, 4})
    assert found == [None, {"vrga": LOOKED}, None, {"vrga": other}, None]


def test_streams_that_are_not_steered_and_errors_are_handed_through_as_they_are():
    assert streamed([None, None], ends={2}) == [None, None, None]
    error = 'data: {"error": {"message": "broken"}}\n\n'
    assert with_summary(error, LOOKED) is error
    assert with_summary("data: [DONE]\n\n", LOOKED) == "data: [DONE]\n\n"
