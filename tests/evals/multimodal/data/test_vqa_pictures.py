"""Pictures of questions in files and in tables, and the set that examples and pictures make."""

import base64
import io
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from evals.data.labelled import BadSample
from evals.multimodal.data.pictures import PictureBytes, PictureFiles, PictureFolder, PictureTree, trailing_number
from evals.multimodal.data.question_set import Asked, QuestionSet, gather
from evals.multimodal.examples import Example
from pretrain.types import UserError

SIDE = 8


def draw(path, color, *, size=(SIDE, SIDE), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path, **options)


def encoded(color, file_format="PNG") -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (SIDE, SIDE), color).save(buffer, file_format)
    return base64.b64encode(buffer.getvalue()).decode()


def color_of(image) -> tuple[int, ...]:
    assert image.mode == "RGB"
    return tuple(np.asarray(image)[0, 0].tolist())


def error_of(function, *arguments, **options) -> str:
    with pytest.raises(UserError) as caught:
        function(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def fault_of(pictures, index):
    with pytest.raises(BadSample) as caught:
        pictures.load(index)
    return caught.value.fault


def example(number, *, picture=0, **options) -> Example:
    return Example(f"q{number}", picture, "what is it?", ("a cup",), **options)


def question_set(tmp_path, examples, *, num_pictures=1, **options) -> QuestionSet:
    for number in range(num_pictures):
        draw(tmp_path / f"{number}.png", (number, 0, 0))
    pictures = PictureFiles(tmp_path, [f"{n}.png" for n in range(num_pictures)], name="task", split="val")
    return QuestionSet(examples, pictures, name="task", split="val", **options)


def test_pictures_of_files_are_rgb_and_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # stored on its side: 8 wide and 4 high is shown 4 wide and 8 high
    draw(tmp_path / "sub" / "a.jpg", (0, 0, 255), size=(8, 4), exif=exif)
    Image.new("L", (SIDE, SIDE), 7).save(tmp_path / "b.png")
    pictures = PictureFiles(tmp_path, ["b.png", "sub/a.jpg"], name="task", split="val")
    assert (len(pictures), pictures.classes, pictures.label_N.tolist()) == (2, ("picture",), [0, 0])
    assert color_of(pictures.load(0)) == (7, 7, 7)
    assert pictures.load(1).size == (4, 8)
    assert pictures.key(1) == "sub/a.jpg"


def test_files_that_cannot_be_read_are_bad_samples(tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    pictures = PictureFiles(tmp_path, ["broken.jpg", "absent.jpg"], name="task", split="val")
    assert [(fault_of(pictures, n).kind, fault_of(pictures, n).key) for n in (0, 1)] == [
        ("corrupt", "broken.jpg"),
        ("missing", "absent.jpg"),
    ]


def test_identity_of_files_is_that_of_names_and_bytes_and_not_of_their_place(tmp_path):
    draw(tmp_path / "one" / "a.png", (1, 2, 3))
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    made = {
        place: PictureFiles(tmp_path / place, ["a.png"], name="task", split=place).pictures_identity()
        for place in ("one", "two")
    }
    assert made["one"] == made["two"]
    draw(tmp_path / "two" / "a.png", (1, 2, 4))
    assert PictureFiles(tmp_path / "two", ["a.png"], name="task", split="two").pictures_identity() != made["one"]


def test_base64_pictures(tmp_path):
    wrapped = "\n".join(encoded((9, 8, 7))[start : start + 76] for start in range(0, len(encoded((9, 8, 7))), 76))
    texts = [encoded((1, 2, 3)), wrapped, "no base64!", base64.b64encode(b"no picture").decode(), "\u00e9"]
    pictures = PictureBytes(texts, keys=["241", "242", "243", "244", "245"], name="mmbench", split="dev")
    assert [color_of(pictures.load(n)) for n in (0, 1)] == [(1, 2, 3), (9, 8, 7)]
    assert [(fault_of(pictures, n).kind, fault_of(pictures, n).key) for n in (2, 3, 4)] == [
        ("corrupt", "243"),
        ("corrupt", "244"),
        ("corrupt", "245"),
    ]
    assert (pictures.key(1), len(pictures), pictures.label_N.tolist()) == ("242", 5, [0] * 5)


def test_identity_of_base64_pictures_is_that_of_keys_and_texts():
    def identity(texts, keys):
        return PictureBytes(texts, keys=keys, name="mmbench", split="dev").pictures_identity()

    one, two = encoded((1, 2, 3)), encoded((1, 2, 4))
    assert identity([one, two], ["1", "2"]) == identity([one, two], ["1", "2"])
    assert (
        len({identity([one, two], ["1", "2"]), identity([two, one], ["1", "2"]), identity([one, two], ["1", "3"])}) == 3
    )


@pytest.mark.parametrize(
    ("stem", "number"),
    [
        ("COCO_val2014_000000000042", 42),
        ("000000581857", 581857),
        ("scenes_val_000002000001", 2000001),
        ("0", 0),
        ("picture", None),
        ("12_a", None),
    ],
)
def test_the_number_that_a_stem_ends_in(stem, number):
    assert trailing_number(stem) == number


def test_a_folder_finds_pictures_by_stem_and_refuses_two_of_one(tmp_path):
    for name in ("7.jpg", "n1.png", "8.jpg", "8.PNG"):
        (tmp_path / name).write_bytes(b"never opened")
    for other in ("9.txt", "._7.jpg", "n1.json"):  # no pictures, and what another system leaves beside one
        (tmp_path / other).write_bytes(b"")
    shelf = PictureFolder(tmp_path, file_name=lambda image: f"{image}.jpg", wanted="pictures")
    assert [shelf.find(image) for image in ("7", "n1", "9", "10")] == ["7.jpg", "n1.png", None, None]
    message = error_of(shelf.find, "8")
    assert str(tmp_path) in message
    assert "8.PNG and 8.jpg for picture 8; one of them must go" in message


def test_a_tree_finds_pictures_in_folders_below(tmp_path):
    draw(tmp_path / "a" / "b.png", (0, 0, 0))
    (tmp_path / "a" / "no_suffix").write_bytes(b"")
    shelf = PictureTree(tmp_path, wanted="pictures")
    wanted = ("a/b.png", "./a/b.png", "a/no_suffix", "a/c.png", "z/b.png", "a/b.png/c.png")
    assert [shelf.find(path) for path in wanted] == ["a/b.png", "a/b.png", "a/no_suffix", None, None, None]


def test_a_folder_that_cannot_be_listed_is_told(tmp_path):
    shelf = PictureTree(tmp_path, wanted="pictures")
    assert "cannot be listed" in error_of(shelf.find, "x" * 300 + "/a.png")


@pytest.mark.parametrize("kind", [PictureFolder, PictureTree])
def test_no_folder(tmp_path, kind):
    options = {"file_name": str} if kind is PictureFolder else {}
    message = error_of(kind, tmp_path / "absent", wanted="val2014 of COCO", **options)
    assert "absent" in message
    assert "val2014 of COCO" in message


def test_a_set_keeps_its_order_and_tells_what_was_left_out(tmp_path):
    repaired = {"without answers": 1200, "picture missing": 0, "not balanced": 3}
    made = question_set(tmp_path, [example(2), example(1)], repaired=repaired)
    assert [e.example_id for e in made.examples] == ["q2", "q1"]
    assert (len(made), made.synthetic, made.name, made.split) == (2, False, "task", "val")
    assert dict(made.repaired) == {"without answers": 1200, "not balanced": 3}
    assert made.describe_repairs() == "task val: questions left out: without answers: 1,200, not balanced: 3"
    assert question_set(tmp_path, [example(1)]).describe_repairs() == ""


def test_a_set_refuses_what_it_cannot_score(tmp_path):
    assert error_of(question_set, tmp_path, []) == "task val: there is no question; give a set of one or more"
    message = error_of(question_set, tmp_path, [example(1), example(2), example(1)])
    assert message == "task val: question id 'q1' is there 2 times; each needs one of its own"


def test_every_field_of_an_example_is_part_of_the_identity(tmp_path):
    one = example(1)
    changes = {
        "example_id": "q2",
        "picture": 1,
        "question": "where?",
        "answers": ("a", "cup"),
        "kind": "other",
        "choices": ("a cup",),
        "group": "g",
    }
    assert set(changes) == set(vars(one))
    made = [question_set(tmp_path, [each], num_pictures=2).identity() for each in (one, one)]
    assert made[0] == made[1]
    changed = [replace(one, **{key: value}) for key, value in changes.items()]
    identities = {question_set(tmp_path, [each], num_pictures=2).identity() for each in changed}
    assert len(identities | {made[0]}) == 1 + len(changes)


def test_a_part_has_whole_pictures_and_whole_groups_in_the_order_of_the_file(tmp_path):
    # ten pictures of three questions each; pictures 0 and 1 share a group, so that they come together or not at all
    examples = [example(number, picture=number % 10, group="pair" if number in (0, 11) else "") for number in range(30)]
    whole = question_set(tmp_path, examples, num_pictures=10, repaired={"picture missing": 2}, synthetic=True)
    seen = set()
    for seed in range(40):
        part = whole.subset(7, seed)
        numbers = [int(e.example_id[1:]) for e in part.examples]
        taken = {number % 10 for number in numbers}
        assert numbers == sorted(number for number in range(30) if number % 10 in taken)
        assert (0 in taken) == (1 in taken)
        # 7 is reached with three pictures, or with four of which two are the pair and came last (3 + 3 + 6)
        assert len(part) == 9 or (len(part) == 12 and 0 in taken)
        assert len(part.pictures) == len(taken)
        for each, number in zip(part.examples, numbers):
            assert color_of(part.pictures.load(each.picture)) == (number % 10, 0, 0)
        assert (part.name, part.split, part.synthetic, dict(part.repaired)) == (
            "task",
            "val",
            True,
            {"picture missing": 2},
        )
        assert part.identity() == whole.subset(7, seed).identity() != whole.identity()
        seen.add(frozenset(taken))
    assert len(seen) > 20
    assert set().union(*seen) == set(range(10))


def test_a_part_is_bounded(tmp_path):
    whole = question_set(tmp_path, [example(1), example(2)])
    assert whole.subset(2, 0) is whole
    assert whole.subset(5, 0) is whole
    assert error_of(whole.subset, 0, 0) == "task val: a part of 0 examples cannot be taken; take 1 or more"


def asked(number, image, answers=("a cup",)) -> Asked:
    return Asked(str(number), image, "what is it?", answers)


def gathered(tmp_path, entries) -> QuestionSet:
    shelf = PictureFolder(tmp_path, file_name=lambda image: f"{image}.jpg", wanted="train_images")
    return gather(entries, shelf, source=tmp_path / "questions.json", name="task", split="val")


def test_what_cannot_be_scored_is_left_out_and_counted(tmp_path):
    for number in range(19):
        (tmp_path / f"p{number}.jpg").write_bytes(b"never opened")
    entries = [
        asked(1, "p3"),
        asked(2, "absent"),
        asked(3, "p3", ()),
        asked(4, "absent"),
        asked(5, "p0", ("", " ")),
        asked(6, "p0", ("", "red")),
        *(asked(10 + number, f"p{number}") for number in range(19)),
    ]
    made = gathered(tmp_path, entries)
    # 1 picture of 20 is missing: 5%, which is not more than 5%
    assert dict(made.repaired) == {"without answers": 2, "picture missing": 2}
    assert [e.example_id for e in made.examples[:3]] == ["1", "6", "10"]
    # numbered in the order in which they are asked about
    assert [made.pictures.key(n) for n in range(4)] == ["p3.jpg", "p0.jpg", "p1.jpg", "p2.jpg"]
    assert [e.picture for e in made.examples[:5]] == [0, 1, 1, 2, 3]
    assert made.examples[1].answers == ("", "red")


def test_too_many_missing_pictures_are_an_error(tmp_path):
    for number in range(38):
        (tmp_path / f"p{number}.jpg").write_bytes(b"never opened")
    # 2 of 40 are 5%, 3 of 41 are more
    some = [asked(number, f"p{number}") for number in range(40)]
    assert dict(gathered(tmp_path, some).repaired) == {"picture missing": 2}
    message = error_of(gathered, tmp_path, [*some, asked(40, "p40")])
    assert message == (
        f"task val: 3 of 41 pictures are not in {str(tmp_path)!r}; the first is p38.jpg; wanted: train_images"
    )


def test_no_usable_question_is_an_error(tmp_path):
    message = error_of(gathered, tmp_path, [asked(1, "absent")])
    assert message.endswith(
        "1 of 1 pictures are not in " + repr(str(tmp_path)) + "; the first is absent.jpg; wanted: train_images"
    )
    message = error_of(gathered, tmp_path, [asked(1, "absent", ()), asked(2, "absent", ())])
    assert "questions.json has no question that can be scored (without answers: 2)" in message
    assert "official servers" in message
    assert "no question that can be scored (it holds none)" in error_of(gathered, tmp_path, [])
