import numpy as np
import pytest

from evals.text.metrics import chance_at_k, class_hits, hits_at_k, mean_per_class, recall_at_k, relevance_matrix

#: Three pictures, two captions each: picture i has texts 2i and 2i + 1.
OWN = [[0, 1], [2, 3], [4, 5]]
SIMILARITY = np.array(
    [
        [0.9, 0.1, 0.8, 0.3, 0.2, 0.0],  # first is text 0, its own: hit at 1
        [0.7, 0.2, 0.1, 0.6, 0.0, 0.5],  # order 0, 3, ...: hit at 2 (its text 3), although text 2 is far behind
        [0.9, 0.8, 0.7, 0.6, 0.5, 0.4],  # own texts stand fifth and sixth: hit at 5
    ]
)


def test_pictures_to_texts_by_hand():
    assert recall_at_k(SIMILARITY, OWN, (1, 2, 4, 5)) == pytest.approx({1: 1 / 3, 2: 2 / 3, 4: 2 / 3, 5: 1.0})


def test_texts_to_pictures_by_hand():
    # columns: text 0: .9 .7 .9, tie of pictures 0 and 2 for the first place: half a hit at 1, a whole one at 2
    # text 1: .1 .2 .8, picture 0 is third; text 2: .8 .1 .7, picture 1 is third; text 3: .3 .6 .6, tie of 1 and 2: half
    # text 4: .2 .0 .5, picture 2 is first; text 5: .0 .5 .4, picture 2 is second
    own = [[0], [0], [1], [1], [2], [2]]
    hits = hits_at_k(SIMILARITY.T, own, (1, 2, 3))
    assert hits[1].tolist() == [0.5, 0, 0, 0.5, 1, 0]
    assert hits[2].tolist() == [1, 0, 0, 1, 1, 1]
    assert hits[3].tolist() == [1] * 6


def test_constant_similarity_scores_chance():
    # r = 2 right ones of 6: P(hit at 2) = 1 - (4/6)(3/5) = 0.6
    assert recall_at_k(np.ones((3, 6)), OWN, (1, 2, 5)) == pytest.approx({1: 1 / 3, 2: 0.6, 5: 1.0})
    assert chance_at_k(OWN, (1, 2, 5), num_candidates=6) == pytest.approx({1: 1 / 3, 2: 0.6, 5: 1.0})


def test_position_in_the_gallery_does_not_matter():
    order = np.random.default_rng(0).permutation(6)
    shuffled = [[int(np.flatnonzero(order == text)[0]) for text in own] for own in OWN]
    assert recall_at_k(SIMILARITY[:, order], shuffled, (1, 2, 5)) == recall_at_k(SIMILARITY, OWN, (1, 2, 5))


def test_impossible_texts_may_be_minus_infinity():
    assert recall_at_k(np.array([[-np.inf, 0.0]]), [[0]], (1, 2)) == {1: 0.0, 2: 1.0}
    assert recall_at_k(np.full((1, 4), -np.inf), [[0]], (1,)) == {1: 0.25}


def test_classes_by_hand():
    score = np.array([[3, 2, 1], [3, 2, 1], [0, 2, 1], [1, 0, 2]])
    label = np.array([0, 1, 1, 2])
    hits = class_hits(score, label, (1, 2))
    assert hits[1].tolist() == [1, 0, 1, 1]
    assert hits[2].tolist() == [1, 1, 1, 1]
    assert mean_per_class(hits[1], label) == pytest.approx((1 + 0.5 + 1) / 3)  # not 3/4


@pytest.mark.parametrize(
    ("similarity", "relevant", "ks", "message"),
    [
        (np.zeros((2, 3)), [[0], []], (1,), "relevant\\[1\\] is empty"),
        (np.zeros((2, 3)), [[0], [3]], (1,), "outside of the 3"),
        (np.zeros((2, 3)), [[0]], (1,), "1 queries, similarity 2"),
        (np.zeros((1, 3)), np.ones((1, 2), dtype=bool), (1,), "no bool matrix"),
        (np.array([[np.nan, 1.0]]), [[0]], (1,), "NaN"),
        (np.zeros((1, 3)), [[0]], (0,), "at least 1"),
        (np.zeros(3), [[0]], (1,), "not \\[queries, candidates\\]"),
    ],
)
def test_bad_input(similarity, relevant, ks, message):
    with pytest.raises(ValueError, match=message):
        hits_at_k(similarity, relevant, ks)


def test_relevance_matrix_of_a_list():
    assert relevance_matrix([[1], [0, 2]], num_candidates=3).tolist() == [[False, True, False], [True, False, True]]
