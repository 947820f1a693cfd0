"""MAE against a loop over samples that was written apart, what it must not see, its draws, its FLOPs, and its errors."""

import math

import pytest
import timm
import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from pretrain.models.attention import choose_fused_attention
from pretrain.models.recompute import recompute_blocks
from pretrain.models.sharding import shard
from pretrain.models.vision import EncoderConfig, build_encoder
from pretrain.objectives.build import build_objective
from pretrain.objectives.config import MAEConfig, ObjectiveConfig
from pretrain.optim import is_decayed
from pretrain.types import UserError

AIMV2 = EncoderConfig(embed_dim=32, depth=2, num_heads=4, mlp_hidden_dim=64, img_size=16)
#: LayerNorms, GELU, biases, positions without a norm behind the patchifier
PLAIN = EncoderConfig(
    "vit_tiny_patch16_224", embed_dim=32, depth=2, num_heads=4, mlp_hidden_dim=64, patch_size=4, img_size=16
)
#: a norm in front of the blocks
PRE_NORM = EncoderConfig("vit_base_patch16_clip_224", embed_dim=32, depth=2, num_heads=4, patch_size=4, img_size=16)
ENCODERS = pytest.mark.parametrize("config", [AIMV2, PLAIN, PRE_NORM], ids=["aimv2", "plain", "pre_norm"])


def build(config=AIMV2, *, path=torch.float32, **options):
    """Encoder (16 patches) and objective (24 wide, 2 blocks, 12 patches hidden) with random weights; options go to MAEConfig."""
    torch.manual_seed(0)
    encoder = build_encoder(config)
    options = {"embed_dim": 24, "depth": 2, "num_heads": 2} | options
    objective = build_objective(ObjectiveConfig(kind="mae", mae=MAEConfig(**options)), encoder=encoder, vocab_size=9)
    for module in (encoder, objective):
        choose_fused_attention(module, device_type="cpu", dtype=path)
    return encoder, objective


def rows(batch, chosen):
    parts = {name: getattr(batch, name)[chosen] for name in ("image_BCHW", "text_BL", "text_valid_BL", "position_B")}
    return type(batch)(**parts, seed=batch.seed, keys=[batch.keys[row] for row in chosen], captions=[""] * len(chosen))


def gradients(encoder, objective, batch):
    term = objective(encoder, batch)["masked_mse"]
    parameters = [*encoder.parameters(), *objective.parameters()]
    return term, torch.autograd.grad(term.total / term.count, parameters)


def sincos(row, column, width):
    """A quarter of the features each: sine and cosine of the row, of the column, at 10000 ** (-4 k / width)."""
    angles = [place * 10_000 ** (-4 * k / width) for place in (row, column) for k in range(width // 4)]
    return torch.tensor([f(angle) for f in (math.sin, math.cos) for angle in angles])


def rms_norm(x, norm):
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * norm.weight


def one_loss(encoder, decoder, image_CHW, hidden):
    """Squared error of each hidden patch of one picture, by slices, with the decoder's blocks written out."""
    corner = [(4 * (place // 4), 4 * (place % 4)) for place in range(16)]
    patches = [image_CHW[:, y : y + 4, x : x + 4] for y, x in corner]
    visible = [place for place in range(16) if place not in hidden]
    embedded = torch.stack([(encoder.patch_embed.proj.weight * patches[p]).sum((1, 2, 3)) for p in visible])
    if encoder.patch_embed.proj.bias is not None:
        embedded = embedded + encoder.patch_embed.proj.bias
    x = encoder.patch_embed.norm(embedded) + encoder.pos_embed[0, visible]
    x = encoder.norm(encoder.blocks(encoder.norm_pre(x[None])))[0] @ decoder.image_proj.weight.T
    seen = dict(zip(visible, x, strict=True))
    x = torch.stack([seen.get(p, decoder.mask_token) + sincos(p // 4, p % 4, 24) for p in range(16)])
    for block in decoder.blocks:
        q, k, v = (rms_norm(x, block.norm1) @ block.attn.qkv.weight.T).split(24, dim=-1)
        heads = []
        for head in (slice(0, 12), slice(12, 24)):  # two heads of 12
            heads.append(((q[:, head] @ k[:, head].T) / 12**0.5).softmax(-1) @ v[:, head])
        x = x + torch.cat(heads, -1) @ block.attn.proj.weight.T
        inner, mlp = rms_norm(x, block.norm2), block.mlp
        inner = F.silu(inner @ mlp.fc1_g.weight.T) * (inner @ mlp.fc1_x.weight.T)
        x = x + inner @ mlp.fc2.weight.T
    prediction = rms_norm(x, decoder.norm) @ decoder.pixel_head.weight.T
    losses = []
    for place in hidden:
        target = patches[place].permute(1, 2, 0).flatten()  # row, column, channel
        target = (target - target.mean()) / (target.var(unbiased=True) + 1e-6).sqrt()
        losses.append((prediction[place] - target).square().mean())
    return losses


@ENCODERS
@pytest.mark.parametrize("validates", [False, True])
def test_loss_and_gradients_equal_a_restatement(make_batch, attention_path, config, validates):
    encoder, objective = build(config, path=attention_path)
    nn.init.normal_(objective.decoder.pixel_head.weight)  # predictions that count
    batch = make_batch((3, 8, 1, 5))
    mask = objective.fixed_mask(batch.position_B) if validates else objective.mask(batch.position_B, seed=batch.seed)
    losses = []
    for image_CHW, hidden in zip(batch.image_BCHW, mask.hidden_BM.tolist(), strict=True):
        losses += one_loss(encoder, objective.decoder, image_CHW, hidden)
    terms = objective.validation_terms(encoder, batch) if validates else objective(encoder, batch)
    assert terms.keys() == {"masked_mse"}
    term = terms["masked_mse"]
    assert term.count == len(losses) == 4 * 12
    assert term.weight == 1.0
    torch.testing.assert_close(term.total, torch.stack(losses).sum(), atol=1e-4, rtol=1e-5)
    parameters = [*encoder.parameters(), *objective.parameters()]
    ours, theirs = (torch.autograd.grad(total, parameters) for total in (term.total, torch.stack(losses).sum()))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)


@ENCODERS
def test_hidden_patches_are_seen_by_the_target_alone(make_batch, config):
    encoder, objective = build(config)
    batch, other = make_batch((3, 8)), make_batch((3, 8))
    mask = objective.mask(batch.position_B, seed=batch.seed)
    seen = []
    encoder.norm_pre.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].clone()))

    def change(place):
        y, x = 4 * (place // 4), 4 * (place % 4)
        other.image_BCHW = batch.image_BCHW.clone()
        other.image_BCHW[0, :, y : y + 4, x : x + 4] += torch.randn(3, 4, 4)
        return objective.predict_patches(encoder, other.image_BCHW, mask)

    before = objective.predict_patches(encoder, batch.image_BCHW, mask)
    loss = objective(encoder, batch)["masked_mse"].total
    for place in mask.hidden_BM[0].tolist():
        assert torch.equal(change(place), before)
        assert torch.equal(seen[-1], seen[0])
        assert objective(encoder, other)["masked_mse"].total != loss
    assert seen[0].shape == (2, 4, 32), "the blocks run on the visible patches alone"
    for place in mask.visible_BK[0].tolist():
        after = change(place)
        assert (after[0] != before[0]).any(-1).all()
        assert torch.equal(after[1], before[1]), "pictures do not see each other"
        assert (seen[-1] != seen[0]).any(-1).sum() == 1


def test_the_encoder_is_left_as_it_was(make_batch):
    encoder, objective = build()
    batch = make_batch((3, 8))
    objective(encoder, batch)
    assert not encoder.patch_drop._forward_hooks
    assert encoder.forward_features(batch.image_BCHW).shape == (2, 16, 32)
    with pytest.raises(AssertionError):  # timm's, for pictures of another size
        objective.predict_patches(encoder, torch.zeros(2, 3, 20, 20), objective.fixed_mask(batch.position_B))
    assert not encoder.patch_drop._forward_hooks


def test_masks_are_functions_of_seed_and_position():
    _, objective = build()
    positions = torch.arange(2000)
    mask = objective.mask(positions, seed=7)
    both = torch.cat([mask.visible_BK, mask.hidden_BM], dim=-1)
    assert torch.equal(both.sort(-1).values, torch.arange(16).expand(2000, -1)), "each patch once"
    shuffled = torch.randperm(2000)
    assert torch.equal(objective.mask(shuffled, seed=7).hidden_BM, mask.hidden_BM[shuffled])
    assert torch.equal(objective.mask(positions[50:51], seed=7).hidden_BM, mask.hidden_BM[50:51])

    def equal_share(other):
        return (other == mask.hidden_BM).all(-1).float().mean()

    # 1820 choices of 12 among 16
    assert equal_share(mask.hidden_BM.roll(1, 0)) < 0.01
    assert equal_share(objective.mask(positions, seed=8).hidden_BM) < 0.01
    assert equal_share(objective.fixed_mask(positions).hidden_BM) < 0.01


def test_masks_are_uniform():
    _, objective = build(mask_ratio=0.25)
    mask = objective.mask(torch.arange(40_000), seed=3)
    hidden_BN = torch.zeros(40_000, 16).scatter(1, mask.hidden_BM, 1.0)
    assert (hidden_BN.mean(0) - 0.25).abs().max() < 0.011  # five standard errors, sqrt(0.25 * 0.75 / 40000)
    pair_NN = hidden_BN.T @ hidden_BN / 40_000
    share = 4 / 16 * 3 / 15  # of two patches at once, drawn without putting back
    assert (pair_NN[~torch.eye(16, dtype=torch.bool)] - share).abs().max() < 0.0055
    next_sample = (hidden_BN[1:] * hidden_BN[:-1]).mean()
    assert abs(next_sample - 0.0625) < 0.002


def test_sums_do_not_depend_on_the_split(make_batch):
    encoder, objective = build()
    batch = make_batch((3, 8, 1, 5))
    for terms_of in (objective, objective.validation_terms):
        whole = terms_of(encoder, batch)["masked_mse"]
        parts = [terms_of(encoder, rows(batch, chosen))["masked_mse"] for chosen in ([2, 0, 3], [1])]
        torch.testing.assert_close(whole.total, sum(part.total for part in parts), atol=1e-4, rtol=1e-5)
        assert whole.count == sum(part.count for part in parts)


def test_validation_knows_no_seed_and_training_does(make_batch):
    encoder, objective = build()
    batch, other = make_batch((3, 8)), make_batch((3, 8))
    other.seed = 8
    validation, again = (objective.validation_terms(encoder, b)["masked_mse"].total.detach() for b in (batch, other))
    assert torch.equal(validation, again)
    training, drawn = (objective(encoder, b)["masked_mse"].total.detach() for b in (batch, other))
    assert len({float(validation), float(training), float(drawn)}) == 3
    assert objective.validation_names() == list(objective.validation_weights()) == ["masked_mse"]
    assert objective.validation_weights() == {"masked_mse": 1.0}
    assert not any((objective.predicts_text, objective.predicts_pixels, objective.contrasts))


@pytest.mark.parametrize(("ratio", "hidden"), [(0.75, 12), (0.9, 14), (0.5, 8), (0.06, 1), (0.95, 15)])
def test_as_many_patches_are_hidden_as_the_share_says(make_batch, ratio, hidden):
    encoder, objective = build(mask_ratio=ratio)
    assert objective(encoder, make_batch((3, 8, 1)))["masked_mse"].count == 3 * hidden


@ENCODERS
def test_gradients_reach_every_parameter(make_batch, config):
    encoder, objective = build(config)
    optimizer = torch.optim.AdamW([*encoder.parameters(), *objective.parameters()], lr=1e-3)
    for step in range(3):
        optimizer.zero_grad()
        term = objective(encoder, make_batch((3, 8, 1, 5), first_position=4 * step))["masked_mse"]
        (term.total / term.count).backward()
        for module in (encoder, objective):
            for name, parameter in module.named_parameters():
                assert parameter.grad is not None, name
                assert torch.isfinite(parameter.grad).all(), name
                assert parameter.grad.any(), name
        optimizer.step()
    # of a position that no picture shows there is none
    hidden_everywhere = [p for p in range(16) if p not in objective.mask(torch.arange(8, 9), seed=7).visible_BK]
    objective.zero_grad()
    encoder.zero_grad()
    objective(encoder, make_batch((3,), first_position=8))["masked_mse"].total.backward()
    assert not encoder.pos_embed.grad[0, hidden_everywhere].any()


@torch.no_grad()
def test_weights_at_the_start():
    decoder = build(embed_dim=512, depth=2, num_heads=8)[1].decoder
    assert decoder.mask_token.std() == pytest.approx(0.02, rel=0.15)
    assert decoder.pixel_head.weight.std() == pytest.approx((2 * 2 * 512) ** -0.5, rel=0.05)
    bound = (6 / (512 + 1536)) ** 0.5  # xavier uniform
    assert decoder.blocks[0].mlp.fc1_g.weight.abs().max() == pytest.approx(bound, rel=0.01)
    assert "position_ND" not in decoder.state_dict()
    assert not [name for name, p in decoder.named_parameters() if is_decayed(name, p) != (p.ndim == 2)]
    assert not [name for name, _ in decoder.named_parameters() if name.endswith("bias")]


@ENCODERS
def test_flops_equal_the_counters(make_batch, config):
    # torch's counter sees no fused attention on a CPU
    encoder, objective = build(config, path=torch.bfloat16)
    batch = make_batch((3, 8, 1, 5))
    counter = FlopCounterMode(display=False)
    with counter:
        term = objective(encoder, batch)["masked_mse"]
        forward = counter.get_total_flops()
        term.total.backward()
    flops = objective.flops(encoder, batch)
    assert forward == flops.forward
    assert counter.get_total_flops() == flops.training
    assert objective.flops(encoder, batch, attention="dense") == flops, "none of its attention is causal"


def test_flops_by_hand(make_batch):
    encoder, objective = build()
    flops = objective.flops(encoder, make_batch((3, 8)))
    # 2 pictures of 16 patches, 4 of them visible; 48 pixels in a patch; encoder 32 wide with 64 inside, decoder 24 with 64
    assert flops.patchifier == 2 * (2 * 16) * 48 * 32
    assert flops.encoder == 2 * (2 * (2 * 4) * (4 * 32**2 + 3 * 32 * 64) + 4 * (2 * 4**2) * 32)
    blocks = 2 * (2 * (2 * 16) * (4 * 24**2 + 3 * 24 * 64) + 4 * (2 * 16**2) * 24)
    assert flops.decoder == blocks + 2 * (2 * 4) * 32 * 24
    assert flops.pixel_head == 2 * (2 * 12) * 48 * 24
    assert flops.text_head == flops.text_tower == flops.similarities == 0


def test_predicted_pictures(make_batch):
    encoder, objective = build()
    image_BCHW = make_batch((3, 8)).image_BCHW
    shown_BCHW, hidden_B1HW = objective.predict(encoder, image_BCHW, position_B=torch.tensor([5, 3]))
    mask = objective.fixed_mask(torch.tensor([5, 3]))
    prediction_BMP = objective.predict_patches(encoder, image_BCHW, mask)
    assert not shown_BCHW.requires_grad
    for row in range(2):
        hidden = mask.hidden_BM[row].tolist()
        for place in range(16):
            y, x = 4 * (place // 4), 4 * (place % 4)
            cut = (row, slice(None), slice(y, y + 4), slice(x, x + 4))
            assert hidden_B1HW[cut].all() == hidden_B1HW[cut].any() == (place in hidden)
            true, expected = image_BCHW[cut], image_BCHW[cut]
            if place in hidden:
                predicted = prediction_BMP[row, hidden.index(place)].view(4, 4, 3).permute(2, 0, 1)
                expected = predicted * (true.var(unbiased=True) + 1e-6).sqrt() + true.mean()
            torch.testing.assert_close(shown_BCHW[cut], expected)
    default, first = (
        objective.predict(encoder, image_BCHW),
        objective.predict(encoder, image_BCHW, position_B=torch.arange(2)),
    )
    assert all(map(torch.equal, default, first))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_recomputed_blocks_change_nothing(make_batch, dtype):
    plain, recomputed = build(path=dtype), build(path=dtype)
    for module in recomputed:
        recompute_blocks(module)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        (term, grads), (again, grads_again) = (gradients(*modules, make_batch()) for modules in (plain, recomputed))
    assert torch.equal(term.total, again.total)
    assert term.total.dtype == torch.float32
    assert all(map(torch.equal, grads, grads_again))


@pytest.fixture
def mesh(tmp_path):
    """One process: parameters are DTensors all the same, and whatever runs outside of FSDP2's hooks fails on them."""
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    distributed.destroy_process_group()


def test_sharded(make_batch, mesh):
    plain, batch = build(), make_batch()

    def sharded():
        # anew for each way in: the root's own weights stay gathered until a backward pass
        modules = build()
        for module in modules:
            recompute_blocks(module)
        shard(modules, mesh=mesh, low_precision=False)
        return modules

    term, grads = gradients(*plain, batch)
    encoder, objective = sharded()
    again = objective(encoder, batch)["masked_mse"]
    torch.testing.assert_close(again.total, term.total)
    (again.total / again.count).backward()
    for parameter, grad in zip([*encoder.parameters(), *objective.parameters()], grads, strict=True):
        torch.testing.assert_close(parameter.grad.full_tensor(), grad, atol=1e-6, rtol=1e-4)
    validation, expected = (o.validation_terms(e, batch)["masked_mse"].total for e, o in (sharded(), plain))
    torch.testing.assert_close(validation, expected)
    picture, expected = (o.predict(e, batch.image_BCHW)[0] for e, o in (sharded(), plain))
    torch.testing.assert_close(picture, expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask_ratio": 0.0}, "mask_ratio=0.0 must lie between 0 and 1"),
        ({"mask_ratio": 1.0}, "mask_ratio=1.0 must lie between 0 and 1"),
        ({"mask_ratio": -0.5}, "mask_ratio=-0.5 must"),
        ({"mask_ratio": math.nan}, "mask_ratio=nan must"),
        ({"mask_ratio": 0.01}, "mask_ratio=0.01 hides 0 of 16 patches: 1 to 15 must be"),
        ({"mask_ratio": 0.99}, "mask_ratio=0.99 hides 16 of 16 patches"),
        ({"embed_dim": 26, "num_heads": 4}, "num_heads=4 must divide objective.mae.embed_dim=26"),
        ({"embed_dim": 26}, "embed_dim=26 must be a multiple of 4"),
        ({"embed_dim": 0}, "embed_dim=0 must be at least 1"),
        ({"depth": 0}, "depth=0 must be at least 1"),
        ({"num_heads": 0}, "num_heads=0 must be at least 1"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(UserError, match=r"^objective\.mae\.") as error:
        build(**options)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"class_token": True}, "1 class or register tokens"),
        ({"reg_tokens": 4}, "4 class or register tokens"),
        ({"pos_embed": "none"}, "adds positions"),
        ({"patch_drop_rate": 0.5}, "patch_drop_rate=0"),
    ],
)
def test_encoders_that_it_cannot_take(options, message):
    options = {"class_token": False, "global_pool": "avg", "img_size": 32, "depth": 1} | options
    encoder = timm.create_model("vit_tiny_patch16_224", **options)
    with pytest.raises(UserError, match=message):
        build_objective(ObjectiveConfig(kind="mae"), encoder=encoder, vocab_size=9)
