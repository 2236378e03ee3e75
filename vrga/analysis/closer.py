"""`vrga analyze closer`: what a closer look wins, and what it would win at the true place.

Every question is asked once, about the picture as the processor shrinks it, and again with crops
of the original: at the place that was found, at the true box, and at random. The fair baseline is
one larger picture of as many pixels as picture and crops have together.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from rich.table import Table

from vrga.analysis.study import APART, FIRST, Study, verdict
from vrga.closer import look_closer, prompt_images, steered_cells
from vrga.config import VRGAConfig
from vrga.demo.data import VALIDATION_SEEDS
from vrga.demo.fine.data import FineSample, fine_split_options, is_right, make_fine_samples
from vrga.demo.fine.settings import CLOSER, FINDING
from vrga.evaluation.wording import percent
from vrga.hf.checkpoints import load
from vrga.hf.looking import as_seen, batch_inputs, seen_sizes, token_side
from vrga.intervals import paired_difference, wilson
from vrga.patching import patch
from vrga.region import Region
from vrga.tokens import Grid
from vrga.zoom import Crop, Zoom, crop_boxes, crops_around, decide, find_spots

DRAWN = 250
LONGEST = 28  # tokens; two letters and their box take 20
ONCE, STEERED, LARGER, RANDOM, FOUND = "once", "once, steered", "larger", "random", "found"
PLACE, ANEW, TRUE = "found, steered to place", "found, steered anew", "true box"
FIRST_CROPS, TWICE = "found, crops first", "found, asked twice"
TOLD = {
    ONCE: "asked once",
    STEERED: "asked once, steered",
    LARGER: "one larger picture, as many pixels",
    RANDOM: "crop at random",
    FOUND: "find and zoom",
    PLACE: "the same, steered to region and crop",
    ANEW: "the same, steered to what is found anew",
    FIRST_CROPS: "the same, crops before the picture",
    TWICE: "the same, question before and after the crops",
    TRUE: "true box",
}


@dataclass(frozen=True)
class Asked:
    """Everything about one question before arms are compared.

    Args:
        sample: the question; seen: its picture as the model sees it; region: of the first look.
        crops: found, also where they are not looked at; zooms: whether they are.
        true: crops of the true boxes.
    """

    sample: FineSample
    seen: Image.Image
    region: Region
    crops: tuple[Crop, ...]
    zooms: bool
    true: tuple[Crop, ...]

    def cropped(self, processor, crops: Sequence[Crop]) -> list[Image.Image]:
        """Crops of the original, in the size that they are shown in."""
        return [as_seen(processor, self.sample.image.crop(c.box), c.size) for c in crops]

    @property
    def peak(self) -> bool:
        """Whether the map is highest on a token that an asked card is on."""
        grid, part = self.region.grids[0], self.region.map[0]
        row, column = divmod(int(part.argmax()), grid.w)
        width, height = self.sample.image.width / grid.w, self.sample.image.height / grid.h
        return any(
            x // width == column and y // height == row
            for x, y in (card.center for card in self.sample.asked)
        )

    @property
    def held(self) -> bool:
        """Whether every asked letter is in a crop that was found."""
        return all(
            any(c.box[0] <= x < c.box[2] and c.box[1] <= y < c.box[3] for c in self.crops)
            for x, y in (card.center for card in self.sample.asked)
        )


@dataclass(frozen=True)
class Answers:
    """What a batch of questions gave."""

    texts: list[str]
    regions: list[Region]
    tokens: list[int]  # visual ones


def analyze(
    study: Study,
    *,
    models: Sequence[str | None] = (None,),
    arms: Sequence[str] = tuple(TOLD),
    config: VRGAConfig = FINDING,
    zoom: Zoom = CLOSER,
    timed: int = 0,
    validation: bool = False,
) -> dict:
    """Ask every question in every arm; print, write, draw.

    Args:
        study: its split is one of `FINE_SPLITS`; its limit counts questions of each model.
        models: checkpoints, each asked questions of its own; None is the embedded model.
        arms: names of `TOLD`; "once" and "found" are always among them.
        config: how the place is found, and steered to in the arms that steer.
        zoom: how it is cropped.
        timed: questions of each model that are also asked one by one, to take the time.
        validation: choose numbers on these questions; those that are reported are others.

    Returns:
        What results.json holds.

    Raises:
        ValueError: an unknown arm or split.
    """
    for arm in arms:
        if arm not in TOLD:
            raise ValueError(f"arm {arm!r}: known are {'; '.join(TOLD)}")
    chosen = [arm for arm in TOLD if arm in {*arms, ONCE, FOUND}]
    own: dict[str, dict] = {}
    settings = study.settings(
        "closer",
        range(study.limit or DRAWN),
        arms=chosen,
        models=[name or "fine" for name in models],
        validation=validation,
        zoom=zoom.settings(),
        finding=asdict(config),
    )
    for number, name in enumerate(models):
        samples = _samples(study, number, validation)
        loaded = load("fine" if name is None else name, dtype=torch.float32)
        own[name or "fine"] = _one_model(study, loaded, samples, chosen, config, zoom, timed)
    found = {"models": own, "pooled": pooled(list(own.values()), chosen)}
    study.console.print(table(found["pooled"], study.split))
    return study.finish(settings, found, closer_figure(found["pooled"], study.split))


def _samples(study: Study, number: int, validation: bool) -> list[FineSample]:
    """Each model's own questions."""
    first = VALIDATION_SEEDS.start if validation else FIRST
    seed = first + APART * (study.seed * 10 + number)
    options = fine_split_options(study.split)
    return make_fine_samples(study.limit or DRAWN, seed=seed, **options)


def _one_model(study, loaded, samples, arms, config, zoom, timed) -> dict:
    """Right answers of each arm, and how the place was found."""
    texts: dict[str, list[str]] = {arm: [] for arm in arms}
    tokens: dict[str, list[int]] = {arm: [] for arm in arms}
    asked: list[Asked] = []
    for start in range(0, len(samples), study.batch):
        part = samples[start : start + study.batch]
        told, answers = _arms(loaded, part, arms, config, zoom, start)
        asked += told
        for arm in arms:
            texts[arm] += answers[arm].texts
            tokens[arm] += answers[arm].tokens
        study.console.print(f"{start + len(part)} of {len(samples)} questions", style="dim")
    right = {
        arm: [is_right(text, one) for text, one in zip(texts[arm], samples, strict=True)]
        for arm in arms
    }
    return {
        "right": {arm: "".join(str(int(x)) for x in own) for arm, own in right.items()},
        "two": "".join(str(len(one.asked) - 1) for one in samples),
        "peak": "".join(str(int(one.peak)) for one in asked),
        "held": "".join(str(int(one.held)) for one in asked),
        "zooms": "".join(str(int(one.zooms)) for one in asked),
        "crops": float(np.mean([len(one.crops) for one in asked])),
        "visual_tokens": {arm: float(np.mean(own)) for arm, own in tokens.items()},
        "seconds": _timed(loaded, samples[:timed], config, zoom) if timed else None,
    }


def _arms(loaded, samples, arms, config, zoom, start) -> tuple[list[Asked], dict[str, Answers]]:
    """All arms on one batch of questions."""
    model, processor = loaded
    side = token_side(processor)

    def ask(rows, steering=None, given=None) -> Answers:
        return _ask(model, processor, rows, steering, given=given)

    def once(steering) -> Answers:
        rows = [[s.image, s.question] for s in samples]
        return _ask(model, processor, rows, steering, shrink=zoom)

    first = once(replace(config, gain=1.0))
    asked = []
    for sample, region in zip(samples, first.regions, strict=True):
        grid, size = region.grids[0], sample.image.size
        seen = grid.w * side, grid.h * side
        crops = crops_around(find_spots(region, zoom), [size], [seen], zoom, side)
        true = crop_boxes(sample.boxes, size, seen, zoom, side)
        shown = as_seen(processor, sample.image, seen)
        does = decide(crops, [size], zoom).zooms
        asked.append(Asked(sample, shown, region, crops, does, true))
    cropped = [one.cropped(processor, one.crops) for one in asked]

    def second(crops, order=zoom) -> list[list]:
        return [
            [*prompt_images([one.seen], own, order), one.sample.question]
            for one, own in zip(asked, crops, strict=True)
        ]

    def instead(answers: Answers) -> Answers:
        """Where no closer look was taken, the first answer stands."""
        pick = [1 if one.zooms else 0 for one in asked]
        texts = [(a, b)[i] for a, b, i in zip(first.texts, answers.texts, pick, strict=True)]
        count = [(a, a + b)[i] for a, b, i in zip(first.tokens, answers.tokens, pick, strict=True)]
        return Answers(texts, answers.regions, count)

    def place(grids: list[list[Grid]]) -> list[list[torch.Tensor]]:
        return [
            steered_cells(own, one.region, len(crops), zoom)
            for own, one, crops in zip(grids, asked, cropped, strict=True)
        ]

    rng = np.random.default_rng(start)
    elsewhere = [one.cropped(processor, _elsewhere(one, rng)) for one in asked]
    crops_first = replace(zoom, order="crops", reuse=False)
    steering = config if config.steers else None
    ways: dict[str, Callable[[], Answers]] = {
        ONCE: lambda: first,
        STEERED: lambda: once(steering),
        LARGER: lambda: _larger(ask, asked, side),
        RANDOM: lambda: ask(second(elsewhere)),
        FOUND: lambda: instead(ask(second(cropped))),
        PLACE: lambda: instead(ask(second(cropped), steering, place)),
        ANEW: lambda: instead(ask(second(cropped), steering)),
        FIRST_CROPS: lambda: instead(ask(second(cropped, crops_first))),
        TWICE: lambda: instead(ask([
            [one.seen, one.sample.question, *own, one.sample.question]
            for one, own in zip(asked, cropped, strict=True)
        ])),
        TRUE: lambda: ask(second([one.cropped(processor, one.true) for one in asked])),
    }  # fmt: skip
    return asked, {arm: ways[arm]() for arm in arms}


def _larger(ask, asked: Sequence[Asked], side: int) -> Answers:
    """One picture of as many pixels as the picture as seen and the crops have together."""
    pixels = [
        one.seen.width * one.seen.height + sum(c.size[0] * c.size[1] for c in one.crops)
        for one in asked
    ]
    rows = []
    for one, most in zip(asked, pixels, strict=True):
        cells = math.sqrt(most / side**2 * one.sample.image.width / one.sample.image.height)
        other = math.sqrt(most / side**2 * one.sample.image.height / one.sample.image.width)
        # In the original's favour: to the nearest whole number of tokens, not the one below.
        size = round(cells) * side, round(other) * side
        rows.append([one.sample.image.resize(size, Image.Resampling.BICUBIC), one.sample.question])
    return ask(rows)


def _elsewhere(one: Asked, rng: np.random.Generator) -> list[Crop]:
    """Crops of the sizes that were found (or that the truth has), anywhere in the picture."""
    width, height = one.sample.image.size
    found = []
    for crop in one.crops or one.true:
        w, h = crop.box[2] - crop.box[0], crop.box[3] - crop.box[1]
        # On the raster of 28 pixels, as crops around tokens of the overview are.
        room = (((width - w) // 28), ((height - h) // 28))
        x, y = (28 * int(rng.integers(0, most + 1)) for most in room)
        found.append(replace(crop, box=(x, y, x + w, y + h)))
    return found


def _ask(model, processor, rows, config, given=None, shrink: Zoom | None = None) -> Answers:
    """Greedy answers to a batch; each row holds images and texts in the order of its turn.

    Args:
        config: None leaves the model unpatched.
        given: cells to steer to, as of `Patch.given`, or None.
        shrink: let the processor shrink the images, as at the first look; None takes them as they
            are.
    """
    chats, images = [], []
    for row in rows:
        content = [
            {"type": "image"} if isinstance(x, Image.Image) else {"type": "text", "text": x}
            for x in row
        ]
        chats.append(
            processor.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True
            )
        )
        images += [x for x in row if isinstance(x, Image.Image)]
    pixels = max(image.width * image.height for image in images)
    if shrink is not None:
        pixels = shrink.overview_pixels
    inputs = batch_inputs(processor, chats, images, pixels)
    side = token_side(processor)
    sizes = iter(seen_sizes(processor, inputs))
    tokens = []
    for row in rows:
        mine = [next(sizes) for x in row if isinstance(x, Image.Image)]
        tokens.append(sum(w * h for w, h in mine) // side**2)

    def generate():
        with torch.inference_mode():
            return model.generate(**inputs, max_new_tokens=LONGEST, do_sample=False)

    regions: list[Region] = []
    if config is None:
        new = generate()
    else:
        with patch(model, config, tokenizer=processor.tokenizer) as steered:
            steered.given = given
            new = generate()
            regions = steered.region
    new = new[:, inputs["input_ids"].shape[1] :]
    texts = processor.batch_decode(new, skip_special_tokens=True)
    return Answers([text.strip() for text in texts], regions, tokens)


def _timed(loaded, samples, config, zoom) -> dict[str, list[float]]:
    """Seconds of each way of asking, one question at a time, interleaved; all say as many words.

    "plain" is the unpatched model, "once" the patched one that never looks closer.
    """
    model, processor = loaded
    never = replace(zoom, gain=1e6)
    ways = {
        "once": lambda s: look_closer(model, processor, s.image, s.question, config, never,
                                      max_new_tokens=LONGEST),
        "closer": lambda s: look_closer(model, processor, s.image, s.question, config, zoom,
                                        max_new_tokens=LONGEST),
        "closer, nothing reused": lambda s: look_closer(
            model, processor, s.image, s.question, config, replace(zoom, reuse=False),
            max_new_tokens=LONGEST),
    }  # fmt: skip
    taken: dict[str, list[float]] = {name: [] for name in (*ways, "plain")}
    for sample in samples:
        started = time.perf_counter()
        _ask(model, processor, [[sample.image, sample.question]], None, shrink=zoom)
        taken["plain"].append(time.perf_counter() - started)
        for name, way in ways.items():
            taken[name].append(way(sample).cost.total)
    return taken


def _bits(own: Sequence[Mapping], name: str, arm: str | None = None) -> np.ndarray:
    texts = [one[name] if arm is None else one[name][arm] for one in own]
    return np.array([int(x) for x in "".join(texts)])


def pooled(own: Sequence[Mapping], arms: Sequence[str]) -> dict:
    """Figures over all models' questions, paired by question.

    Args:
        own: what `_one_model` gives, of each model.
    """
    right = {arm: _bits(own, "right", arm) for arm in arms}
    two = _bits(own, "two") > 0
    found = {
        "questions": len(two),
        "accuracy": {arm: wilson(hits) for arm, hits in right.items()},
        "less_once": {arm: paired_difference(hits, right[ONCE]) for arm, hits in right.items()},
        "peak": wilson(_bits(own, "peak")),
        "held": wilson(_bits(own, "held")),
        "zooms": wilson(_bits(own, "zooms")),
        "visual_tokens": {
            arm: float(np.mean([one["visual_tokens"][arm] for one in own])) for arm in arms
        },
    }
    differences = {
        "less_larger": (FOUND, LARGER),
        "less_true": (FOUND, TRUE),
        "place": (PLACE, FOUND),
        "anew": (ANEW, FOUND),
    }
    for name, (arm, base) in differences.items():
        if arm in right and base in right:
            found[name] = paired_difference(right[arm], right[base])
    if TRUE in right and right[TRUE].any():
        found["of_true"] = float(right[FOUND].mean() / right[TRUE].mean())
    if two.any():
        found["two_cards"] = {
            "accuracy": {arm: wilson(hits[two]) for arm, hits in right.items()},
            "held": wilson(_bits(own, "held")[two]),
        }
    times = [one["seconds"] for one in own if one["seconds"]]
    if times:
        ways = {name: sum((one[name] for one in times), []) for name in times[0]}
        found["seconds"] = {name: float(np.median(taken)) for name, taken in ways.items()}
        base = np.array(ways["once"])
        found["times_once"] = {
            name: float(np.median(np.array(taken) / base)) for name, taken in ways.items()
        }
    found["verdict"] = verdict(found["less_once"][FOUND])
    return found


def table(found: Mapping, split: str) -> Table:
    """One line per arm."""
    made = Table(
        title=f"{split}, {found['questions']} questions; brackets: 95 % intervals, differences "
        "paired"
    )
    for column in ("", "right", "less asked once", "visual tokens"):
        made.add_column(column)
    for arm, hits in found["accuracy"].items():
        made.add_row(
            TOLD[arm],
            percent(hits),
            "" if arm == ONCE else percent(found["less_once"][arm], "+"),
            f"{found['visual_tokens'][arm]:.0f}",
        )
    told = [
        f"map's peak on an asked card: {percent(found['peak'])}",
        f"all asked letters in the crops: {percent(found['held'])}",
        f"looked closer: {percent(found['zooms'])}",
    ]
    if "of_true" in found:
        told.append(f"{100 * found['of_true']:.1f} % of what the true box gives")
    if "less_larger" in found:
        told.append(f"against one larger picture: {percent(found['less_larger'], '+')}")
    if "times_once" in found:
        told.append(f"{found['times_once']['closer']:.2f} times the time of asking once (median)")
    made.caption = "\n".join(told)
    return made


def closer_figure(found: Mapping, split: str) -> Figure:
    """Right answers of every arm as bars with their intervals."""
    figure = Figure(figsize=(7, 0.42 * len(found["accuracy"]) + 1.2), layout="constrained")
    axis = figure.subplots()
    names = list(found["accuracy"])
    values = np.array([[np.nan if x is None else x for x in found["accuracy"][n]] for n in names])
    values = 100 * values
    spread = np.abs(values[:, 1:] - values[:, :1]).T
    colors = ["#0072B2" if name == FOUND else "#999999" for name in names]
    hatches = ["//" if name == FOUND else "" for name in names]
    axis.barh(
        range(len(names)), values[:, 0], xerr=spread, color=colors, hatch=hatches,
        edgecolor="black",
    )  # fmt: skip
    axis.set(
        yticks=range(len(names)), yticklabels=[TOLD[name] for name in names], xlim=(0, 100),
        xlabel=f"right, % of {found['questions']} questions, 95 % intervals", title=split,
    )  # fmt: skip
    axis.invert_yaxis()
    return figure
