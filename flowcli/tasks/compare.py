"""`flowcli compare`: runs or sweeps in, one table on standard output; neither torch nor Hydra is needed."""

import shutil
import sys
from pathlib import Path

from flowcli import report
from flowcli.errors import choice
from flowcli.records import collect

FORMATS = ("text", "csv", "json")


def run(runs: list[Path], *, sort: str | None, format: str, metrics: list[str] | None) -> None:
    """Print the table of the training runs at or below these paths.

    sort: a metric or a config key; metrics: which to show in the text, the usual ones if None; format: one of
    FORMATS. The text has no escape codes unless standard output is a terminal.

    Raises:
        UserError: a path holds no run, or no run has what is asked for.
    """
    choice("--format", format, FORMATS)
    table = report.build(collect(runs), sort=sort, metrics=metrics)
    if format == "csv":
        text = report.to_csv(table)
    elif format == "json":
        text = report.to_json(table)
    else:
        text = report.to_text(table, shutil.get_terminal_size((80, 24)).columns, colour=sys.stdout.isatty())
    sys.stdout.write(text)
