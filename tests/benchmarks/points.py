"""Write the training points of 8gaussians in model units, float32, (N, 2): points.py FILE.npy."""

import sys

import numpy as np

from flowcli import build
from flowcli.launch.composed import composed


def main(file: str) -> None:
    """Write them."""
    dataset = build.source(composed("train", ["data=8gaussians"])[0]).load()
    np.save(file, dataset.transform(dataset.train).float().numpy())


if __name__ == "__main__":
    main(*sys.argv[1:])
