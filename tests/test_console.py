"""What is shown: figures with the digits their errors leave, and plain text where the output is piped."""

from pathlib import Path

import pytest

from flowcli import console


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (2.63182, 0.00412, "2.6318 ± 0.0041"),
        (2.63182, 0.41, "2.63 ± 0.41"),
        (2631.82, 41.0, "2632 ± 41"),
        (0.0, 0.00002, "(0.0 ± 2.0)e-5"),
        (0.0000171, 0.0000048, "(1.71 ± 0.48)e-5"),
        (2.63182, None, "2.632"),
        (2.63182, float("nan"), "2.632"),
        (5.0, 0.0, "5"),
    ],
)
def test_a_value_has_the_digits_its_error_leaves(value, error, text):
    assert console.with_error(value, error) == text


def test_tables_and_progress_are_plain_when_piped(capsys):
    metrics = {"nll": 2.6, "nll_stderr": 0.01, "nll_floor": 2.58, "nll_gap": 0.02, "nll_gap_stderr": 0.002, "step": 3}
    console.closing_table(console.metric_rows(metrics), "test split")
    with console.TrainingProgress(10, 0) as shown:
        shown.update({"step": 5, "loss": 0.5})
        shown.update({"step": 5, "validation_loss": 0.5})
        shown.update({"step": 10, "loss": 0.25})
    out = capsys.readouterr().out
    assert "\x1b" not in out and "\r" not in out
    assert "2.600 ± 0.010" in out and "2.58" in out
    assert "step 10/10  loss 0.2500" in out and "step 5/" not in out, "a line each ten seconds, and the last one"
    assert " nan" not in out and " - " not in out


def test_paths_are_shown_as_they_would_be_typed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert console.shown(tmp_path / "outputs" / "a") == Path("outputs/a")
    assert console.shown(Path("outputs/a")) == Path("outputs/a")
    assert console.shown(Path("/elsewhere")) == Path("/elsewhere")
