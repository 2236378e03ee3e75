"""The GPU hour: nothing is lost or double however a run ends, and what hangs is passed over."""

import json
import os
import random
import select
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import gpu_cases
import pytest
from gpu_cases import BAD, HANGS, HERE, PATH, case, run_of, stages

from benchmarks.gpu.case import Stage, check, digest
from benchmarks.gpu.plan import forecast
from benchmarks.gpu.runner import MARGIN
from benchmarks.gpu.store import FILE, Store, finished, gathered, identity, key, read

pytestmark = pytest.mark.slow

ALL = {case.id for stage in stages() for case in stage.cases}


def start(folder, *options):
    """A run of `gpu_cases` that can be killed."""
    command = [sys.executable, gpu_cases.__file__, str(folder), *map(str, options)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=dict(os.environ)
                            | {"PYTHONPATH": PATH})  # fmt: skip


def finish(folder, *options):
    """What a run says that nobody kills."""
    run = start(folder, *options)
    said = run.communicate()[0]
    assert run.returncode == 0, said
    return said


def ids(folder):
    return Counter(line["id"] for line in read(folder / FILE))


def test_killed_at_random_and_resumed_nothing_is_lost_or_double(tmp_path):
    moments = random.Random(20).choices(range(12), k=7)
    before = Counter()
    for lines in moments:
        run = start(tmp_path, 100)
        for _ in range(lines):
            run.stdout.readline()
        run.kill()
        run.communicate()
        now = ids(tmp_path) if (tmp_path / FILE).exists() else Counter()
        assert now >= before and set(now.values()) <= {1}
        before = now
    assert 0 < len(before)
    finish(tmp_path, 100)
    assert ids(tmp_path) == Counter(dict.fromkeys(ALL, 1))
    for line in read(tmp_path / FILE):
        if line["id"].isdigit():
            assert line["status"] == "done" and line["result"] == {"number": int(line["id"])}


def test_what_fails_dies_or_hangs_is_written_down_and_passed_over(tmp_path):
    finish(tmp_path, 100)
    lines = {line["id"]: line for line in read(tmp_path / FILE)}
    assert set(lines) == ALL
    told = {name: (lines[name]["status"], lines[name]["error"]) for name in
            ("failing", "dying", "leaving", "not_json", "hanging")}  # fmt: skip
    assert told["failing"] == ("failed", "ValueError: it cannot")
    assert told["dying"] == ("failed", "the process ended by SIGSEGV")
    assert told["leaving"] == ("failed", "the process ended with status 3")
    assert told["not_json"][0] == "failed" and "not JSON compliant" in told["not_json"][1]
    assert told["hanging"] == ("timeout", "no result in 0.3 s")
    assert "it cannot" in (tmp_path / "log.txt").read_text()  # the traceback
    # All that a line must say.
    for line in lines.values():
        assert {"id", "group", "kind", "device", "versions", "commit", "sources", "at", "seconds",
                "status"} < set(line)  # fmt: skip
        assert ("result" in line) != ("error" in line)


def test_what_failed_is_tried_again_only_when_asked(tmp_path):
    finish(tmp_path, 100)
    finish(tmp_path, 100)
    assert set(ids(tmp_path).values()) == {1}
    finish(tmp_path, 100, "again")
    bad = {one.id for one in (*BAD, HANGS)}
    assert ids(tmp_path) == Counter({name: 2 if name in bad else 1 for name in ALL})


def test_a_half_written_last_line_is_dropped_and_measured_again(tmp_path):
    finish(tmp_path, 100)
    text = (tmp_path / FILE).read_text()
    last = json.loads(text.splitlines()[-1])["id"]
    for cut in (1, 30, len(text.splitlines()[-1])):
        (tmp_path / FILE).write_text(text[:-cut])
        assert last not in ids(tmp_path)
        finish(tmp_path, 100)
        assert ids(tmp_path) == Counter(dict.fromkeys(ALL, 1))


def test_a_broken_line_that_is_not_the_last_is_an_error(tmp_path):
    line = json.dumps(identity(case("1"), HERE) | {"status": "done", "result": {}})
    for broken in ("{", '{"status": "done"}', line.replace("done", "unknown"), "[]"):
        (tmp_path / FILE).write_text(f"{line}\n{broken}\n{line}\n")
        with pytest.raises(ValueError, match="line 2 is no result"):
            Store(tmp_path)


def test_workers_die_with_the_run(tmp_path):
    cases = [case("1"), case("hanging", "hanging", limit=1000)]
    script = (
        "import sys, gpu_cases as g; from pathlib import Path\n"
        "from benchmarks.gpu.case import Stage; from benchmarks.gpu.store import Store\n"
        "g.run_of(Store(Path(sys.argv[1])), 1000).measure([Stage('s', (\n"
        "    g.case('1'), g.case('hanging', 'hanging', limit=1000)), setup=0)])"
    )
    os.mkfifo(tmp_path / "pid")  # opening it waits for the worker to be in the case
    run = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.DEVNULL,
                           env=dict(os.environ) | {"PYTHONPATH": PATH})  # fmt: skip
    worker = os.pidfd_open(int((tmp_path / "pid").read_text()))
    run.send_signal(signal.SIGKILL)
    run.wait()
    assert select.select([worker], [], [], 30)[0], "the worker outlived its run"
    assert ids(tmp_path) == Counter([cases[0].id])


def test_the_budget_is_kept(tmp_path):
    budget = MARGIN + 1
    cases = (case("1"), case("2", estimate=60), case("hanging", "hanging", limit=600), case("3"))
    stage, said = Stage("s", cases, setup=0), []
    with Store(tmp_path) as store:
        run_of(store, 100).measure([Stage("s", cases[:1], setup=0)])
        began = time.monotonic()
        left = run_of(store, budget, tell=said.append).measure([stage])
    assert time.monotonic() - began < budget + 30
    # Too long for what is left, cut off, and not begun: none of them has a line.
    assert ids(tmp_path) == Counter(["1"]) and left == ["2", "hanging", "3"]
    (told,) = said
    assert "hanging: cut off by the budget" in told


def test_the_plan_is_said_before_anything_is_measured(tmp_path):
    assert str(start(tmp_path, 100).communicate()[0]).index("side by side") < 300
    with Store(tmp_path / "new") as store:
        run = run_of(store, 100 + MARGIN)
        long = [case(str(n), estimate=30) for n in range(5)]
        alone = Stage("alone", tuple(long[:2]), setup=5)
        beside = Stage("beside", tuple(long[2:]), lanes=3, setup=5)
        store.append(identity(long[1], HERE) | {"status": "done", "result": {}})
        run = run_of(store, 100 + MARGIN)
        first, second = forecast([alone, beside], run, 100 + MARGIN, spent=20)
    assert (first.done, first.fits, first.later, first.begins, first.ends) == (1, 1, 0, 20, 55)
    assert (second.done, second.fits, second.later, second.ends) == (0, 3, 0, 90)
    (late,) = forecast([Stage("s", tuple(long), setup=5)], run, 100 + MARGIN, spent=0)
    assert (late.done, late.fits, late.later) == (1, 3, 1)


def test_an_error_in_one_of_several_lanes_ends_the_run(tmp_path, monkeypatch):
    def full(self, line):
        raise OSError("no space left")

    with Store(tmp_path) as store:
        monkeypatch.setattr(Store, "append", full)
        with pytest.raises(OSError, match="no space left"):
            run_of(store, 100).measure([stages()[0]])


def test_two_runs_do_not_write_to_one_folder(tmp_path):
    with Store(tmp_path), pytest.raises(BlockingIOError, match="another run writes"):
        Store(tmp_path)
    Store(tmp_path).close()


@pytest.mark.parametrize("change", ["device", "versions", "sources", "id"])
def test_what_was_measured_of_something_else_is_measured_again(change):
    line = identity(case("1"), HERE) | {"status": "done"}
    other = {"device": "a GPU", "versions": {"torch": "1"}, "sources": "other", "id": "2"}
    assert key(line) in finished([line], HERE)
    assert key(line) not in finished([line | {change: other[change]}], HERE)
    # Another commit of the same sources measures the same.
    assert key(line) in finished([line | {"commit": "def"}], HERE)


def test_the_digest_changes_with_what_is_measured(tmp_path):
    for folder in ("kernels", "vrga"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "one.py").write_text("1")
    digest.cache_clear()
    kernels, both = (digest(f, tmp_path) for f in (("kernels",), ("kernels", "vrga")))
    (tmp_path / "vrga" / "one.py").write_text("2")
    digest.cache_clear()
    assert digest(("kernels",), tmp_path) == kernels
    assert digest(("kernels", "vrga"), tmp_path) != both
    digest.cache_clear()


def test_an_id_names_one_case():
    with pytest.raises(ValueError, match="two cases are called '1'"):
        check([Stage("a", (case("1"),)), Stage("b", (case("1"),))])


@pytest.mark.slow
def test_the_proof_on_a_cpu(tmp_path):
    """Everything but the check-up, which has tests of its own, on real models at tiny shapes."""
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "benchmarks.gpu", "--budget", "200", "--output", str(tmp_path)]
    names = ("exact", "bandwidth", "kernel", "eager", "static", "prefill", "memory", "profile",
             "recording")  # fmt: skip
    command += ["--only", *(f"proof/{name}" for name in names)]
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(command, cwd=root, env=env | {"OMP_NUM_THREADS": "1"},
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = read(tmp_path / FILE)
    log = (tmp_path / "log.txt").read_text()
    assert [line["status"] for line in lines] == ["done"] * 10, log
    assert all(line["kind"] == "cpu" and line["device"].startswith("cpu") for line in lines)
    assert "dynamic, 1 steps" in (tmp_path / "profiles.txt").read_text()
    found = {line["group"]: line["result"] for line in lines}
    assert found["kernel"]["contenders"]["ours in torch"]["ratio"]["median"] == 1
    assert set(found["eager"]["ratio_per_token"]) == {"dynamic", "static"}
    assert found["eager"]["ratio_per_token"]["dynamic"]["n"] == 3
    with pytest.raises(ValueError, match="was measured on cpu"):
        gathered([tmp_path])
