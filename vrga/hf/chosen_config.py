"""The configuration that a checkpoint brings: vrga_config.json beside its weights."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vrga.annotations import Model
from vrga.config import VRGAConfig, check_fields
from vrga.config_file import FILE, read
from vrga.presets import PRESETS


@dataclass(frozen=True)
class Chosen:
    """A configuration, and where it comes from.

    Args:
        config: the configuration.
        source: in a word, for what a command or a patch says of itself.
        path: the file that a checkpoint brings; None where it is another's choice.
        fields: names of those that were given over it.
    """

    config: VRGAConfig
    source: str
    path: Path | None = None
    fields: tuple[str, ...] = ()

    def __str__(self) -> str:
        """For example "sparing, gain 2 (vrga_config.json of the checkpoint and gain)"."""
        told = " and ".join([self.source, *self.fields])
        return f"{self.config.name} ({told})"


def choose(
    config: VRGAConfig | str | None,
    fields: Mapping[str, Any],
    where: str | Path | None,
    commit: str | None = None,
    *,
    fetch: bool = False,
) -> Chosen:
    """The configuration that a user means.

    Args:
        config: a whole one, a preset's name, or None: what the checkpoint brings, else the paper's.
        fields: over its own.
        where: folder or hub id of the checkpoint; None and "" bring nothing.
        commit: of a hub id, the one that was loaded.
        fetch: ask the hub. Without it its cache alone is read, which never waits for a network.

    Raises:
        ValueError: another thing, an unknown preset or field, a value that a field does not take,
            or a damaged vrga_config.json, named by its path.
    """
    check_fields(fields)
    given, names = dict(fields), tuple(fields)
    if isinstance(config, VRGAConfig):
        whole = dataclasses.replace(config, **given) if given else config
        return Chosen(whole, "as given", fields=names)
    if config is not None and not isinstance(config, str):
        raise ValueError(
            f"config={config!r} is not a VRGAConfig: give one, the name of a preset "
            f"({', '.join(PRESETS)}), or fields by name, e.g. gain=2"
        )
    if config not in (None, "default"):
        VRGAConfig.named(config)  # refuses an unknown one
        return Chosen(getattr(VRGAConfig, config)(**given), f"preset {config}", fields=names)
    path = own_file(where, commit, fetch=fetch)
    if path is None:
        return Chosen(VRGAConfig(**given), "the default", fields=names)
    own = read(path, VRGAConfig.from_dict)
    own = dataclasses.replace(own, **given) if given else own
    return Chosen(own, f"{FILE} of the checkpoint", path, names)


def checkpoint_of(model: Model) -> tuple[str, str | None]:
    """Folder or hub id that a model was loaded from, "" for none; and of a hub id the commit."""
    commit = getattr(getattr(model, "config", None), "_commit_hash", None)
    return str(getattr(model, "name_or_path", "") or ""), commit


def chosen_for(model: str | None, preset: str | None = None, gain: float | None = None) -> Chosen:
    """How a command steers: by a preset and a gain, else by what the checkpoint brings.

    Args:
        model: checkpoint folder or hub id, which may be asked; None is the embedded model.

    Raises:
        OSError, ValueError: as of `check_model` and `choose`.
    """
    from vrga.hf.files import check_model, embedded

    fields = {} if gain is None else {"gain": gain}
    where = embedded() if model is None else check_model(model)
    return choose(preset, fields, where, fetch=True)


def own_file(
    where: str | Path | None, commit: str | None = None, *, fetch: bool = False
) -> Path | None:
    """vrga_config.json of a checkpoint; None where it brings none, or the hub is not reached."""
    if not where:
        return None
    folder = Path(where)
    if folder.is_dir():
        path = folder / FILE
        return path if os.path.lexists(path) else None
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(str(where), FILE, revision=commit)
    except HFValidationError:  # no hub id: a folder that is gone, or a name of the user's own
        return None
    if isinstance(found, str):
        return Path(found)
    if found is None and fetch:  # the cache remembers, too, that a commit has none
        from vrga.hf.files import checkpoint_file

        with contextlib.suppress(OSError):
            return checkpoint_file(where, FILE)
    return None
