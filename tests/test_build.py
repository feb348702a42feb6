"""From a config to objects: every shipped option, what does not go together, and whose classes are built."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

import flowcli
from flowcli import build, trust
from flowcli.dataset import Dataset
from flowcli.errors import UserError
from flowcli.flows.oracle import OracleFlow

CONF = Path(__file__).resolve().parents[1] / "conf"
SMALL = ["data.train=64", "data.validation=8", "data.test=8"]


def options(group: str) -> list[str]:
    return sorted(file.stem for file in (CONF / group).glob("*.yaml"))


def config(*overrides: str) -> dict[str, Any]:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        composed = compose("train", list(overrides))
    found = OmegaConf.to_container(composed, resolve=True)
    assert isinstance(found, dict)
    return found  # type: ignore[return-value]


def built(*overrides: str) -> Any:
    made = config(*overrides)
    training = build.training(made, build.mathematics(made))
    build.evaluation(made)
    return build.new_flow(made, build.source(made).load()), training


@pytest.mark.parametrize("data", [name for name in options("data") if name not in ("table", "digits")])
def test_every_data_option_is_loaded_and_makes_a_flow(data):
    flow, _ = built(f"data={data}", *SMALL)
    x = build.source(config(f"data={data}", *SMALL)).load().points("test")
    with torch.no_grad():
        assert bool(torch.isfinite(flow.log_prob(x).value).all())


GROUPS = ("network", "path", "coupling", "base", "objective", "solver", "divergence", "trainer", "logger", "model")
NOTHING = {(group, "none") for group in ("network", "path", "coupling", "objective", "solver", "divergence")}
"""Options for models that have no such part: model=cnf on its own cannot do without it."""
NEEDS = {("coupling", "reflow"): ["coupling.ckpt=RUN"]}
NO_DENSITY = {("base", "data"), ("solver", "euler_maruyama"), ("solver", "stochastic_heun")}


@pytest.mark.parametrize(
    ("group", "option"),
    [(group, option) for group in GROUPS for option in options(group) if (group, option) not in NOTHING],
)
def test_every_option_of_every_group_is_built_and_solves(group, option):
    """With the options that it brings along, and no others."""
    flow, training = built(f"{group}={option}", *NEEDS.get((group, option), []), *SMALL)
    assert (training.objective is None) == ((group, option) == ("model", "oracle"))
    with torch.no_grad():
        assert flow.sample(3, seed=0).value.shape == (3, 2)
        assert (flow.no_likelihood is not None) == ((group, option) in NO_DENSITY)
        if (group, option) in NO_DENSITY:
            with pytest.raises(UserError):
                flow.log_prob(torch.zeros(2, 2))
        else:
            # a uniform base has no tails: -inf, and not nan, outside
            log_prob = flow.log_prob(torch.zeros(2, 2)).value
            assert log_prob.shape == (2,) and not bool(log_prob.isnan().any())
            assert bool(log_prob.isfinite().all()) or option == "uniform"


@pytest.mark.parametrize(("group", "option"), sorted(NOTHING))
def test_no_part_at_all_is_refused_where_the_model_needs_it(group, option):
    with pytest.raises(UserError, match=group if group != "objective" else "objective=flow_matching"):
        built(f"{group}={option}", *SMALL)


def test_no_option_is_left_out_of_the_tests_above():
    groups = {folder.name for folder in CONF.iterdir() if folder.is_dir()}
    assert groups == {*GROUPS, "data", "evaluation", "experiment", "hydra"}
    assert options("model") == ["cnf", "ffjord", "maf", "nice", "nsf", "oracle", "realnvp"]


@pytest.mark.parametrize("model", ["maf", "nice", "nsf", "realnvp"])
@pytest.mark.parametrize("base", ["uniform", "mixture"])
def test_discrete_flows_take_other_bases(model, base):
    flow, _ = built(f"model={model}", f"base={base}", *SMALL)
    with torch.no_grad():
        assert flow.sample(3, seed=0).value.shape == (3, 2)


@pytest.mark.parametrize("experiment", options("experiment"))
def test_every_experiment_is_built(experiment):
    built(f"experiment={experiment}", *SMALL)


def test_digits_are_built():
    flow, _ = built("data=digits")
    assert flow.event_shape == (1, 8, 8)


def test_the_oracle_brings_its_own_objective_and_network():
    flow, training = built("model=oracle", "data=mixture", *SMALL)
    assert isinstance(flow, OracleFlow)
    assert training.objective is None


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.prediction=noise"], "model.prediction=noise needs precondition=false"),
        (["model.precondition=false"], "model.prediction must be one of velocity, data, noise, score"),
        (["model.precondition=false", "model.prediction=x1"], "model.prediction must be one of"),
        (["model.precondition=1", "model.prediction=noise"], "model.precondition must be true or false"),
        (
            ["model.precondition=false", "model.prediction=velocity", "solver.time=angle"],
            "needs model.precondition=true",
        ),
        (["model=oracle", "objective=flow_matching"], "objective=none"),
        (["model=oracle", "network=mlp"], "network=none"),
        (["objective=none"], "objective=flow_matching"),
        (["network=none"], "model=cnf needs a network"),
        (["model=oracle", "data=moons"], "model.over=train"),
        (["path.sigma_min=-1"], "path.sigma_min must be a finite number >= 0 and < 1, got -1"),
        (["path.sigma_min=abc"], "path.sigma_min must be"),
        (["path=ve", "path.sigma_max=1e9"], "path.sigma_max must be"),
        (["path=ve", "path.sigma_max=0.001"], "path.sigma_max must be"),
        (["path=vp", "path.beta_min=0"], "path.beta_min must be"),
        (["path=custom", "path.alpha='t+1'"], "alpha, sigma must be"),
        (["path=custom", "path.alpha=__import__"], "path.alpha: '__import__' is not allowed"),
        (["solver=euler", "solver.steps=0"], "solver.steps must be a whole number >= 1"),
        (["solver=euler", "solver.steps=20000"], "steps=20000"),
        (["solver.rtol=0"], "solver.rtol must be"),
        (["solver.time=theta"], "time must be one of path, angle"),
        (["divergence=hutchinson", "divergence.probes=0"], "divergence.probes must be"),
        (["network.width=0"], "network.width must be"),
        (["network.residual=maybe"], "network.residual must be true or false"),
        (["objective.weighting=natural"], "objective.weighting must be one of unit, native"),
        (["trainer.steps=-3"], "trainer.steps must be"),
        (["evaluation.draws=1"], "evaluation.draws must be"),
        (["dtype=float16"], "dtype must be one of float32, float64"),
        (["device=gpu"], "device must be auto, cpu or cuda"),
        (["seed=-1"], "seed must be"),
        (["+path.foo=1"], "path.foo: OT has no such parameter"),
        (["~path.sigma_min"], "path: missing a required argument: 'sigma_min'"),
        (["path._target_=flowcli.solvers.FixedStep"], "path.sigma_min: FixedStep has no such parameter"),
        (["coupling._target_=flowcli.bases.StandardNormal"], "coupling"),
    ],
)
def test_what_is_wrong_is_said_with_its_key(overrides, message):
    with pytest.raises(UserError, match=message.replace("(", r"\(").replace("+", r"\+")) as error:
        built(*overrides, *(SMALL if not any("data=" in o for o in overrides) else []))
    assert "\n" not in str(error.value)


def test_network_weights_depend_on_the_seed_alone_and_leave_the_global_generator_alone():
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    flows = [built(f"seed={seed}", *SMALL)[0] for seed in (0, 0, 1)]
    assert torch.equal(before, torch.random.get_rng_state())
    first, second, other = (flow.field.network.of_event.weight for flow in flows)
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(("path", "scale"), [("ot", 1.0), ("vp", 1.0), ("ve", 2501.0**0.5)])
def test_the_base_is_the_right_one_for_its_path(path, scale):
    flow, _ = built(f"path={path}", *SMALL)
    assert float(flow.start.std) == pytest.approx(scale, rel=1e-4)


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "flowcli.storage.os.system",
        "flowcli.storage.write_bytes",
        "pathlib.Path.write_text",
        "builtins.eval",
        "x",
    ],
)
def test_a_target_that_is_not_shipped_is_not_built(target):
    with pytest.raises(UserError):
        trust.refuse_untrusted({"path": {"_target_": target}}, ())
    assert target not in trust.shipped_targets()


def test_the_transform_keeps_float64_and_the_states_their_dtype():
    for dtype in ("float32", "float64"):
        flow, _ = built(f"dtype={dtype}", *SMALL)
        assert flow.transform.scale.dtype == torch.float64
        assert flow.dtype == getattr(torch, dtype)
        assert flow.field.moments.var_1.dtype == flow.dtype


def test_what_flowcli_offers():
    assert set(flowcli.__all__) <= {*dir(flowcli), "load"}
    assert callable(flowcli.load)
    with pytest.raises(AttributeError):
        _ = flowcli.lod  # type: ignore[attr-defined]


def test_the_same_data_for_every_path_and_seed():
    sets: list[Dataset] = [
        build.source(config(f"path={path}", f"seed={seed}", *SMALL)).load()
        for path, seed in itertools.product(("ot", "vp"), (0, 1))
    ]
    assert all(torch.equal(sets[0].test, other.test) for other in sets)
