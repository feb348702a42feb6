r"""Which noise goes with which datum (lecture notes 004; Tong et al., arXiv 2302.00482).

Costs are squared Euclidean distances of flattened events in model units. With labels noise is matched within a label,
so that noise stays independent of the label and a labelled sample may start anywhere.
"""

from flowcli.couplings.base import Coupling, Independent, Pairs, Reflow, transport_cost
from flowcli.couplings.plans import OT, Partial, Sinkhorn, Unbalanced
from flowcli.couplings.semidiscrete import Semidiscrete

__all__ = [
    "OT",
    "Coupling",
    "Independent",
    "Pairs",
    "Partial",
    "Reflow",
    "Semidiscrete",
    "Sinkhorn",
    "Unbalanced",
    "transport_cost",
]
