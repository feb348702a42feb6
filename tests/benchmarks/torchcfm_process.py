"""A torchcfm script as a user would write it: train on the points of a file, then sample. No pictures, no evaluation.

Usage: torchcfm_process.py POINTS.npy STEPS
"""

import sys
from pathlib import Path

from torch import nn
from torch_parts import read
from torchcfm.conditional_flow_matching import ConditionalFlowMatcher
from torchcfm_peer import network, sample, training
from works import WORKS


def main(points: str, steps: str) -> None:
    """Train and sample."""
    field = network(WORKS["step"], nn.SiLU)
    training(field, ConditionalFlowMatcher(sigma=0.0), read(Path(points)), WORKS["step"].rows)(int(steps))
    sample(field, WORKS["dopri5"])


if __name__ == "__main__":
    main(*sys.argv[1:])
