"""The connector model against plain restatements: loss, packing, padding, generation with and without the cache."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel, Qwen2Config, Qwen2ForCausalLM

from evals.multimodal.connector import ConnectorModel
from evals.multimodal.examples import Generation
from evals.multimodal.language import Language, LoraConfig, SmallConfig, build_small, with_adapters
from evals.multimodal.saved import load_connector, save_connector
from evals.multimodal.sequences import collate, encode_conversation, encode_prompt
from evals.multimodal.templates import TEMPLATES
from pretrain.types import UserError

TURNS = (("what colour is it?", "red"), ("how many?", "two rings"), ("is it?", "no"))
TEXTS = [text for turn in TURNS for text in turn] * 3
NUM_PATCHES, TOKEN_DIM = 3, 6
SMALL = SmallConfig(embed_dim=16, depth=2, num_heads=2, vocab_size=300)


def family(name):
    language = build_small(SMALL, TEXTS, seed=0)
    vocab = len(language.tokenizer)
    torch.manual_seed(1)
    if name == "gpt2":
        model = GPT2LMHeadModel(GPT2Config(vocab_size=vocab, n_embd=16, n_layer=2, n_head=2, n_positions=128))
    elif name == "qwen2":
        sizes = dict(
            hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1
        )
        model = Qwen2ForCausalLM(Qwen2Config(vocab_size=vocab, max_position_embeddings=128, **sizes))
    else:
        return language
    return Language(model.eval(), language.tokenizer, template=TEMPLATES["plain"], name=name)


@pytest.fixture(params=["small", "gpt2", "qwen2"])
def model(request):
    language = family(request.param)
    torch.manual_seed(2)
    return ConnectorModel(language, token_dim=TOKEN_DIM).eval()


@pytest.fixture
def small():
    torch.manual_seed(2)
    return ConnectorModel(family("small"), token_dim=TOKEN_DIM).eval()


def tokens(count=1, seed=3):
    return torch.randn(count, NUM_PATCHES, TOKEN_DIM, generator=torch.Generator().manual_seed(seed))


def batch_of(model, turns, *, independent=False, pictures=None):
    one = encode_conversation(model.language, turns, with_picture=True, independent=independent)
    return collate(
        [one],
        num_patches=NUM_PATCHES,
        filler_id=model.language.filler_id,
        number_B=np.array([0]),
        tokens_IND=tokens() if pictures is None else pictures,
    )


def loss_by_hand(model, turns):
    """One sequence, tokens put together one by one: picture, then ids; the loss of answers and their ends."""
    embed = model.lm.get_input_embeddings()
    parts, wanted = [model.connector(tokens())[0]], [None] * NUM_PATCHES
    for question, answer in turns:
        asked, answered = model.language.question(question), model.language.answer(answer)
        parts.append(embed(torch.tensor(asked + answered)))
        wanted += [None] * len(asked) + answered
    logits = model.lm(inputs_embeds=torch.cat(parts)[None]).logits[0].log_softmax(-1)
    picked = [logits[place - 1, token] for place, token in enumerate(wanted) if token is not None]
    return -torch.stack(picked).sum(), len(picked)


def test_loss_of_a_conversation_by_hand(model):
    total, count = model.loss(batch_of(model, TURNS))
    wanted, number = loss_by_hand(model, TURNS)
    assert int(count) == number
    torch.testing.assert_close(total, wanted, atol=1e-5, rtol=1e-5)


def test_packed_turns_are_turns_each_by_itself(model):
    """Loss and gradients of one packed sequence equal those of three sequences."""
    total, count = model.loss(batch_of(model, TURNS, independent=True))
    total.backward()
    packed = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    separate = [model.loss(batch_of(model, [turn])) for turn in TURNS]
    whole = torch.stack([one for one, _ in separate]).sum()
    whole.backward()
    assert int(count) == sum(int(number) for _, number in separate)
    torch.testing.assert_close(total, whole, atol=1e-5, rtol=1e-5)
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(packed[name], parameter.grad, atol=1e-5, rtol=1e-4)


def test_a_conversation_sees_its_earlier_turns(small):
    """Unlike independent turns: another first answer changes the loss of the second."""

    def loss_of_second(first):
        turns = (("what colour is it?", first), TURNS[1])
        return loss_by_hand(small, turns)[0] - loss_by_hand(small, turns[:1])[0]

    assert not torch.isclose(loss_of_second("red"), loss_of_second("no"))


def test_the_loss_does_not_depend_on_who_else_is_in_the_batch(model):
    first, second = (
        encode_conversation(model.language, t, with_picture=True, independent=False) for t in (TURNS, TURNS[:1])
    )
    pictures = tokens(2)
    filler = model.language.filler_id
    both = collate(
        [first, second], num_patches=NUM_PATCHES, filler_id=filler, number_B=np.arange(2), tokens_IND=pictures
    )
    alone = [
        collate([one], num_patches=NUM_PATCHES, filler_id=filler, number_B=np.arange(1), tokens_IND=pictures[k : k + 1])
        for k, one in enumerate((first, second))
    ]
    total, count = model.loss(both)
    parts = [model.loss(one) for one in alone]
    assert int(count) == sum(int(c) for _, c in parts)
    torch.testing.assert_close(total, parts[0][0] + parts[1][0], atol=1e-5, rtol=1e-5)


def test_pictures_reach_the_answers_through_the_connector(small):
    one, other = (small.loss(batch_of(small, TURNS, pictures=tokens(seed=seed)))[0] for seed in (3, 4))
    assert not torch.isclose(one, other)
    one.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in small.connector.parameters())


def test_a_model_without_pictures_has_no_connector():
    language = family("small")
    blind = ConnectorModel(language, token_dim=None).eval()
    one = encode_conversation(language, TURNS, with_picture=False, independent=False)
    batch = collate([one], num_patches=0, filler_id=0, number_B=np.array([0]))
    wanted = F.cross_entropy(
        blind.lm(torch.tensor(one.ids)[None]).logits[0, :-1][torch.tensor(one.target[1:])],
        torch.tensor(one.ids[1:])[torch.tensor(one.target[1:])],
        reduction="sum",
    )
    torch.testing.assert_close(blind.loss(batch)[0], wanted)


def prompts(model, questions=("what colour is it?", "how many?", "is it?")):
    made = [encode_prompt(model.language, question, with_picture=True)[0] for question in questions]
    return collate(
        made,
        num_patches=NUM_PATCHES,
        filler_id=model.language.filler_id,
        number_B=np.arange(len(made)),
        tokens_IND=tokens(len(made)),
        pad_left=True,
    )


@pytest.mark.parametrize("num_beams", [1, 3])
def test_generation_with_the_cache_is_generation_without_it(model, num_beams):
    generation = Generation(max_tokens=7, num_beams=num_beams)
    batch = prompts(model)
    assert torch.equal(model.generate(batch, generation), model.generate(batch, generation, use_cache=False))


def greedy_by_hand(model, batch, row, steps):
    keep = batch.valid_BS[row]
    embedded = model.embed(batch)[row][keep][None]
    made = []
    for _ in range(steps):
        token = model.lm(inputs_embeds=embedded).logits[0, -1].argmax()
        made.append(int(token))
        if made[-1] in model.language.eos_ids:
            break
        embedded = torch.cat([embedded, model.lm.get_input_embeddings()(token[None])[None]], dim=1)
    return made


def test_greedy_generation_in_a_padded_batch_by_hand(model):
    batch = prompts(model)
    made = model.generate(batch, Generation(max_tokens=5)).tolist()
    for row in range(3):
        wanted = greedy_by_hand(model, batch, row, 5)
        assert made[row][: len(wanted)] == wanted


def test_sampling_is_a_function_of_its_seed(small):
    batch = prompts(small)
    one, again, other = (
        small.generate(batch, Generation(max_tokens=8, temperature=1.0, seed=seed)).tolist() for seed in (0, 0, 1)
    )
    assert one == again != other


def test_a_trained_model_is_saved_and_loaded(small, tmp_path):
    from evals.multimodal.language import LanguageConfig

    save_connector(small, LanguageConfig(), tmp_path)
    loaded = load_connector(tmp_path, LanguageConfig(), token_dim=TOKEN_DIM)
    batch = batch_of(small, TURNS)
    assert torch.equal(loaded.loss(batch)[0], small.loss(batch)[0])
    assert loaded.language.decode(loaded.language.answer("two rings")) == "two rings"
    with pytest.raises(UserError, match="holds no trained model"):
        load_connector(tmp_path / "none", LanguageConfig(), token_dim=TOKEN_DIM)


def test_adapters_are_saved_alone_and_loaded_onto_the_model(tmp_path):
    from evals.multimodal.language import LanguageConfig

    language = family("qwen2")
    language.model.save_pretrained(tmp_path / "base")
    language.tokenizer.save_pretrained(tmp_path / "base")
    config = LanguageConfig(name=str(tmp_path / "base"), template="plain", lora=LoraConfig(rank=2))
    lm = with_adapters(language, config.lora, seed=0)
    for name, parameter in lm.named_parameters():
        if "lora_B" in name:  # as if they had learned
            torch.nn.init.normal_(parameter, std=0.1)
    model = ConnectorModel(language, token_dim=TOKEN_DIM, model=lm).eval()
    save_connector(model, config, tmp_path / "trained")
    assert not (tmp_path / "trained" / "lm" / "model.safetensors").exists()
    loaded = load_connector(tmp_path / "trained", config, token_dim=TOKEN_DIM)
    batch = batch_of(model, TURNS)
    torch.testing.assert_close(loaded.loss(batch)[0], model.loss(batch)[0])
    assert model.generate(prompts(model), Generation(max_tokens=3)).shape[0] == 3
