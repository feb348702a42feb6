"""`compare` on crafted figures: what differs, what is a row, who stands where, and how it is said."""

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flowcli.comparison import exports, present, text, view
from flowcli.comparison.catalogue import cost, costs
from flowcli.comparison.differences import differing
from flowcli.comparison.standings import Standings, known
from flowcli.comparison.variants import Scored, filtered, grouped, one_row, without_repeats
from flowcli.comparison.words import verdict
from flowcli.errors import UserError
from flowcli.numbers import format_value, signed
from flowcli.records import RunRecord
from flowcli.scores import Scores

OT = {"_target_": "flowcli.paths.OT", "sigma_min": 1e-4}
VP = {"_target_": "flowcli.paths.VP", "beta_min": 0.1, "beta_max": 20.0}
VE = {"_target_": "flowcli.paths.VE", "sigma_min": 0.01, "sigma_max": 50.0}
PATHS = {"ot": OT, "vp": VP, "ve": VE}
POINTS, DRAWS = 400, 20
SOURCE = np.random.default_rng(0)
TRUTH = 2.6 + SOURCE.normal(size=POINTS)
FLOOR = 0.7 + 0.05 * SOURCE.normal(size=DRAWS)


def record(name: str = "0", *, choices: dict[str, str] | None = None, **config: Any) -> RunRecord:
    return RunRecord(Path("sweep") / name, "done", "", config, choices or {}, {"train_seconds": 10.0, "step": 100})


def scored(
    name: str,
    gap: float,
    *,
    seed: int = 0,
    excess: float = 0.0,
    points: str = "a",
    units: dict[str, Any] | None = None,
    **config: Any,
) -> Scored:
    """A run that is `gap` nats above the truth on the same points, and `excess` above the floor in its samples."""
    own = np.random.default_rng(abs(hash_of(name, seed)))
    found = {
        "log_prob": -(TRUTH + gap + 0.05 * own.normal(size=POINTS)),
        "true_log_prob": -TRUTH,
        "w2": FLOOR + excess + 0.05 * own.normal(size=DRAWS),
        "w2_floor": FLOOR,
    }
    metrics = {
        "nll": 1.0,
        "nll_solver_error": 1e-6,
        "nll_solver_error_stderr": 1e-6,
        "parameters": 10,
        "nfe_sample": 50 + seed,
    }
    objective = {"_target_": "flowcli.objectives.FlowMatching", "weighting": "unit"}
    config = {"data": {"_target_": "flowcli.data.toys.Ring"}, "objective": objective, "seed": seed} | config
    choices = {"data": "ring", **({"path": option_of(config["path"])} if config.get("path") else {})}
    return Scored(record(name, choices=choices, **config), Scores(metrics, found if units is None else units, points))


def option_of(path: dict[str, Any]) -> str:
    return next((key for key, node in PATHS.items() if node == path), "custom")


def hash_of(name: str, seed: int) -> int:
    return sum(ord(letter) * (index + 1) for index, letter in enumerate(name)) * 1000 + seed


def sweep(gaps: dict[str, float], seeds: Sequence[int] = (0, 1, 2), **options: Any) -> list[Scored]:
    return [
        scored(f"{path}{seed}", gap, seed=seed, path=PATHS[path], **options)
        for path, gap in gaps.items()
        for seed in seeds
    ]


def standings(runs: Sequence[Scored], by: Sequence[str] | None = None, baseline: str | None = None) -> Standings:
    (group,) = grouped(runs, by)
    return Standings(group, None if baseline is None else one_row(group, baseline))


# ---------------------------------------------------------------- what differs
def test_a_group_choice_is_named_once_without_the_keys_that_come_with_it():
    assert differing([record(path=OT, seed=0), record(path=VP, seed=0), record(path=VE, seed=0)]) == ["path"]


def test_keys_that_differ_within_one_choice_are_listed():
    assert differing([record(path=VP), record(path=VP | {"beta_max": 5.0}), record(path=OT)]) == [
        "path",
        "path.beta_max",
    ]


def test_groups_come_first_and_seeds_last():
    records = [
        record(seed=0, trainer={"lr": 1e-3, "steps": 10}, path=OT, data={"_target_": "a.Toy", "seed": 0}),
        record(seed=1, trainer={"lr": 1e-2, "steps": 10}, path=VP, data={"_target_": "a.Toy", "seed": 1}),
    ]
    assert differing(records) == ["path", "trainer.lr", "seed", "data.seed"]


def test_none_and_absent_groups_are_choices():
    assert differing([record(path=None), record(path=OT)]) == ["path"]
    assert differing([record(seed=0), record(seed=0, path=OT)]) == ["path"]


def test_a_key_that_an_older_run_lacks_does_not_differ():
    assert differing([record(trainer={"lr": 1.0}), record(trainer={"lr": 1.0, "compile": False})]) == []
    assert differing([record(trainer={"lr": 1.0}), record()]) == []


def test_the_same_choice_of_another_class_differs():
    changed = OT | {"_target_": "mine.OT"}
    records = [record(path=OT, choices={"path": "ot"}), record(path=changed, choices={"path": "ot"})]
    assert differing(records) == ["path._target_"]


def test_equal_numbers_do_not_differ_nor_what_says_where_and_how_a_run_was_made():
    records = [
        record(trainer={"steps": n}, hydra={"a": n}, logger={"b": n}, evaluation={"draws": n}, device=str(n))
        for n in (10000, 1e4)
    ]
    records.append(record(trainer={"steps": 10000}, hydra={"a": 1}, logger=None, evaluation={"draws": 3}, device="cpu"))
    assert differing(records) == []


def test_nested_groups_and_lists():
    mle = {"_target_": "flowcli.objectives.MaximumLikelihood"}
    records = [
        record(objective=mle | {"solver": {"_target_": "s.Euler", "steps": 5}}, data={"columns": ["a", "b"]}),
        record(objective=mle | {"solver": {"_target_": "s.Dopri5", "rtol": 1e-5}}, data={"columns": ["a"]}),
    ]
    assert differing(records) == ["objective.solver", "data.columns"]


# ---------------------------------------------------------------- rows
def test_runs_that_differ_in_the_seed_alone_are_one_row():
    (group,) = grouped(sweep({"ot": 0.0, "vp": 0.1}, seeds=(2, 0, 1)), None)
    assert [variant.label for variant in group.variants] == ["path=ot", "path=vp"]
    assert [variant.seeds for variant in group.variants] == [(0, 1, 2)] * 2
    assert group.title == "data=ring" and group.keys == ("path",) and not group.seeds_alone


def test_other_test_points_are_another_group_named_by_what_differs():
    runs = [scored(name, 0.0, points=name, data={"_target_": "a.Ring", "seed": int(name)}) for name in "12"]
    assert [group.title for group in grouped(runs, None)] == ["data=ring data.seed=1", "data=ring data.seed=2"]


def test_a_row_is_called_by_no_more_than_it_takes():
    """A model brings its objective and its network along."""
    runs = [
        scored(str(n), 0.0, path=path, model={"_target_": model}, network=network, trainer={"lr": lr})
        for n, (path, model, network, lr) in enumerate(
            [(OT, "a.CNF", {"_target_": "b.MLP"}, 1), (None, "a.NVP", None, 1), (None, "a.MAF", None, 2)]
        )
    ]
    (group,) = grouped(runs, None)
    assert group.keys == ("model",) and set(group.implied) == {"path", "network", "trainer.lr"}
    assert [variant.label for variant in group.variants] == ["model=CNF", "model=NVP", "model=MAF"]


def test_by_averages_over_the_rest_and_says_so():
    runs = sweep({"ot": 0.0, "vp": 0.1}, trainer={"lr": 1.0}) + sweep({"ot": 0.0, "vp": 0.1}, trainer={"lr": 2.0})
    found = standings(runs, by=["path"])
    assert [len(variant.runs) for variant in found.group.variants] == [6, 6]
    assert found.group.averaged == ("trainer.lr",)
    section, _ = present.section(found, metrics=None, sort=None)
    assert any("averages over trainer.lr" in remark for remark in section.remarks)
    with pytest.raises(UserError, match="--by pth: .*did you mean path"):
        grouped(runs, ["pth"])


def test_filters_take_values_as_they_are_shown_and_numbers_as_numbers():
    records = [run.record for run in sweep({"ot": 0.0, "vp": 0.1, "ve": 0.2}, trainer={"lr": 1e-3})]
    assert len(filtered(records, ["path=ot,vp"])) == 6
    assert len(filtered(records, ["path=ot", "seed=1", "trainer.lr=0.001"])) == 1
    for told, words in (
        ("path=cosine", "ot"),
        ("pth=ot", "did you mean path"),
        ("path", "key=value"),
        ("=1", "key=value"),
    ):
        with pytest.raises(UserError, match=words):
            filtered(records, [told])


def test_a_baseline_is_exactly_one_row():
    (group,) = grouped(sweep({"ot": 0.0, "vp": 0.1}), None)
    assert one_row(group, "path=vp") == 1
    for told, words in (("path=ve", "no row has it"), ("data=ring", "2 rows have it"), ("path", "key=value")):
        with pytest.raises(UserError, match=words):
            one_row(group, told)


def test_the_same_run_again_is_no_seed_of_its_own():
    runs = [*sweep({"ot": 0.0}, seeds=(0, 1)), *sweep({"ot": 0.0}, seeds=(1, 2))]
    kept, again = without_repeats(runs)
    assert [run.record.config["seed"] for run in kept] == [0, 1, 2] and len(again) == 1


def test_names_that_would_be_alike_are_written_out():
    runs = [scored(name, 0.3 * n, path=OT, source=f"{name}{'x' * 40}") for n, name in enumerate("ab")]
    (group,) = grouped(runs, None)
    assert [variant.label[:8] for variant in group.variants] == ["source=a", "source=b"]


def test_by_hides_nothing_that_differs_besides():
    one = {"model": {"precondition": "auto"}}
    runs = sweep({"ot": 0.0}, trainer={"lr": 1}, **one) + sweep({"vp": 0.1}, trainer={"lr": 2}, **one)
    found = standings(runs, by=["path"])
    assert found.group.implied == ("trainer.lr",)
    section, _ = present.section(found, metrics=None, sort=None)
    assert any("trainer.lr" in remark for remark in section.remarks)
    assert not any("one and the same network" in line for line in section.verdict)


# ---------------------------------------------------------------- who stands where
def marks(found: Standings, name: str) -> dict[str, str]:
    return {v.label: s.verdict for v, s in zip(found.group.variants, found[name].scores, strict=True)}


def test_equal_models_tie_and_a_worse_one_is_worse():
    found = standings(sweep({"ot": 0.01, "vp": 0.01, "ve": 0.2}))
    assert (
        sorted(marks(found, "nll").values()) == ["reference", "tie", "worse"]
        and marks(found, "nll")["path=ve"] == "worse"
    )
    assert marks(found, "nll") == marks(found, "nll_gap")
    worse = found["nll"].scores[2].difference
    assert worse is not None and worse.low < 0.19 < worse.high and worse.low > 0
    assert found["nll"].floor is not None and found["nll"].floor.mean == pytest.approx(TRUTH.mean())


def test_of_many_ties_the_table_tells():
    runs = [run for n in range(8) for run in sweep({"ot": 0.01 + 0.2 * (n == 7)}, trainer={"lr": 1.0 + n})]
    lines = verdict(standings(runs))
    assert "and 5 more rows tie for the lowest NLL" in lines[0] and not any(" ties (" in line for line in lines)
    assert [line.split()[0] for line in lines if " is worse by " in line] == ["trainer.lr=8"]


def test_against_a_baseline_rows_may_be_better():
    found = standings(sweep({"ot": 0.2, "vp": 0.01}), baseline="path=ot")
    assert marks(found, "nll") == {"path=ot": "reference", "path=vp": "better"}
    assert any("better by" in line for line in verdict(found))


def test_two_that_score_as_true_samples_do_tie_whatever_the_luck():
    runs = sweep({"ot": 0.0}, excess=-0.05) + sweep({"vp": 0.0}, excess=0.0)
    found = standings(runs)
    assert all(score.at_floor for score in found["w2"].scores)
    assert set(marks(found, "w2").values()) == {"reference", "tie"}
    assert any("no row can be told from true samples" in line for line in verdict(found))
    worse = standings(sweep({"ot": 0.0}) + sweep({"vp": 0.0}, excess=0.5))
    assert marks(worse, "w2")["path=vp"] == "worse" and not worse["w2"].scores[1].at_floor


def test_one_seed_says_that_it_covers_test_points_alone():
    lines = verdict(standings(sweep({"ot": 0.0, "vp": 0.1}, seeds=(0,))))
    assert any("test points alone" in line for line in lines)
    assert not any("test points alone" in line for line in verdict(standings(sweep({"ot": 0.0, "vp": 0.1}))))


def test_where_nothing_is_trained_no_seed_is_missed():
    lines = verdict(standings(sweep({"ot": 0.0, "vp": 0.1}, seeds=(0,), objective=None)))
    assert any("nothing is trained" in line for line in lines) and not any(
        "test points alone" in line for line in lines
    )


def test_rows_that_are_one_model_under_several_seeds_tie_by_what_they_are():
    found = standings([scored(f"s{seed}", 0.1 * seed, seed=seed) for seed in range(3)], by=["seed"])
    assert set(marks(found, "nll").values()) == {"reference", "tie"}
    assert "one model under 3 seeds" in verdict(found)[0]


def test_a_row_without_likelihood_is_compared_by_its_samples():
    runs = sweep({"ot": 0.0})
    without = [
        replace(run, scores=Scores({"nll_missing": "an SDE"}, {"w2": FLOOR, "w2_floor": FLOOR}, "a"))
        for run in sweep({"vp": 0})
    ]
    found = standings(runs + without)
    assert marks(found, "nll") == {"path=ot": "", "path=vp": ""} and marks(found, "w2")["path=vp"] in (
        "reference",
        "tie",
    )
    assert any("path=vp has no likelihood: an SDE" in line for line in verdict(found))


def test_one_odd_run_does_not_silence_the_others():
    runs = sweep({"ot": 0.0, "vp": 0.1})
    runs[0].scores.units["log_prob"] = np.zeros(POINTS + 1)
    runs[0].scores.units["true_log_prob"] = np.zeros(POINTS + 1)
    found = standings([*runs, *sweep({"ve": 0.2})])
    assert marks(found, "nll") == {"path=ot": "", "path=vp": "reference", "path=ve": "worse"}


def test_where_the_truth_is_rows_alone_nobody_is_called_perfect():
    runs = sweep({"ot": 0.0}) + sweep({"vp": 0.0}, excess=0.5)
    for run in runs:
        del run.scores.units["true_log_prob"]
    found = standings(runs)
    assert not any(score.at_floor for score in found["w2"].scores)
    assert any("known by its rows alone" in line for line in verdict(found))


def test_an_infinite_likelihood_is_worse_without_bound():
    runs = sweep({"ot": 0.0, "vp": 0.0})
    for run in runs[3:]:
        run.scores.units["log_prob"][0] = -math.inf
    found = standings(runs)
    assert marks(found, "nll") == {"path=ot": "reference", "path=vp": "worse"}
    assert any("without bound: it gives" in line for line in verdict(found))
    better = standings(runs, baseline="path=vp")
    assert any("better without bound: the row of reference gives" in line for line in verdict(better))


def test_what_is_not_resolved_is_not_ranked():
    """A coarse solve can report a density above the true one: it must not win."""
    runs = sweep({"ot": -0.5, "vp": 0.1, "ve": 0.3})
    assert any(line.startswith("Resolved") for line in verdict(standings(runs)))
    for run in runs[:3]:
        run.scores.metrics["nll_solver_error"] = 0.5
    found = standings(runs)
    assert marks(found, "nll") == {"path=ot": "unresolved", "path=vp": "reference", "path=ve": "worse"}
    assert marks(found, "nll_gap")["path=ot"] == "unresolved" and marks(found, "w2")["path=ot"] != "unresolved"
    lines = verdict(found)
    assert lines[0].startswith("path=vp has the lowest NLL")
    assert any(line.startswith("Not resolved") and "path=ot (0.5 nats)" in line for line in lines)
    section, _ = present.section(found, metrics=["nll"], sort=None)
    (cell,) = [row[2] for row in section.rows if row[0].text == "path=ot"]
    assert cell.text.endswith(" ?") and cell.mark == "" and "not resolved" in cell.detail


def test_where_nothing_is_resolved_samples_decide():
    runs = sweep({"ot": -0.5}) + sweep({"vp": 0.1}, excess=0.5)
    for run in runs:
        run.scores.metrics["nll_solver_error"] = 0.5
    lines = verdict(standings(runs))
    assert lines[0].startswith("No likelihood here is resolved") and "path=ot has the lowest W2" in lines[1]
    assert lines[-1].startswith("Not resolved")


def test_a_difference_within_the_solvers_errors_is_not_real():
    runs = sweep({"ot": 0.0, "vp": 0.004}, seeds=range(8))
    for run in runs:
        noise = np.random.default_rng(run.record.config["seed"]).normal(size=POINTS)  # the same for both
        run.scores.units["log_prob"] = -(TRUTH + 0.004 * (run.record.choices["path"] == "vp") + 1e-5 * noise)
    assert marks(standings(runs), "nll")["path=vp"] == "worse"
    for run in runs:
        run.scores.metrics["nll_solver_error"] = 0.003
    assert marks(standings(runs), "nll")["path=vp"] == "tie"


def test_a_baseline_that_cannot_be_ranked_is_said_to_be_so():
    runs = sweep({"ot": 0.0, "vp": 0.1})
    for run in runs[:3]:
        run.scores.metrics["nll_solver_error"] = 0.5
    found = standings(runs, baseline="path=ot")
    assert "path=ot cannot be ranked" in verdict(found)[0] and found["nll"].reference is None


def test_preconditioned_rows_that_differ_in_the_path_alone_are_one_network():
    one = {"model": {"precondition": "auto"}}
    assert any("one and the same network" in line for line in verdict(standings(sweep({"ot": 0.0, "vp": 0.1}, **one))))
    raw = sweep({"ot": 0.0, "vp": 0.1}, model={"precondition": False})
    other = sweep({"ot": 0.0}, trainer={"lr": 1}, **one) + sweep({"vp": 0.1}, trainer={"lr": 2}, **one)
    for runs in (raw, other):
        assert not any("one and the same network" in line for line in verdict(standings(runs)))


def test_costs_are_figures_like_others():
    name = cost("euler", 4)
    assert costs(name) == ("euler", 4) and costs("w2") is None
    runs = sweep({"ot": 0.0}) + sweep({"vp": 0.0})
    for run in runs:
        run.scores.units.update(
            {
                name: run.scores.units["w2"] + (run.record.choices["path"] == "vp"),
                f"{name}_floor": FLOOR,
            }
        )
    found = standings(runs)
    assert name in known(found.group) and marks(found, name)["path=vp"] == "worse"
    section = present.cost_table(found, "euler", [name], [1, 0])
    assert [row[0].text for row in section.rows] == ["path=vp", "path=ot"] and section.columns[1].title == "NFE 4"


# ---------------------------------------------------------------- the table
def test_rows_stand_by_the_verdict_s_figure_or_as_asked():
    found = standings(sweep({"ot": 0.3, "vp": 0.1, "ve": 0.2}))
    assert present.section(found, metrics=None, sort=None)[1] == [1, 2, 0]
    assert present.section(found, metrics=None, sort="path")[1] == [0, 2, 1]
    section, _ = present.section(found, metrics=["w2"], sort=None)
    assert [column.key for column in section.columns] == ["row", "seeds", "w2"]
    assert all(column.key != "nll_difference" for column in section.columns)


def test_unknown_figures_are_refused_with_the_legal_ones():
    (group,) = grouped(sweep({"ot": 0.0, "vp": 0.1}), None)
    with pytest.raises(UserError, match="--metrics nl_gap: .*did you mean nll_gap.*nll, nll_gap"):
        present.require_names([group], ["nll", "nl_gap"], None)
    with pytest.raises(UserError, match="--sort pat: .*did you mean path"):
        present.require_names([group], None, "pat")
    present.require_names([group], ["nll", "train_seconds", "step"], "path")


def test_cells_carry_value_spread_mark_and_difference():
    section, _ = present.section(
        standings(sweep({"ot": 0.01, "ve": 0.2})), metrics=["nll", "nfe_sample", "parameters"], sort=None
    )
    (first, second), heads = section.rows, [column.key for column in section.columns]
    at = {key: heads.index(key) for key in heads}
    assert heads == ["row", "seeds", "nll", "nll_difference", "nfe_sample", "parameters"]
    assert first[at["nll"]].mark == "best" and second[at["nll"]].mark == "worse"
    assert second[at["nll_difference"]].text.startswith("+0.18") and "[" in second[at["nll_difference"]].text
    assert first[at["nfe_sample"]].text == "51.0 ± 1.0" and first[at["parameters"]].text == "10"
    assert (
        section.columns[at["nll"]].note
        == f"perfect {format_value(TRUTH.mean(), TRUTH.std(ddof=1) / math.sqrt(POINTS))}"
    )


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("width", [80, 120, 220])
def test_text_fits_its_width_and_cuts_nothing(count, width):
    runs = [run for n in range(count) for run in sweep({"ot": 0.1 * n}, trainer={"lr": 10.0**-n, "name": "x" * 30})]
    section, _ = present.section(standings(runs), metrics=None, sort=None)
    told = text.text(section, width, colour=False)
    lines = told.split("\n")
    assert max(map(len, lines)) <= width and "…" not in told and "\x1b" not in told
    for row in section.rows:
        for cell in row[1:]:
            assert cell.text in told
    assert told.endswith("\n") and not any(line.endswith(" ") for line in lines)
    if count > 1:
        assert section.verdict[0].split()[0] in told


def test_long_names_get_a_number_and_stand_below():
    cells = [(view.Cell("x" * 60 + str(n)), view.Cell(f"{n}.5")) for n in range(2)]
    section = view.Section("t", (), (view.Column("row", "row"), view.Column("nll", "NLL")), tuple(cells))
    told = text.text(section, 100, colour=False)
    assert "  1  " + "x" * 60 + "0" in told and "  2  " + "x" * 60 + "1" in told


def test_bold_only_where_colour_is_wanted():
    section, _ = present.section(standings(sweep({"ot": 0.0, "ve": 0.2})), metrics=["nll"], sort=None)
    assert "\x1b[1m" in text.text(section, 100, colour=True) and "\x1b" not in text.text(section, 100, colour=False)


def test_what_is_left_out_is_listed_with_its_reason():
    told = text.left_out([view.LeftOut("sweep/1", "failed", "underflow in dt " * 10)], 80)
    assert "sweep/1  failed: underflow" in told and max(map(len, told.split("\n"))) <= 80
    assert text.left_out([], 80) == ""


# ---------------------------------------------------------------- for programs
def test_csv_and_json_hold_every_figure_in_full_precision():
    found = standings(sweep({"ot": 0.01, "ve": 0.2}))
    rows = list(csv.DictReader(io.StringIO(exports.to_csv([found], []))))
    (nll,) = [row for row in rows if row["figure"] == "nll" and row["row"] == "path=ve"]
    score = found["nll"].scores[1]
    assert float(nll["mean"]) == score.value and float(nll["low"]) == score.difference.low and nll["verdict"] == "worse"
    (lost,) = csv.DictReader(io.StringIO(exports.to_csv([], [view.LeftOut("a", "broken", "=b")])))
    assert (lost["row"], lost["verdict"], lost["reason"]) == ("a", "broken", "'=b")
    content = json.loads(exports.to_json([found], [view.LeftOut("a", "broken", "b")]))
    assert content["groups"][0]["rows"][1]["figures"]["nll"]["mean"] == score.value
    assert content["groups"][0]["rows"][1]["runs"] == ["sweep/ve0", "sweep/ve1", "sweep/ve2"]
    assert content["left_out"] == [{"run": "a", "status": "broken", "reason": "b"}]


def test_texts_from_strangers_runs_are_no_formulas_and_steer_no_terminal():
    runs = [scored(str(n), 0.0, note=note) for n, note in enumerate(("=1+2", "\x1b[2J\x07[bold red]x[/]"))]
    found = standings(runs)
    assert all(not row["row"].startswith("=") for row in csv.DictReader(io.StringIO(exports.to_csv([found], []))))
    told = text.text(present.section(found, metrics=None, sort=None)[0], 100, colour=True)
    assert "\x1b[2J" not in told and "\x07" not in told and "[bold red]x[/]" in told


# ---------------------------------------------------------------- numbers
@pytest.mark.parametrize(
    ("value", "error", "told"),
    [
        (2.63182, 0.0042, "2.6318 ± 0.0042"),
        (2.63182, 0.0972, "2.632 ± 0.097"),
        (1234.5, 56.7, "1234 ± 57"),
        (2.63182, None, "2.632"),
        (2.63182, math.nan, "2.632"),
        (2.0, 0.0, "2"),
        (134402, None, "134,402"),
        (21345.6, None, "21,346"),
        (math.nan, None, "nan"),
        (math.inf, 1.0, "inf"),
        (None, None, "–"),
        (True, None, "true"),
        (10**400, None, str(10**400)),
    ],
)
def test_digits_fit_the_error(value, error, told):
    assert format_value(value, error) == told


@pytest.mark.parametrize(
    ("value", "width", "told"),
    [
        (0.01234, 0.01, "+0.012"),
        (-0.5, 2.0, "−0.5"),
        (3.0, 40.0, "+3"),
        (math.inf, 1.0, "+∞"),
        (0.5, math.nan, "+0.5000"),
    ],
)
def test_differences_have_a_sign_and_the_digits_of_their_interval(value, width, told):
    assert signed(value, width) == told
