"""The patched model once more: one row, unpadded, step by step, attention matrices in full."""

import numpy as np
import torch
from naive import region, steered
from tiny import CACHE
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS


class Replay:
    """A plain loop over a model's turns; every decode step is steered by the naive method.

    Args:
        model: unpatched, of any family.
        gain, gate: as of VRGAConfig.
    """

    def __init__(self, model, gain=1.5, gate="dynamic", text=None):
        self.model, self.gain, self.static = model, gain, gate == "static"
        self.text = model.model.language_model if text is None else text
        self.cache, self.length, self.grids = None, 0, []
        self.rows, self.seen, self.opened = {}, {}, []
        self.query, self.found = None, None

    def _attend(self, module, q, k, v, mask, scaling, **kwargs):
        group, keys, new = q.shape[1] // k.shape[1], k.shape[2], q.shape[2]
        first = self.length - keys  # a sliding window's cache drops the first keys
        if self.query is not None:  # a prompt
            k, v = (x.repeat_interleave(group, 1) for x in (k, v))
            scores = (q @ k.transpose(2, 3) * scaling).double()
            if mask is None:
                order = torch.arange(keys) - (keys - new)
                mask = torch.where(order > torch.arange(new)[:, None], -torch.inf, 0.0)
            scores = scores + mask[..., :keys].double()
            probs = scores.softmax(-1)
            at = self.query - (self.length - new)
            row = torch.zeros(q.shape[1], self.length, dtype=torch.float64)
            row[:, first:] = probs[0, :, at]
            seen = torch.zeros(self.length, dtype=torch.bool)
            # A finite but huge negative number is how eager masks say "hidden".
            seen[first:] = scores[0, 0, at] > -1e30
            self.rows[module.layer_idx], self.seen[module.layer_idx] = row, seen
            return (probs.to(v.dtype) @ v).transpose(1, 2), None
        assert new == 1
        image = torch.tensor([p for index, _, _ in self.grids for p in index], dtype=torch.long)
        focus = torch.tensor(self.found["mask"] if self.found else [], dtype=torch.long)
        visible = torch.ones(keys, dtype=torch.bool)
        if mask is not None:
            visible = mask[0, 0, -1, :keys] > -1e30
        local = visible.nonzero()[:, 0]
        place = torch.full((self.length,), -1)
        place[first + local] = torch.arange(len(local))
        image, focus = (x[x < self.length] for x in (image, focus))
        image, focus = (place[x][place[x] >= 0] for x in (image, focus))
        gate = None
        if self.static and self.found:
            gate = [(module.layer_idx, h) in self.found["visual"] for h in range(q.shape[1])]
        if not len(image) or not self.found:
            gate = [False] * q.shape[1]
        out, opened = steered(
            q[0, :, 0], k[0][:, local], v[0][:, local], image, focus, scale=scaling,
            gain=self.gain, gate=gate,
        )  # fmt: skip
        self.opened.append(len(opened))
        return out.to(q.dtype)[None, None], None

    @torch.no_grad()
    def turn(self, inputs, tokens, query, grids=(), **more):
        """Logits [T, V] before each of `tokens` that follow a prompt on the cache so far.

        The last of them is not in the cache then; the next turn's prompt begins with it.

        Args:
            inputs: of one row, without padding; only the new tokens.
            tokens: the tokens to go on with.
            query: the question's last position, counted from the first cached token.
            grids: (positions, h, w) of the new images.
        """
        AttentionInterface.register("replay", self._attend)
        AttentionMaskInterface.register("replay", ALL_MASK_ATTENTION_FUNCTIONS["eager"])
        key = "text_config"
        own = self.text.config._attn_implementation
        self.model.set_attn_implementation({key: "replay"})
        try:
            self.grids += list(grids)
            self.length += inputs["input_ids"].shape[1]
            self.query, self.rows, self.seen = query, {}, {}
            inputs = {k: v for k, v in inputs.items() if k != "attention_mask"}
            if self.cache is None and hasattr(self.model.model, "rope_deltas"):
                self.model.model.rope_deltas = None  # another prompt's
            out = self.model(**inputs, **{CACHE: self.cache}, use_cache=True, **more)
            self.cache, self.query = out[CACHE], None
            self.found = self._region(query) if self.grids else None
            logits = [out.logits[0, -1]]
            for token in tokens[:-1].tolist():
                self.length += 1
                out = self.model(
                    input_ids=torch.tensor([[token]]), **{CACHE: self.cache}, use_cache=True,
                    **{k: v + (self.length - 1) for k, v in self._place().items()},
                )  # fmt: skip
                logits.append(out.logits[0, -1])
            return torch.stack(logits)
        finally:
            self.model.set_attn_implementation({key: own})

    def _place(self):
        """Position ids of one token, before the length is added; Qwen's models keep a delta."""
        delta = getattr(self.model.model, "rope_deltas", None)
        return {} if delta is None else {"position_ids": delta.view(1, 1, 1).expand(3, 1, 1)}

    def _region(self, query):
        rows = torch.stack([self.rows[i] for i in range(len(self.rows))]).numpy()
        seen = torch.stack([self.seen[i] for i in range(len(self.seen))]).tolist()
        focus, mask, visual, _ = region(rows, self.grids, query + 1, seen=seen)
        return dict(focus=focus, mask=mask, visual=set(map(tuple, np.array(visual).tolist())))


class PhasedReplay(Replay):
    """The method in loops, with the gain of each step from a list."""

    def __init__(self, model, gains):
        super().__init__(model, 1.0)
        self.gains, self.steps = gains, 0

    def _attend(self, module, q, k, v, mask, scaling, **kwargs):
        if self.query is None:
            if module.layer_idx == 0:
                self.steps += 1
            self.gain = self.gains[self.steps - 1]
        return super()._attend(module, q, k, v, mask, scaling, **kwargs)


class Relocated(PhasedReplay):
    """Finds the region anew at certain steps, from that step's own attention; unsteered there."""

    def __init__(self, model, gains, at):
        super().__init__(model, gains)
        self.at, self.found_at = at, {}

    def _attend(self, module, q, k, v, mask, scaling, **kwargs):
        out = super()._attend(module, q, k, v, mask, scaling, **kwargs)
        if self.query is None and self.steps - 1 in self.at:
            k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
            a = (q @ k.transpose(2, 3) * scaling).double().softmax(-1)
            self.rows[module.layer_idx] = a[0, :, 0]
            self.seen[module.layer_idx] = torch.ones(k.shape[2], dtype=torch.bool)
            if module.layer_idx == len(self.rows) - 1:
                self.found = self._region(self.length - 1)
                self.found_at[self.steps - 1] = self.found
        return out
