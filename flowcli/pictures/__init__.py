"""What to compute of a flow for each picture, and at what price; `plots` draws it."""

from flowcli.pictures.notes import explain
from flowcli.pictures.runs import PATH_POINTS, coarse, density, draw_trajectories, loss, samples, trajectories

__all__ = ["PATH_POINTS", "coarse", "density", "draw_trajectories", "explain", "loss", "samples", "trajectories"]
