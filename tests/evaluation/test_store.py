"""The folder of a run: nothing lost, nothing double, whatever stops it."""

import errno
import json
import math
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from vrga.evaluation.store import SAMPLES, SETTINGS, Store, clean

SETTINGS_A = {"model": "m", "gain": 1.5, "tasks": ["a", "b"]}


def keys(folder):
    return [json.loads(line)["key"] for line in (folder / SAMPLES).read_text().splitlines()]


def test_samples_are_on_disk_at_once(tmp_path):
    store = Store(tmp_path, SETTINGS_A)
    store.add([{"key": "1", "text": "é"}])
    line = json.loads((tmp_path / SAMPLES).read_text("utf-8"))
    assert line == {"key": "1", "text": "é", "config": store.hash}
    assert json.loads((tmp_path / SETTINGS).read_text())["settings"] == SETTINGS_A


def test_a_resumed_run_knows_what_is_done(tmp_path):
    with_two = Store(tmp_path, SETTINGS_A)
    with_two.add([{"key": "1", "x": 1}, {"key": "2", "x": 2}])
    with_two.close()
    again = Store(tmp_path, SETTINGS_A, resume=True)
    assert {key: one["x"] for key, one in again.done.items()} == {"1": 1, "2": 2}
    again.add([{"key": "3", "x": 3}])
    assert [one["x"] for one in again.finish(["3", "1", "2"])] == [3, 1, 2]
    assert keys(tmp_path) == ["3", "1", "2"]


def test_a_folder_is_written_by_one_process_at_a_time(tmp_path):
    """Until it is closed, finished or killed; what is there already, by other processes too."""
    store = Store(tmp_path, SETTINGS_A)
    for other in ({}, {"resume": True}, {"resume": True, "ranks": 2}):
        with pytest.raises(ValueError, match="another process writes into .*: wait until it has"):
            Store(tmp_path, SETTINGS_A, **other)
    Store(tmp_path, SETTINGS_A, resume=True, rank=1, ranks=2).close()  # of the same run
    store.add([{"key": "1"}])
    with pytest.raises(ValueError, match="another process writes"):
        Store(tmp_path, {"model": "other"})
    store.close()
    Store(tmp_path, SETTINGS_A, resume=True).finish()
    with pytest.raises(ValueError, match="other settings") as refused:
        Store(tmp_path, {"model": "other"}, resume=True)
    assert refused.tb  # has hold of what was refused, which lets go of the folder
    held = [sys.executable, "-c", "from vrga.evaluation.store import Store; import sys, time\n"
            f"held = Store(sys.argv[1], {SETTINGS_A}, resume=True); print('held', flush=True)\n"
            "time.sleep(60)", str(tmp_path)]  # fmt: skip
    with subprocess.Popen(held, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(ValueError, match="another process writes"):
            Store(tmp_path, SETTINGS_A, resume=True)
        process.kill()
    assert set(Store(tmp_path, SETTINGS_A, resume=True).done) == {"1"}


def test_a_setting_that_came_later_as_none_is_that_which_was_not_there(tmp_path):
    store = Store(tmp_path, SETTINGS_A)
    store.add([{"key": "1"}])
    store.close()
    again = Store(tmp_path, SETTINGS_A | {"sft": None}, resume=True)
    assert set(again.done) == {"1"} and again.hash == store.hash
    again.add([{"key": "2"}])
    again.finish()
    assert keys(tmp_path) == ["1", "2"]


@pytest.mark.parametrize("cut", range(1, 30, 4))
def test_a_truncated_line_costs_its_sample_alone(tmp_path, cut):
    store = Store(tmp_path, SETTINGS_A)
    store.add([{"key": "1", "x": 1}, {"key": "2", "x": 2}])
    store.close()
    path = tmp_path / SAMPLES
    path.write_bytes(path.read_bytes()[:-cut])
    again = Store(tmp_path, SETTINGS_A, resume=True)
    kept = {"1", "2"} if cut == 1 else {"1"}  # the newline alone is no loss
    assert set(again.done) == kept and again.damaged == 2 - len(kept)
    again.add([{"key": key, "x": 9} for key in sorted({"2", "3"} - kept)])
    again.finish()
    assert keys(tmp_path) == ["1", "2", "3"]


def test_failed_samples_are_asked_again_and_stand_once(tmp_path):
    store = Store(tmp_path, SETTINGS_A)
    store.add([{"key": "1", "error": "no image"}, {"key": "2", "error": None}])
    store.close()
    again = Store(tmp_path, SETTINGS_A, resume=True)
    assert set(again.done) == {"2"}
    again.add([{"key": "1", "error": None}])
    again.finish()
    assert keys(tmp_path) == ["1", "2"]


def begun(folder):
    store = Store(folder, SETTINGS_A)
    store.add([{"key": "1"}])
    store.close()


def test_other_settings_are_refused_by_name(tmp_path):
    begun(tmp_path)
    with pytest.raises(ValueError, match=r"other settings \(gain: 1.5, now 2.0\)"):
        Store(tmp_path, SETTINGS_A | {"gain": 2.0}, resume=True)
    with pytest.raises(ValueError, match=r"more: None, now 1"):
        Store(tmp_path, SETTINGS_A | {"more": 1}, resume=True)


def test_a_folder_without_answers_is_free(tmp_path):
    Store(tmp_path, SETTINGS_A).close()  # a run that was refused after this
    store = Store(tmp_path, SETTINGS_A | {"gain": 2.0})
    assert json.loads((tmp_path / SETTINGS).read_text())["hash"] == store.hash


def test_a_run_is_never_overwritten(tmp_path):
    begun(tmp_path)
    with pytest.raises(ValueError, match="holds a run already: go on with it"):
        Store(tmp_path, SETTINGS_A)
    with pytest.raises(ValueError, match="nothing to resume"):
        Store(tmp_path / "other", SETTINGS_A, resume=True)


def test_samples_of_another_config_are_not_taken(tmp_path):
    store = Store(tmp_path, SETTINGS_A)
    store.add([{"key": "1"}])
    store.close()
    line = json.dumps({"key": "2", "config": "0123456789abcdef"}) + "\n"
    with open(tmp_path / SAMPLES, "a") as file:
        file.write(line)
    assert set(Store(tmp_path, SETTINGS_A, resume=True).done) == {"1"}


def test_a_full_disk_loses_nothing_that_was_written(tmp_path):
    store = Store(tmp_path, SETTINGS_A)
    store.add([{"key": "1"}])
    real = store._file

    class Full:
        """Takes ten bytes more."""

        left = 10

        def write(self, content):
            if not self.left:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            count, self.left = real.write(content[: self.left]), 0
            return count

        fileno, close = real.fileno, real.close

    store._file = Full()
    with pytest.raises(OSError, match="No space left"):
        store.add([{"key": "2"}])
    assert set(store.done) == {"1"}
    store.close()
    again = Store(tmp_path, SETTINGS_A, resume=True)
    assert set(again.done) == {"1"} and again.damaged == 1
    again.add([{"key": "2"}])
    again.finish()
    assert keys(tmp_path) == ["1", "2"]


def test_processes_write_apart_and_are_merged(tmp_path):
    first = Store(tmp_path, SETTINGS_A, rank=0, ranks=2)
    second = Store(tmp_path, SETTINGS_A, rank=1, ranks=2)
    first.add([{"key": "1"}, {"key": "3", "error": "no image"}])
    second.add([{"key": "2"}])
    second.close()
    first.gather()
    assert [one["key"] for one in first.finish(["1", "2", "3"])] == ["1", "2", "3"]
    assert keys(tmp_path) == ["1", "2", "3"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [SETTINGS, SAMPLES]


def test_an_old_failure_does_not_hide_what_another_process_mended(tmp_path):
    alone = Store(tmp_path, SETTINGS_A)
    alone.add([{"key": "1", "error": "no image"}, {"key": "2", "error": "no image"}])
    alone.close()
    first = Store(tmp_path, SETTINGS_A, resume=True, rank=0, ranks=2)
    second = Store(tmp_path, SETTINGS_A, resume=True, rank=1, ranks=2)
    second.add([{"key": "2", "error": None}])
    second.close()
    first.gather()
    assert [one["error"] for one in first.finish(["1", "2"])] == ["no image", None]


def test_a_run_of_two_processes_goes_on_with_one(tmp_path):
    for rank in range(2):
        store = Store(tmp_path, SETTINGS_A, rank=rank, ranks=2)
        store.add([{"key": str(rank)}])
        store.close()
    again = Store(tmp_path, SETTINGS_A, resume=True)
    assert set(again.done) == {"0", "1"}
    again.add([{"key": "2"}])
    again.finish()
    assert keys(tmp_path) == ["0", "1", "2"]


WRITER = """
import sys
from pathlib import Path
from vrga.evaluation.store import Store
folder = Path(sys.argv[1])
store = Store(folder, {"a": 1}, resume=(folder / "run.json").exists())
for i in range(100_000):
    if str(i) not in store.done:
        store.add([{"key": str(i), "text": "x" * 5000}])
"""


def test_killed_at_any_time_nothing_is_lost_and_nothing_double(tmp_path):
    folder, known = tmp_path / "run", set()
    for _ in range(3):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(folder)])
        size = (folder / SAMPLES).stat().st_size if known else 0
        while writer.poll() is None:  # let it write some samples
            path = folder / SAMPLES
            if path.exists() and path.stat().st_size > size + 50_000:
                break
            time.sleep(0.01)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        store = Store(folder, {"a": 1}, resume=True)
        assert known < set(store.done) and store.damaged <= 1
        known = set(store.done)
        store.close()
    store = Store(folder, {"a": 1}, resume=True)
    store.finish()
    assert len(keys(folder)) == len(set(keys(folder))) == len(known)


def test_nan_is_written_as_null(tmp_path):
    store = Store(tmp_path, SETTINGS_A)
    store.add([{"key": "1", "x": [math.nan, np.float32(1.0)], "y": {"z": math.inf}}])
    line = json.loads((tmp_path / SAMPLES).read_text())
    assert line["x"] == [None, 1.0] and line["y"] == {"z": None}
    assert clean((1, "a", None, np.int64(3), np.nan)) == [1, "a", None, 3, None]
