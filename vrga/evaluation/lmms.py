"""The model that lmms-eval knows as `--model vrga`: its tasks, asked with or without VRGA."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterable

import torch
from accelerate import Accelerator
from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms

from vrga import lookback
from vrga.closer.zoom import Zoom
from vrga.config import VRGAConfig
from vrga.demo.data import PROMPTS
from vrga.engine.client import context_of, model_of
from vrga.evaluation import scoring
from vrga.evaluation.asker import Asker
from vrga.evaluation.closer_asker import CloserAsker
from vrga.evaluation.question_text import question_in
from vrga.evaluation.request import Answer, Request
from vrga.evaluation.served import ServerAsker
from vrga.evaluation.store import Store
from vrga.hf.checkpoints import load
from vrga.hf.chosen_config import checkpoint_of, choose
from vrga.hf.files import embedded

JUDGED = ("vrga_haloquest", "vrga_mmhal", "vrga_rhbench")
OURS = "vrga_"  # beginning of the names of this package's tasks, which score raw texts
TASK_PROMPT = "task"  # the prompt that a task brings itself
LONGEST = 2048  # new tokens where neither the task nor the user says
SAMPLING = ("temperature", "top_p", "top_k")
GENERATION = ("max_new_tokens", "temperature", "top_p", "top_k", "num_beams", "do_sample", "until")


def _check(vrga: object, config: VRGAConfig | str, gain: float | None, zoom: Zoom | bool) -> None:
    """Refuse an arm that is not named, and steering that is told twice or for nothing."""
    if not isinstance(vrga, bool):
        raise ValueError(f"vrga={vrga!r}: say vrga=True or vrga=False, which arm this is")
    if not vrga and (gain is not None or config != "default"):
        raise ValueError("config and gain are about steering: leave them out with vrga=False")
    if zoom and not vrga:
        raise ValueError("zoom finds its place as VRGA does: say vrga=True with it")
    if gain is not None and not isinstance(config, str):
        raise ValueError(
            f"gain={gain} beside a VRGAConfig of gain {config.gain}: set it in the config"
        )


def _template(prompt: str, name: str) -> str | None:
    """The text that questions are put into; None is the task's own.

    Raises:
        ValueError: no prompt.
    """
    if prompt == TASK_PROMPT:
        os.environ.pop(scoring.BOX, None)
        return None
    template = "semantic" if prompt == "back" else prompt
    if name == str(embedded()):
        template = PROMPTS.get(prompt, prompt)  # the words it was trained with
    lookback.prompt("?", template)  # refuses what is no prompt
    # The scorers of this package's tasks are given no prompt, and must know the rule.
    os.environ[scoring.BOX] = str(int(scoring.asks_for_box(prompt)))
    return template


def loaded(processes: Accelerator, pretrained, device_map, dtype, attn_implementation) -> tuple:
    """A checkpoint, on the GPU of this process, and its processor."""
    if device_map is None and processes.num_processes > 1 and torch.cuda.is_available():
        device_map = {"": processes.device}
    if pretrained is None and dtype == "auto":
        dtype = torch.float32
    return load(
        pretrained, dtype=dtype, device_map=device_map, attn_implementation=attn_implementation
    )


class VRGAModel(lmms):
    """A model under lmms-eval, patched or not.

    Args:
        pretrained: checkpoint, as of `vrga.load`; None is the embedded model. Or a loaded (model,
            processor).
        vrga: steer or not. There is no default: an arm must be named.
        config: how to steer: a `VRGAConfig`, or a preset's name, of which "default" is what the
            checkpoint brings, else the paper's; only with vrga=True.
        gain: overrides a named preset's.
        zoom: with vrga=True, look closer where that is worth it: a `Zoom`, or True for `Zoom()`.
        prompt: "task" (the task's own), a style of `lookback.prompt`, or a text with {question}.
        batch_size: rows per call of generate; with zoom questions come one by one.
        max_new_tokens: overrides the task's own.
        min_pixels, max_pixels: bounds of the images' size.
        device_map, dtype, attn_implementation: of `vrga.load`.
        server: address of a server that runs VRGA in vLLM, asked in the place of a model here.
        seed: of sampling; device, max_batch_size: lmms-eval's own, another device is refused.

    Attributes:
        store: keeps finished samples and answers those it has, or None.
        arm: name of this arm in the store's keys.
        begin, advance: called with the number of samples there are, and of those finished.
    """

    is_simple = False

    def __init__(
        self,
        pretrained=None,
        vrga: bool | None = None,
        config: VRGAConfig | str = "default",
        gain: float | None = None,
        zoom: Zoom | bool = False,
        prompt: str = TASK_PROMPT,
        batch_size: int = 1,
        max_new_tokens: int | None = None,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        device_map: str | dict | None = None,
        dtype: str | torch.dtype = "auto",
        attn_implementation: str | None = None,
        server: str | None = None,
        seed: int = 0,
        device: str | None = None,
        max_batch_size: int | None = None,
    ):
        super().__init__()
        _check(vrga, config, gain, zoom)
        self.accelerator = Accelerator(cpu=not torch.cuda.is_available())
        self._rank = self.accelerator.process_index
        self._world_size = self.accelerator.num_processes
        if server is not None:
            model = processor = None
            name, self.device = model_of(server), torch.device("cpu")  # where answers are scored
        else:
            model, processor = pretrained if isinstance(pretrained, tuple) else loaded(
                self.accelerator, pretrained, device_map, dtype, attn_implementation
            )  # fmt: skip
            name, self.device = model.name_or_path, model.device
        self.prompt, self.template = prompt, _template(prompt, name)
        if device is not None and torch.device(device).type != self.device.type:
            raise ValueError(
                f"device={device!r}, and the model is on {self.device}: see device_map"
            )
        self.vrga, self.max_new_tokens = bool(vrga), max_new_tokens
        fields = {} if gain is None else {"gain": gain}
        if isinstance(config, str):
            config = choose(config, fields, *(checkpoint_of(model) if model else (name,))).config
        pixels, steering = (min_pixels, max_pixels), config if vrga else None
        batch = int(batch_size)
        self.asker: Asker | ServerAsker
        if server is not None:
            room = context_of(server)
            self.asker = ServerAsker(server, name, steering, batch=batch, seed=seed, context=room)
        elif zoom:
            own = Zoom() if zoom is True else zoom
            self.asker = CloserAsker(model, processor, config, own, pixels=pixels, seed=seed)
        else:
            self.asker = Asker(model, processor, steering, batch=batch, pixels=pixels, seed=seed)
        self.arm = "zoom" if zoom else "vrga" if vrga else "base"
        self.store: Store | None = None
        self.begin: Callable[[int], None] = lambda count: None
        self.advance: Callable[[int], None] = lambda count: None

    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        """Answers in the order of the requests; a sample that failed answers nothing."""
        keys: list[str | None] = []
        asked: dict[str, Instance] = {}
        for instance in requests:
            if (instance.metadata or {}).get("__padding_only__"):
                keys.append(None)  # stands in where another process has more samples
                continue
            key = f"{self.arm}/{instance.args[4]}/{instance.args[3]}"
            while key in asked:
                key += "+"  # the same sample once more
            keys.append(key)
            asked[key] = instance
        done = {} if self.store is None else self.store.done
        found = {key: done[key] for key in asked if key in done}
        self.begin(len(asked))
        self.advance(len(found))
        left = {key: instance for key, instance in asked.items() if key not in found}
        with contextlib.closing(self.asker.ask(self._requests(left))) as answers:
            for answer in answers:
                found[answer.id] = self._kept(answer, left[answer.id])
                if self.store is not None:
                    self.store.add([found[answer.id]])
                self.advance(1)
        return [self._result(found[key]) if key else GenerationResult("") for key in keys]

    def _requests(self, instances: dict[str, Instance]) -> Iterable[Request]:
        for key, instance in instances.items():
            yield Request(
                key,
                functools.partial(self._chat, instance),
                options=self._options(instance.args[2]),
            )

    def _options(self, given: dict) -> dict[str, object]:
        """Options of `generate` from those of a task.

        A prompt other than the task's own needs room for its answer, and no early end: the task's
        lengths and stops are those of its short answers.
        """
        options = {k: v for k, v in given.items() if k in GENERATION and v is not None}
        sampled = options.get("do_sample", True) and bool(options.get("temperature"))
        if not sampled:  # a temperature of 0 stands for greedy
            options = {k: v for k, v in options.items() if k not in SAMPLING}
        length = options.get("max_new_tokens")
        if self.template is not None:
            options.pop("until", None)
            length = max(length or 0, LONGEST)
        options["max_new_tokens"] = self.max_new_tokens or length or LONGEST
        if isinstance(options.get("until"), str):
            options["until"] = [options["until"]]
        return {**options, "do_sample": sampled}

    def _chat(self, instance: Instance) -> tuple[list[dict], str]:
        _, doc_to_messages, _, doc_id, task, split = instance.args
        doc = self.task_dict[task][split][doc_id]
        instruction = ""
        if self.template is not None:  # takes the place of the task's own
            own = doc_to_messages.__self__.lmms_eval_specific_kwargs or {}
            instruction = own.get("post_prompt") or ""
        messages, texts = [], []
        for message in doc_to_messages(doc):
            parts = []
            for part in message["content"]:
                part = dict(part)
                if part["type"] == "image":
                    part = {"type": "image", "image": part["url"]}
                elif part["type"] == "text" and message["role"] == "user":
                    texts.append(part)
                parts.append(part)
            messages.append({"role": message["role"], "content": parts})
        if not texts:
            raise ValueError(f"the chat of {task} has no text of the user")
        # Texts may stand between images; the last one ends the question.
        text = texts[-1]["text"].removesuffix(instruction)
        texts[-1]["text"] = self._worded(text)
        return messages, question_in(task, doc, text)

    def _worded(self, text: str) -> str:
        """A task's text in the form of the prompt."""
        if self.template is None:
            return text
        return lookback.prompt(text, self.template)[0]["content"][-1]["text"]

    def _kept(self, answer: Answer, instance: Instance) -> dict:
        _, _, _, doc_id, task, split = instance.args
        score = None
        # Other tasks may ask a judge, who is to be asked once, when all samples are there.
        if task.startswith(OURS) and task not in JUDGED and answer.error is None:
            doc = self.task_dict[task][split][doc_id]
            scores = instance.args[1].__self__.process_results(doc, [answer.text])
            score = scoring.sample_score(scores)
        return answer.kept() | {
            "arm": self.arm,
            "task": task,
            "id": doc_id,
            "prompt": answer.prompt,
            "score": score,
        }

    def _result(self, sample: dict) -> GenerationResult:
        text = "" if sample["error"] else self.scored(sample["task"], sample["text"])
        return GenerationResult(text, TokenCounts(output_tokens=sample["tokens"]))

    def scored(self, task: str, text: str) -> str:
        """What the task's own scorer reads.

        With a prompt that asks for a box, the tasks of lmms-eval read its content alone, and
        nothing where there is none; what stands in <think> or <back> is read by no scorer.
        """
        if task.startswith(OURS):
            return text
        if self.prompt == TASK_PROMPT:
            return scoring.answer(text) or ""
        return scoring.answer(text, box=scoring.asks_for_box(self.prompt)) or ""

    def generate_until_multi_round(self, requests):
        raise ValueError("tasks of several rounds are not supported; choose others")

    def loglikelihood(self, requests):
        raise ValueError("tasks scored by likelihood are not supported; choose generative ones")
