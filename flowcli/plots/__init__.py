"""Pictures of data, samples and what flows do to them; numpy arrays in, one PNG file out.

Every picture speaks one language: what is true is blue, what a model made is vermilion (both tell apart under every
common colour blindness), everything else is grey. Limits follow the data, so a model's outliers are counted in the
panel instead of shrinking it. Large inputs are thinned at even steps, the same way each time.
"""

from flowcli.plots.animation import animate
from flowcli.plots.bent_grid import deformed_grid
from flowcli.plots.density_frames import densities
from flowcli.plots.density_map import density
from flowcli.plots.difference_bars import differences
from flowcli.plots.image_rows import image_strips
from flowcli.plots.interpolation_curves import interpolation
from flowcli.plots.likelihood_histogram import likelihood
from flowcli.plots.loss_curves import loss
from flowcli.plots.pair_lines import pairs
from flowcli.plots.quality_curves import quality_curve
from flowcli.plots.row_curves import cost_panels, training_curves
from flowcli.plots.row_grids import density_grid, frame_grid, path_grid, sample_grid
from flowcli.plots.sample_panels import samples
from flowcli.plots.seed_dots import scores
from flowcli.plots.signed_maps import scalar_maps
from flowcli.plots.trajectory_lines import trajectories

__all__ = [
    "animate",
    "cost_panels",
    "deformed_grid",
    "densities",
    "density",
    "density_grid",
    "differences",
    "frame_grid",
    "image_strips",
    "interpolation",
    "likelihood",
    "loss",
    "pairs",
    "path_grid",
    "quality_curve",
    "sample_grid",
    "samples",
    "scalar_maps",
    "scores",
    "training_curves",
    "trajectories",
]
