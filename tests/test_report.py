"""`compare` on crafted runs: what is said to differ, who is said to be best, and how it is written down."""

import csv
import io
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from flowcli import report
from flowcli.errors import UserError
from flowcli.records import RunRecord
from flowcli.tasks import compare

OT = {"_target_": "flowcli.paths.OT", "sigma_min": 1e-4}
VP = {"_target_": "flowcli.paths.VP", "beta_min": 0.1, "beta_max": 20.0}
VE = {"_target_": "flowcli.paths.VE", "sigma_min": 0.01, "sigma_max": 50.0}


def record(
    name: str = "0",
    *,
    metrics: dict[str, Any] | None = None,
    status: str = "done",
    reason: str = "",
    choices: dict[str, str] | None = None,
    **config: Any,
) -> RunRecord:
    return RunRecord(Path("sweep") / name, status, reason, config, choices or {}, metrics or {})


def write_run(folder: Path, config: dict[str, Any], metrics: Any = None, **choices: str) -> Path:
    """A run folder as `flowcli train` leaves it; metrics may be a text that is no JSON."""
    (folder / ".hydra").mkdir(parents=True)
    (folder / "run.json").write_text('{"format": 1, "verb": "train"}')
    (folder / ".hydra" / "resolved.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    (folder / ".hydra" / "choices.yaml").write_text(yaml.safe_dump(choices))
    if metrics is not None:
        (folder / "metrics.json").write_text(metrics if isinstance(metrics, str) else json.dumps(metrics))
    return folder


# ---------------------------------------------------------------- what differs
def test_a_group_choice_is_named_once_without_the_keys_that_come_with_it():
    records = [record(path=OT, seed=0), record(path=VP, seed=0), record(path=VE, seed=0)]
    assert report.differing(records) == ["path"]
    assert [row.settings for row in report.build(records).rows] == [{"path": "OT"}, {"path": "VP"}, {"path": "VE"}]


def test_the_option_s_own_name_is_preferred_to_its_class():
    records = [record(path=OT, choices={"path": "ot"}), record(path=VP, choices={"path": "vp"})]
    assert [row.settings["path"] for row in report.build(records).rows] == ["ot", "vp"]


def test_keys_that_differ_within_one_choice_are_listed():
    records = [record(path=VP), record(path=VP | {"beta_max": 5.0}), record(path=OT)]
    assert report.differing(records) == ["path", "path.beta_max"]
    assert [row.settings["path.beta_max"] for row in report.build(records).rows] == [20.0, 5.0, None]


def test_groups_come_first_and_seeds_last():
    records = [
        record(seed=0, trainer={"lr": 1e-3, "steps": 10}, path=OT, data={"_target_": "a.Toy", "seed": 0}),
        record(seed=1, trainer={"lr": 1e-2, "steps": 10}, path=VP, data={"_target_": "a.Toy", "seed": 1}),
    ]
    assert report.differing(records) == ["path", "trainer.lr", "seed", "data.seed"]


def test_none_and_absent_groups_are_choices():
    assert report.differing([record(path=None), record(path=OT)]) == ["path"]
    assert report.differing([record(seed=0), record(seed=0, path=OT)]) == ["path"]
    table = report.build([record(path=None), record(path=OT)])
    assert [row.settings["path"] for row in table.rows] == ["none", "OT"]


def test_a_key_that_an_older_run_lacks_does_not_differ():
    assert report.differing([record(trainer={"lr": 1.0}), record(trainer={"lr": 1.0, "compile": False})]) == []
    assert report.differing([record(trainer={"lr": 1.0}), record()]) == []


def test_the_same_choice_of_another_class_differs():
    changed = OT | {"_target_": "mine.OT"}
    records = [record(path=OT, choices={"path": "ot"}), record(path=changed, choices={"path": "ot"})]
    assert report.differing(records) == ["path._target_"]


def test_equal_numbers_and_the_run_s_own_folder_do_not_differ():
    records = [
        record(trainer={"steps": 10000}, hydra={"run": {"dir": "a"}}),
        record(trainer={"steps": 1e4}, hydra={"run": {"dir": "b"}}),
    ]
    assert report.differing(records) == []


def test_nested_groups_and_lists():
    mle = {"_target_": "flowcli.objectives.MaximumLikelihood"}
    records = [
        record(objective=mle | {"solver": {"_target_": "s.Euler", "steps": 5}}, data={"columns": ["a", "b"]}),
        record(objective=mle | {"solver": {"_target_": "s.Dopri5", "rtol": 1e-5}}, data={"columns": ["a"]}),
    ]
    assert report.differing(records) == ["objective.solver", "data.columns"]


# ---------------------------------------------------------------- who is best
def best_of(metric: str, *metrics: dict[str, Any], **common: Any) -> list[bool]:
    rows = report.build([record(str(i), metrics=m, **common) for i, m in enumerate(metrics)]).rows
    return [metric in row.best for row in rows]


def test_a_tie_within_the_standard_errors_is_a_tie():
    runs = [{"nll": 2.60, "nll_stderr": 0.02}, {"nll": 2.63, "nll_stderr": 0.02}, {"nll": 2.70, "nll_stderr": 0.02}]
    assert best_of("nll", *runs) == [True, True, False]


def test_without_errors_only_the_lowest_is_best():
    assert best_of("mmd", {"mmd": 0.2}, {"mmd": 0.1}, {"mmd": 0.3}) == [False, True, False]


def test_scores_below_the_floor_are_as_good_as_the_floor():
    runs = [{"w2": 0.50, "w2_floor": 0.6}, {"w2": 0.58, "w2_floor": 0.6}, {"w2": 0.61, "w2_floor": 0.6}]
    assert best_of("w2", *runs) == [True, True, False]


def test_nan_and_missing_scores_do_not_compete():
    assert best_of("nll", {"nll": math.nan}, {"nll": 1.0}, {}, {"nll": None}, {"nll": 2.0}) == [
        False, True, False, False, False,
    ]  # fmt: skip


def test_a_single_run_is_not_best():
    assert best_of("nll", {"nll": 1.0}) == [False]


def test_costs_have_no_best():
    assert best_of("train_seconds", {"train_seconds": 1.0}, {"train_seconds": 2.0}) == [False, False]


def test_only_finished_runs_on_the_same_data_compete():
    rows = report.build(
        [
            record("0", metrics={"nll": 1.0}, data={"_target_": "a.Moons", "standardize": True}),
            record("1", metrics={"nll": 2.0}, data={"_target_": "a.Moons", "standardize": False}),
            record("2", metrics={"nll": 9.0}, data={"_target_": "a.Rings"}),
            record("3", metrics={"nll": 8.0}, data={"_target_": "a.Rings"}),
            record("4", metrics={"nll": 0.0}, data={"_target_": "a.Moons"}, status="unfinished"),
        ]
    ).rows
    assert ["nll" in row.best for row in rows] == [True, False, False, True, False]


# ---------------------------------------------------------------- numbers
@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (2.63182, 0.0042, "2.632 ± 0.004"),
        (2.63182, 0.0123, "2.632 ± 0.012"),
        (2.63182, 0.0351, "2.632 ± 0.035"),
        (2.63182, 0.0972, "2.63 ± 0.10"),
        (0.5, 0.5, "0.5 ± 0.5"),
        (1234.5, 56.7, "1230 ± 60"),
        (-0.0001, 0.02, "-0.000 ± 0.020"),
        (3e-9, 2e-10, "3e-09 ± 2e-10"),
        (1e30, 1e29, "1e+30 ± 1e+29"),
        (2.63182, None, "2.632"),
        (2.63182, math.nan, "2.632"),
        (2.0, 0.0, "2"),
        (134402, None, "134,402"),
        (21345.6, None, "21,346"),
        (0.00012345, None, "0.0001234"),
        (math.nan, None, "nan"),
        (math.inf, 1.0, "inf"),
        (None, None, "–"),
        (True, None, "true"),
        (10**400, None, str(10**400)),
    ],
)
def test_digits_fit_the_error(value, error, text):
    assert report.format_value(value, error) == text


def test_numbers_without_errors_share_their_decimals():
    values = [0.00072061, 0.0012084, None, 0.0011]
    table = report.build([record(str(i), metrics={"mmd": v}) for i, v in enumerate(values)])
    assert report._cells(table, "mmd") == ["0.000721", "0.001208", "–", "0.001100"]


# ---------------------------------------------------------------- the table as text
METRICS = {
    "nll": 2.6318, "nll_stderr": 0.0112, "nll_floor": 2.6132, "nll_gap": 0.0186, "nll_gap_stderr": 0.0023,
    "w2": 0.55, "w2_stderr": 0.012, "w2_floor": 0.5012, "mmd": 7e-4, "mmd_floor": 1e-4, "energy_distance": 2e-3,
    "energy_distance_floor": 1.5e-3, "nfe_sample": 104.2, "parameters": 134402, "train_seconds": 21.56, "step": 3000,
}  # fmt: skip


def sweep(count: int, prefix: str = "") -> list[RunRecord]:
    return [
        record(f"{prefix}{i}", path=(OT, VP, VE)[i % 3], seed=i, metrics=METRICS | {"nll": 2.6 + 0.05 * i})
        for i in range(count)
    ]


@pytest.mark.parametrize("count", [1, 2, 3, 6, 30])
@pytest.mark.parametrize("prefix", ["", "2026-01-31_12-00-00-12345"])
@pytest.mark.parametrize("width", [80, 120, 200])
def test_text_fits_its_width_and_cuts_nothing(count, prefix, width):
    text = report.to_text(report.build(sweep(count, prefix)), width)
    lines = text.split("\n")
    assert max(map(len, lines)) <= width
    assert "…" not in text and "\x1b" not in text
    for value in ("0.0186 ± 0.0023", "134,402", "0.5012", "3,000", "104.2"):
        assert value in text
    for i in range(count):
        assert f"{prefix}{i}" in text
    assert text.endswith("\n") and not any(line.endswith(" ") for line in lines)


def test_a_wide_terminal_has_one_row_a_run():
    lines = report.to_text(report.build(sweep(6)), 200).split("\n")
    start = next(i for i, line in enumerate(lines) if line.startswith("──"))
    assert [line.split()[0] for line in lines[start + 1 : start + 7]] == ["0", "1", "2", "3", "4", "5"]
    assert lines[start + 1].split()[1:6] == ["OT", "0", "2.600", "±", "0.011*"]


def test_few_runs_on_a_narrow_terminal_stand_side_by_side():
    lines = report.to_text(report.build(sweep(3)), 80).split("\n")
    assert lines[0].split() == ["run", "0", "1", "2"]
    assert next(line for line in lines if line.startswith("w2_floor")).split() == ["w2_floor"] + ["0.5012"] * 3


def test_bold_only_where_colour_is_wanted():
    table = report.build(sweep(6))
    assert "\x1b[1m2.600 ± 0.011*" in report.to_text(table, 200, colour=True)
    assert "\x1b" not in report.to_text(table, 200)


def test_floors_that_differ_have_their_own_column():
    runs = [record(str(i), metrics={"w2": 0.6, "w2_floor": 0.5 + i / 10}) for i in range(2)]
    table = report.build(runs)
    assert [column.title for column in report._metric_columns(table, "w2")] == ["w2", "w2_floor"]
    lines = [line.split() for line in report.to_text(table, 80).split("\n")]
    assert ["0", "0.6*", "0.5"] in lines and ["1", "0.6*", "0.6"] in lines


def test_every_unfinished_run_has_its_reason():
    runs = [
        record("0", metrics=METRICS),
        record("1", status="failed", reason="underflow in dt at t=0.98: " + "raise solver.rtol " * 10),
        record("2", status="broken", reason="run.json is damaged"),
    ]
    text = report.to_text(report.build(runs), 80)
    assert "1  failed: underflow in dt at t=0.98" in text and "2  broken: run.json is damaged" in text
    assert max(map(len, text.split("\n"))) <= 80


def test_text_from_a_stranger_s_run_cannot_steer_the_terminal():
    hostile = "\x1b[2J\x07[bold red]x[/]"
    runs = [
        record("0", path=hostile, metrics={"nll": hostile}),
        record("1", path="ot", status="failed", reason=hostile, metrics={hostile: 1}),
    ]
    text = report.to_text(report.build(runs), 80)
    assert "\x1b" not in text and "\x07" not in text
    assert "[bold red]x[/]" in text  # shown as written, not taken for markup


def test_nothing_but_failed_runs_still_makes_a_table():
    text = report.to_text(report.build([record("0", status="failed", reason="no"), record("1", status="broken")]), 80)
    assert "failed" in text and "broken" in text


def test_letters_of_double_width_are_not_cut():
    runs = [record(str(i), note="流" * 20 + str(i), metrics=METRICS) for i in range(6)]
    assert "…" not in report.to_text(report.build(runs), 80)


# ---------------------------------------------------------------- CSV and JSON
def test_csv_and_json_hold_every_metric_in_full_precision():
    runs = [
        record("a, b", seed=0, metrics={"nll": 1 / 3, "odd": "x"}),
        record("1", seed=1, metrics={"nll": math.nan, "w2": 2}),
    ]
    table = report.build(runs)
    rows = list(csv.DictReader(io.StringIO(report.to_csv(table))))
    assert rows[0]["run"] == "sweep/a, b" and float(rows[0]["nll"]) == 1 / 3 and rows[0]["w2"] == ""
    assert rows[1] == {
        "run": "sweep/1",
        "status": "done",
        "reason": "",
        "seed": "1",
        "nll": "nan",
        "w2": "2",
        "odd": "",
    }
    first, second = json.loads(report.to_json(table))["runs"]
    assert first["metrics"] == {"nll": 1 / 3, "w2": None, "odd": "x"} and first["settings"] == {"seed": 0}
    assert second["metrics"] == {"nll": None, "w2": 2, "odd": None}


# ---------------------------------------------------------------- asking for a metric
def test_sort_puts_what_has_no_number_last():
    runs = [record(str(i), seed=i, metrics={"nll": v}) for i, v in enumerate([3.0, math.nan, 1.0, None, 2.0])]
    assert [row.name for row in report.build(runs, sort="nll").rows] == ["2", "4", "0", "1", "3"]
    assert [row.name for row in report.build(runs, sort="seed").rows] == ["0", "1", "2", "3", "4"]
    table = report.build(runs[:1] + runs[2:3], sort="nll")
    assert [("nll" in row.best) for row in table.rows] == [True, False]


@pytest.mark.parametrize("flag", ["sort", "metrics"])
def test_an_unknown_metric_is_refused_with_the_legal_ones(flag):
    asked: Any = "nl_gap" if flag == "sort" else ["nll", "nl_gap"]
    with pytest.raises(UserError, match=rf"^--{flag} nl_gap: .*did you mean nll_gap\?.*nll, nll_gap"):
        report.build([record(metrics={"nll": 1.0, "nll_gap": 2.0})], **{flag: asked})


def test_chosen_metrics_are_shown_in_their_order():
    table = report.build(sweep(3), metrics=["step", "nll"])
    assert table.shown == ("step", "nll")
    assert "parameters" not in report.to_text(table, 80)


# ---------------------------------------------------------------- the task on run folders
def test_compare_reads_good_broken_and_foreign_folders(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "sweep"
    write_run(root / "0", {"path": OT, "seed": 0}, METRICS, path="ot")
    write_run(root / "1", {"path": VP, "seed": 0}, METRICS | {"nll": math.nan}, path="vp")
    write_run(root / "2", {"path": VE, "seed": 0}, "{ no json", path="ve")
    write_run(root / "3", {"path": VE, "seed": 0}, None, path="ve")
    write_run(root / "4", {"path": VE, "seed": 0}, {"nll": [1, 2]}, path="ve")
    (write_run(root / "5", {}, None) / "run.json").write_text("?")
    (write_run(root / "6", {"path": OT}, None, path="ot") / "failure.json").write_text('{"reason": "no such luck"}')
    (root / "somebody_else").mkdir()
    (root / "somebody_else" / "metrics.json").write_text("[]")
    compare.run([Path("sweep")], sort=None, format="text", metrics=None)
    text = capsys.readouterr().out
    assert "\x1b" not in text and "somebody_else" not in text
    for words in ("2  broken: metrics.json is damaged", "3  unfinished:", "5  broken:", "6  failed: no such luck"):
        assert words in text
    compare.run([Path("sweep")], sort="nll", format="json", metrics=None)
    content = json.loads(capsys.readouterr().out)
    statuses = {run["run"]: run["status"] for run in content["runs"]}
    assert statuses == {f"sweep/{i}": s for i, s in enumerate(
        ["done", "done", "broken", "unfinished", "done", "broken", "failed"]
    )}  # fmt: skip
    assert content["runs"][0]["run"] == "sweep/0" and content["differing"][0] == "path"
    compare.run([Path("sweep")], sort=None, format="csv", metrics=None)
    assert len(list(csv.reader(io.StringIO(capsys.readouterr().out)))) == 8


@pytest.mark.parametrize("name", ["missing", "empty"])
def test_compare_refuses_paths_without_runs(tmp_path, name, capsys):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=name):
        compare.run([tmp_path / name], sort=None, format="text", metrics=None)
    assert capsys.readouterr().out == ""


def test_compare_refuses_an_unknown_format(tmp_path):
    with pytest.raises(UserError, match="--format must be one of text, csv, json"):
        compare.run([tmp_path], sort=None, format="html", metrics=None)


def test_compare_needs_neither_torch_nor_hydra_nor_matplotlib(tmp_path):
    for i in range(6):
        write_run(tmp_path / str(i), {"path": OT, "seed": i}, METRICS, path="ot")
    code = f"""
import sys
from pathlib import Path
from flowcli.tasks.compare import run
run([Path({str(tmp_path)!r})], sort=None, format="text", metrics=None)
heavy = {{"torch", "hydra", "omegaconf", "matplotlib", "numpy"}} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr
