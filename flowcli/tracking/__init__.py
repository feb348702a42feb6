"""Where the figures of a training go besides its run folder, if the user wants that.

The run folder stays the truth: a tracker is fed what metrics.jsonl holds, and a run that goes on tells it all that it
does not have yet. Nothing of a tracker's own package is imported before a training with it starts.
"""

from flowcli.tracking.feed import Feed, read_logs
from flowcli.tracking.tracker import Entry, Subject, Tracker, refuse_unsaid

__all__ = ["Entry", "Feed", "Subject", "Tracker", "read_logs", "refuse_unsaid"]
