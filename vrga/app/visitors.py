"""Who has the page open: whether their answer is still wanted, and the files that are theirs."""

from __future__ import annotations

import hashlib
import shutil
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Visit:
    """One open tab.

    Args:
        folder: for what is made for it, e.g. its report.
        stop: set when its last question's answer is not wanted any more.
        uploads: its files in the server's folder.
    """

    folder: Path
    stop: threading.Event = field(default_factory=threading.Event)
    uploads: set[Path] = field(default_factory=set)


class Visits:
    """The open tabs by their session.

    Args:
        folder: of the server's files, everything that is uploaded or made included.
    """

    def __init__(self, folder: Path):
        self.folder = folder.resolve()
        self._open: dict[str, Visit] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._open)

    def begin(self, session: str) -> threading.Event:
        """A question is asked: the event that says when its answer is not wanted any more."""
        with self._lock:
            visit = self._of(session)
            visit.stop = threading.Event()
            return visit.stop

    def stop(self, session: str) -> None:
        """The answer to the session's last question is not wanted any more."""
        with self._lock:
            if session in self._open:
                self._open[session].stop.set()

    def folder_of(self, session: str) -> Path:
        """A folder for what is made for a session; it goes with the session."""
        with self._lock:
            folder = self._of(session).folder
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def keep(self, session: str, paths: Iterable[str | Path]) -> None:
        """These uploads are the session's; those that it has no longer are deleted."""
        now = {Path(path).resolve() for path in paths}
        with self._lock:
            visit = self._of(session)
            gone, visit.uploads = visit.uploads - now, now
            self._delete(gone)

    def leave(self, session: str) -> None:
        """The tab was closed: stop its answer and delete its files."""
        with self._lock:
            visit = self._open.pop(session, None)
            if visit is None:
                return
            visit.stop.set()
            self._delete(visit.uploads)
            shutil.rmtree(visit.folder, ignore_errors=True)

    def _of(self, session: str) -> Visit:
        made = self.folder / "visits" / hashlib.sha256(session.encode()).hexdigest()[:16]
        return self._open.setdefault(session, Visit(made))

    def _delete(self, paths: set[Path]) -> None:
        """Delete uploads: the server keeps one file for all sessions that upload the same."""
        kept = set().union(*(visit.uploads for visit in self._open.values()))
        for path in paths - kept:
            if self.folder in path.parents and "examples" not in path.parts:
                path.unlink(missing_ok=True)
