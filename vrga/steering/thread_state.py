"""What one thread is at: each has a call, a pass and prompts of its own."""

from __future__ import annotations

import threading

from vrga.hf.announced_prompt import AnnouncedPrompt
from vrga.steering.forward_pass import ForwardPass
from vrga.steering.generate_call import GenerateCall
from vrga.steering.recent_prompts import RecentPrompts
from vrga.steering.run import Run


class ThreadState(threading.local):
    """What the current thread is at.

    Args:
        cache_name: what the model calls its cache.

    Attributes:
        call: of generate(); announced: a prompt that comes in a loop by hand; passing: the forward
            pass; run: of the last prompt. Each of them may be None.
        through: the run of a pass whose logits are to come, and tokens of each of its rows.
        recent: prompts outside of generate().
    """

    def __init__(self, cache_name: str):
        self._cache_name = cache_name
        self.call: GenerateCall | None = None
        self.announced: AnnouncedPrompt | None = None
        self.passing: ForwardPass | None = None
        self.run: Run | None = None
        self.through: tuple[Run, int] | None = None
        self.recent = RecentPrompts(cache_name)

    def __deepcopy__(self, memo: dict) -> ThreadState:
        return ThreadState(self._cache_name)
