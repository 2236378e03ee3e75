"""Lines of GPUs become tables: each row of its commit, nothing of a CPU among them."""

import json

import pytest

from benchmarks import table
from benchmarks.gpu import foreseen, merge, tables
from benchmarks.gpu.case import KERNELS, digest
from benchmarks.gpu.store import FILE
from benchmarks.gpu.targets import TARGETS, fastest

VERSIONS = {"python": "3.12", "torch": "2.11", "triton": "3.6", "transformers": "5.17"}


def line(name, group, result=None, **more):
    """A line of a GPU."""
    found = {"id": name, "group": group, "kind": "cuda", "device": "NVIDIA H200", "at": "1",
             "versions": VERSIONS, "commit": "abc", "sources": "s", "seconds": 1.0}  # fmt: skip
    ended = {"status": "done", "result": result} if result is not None else {}
    return found | ended | more


def spread(value):
    return {"median": value, "low": value, "high": value, "n": 3}


def timed(micro, kv, ratio=1.0):
    return {"seconds": spread(micro * 1e-6), "burst_seconds": spread(micro * 1e-6),
            "host_seconds": spread(8e-6), "ratio": spread(ratio),
            "bytes_per_second": kv / (micro * 1e-6)}  # fmt: skip


def shape(name, kv, ours, static, off, flash, **more):
    contenders = {
        "ours": timed(ours, kv), "ours, static gate": timed(static, kv),
        "ours, flags off": timed(off, kv), "sdpa": timed(50, kv),
        "sdpa flash": timed(flash, kv), "sdpa cudnn": {"unsupported": "no kernel"},
        "sdpa + bias": timed(60, kv),
    }  # fmt: skip
    result = {"kv_bytes": kv, "contenders": contenders, "static_over_off": spread(static / off)}
    return line(f"kernel/{name}", "kernel", result, **more)


COPY = line("kernel/bandwidth", "bandwidth", {"bytes_per_second": {"copy": spread(4e12)}})
LARGE = shape("7b B16 S4096", 134217728, 40, 41, 40, 42)
SMALL = shape("7b B1 S4096", 8388608, 12, 12, 12, 10, commit="def")


@pytest.fixture
def folder(tmp_path):
    """Write lines to a folder of this name."""

    def write(name, *lines):
        (tmp_path / name).mkdir(exist_ok=True)
        text = "".join(json.dumps(one) + "\n" for one in lines)
        (tmp_path / name / FILE).write_text(text)
        return tmp_path / name

    return write


def test_a_shape_is_set_beside_the_fastest_pinned_the_copy_and_the_prediction(folder):
    text = tables.text(folder("a", COPY, LARGE, SMALL))
    assert "**NVIDIA H200**, python 3.12, torch 2.11, triton 3.6, transformers 5.17." in text
    assert "Copy bandwidth: 4.00 TB/s (commit abc)." in text
    cells = next(row for row in text.splitlines() if row.startswith("| 7b B16")).split(" | ")
    assert cells[1:5] == ["134", "40.0", "41.0", "40.0"] and 30 < float(cells[5]) < 40
    assert cells[6:] == ["flash: 42.0", "0.95", "50.0", "60.0", "8.0", "84%", "abc |"]
    assert any(row.startswith("| 7b B1 S4096") and row.endswith("| def |")
               for row in text.splitlines())  # fmt: skip


def test_targets_name_the_worst_figure_and_its_case(folder):
    ratios = {"ratio_per_token": {"dynamic": spread(1.02), "static": spread(0.99)},
              "seconds_per_token": {"unpatched": spread(0.02)}, "keys": 1069}  # fmt: skip
    eager = line("eager/7b", "eager", ratios)
    lazy = line("static/7b", "static", ratios | {"compiled": False})  # says nothing of compiled
    text = tables.text(folder("a", COPY, LARGE, SMALL, eager, lazy))
    rows = [row for row in text.splitlines() if row.startswith("| ")]
    assert "0.80 at least | 1 of 1 | 0.839 | kernel/7b B16 S4096 |" in rows[2]
    assert "better 10 | 1 of 1 | 12 µs | kernel/7b B1 S4096 |" in rows[3]
    assert "1.05 at most | 1 of 2 | 1.2 | kernel/7b B1 S4096 |" in rows[4]
    assert "1.01 at most | 1 of 2 | 1.02 | kernel/7b B16 S4096 |" in rows[5]
    assert "1.00 at most | 1 of 2 | 1.02 | eager/7b, dynamic gate |" in rows[6]
    assert "0.95 at most | not measured" in rows[7]


def test_every_group_has_its_table(folder):
    per_token = {arm: spread(0.98) for arm in ("dynamic", "static")}
    seconds = {"unpatched": spread(0.02)}
    profile = dict(device_microseconds=900.0, host_microseconds=15000.0, launches=400.0,
                   kernels=[["gemm", 300.0, 28.0]])  # fmt: skip
    check = dict(name="a check", status="fails", figure=None, why="it differs", seconds=1)
    text = tables.text(folder(
        "a", COPY, LARGE,
        line("exact/1", "exactness", {"error": 1e-3, "allowed": 1e-2, "torch": 0, "compared": 9}),
        line("exact/2", "exactness", status="failed", error="Mismatch: off by 1|2"),
        line("doctor", "doctor", {"ok": False, "checks": [check]}),
        line("eager/7b", "eager", {"keys": 9, "ratio_per_token": per_token,
                                   "seconds_per_token": seconds}),
        line("static/7b", "static", {"keys": 9, "ratio_per_token": per_token, "compiled": True,
                                     "seconds_per_token": seconds}),
        line("prefill/7b", "prefill", {"keys": 9, "ratio_first_token": per_token,
                                       "seconds_to_first_token": seconds}),
        line("memory/7b", "memory", {"keys": 9, "bytes": {"unpatched": 10**10,
                                                          "dynamic": 10**10 + 10**6}}),
        line("recording/7b", "recording", {"ratio_per_token": {"steered, recorded": spread(1.03)}}),
        line("profile/7b", "profile", profile),
        line("counters/7b B1 S4096", "counters", {"counters": {
            "decode_kernel": {"launch__grid_size": "129", "other": "5 %"}, "merge_kernel": {
                "launch__grid_size": "28"}}}),
        line("tests/kernels", "tests", {"said": "90 passed"}),
        line("kernel/7b B1 S1 flex", "kernel", {"kv_bytes": 1, "contenders": {
            "ours": timed(1, 1), "flex attention": timed(3, 1, 3.0)}}),
        line("eager/3b", "eager", status="timeout", error="no result in 60 s"),
    ))  # fmt: skip
    for wanted in (
        "1 of 2 cases are exact (commit abc). Nearest to its bound is `exact/1`: off by 1.0e-03",
        "| exact/2 | failed | Mismatch: off by 1\\|2 | abc |",
        "| a check | fails | it differs | abc |",
        "| eager/7b | 9 | static |  | 20.00 | 0.980 (0.980 to 0.980) | abc |",
        "| static/7b | 9 | dynamic | yes | 20.00 |",
        "| prefill/7b | 9 | dynamic |  | 20.00 |",
        "| memory/7b | 9 | dynamic | 10.00 | +1.0 | abc |",
        "| recording/7b | steered, recorded | 1.030 (1.030 to 1.030) | abc |",
        "| profile/7b | 900 | 15000 | 400 | `gemm` 300 | abc |",
        "| counters/7b B1 S4096 | decode_kernel | launch__grid_size | 129 | "
        f"{foreseen.foreseen('7b B1 S4096')['programs']} | abc |",
        "| counters/7b B1 S4096 | decode_kernel | other | 5 % |  | abc |",
        "| counters/7b B1 S4096 | merge_kernel | launch__grid_size | 28 |  | abc |",
        "| tests/kernels | 90 passed | abc |",
        "| 7b B1 S1 flex | flex attention | 3.0 | 3.000 (3.000 to 3.000) | abc |",
        "| eager/3b | timeout | no result in 60 s | abc |",
    ):
        assert wanted in text, wanted


def test_a_line_of_a_cpu_is_refused_and_nothing_is_written(folder, tmp_path):
    cpu = line("proof/kernel", "kernel", {}, kind="cpu", device="cpu: AMD")
    with pytest.raises(ValueError, match="line 2 .proof/kernel. was measured on cpu: AMD"):
        merge.merge([folder("a", COPY, cpu)], tmp_path / "kept")
    assert not (tmp_path / "kept").exists()


def test_devices_and_versions_do_not_stand_in_one_table(folder):
    other = line("kernel/bandwidth", "bandwidth", {"bytes_per_second": {"copy": spread(3e12)}},
                 device="NVIDIA H100")  # fmt: skip
    newer = other | {"versions": VERSIONS | {"torch": "2.12"}}
    text = tables.text(folder("a", COPY, LARGE, other, newer))
    assert [row[:15] for row in text.splitlines() if row.startswith("**")] == [
        "**NVIDIA H200**", "**NVIDIA H100**", "**NVIDIA H100**"
    ]  # fmt: skip
    # Shares are of the copy bandwidth of the same device.
    assert "84%" in text


def test_the_newest_line_of_a_case_counts_and_says_its_commit(folder):
    mended = shape("7b B16 S4096", 134217728, 35, 35, 35, 42, at="2", commit="mended",
                   sources="new")  # fmt: skip
    for order in ((LARGE, mended), (mended, LARGE)):
        text = tables.text(folder("a", COPY, *order))
        assert "| 35.0 | 35.0 |" in text and "| 40.0 |" not in text
        assert "| mended |" in text


def test_merging_adds_what_is_new_and_renews_the_pages(folder, tmp_path, monkeypatch):
    renewed = []
    monkeypatch.setattr(table, "renew", lambda: renewed.append(1) or [])
    kept = tmp_path / "kept"
    unnamed = SMALL | {"commit": "sources 123", "sources": digest(KERNELS)}
    foreign = shape("7b B1 S1024", 2**21, 5, 5, 5, 5, commit="sources 456")
    first = folder("a", COPY, LARGE)
    (first / "profiles.txt").write_text("a profile")
    merge.merge([first], kept, tmp_path)
    # The second call's folder began as a copy of the first's.
    merge.merge([folder("b", COPY, LARGE, unnamed, foreign)], kept, tmp_path)
    lines = [json.loads(one) for one in (kept / FILE).read_text().splitlines()]
    assert [one["id"] for one in lines] == [
        COPY["id"], LARGE["id"], unnamed["id"], foreign["id"]
    ]  # fmt: skip
    # The sources of one are those here, so its commit is known; the other's are not.
    assert not lines[2]["commit"].startswith("sources") and lines[3]["commit"] == "sources 456"
    assert (kept / "profiles.txt").read_text() == "a profile"
    assert (tmp_path / "gpu-nvidia-h200.png").stat().st_size > 1000
    shown = f"({tmp_path.name}/gpu-nvidia-h200.png)"
    assert shown in tables.text(kept, tmp_path) and shown not in tables.text(kept, kept)
    assert renewed == [1, 1]


def test_without_lines_the_page_says_so(tmp_path):
    text = tables.text(tmp_path)
    assert text.startswith("Nothing yet")
    assert text.count("| not measured |") == len(TARGETS)


def test_what_did_not_run_is_not_the_fastest():
    assert fastest({"sdpa flash": {"unsupported": "no"}}) == ("", None)
    found = {"sdpa flash": timed(2, 1), "sdpa cudnn": timed(1, 1), "sdpa": timed(0.5, 1)}
    assert fastest(found)[0] == "sdpa cudnn"
