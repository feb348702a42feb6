"""The digits that scikit-learn ships."""

from pathlib import Path

import numpy as np
import pytest
import torch

from flowcli.data.digits import Digits
from flowcli.dataset import SPLITS
from flowcli.errors import UserError


def test_splits_hold_every_digit_once() -> None:
    from sklearn.datasets import load_digits

    dataset = Digits(standardize=True, seed=0).load()
    assert dataset.event_shape == (1, 8, 8) and dataset.discrete
    assert [len(getattr(dataset, split)) for split in SPLITS] == [1439, 179, 179]
    together = torch.cat([getattr(dataset, split) for split in SPLITS]).flatten(1)
    ours = sorted(map(tuple, together.tolist()))
    assert ours == sorted(map(tuple, load_digits(return_X_y=True)[0].tolist()))
    assert float(together.min()) == 0 and float(together.max()) == 16


def test_seed_owns_the_split_and_standardize_does_not() -> None:
    first, plain, other = (Digits(standardize=s, seed=k).load() for s, k in ((True, 0), (False, 0), (True, 1)))
    assert torch.equal(first.test, plain.test) and not torch.equal(first.test, other.test)
    assert float(plain.transform.log_det) == 0


def test_dequantised_training_split_has_mean_0_and_deviation_1() -> None:
    dataset = Digits(standardize=True, seed=0).load()
    points = dataset.points("train")
    assert torch.equal(points.floor(), dataset.train)
    z = dataset.transform(points)
    assert float(z.mean()) == pytest.approx(0, abs=1e-12)
    assert float(z.std(correction=0)) == pytest.approx(1)
    assert len(dataset.transform.scale.unique()) == 1


def test_read_takes_images_and_rows(tmp_path: Path) -> None:
    source, images = Digits(standardize=True, seed=0), np.arange(128, dtype=np.uint8).reshape(2, 1, 8, 8)
    for name, array in {"images.npy": images, "rows.npy": images.reshape(2, 64)}.items():
        np.save(tmp_path / name, array)
        torch.testing.assert_close(
            source.read(tmp_path / name, None, (1, 8, 8)), torch.from_numpy(images).to(torch.float64)
        )
    np.savetxt(tmp_path / "rows.csv", images.reshape(2, 64), delimiter=",")
    assert torch.equal(source.read(tmp_path / "rows.csv", None, (1, 8, 8)), torch.from_numpy(images).double())
    np.save(tmp_path / "small.npy", images[:, :, :4])
    with pytest.raises(UserError, match=r"shape \(2, 1, 4, 8\); \(rows, 1, 8, 8\) is needed"):
        source.read(tmp_path / "small.npy", None, (1, 8, 8))
    broken = images.astype(float)
    broken[1, 0, 2, 3] = np.nan
    np.save(tmp_path / "nan.npy", broken)
    with pytest.raises(UserError, match=r"row 2, column \(0, 2, 3\) is nan"):
        source.read(tmp_path / "nan.npy", None, (1, 8, 8))


def test_bad_parameters_are_named() -> None:
    with pytest.raises(UserError, match="data.seed"):
        Digits(standardize=True, seed=-1)
    with pytest.raises(UserError, match="data.standardize"):
        Digits(standardize=1, seed=0)  # type: ignore[arg-type]
