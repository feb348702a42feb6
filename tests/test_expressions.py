"""Expressions over any variables: values, slopes, and what is refused. Those of paths are in test_paths."""

import pytest
import torch

from flowcli.errors import UserError
from flowcli.expressions import parse

T = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)


@pytest.mark.parametrize(
    ("text", "formula"),
    [
        ("sigma", lambda t, sigma: sigma),
        ("2*sigma - -t/3", lambda t, sigma: 2 * sigma + t / 3),
        ("sqrt(sigma)*exp(-t)", lambda t, sigma: sigma.sqrt() * torch.exp(-t)),
        ("sigma**t + 1", lambda t, sigma: sigma**t + 1),
        ("tanh(sigma/t)*pi", lambda t, sigma: torch.tanh(sigma / t) * torch.pi),
        ("+0.5", lambda t, sigma: 0.5 + 0 * t),
    ],
)
def test_values_and_slopes_with_a_variable_that_depends_on_t(text, formula):
    evaluate, t = parse("g", text, ("t", "sigma"), "a test"), T.clone().requires_grad_()
    value = formula(t, torch.cos(t))
    (slope,) = torch.autograd.grad(value.sum(), t)
    found = evaluate({"t": (T, torch.ones_like(T)), "sigma": (torch.cos(T), -torch.sin(T))})
    torch.testing.assert_close(found, (value.detach(), slope), rtol=1e-12, atol=1e-12)
    assert all(part.shape == T.shape and part.dtype == T.dtype for part in found)


def test_only_the_given_variables_are_legal_and_the_message_lists_them():
    with pytest.raises(UserError, match=r"^g: 'sigma' is not allowed in a test; legal are numbers, t, u = 1 - t, pi,"):
        parse("g", "t + sigma", ("t", "u"), "a test")
    with pytest.raises(UserError, match="legal are numbers, t, sigma, pi,"):
        parse("g", "u", ("t", "sigma"), "a test")


@pytest.mark.parametrize("text", [None, True, "sigma.real", "sigma(t)", "sqrt", "eval('1')", float("inf")])
def test_refused(text):
    with pytest.raises(UserError, match="^g"):
        parse("g", text, ("t", "sigma"), "a test")
