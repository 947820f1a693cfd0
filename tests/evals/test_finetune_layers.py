"""Rates by layer, weight decay, drop path and settings of full fine-tuning."""

import dataclasses
import math

import pytest
import timm
import torch
from timm.layers import DropPath

from evals.encoder import BlockEncoder, Provenance
from evals.finetuning.config import FinetuneConfig
from evals.finetuning.layers import parameter_groups, set_drop_path
from evals.finetuning.module import FinetuneModule, step_draws
from evals.load import load_encoder
from evals.probe.heads import HeadConfig, build_head
from evals.probe.scored import ProbeBatch
from evals.transforms import ImageTransform
from pretrain.types import ImageSpec, UserError

CONFIG = FinetuneConfig(head=HeadConfig(num_heads=2, batch_norm=False), precision="fp32", batch_size=8)
CONVNET = "random:timm:resnet18"


def vit(*, depth=2, block=None, **options) -> BlockEncoder:
    """A ViT 32 wide with a class token, biases and norms."""
    torch.manual_seed(0)
    if block is not None:
        options["block_fn"] = block
    model = timm.create_model(
        "vit_tiny_patch16_224",
        img_size=16,
        patch_size=4,
        embed_dim=32,
        depth=depth,
        num_heads=2,
        num_classes=0,
        **options,
    )
    return BlockEncoder(
        model, transform=ImageTransform(ImageSpec(16)), provenance=Provenance("tiny", "vit_tiny_patch16_224")
    )


def batch(count=8, *, seed=0, classes=3) -> ProbeBatch:
    generator = torch.Generator().manual_seed(seed)
    image_BCHW = torch.randint(0, 256, (count, 3, 16, 16), generator=generator, dtype=torch.uint8)
    return ProbeBatch(None, image_BCHW, torch.arange(count) % classes, torch.arange(count))


def build(config=CONFIG, *, steps_per_epoch=4, seed=0, encoder=None) -> FinetuneModule:
    return FinetuneModule(encoder or vit(), config, num_classes=3, steps_per_epoch=steps_per_epoch, seed=seed)


def test_rates_of_layers_by_hand():
    """Two blocks, decay 1/2, peak 0.8: behind the blocks and head 0.8, block 2 0.4, block 1 0.2, in front of them 0.1."""
    config = dataclasses.replace(CONFIG, lr=0.8, layer_decay=0.5)
    module = build(config)
    rates = {}
    names = {id(p): name for name, p in module.named_parameters()}
    for group in module.configure_optimizers()["optimizer"].param_groups:
        for parameter in group["params"]:
            rates[names[id(parameter)]] = group["initial_lr"]
    assert len(rates) == len(names), "every parameter is in one group"
    by_layer = {}
    for name, rate in rates.items():
        layer = ".".join(name.split(".")[:4] if ".blocks." in name else name.split(".")[:3])
        by_layer.setdefault(layer, set()).add(rate)
    assert by_layer == {
        "encoder.vit.cls_token": {0.1},
        "encoder.vit.pos_embed": {0.1},
        "encoder.vit.patch_embed": {0.1},
        "encoder.vit.blocks.0": {0.2},
        "encoder.vit.blocks.1": {0.4},
        "encoder.vit.norm": {0.8},
        "head.query": {0.8},
        "head.key.weight": {0.8},
        "head.value.weight": {0.8},
        "head.classifier.weight": {0.8},
        "head.classifier.bias": {0.8},
    }


def test_schedule_by_hand():
    """Two epochs of 4 steps, warm-up of half an epoch: 2 steps up from 1e-6, 6 steps of a cosine down to 1e-5; in all layers."""
    config = dataclasses.replace(CONFIG, lr=1e-3, min_lr=1e-5, warmup_epochs=0.5, layer_decay=0.5)
    optimizers = build(config).configure_optimizers()
    optimizer, scheduler = optimizers["optimizer"], optimizers["lr_scheduler"]["scheduler"]
    found = []
    for _ in range(8):
        found.append({group["name"]: group["lr"] for group in optimizer.param_groups})
        optimizer.step()
        scheduler.step()
    warm = [1e-6, (1e-6 + 1e-3) / 2]
    cosine = [1e-5 + (1e-3 - 1e-5) * 0.5 * (1 + math.cos(math.pi * k / 5)) for k in range(6)]
    assert [rates["head"] for rates in found] == pytest.approx(warm + cosine)
    assert [rates["encoder 0"] for rates in found] == pytest.approx([rate / 8 for rate in warm + cosine])


@pytest.mark.parametrize("kind", ["attentive", "linear"])
def test_matrices_alone_are_decayed(kind):
    encoder, head = vit().requires_grad_(True), build_head(32, 3, HeadConfig(kind=kind, num_heads=2))
    names = {id(p): name for part in (encoder, head) for name, p in part.named_parameters()}
    decayed = {True: set(), False: set()}
    for group in parameter_groups(encoder, head, CONFIG):
        decayed[group["weight_decay"] > 0] |= {names[id(p)] for p in group["params"]}
        assert group["weight_decay"] in (0.0, CONFIG.weight_decay)
    blocks = {
        f"vit.blocks.{b}.{name}.weight" for b in (0, 1) for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    }
    own = {"key.weight", "value.weight", "classifier.weight"} if kind == "attentive" else {"classifier.weight"}
    assert decayed[True] == blocks | {"vit.patch_embed.proj.weight"} | own
    assert decayed[False] == set(names.values()) - decayed[True]
    assert {"vit.cls_token", "vit.pos_embed", "vit.norm.weight", "vit.blocks.0.mlp.fc1.bias"} <= decayed[False]


def test_tables_of_other_families_are_not_decayed(tmp_path):
    """transformers keeps CLIP's positions in an nn.Embedding, a table of the shape of a matrix."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    CLIPVisionModel(CLIPVisionConfig(**sizes, image_size=16, patch_size=8)).save_pretrained(tmp_path)
    encoder = load_encoder(f"hf:{tmp_path}").requires_grad_(True)
    names = {id(p): name for name, p in encoder.named_parameters()}
    config = dataclasses.replace(CONFIG, layer_decay=1.0, drop_path=0.0)
    groups = parameter_groups(encoder, torch.nn.Linear(32, 3), config)
    assert {group["lr"] for group in groups} == {config.lr}
    decayed = {names.get(id(p), "head") for group in groups if group["weight_decay"] for p in group["params"]}
    assert any(name.endswith("self_attn.q_proj.weight") for name in decayed)
    assert any(name.endswith("patch_embedding.weight") for name in decayed), "a convolution"
    assert not any(name.endswith(("position_embedding.weight", "class_embedding")) for name in decayed)


def test_early_layers_move_less():
    """The same gradient's sign in every layer (Adam's first step): each moves by its rate, and none stays."""
    config = dataclasses.replace(CONFIG, layer_decay=0.25, lr=1e-2, weight_decay=0.0, drop_path=0.0, clip=None)
    module = build(config)
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    optimizer = module.configure_optimizers()["optimizer"]
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"]  # the first step of a warm-up would hardly be seen
    module.loss(batch(), step=0).backward()
    assert all(p.grad is not None for p in module.parameters())
    optimizer.step()
    moved = {name: (p.detach() - before[name]).abs().max().item() for name, p in module.named_parameters()}
    assert min(moved.values()) > 0
    assert moved["head.classifier.weight"] == pytest.approx(1e-2, rel=0.02)
    assert moved["encoder.vit.norm.weight"] == pytest.approx(1e-2, rel=0.02)
    assert moved["encoder.vit.blocks.1.mlp.fc2.weight"] == pytest.approx(1e-2 / 4, rel=0.02)
    assert moved["encoder.vit.blocks.0.mlp.fc2.weight"] == pytest.approx(1e-2 / 16, rel=0.02)
    assert moved["encoder.vit.patch_embed.proj.weight"] == pytest.approx(1e-2 / 64, rel=0.02)


def test_parameters_that_are_not_read_keep_their_values():
    """The class token's own summary leaves no parameter out; a pooling that the head does not read gets no gradient."""
    module = build(encoder=vit(global_pool="map", class_token=False))
    module.loss(batch(), step=0).backward()
    without = {name for name, p in module.named_parameters() if p.grad is None}
    assert without
    assert all(name.startswith("encoder.vit.attn_pool.") for name in without)


# drop path


def test_drop_path_is_active_in_training_alone():
    """Rate 0.5 in the last of two blocks: in training pictures of one batch differ by draw; evaluation never draws."""
    module = build(dataclasses.replace(CONFIG, drop_path=0.5))
    image_BCHW = torch.randn(1, 3, 16, 16).expand(64, -1, -1, -1)
    assert module.training
    with torch.no_grad():
        torch.manual_seed(0)
        drawn = module(image_BCHW)
        assert len(drawn.round(decimals=4).unique(dim=0)) == 4, "two branches that are there or not"
        module.eval()
        calm = module(image_BCHW)
        assert torch.allclose(calm, calm[:1].expand_as(calm), atol=1e-6)
        torch.testing.assert_close(calm, build(dataclasses.replace(CONFIG, drop_path=0.0)).eval()(image_BCHW))


def test_a_dropped_branch_is_left_out():
    """Keeping a branch scales it by 1 / (1 - rate), leaving it out gives the block's input: its mean is the branch."""
    encoder = vit(depth=3)
    assert set_drop_path(encoder, 0.4) == pytest.approx([0.0, 0.2, 0.4])
    rates = [[m.drop_prob for m in block.modules() if isinstance(m, DropPath)] for block in encoder.vit.blocks]
    assert rates == [[], pytest.approx([0.2, 0.2]), pytest.approx([0.4, 0.4])]
    branch = encoder.vit.blocks[2].drop_path1.train()
    x = torch.ones(2000, 1, 1)
    torch.manual_seed(0)
    out = branch(x).flatten()
    assert sorted(set(out.tolist())) == pytest.approx([0.0, 1 / 0.6])
    assert out.mean().item() == pytest.approx(1.0, abs=0.05)
    names = list(encoder.state_dict())
    set_drop_path(encoder, 0.0)
    assert not any(isinstance(m, DropPath) for m in encoder.modules())
    assert list(encoder.state_dict()) == names


def test_drop_path_in_other_blocks():
    """timm's blocks with parallel branches keep theirs elsewhere."""
    from timm.models.vision_transformer import ParallelScalingBlock, ParallelThingsBlock

    for block, per_block in ((ParallelScalingBlock, 1), (ParallelThingsBlock, 4)):
        encoder = vit(block=block)
        set_drop_path(encoder, 0.3)
        paths = [m for m in encoder.modules() if isinstance(m, DropPath)]
        assert [p.drop_prob for p in paths] == pytest.approx([0.3] * per_block), block


def test_blocks_without_a_drop_path_are_told():
    encoder = vit()
    for block in encoder.vit.blocks:
        del block.drop_path1, block.drop_path2
    with pytest.raises(UserError, match=r"^drop_path=0.1: Block of vit_tiny_patch16_224 has no drop path; set 0"):
        set_drop_path(encoder, 0.1)


# draws, mixing, loss


def test_draws_are_a_function_of_seed_and_step():
    module = build(dataclasses.replace(CONFIG, drop_path=0.5, mixup=0.8, cutmix=1.0))
    state = torch.get_rng_state()
    first = [module.loss(batch(), step=step).item() for step in (0, 1, 2)]
    assert torch.equal(torch.get_rng_state(), state), "no other draw of the process is touched"
    torch.manual_seed(99)
    assert [module.loss(batch(), step=step).item() for step in (2, 0, 1)] == [first[2], first[0], first[1]]
    assert len(set(first)) == 3
    other = build(dataclasses.replace(CONFIG, drop_path=0.5, mixup=0.8, cutmix=1.0), seed=1)
    other.load_state_dict(module.state_dict())
    assert other.loss(batch(), step=0).item() != first[0]


def test_loss_with_label_smoothing_by_hand():
    """Smoothing 0.3 over three classes: targets 0.8, 0.1, 0.1."""
    module = build(dataclasses.replace(CONFIG, label_smoothing=0.3, drop_path=0.0))
    some = batch()
    with torch.no_grad():
        log_BC = module(module.encoder.transform.spec.normalise(some.image_BCHW)).log_softmax(1)
        target_BC = torch.full((8, 3), 0.1)
        target_BC[torch.arange(8), some.label_B] = 0.8
        expected = -(target_BC * log_BC).sum(1).mean().item()
        assert module.loss(some, step=0).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("count", [8, 7, 1])
def test_mixup_by_hand(count):
    """Picture i is lam * i + (1 - lam) * (its mirror in the batch), and so is its target; a last odd one stays."""
    module = build(dataclasses.replace(CONFIG, mixup=0.8, label_smoothing=0.0))
    some = batch(count)
    image_BCHW = some.image_BCHW.float()
    with step_draws(0, 5, torch.device("cpu")):
        mixed_BCHW, target_BC = module._mixed(image_BCHW.clone(), some.label_B)
    even = count // 2 * 2
    one_hot_BC = torch.nn.functional.one_hot(some.label_B, 3).float()
    if even:
        lam = float(((mixed_BCHW[0] - image_BCHW[even - 1]) / (image_BCHW[0] - image_BCHW[even - 1]))[0, 0, 0])
        assert 0 < lam < 1
        for whole, mixed in ((image_BCHW, mixed_BCHW), (one_hot_BC, target_BC)):
            expected = lam * whole[:even] + (1 - lam) * whole[:even].flip(0)
            torch.testing.assert_close(mixed[:even], expected, rtol=1e-4, atol=1e-3)
    assert torch.equal(mixed_BCHW[even:], image_BCHW[even:])
    assert torch.equal(target_BC[even:], one_hot_BC[even:])


def test_clipping_is_over_encoder_and_head():
    module = build(dataclasses.replace(CONFIG, clip=2.0))
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    module.configure_gradient_clipping(None)
    norm = math.sqrt(sum(float((p.grad**2).sum()) for p in module.parameters()))
    assert norm == pytest.approx(2.0, rel=1e-4)


# settings


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer_decay": 0.0}, r"finetune.layer_decay=0.0 must be above 0"),
        ({"layer_decay": 1.5}, r"finetune.layer_decay=1.5 must be at most 1"),
        ({"lr": 0.0}, r"finetune.lr=0.0 must be above 0"),
        ({"epochs": 0}, r"finetune.epochs=0 must be above 0"),
        ({"batch_size": 0}, r"finetune.batch_size=0 must be above 0"),
        ({"clip": 0.0}, r"finetune.clip=0.0 must be above 0"),
        ({"held_out": 1.0}, r"finetune.held_out=1.0 must be above 0 and below 1"),
        ({"weight_decay": -0.1}, r"finetune.weight_decay=-0.1 must not be negative"),
        ({"mixup": -1.0}, r"finetune.mixup=-1.0 must not be negative"),
        ({"drop_path": 1.0}, r"finetune.drop_path=1.0 must be at least 0 and below 1"),
        ({"label_smoothing": 1.0}, r"finetune.label_smoothing=1.0"),
        ({"min_lr": 1.0}, r"finetune.min_lr=1.0 is above finetune.lr"),
        ({"warmup_epochs": 2.0}, r"finetune.warmup_epochs=2.0 must be below finetune.epochs=2"),
        ({"head": HeadConfig(num_heads=5)}, r"head.num_heads=5 must divide the encoder's width 32"),
    ],
)
def test_settings_that_cannot_be_meant(change, message):
    with pytest.raises(UserError, match=message) as caught:
        build(dataclasses.replace(CONFIG, **change))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("change", [{"layer_decay": 1.0}, {"drop_path": 0.0}])
def test_encoders_without_blocks_are_refused(change):
    config = dataclasses.replace(CONFIG, **change)
    with pytest.raises(
        UserError, match=r"'random:timm:resnet18': its blocks cannot be reached.*layer_decay=1"
    ) as caught:
        config.check_encoder(load_encoder(CONVNET))
    assert "\n" not in str(caught.value)
    dataclasses.replace(CONFIG, layer_decay=1.0, drop_path=0.0).check_encoder(load_encoder(CONVNET))
