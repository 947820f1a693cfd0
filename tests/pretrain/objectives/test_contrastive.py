"""CLIP and SigLIP: open_clip's losses, the formulas by hand, one process against several, and what is refused."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from open_clip.loss import ClipLoss, SigLipLoss
from torch import distributed, multiprocessing, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from pretrain.objectives.config import ContrastiveConfig, ObjectiveConfig, TextTowerConfig
from pretrain.objectives.contrastive import ContrastiveObjective
from pretrain.types import UserError

KINDS = ("clip", "siglip")


def set_scale(objective, scale, *, bias=None):
    with torch.no_grad():
        objective.logit_scale.fill_(math.log(scale))
        if bias is not None:
            objective.logit_bias.fill_(bias)


def restated(kind, image_BP, text_BP, scale, bias):
    """Radford et al. 2021, figure 3; Zhai et al. 2023, equation 1: pair by pair."""
    total, count = 0.0, len(image_BP)
    for i in range(count):
        if kind == "clip":
            for own, others in ((image_BP, text_BP), (text_BP, image_BP)):
                similar = torch.stack([scale * (own[i] * others[j]).sum() for j in range(count)])
                total = total + 0.5 * (similar.exp().sum().log() - similar[i])
            continue
        for j in range(count):
            sign = 1 if i == j else -1
            total = total + (1 + (-sign * (scale * (image_BP[i] * text_BP[j]).sum() + bias)).exp()).log()
    return total / count


@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradients_equal_open_clips_and_the_formula(tiny_contrastive, make_batch, kind):
    encoder, objective = tiny_contrastive(kind)
    set_scale(objective, 3.0, bias=-0.7 if kind == "siglip" else None)
    batch = make_batch()
    features = (
        objective.encode_image(encoder, batch.image_BCHW),
        objective.encode_text(batch.text_BL, batch.text_valid_BL),
    )

    def ours(image, text, scale, bias):
        del scale, bias
        return objective.loss(image, text)

    def open_clips(image, text, scale, bias):
        return ClipLoss()(image, text, scale) if kind == "clip" else SigLipLoss()(image, text, scale, bias)

    def by_formula(image, text, scale, bias):
        return restated(kind, image, text, scale, bias)

    results = []
    for function in (ours, open_clips, by_formula):
        image_BP, text_BP = (tensor.clone().requires_grad_() for tensor in features)
        objective.zero_grad()
        loss = function(image_BP, text_BP, objective.logit_scale.exp(), objective.logit_bias)
        loss.sum().backward()
        owned = [parameter.grad for parameter in (objective.logit_scale, objective.logit_bias) if parameter is not None]
        results.append([loss.detach().reshape(()), image_BP.grad, text_BP.grad, *(grad.clone() for grad in owned)])
    for other in results[1:]:
        torch.testing.assert_close(results[0], other, atol=1e-6, rtol=1e-5)
    # and the objective's own step is that loss
    term = objective(encoder, batch)["contrastive"]
    assert (int(term.count), term.weight) == (4, 1.0)
    torch.testing.assert_close(term.total.detach() / term.count, results[0][0], atol=1e-6, rtol=1e-5)


def test_three_pairs_by_hand(tiny_contrastive):
    # pictures look along axes 1, 2, 3; captions along 1, 3, 2: the first pair meets, the others are swapped. Scale log 2:
    #     similarities  log 2   0     0        own: log 2, 0, 0
    #                     0     0   log 2
    #                     0   log 2   0
    # CLIP: each row, as each column, has exponentials 2 1 1, sum 4: log(4 / 2), then twice log(4 / 1); mean (1 + 2 + 2) / 3 log 2
    image_BP = torch.eye(3)
    text_BP = torch.eye(3)[[0, 2, 1]]
    _, clip = tiny_contrastive("clip")
    set_scale(clip, math.log(2))
    assert clip.loss(image_BP, text_BP).item() == pytest.approx(5 / 3 * math.log(2), rel=1e-6)
    # SigLIP with bias -log 3: logits log(2/3) where they meet, log(1/3) elsewhere. A pair's own costs log(1 + exp(-logit)):
    # log(1 + 3/2), twice log(1 + 3); another's log(1 + exp(logit)): twice log(1 + 2/3), four times log(1 + 1/3). Over 3 pictures
    _, siglip = tiny_contrastive("siglip")
    set_scale(siglip, math.log(2), bias=-math.log(3))
    own, others = math.log(2.5) + 2 * math.log(4), 2 * math.log(5 / 3) + 4 * math.log(4 / 3)
    assert siglip.loss(image_BP, text_BP).item() == pytest.approx((own + others) / 3, rel=1e-6)


def test_pictures_belong_to_the_captions_beside_them(tiny_contrastive):
    """Aligned pairs at a high scale cost nothing, shifted ones a lot."""
    for kind in KINDS:
        _, objective = tiny_contrastive(kind)
        set_scale(objective, 60.0, bias=-30.0 if kind == "siglip" else None)
        image_BP = torch.eye(4)
        assert objective.loss(image_BP, image_BP).item() < 1e-6
        assert objective.loss(image_BP, image_BP.roll(1, 0)).item() > 10


class Step(nn.Module):
    """Encoder and objective as one module for DDP; the loss by `PretrainModule.loss_of`'s rule."""

    def __init__(self, encoder, objective, *, world_size):
        super().__init__()
        self.encoder, self.objective, self.world_size = encoder, objective, world_size

    def forward(self, batch):
        term = self.objective(self.encoder, batch)["contrastive"]
        count = term.count.float()
        if self.world_size > 1:
            distributed.all_reduce(count)
        return term.weight * self.world_size * term.total / count


def part(batch, *, rank, world_size):
    size = len(batch) // world_size
    own = slice(rank * size, (rank + 1) * size)
    tensors = {name: getattr(batch, name)[own] for name in ("image_BCHW", "text_BL", "text_valid_BL", "position_B")}
    return replace(batch, **tensors, keys=batch.keys[own], captions=batch.captions[own])


def worker(rank, world_size, folder):
    """One of several gloo processes: its part of the batch, gradients as DDP averages them; then what must be refused."""
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet{world_size}", rank=rank, world_size=world_size
    )
    answers = {}
    for kind in KINDS:
        encoder, objective, batch = torch.load(folder / f"{kind}.pt", weights_only=False)
        step = Step(encoder, objective, world_size=world_size)
        spread = nn.parallel.DistributedDataParallel(step)  # kept: without it the backward pass would not average
        loss = spread(part(batch, rank=rank, world_size=world_size))
        loss.backward()
        loss = loss.detach() / world_size
        distributed.all_reduce(loss)
        own = part(batch, rank=rank, world_size=world_size)
        if rank == 0:
            own.text_valid_BL[1] = False
        errors = []
        short = part(own, rank=0, world_size=2) if rank == 1 else own  # one sample fewer
        for broken in (own, replace(short, text_valid_BL=torch.ones_like(short.text_valid_BL))):
            with pytest.raises(UserError) as error:
                objective(encoder, broken)
            errors.append(str(error.value))
        answers[kind] = (loss, {name: parameter.grad for name, parameter in step.named_parameters()}, errors)
    torch.save(answers, folder / f"{world_size}_{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("world_size", [2, 3])  # three: captions travel both ways round
def test_one_process_and_several_have_the_same_loss_and_gradients(tiny_contrastive, make_batch, tmp_path, world_size):
    whole = {}
    batch = make_batch((3, 8, 1, 5, 2, 7))
    for kind in KINDS:
        encoder, objective = tiny_contrastive(kind)
        set_scale(objective, 4.0, bias=-1.0 if kind == "siglip" else None)
        torch.save((encoder, objective, batch), tmp_path / f"{kind}.pt")
        step = Step(encoder, objective, world_size=1)
        loss = step(batch)
        loss.backward()
        whole[kind] = loss.detach(), {name: parameter.grad for name, parameter in step.named_parameters()}
    multiprocessing.spawn(worker, (world_size, tmp_path), nprocs=world_size)
    for rank in range(world_size):
        for kind, (loss, grads, errors) in torch.load(tmp_path / f"{world_size}_{rank}.pt").items():
            torch.testing.assert_close(loss, whole[kind][0], atol=1e-5, rtol=0)
            assert grads.keys() == whole[kind][1].keys()
            for name, grad in grads.items():
                torch.testing.assert_close(grad, whole[kind][1][name], atol=1e-5, rtol=0, msg=name)
                assert grad.abs().max() > 1e-4, name  # or the tolerance would show nothing
            # every process stops, and the one that has the sample names it
            assert ("'sample1'" in errors[0]) == (rank == 0)
            assert "need a caption for every picture" in errors[0]
            assert "batches of one size on all processes" in errors[1]


def test_clips_scale_stays_at_its_maximum_and_leaves_it_at_once(tiny_contrastive):
    """However long the loss has pulled it up, one step down is a step down."""
    _, objective = tiny_contrastive("clip", max_scale=20.0)
    set_scale(objective, 19.9)
    for _ in range(50):
        with torch.no_grad():
            objective.logit_scale += 0.1
        objective.after_step()
        assert objective.scale.item() <= 20.0 * (1 + 1e-6)
    assert objective.scale.item() == pytest.approx(20.0)
    with torch.no_grad():
        objective.logit_scale -= 0.1
    objective.after_step()
    assert objective.scale.item() == pytest.approx(20.0 * math.exp(-0.1))


def test_a_run_keeps_the_scale_below_its_maximum(tmp_path):
    """Through the module's own step: the first scale is the maximum, and a high rate pulls at it."""
    from pretrain import cli
    from pretrain.export import load_pretrained

    config = Path(__file__).parents[3] / "configs" / "pretrain" / "rivals" / "clip_nano_scenes.yaml"
    args = ["fit", "--config", str(config), "--runs", str(tmp_path), "--name", "a", "--trainer.max_steps=8"]
    args += ["--model.optim.warmup_steps=1", "--model.optim.lr=0.3", "--data.num_val=4", "--pictures.every_n_steps=0"]
    args += ["--model.objective.contrastive.temperature=0.5", "--model.objective.contrastive.max_scale=2.0"]
    assert cli.main([*args, "--trainer.enable_progress_bar=false"]) == 0
    assert load_pretrained(tmp_path / "a").objective.scale.item() <= 2.0 * (1 + 1e-6)


def test_validation_leaves_out_what_has_no_caption(tiny_contrastive, make_batch):
    """And says so by its counts; no rank may stop alone."""
    encoder, objective = tiny_contrastive("siglip")
    whole, kept = objective.validation_terms(encoder, make_batch((3, 0, 5, 4))), make_batch((3, 0, 5, 4))
    chosen = [0, 2, 3]
    for name in ("image_BCHW", "text_BL", "text_valid_BL", "position_B"):
        setattr(kept, name, getattr(kept, name)[chosen])
    kept.keys = [kept.keys[row] for row in chosen]
    alone = objective.validation_terms(encoder, kept)
    for name, term in whole.items():
        assert term.count == 3
        torch.testing.assert_close(term.total, alone[name].total)
    none = objective.validation_terms(encoder, make_batch((0, 0)))
    assert {name: (float(term.total), int(term.count)) for name, term in none.items()} == {
        "contrastive": (0.0, 0), "retrieval_error": (0.0, 0),
    }  # fmt: skip


def test_siglips_scale_has_no_maximum(tiny_contrastive):
    _, objective = tiny_contrastive("siglip")
    set_scale(objective, 150.0)
    assert objective.scale.item() == pytest.approx(150.0)


def test_first_temperature_and_bias(tiny_contrastive):
    assert tiny_contrastive("clip")[1].scale.item() == pytest.approx(1 / 0.07)
    siglip = tiny_contrastive("siglip")[1]
    assert (siglip.scale.item(), siglip.logit_bias.item()) == pytest.approx((10.0, -10.0))
    assert tiny_contrastive("siglip", temperature=0.5, bias=-2.0)[1].scale.item() == pytest.approx(2.0)
    assert tiny_contrastive("clip")[1].logit_bias is None


def test_features_are_fp32_and_of_length_one_and_deaf_to_padding(tiny_contrastive, make_batch):
    encoder, objective = tiny_contrastive()
    batch, longer = make_batch(), make_batch(pad_to=16)
    longer.text_BL[:, :8] = batch.text_BL
    with torch.autocast("cpu", torch.bfloat16):
        vectors = [
            objective.encode_image(encoder, batch.image_BCHW),
            objective.encode_text(batch.text_BL, batch.text_valid_BL),
        ]
    for vector_BP in vectors:
        assert (vector_BP.dtype, vector_BP.shape, vector_BP.requires_grad) == (torch.float32, (4, 12), False)
        torch.testing.assert_close(vector_BP.norm(dim=-1), torch.ones(4))
    short, long = (objective.encode_text(b.text_BL, b.text_valid_BL) for b in (batch, longer))
    torch.testing.assert_close(short, long)


@pytest.mark.parametrize("kind", KINDS)
def test_validation_by_hand(tiny_contrastive, make_batch, kind, monkeypatch):
    """Similarities 3 x 3: picture 0 finds its own caption, 1 finds that of 0, 2 is as near to its own as to that of 1."""
    encoder, objective = tiny_contrastive(kind)
    image_BP = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])
    text_BP = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    monkeypatch.setattr(objective, "_image", lambda *_: image_BP)
    monkeypatch.setattr(objective, "_text", lambda *_: text_BP)
    terms = objective.validation_terms(encoder, make_batch((3, 3, 3)))
    assert list(terms) == objective.validation_names()
    assert (terms["retrieval_error"].total.item(), terms["retrieval_error"].count.item()) == (1.0, 3)
    assert terms["contrastive"].total.item() / 3 == pytest.approx(objective.loss(image_BP, text_BP).item(), rel=1e-6)
    assert objective.validation_weights() == {"contrastive": 1.0}


def test_a_validation_batch_of_one_is_finite(tiny_contrastive, make_batch):
    for kind in KINDS:
        encoder, objective = tiny_contrastive(kind)
        terms = objective.validation_terms(encoder, make_batch((4,)))
        assert all(torch.isfinite(term.total) for term in terms.values())
        assert terms["retrieval_error"].total.item() == 0


def test_pictures_without_captions_and_batches_of_one_are_refused(tiny_contrastive, make_batch):
    encoder, objective = tiny_contrastive()
    with pytest.raises(UserError, match="need a caption for every picture; sample 'sample2' has none") as error:
        objective(encoder, make_batch((3, 8, 0, 5)))
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"data\.batch_size=1 gives a contrastive objective no negatives"):
        objective(encoder, make_batch((3,)))


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("clip", {"bias": -5.0}, "objective.contrastive.bias has no effect with objective.kind=clip"),
        ("siglip", {"max_scale": 50.0}, "objective.contrastive.max_scale has no effect with objective.kind=siglip"),
        ("clip", {"temperature": 0.0}, "objective.contrastive.temperature=0.0 must be above 0"),
        ("clip", {"temperature": -1.0}, "objective.contrastive.temperature=-1.0 must be above 0"),
        ("clip", {"temperature": 0.005}, "objective.contrastive.max_scale=100.0 is below the first scale"),
        ("clip", {"proj_dim": 0}, "objective.contrastive.proj_dim=0 must be at least 1"),
        ("clip", {"pool_heads": 5}, "objective.contrastive.pool_heads=5 must divide the encoder's width of 32"),
        (
            "siglip",
            {"text": TextTowerConfig(embed_dim=24, depth=2, num_heads=5, mlp_hidden_dim=40)},
            "text.num_heads=5 must divide objective.contrastive.text.embed_dim=24",
        ),
        (
            "siglip",
            {"text": TextTowerConfig(embed_dim=24, depth=0, num_heads=2, mlp_hidden_dim=40)},
            "objective.contrastive.text.depth=0 must be at least 1",
        ),
    ],
)
def test_options_that_cannot_be_meant(tiny_contrastive, kind, options, message):
    with pytest.raises(UserError) as error:
        tiny_contrastive(kind, **options)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", KINDS)
def test_options_of_other_kinds(kind):
    for name, options in (("image_weight", {"image_weight": 0.2}), ("text_weight", {"text_weight": 0.0})):
        with pytest.raises(UserError, match=f"objective.{name} has no effect with objective.kind={kind}"):
            ObjectiveConfig(kind=kind, **options).check()
    with pytest.raises(UserError, match=r"objective.contrastive has no effect with objective.kind=mae"):
        ObjectiveConfig(kind="mae", contrastive=ContrastiveConfig(proj_dim=3)).check()


@pytest.mark.parametrize("kind", KINDS)
def test_flops_are_torchs_count(tiny_contrastive, make_batch, kind):
    encoder, objective = tiny_contrastive(kind, path=torch.bfloat16)
    batch = make_batch((3, 8, 1, 5))
    with FlopCounterMode(display=False) as counter:
        loss = objective(encoder, batch)["contrastive"].total
        forward = counter.get_total_flops()
        loss.backward()
    dense = objective.flops(encoder, batch, attention="dense")
    assert forward == pytest.approx(dense.forward, rel=1e-6)
    assert counter.get_total_flops() == pytest.approx(dense.training, rel=1e-6)
    # the causal half leaves out 4 D a pair, block and caption: 8 * 7 / 2 pairs, 24 wide, 2 blocks, 4 captions
    causal = objective.flops(encoder, batch)
    assert dense.text_tower - causal.text_tower == 4 * 24 * 28 * 2 * 4
    assert dense.similarities == causal.similarities


def test_similarities_grow_with_the_square_of_the_batch(tiny_contrastive, make_batch):
    for kind, matrices in (("clip", 2), ("siglip", 1)):
        encoder, objective = tiny_contrastive(kind)
        one, two = (objective.flops(encoder, make_batch((8,) * count)).similarities for count in (4, 8))
        assert two - 2 * one == matrices * 2 * 12 * (8**2 - 2 * 4**2)


def test_training_finds_pairs(tiny_contrastive, make_batch):
    for kind in KINDS:
        encoder, objective = tiny_contrastive(kind)
        batch = make_batch((3, 8, 2, 5, 6, 7))
        optimiser = torch.optim.Adam([*encoder.parameters(), *objective.parameters()], lr=3e-3)
        first = objective(encoder, batch)["contrastive"].total.item()
        for _ in range(40):
            optimiser.zero_grad()
            objective(encoder, batch)["contrastive"].total.backward()
            optimiser.step()
        terms = objective.validation_terms(encoder, batch)
        assert terms["contrastive"].total.item() < first / 3
        assert terms["retrieval_error"].total.item() == 0
        similar = (
            objective.encode_image(encoder, batch.image_BCHW)
            @ F.normalize(objective.encode_text(batch.text_BL, batch.text_valid_BL)).T
        )
        assert torch.equal(similar.argmax(-1), torch.arange(6))


def test_a_tower_needs_a_contrastive_kind(tiny_contrastive):
    encoder, _ = tiny_contrastive()
    with pytest.raises(AssertionError):
        ContrastiveObjective(ObjectiveConfig(), encoder=encoder, vocab_size=29)
