"""Running several arms - a prompt and a way of steering each - on the same questions."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from rich.console import Console

from vrga.annotations import Model
from vrga.closer.zoom import Zoom
from vrga.config import VRGAConfig
from vrga.evaluation.asker import Asker
from vrga.evaluation.closer_asker import CloserAsker
from vrga.evaluation.items import Item
from vrga.evaluation.progress import progress
from vrga.evaluation.region_attention import looks_of
from vrga.evaluation.request import Answer
from vrga.evaluation.store import Store
from vrga.method.region import Region


@dataclass(frozen=True)
class Arm:
    """A way of asking.

    Args:
        steering: its name; config: what it means, None for the unpatched model.
        prompt: one of `items.PROMPTS`, or another that the items have a text for.
        ablated: with `VRGAConfig.ablation("given")`, see `Asker`.
        given: steer to the items' boxes in place of the regions found.
        zoom: look closer as this says, one question at a time; it needs a config.
    """

    steering: str
    config: VRGAConfig | None
    prompt: str
    ablated: Callable[[str, Region], torch.Tensor] | None = None
    given: bool = False
    zoom: Zoom | None = None

    @property
    def name(self) -> str:
        return f"{self.prompt}/{self.steering}"


def run_arms(
    model: Model,
    processor,
    items: Sequence[Item],
    arms: Sequence[Arm],
    store: Store,
    *,
    batch: int,
    max_new_tokens: int,
    measure: bool = True,
    looks: Callable[..., object] = looks_of,
    console: Console,
) -> dict[str, list[dict]]:
    """Ask every item in every arm; what the store holds already is not asked again.

    Args:
        measure: record where the heads look, but where an arm looks closer; looks: what of it is
            kept, see `Asker`.

    Returns:
        The samples of each arm by its name, in the items' order.
    """
    by_key = {f"{arm.name}/{item.id}": (arm, item) for arm in arms for item in items}
    for told in _warnings(items, store):
        console.print(told, style="yellow", soft_wrap=True)
    with progress(console) as bar:
        task = bar.add_task("answering", total=len(by_key), completed=len(store.done))
        for arm in arms:
            left = {
                key: item
                for key, (one, item) in by_key.items()
                if one is arm and key not in store.done
            }
            asker = _asker(arm, model, processor, batch, measure=measure, looks=looks)
            requests = (
                item.request(arm.prompt, key, max_new_tokens=max_new_tokens)
                for key, item in left.items()
            )
            with contextlib.closing(asker.ask(requests)) as answers:  # unpatched whatever happens
                for answer in answers:
                    item = left[answer.id]
                    text = answer.text  # None with an error
                    right = None if text is None else item.is_right(text, arm.prompt)
                    store.add([sample(answer, arm, item, right)])
                    bar.advance(task)
    samples = store.finish(by_key)
    found: dict[str, list[dict]] = {arm.name: [] for arm in arms}
    for one in samples:
        found[by_key[one["key"]][0].name].append(one)
    return found


def _asker(arm: Arm, model: Model, processor, batch: int, **measuring) -> Asker:
    """Who asks in an arm; `measuring` as of `Asker`."""
    if arm.zoom is not None:
        if arm.config is None:
            raise ValueError(f"{arm.name}: a closer look finds its place as a config says")
        return CloserAsker(model, processor, arm.config, arm.zoom)
    return Asker(
        model, processor, arm.config, batch=batch, given=arm.given, ablated=arm.ablated, **measuring
    )


def _warnings(items: Sequence[Item], store: Store) -> Iterator[str]:
    """What to know before a run."""
    unknown = sum(item.answer is None for item in items)
    if unknown:
        yield f"{unknown} of {len(items)} questions have no answer: they are asked and not scored"
    if store.damaged:
        yield f"{store.damaged} damaged lines in {store.folder}: their samples are asked again"


def sample(answer: Answer, arm: Arm, item: Item, right: bool | None) -> dict:
    """What is kept of an answer."""
    return answer.kept() | {
        "id": item.id,
        "arm": arm.steering,
        "prompt": arm.prompt,
        "chat": answer.prompt,
        "target": item.answer,
        "looks": None if answer.looks is None else dataclasses.asdict(answer.looks),
        "score": None if right is None else float(right),
    }
