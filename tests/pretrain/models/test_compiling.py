"""Compiled blocks give the numbers of eager ones, and captions of other lengths do not compile them anew."""

import shutil

import pytest
import torch

from pretrain.models import compiling
from pretrain.models.compiling import MAX_GRAPHS, compile_blocks, graphs_compiled
from pretrain.types import UserError


@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
def test_losses_and_gradients_equal_eager_within_a_bound_of_graphs(tiny, make_batch):
    results = []
    torch._dynamo.reset()
    for compiled in (False, True):
        encoder, objective = tiny()
        modules = torch.nn.ModuleList([encoder, objective])
        names = list(modules.state_dict())
        if compiled:
            compile_blocks(modules, device_type="cpu")
        assert list(modules.state_dict()) == names
        before, values = graphs_compiled(), []
        for lengths in ((3, 8, 1, 5), (3, 14, 1, 5), (20, 2, 1, 5), (30, 31, 32, 33), (40, 1, 1, 1), (50, 1, 1, 1)):
            modules.zero_grad()
            terms = objective(encoder, make_batch(lengths))
            sum(term.total for term in terms.values()).backward()
            values += [term.total.detach() for term in terms.values()]
        with torch.no_grad():
            values += [term.total for term in objective.validation_terms(encoder, make_batch((3, 8, 1, 5))).values()]
        values += [parameter.grad for parameter in modules.parameters()]
        results.append(values)
        graphs = graphs_compiled() - before
    for eager, fast in zip(*results, strict=True):
        torch.testing.assert_close(fast, eager, atol=1e-4, rtol=1e-4)
    # encoder: with a mask and without, with gradients and without; decoder: static, then dynamic, and without gradients
    assert 2 <= graphs <= MAX_GRAPHS


def test_a_cpu_without_a_compiler_is_one_line(tiny, monkeypatch):
    monkeypatch.setattr(compiling.shutil, "which", lambda name: None)
    with pytest.raises(UserError, match=r"model\.compile=true needs a C\+\+ compiler"):
        compile_blocks(tiny()[0], device_type="cpu")
