"""What differs between the configs of runs."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from flowcli.records import RunRecord

NOT_THE_MODEL = ("hydra", "trust", "resume", "logger", "evaluation", "device")
"""Keys of a config that say where and how a run was made or measured, not what it is."""
SEED = "seed"


def differing(records: Sequence[RunRecord]) -> list[str]:
    """Config keys in which the runs differ: whole group choices first, then single keys.

    Below a group that differs (path: ot, vp) a key is compared among the runs that made the same choice, so that
    options of one group which merely have other keys or defaults do not fill the table.
    """
    groups: list[str] = []
    keys: list[str] = []
    members = [(record.config, choices_of(record)) for record in records if record.config]
    _walk("", members, groups, keys)
    keys = [key for key in dict.fromkeys(keys) if key not in groups]
    return list(dict.fromkeys(groups)) + sorted(keys, key=lambda key: key.split(".")[-1] == "seed")


def _walk(
    prefix: str, members: Sequence[tuple[Mapping[str, Any], Mapping[str, str]]], groups: list[str], keys: list[str]
) -> None:
    for key in dict.fromkeys(key for node, _ in members for key in node):
        path = f"{prefix}{key}"
        if path in NOT_THE_MODEL:
            continue
        having = [(node[key], choices) for node, choices in members if key in node]
        if not any(isinstance(value, Mapping) for value, _ in having):
            if len({canonical(value) for value, _ in having}) > 1:
                keys.append(path)
            continue
        options: dict[str, list[tuple[Mapping[str, Any], Mapping[str, str]]]] = {}
        for value, choices in having:
            nodes = options.setdefault(_option(value, choices.get(path)), [])
            if isinstance(value, Mapping):
                nodes.append((value, choices))
        # A run without the group at all made another choice; a plain section that an older run lacks is no choice.
        if len(options) > 1 or (len(having) < len(members) and "" not in options):
            groups.append(path)
        for nodes in options.values():
            _walk(f"{path}.", nodes, groups, keys)


def choices_of(record: RunRecord) -> dict[str, str]:
    """The option chosen for each node of the config, by the node's dotted key."""
    nodes = (
        (group.split("@")[-1].removeprefix("_global_.").replace("/", "."), option)
        for group, option in record.choices.items()
    )
    return {node: option for node, option in nodes if option.lower() not in ("none", "null")}


def _option(value: object, choice: str | None) -> str:
    """What was chosen for a node: the option's name, else the class it names; empty for a plain section."""
    if isinstance(value, Mapping):
        return choice or str(value.get("_target_", ""))
    return "none" if value is None else str(value)


def canonical(value: object) -> str:
    """A text that is equal for equal settings: 1e4 and 10000 are one."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, list):
        return f"[{','.join(canonical(item) for item in value)}]"
    return json.dumps(value, sort_keys=True, default=str)


def setting(record: RunRecord, key: str) -> object:
    """The value of a config key in a run; of a node, its option; None where the run has no such key."""
    node: Any = record.config
    for part in key.split("."):
        if not isinstance(node, Mapping) or part not in node:
            return None
        node = node[part]
    choice = choices_of(record).get(key)
    if isinstance(node, Mapping):
        option = _option(node, choice)
        return option.rsplit(".", 1)[-1] if option and option != choice else option or None
    return "none" if node is None else node
