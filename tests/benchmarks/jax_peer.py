"""JAX with equinox, optax and diffrax: everything jitted, several training steps a call by `lax.scan`."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from rounds import Rounds, serve
from works import DIMENSION, RATE, WORKS, Work

Loss = Callable[[eqx.Module, jax.Array, jax.Array], jax.Array]
"""Of a network, a batch x_1 (B, D) and a key, a scalar."""


def network(work: Work) -> eqx.nn.MLP:
    """(D + 1,), the last number the time, to (D,)."""
    return eqx.nn.MLP(
        DIMENSION + 1, DIMENSION, work.width, work.layers, activation=jax.nn.silu, key=jax.random.PRNGKey(0)
    )


def velocity(network: Any, t: jax.Array, x: jax.Array) -> jax.Array:
    """x (B, D), t a scalar or (B, 1) -> (B, D)."""
    return jax.vmap(network)(jnp.concatenate([x, jnp.broadcast_to(t, (len(x), 1))], 1))


def flow_matching(network: Any, x_1: jax.Array, key: jax.Array) -> jax.Array:
    """Mean squared error on straight paths."""
    of_noise, of_time = jax.random.split(key)
    x_0, t = jax.random.normal(of_noise, x_1.shape), jax.random.uniform(of_time, (len(x_1), 1))
    return jnp.mean((velocity(network, t, (1 - t) * x_0 + t * x_1) - (x_1 - x_0)) ** 2)


class Training:
    """A network and its optimizer; a call takes steps, compiled for their number."""

    def __init__(self, network: eqx.Module, loss: Loss, points: jax.Array, rows: int) -> None:
        arrays, static = eqx.partition(network, eqx.is_inexact_array)
        adam = optax.adam(RATE)
        self._static, self._key = static, jax.random.PRNGKey(1)
        self._state = (arrays, adam.init(arrays))

        def step(state: Any, key: jax.Array) -> tuple[Any, None]:
            arrays, memory = state
            of_index, of_loss = jax.random.split(key)
            batch = points[jax.random.randint(of_index, (rows,), 0, len(points))]
            gradient = jax.grad(lambda arrays: loss(eqx.combine(arrays, static), batch, of_loss))(arrays)
            updates, memory = adam.update(gradient, memory)
            return (optax.apply_updates(arrays, updates), memory), None

        self._steps = jax.jit(lambda state, keys: jax.lax.scan(step, state, keys)[0])

    def __call__(self, steps: int) -> None:
        """Take steps."""
        self._key, key = jax.random.split(self._key)
        self._state = jax.block_until_ready(self._steps(self._state, jax.random.split(key, steps)))

    @property
    def network(self) -> Any:
        """As trained so far."""
        return eqx.combine(self._state[0], self._static)


def _read(points: Path) -> jax.Array:
    return jnp.asarray(np.load(points))


def _trained(work: Work, points: Path) -> Any:
    train = Training(network(work), flow_matching, _read(points), WORKS["step"].rows)
    train(work.trained)
    return train.network


def _dopri5(field: Callable[..., Any], start: Any, t0: float, t1: float, tolerance: float) -> tuple[Any, jax.Array]:
    """The end, the whole batch as one state, and the evaluations: six a step, and two to begin with."""
    control = diffrax.PIDController(rtol=tolerance, atol=tolerance)
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(field), diffrax.Dopri5(), t0, t1, None, start, stepsize_controller=control
    )
    return jax.tree.map(lambda states: states[-1], solution.ys), 6 * solution.stats["num_steps"] + 2


def log_density(network: Any, x_1: jax.Array, tolerance: float) -> tuple[jax.Array, jax.Array]:
    """log p (B,), and the evaluations.

    The trace is exact, by reverse mode as in diffrax's example; forward mode takes 1.5 times as long. A step size for
    every point, as there, takes 1.6 times as long as one for all.
    """

    def field(t: jax.Array, state: tuple[jax.Array, jax.Array], args: None) -> tuple[jax.Array, jax.Array]:
        def alone(x: jax.Array) -> tuple[jax.Array, jax.Array]:
            slope, pull_back = jax.vjp(lambda x: network(jnp.append(x, t)), x)
            (jacobian,) = jax.vmap(pull_back)(jnp.eye(DIMENSION))
            return slope, jnp.trace(jacobian)

        return jax.vmap(alone)(state[0])

    (x_0, change), nfe = _dopri5(field, (x_1, jnp.zeros(len(x_1))), 1.0, 0.0, tolerance)
    return change - 0.5 * jnp.sum(x_0**2, 1) - 0.5 * DIMENSION * math.log(2 * math.pi), nfe


# ---------------------------------------------------------------- works
def peak(work: Work, points: Path, rounds: Rounds) -> None:
    """The product of two square matrices."""
    a = jax.random.normal(jax.random.PRNGKey(0), (work.rows, work.rows))
    product = jax.jit(jnp.matmul)
    product(a, a).block_until_ready()
    rounds.each(lambda: [product(a, a).block_until_ready() for _ in range(work.repeat)])


def step(work: Work, points: Path, rounds: Rounds) -> None:
    """Flow-matching steps."""
    train = Training(network(work), flow_matching, _read(points), work.rows)
    train(work.trained)
    train(work.repeat)
    rounds.each(lambda: train(work.repeat))


def samples(work: Work, points: Path, rounds: Rounds) -> None:
    """Samples of a trained field."""
    trained = _trained(work, points)

    @eqx.filter_jit
    def sample(network: Any, key: jax.Array) -> tuple[jax.Array, Any]:
        def field(t: jax.Array, x: jax.Array, args: None) -> jax.Array:
            return velocity(network, t, x)

        noise = jax.random.normal(key, (work.rows, DIMENSION))
        if work.name == "dopri5":
            return _dopri5(field, noise, 0.0, 1.0, work.tolerance)
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(field),
            diffrax.Euler(),
            0.0,
            1.0,
            1 / work.solve_steps,
            noise,
            stepsize_controller=diffrax.ConstantStepSize(),
        )
        return solution.ys[-1], solution.stats["num_steps"]

    keys = iter(range(1_000_000))

    def once() -> Any:
        return jax.block_until_ready(sample(trained, jax.random.PRNGKey(next(keys))))

    _, nfe = once()
    rounds.each(lambda: [once() for _ in range(work.repeat)], nfe=int(nfe))


def log_prob(work: Work, points: Path, rounds: Rounds) -> None:
    """Log-densities under a trained field."""
    trained, known = _trained(work, points), _read(points)[: work.rows]
    score = eqx.filter_jit(lambda network, x: log_density(network, x, work.tolerance))
    found, nfe = score(trained, known)
    rounds.each(
        lambda: [jax.block_until_ready(score(trained, known)) for _ in range(work.repeat)],
        nfe=int(nfe),
        nll=-float(found.mean()),
    )


def mle_step(work: Work, points: Path, rounds: Rounds) -> None:
    """Maximum-likelihood steps, with the gradient through the solver that diffrax takes by default."""
    known = _read(points)
    train = Training(
        network(work), lambda network, x, key: -log_density(network, x, work.tolerance)[0].mean(), known, work.rows
    )
    for _ in range(max(1, work.trained // work.repeat)):
        train(work.repeat)
    found, nfe = eqx.filter_jit(lambda network, x: log_density(network, x, work.tolerance))(
        train.network, known[: work.rows]
    )
    rounds.each(lambda: train(work.repeat), nfe=int(nfe), nll=-float(found.mean()))


DOINGS = {
    "peak": peak,
    "step": step,
    "large_step": step,
    "euler": samples,
    "dopri5": samples,
    "log_prob": log_prob,
    "mle_step": mle_step,
}

if __name__ == "__main__":
    serve(DOINGS, "jax", "equinox", "diffrax", "optax")
