"""Where a comparison gets its figures: kept ones are read; torch is imported only for what is not there."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowcli import scores
from flowcli.checkpoints import Checkpoint, find_checkpoint
from flowcli.comparison.material import can_be_shown
from flowcli.comparison.variants import Scored
from flowcli.errors import JobError, UserError, integer
from flowcli.foreign import printable
from flowcli.records import RunRecord

if TYPE_CHECKING:
    from flowcli.tasks.scoring import Scorer

MEASURED = ("solver", "divergence", "evaluation")
"""Nodes of conf/compare.yaml that take the place of a run's own; null: the run's own stays."""


class Bench:
    """Runs, all measured alike."""

    def __init__(
        self,
        config: Mapping[str, Any],
        options: Mapping[str, str],
        *,
        nfe: Sequence[int],
        fresh: bool,
        trusted: Sequence[str],
    ) -> None:
        """Take how to measure.

        Args:
            config: conf/compare.yaml, composed.
            options: what is chosen of its groups.
            nfe: evaluations at which samplers are measured; empty: not at all.
            fresh: score again what was scored before.
            trusted: names of classes of the user's own that the runs' configs may build.
        """
        self._config, self._options, self._nfe, self._fresh, self._trusted = config, options, nfe, fresh, trusted
        self._draws = integer("nfe_draws", config["nfe_draws"], minimum=2, maximum=10_000)
        self._opened: dict[Path, tuple[Checkpoint, dict[str, Any]]] = {}
        self._not_kept: set[Path] = set()

    @cached_property
    def _scorer(self) -> "Scorer":
        from flowcli.tasks.scoring import Scorer

        return Scorer(self._trusted)

    def scored(self, records: Sequence[RunRecord]) -> tuple[list[Scored], list[tuple[Path, str, str]]]:
        """The runs with their figures; those that cannot be scored, each with a status and the reason."""
        made, without = [], []
        self._require_measures(records)
        for number, record in enumerate(records, 1):
            try:
                checkpoint, config = self._open(record)
                told = f"{number} of {len(records)}: {record.path}"
                found = self._scores(checkpoint, config, f"scoring {told}")
                if self._nfe:
                    units = self._costs(checkpoint, config, f"counting evaluations {told}")
                    found = replace(found, units=found.units | units)
            except (UserError, JobError) as error:
                without.append((record.path, "not scored", str(error)))
                continue
            made.append(Scored(replace(record, config=config, choices=self._choices(record, config)), found))
        return made, without

    def _require_measures(self, records: Sequence[RunRecord]) -> None:
        """Check how to measure, unless some run was measured so before.

        Raises:
            UserError: naming the key.
        """
        for record in records:
            with suppress(UserError):
                if self._kept(*self._open(record)) is not None:
                    return
        self._scorer.require(self._config)

    def shown(self, run: Path) -> dict[str, Any] | None:
        """What pictures show of a scored run, by the names of `pictures.shown`; None where its solver fails."""
        checkpoint, config = self._opened[run]
        shape = tuple(checkpoint.description["event_shape"])
        try:
            return self._arrays(
                checkpoint,
                config,
                "shown",
                f"drawing from {run}",
                lambda: self._scorer.shown(checkpoint, config),
                lambda arrays: can_be_shown(arrays, shape),
            )
        except (UserError, JobError):
            return None

    def columns(self, run: Path) -> tuple[str, ...] | None:
        """Names of a table's columns."""
        names = self._opened[run][0].description.get("columns")
        return None if names is None else tuple(map(str, names))

    # ------------------------------------------------------------ one run
    def _choices(self, record: RunRecord, config: Mapping[str, Any]) -> dict[str, str]:
        """The options behind a run's config, of what is measured alike the common ones."""
        alike = {node: self._options.get(node, "") for node in MEASURED if config.get(node) is self._config[node]}
        return {**record.choices, **{node: option for node, option in alike.items() if config.get(node) is not None}}

    def _open(self, record: RunRecord) -> tuple[Checkpoint, dict[str, Any]]:
        """A run's best checkpoint, and its config with what is measured alike in it."""
        if record.path in self._opened:
            return self._opened[record.path]
        checkpoint = find_checkpoint(record.path)
        if not checkpoint.description.get("event_shape"):
            raise UserError(f"{checkpoint.folder}: description.json names no event shape")
        own = checkpoint.config
        alike = {node: self._config[node] for node in MEASURED if self._config[node] is not None}
        # a flow that solves nothing has no solver to replace
        alike = {node: value for node, value in alike.items() if node == "evaluation" or own.get(node) is not None}
        self._opened[record.path] = checkpoint, {**own, **alike}
        return self._opened[record.path]

    def _scores(self, checkpoint: Checkpoint, config: dict[str, Any], told: str) -> scores.Scores:
        found = self._kept(checkpoint, config)
        if found is None:
            with _telling(told):
                found, kept = self._scorer(checkpoint, config)
            self._say_kept(checkpoint.run, kept)
        return found

    def _kept(self, checkpoint: Checkpoint, config: dict[str, Any]) -> scores.Scores | None:
        return None if self._fresh else scores.read(checkpoint.run, scores.key(checkpoint, config))

    def _costs(self, checkpoint: Checkpoint, config: dict[str, Any], told: str) -> dict[str, Any]:
        asked = {"nfe": list(self._nfe), "draws": self._draws}
        return self._arrays(
            checkpoint,
            config,
            asked,
            told,
            lambda: self._scorer.costs(checkpoint, config, self._nfe, self._draws),
            scores.are_units,
        )

    def _arrays(
        self,
        checkpoint: Checkpoint,
        config: dict[str, Any],
        more: Any,
        told: str,
        make: Callable[[], dict[str, Any]],
        sound: Callable[[dict[str, Any]], bool],
    ) -> dict[str, Any]:
        """Arrays that are kept and sound, or made now and kept."""
        name = scores.key(checkpoint, config, more=more)
        found = None if self._fresh else scores.read_arrays(checkpoint.run, name)
        if found is not None and sound(found[0]):
            return found[0]
        with _telling(told):
            made = make()
        self._say_kept(checkpoint.run, scores.try_to_write(checkpoint.run, name, made, {}))
        return made

    def _say_kept(self, run: Path, kept: bool) -> None:
        if not kept and run not in self._not_kept:
            self._not_kept.add(run)
            print(f"{run}: cannot be written, so what was scored is not kept", file=sys.stderr)


@contextmanager
def _telling(what: str) -> Iterator[None]:
    """Say on stderr what takes its time; the table alone goes to standard output."""
    began = time.perf_counter()
    print(printable(what), end="", file=sys.stderr, flush=True)
    try:
        with redirect_stdout(sys.stderr):
            yield
    except BaseException:
        print(file=sys.stderr)
        raise
    print(f" ({time.perf_counter() - began:.0f} s)", file=sys.stderr, flush=True)
