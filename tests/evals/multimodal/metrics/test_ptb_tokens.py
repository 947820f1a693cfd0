"""ptb_tokens against what the Java tokenizer gave for the same strings."""

import pytest

from evals.multimodal.metrics.ptb import ptb_tokens

#: A caption and the tokens that PTBTokenizer of CoreNLP 3.4.1 gave, through pycocoevalcap 1.2.
HARD = [
    ("A man's dog doesn't like the women's hat.", "a man 's dog does n't like the women 's hat"),
    ("The dog's owner can't, won't and shouldn't've gone.", "the dog 's owner ca n't wo n't and should n't 've gone"),
    (
        "I'm sure they're here and we've seen that he'd go and she'll come",
        "i 'm sure they 're here and we 've seen that he 'd go and she 'll come",
    ),
    ("DON'T STOP, IT'S A BOY'S SIGN", "do n't stop it 's a boy 's sign"),
    ("don’t stop, the man’s dog", "do n't stop the man 's dog"),
    ("the dogs' owner and the boys’ toys", "the dogs owner and the boys toys"),
    ("it 's a dog 's life , do n't you know", "it 's a dog 's life do n't you know"),
    ("he cannot, she's gonna, we gotta, you wanna, lemme", "he can not she 's gon na we got ta you wan na lem me"),
    ("'tis the season to play rock 'n' roll, get 'em", "'t is the season to play rock 'n' roll get 'em"),
    ("y'all, ma'am, it is 5 o'clock at O'Hare", "y' all ma'am it is 5 o'clock at o'hare"),
    (
        "A \"STOP\" sign, a 'stop' sign, a “stop” sign and a ‘stop’ sign",
        "a stop sign a stop sign a stop sign and a stop sign",
    ),
    ("he said ''hello'' and ``goodbye''", "he said hello and goodbye"),
    ("it's a 'quoted' thing'", "it 's a quoted thing"),
    (
        "a well-known black-and-white t-shirt, an x-ray, a 3-year-old",
        "a well-known black-and-white t-shirt an x-ray a 3-year-old",
    ),
    ("mid-air, mid -air, mid- air", "mid-air mid air mid air"),
    ("a man -- with a dog - runs--away", "a man with a dog runs away"),
    ("a man – with a dog — runs", "a man with a dog runs"),
    ("wait... and stops.. or not. . . ok…", "wait and stops or not ok"),
    ("In the U.S. people drive. He lives in the U.S.", "in the u.s. people drive he lives in the u.s."),
    ("a U.S. Army truck, U.S.-based, D.C.'s", "a u.s. army truck u.s.-based d.c. 's"),
    ("Mr. Smith, mrs. jones and Dr. No met St. Nick.", "mr. smith mrs. jones and dr. no met st. nick"),
    (
        "He lives on Main St. near 5th Ave. at No. 5. She said no. He too.",
        "he lives on main st. near 5th ave. at no. 5 she said no he too",
    ),
    ("from Wash. to wash. the car", "from wash. to wash the car"),
    ("J. K. Rowling and O.J. Simpson", "j. k. rowling and o.j. simpson"),
    ("the sign has a letter B. The man has a C.", "the sign has a letter b the man has a c."),
    ("at 5:30 p.m. or 10 a.m. or 10:30am on Jan. 5th", "at 5:30 p.m. or 10 a.m. or 10:30 am on jan. 5th"),
    ("dogs, cats, etc., and so on, i.e. this, vs. that", "dogs cats etc. and so on i.e. this vs. that"),
    ("a dog., a cat", "a dog. a cat"),
    (
        "There were 1,000 people, 2,500,000 dogs, 1.5 cats, .5 birds",
        "there were 1,000 people 2,500,000 dogs 1.5 cats .5 birds",
    ),
    ("3/4 of a cake, 1 1/2 pies, ½ pie, 24/7, 1/2-mile", "3/4 of a cake 1 1/2 pies 1/2 pie 24/7 1/2-mile"),
    ("It costs $5.99 or £3 or €20 or 50¢ or 10% off", "it costs $ 5.99 or # 3 or $ 20 or 50 cents or 10 % off"),
    ("#1 fan, number #23, @dog #dog", "# 1 fan number # 23 @dog #dog"),
    ("the 1980's, the '80s, the 80s, '98", "the 1980 's the '80s the 80s '98"),
    (
        "2nd, 3rd, 21st, 5'10\", 6 ft. 2 in., 10x10, 12-inch, 2.5-inch",
        "2nd 3rd 21st 5 10 6 ft. 2 in. 10x10 12-inch 2.5-inch",
    ),
    ("-5 degrees, 2+2, 20°C", "-5 degrees 2 +2 20 ° c"),
    ("call 1-800-555-1212", "call 1-800-555-1212"),
    ("A man (with a hat), [a dog] {in a tub}", "a man -lrb- with a hat -rrb- -lsb- a dog -rsb- -lcb- in a tub -rcb-"),
    ("a man/woman, and/or, w/ a hat, w/o one", "a man/woman and/or w / a hat w/o one"),
    ("cats & dogs, AT&T, at&t, R&B, cats &amp; dogs", "cats & dogs at&t at & t r&b cats & dogs"),
    ("mom&dad Mom&Dad MOM&DAD M&M's m&m's", "mom & dad mom & dad mom&dad m&m 's m & m 's"),
    ("wow!!! what?? really?! yes!", "wow !!! what ?? really ?! yes"),
    ("a park.A man sits.", "a park.a man sits"),
    ("a dog,and a cat .A bird", "a dog and a cat a bird"),
    (
        "www.google.com, http://www.flickr.com/photos, me@mail.com",
        "www.google.com http://www.flickr.com/photos me@mail.com",
    ),
    ("<b>bold</b> *star* under_score a+b=c ~ ^ | \\", "<b> bold </b> * star * under_score a + b = c ~ ^ | \\"),
    ("I :) you :( him ;)", "i :-rrb- you :-lrb- him ;-rrb-"),
    ("café naïve São Paulo 北京", "café naïve são paulo 北京"),
    ("a dog 😀 and ★", "a dog and ★"),
    (" leading\tand  trailing spaces  ", "leading and trailing spaces"),
    (".", ""),
    ("", ""),
]
#: The same, where ours is known to give something else; one that agrees belongs to the list above.
KNOWN_TO_DIFFER = [
    ('the "d’or" prize', "the d’or prize"),
    ("C++ code", "c++ code"),
    ("call (415) 555-1212", "call -lrb-415-rrb- 555-1212"),
    ("a man ’standing alone", "a man 's tanding alone"),
    ("a run''s end", "a run s end"),
    ("dog.-dog", "dog.-dog"),
]


@pytest.mark.parametrize(("caption", "official"), HARD)
def test_tokens_are_the_official_ones(caption, official):
    assert ptb_tokens(caption) == official.split()


@pytest.mark.parametrize(("caption", "official"), KNOWN_TO_DIFFER)
def test_known_differences_are_still_there(caption, official):
    assert ptb_tokens(caption) != official.split()


def test_a_line_break_is_white_space():
    assert ptb_tokens("a dog\nruns") == ["a", "dog", "runs"]
