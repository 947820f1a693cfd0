"""Language models by folder, the small one from nothing, adapters, chat templates; what cannot be used is one line."""

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from evals.multimodal.language import (
    LanguageConfig,
    LoraConfig,
    SmallConfig,
    build_small,
    language_settings,
    load_language,
    with_adapters,
)
from evals.multimodal.templates import TEMPLATES, find_template
from pretrain.types import UserError

SMALL = SmallConfig(embed_dim=16, depth=1, num_heads=2, vocab_size=300)
TEXTS = ["what colour is it?", "red", "how many?", "two rings"] * 3
CHAT = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def word_tokenizer(*, eos="</s>", pad=None, chat=None):
    vocabulary = {"<unk>": 0, "</s>": 1, "<|end|>": 2, "red": 3, "what": 4, "<s>": 5}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token=eos, pad_token=pad)
    made.add_special_tokens({"additional_special_tokens": ["<|end|>"]})
    made.chat_template = chat
    return made


@pytest.fixture
def folder(tmp_path):
    def write(tokenizer=None):
        GPT2LMHeadModel(GPT2Config(vocab_size=16, n_embd=8, n_layer=1, n_head=2, n_positions=64)).save_pretrained(
            tmp_path
        )
        (tokenizer or word_tokenizer()).save_pretrained(tmp_path)
        return str(tmp_path)

    return write


def test_the_small_one_has_the_sizes_it_is_asked_for():
    language = build_small(SMALL, TEXTS, seed=0)
    config = language.model.config
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (16, 1, 2)
    assert config.vocab_size == len(language.tokenizer) <= 300
    assert language.context_length == 2048
    assert language.width == 16


def test_the_small_one_is_a_function_of_its_seed():
    first, again, other = (build_small(SMALL, TEXTS, seed=seed).model.state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_an_answer_is_closed_and_read_back():
    language = build_small(SMALL, TEXTS, seed=0)
    ids = language.answer("two rings")
    assert ids[-1] in language.eos_ids
    assert not set(ids[:-1]) & set(language.eos_ids)
    assert language.decode([*ids, 5, 6]) == "two rings"


def test_a_folder_of_another_family_loads(folder):
    language = load_language(LanguageConfig(name=folder(), template="plain"))
    assert language.context_length == 64
    assert language.width == 8
    assert language.decode([3, 1, 4]) == "red"


def test_a_tokenizer_without_padding_is_no_fault(folder):
    language = load_language(LanguageConfig(name=folder(word_tokenizer(pad=None)), template="plain"))
    assert language.tokenizer.pad_token_id is None
    assert language.filler_id == language.tokenizer.eos_token_id


def test_a_tokenizer_without_an_end_is_refused(folder):
    with pytest.raises(UserError, match="has no EOS token, which has to end an answer"):
        load_language(LanguageConfig(name=folder(word_tokenizer(eos=None)), template="plain"))


def test_a_folder_that_is_no_language_model_is_one_line(tmp_path):
    with pytest.raises(UserError, match="does not load as a causal language model") as caught:
        load_language(LanguageConfig(name=str(tmp_path)))
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"the folder '\./nowhere' does not exist"):
        load_language(LanguageConfig(name="./nowhere"))


def test_a_chat_template_gives_the_fixed_pieces():
    """<|user|>\\n<image>\\nQ<|end|>\\n<|assistant|>\\nA<|end|>\\n<|user|>\\nQ2<|end|>\\n<|assistant|>\\n"""
    template = find_template("auto", word_tokenizer(chat=CHAT))
    assert template.opening == "<|user|>\n"
    assert template.after_picture == "\n"
    assert template.to_answer == "<|end|>\n<|assistant|>\n"
    assert template.end == "<|end|>"
    assert template.next_turn == "\n<|user|>\n"


def test_a_chat_templates_end_closes_answers(folder):
    language = load_language(LanguageConfig(name=folder(word_tokenizer(chat=CHAT))))
    assert language.end == [2]
    assert set(language.eos_ids) >= {1, 2}
    assert language.answer("red") == [3, 2]


def test_templates_that_are_not_made_of_fixed_pieces_are_refused():
    odd = "{% for m in messages %}{{ loop.index }}:{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}!{% endif %}"
    with pytest.raises(UserError, match="goes from question to answer by '2:' once and by '!' later"):
        find_template("chat", word_tokenizer(chat=odd))
    with pytest.raises(UserError, match="does not write"):
        find_template("chat", word_tokenizer(chat="{{ messages[0]['content'] }}"))


def test_template_names():
    assert find_template("auto", word_tokenizer()) == TEMPLATES["vicuna_v1"]
    with pytest.raises(UserError, match="has no chat template"):
        find_template("chat", word_tokenizer())
    with pytest.raises(UserError, match="'llama' is unknown; give auto, chat, plain or vicuna_v1"):
        find_template("llama", word_tokenizer())


def test_adapters_alone_learn_and_begin_as_nothing():
    language = build_small(SMALL, TEXTS, seed=0)
    ids = torch.tensor([[5, 6, 7]])
    before = language.model(ids).logits
    adapted = with_adapters(language, LoraConfig(rank=2), seed=0)
    assert torch.equal(adapted(ids).logits, before)
    learning = [name for name, p in adapted.named_parameters() if p.requires_grad]
    assert learning
    assert all("lora_" in name for name in learning)


@pytest.mark.parametrize(
    ("config", "line"),
    [
        (LanguageConfig(small=SmallConfig(embed_dim=0)), "lm.small.embed_dim=0 must be at least 1"),
        (LanguageConfig(small=SmallConfig(embed_dim=18, num_heads=4)), "must be a multiple of twice"),
        (LanguageConfig(frozen=True), "lm.name=small starts from nothing"),
        (LanguageConfig(lora=LoraConfig()), "lm.name=small starts from nothing"),
        (LanguageConfig(name="x", frozen=True, lora=LoraConfig()), "leaves nothing for lm.lora"),
        (LanguageConfig(name="x", lora=LoraConfig(rank=0)), "rank must be at least 1"),
        (LanguageConfig(name="x", dtype="float16"), "lm.dtype='float16' is unknown"),
        (LanguageConfig(name="x", dtype="bfloat16"), "would lose small updates"),
    ],
)
def test_settings_that_cannot_be_meant(config, line):
    with pytest.raises(UserError, match=line):
        config.check()


def test_sizes_of_the_small_one_do_not_count_for_others():
    one, other = (LanguageConfig(name="x", small=SmallConfig(depth=depth)) for depth in (2, 3))
    assert language_settings(one) == language_settings(other)
    assert language_settings(LanguageConfig()) != language_settings(LanguageConfig(small=SmallConfig(depth=4)))


def test_another_model_in_a_folders_place_is_another_model(folder):
    config = LanguageConfig(name=folder(), template="plain")
    before = language_settings(config)
    assert language_settings(config) == before
    torch.manual_seed(1)
    folder()
    assert language_settings(config) != before
