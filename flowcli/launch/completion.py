"""What the word under the cursor may become."""

import logging
import os
import re

from flowcli import trust
from flowcli.launch.borrowed import borrowed_process
from flowcli.launch.frozen import freeze
from flowcli.launch.preflight import search_path
from flowcli.launch.request import Request

log = logging.getLogger(__name__)


def complete(request: Request, incomplete: str) -> list[str]:
    """What the word under the cursor may become; nothing where the rest of the line is wrong."""
    words, cut = list(request.overrides), ""
    if "COMP_WORDS" in os.environ:  # bash splits words at '=': put `path = ot` together again
        at_equals = os.environ["COMP_WORDS"].split("\n")[int(os.environ["COMP_CWORD"])] == "="
        words += ["="] if at_equals else [incomplete]  # Typer drops a last '='
        while "=" in words[1:]:
            at = words.index("=", 1)
            words[at - 1 : at + 2] = ["".join(words[at - 1 : at + 2])]
        cut, incomplete = words[-1].removesuffix(incomplete), words.pop()
    try:
        with borrowed_process():
            if request.ckpt is not None:
                freeze(request, request.ckpt, [])
            return [word.removeprefix(cut) for word in _candidates(request, words, incomplete)]
    except Exception as error:  # a shell has no place for our error: it would stand in the user's command line
        log.debug("completion: %s", error)
        return []


def _candidates(request: Request, words: list[str], word: str) -> list[str]:
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.plugins.completion_plugin import DefaultCompletionPlugin

    primary = request.config_name or request.verb
    root, extra = search_path(request, primary)
    with initialize_config_dir(str(root), job_name=request.verb, version_base="1.3"):
        plugin = DefaultCompletionPlugin(GlobalHydra.instance().config_loader())

        def ask(start: str) -> list[str]:
            return plugin._query(config_name=primary, line=" ".join([*words, *extra, start]))

        found = ask(word)
        if len(found) == 1 and found[0][-1] in "=./" and found[0] != word:
            found = ask(found[0]) or found  # a shell would put a space behind a lone 'path='
    shown = [option for option in found if "=_" not in option and trust.TARGET not in option]
    return [option for option in shown if re.fullmatch(r"[\w.,:/=@+\[\]-]*", option)]  # a shell may obey the others
