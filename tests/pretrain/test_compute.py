import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from pretrain.callbacks.compute import flops_per_sample
from pretrain.models.attention import PrefixConfig
from pretrain.types import LossTerm


class Module:
    def __init__(self, encoder, objective):
        self.encoder, self.objective = encoder, objective


def test_flops_of_a_step_are_torchs_count(tiny, make_batch):
    """A fixed prefix of 4 of 16 patches. Torch counts all pairs of attention; the decoder's causal half is less by
    4 D (S^2 - S (S + 1) / 2) a block and sample in the forward pass, three times that in training."""
    encoder, objective = tiny(path=torch.bfloat16, prefix=PrefixConfig(kind="fixed", length=4))
    batch = make_batch((3, 8, 1, 5))
    found = flops_per_sample(Module(encoder, objective), [batch])
    with FlopCounterMode(display=False) as counter:
        terms: dict[str, LossTerm] = objective(encoder, batch)
        sum(term.total for term in terms.values()).backward()
    sequence, width, depth = 16 + 8, 24, 2
    halved = 3 * 4 * width * depth * (sequence**2 - sequence * (sequence + 1) / 2)
    assert found + halved == pytest.approx(counter.get_total_flops() / 4, rel=1e-6)


def test_batches_are_weighted_by_their_samples(tiny, make_batch):
    encoder, objective = tiny()
    module, one, two = Module(encoder, objective), make_batch((3, 3)), make_batch((9, 9, 9, 16))
    a, b = flops_per_sample(module, [one]), flops_per_sample(module, [two])
    assert flops_per_sample(module, [one, two]) == pytest.approx((2 * a + 4 * b) / 6)
    assert b > a
    assert flops_per_sample(module, []) is None
