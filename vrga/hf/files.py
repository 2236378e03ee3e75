"""What a checkpoint's own files say, read before transformers acts on it.

transformers runs code that a config names (`auto_map`), unpickles what an index of weights names,
and follows an adapter's config to another checkpoint. All of this is refused here, in words, both
of a folder and of a hub id, whose small files come from the hub or its cache.
"""

from __future__ import annotations

import importlib.resources
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, overload

from vrga.lookback import ALIASES

PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")
CONFIG, INDEX = "config.json", "model.safetensors.index.json"
ADAPTER = "adapter_config.json"
LARGEST = 64 << 20  # bytes of a JSON file: an index of 100,000 tensors has 10 MB
_ATTENTION = ("attn_implementation", "_attn_implementation")


# The small trained models inside this package, by name: where their weights are.
EMBEDDED = {
    None: ("demo", "weights"),
    "fine": ("demo", "fine", "weights"),
    "chain": ("demo", "chain", "weights"),
}


def embedded(name: str | None = None) -> Path:
    """The folder of a small trained model inside this package, by its name in `EMBEDDED`."""
    return Path(str(importlib.resources.files("vrga"))).joinpath(*EMBEDDED[name])


@overload
def check_model(name: None) -> None: ...
@overload
def check_model(name: str | Path) -> str | Path: ...
def check_model(name: str | Path | None) -> str | Path | None:
    """The folder or hub id that a name stands for; None, the embedded model, is None.

    Raises:
        FileNotFoundError: a local path that does not exist or holds no checkpoint.
        ValueError: pickled weights.
    """
    if name is None:
        return None
    if name in EMBEDDED:
        return embedded(name)
    where = ALIASES.get(str(name).lower(), name)
    path = Path(where)
    if not path.exists():
        looks_local = isinstance(where, Path) or str(where).startswith((".", "/", "~"))
        if looks_local or str(where).count("/") != 1:
            raise FileNotFoundError(
                f"no checkpoint at {where!s}: give a local folder, or a hub id such as "
                "Qwen/Qwen2.5-VL-7B-Instruct"
            )
        return where
    if not path.is_dir() or not (path / "config.json").exists():
        raise FileNotFoundError(f"{where!s} is not a checkpoint folder: it has no config.json")
    if not list(path.glob("*.safetensors")):
        pickled = [f.name for pattern in PICKLED for f in path.glob(pattern)]
        if pickled:
            raise ValueError(
                f"{where!s} holds pickled weights ({', '.join(sorted(pickled)[:3])}), which can "
                "run code when loaded: convert them to safetensors"
            )
        raise FileNotFoundError(f"{where!s} holds no *.safetensors weights")
    return where


def read_config(where: str | Path) -> dict:
    """config.json of a checkpoint, of a supported architecture.

    Raises:
        OSError: none there, or a hub id that cannot be reached.
        ValueError: damaged, of an unsupported architecture, or one that names code to fetch.
    """
    from vrga.hf.families import FAMILIES  # imports torch

    path = checkpoint_file(where, CONFIG, needed=True)
    found = _read(path)
    kind = found.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise ValueError(f"{where} is a {kind!r} model; supported: {', '.join(FAMILIES)}")
    for name, value in _named(found, _ATTENTION):
        # "owner/name" is a kernel on the hub, which transformers would fetch and run.
        if isinstance(value, str) and "/" in value:
            raise ValueError(f"{path}: {name} is {value!r}, code on the hub, which is not run")
    return found


def check_weights(where: str | Path, config: dict) -> None:
    """Refuse what would make transformers read other weights than the checkpoint's safetensors.

    Args:
        config: what `read_config` found.

    Raises:
        ValueError: an index that is damaged or names other files than safetensors beside it, or
            an adapter.
        FileNotFoundError: a file that the index names is missing from a folder.
    """
    adapter = checkpoint_file(where, ADAPTER)
    if adapter is not None:
        raise ValueError(
            f"{where} holds an adapter ({ADAPTER}), which changes another checkpoint: load that "
            "one, and add the adapter with peft's PeftModel.from_pretrained"
        )
    chosen = config.get("transformers_weights")
    if chosen is not None and not _is_plain(chosen, (".safetensors", ".safetensors.index.json")):
        raise ValueError(f"{where}: transformers_weights is {chosen!r}, not a safetensors file")
    for name in dict.fromkeys(n for n in (INDEX, chosen) if n and n.endswith(".json")):
        path = checkpoint_file(where, name)
        if path is not None:
            check_index(path, Path(where) if Path(where).is_dir() else None)


def check_index(path: Path, folder: Path | None) -> None:
    """Refuse an index of weight files that names anything but safetensors beside it.

    Args:
        path: the index.
        folder: where its files must be; None where they are on the hub.

    Raises:
        ValueError: no JSON, no weight_map or metadata, a wrong type in them, or another file.
        FileNotFoundError: a file that it names is missing.
    """
    found = _read(path)
    for name in ("weight_map", "metadata"):
        if not isinstance(found.get(name), dict):
            raise ValueError(f"{path} has no {name}: it is no index of weights; download it again")
    files = found["weight_map"].values()
    if not files:
        raise ValueError(f"{path} names no weights: download it again")
    for file in files:
        if not _is_plain(file, (".safetensors",)):
            raise ValueError(
                f"{path} names {file!r}; an index may only name *.safetensors files beside it, for "
                "others can run code when loaded: convert them to safetensors"
            )
    missing = [file for file in dict.fromkeys(files) if folder and not (folder / file).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{folder} lacks {len(missing)} files that {path.name} names, among them "
            f"{missing[0]}: download them again"
        )


@overload
def checkpoint_file(where: str | Path, name: str, *, needed: Literal[True]) -> Path: ...
@overload
def checkpoint_file(where: str | Path, name: str, *, needed: bool = False) -> Path | None: ...
def checkpoint_file(where: str | Path, name: str, *, needed: bool = False) -> Path | None:
    """A file of a checkpoint: of a folder, or from the hub or its cache; None for none.

    Raises:
        OSError: it is needed and not there, or the hub cannot be reached.
    """
    if Path(where).is_dir():
        path = Path(where) / name
        if needed and not path.is_file():
            raise FileNotFoundError(f"{where} is not a checkpoint folder: it has no {name}")
        return path if path.is_file() else None
    from transformers.utils import cached_file

    try:
        found = cached_file(str(where), name, _raise_exceptions_for_missing_entries=needed)
    except OSError as error:
        raise OSError(
            f"{name} of {where} cannot be had from the hub: {first_line(error)}; give the folder "
            "of a checkpoint on this machine, or leave the model out for the small one inside this "
            "package"
        ) from error
    if found is None and needed:
        raise OSError(f"{where} on the hub has no {name}: it is not a checkpoint")
    return None if found is None else Path(found)


def hub_file(name: str, file: str) -> Path | None:
    """A file of a hub id, from the hub or its cache; None where the hub says there is none.

    Raises:
        OSError: the hub cannot be reached, or has no such id, and the cache has no such file.
    """
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
    from transformers.utils import cached_file

    try:
        return Path(cached_file(name, file))
    except OSError as error:
        cause: BaseException | None = error
        while cause is not None:
            missing = isinstance(cause, EntryNotFoundError)
            if missing and not isinstance(cause, LocalEntryNotFoundError):
                return None
            cause = cause.__cause__ or cause.__context__
        told = first_line(error)
        raise OSError(f"{file} of {name} cannot be had from the hub: {told}") from error


def first_line(error: Exception) -> str:
    """What an error says in one line; its name where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _read(path: Path) -> dict:
    """A JSON object.

    Raises:
        ValueError: another thing.
    """
    try:
        if path.stat().st_size > LARGEST:
            raise ValueError(f"more than {LARGEST >> 20} MB")
        found = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}; download it again") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} is damaged: it holds no JSON object; download it again")
    return found


def _named(value: object, names: tuple[str, ...]) -> Iterator[tuple[str, object]]:
    """Entries of these names, at any depth."""
    if isinstance(value, dict):
        for name, one in value.items():
            if name in names:
                yield name, one
            yield from _named(one, names)
    elif isinstance(value, list):
        for one in value:
            yield from _named(one, names)


def _is_plain(name: object, endings: tuple[str, ...]) -> bool:
    """Whether a name is of a file beside another, with one of these endings."""
    return (
        isinstance(name, str)
        and name.endswith(endings)
        and not any(sign in name for sign in "/\\\0")
        and not name.startswith(".")
    )
