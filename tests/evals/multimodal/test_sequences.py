"""Conversations as sequences: what is written, what is learned, who sees whom."""

import numpy as np
import pytest
import torch

from evals.multimodal.language import SmallConfig, build_small
from evals.multimodal.sequences import (
    PICTURE_ID,
    attend_mask,
    check_fits,
    collate,
    encode_conversation,
    encode_prompt,
)
from evals.multimodal.templates import Template
from pretrain.types import UserError

TURNS = (("what colour is it?", "red"), ("how many?", "two rings"))
TEXTS = [text for turn in TURNS for text in turn] * 3


@pytest.fixture(scope="module")
def language():
    return build_small(SmallConfig(embed_dim=16, depth=1, num_heads=2, vocab_size=300), TEXTS, seed=0)


def words(language, ids):
    return language.tokenizer.decode([int(i) for i in ids if i != PICTURE_ID])


def test_a_conversation_is_written_with_answers_and_their_ends_as_targets(language):
    one = encode_conversation(language, TURNS, with_picture=True, independent=False)
    assert one.ids[0] == PICTURE_ID
    assert (one.ids == PICTURE_ID).sum() == 1
    assert words(language, one.ids) == " what colour is it? red<eos> how many? two rings<eos>"
    assert words(language, one.ids[one.target]) == " red<eos> two rings<eos>"
    assert not one.segment.any()


def test_without_a_picture_nothing_stands_for_one(language):
    one = encode_conversation(language, TURNS, with_picture=False, independent=False)
    assert (one.ids >= 0).all()


def test_independent_turns_have_segments_and_no_text_between(language):
    one = encode_conversation(language, TURNS, with_picture=True, independent=True)
    assert words(language, one.ids[one.segment == 1]) == " what colour is it? red<eos>"
    assert words(language, one.ids[one.segment == 2]) == " how many? two rings<eos>"
    assert one.segment[0] == 0


def test_turns_that_do_not_fit_are_left_out_and_no_turn_is_none(language):
    whole = encode_conversation(language, TURNS, with_picture=True, independent=False)
    short = encode_conversation(language, TURNS, with_picture=True, independent=False, room=len(whole.ids) - 1)
    assert words(language, short.ids) == " what colour is it? red<eos>"
    same = encode_conversation(language, TURNS, with_picture=True, independent=False, room=len(whole.ids))
    assert np.array_equal(same.ids, whole.ids)
    assert encode_conversation(language, TURNS, with_picture=True, independent=False, room=3) is None


def test_an_independent_answer_needs_something_in_front_of_it(language):
    with pytest.raises(UserError, match="give the set a prompt"):
        encode_conversation(language, [("", "red"), ("", "blue")], with_picture=True, independent=True)


def test_a_prompt_shows_shots_with_a_picture_each(language):
    one, text = encode_prompt(language, "how many?", with_picture=True, shots=[TURNS[0]])
    assert text == "<image> what colour is it? red<image> how many?"
    assert (one.ids == PICTURE_ID).sum() == 2
    assert not one.target.any()
    assert words(language, one.ids) == " what colour is it? red<eos> how many?"
    assert one.length(5) == len(one.ids) + 2 * 4


def test_a_template_stands_around_questions_and_answers(language):
    language = type(language)(
        language.model,
        language.tokenizer,
        template=Template("SYS ", "\n", "{}", " A:", " {}", " NEXT: "),
        name="small",
    )
    one = encode_conversation(language, TURNS, with_picture=True, independent=False)
    wanted = "SYS \nwhat colour is it? A: red<eos> NEXT: how many? A: two rings<eos>"
    assert words(language, one.ids) == wanted
    assert words(language, one.ids[one.target]) == " red<eos> two rings<eos>"


def test_pictures_are_spread_out_and_rows_padded(language):
    """Two patches a picture: the row with a picture has one token more than ids."""
    long = encode_conversation(language, TURNS, with_picture=True, independent=False)
    short = encode_conversation(language, TURNS[:1], with_picture=False, independent=False)
    batch = collate([long, short], num_patches=2, filler_id=7, number_B=np.array([3, 5]))
    length = len(long.ids) + 1
    assert batch.ids_BS.shape == (2, length)
    assert batch.slot_BS.sum(1).tolist() == [2, 0]
    assert batch.slot_BS[0, :2].all()
    assert batch.valid_BS.sum(1).tolist() == [length, len(short.ids)]
    assert batch.ids_BS[1, len(short.ids) :].unique().tolist() == [7]
    assert batch.position_BS[0].tolist() == list(range(length))
    left = collate([long, short], num_patches=2, filler_id=7, number_B=np.array([3, 5]), pad_left=True)
    assert left.valid_BS[1].tolist() == [False] * (length - len(short.ids)) + [True] * len(short.ids)


def test_independent_turns_see_the_picture_and_themselves_and_count_from_there(language):
    one = encode_conversation(language, TURNS, with_picture=True, independent=True)
    batch = collate([one], num_patches=3, filler_id=0, number_B=np.array([0]))
    segment = batch.segment_BS[0].tolist()
    first = segment.count(1)
    assert batch.position_BS[0].tolist() == [0, 1, 2, *range(3, 3 + first), *range(3, 3 + segment.count(2))]
    attend = attend_mask(batch)[0, 0]
    for query, own in enumerate(segment):
        for key, other in enumerate(segment):
            assert attend[query, key] == (key <= query and other in (0, own)), (query, key)


def test_padding_is_seen_by_itself_only(language):
    turns = encode_conversation(language, TURNS, with_picture=True, independent=True)
    one = encode_conversation(language, TURNS[:1], with_picture=True, independent=True)
    batch = collate([turns, one], num_patches=3, filler_id=0, number_B=np.array([0, 1]))
    attend = attend_mask(batch)[1, 0]
    for place in (~batch.valid_BS[1]).nonzero()[:, 0].tolist():
        assert attend[:, place].nonzero()[:, 0].tolist() == [place]


def test_plain_conversations_need_no_mask_of_their_own(language):
    one = encode_conversation(language, TURNS, with_picture=True, independent=False)
    assert attend_mask(collate([one], num_patches=3, filler_id=0, number_B=np.array([0]))) is None


def test_an_answer_beyond_the_context_is_named():
    check_fits(10, None, about="vqa: example '1'", max_tokens=99)
    check_fits(90, 100, about="vqa: example '1'", max_tokens=10)
    with pytest.raises(
        UserError, match=r"vqa: example '1': its prompt of 91 tokens and an answer of up to 10 .* context of 100"
    ):
        check_fits(91, 100, about="vqa: example '1'", max_tokens=10)


def test_a_batch_moves_as_a_whole(language):
    one = encode_conversation(language, TURNS, with_picture=True, independent=False)
    batch = collate([one], num_patches=2, filler_id=0, number_B=np.array([4]), tokens_IND=torch.ones(1, 2, 3))
    moved = batch.to("meta")
    assert moved.ids_BS.is_meta
    assert moved.tokens_IND.is_meta
    assert moved.image_ICHW is None
    assert len(moved) == 1
