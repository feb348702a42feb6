"""flowcli and its peers on the same work, in one run: medians of alternating rounds, as a Markdown table.

    pip install -e . && pip install --no-deps torchcfm flow_matching && pip install tqdm
    python -m venv JAX && JAX/bin/pip install jax equinox diffrax optax
    python tests/benchmarks/run.py --python jax=JAX/bin/python --out timings.json

(torchcfm and flow_matching want more packages than are used here, hence --no-deps.) Every implementation has a process
of its own, which is stopped while it is not its turn; all get the same cores, as many threads, and a C allocator that
keeps freed memory. In brackets stands how many times as long as flowcli a peer takes: more than 1 is slower. What
cannot be run is a dash, and why stands below. Set-up, compilation and a first repetition are not in the times, except
of whole processes. Nothing else should run meanwhile. `taskset -c 1 python tests/benchmarks/run.py` chooses the core.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import report
from workers import FOLDER, Gone, Worker, cores_for, measure, on_cores
from works import OFFERS, WORKS, Work


def parsed(words: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    peers = [name for name in OFFERS if name != "ours"]
    parser.add_argument("--works", nargs="+", choices=WORKS, default=list(WORKS), metavar="WORK", help=", ".join(WORKS))
    parser.add_argument("--peers", nargs="*", choices=peers, default=peers, metavar="PEER", help=", ".join(peers))
    parser.add_argument("--without-ours", action="store_true", help="the peers alone")
    parser.add_argument("--rounds", type=int, default=7, help="timed repetitions of each (default: 7)")
    parser.add_argument("--threads", type=int, default=1, help="and cores (default: 1)")
    parser.add_argument("--python", nargs="+", default=[], metavar="PEER=PYTHON", help="an interpreter of its own")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="all timings, versions and the machine")
    asked = parser.parse_args(words)
    asked.python = dict(each.partition("=")[::2] for each in asked.python)
    if wrong := [name for name in asked.python if name not in OFFERS]:
        parser.error(f"--python: no such implementation: {wrong[0]} (have: {', '.join(OFFERS)})")
    if asked.rounds < 1 or asked.threads < 1:
        parser.error("--rounds and --threads are at least 1")
    try:
        asked.cores = cores_for(asked.threads)
    except ValueError as error:
        parser.error(f"--threads: {error}")
    return asked


@contextmanager
def started(asked: argparse.Namespace) -> Iterator[tuple[dict[str, Worker], dict[str, str]]]:
    """The workers, and why others are not there."""
    names = [name for name in OFFERS if name in asked.peers or (name == "ours" and not asked.without_ours)]
    workers, missing = {}, {}
    with ExitStack() as stack:
        for name in names:
            if not set(OFFERS[name]) & set(asked.works):
                continue
            try:
                workers[name] = Worker(name, asked.python.get(name, sys.executable), asked.cores)
                stack.callback(workers[name].close)
            except Gone as gone:
                missing[name] = str(gone)
        yield workers, missing


def machine(asked: argparse.Namespace) -> dict[str, Any]:
    """What the times depend on."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    cpu = names[0] if names else platform.processor() or platform.machine()
    return {"cpu": cpu, "cores": asked.cores, "threads": asked.threads, "load": load, "system": platform.platform()}


def write_points(file: Path) -> None:
    """The data of all, by a process of its own: this one stays small."""
    subprocess.run([sys.executable, str(FOLDER / "points.py"), str(file)], check=True)


def timed(works: Sequence[Work], workers: dict[str, Worker], rounds: int) -> dict[str, dict[str, dict[str, Any]]]:
    """All results; every one is told of on standard error."""
    results: dict[str, dict[str, dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        points = Path(folder) / "points.npy"
        write_points(points)
        for work, name, found in measure(works, workers, OFFERS, rounds, points):
            results.setdefault(work, {})[name] = found
            seconds = report.seconds_of(results, WORKS[work], name)
            said = found["skipped"] if seconds is None else report.shown(seconds)
            print(f"{work}, {name}: {said}", file=sys.stderr, flush=True)
    return results


def main(words: Sequence[str] | None = None) -> int:
    """Run, print, write."""
    asked = parsed(words)
    here = machine(asked)
    with started(asked) as (workers, missing), on_cores(asked.cores):
        results = timed([WORKS[name] for name in WORKS if name in asked.works], workers, asked.rounds)
        versions = {name: worker.versions for name, worker in workers.items()}
    names = [name for name in OFFERS if name in (*workers, *missing) and name != "limits"]
    best = report.peak(results, WORKS)
    print(f"{here['cpu']}, threads: {asked.threads}, rounds: {asked.rounds}", end="")
    print("" if best is None else f", peak of float32 products: {best / 1e9:.0f} GFLOP/s", end="\n\n")
    print(report.table(results, WORKS, names), end="\n\n")
    print("\n".join(f"- {line}" for line in report.notes(results, missing)))
    if asked.out is not None:
        kept = {"machine": here, "python": platform.python_version(), "versions": versions, "missing": missing}
        kept |= {"rounds": asked.rounds, "repeats": {name: WORKS[name].repeat for name in results}}
        kept |= {"peak": best, "results": results}
        asked.out.write_text(json.dumps(kept, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
