r"""Sampling by the SDE $dx = [v + \frac{g^2}{2} \nabla \log p_t]\,dt + g\,dW$, from noise to data.

For every state-independent $g_t \ge 0$ it has the marginals of the ODE $dx = v\,dt$ (Song et al., arXiv 2011.13456;
Albergo et al., arXiv 2303.08797; lecture notes 004). As everywhere, u = 1 - t is handed around, not t.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from flowcli.errors import JobError, UserError, choice, integer
from flowcli.expressions import Dual, parse
from flowcli.paths import Path
from flowcli.solvers import Solution

METHODS = ("euler_maruyama", "stochastic_heun")
REFERENCE = "reference"
STABLE = 2.0
"""An explicit step of dx = -a x dt grows when h a is beyond this, Euler's and Heun's alike."""

ScoredField = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(x (B, ...), u ()) -> velocity (B, ...) and score (B, ...)."""


class Stochastic:
    r"""Euler-Maruyama or stochastic Heun in equal steps of w, $u = w^p$ with the path's warp p.

    g is state-independent, so that Ito and Stratonovich agree. Heun's corrector takes drift and $g^2$ by the trapezoid
    rule with one noise increment, which is of weak order 2; Euler-Maruyama is of weak order 1.
    The last step takes g = 0, a plain Euler step of the ODE: no noise is left on the samples, and
    nothing is evaluated at the data, where the score may be infinite.

    Attributes:
        time: always `path`: the SDE is solved in the path's own time.
    """

    time = "path"

    def __init__(self, method: str, steps: int, diffusion: str, max_nfe: int) -> None:
        r"""Take a method and $g_t$.

        diffusion: an expression of t, u = 1 - t, alpha and sigma (flowcli.expressions), or `reference`, the diffusion
            of the noising process, $g^2 = 2 \sigma (\sigma \alpha'/\alpha - \sigma')$ (VP: beta; VE: $2 r \sigma^2$,
            r the rate of sigma; OT: $2 (1-t)/t$), with g = 0 where alpha = 0. Where a path starts there, step k has
            $h g^2/2 = 1/k$ however small h is, and a state on the way is off by about that; the end is not.

        Raises:
            UserError: naming the parameter; more evaluations than max_nfe; what is not arithmetic.
        """
        self.method = choice("method", method, METHODS)
        self.steps = integer("steps", steps, minimum=1, maximum=1_000_000)
        self.max_nfe = integer("max_nfe", max_nfe, minimum=1)
        self.diffusion = str(diffusion)
        self._expression = None
        if self.diffusion != REFERENCE:
            variables = ("t", "u", "alpha", "sigma")
            self._expression = parse("diffusion", diffusion, variables, "a diffusion other than `reference`")
        if self.nfe > self.max_nfe:
            raise UserError(
                f"steps={self.steps} of {self.method} take {self.nfe} evaluations; max_nfe={self.max_nfe} allows fewer"
            )

    def __repr__(self) -> str:
        return f"Stochastic({self.method!r}, {self.steps}, {self.diffusion!r}, {self.max_nfe})"

    @property
    def nfe(self) -> int:
        """Evaluations of the field that a solve takes: the last step has no corrector."""
        return self.steps if self.method == "euler_maruyama" else 2 * self.steps - 1

    def grid(self, path: Path) -> Tensor:
        """u at every point of the grid, from 1 down to 0, (steps + 1,), float64."""
        return torch.linspace(1, 0, self.steps + 1, dtype=torch.float64) ** path.warp

    def squared_diffusion(self, path: Path, u: Tensor) -> Tensor:
        """g^2 at u (any shape, > 0), not checked."""
        c = path.schedule(u)
        if self._expression is None:
            begun = c.alpha > 1e-12  # alpha_0 = 0 to rounding
            ratio = c.d_alpha / torch.where(begun, c.alpha, 1)
            return torch.where(begun, 2 * c.sigma * (c.sigma * ratio - c.d_sigma), 0)
        one = torch.ones_like(u)
        at: dict[str, Dual] = {"t": (1 - u, one), "u": (u, -one)}
        at |= {"alpha": (c.alpha, c.d_alpha), "sigma": (c.sigma, c.d_sigma)}
        g, _ = self._expression(at)
        # a negative g has the law of -g, but is a slip: it must not pass for one that was meant
        return torch.where(g >= 0, g.square(), torch.nan)

    def plan(self, path: Path, variance: float) -> Tensor:
        r"""g^2 at the start of each step, (steps,), float64, with 0 for the last one.

        variance: of the data in model units, s^2 per coordinate. A step of a Gaussian's drift multiplies by about
            $1 - h g^2/2V$ with $V = \alpha^2 s^2 + \sigma^2$, which grows without bound when it is below -1.

        Raises:
            UserError: g is negative or not finite at a step, or a step is unstable.
        """
        grid = self.grid(path)
        u, h = grid[:-1], -grid.diff()
        squared = self.squared_diffusion(path, u)
        squared[-1] = 0
        bad = ~torch.isfinite(squared)
        if bool(bad.any()):
            t = 1 - float(u[bad][0])
            raise UserError(f"solver.diffusion={self.diffusion} must be finite and >= 0; it is not at t = {t:.4g}")
        c = path.schedule(u)
        pull = h * squared / (2 * (c.alpha**2 * variance + c.sigma**2))
        worst = int(pull.argmax())
        if float(pull[worst]) > STABLE:
            raise UserError(
                f"solver.diffusion={self.diffusion} is unstable in solver.steps={self.steps} steps: h g^2/(2 V), V the "
                f"variance of x_t, is {float(pull[worst]):.3g} at t = {1 - float(u[worst]):.4g} and must stay below "
                f"{STABLE:g}; more solver.steps or a smaller solver.diffusion helps, say sigma"
            )
        return squared

    def integrate(
        self,
        field: ScoredField,
        x: Tensor,
        path: Path,
        noise: Callable[[int], Tensor],
        *,
        variance: float,
        keep: bool = False,
    ) -> Solution:
        """Carry x (B, ...) from u = 1 to u = 0; states: one tensor (T, B, ...) at `grid`, or at its two ends.

        noise: step -> standard normal draws (B, ...), for steps 0 .. steps - 2; rows do not mix, so that
            a row of the solution depends on its own noise alone.
        variance: of the data, per coordinate (see `plan`).
        keep: give the state at every point of the grid, not only at its two ends.

        Raises:
            UserError: see `plan`.
            JobError: the solution is not finite.
        """
        grid, squared = self.grid(path), self.plan(path, variance).tolist()
        u, lengths = grid.to(x), (-grid.diff()).tolist()
        corrected = self.method == "stochastic_heun"

        def drift(x: Tensor, step: int) -> Tensor:
            velocity, score = field(x, u[step])
            return velocity + squared[step] / 2 * score

        states = [x]
        for step, h in enumerate(lengths[:-1]):
            spread = (squared[step] + squared[step + 1]) / 2 if corrected else squared[step]
            start, kick = drift(x, step), (h * spread) ** 0.5 * noise(step)
            ahead = x + h * start + kick
            x = x + h / 2 * (start + drift(ahead, step + 1)) + kick if corrected else ahead
            if keep:
                states.append(x)
        states.append(x + lengths[-1] * drift(x, self.steps - 1))
        if not bool(torch.isfinite(states[-1]).all()):
            raise JobError(
                f"solver {self.method}: the solution is not finite; try more solver.steps or a smaller solver.diffusion"
            )
        return Solution((torch.stack(states),), self.nfe)
