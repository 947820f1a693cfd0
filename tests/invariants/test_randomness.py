"""Draws depend on the seed and the sample's number, and on nothing else."""

import torch

from pretrain.models.attention import PrefixConfig, draw_prefix_len
from pretrain.rng import draw_integer, draw_integers, draw_key, draw_rng


def prefix(seed, positions):
    return draw_prefix_len(PrefixConfig(), seed=seed, position_B=torch.tensor(positions), num_patches=256)


def test_samples_epochs_and_seeds_draw_other_prefixes():
    first, second = prefix(0, list(range(100))), prefix(0, list(range(100, 200)))
    assert len(first.unique()) > 60
    assert (first != second).float().mean() > 0.95
    assert (first != prefix(1, list(range(100)))).float().mean() > 0.95


def test_the_same_sample_draws_the_same_wherever_it_falls():
    whole = prefix(5, list(range(64)))
    ranks = torch.cat([prefix(5, list(range(32))), prefix(5, list(range(32, 64)))])
    micro = torch.cat([prefix(5, [position]) for position in range(64)])
    assert torch.equal(whole, ranks)
    assert torch.equal(whole, micro)


def test_tensor_and_integer_versions_agree():
    positions = [0, 1, 2**31, 2**40 + 12345, 2**62]
    for seed in (0, 7, 2**63 + 11):
        tensor = draw_integers(seed, "prefix", torch.tensor(positions), 1, 255)
        assert tensor.tolist() == [draw_integer(seed, "prefix", position, 1, 255) for position in positions]


def test_streams_and_attempts_are_independent():
    keys = {draw_key(0, stream, 5, attempt) for stream in ("crop", "caption", "prefix") for attempt in range(4)}
    assert len(keys) == 12
    assert draw_rng(0, "crop", 5).random() == draw_rng(0, "crop", 5).random() != draw_rng(0, "crop", 6).random()


def test_neighbouring_draws_are_uncorrelated():
    drawn = draw_integers(0, "prefix", torch.arange(100_000), 0, 1023).double()
    pair = torch.corrcoef(torch.stack([drawn[:-1], drawn[1:]]))[0, 1]
    assert abs(pair) < 0.015  # about five standard errors
