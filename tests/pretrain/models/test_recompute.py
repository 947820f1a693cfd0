"""Activation checkpointing changes memory and nothing else."""

import pytest
import torch

from pretrain.models.recompute import recompute_blocks, transformer_blocks
from pretrain.objectives.config import MAEConfig, ObjectiveConfig
from pretrain.objectives.mae import MAEObjective


def step(modules, batch, *, dtype):
    """Loss and gradients; prefixes are drawn anew for each sample."""
    encoder, objective = modules
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        terms = objective(encoder, batch)
    loss = sum(term.weight * term.total / term.count for term in terms.values())
    loss.backward()
    return loss, {name: p.grad for module in modules for name, p in module.named_parameters()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", [{}, {"separate_decoders": True}], ids=["joint", "separate"])
def test_loss_and_gradients_are_the_same(tiny, make_batch, dtype, options):
    plain, recomputed = tiny(path=dtype, **options), tiny(path=dtype, **options)
    for module in recomputed:
        recompute_blocks(module)
    batch = make_batch()
    (loss, grads), (again, grads_again) = (step(modules, batch, dtype=dtype) for modules in (plain, recomputed))
    assert torch.equal(loss, again)
    assert grads.keys() == grads_again.keys()
    for name, grad in grads.items():
        assert torch.equal(grad, grads_again[name]), name


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_the_text_towers_blocks_are_found_and_recomputed(tiny_contrastive, make_batch, kind):
    plain, recomputed, runs = tiny_contrastive(kind), tiny_contrastive(kind), []
    assert transformer_blocks(plain[1]) == list(plain[1].text.blocks)
    for module in recomputed:
        for block in transformer_blocks(module):
            block.norm1.register_forward_hook(lambda *_, block=block: runs.append(id(block)))
        recompute_blocks(module)
    (loss, grads), (again, grads_again) = (
        step(modules, make_batch(), dtype=torch.float32) for modules in (plain, recomputed)
    )
    assert torch.equal(loss, again)
    assert grads.keys() == grads_again.keys()
    for name, grad in grads.items():
        assert torch.equal(grad, grads_again[name]), name
    assert sorted(runs.count(block) for block in set(runs)) == [2] * 4  # two blocks each in encoder and text tower


def test_maes_blocks_are_found_and_recomputed(tiny, make_batch):
    results = []
    for recompute in (False, True):
        encoder, _ = tiny()
        torch.manual_seed(1)
        config = ObjectiveConfig(kind="mae", mae=MAEConfig(embed_dim=24, depth=2, num_heads=2))
        modules = encoder, MAEObjective(config, encoder=encoder, vocab_size=29)
        assert transformer_blocks(modules[1]) == list(modules[1].decoder.blocks)
        for module in modules if recompute else ():
            recompute_blocks(module)
        results.append(step(modules, make_batch(), dtype=torch.float32))
    (loss, grads), (again, grads_again) = results
    assert torch.equal(loss, again)
    for name, grad in grads.items():
        assert torch.equal(grad, grads_again[name]), name


def test_a_recomputed_block_can_be_compiled(tiny, make_batch):
    plain, compiled = tiny(), tiny()
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    for module in compiled:
        recompute_blocks(module)
        for block in transformer_blocks(module):
            block.compile(backend="aot_eager")
    (_, grads), (_, again) = (step(modules, make_batch(), dtype=torch.float32) for modules in (plain, compiled))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    assert not torch._dynamo.utils.counters["graph_break"]
    torch.testing.assert_close(again, grads)


def test_every_block_runs_twice_and_keeps_less(tiny, make_batch):
    kept, runs = {}, {}
    for name in ("plain", "recomputed"):
        modules, calls, seen = tiny(), [], {}
        for module in modules:
            for block in transformer_blocks(module):
                block.norm1.register_forward_hook(lambda *_, block=block, calls=calls: calls.append(id(block)))
            if name == "recomputed":
                recompute_blocks(module)

        def note(tensor, seen=seen):
            seen[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            terms = modules[1](modules[0], make_batch())
        kept[name] = sum(tensor.untyped_storage().nbytes() for tensor in seen.values())
        sum(term.total for term in terms.values()).backward()
        runs[name] = sorted(calls.count(block) for block in set(calls))
    assert runs == {"plain": [1] * 4, "recomputed": [2] * 4}  # two blocks each in encoder and decoder
    assert kept["recomputed"] < kept["plain"] / 2


def test_names_of_parameters_and_captions_stay(tiny, make_batch):
    plain, recomputed = tiny(), tiny()
    for module, other in zip(plain, recomputed, strict=True):
        recompute_blocks(other)
        assert list(module.state_dict()) == list(other.state_dict())
        other.load_state_dict(module.state_dict())
    image = make_batch().image_BCHW
    captions = [modules[1].generate(modules[0], image, eos_id=1) for modules in (plain, recomputed)]
    assert torch.equal(*captions)
