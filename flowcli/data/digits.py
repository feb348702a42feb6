"""The 8 x 8 handwritten digits that scikit-learn ships."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from flowcli.dataset import Dataset
from flowcli.errors import boolean, integer
from flowcli.randomness import generator
from flowcli.transforms import Affine


@dataclass(kw_only=True)
class Digits:
    """1,797 events of shape (1, 8, 8) with the whole numbers 0 to 16, shuffled into 80, 10 and 10 per cent.

    Attributes:
        standardize: one shift and one scale for all pixels (some are always 0), fitted on the dequantised training
            split, so that the whole has mean 0 and standard deviation 1.
        seed: owns the shuffle and the dequantisation.
    """

    standardize: bool
    seed: int

    def __post_init__(self) -> None:
        """Check the parameters."""
        boolean("data.standardize", self.standardize)
        self.seed = integer("data.seed", self.seed, minimum=0)

    def load(self) -> Dataset:
        """Open and split the digits."""
        from sklearn.datasets import load_digits  # here, because scikit-learn is slow to import

        images = torch.from_numpy(load_digits(return_X_y=True)[0]).to(torch.float64).reshape(-1, 1, 8, 8)
        order = torch.randperm(len(images), generator=generator(self.seed, "data", "split"))
        tenth = len(images) // 10
        train, validation, test = images[order].split([len(images) - 2 * tenth, tenth, tenth])
        dataset = Dataset(
            train=train,
            validation=validation,
            test=test,
            seed=self.seed,
            transform=Affine.identity(tuple(images.shape[1:])),
            bin_width=torch.ones(images.shape[1:], dtype=torch.float64),
            discrete=True,
            source={"kind": "scikit-learn", "name": "load_digits", "rows": len(images), "bin_width": 1.0},
        )
        return replace(dataset, transform=Affine.rescale(dataset.points("train"))) if self.standardize else dataset

    def read(self, path: Path, columns: tuple[str, ...] | None, event_shape: tuple[int, ...]) -> Tensor:
        """Events (N, 1, 8, 8) of a file: see `flowcli.data.files.read_events`."""
        from flowcli.data.files import read_events  # here, because tables are slow to import

        return read_events(path, columns, event_shape, header="auto", delimiter="auto")
