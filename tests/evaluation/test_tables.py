"""Tables fit 80 columns without a broken word; a comparison names the samples that turned."""

import io
import json
import re

import pytest
from rich.console import Console

from vrga.analysis import ablate, closer, dispersion, lookback, recovery, rrar, tuning
from vrga.demo.fine.arms import TOLD
from vrga.evaluation import compare as comparing
from vrga.evaluation import tables
from vrga.evaluation.compare import compare, flips
from vrga.evaluation.store import ANSWERED, Store
from vrga.evaluation.wording import Table, percent

CHANGE = {"accuracy": (-0.125, -0.291, 0.041), "p": 0.0078, "rrar": (0.1, 0.05, 0.2)}
SCORE = (0.958, 0.798, 0.993)
SAID = {"trigger_rate": 1.0}


def eval_table():
    arm = {"samples": 1000, "fractions": True, "failed": 12, "score": SCORE, "metrics": {},
           "samples_per_second": 12.34}  # fmt: skip
    change = {"score": CHANGE["accuracy"], "p": 0.0078}
    return tables.rich_table(
        {
            "vrga_grid": {
                "arms": {"base": arm | {"difference": None}, "vrga": arm | {"difference": change}}
            }
        }
    )


def compare_table():
    one = {"pairs": 1000, "score": (0.1, -0.05, 0.25), "p": 0.0078, "gained": 100, "lost": 99}
    return comparing._table({"vrga_hallusionbench base -> vrga": one})


def tuning_table():
    figures = {"accuracy": SCORE, "against_off": CHANGE}
    return tuning._table("tuning: 500 questions", {"gain=3.0 gate=static region_std=2": figures})


def lookback_tables():
    one = {"accuracy": SCORE, "against_off": CHANGE, "stats": SAID, "rrar": SCORE,
           "image_inside": SCORE, "image_outside": SCORE}  # fmt: skip
    return lookback._tables({"direct/back+relocate": one, "back/off": one}, 500)


def recovery_table():
    wrong = {"wrong": {name: SCORE for name in ("color", "letter", "none")}}
    one = {"change": CHANGE["accuracy"], "bound": CHANGE["accuracy"], "hit": SCORE,
           "coverage": 0.25, "verdict": "cannot tell", "outcomes": wrong}  # fmt: skip
    found = {"off": SCORE, "configs": {"sparing, gain 6": one}, "outcomes": wrong}
    return recovery.table(found, "cot", 500)


def ablate_tables():
    one = {"heads": 20.0, "accuracy": SCORE, "against_none": CHANGE["accuracy"]}
    gap = {"below_random": CHANGE["accuracy"], "verdict": "cannot tell"}
    return ablate.tables({"prefill low_focus": one, "prefill visual": one | gap}, 300)


def rrar_tables():
    prompt = {"rrar": SCORE, "right": SCORE, "wrong": SCORE, "right_answers": 999,
              "wrong_answers": 999, "right_minus_wrong": CHANGE["rrar"],
              "verdict": "cannot tell"}  # fmt: skip
    order = {"expected": "direct < guided", "difference": CHANGE["rrar"], "verdict": "not clear"}
    return rrar.tables({"prompts": {"guided": prompt}, "order": [order]}, 1000)


def dispersion_tables():
    one = {"heads": "visual", "figure": "spread", "arm": "off", "first": SCORE, "last": SCORE,
           "last_less_first": CHANGE["accuracy"], "slope": CHANGE["accuracy"],
           "expected": "rises", "verdict": "cannot tell"}  # fmt: skip
    steered = {"heads": "visual", "figure": "spread", "difference": CHANGE["accuracy"]}
    return dispersion.tables({"trends": [one], "steering": [steered]}, 500)


def closer_table():
    arms = {name: SCORE for name in TOLD}
    found = {"questions": 1000, "accuracy": arms, "less_once": arms, "peak": SCORE, "held": SCORE,
             "zooms": SCORE, "visual_tokens": dict.fromkeys(arms, 67.0)}  # fmt: skip
    return closer.table(found, "fine-photos")


ALL = {
    "ablate": ablate_tables(),
    "rrar": rrar_tables(),
    "dispersion": dispersion_tables(),
    "closer": [closer_table()],
    "eval": [eval_table()],
    "compare": [compare_table()],
    "tune": [tuning_table()],
    "lookback": lookback_tables(),
    "recovery": [recovery_table()],
}


@pytest.mark.parametrize("name", ALL)
def test_a_table_fits_80_columns_without_a_broken_word(name):
    for table in ALL[name]:
        console = Console(width=80, file=io.StringIO())
        console.print(table)
        lines = console.file.getvalue().splitlines()
        assert max(map(len, lines)) <= 80
        words = {word for line in lines for word in line.split()}
        told = [str(table.title)]
        for column in table.columns:
            told += [str(column.header), *map(str, column.cells)]
        missing = {word for text in told for word in text.split()} - words
        assert not missing, "\n".join(lines)


def test_an_interval_stands_below_its_figure():
    table = Table("score")
    table.add_row(percent(SCORE))
    assert list(table.columns[0].cells) == ["95.8 % (79.8, 99.3)"]
    console = Console(width=80, file=io.StringIO())
    console.print(table)
    lines = [line.strip() for line in console.file.getvalue().splitlines()]
    assert lines[lines.index("95.8 %") + 1] == "(79.8, 99.3)"


def test_a_table_is_the_same_on_a_page():
    table = Table("samples\n/s", "in <back>", title="told apart")
    table.add_row(percent(SCORE), "a|b")
    assert table.markdown().splitlines() == [
        "| samples/s | in \\<back> |", "| --- | --- |", "| 95.8 % (79.8, 99.3) | a\\|b |"
    ]  # fmt: skip


def answered(key, score, text="answer K red.", error=None):
    return {
        "key": key, "arm": "vrga", "task": "t", "id": key, "prompt": "task", "text": text,
        "tokens": 3, "seconds": 1.0, "steered": True, "region": None, "score": score,
        "error": error, "target": "red",
    }  # fmt: skip


OLD = [answered("a", 0.0), answered("b", 1.0), answered("c", 1.0), answered("only old", 0.0)]
NEW = [
    answered("a", 1.0, "a long chain of thought, then:\n answer K red. \\boxed{red}"),
    answered("b", 0.0, "[bold]blue[/bold]") | {"target": "a long story\n" * 9},
    answered("c", None, None, "out of memory"),
]


def test_flips_are_those_that_the_table_counts():
    found = flips(NEW, OLD)
    change = tables.difference(NEW, OLD)
    assert {kind: len(pairs) for kind, pairs in found.items()} == {
        kind: change[kind] for kind in ("gained", "lost")
    }
    assert [new["id"] for _, new in found["gained"]] == ["a"]
    assert [new["id"] for _, new in found["lost"]] == ["b", "c"]  # a failure counts as wrong


@pytest.mark.parametrize(("most", "shown"), [(10, 2), (1, 1), (0, 0)])
def test_a_comparison_names_the_samples_that_turned(tmp_path, most, shown):
    for name, samples in (("old", OLD), ("new", NEW)):
        store = Store(tmp_path / name, {"command": "eval"}, resume=False, fields=ANSWERED)
        store.add(samples)
        store.close()
    console = Console(width=80, file=io.StringIO())
    found = compare(tmp_path / "old", tmp_path / "new", console, most=most)
    assert found["t vrga"]["ids"] == {"gained": ["a"], "lost": ["b", "c"]}
    assert json.dumps(found)
    said = console.file.getvalue()
    assert "gained in t vrga: 1" in said and "lost in t vrga: 2" in said
    assert max(map(len, said.splitlines())) <= 80
    lost = said.split("lost in")[1]
    assert len(re.findall(r"^  [bc]: ", lost, re.MULTILINE)) == shown
    assert ("more: vrga compare --most 2" in lost) == (shown < 2)
    assert len(lost.splitlines()) == 1 + shown + (shown < 2)  # a line each
    if shown:
        assert "  a: 'answer K red.' -> '..." in said and "(right: red)" in said
        assert "'[bold]blue[/bold]'" in said
    assert ("c: 'answer K red.' -> failed, out of memory" in said) == (shown == 2)
