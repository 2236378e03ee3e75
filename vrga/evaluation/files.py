"""Rows of the files that benchmarks come as: JSON lines, JSON, CSV, parquet."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from vrga.evaluation.json_text import parsed, read_text
from vrga.evaluation.tasks import documents

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")


def read_rows(path: Path) -> list[dict]:
    """The rows of a file, by its suffix.

    A .json file holds a list of rows, an object of rows by their names (MathVista), a list under
    one key, or a row per line (POPE).

    Raises:
        ValueError: not readable as what its suffix says; names the file.
    """
    try:
        if path.suffix.lower() == ".parquet":
            return pq.read_table(path).to_pylist()
        text = read_text(path)
        if path.suffix.lower() == ".csv":
            rows = list(csv.DictReader(io.StringIO(text, newline="")))
            return [{key: value for key, value in row.items() if key} for row in rows]
        return _lines(text) if path.suffix.lower() == ".jsonl" else _json(text)
    except (ValueError, OSError, csv.Error, pa.ArrowException, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as {path.suffix}: {error}") from error


def embeds_images(path: Path) -> bool:
    """Whether a file holds images themselves, not their names: parquet as the hub exports it."""
    if path.suffix.lower() != ".parquet":
        return False
    try:
        schema = pq.read_schema(path)
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{path} cannot be read as .parquet: {error}") from error
    kinds = [schema.field(name).type for name in documents.IMAGE if name in schema.names]
    kinds = [kind.value_type if pa.types.is_list(kind) else kind for kind in kinds]
    return any(pa.types.is_struct(kind) or pa.types.is_binary(kind) for kind in kinds)


def to_table(rows: list[dict]) -> pa.Table:
    """Rows as a table; a column of several types, or of objects, becomes text."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    return pa.table({name: _column([row.get(name) for row in rows]) for name in names})


def _column(values: list) -> pa.Array:
    if not any(isinstance(value, dict) for value in values):
        try:
            return pa.array(values)
        except (pa.ArrowException, OverflowError):
            pass
    kept = (str, type(None))
    return pa.array(
        [v if isinstance(v, kept) else json.dumps(v, default=str) for v in values], pa.string()
    )


def _lines(text: str) -> list[dict]:
    if text.lstrip().startswith("["):
        return _json(text)  # a list in spite of its name
    return _checked([parsed(line) for line in text.split("\n") if line.strip()])


def _json(text: str) -> list[dict]:
    try:
        found = parsed(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and text.lstrip().startswith("{"):
            return _lines(text)
        raise
    if isinstance(found, dict):
        lists = [value for value in found.values() if isinstance(value, list)]
        found = lists[0] if len(found) == 1 and lists else list(found.values())
    return _checked(found)


def _checked(rows: object) -> list[dict]:
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError("its rows are not objects")
    return rows
