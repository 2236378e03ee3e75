"""`vrga analyze ablate`: accuracy when some heads can no longer see the image while decoding.

The paper's check that its visual heads matter: without them answers break down, without as many
random heads they do not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from zlib import crc32

import numpy as np
import torch
from torch import Tensor

from vrga.analysis.figures import ablate_figure
from vrga.analysis.study import Study, failures, verdict
from vrga.beforehand import check_known
from vrga.config import VRGAConfig
from vrga.evaluation.arms import Arm
from vrga.evaluation.samples import accuracy, right
from vrga.evaluation.wording import Table, percent
from vrga.intervals import mcnemar, paired_difference
from vrga.method.region import Region
from vrga.ranges import Ablated

DRAWN = 300
NONE = "none"
KINDS: tuple[Ablated, ...] = ("visual", "random", "low_focus")
SELECTIONS = ("step", "prefill")


def analyze(
    study: Study,
    *,
    prompt: str = "cot",
    selections: Sequence[str] = SELECTIONS,
    heads: int | None = None,
    first_layer: int | None = None,
) -> dict:
    """Ask in every arm, print a table, write results.json and ablate.png.

    Args:
        selections: "step" chooses heads anew per layer and step as the released code does;
            "prefill" takes those that phase 1 chooses as H_v, and as many others.
        heads: of a layer, for "step"; None is 5 of 16 or more, and fewer in proportion.
        first_layer: with ablated heads, for "step"; None is 6, or a quarter of the layers.

    Returns:
        What results.json holds.

    Raises:
        ValueError: an unknown selection, or a first layer that the model does not have.
    """
    check_known("--selection", selections, SELECTIONS)
    items = study.items(DRAWN)
    loaded = study.load()
    text = loaded[0].config.get_text_config()
    shape = text.num_hidden_layers, text.num_attention_heads
    heads, first_layer = sizes(*shape, heads, first_layer)
    arms = arms_of(prompt, selections, heads, first_layer, study.seed)
    settings = study.settings(
        "ablate", items, prompt=prompt, selections=list(selections), heads=heads,
        first_layer=first_layer,
    )  # fmt: skip
    samples = study.run(items, arms, settings, loaded, measure=False)
    found = figures({arm.steering: samples[arm.name] for arm in arms}, heads, first_layer, shape[0])
    told = tables(found["arms"], len(items))
    return study.finish(settings, found, told, ablate_figure(found["arms"]))


def sizes(
    layers: int, all_heads: int, heads: int | None = None, first_layer: int | None = None
) -> tuple[int, int]:
    """Heads per layer and the first layer of the ablation by step.

    The paper's models have 28 layers or more of 16 heads or more: 5 heads, from layer 6 on.
    A smaller model gets as large a share of its own.

    Raises:
        ValueError: more than there are, so that nothing or every head would be ablated.
    """
    heads = max(1, min(5, 5 * all_heads // 16)) if heads is None else heads
    first_layer = min(6, layers // 4) if first_layer is None else first_layer
    if not 0 <= first_layer < layers:
        raise ValueError(
            f"--first-layer {first_layer} would ablate nothing: the model has layers 0 to "
            f"{layers - 1}"
        )
    if not 1 <= heads < all_heads:
        raise ValueError(f"--heads {heads}: 1 to {all_heads - 1} of a layer's {all_heads} heads")
    return heads, first_layer


def arms_of(
    prompt: str, selections: Sequence[str], heads: int, first_layer: int, seed: int
) -> list[Arm]:
    """The untouched model, then each kind of heads under each selection."""
    arms = [Arm(NONE, None, prompt)]
    for selection in selections:
        for kind in KINDS:
            name = f"{selection} {kind}"
            if selection == "prefill":
                given = VRGAConfig.ablation("given")
                arms.append(Arm(name, given, prompt, at_prefill(kind, seed)))
            else:
                config = VRGAConfig.ablation(kind, heads, first_layer, seed)
                arms.append(Arm(name, config, prompt))
    return arms


def at_prefill(kind: str, seed: int) -> Callable[[str, Region], Tensor]:
    """Chooses H_v of a question, or as many other heads, bool [L, H].

    Args:
        kind: "visual"; "low_focus", those of the lowest R; or "random", outside H_v.
        seed: of random heads; they differ from question to question.
    """

    def choose(key: str, region: Region) -> Tensor:
        visual = region.visual
        if kind == "visual":
            return visual
        if kind == "low_focus":
            score = region.heads.focus.double().clone()
        else:
            # By the key, so that neither batches nor a resumed run change what is drawn.
            rng = np.random.default_rng([seed, crc32(key.encode())])
            score = torch.from_numpy(rng.random(tuple(visual.shape)))
        score[visual] = torch.inf
        count = min(int(visual.sum()), int((~visual).sum()))
        chosen = torch.zeros_like(visual).flatten()
        chosen[score.flatten().topk(count, largest=False).indices] = True
        return chosen.view_as(visual)

    return choose


def figures(samples: dict[str, list[dict]], heads: int, first_layer: int, layers: int) -> dict:
    """Accuracy of each arm, and its differences on the same questions.

    "below_random" is positive where random heads do less harm, as the paper finds.
    """
    base, arms = right(samples[NONE]), {}
    for name, own in samples.items():
        selection = name.split()[0]
        ours = right(own)
        if selection == "prefill":
            counts = [one["region"]["visual_heads"] for one in own if one["region"]]
            ablated = float(np.mean(counts)) if counts else 0.0
        else:
            ablated = 0.0 if name == NONE else float(heads * (layers - first_layer))
        arms[name] = {
            "accuracy": accuracy(own),
            "heads": ablated,
            "tokens": float(np.mean([one["tokens"] for one in own])),
            "against_none": None if name == NONE else paired_difference(ours, base),
            "p": None if name == NONE else mcnemar(ours, base),
        }
        if name.endswith(" visual"):
            change = paired_difference(right(samples[f"{selection} random"]), ours)
            arms[name] |= {"below_random": change, "verdict": verdict(change)}
    return {"failed": failures(samples), "arms": arms}


def tables(arms: dict[str, dict], questions: int) -> list[Table]:
    """Every arm, then what visual heads are worth more than as many random ones."""
    title = f"{questions} questions, heads without the image; brackets: 95 % intervals"
    accuracies = Table("heads", "a question", "accuracy", "against none", title=title)
    columns = ("heads chosen at", "difference", "random > visual")
    gaps = Table(*columns, title="accuracy without random heads, less that without visual heads")
    for name, one in arms.items():
        change = one["against_none"]
        accuracies.add_row(
            name,
            f"{one['heads']:.1f}",
            percent(one["accuracy"]),
            "" if change is None else percent(change, "+"),
        )
        if "below_random" in one:
            gaps.add_row(name.split()[0], percent(one["below_random"], "+"), one["verdict"])
    return [accuracies, gaps]
