"""A block of `Patch.record`, while it is open."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vrga.method.prompt import GridCells
from vrga.recording.recorder import Recorder

if TYPE_CHECKING:
    from vrga.steering.generate_call import GenerateCall
    from vrga.steering.run import Run


@dataclass
class Recording:
    """A block of `Patch.record`: its recorder, the cells it watches, the thread that opened it,
    and the run it is of: the first whose prompt comes, in whatever thread."""

    recorder: Recorder
    watch: GridCells | None
    thread: threading.Thread
    run: Run | None = None

    def takes(self, run: Run, call: GenerateCall | None) -> bool:
        """Whether it is to record this run, whose prompt is through.

        Raises:
            ValueError: it holds the steps of another run already.
        """
        if call is not None and (call.run is not run or call.outer is not None):
            return False  # another branch of the same call, such as guidance without the image
        if self.run is not None and threading.current_thread() is not self.thread:
            return False  # another thread's own prompt, amid the one that is recorded
        if self.recorder.steps or (self.run is not None and self.run.cache is not None):
            raise ValueError("a trace holds one call of generate: record each on its own")
        self.run = run
        return True
