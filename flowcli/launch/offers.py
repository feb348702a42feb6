"""What conf/ offers, by reading its folder: for --help and for messages, without Hydra."""

import re

from flowcli import trust


def groups() -> dict[str, list[str]]:
    """The config groups and their options, by listing folders."""
    found: dict[str, list[str]] = {}
    for file in sorted(trust.conf_dir().glob("*/*.yaml")):
        found.setdefault(file.parent.name, []).append(file.stem)
    return found


def keys(verb: str) -> dict[str, tuple[str, str]]:
    """The top-level keys of conf/<verb>.yaml: {key: (default, the comment behind it)}."""
    line = re.compile(r"^(\w+): *(.*?) *(?:# *(.*))?$")
    text = (trust.conf_dir() / f"{verb}.yaml").read_text(encoding="utf-8")
    found = {m[1]: (m[2], m[3] or "") for m in map(line.match, text.splitlines()) if m}
    return {key: value for key, value in found.items() if key not in ("defaults", "hydra")}
