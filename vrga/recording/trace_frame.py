"""A trace as a table of pandas."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from vrga.recording.trace import MEASURES, Trace

if TYPE_CHECKING:
    import pandas


def frame(trace: Trace) -> pandas.DataFrame:
    """One line for each layer, head and row at each step; see `Trace.to_pandas`."""
    try:
        import pandas
    except ImportError as error:
        raise ImportError("to_pandas needs pandas: pip install 'vrga[plot]'") from error
    own = trace.filled()
    t, n, b, h = own.image.shape
    shape = (t, n, b, h)
    step, layer, row, head = torch.meshgrid(
        own.steps, own.layers, torch.arange(b), torch.arange(h), indexing="ij"
    )
    columns = {"step": step, "layer": layer, "head": head, "row": row}
    columns |= {k: getattr(trace, k) for k in MEASURES if getattr(trace, k) is not None}
    for name in ("inside", "uncertainty"):
        of_rows = getattr(trace, name)  # [steps, B]
        if of_rows is not None:
            columns[name] = of_rows[:, None, :, None].expand(shape)
    found = pandas.DataFrame({name: x.flatten().numpy() for name, x in columns.items()})
    if trace.ends is not None:
        found = found[found["step"] < trace.ends.numpy()[found["row"]]].reset_index(drop=True)
    if trace.texts is not None:
        pairs = zip(found["step"], found["row"], strict=True)
        found["text"] = [trace.texts[r][s] for s, r in pairs]
    return found
