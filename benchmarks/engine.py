"""Tokens a second of vLLM with steered requests, over the same engine's without: in turns.

    make test-engine    # once, for the environment
    PYTHONPATH=tests/helpers .venv-engine/bin/python -m benchmarks.engine small
    PYTHONPATH=tests/helpers .venv-engine/bin/python -m benchmarks.engine 0.5b \
      --tokens 16 --rounds 3 --arms base,paper,dynamic
    python -m benchmarks.table

Eight requests at once, on one thread of a CPU, in float32: of the small model, or of random weights
in the shape of a 0.5B text model with the small model's vision tower and tokenizer. A round asks
the same questions unsteered and in each way of steering, and transformers the same batch, in an
order that turns; a ratio is of two times of one round. Times are of the process: other programs on
the machine do not count.
"""

from __future__ import annotations

import argparse
import functools
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import engine_cases
import torch
from wide_heads import FILES

from benchmarks.shapes import SHAPES
from benchmarks.timing import RESULTS

OUTPUT = RESULTS / "engine.json"
REQUESTS = 8
ENGINE = ("base", "static", "paper", "dynamic")
ARMS = (*ENGINE, "transformers base", "transformers paper")
MODELS = ("small", "0.5b")


def write_random(folder: Path, name: str) -> None:
    """Write a checkpoint of random weights: the shape's text model, all else the small model's."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    from vrga.hf.files import embedded

    shape, half = SHAPES[name], SHAPES[name].size // 2
    for pattern in FILES:
        for path in embedded().glob(pattern):
            shutil.copy(path, folder)
    told = json.loads((folder / "config.json").read_text())
    rope = {"type": "mrope", "rope_type": "default", "rope_theta": 1e6,
            "mrope_section": [half // 4, half // 8 * 3, half // 8 * 3]}  # fmt: skip
    told["text_config"] |= {
        "hidden_size": shape.hidden, "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers, "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads, "vocab_size": shape.vocabulary,
        "layer_types": ["full_attention"] * shape.layers,
        "rope_parameters": rope, "rope_scaling": rope, "rope_theta": 1e6,
    }  # fmt: skip
    told["vision_config"]["out_hidden_size"] = shape.hidden
    torch.manual_seed(0)
    model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig.from_dict(told)).float()
    generation = (folder / "generation_config.json").read_text()
    model.save_pretrained(folder)
    (folder / "generation_config.json").write_text(generation)


def arms(folder: Path, name: str, names: Sequence[str]) -> dict[str, Callable[[int, int], None]]:
    """What takes turns, by name; each takes a number of requests, and of tokens."""
    from vllm import LLM, SamplingParams

    import vrga
    from vrga.demo.data import prepare

    if name == "small":
        engine_cases.write_wide(folder)
    else:
        write_random(folder, name)
    llm = LLM(str(folder), **{**engine_cases.SMALL, "max_logprobs": 20})
    samples = engine_cases.samples(REQUESTS)
    prompts = [engine_cases.prompt_of(one) for one in samples]
    reference = functools.cache(lambda: engine_cases.Reference(folder))

    def engine(way: str, requests: int, tokens: int) -> None:
        asked = engine_cases.KINDS[way]
        extra = None if asked is None else {"vrga": asked}
        # Random weights make tokens that the small model's tokenizer has no text for.
        params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True,
                                detokenize=False, extra_args=extra)  # fmt: skip
        llm.generate(prompts[:requests], params, use_tqdm=False)

    def transformers(way: str, requests: int, tokens: int) -> None:
        inputs = prepare(reference().processor, samples[:requests], "cot")
        config = engine_cases.config_of(way)
        if config is None:
            reference()._generate(inputs, tokens)
            return
        with vrga.patch(reference().model, config, tokenizer=reference().processor.tokenizer):
            reference()._generate(inputs, tokens)

    return {
        arm: functools.partial(engine if arm in ENGINE else transformers, arm.split()[-1])
        for arm in names
    }


def measured(
    todo: dict[str, Callable[[int, int], None]], rounds: int, tokens: int
) -> Iterator[dict[str, dict[str, float]]]:
    """Tokens a second of each over those of the unsteered engine, after each round."""

    def seconds(one: Callable[[int, int], None]) -> float:
        before = time.process_time()
        one(REQUESTS, tokens)
        return time.process_time() - before

    for one in todo.values():
        one(1, 2)  # what is compiled or read at first
    names = list(todo)
    ratios: dict[str, list[float]] = {name: [] for name in names if name != "base"}
    for number in range(rounds):
        turn = number % len(names)
        took = {name: seconds(todo[name]) for name in names[turn:] + names[:turn]}
        for name in ratios:
            ratios[name].append(took["base"] / took[name])
        yield {
            name: {"median": statistics.median(all_of), "low": min(all_of), "high": max(all_of)}
            for name, all_of in ratios.items()
        }


def main() -> None:
    """Measure, print, and put what was measured beside what is there of other models."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("--tokens", type=int, default=64, help="of each answer")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--arms", default=",".join(ARMS), help="what takes turns")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    asked = parser.parse_args()
    engine_cases.set_small()
    torch.set_num_threads(1)
    names = [name.strip() for name in asked.arms.split(",")]
    if "base" not in names or set(names) - set(ARMS):
        parser.error(f"--arms: base and others of {', '.join(ARMS)}")
    with tempfile.TemporaryDirectory() as folder:
        todo = arms(Path(folder), asked.model, names)
        for done, found in enumerate(measured(todo, asked.rounds, asked.tokens), 1):
            before = json.loads(asked.output.read_text()) if asked.output.is_file() else {}
            settings = {"requests": REQUESTS, "tokens": asked.tokens, "rounds": done}
            whole = {**before, asked.model: {"settings": settings, "speed": found}}
            asked.output.write_text(json.dumps(whole, indent=1) + "\n")
            print(f"after {done} rounds: " + ", ".join(
                f"{name} {told['median']:.3f}" for name, told in found.items()), flush=True
            )  # fmt: skip


if __name__ == "__main__":
    main()
