"""The method once more, in plain loops and float64: what a patched model is checked against.

Nothing here goes the way of the patched model. There is no key cache and there are no decode steps:
the unpatched model reads the prompt and the answer in one pass, with an attention function that
builds every attention matrix. What is written here follows the papers' words, and shares no code
with what it checks.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from vrga.annotations import Model
from vrga.checkup.plain_look import Look, Picture
from vrga.config import VRGAConfig
from vrga.hf.backends import backend_of, register_backend, set_backend

NAME = "vrga_plain_loops"


@dataclass(frozen=True)
class Row:
    """One prompt without padding.

    Args:
        inputs: of the model, one row.
        pictures: its images; query: position of the question's last token.
    """

    inputs: dict[str, Tensor]
    pictures: list[Picture]
    query: int

    @property
    def length(self) -> int:
        """Tokens of the prompt."""
        return self.inputs["input_ids"].shape[1]


@dataclass
class _Pass:
    """One pass over a prompt and its answer, as its attention layers see it.

    Args:
        row: the prompt; the rows behind it are decode steps.
        config: how they are steered, and look: to what; None does not steer.
        attention, seen: the question's row of every layer, filled in by the pass.
    """

    row: Row
    config: VRGAConfig | None = None
    look: Look | None = None
    attention: dict[int, np.ndarray] = field(default_factory=dict)
    seen: dict[int, np.ndarray] = field(default_factory=dict)

    def attend(self, module, query, key, value, mask, scaling, **kwargs) -> tuple[Tensor, None]:
        """Attention of one layer, head by head; the signature is that of transformers."""
        q, k, v = (x[0].double() for x in (query, key, value))  # [H or H_kv, S, d]
        heads, length, _ = q.shape
        if mask is None:
            visible = torch.ones(length, length, dtype=torch.bool, device=q.device).tril()
        elif mask.dtype == torch.bool:
            visible = mask[0, 0, :, :length]
        else:  # a huge negative number is how eager masks say "hidden"
            visible = mask[0, 0, :, :length] > torch.finfo(mask.dtype).min / 2
        layer, question = module.layer_idx, []
        out = torch.empty(length, heads, q.shape[2], dtype=torch.float64, device=q.device)
        for head in range(heads):
            group = head // (heads // len(k))  # several query heads share a key head
            scores = (q[head] @ k[group].T) * scaling
            scores = torch.where(visible, scores, -torch.inf)
            a = torch.exp(scores - scores.max(1, keepdim=True).values)
            a = a / a.sum(1, keepdim=True)
            question.append(a[self.row.query].cpu().numpy())
            for step in range(self.row.length, length):
                self._steer(a[step], visible[step], layer, head)
            out[:, head] = a @ v[group]
        self.attention[layer] = np.stack(question)
        self.seen[layer] = visible[self.row.query].cpu().numpy()
        return out.to(query.dtype)[None], None

    def _steer(self, a: Tensor, visible: Tensor, layer: int, head: int) -> None:
        """Phase 2: multiply attention to T by the gain and renormalise; `a` [S] in place."""
        if self.look is None or not self.look.region:
            return
        config = self.config
        assert config is not None  # it comes with a look
        if config.gate == "static":
            is_open = (layer, head) in self.look.visual
        else:
            image = [p for picture in self.row.pictures for p in picture.positions]
            on_image = a[[p for p in image if visible[p]]]
            if not len(on_image):
                return
            focus = on_image.mean() / (a.sum() / visible.sum())
            mass_entropy = -torch.xlogy(on_image, on_image).sum()
            is_open = bool(focus > config.gate_focus)
            is_open = is_open and bool(focus > config.gate_entropy * mass_entropy)
        if is_open:
            a[sorted(self.look.region)] *= config.gain
            a /= a.sum()


class Loops:
    """Runs the method in plain loops on an unpatched model.

    Args:
        model: best a copy in float64; it is left as it was.
        copied: whether it is one.
    """

    def __init__(self, model: Model, copied: bool = True):
        self.model, self.copied = model, copied

    @property
    def precision(self) -> str:
        """What the loops compute in, for people."""
        if self.copied:
            return "plain loops in float64"
        return "plain loops in float64 amid the unpatched model itself"

    def attention(self, row: Row) -> tuple[np.ndarray, np.ndarray]:
        """The question's attention [L, H, S] in a prompt, and the keys it sees, bool [L, S]."""
        done = _Pass(row)
        self._run(done, [])
        layers = sorted(done.attention)
        return (
            np.stack([done.attention[layer] for layer in layers]),
            np.stack([done.seen[layer] for layer in layers]),
        )

    def logits(
        self, row: Row, answer: list[int], config: VRGAConfig | None, look: Look | None
    ) -> Tensor:
        """Logits before each token of an answer, float64 [T, V] on the CPU.

        Args:
            config, look: how the steps behind the first are steered; None: not at all.
        """
        logits = self._run(_Pass(row, config, look), answer[:-1])
        return logits[0, row.length - 1 :].double().cpu()

    @torch.no_grad()
    def _run(self, this: _Pass, behind: list[int]) -> Tensor:
        register_backend(NAME, this.attend, masks_of="eager")
        own = backend_of(self.model)
        multimodal = getattr(self.model, "model", None)
        if multimodal is not None and hasattr(multimodal, "rope_deltas"):
            multimodal.rope_deltas = None  # of the prompt before
        set_backend(self.model, NAME)
        try:
            logits = self.model(**_with_answer(this.row.inputs, behind), use_cache=False).logits
        finally:
            set_backend(self.model, own)
            register_backend(NAME, _not_running)  # lets go of the pass
        layers = self.model.config.get_text_config().num_hidden_layers
        if len(this.attention) != layers:
            raise RuntimeError(
                f"only {len(this.attention)} of {layers} layers called their attention function: "
                "transformers' attention interface works differently in this version"
            )
        return logits


def _not_running(*args, **kwargs):
    raise RuntimeError(f"the attention backend {NAME!r} is for `vrga doctor` alone")


def _with_answer(inputs: dict[str, Tensor], answer: list[int]) -> dict[str, Tensor]:
    """The inputs of a prompt followed by text tokens."""
    found = dict(inputs)
    ids = inputs["input_ids"]
    found["input_ids"] = torch.cat([ids, ids.new_tensor([answer]).view(1, -1)], 1)
    for name, value in inputs.items():
        if name == "attention_mask" or name.endswith("token_type_ids"):
            fill = value.new_full((1, len(answer)), int(name == "attention_mask"))
            found[name] = torch.cat([value, fill], 1)
    return found
