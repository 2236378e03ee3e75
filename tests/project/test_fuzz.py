"""What others wrote, damaged at random, ends in the errors that are promised or in what works.

A few examples of each kind by default; many, and other ones each time, with
VRGA_FUZZ=10000 pytest -n 0 -s tests/project/test_fuzz.py (over all five kinds together).
"""

import base64
import contextlib
import io
import json
import math
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file
from traces import filled_trace

from vrga import Trace, VRGAConfig
from vrga.config import CHOICES, RANGES, READ_BY
from vrga.evaluation.files import read_rows
from vrga.evaluation.items import read_items
from vrga.evaluation.tasks import documents
from vrga.hf.files import INDEX, check_index
from vrga.images import read_image
from vrga.method.prompt import Grid
from vrga.method.region import find_region
from vrga.method.timeline import Relocation
from vrga.report import render

TOTAL, KINDS = int(os.environ.get("VRGA_FUZZ", "0")), 5
FUZZ = settings(
    max_examples=max(1, TOTAL // KINDS) if TOTAL else 60,
    deadline=None,
    database=None,
    derandomize=not TOTAL,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.generate, Phase.shrink),
)
# What came of the examples: refused as promised, or accepted.
SEEN: dict[str, list[int]] = {}


@contextlib.contextmanager
def promised(kind, *errors):
    """Count an example; anything but these errors fails the test."""
    counts = SEEN.setdefault(kind, [0, 0])
    try:
        yield
    except errors as error:
        assert type(error) is not UnicodeError and str(error).strip(), "an error without words"
        counts[0] += 1
    else:
        counts[1] += 1


@pytest.fixture(scope="module", autouse=True)
def _figures():
    yield
    if TOTAL:
        for kind, (refused, accepted) in SEEN.items():
            print(f"\n{kind}: {refused + accepted} examples, {refused} refused, {accepted} read")


NUMBERS = st.one_of(
    st.integers(), st.integers(-2, 5), st.floats(), st.sampled_from([10**22, -(10**400), 1e39])
)
PLAIN = st.one_of(
    st.none(), st.booleans(), NUMBERS, st.text(max_size=8),
    st.sampled_from(["\ud800", "", " ", "a.png", "https://x/y", "data:image/png;base64,", "A. x"]),
)  # fmt: skip
VALUES = st.recursive(
    PLAIN,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)


def damaged(draw, content):
    """Bytes with a few of them changed, lost or doubled."""
    content = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        if not content:
            break
        # Heads matter more than pixels.
        most = draw(st.sampled_from([min(64, len(content)), len(content)]))
        place = draw(st.integers(0, most - 1))
        match draw(st.sampled_from(["flip", "set", "cut", "lose", "double"])):
            case "flip":
                content[place] ^= 1 << draw(st.integers(0, 7))
            case "set":
                content[place] = draw(st.integers(0, 255))
            case "cut":
                del content[place:]
            case "lose":
                del content[place : place + draw(st.integers(1, 9))]
            case "double":
                content[place:place] = content[place : place + 5]
    return bytes(content)


def replaced(draw, words):
    """JSON with the value at some place replaced or lost."""
    words, at = json.loads(json.dumps(words)), None
    node = words
    while isinstance(node, (dict, list)) and node:
        key = draw(st.sampled_from(sorted(node) if isinstance(node, dict) else range(len(node))))
        at, node = (node, key), node[key]
        if draw(st.integers(0, 2)) == 0:
            break
    parent, key = at
    if draw(st.integers(0, 4)) == 0:
        del parent[key]
    else:
        parent[key] = draw(VALUES)
    return words


# ---- traces ----


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    trace = filled_trace()
    trace.relocated = [Relocation(1, 2, trace.regions[1])]
    return trace.save(tmp_path_factory.mktemp("fuzz") / "trace")


def changed(draw, tensor):
    """A tensor with another value, shape or dtype."""
    match draw(st.sampled_from(["put", "put", "cast", "cut", "turn", "flat", "more"])):
        case "put":
            tensor = tensor.clone()
            if tensor.numel():
                flat = tensor.view(-1)
                value = draw(st.sampled_from([math.nan, math.inf, -1, 0, 1, 2, 1.5, 1e6, 2**40]))
                if not tensor.dtype.is_floating_point:
                    value = int(value) if math.isfinite(value) else 7
                with contextlib.suppress(RuntimeError):
                    flat[draw(st.integers(0, tensor.numel() - 1))] = value
        case "cast":
            kinds = [torch.float32, torch.float64, torch.float16, torch.int64, torch.bool,
                     torch.uint8, torch.bfloat16]  # fmt: skip
            tensor = tensor.to(draw(st.sampled_from(kinds)))
        case "cut":
            dim = draw(st.integers(0, max(tensor.ndim - 1, 0)))
            tensor = tensor.narrow(dim, 0, draw(st.integers(0, tensor.shape[dim])))
        case "turn":
            tensor = tensor.transpose(0, -1)
        case "flat":
            tensor = tensor.flatten()
        case "more":
            tensor = torch.cat([tensor, tensor])
    return tensor.contiguous()


@FUZZ
@given(st.data())
def test_traces(saved, data):
    draw = data.draw
    with tempfile.TemporaryDirectory() as folder:
        path = Path(shutil.copytree(saved, Path(folder) / "trace"))
        words, tensors = path / "trace.json", path / "trace.safetensors"
        match draw(st.sampled_from(["words", "words", "tensor", "tensor", "bytes", "lose"])):
            case "words":
                found = replaced(draw, json.loads(words.read_text("utf-8")))
                words.write_text(json.dumps(found))
            case "tensor":
                held = load_file(tensors)
                name = draw(st.sampled_from(sorted(held)))
                held[name] = changed(draw, held[name])
                save_file(held, tensors)
            case "bytes":
                file = draw(st.sampled_from(sorted(path.iterdir())))
                file.write_bytes(damaged(draw, file.read_bytes()))
            case "lose":
                draw(st.sampled_from(sorted(path.iterdir()))).unlink()
        trace = None
        with promised("traces", ValueError, FileNotFoundError):
            trace = Trace.load(path)
        if trace is not None:  # then everything that reads it works
            frame = trace.to_pandas()
            assert frame[["image", "region"]].notna().all().all()
            for row in range(trace.image.shape[2]):
                with contextlib.suppress(ValueError):  # no step of the row, or no maps of its heads
                    steps = trace.steps_of(row)
                    trace.spans(row), [trace.region_at(row, step) for step in steps]
                    render([trace], row=row)
                    trace.map_of(row)


# ---- configurations ----

ROWS = torch.rand(2, 4, 30, generator=torch.Generator().manual_seed(0)).softmax(-1)
GRIDS = [Grid(torch.arange(4, 20), 4, 4)]
ODD = st.one_of(
    VALUES, st.binary(max_size=3), st.complex_numbers(), st.fractions(),
    st.builds(np.float32, st.floats(width=32)), st.builds(np.int64, st.integers(-9, 9)),
    st.builds(np.float64, st.floats()), st.just(np.ones(3)), st.just(torch.tensor(1.0)),
)  # fmt: skip
FITTING = {
    name: st.one_of(st.integers(0, 3), st.floats(0, 1), st.sampled_from(bounds))
    for name, bounds in RANGES.items()
} | {name: st.sampled_from(known) for name, known in CHOICES.items()}
FITTING["tag"] = st.from_regex(r"[a-z]{1,20}", fullmatch=True).filter(lambda tag: tag != "think")


@FUZZ
@given(st.data())
def test_configurations(data):
    fitting = sorted(READ_BY["vrga"] if data.draw(st.booleans()) else FITTING)
    names = data.draw(st.lists(st.sampled_from(fitting), max_size=3, unique=True))
    given = {name: data.draw(FITTING[name], name) for name in names}
    if data.draw(st.booleans()):
        given[data.draw(st.sampled_from(sorted(FITTING)))] = data.draw(ODD)
    config = None
    with promised("configurations", ValueError):
        config = VRGAConfig(**given)
    if config is None:
        return
    numbers = [getattr(config, name) for name in RANGES]
    assert torch.tensor(numbers, dtype=torch.float32).isfinite().all()
    torch.Generator().manual_seed(config.seed)
    if config.method == "vrga":
        seen = torch.ones(2, 30, dtype=torch.bool)
        region = find_region(ROWS, GRIDS, 29, seen, config)
        assert all(part.isfinite().all() for part in region.map)


# ---- question files ----

FIELDS = ("id", "image", "images", "question", "answer", "choices", "box", "options", "option")
CHOSEN = st.one_of(
    st.lists(st.text(max_size=4), max_size=4),
    st.dictionaries(st.sampled_from("ABCabc12"), st.text(max_size=4), max_size=4),
    st.sampled_from(["A. x\nB. y", "x;y", "['x', 'y']", '{"A": "x"}', "(A) x (B) y"]),
)
SOUND = st.fixed_dictionaries(
    {"question": st.text(min_size=1), "answer": st.sampled_from(["A", "B", "yes", "x", 3, None])},
    optional={"image": st.just("a.png"), "choices": CHOSEN, "id": st.text(max_size=3)},
)
ANYTHING = st.one_of(CHOSEN, VALUES, st.lists(NUMBERS, min_size=4, max_size=4))
ODD_FIELD = st.dictionaries(st.sampled_from(FIELDS), ANYTHING, max_size=1)
ROW = st.builds(lambda row, odd: row | odd, SOUND, ODD_FIELD)


@FUZZ
@given(st.data())
def test_question_files(data):
    draw = data.draw
    rows = draw(st.lists(ROW, max_size=3))
    text = "\n".join(map(json.dumps, rows)) if draw(st.booleans()) else json.dumps(rows)
    encoding = draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]))
    content = text.encode(encoding)
    if draw(st.integers(0, 3)) == 0:
        content = damaged(draw, content)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / draw(st.sampled_from(["q.jsonl", "q.json"]))
        path.write_bytes(content)
        items, found = [], []
        with promised("question files", ValueError):
            items = read_items(path)
        for item in items:
            item.request("cot", item.id)
            json.dumps([item.id, item.texts, item.answer], ensure_ascii=False).encode()
            assert item.is_right("", "direct") in (False, None)
        with contextlib.suppress(ValueError):
            found = read_rows(path)
        for row in found:
            with contextlib.suppress(ValueError, KeyError):
                documents.text(row), documents.target(row)
            with contextlib.suppress(ValueError, OSError):
                documents.images(row)


# ---- indexes of checkpoints ----


@FUZZ
@given(st.data())
def test_indexes(data):
    draw = data.draw
    names = [f"model-{i}.safetensors" for i in range(3)]
    odd = ["weights.bin", "../x.safetensors", "/x.safetensors", "a/b.safetensors", "x.pt", ""]
    files = st.one_of(st.sampled_from(names), st.sampled_from(odd), PLAIN)
    whole = {"metadata": {"total_size": 3}, "weight_map": dict(zip("abc", names, strict=True))}
    match draw(st.sampled_from(["files", "replaced", "bytes", "other"])):
        case "files":
            whole["weight_map"] = draw(st.dictionaries(st.text(max_size=3), files, max_size=4))
            content = json.dumps(whole).encode()
        case "replaced":
            content = json.dumps(replaced(draw, whole)).encode()
        case "bytes":
            content = damaged(draw, json.dumps(whole).encode())
        case "other":
            content = json.dumps(draw(VALUES)).encode()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / INDEX
        path.write_bytes(content)
        for name in names:
            (Path(folder) / name).touch()
        sound = False
        with promised("indexes", ValueError, FileNotFoundError):
            check_index(path, Path(folder))
            sound = True
        if sound:
            found = json.loads(content)
            assert set(found["weight_map"].values()) <= set(names) and found["metadata"] is not None


# ---- images ----


def written(kind, mode="RGB", **options):
    values = np.random.default_rng(0).integers(0, 256, (9, 12, 4), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(values, "RGBA").convert(mode).save(file, kind, **options)
    return file.getvalue()


EXIF = Image.Exif()
EXIF[0x0112] = 6
IMAGES = {
    "PNG": written("PNG"), "PNG P": written("PNG", "P"), "PNG RGBA": written("PNG", "RGBA"),
    "JPEG": written("JPEG", exif=EXIF), "CMYK": written("JPEG", "CMYK"), "GIF": written("GIF", "P"),
    "TIFF": written("TIFF", exif=EXIF), "TIFF F": written("TIFF", "F"), "BMP": written("BMP"),
    "TIFF deflate": written("TIFF", compression="tiff_deflate"), "WEBP": written("WEBP"),
    "DDS": written("DDS", "RGBA"), "ICO": written("ICO", "RGBA"), "PPM": written("PPM"),
    "TGA": written("TGA"), "PCX": written("PCX"), "SGI": written("SGI"), "JP2": written("JPEG2000"),
    "MSP": written("MSP", "1"), "ICNS": written("ICNS", "RGBA"), "DXT1": b"DDS |" + bytes(123),
}  # fmt: skip


@FUZZ
@given(st.data())
@pytest.mark.filterwarnings("ignore")
def test_images(data):
    draw = data.draw
    content = damaged(draw, IMAGES[draw(st.sampled_from(sorted(IMAGES)))])
    own, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, 1 << 20  # no time for large ones
    try:
        with promised("images", OSError, ValueError):
            match draw(st.sampled_from(["bytes", "data", "path"])):
                case "bytes":
                    image = read_image(content)
                case "data":
                    text = base64.b64encode(content).decode()
                    image = read_image(f"data:image/png;base64,{text}")
                case "path":
                    with tempfile.NamedTemporaryFile(suffix=".png") as file:
                        Path(file.name).write_bytes(content)
                        image = read_image(Path(file.name))
            assert image.mode == "RGB"
    finally:
        Image.MAX_IMAGE_PIXELS = own
