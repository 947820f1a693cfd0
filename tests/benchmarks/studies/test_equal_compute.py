"""Budgets at equal compute against FLOPs that torch counted in a training step of each objective."""

from functools import cache

import pytest
import torch
import yaml
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.studies.arms import arm_of
from benchmarks.studies.budgets import samples_at_equal_compute
from benchmarks.studies.load import load_study
from pretrain.describe import parse
from pretrain.models.attention import choose_fused_attention
from pretrain.models.vision import build_encoder
from pretrain.objectives import aimv2
from pretrain.objectives.build import build_objective
from pretrain.objectives.losses import dense_vocabulary_loss_sum
from pretrain.types import ImageTextBatch

STUDY = load_study("loss_choice")
ROWS = [row.name for row in STUDY.rows if row.budget == "flops"]
BATCH, TEXT_LEN, VOCAB = 16, 24, 512


def batch():
    generator = torch.Generator().manual_seed(0)
    length_B = torch.randint(8, TEXT_LEN + 1, (BATCH,), generator=generator)
    return ImageTextBatch(
        image_BCHW=torch.randn(BATCH, 3, 32, 32, generator=generator),
        text_BL=torch.randint(2, VOCAB, (BATCH, TEXT_LEN), generator=generator),
        text_valid_BL=torch.arange(TEXT_LEN)[None] < length_B[:, None],
        position_B=torch.arange(BATCH),
        seed=0,
        keys=[str(n) for n in range(BATCH)],
        captions=[""] * BATCH,
    )


@cache
def flops(name, folder):
    """(in closed form, as torch counted them) of training on a batch."""
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(dict(arm_of(STUDY, STUDY.row(name), seed=0).config)))
    module, _ = parse(["--config", str(file), "--max_samples", "24000"])
    encoder = build_encoder(module.encoder_config)
    objective = build_objective(module.objective_config, encoder=encoder, vocab_size=VOCAB)
    for part in (encoder, objective):  # torch's counter sees no fused attention on a CPU
        choose_fused_attention(part, device_type="cpu", dtype=torch.bfloat16)
    with FlopCounterMode(display=False) as counter:
        sum(term.total for term in objective(encoder, batch()).values()).backward()
    dense, causal = (objective.flops(encoder, batch(), attention=kind).training for kind in ("dense", "causal"))
    # torch counts pairs that causal attention has no need of; budgets do not
    return causal, counter.get_total_flops() - (dense - causal)


@pytest.mark.parametrize("name", ROWS)
def test_budgets_are_equal_in_measured_flops(name, tmp_path_factory, monkeypatch):
    # the blocked loss multiplies in place, which the counter does not see
    monkeypatch.setattr(aimv2, "vocabulary_loss_sum", dense_vocabulary_loss_sum)
    folder = tmp_path_factory.getbasetemp()
    base_samples = 24_000
    (base, base_measured), (own, measured) = flops("AIMv2", folder), flops(name, folder)
    samples = samples_at_equal_compute(base_samples, base_flops=base, own_flops=own, batch_size=BATCH)
    # what is left: half a batch, and the prefixes that this batch happened to draw
    assert samples * measured == pytest.approx(base_samples * base_measured, rel=0.005)
