"""LLaVA's instruction files, written by hand: what is read of them, what is left out and counted, what is refused."""

import json

import pytest
from PIL import Image

from evals.multimodal.data import llava
from evals.multimodal.data.llava import read_llava
from evals.multimodal.examples import Conversation
from pretrain.types import UserError


def said(*texts, first="human"):
    """Turns that alternate."""
    roles = ("human", "gpt") if first == "human" else ("gpt", "human")
    return [{"from": roles[number % 2], "value": text} for number, text in enumerate(texts)]


def entry(entry_id, *texts, image="coco/a.jpg", **options):
    content = {"id": entry_id, "image": image, "conversations": said(*texts, **options)}
    return {name: value for name, value in content.items() if value is not None}


BUS = entry("000000033471", "<image>\nWhat are the colors of the bus?", "White and red.", "Is it full?", "No.")


def write(tmp_path, content, *, name="mix.json", pictures=("coco/a.jpg",)):
    for picture in pictures:
        path = tmp_path / "images" / picture
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(path)
    (tmp_path / "images").mkdir(exist_ok=True)
    file = tmp_path / name
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return file, tmp_path / "images"


def read(tmp_path, content, **options):
    return read_llava(*write(tmp_path, content, **options), name="llava")


def error_of(tmp_path, content, **options) -> str:
    with pytest.raises(UserError) as caught:
        read(tmp_path, content, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_official_layout(tmp_path):
    entries = [
        BUS,
        entry(17, "Where is it?\n<image>", ' In a "street".\n', image="gqa/images/b.jpg"),
        entry("wgByO4Y_0", "Sag: gr\u00fcn \U0001f600", "gr\u00fcn", image=None) | {"model": ""},
        entry("again", "<image>What\nis it?", "A bus."),
    ]
    made = read(tmp_path, entries, pictures=("coco/a.jpg", "gqa/images/b.jpg"))
    assert tuple(made.conversations) == (
        Conversation(
            "000000033471", 0, (("What are the colors of the bus?", "White and red."), ("Is it full?", "No."))
        ),
        Conversation("17", 1, (("Where is it?", 'In a "street".'),)),
        Conversation("wgByO4Y_0", None, (("Sag: gr\u00fcn \U0001f600", "gr\u00fcn"),)),
        Conversation("again", 0, (("What\nis it?", "A bus."),)),
    )
    assert [made.pictures.key(number) for number in range(2)] == ["coco/a.jpg", "gqa/images/b.jpg"]
    assert made.pictures.load(0).size == (8, 8)
    assert not made.independent
    assert not made.synthetic
    assert made.describe_repairs() == ""


def test_lines_are_read_alike(tmp_path):
    entries = [BUS, entry("b", "<image>\nWhat?", "That.")]
    as_list, indented = read(tmp_path, entries), read(tmp_path, json.dumps(entries, indent=2) + "\n")
    lines = "\n\n".join(json.dumps(one) for one in entries) + "\n"
    as_lines = read(tmp_path, lines, name="mix.jsonl")
    misnamed = read(tmp_path, "\ufeff" + lines, name="lines.json")
    assert tuple(as_list.conversations) == tuple(as_lines.conversations)
    assert len({one.identity() for one in (as_list, indented, as_lines, misnamed)}) == 1


@pytest.mark.parametrize("piece", [1, 7, 64])
@pytest.mark.parametrize("name", ["mix.json", "mix.jsonl"])
def test_pieces_of_the_file_may_end_anywhere(tmp_path, monkeypatch, piece, name):
    entries = [BUS | {"id": f"bus{number}", "note": "x" * number} for number in range(5)]
    lines = name.endswith("l")
    content = "\n".join(map(json.dumps, entries)) if lines else json.dumps(entries, indent=1) + " \n "
    whole = read(tmp_path, content, name=name)
    monkeypatch.setattr(llava, "_PIECE", piece)
    assert read(tmp_path, content, name=name).identity() == whole.identity()
    assert len(whole) == 5


@pytest.mark.parametrize(
    ("question", "wanted"),
    [
        ("<image>\nWhat?", "What?"),
        ("What?\n<image>", "What?"),
        ("What?<image>", "What?"),
        ("In \n<image>\n this, what?", "In this, what?"),
        ("What?", "What?"),
        ("<image>", ""),
    ],
)
def test_the_picture_stands_in_front(tmp_path, question, wanted):
    made = read(tmp_path, [entry("a", question, "That.", "And?", "This.")])
    assert made.conversations[0].turns == ((wanted, "That."), ("And?", "This."))
    assert made.conversations[0].picture == 0


@pytest.mark.parametrize(
    ("wrong", "kind"),
    [
        (entry("x", "<image>\n<image>\nWhich?", "Both."), "several pictures"),
        (entry("x", "<image>\nWhat?", "That.", "And <image>?", "This."), "several pictures"),
        (entry("x", "<image>Which?", "Both.", image=["coco/a.jpg", "coco/a.jpg"]), "several pictures"),
        (entry("x", "What?", "That.", "And <image>?", "This."), "<image> away from its place"),
        (entry("x", "What?", "An <image> tag."), "<image> away from its place"),
        (entry("x", "<image>\nWhat?", "That.", image=None), "<image> away from its place"),
        (entry("x", "Write RSS.", "<image></image>", image=None), "<image> away from its place"),
        (entry("x", "What?", image=None), "without any turn"),
        (entry("x"), "without any turn"),
        (entry("x", "<image>\nWhat?", "That.", image="coco/absent.jpg"), "picture missing"),
        (entry("x", "<image>\nWhat?", "That.", image="nowhere/a.jpg"), "picture missing"),
    ],
)
def test_conversations_that_are_left_out(tmp_path, wrong, kind):
    made = read(tmp_path, [BUS, wrong])
    assert [conversation.conversation_id for conversation in made.conversations] == [BUS["id"]]
    assert made.repaired[kind] == 1
    assert len(made.pictures) == 1
    assert f"{kind}: 1" in made.describe_repairs()


@pytest.mark.parametrize(
    ("texts", "first", "kept", "kind"),
    [
        (("<image>\na?", "b", "c?"), "human", (("a?", "b"),), "last question unanswered"),
        (("hello", "<image>\na?", "b"), "gpt", (("a?", "b"),), "answer in front of the first question"),
        (("<image>\na?", "b", "", "c", "d?", "e"), "human", (("a?", "b"), ("d?", "e")), "empty turn"),
        (("<image>\na?", " \n", "d?", "e"), "human", (("d?", "e"),), "empty turn"),
    ],
)
def test_turns_that_are_left_out(tmp_path, texts, first, kept, kind):
    made = read(tmp_path, [entry("x", *texts, first=first)])
    assert made.conversations[0] == Conversation("x", 0, kept)
    assert dict(made.repaired) == {kind: 1}


def test_a_question_may_only_be_empty_where_a_picture_is(tmp_path):
    made = read(tmp_path, [BUS, entry("x", " ", "b", "c?", "d", image=None)])
    assert made.conversations[1].turns == (("c?", "d"),)
    assert dict(made.repaired) == {"empty turn": 1}


def test_ids_that_are_there_before_get_a_number(tmp_path):
    ids = ["a", "a", "a#2", "a", "b", 7, "7"]
    made = read(tmp_path, [BUS | {"id": one} for one in ids])
    # "a#2" is taken when it comes by itself
    assert [c.conversation_id for c in made.conversations] == ["a", "a#2", "a#2#2", "a#3", "b", "7", "7#2"]
    assert dict(made.repaired) == {"id there before": 4}


def test_an_entry_without_id_is_called_by_its_number(tmp_path):
    made = read(tmp_path, [BUS | {"id": None}, BUS, {k: v for k, v in BUS.items() if k != "id"}])
    assert [c.conversation_id for c in made.conversations] == ["0", BUS["id"], "2"]


def test_a_list_of_one_picture_is_a_picture(tmp_path):
    assert read(tmp_path, [BUS | {"image": ["coco/a.jpg"]}]).conversations[0].picture == 0


def test_too_many_missing_pictures(tmp_path):
    # 40 pictures: 5% of them are 2
    kept = [f"d/{number}.jpg" for number in range(38)]
    entries = [entry(name, "<image>a?", "b", image=name) for name in [*kept, "d/x.jpg", "d/y.jpg"]]
    made = read(tmp_path, entries, pictures=kept)
    assert (len(made), dict(made.repaired)) == (38, {"picture missing": 2})
    # a picture that two ask about is missing once
    twice = [*entries, entry("again", "<image>c?", "d", image="d/x.jpg")]
    assert read(tmp_path, twice, pictures=kept).repaired == {"picture missing": 3}
    told = error_of(tmp_path, [*entries, entry("z", "<image>a?", "b", image="e/z.jpg")], pictures=kept)
    assert told == (
        f"llava: 3 of 41 pictures are not in {str(tmp_path / 'images')!r}; the first is d/x.jpg; wanted: the folder that "
        "`image` in mix.json is relative to"
    )


def test_no_picture_at_all(tmp_path):
    assert "1 of 1 pictures are not in" in error_of(tmp_path, [BUS], pictures=())
    told = error_of(tmp_path, [entry("x", "a?", "b", image=None), entry("y", "a?", image=None)])
    assert "mix.json has no conversation about a picture, 1 of text alone (last question unanswered: 1, without" in told
    assert "has no conversation about a picture, 0 of text alone (nothing was left out)" in error_of(tmp_path, [])
    assert "has no conversation about a picture, 0 of text alone" in error_of(tmp_path, "")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ([1], "holds a list, not an object"),
        (BUS | {"id": True}, "id is True; it must be a whole number or a text"),
        (BUS | {"image": 3}, "image is 3; it must be a text"),
        (BUS | {"image": ""}, "image is ''; it must be a text"),
        (BUS | {"image": "/etc/a.jpg"}, "image is '/etc/a.jpg'; it must be a path below the folder of pictures"),
        (BUS | {"image": "../a.jpg"}, "image is '../a.jpg'; it must be a path below the folder of pictures"),
        (BUS | {"conversations": None}, "conversations is None; it must be a list of"),
        (BUS | {"conversations": ["a"]}, "conversations is ['a']; it must be a list of"),
        (BUS | {"conversations": [{"value": "a"}]}, "turn 1 is from None; it must be from human or gpt"),
        (BUS | {"conversations": [{"from": "human"}]}, "value of turn 1 is None; it must be a text"),
        (BUS | {"conversations": said("a?", "\ud83d")}, "value of turn 2 holds half a character"),
        (
            BUS | {"conversations": said("a?", "b")[:1] * 2},
            "two turns from human follow each other; turns must alternate",
        ),
        (BUS | {"conversations": said("b", "a?", first="gpt") + said("c?", "d")}, "two turns from human follow"),
        (BUS | {"conversations": said("a?", "b") + said("e", first="gpt")}, "two turns from gpt follow"),
    ],
)
@pytest.mark.parametrize("name", ["mix.json", "mix.jsonl"])
def test_wrong_entries_are_named(tmp_path, wrong, message, name):
    entries = [BUS, wrong]
    content = "\n".join(map(json.dumps, entries)) if name.endswith("l") else entries
    told = error_of(tmp_path, content, name=name)
    assert told.startswith(f"{tmp_path / name}: {'line 2' if name.endswith('l') else 'entry 1'}")
    assert message in told


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"id": 1,}]', "entry 0 is no JSON (Expecting property name enclosed in double quotes)"),
        (json.dumps([BUS])[:-4], "entry 0 is no JSON ("),
        (json.dumps([BUS])[:-1], "behind entry 0 stands ''; it must be ',' or ']'"),
        (json.dumps([BUS])[:-1] + ",]", "entry 1 is no JSON (Expecting value)"),
        (json.dumps([BUS])[:-1] + " {}]", "behind entry 0 stands '{'; it must be ',' or ']'"),
        (json.dumps([BUS]) + "[]", "behind the list stands '[]'; it must be the end of the file"),
        (json.dumps(BUS, indent=1), "line 1 is no JSON (Expecting property name"),
        ("[" * 100_000, "is no JSON ("),
    ],
)
def test_damaged_files(tmp_path, content, message):
    assert message in error_of(tmp_path, content)


def test_an_entry_that_never_ends_is_not_read_to_the_end_of_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(llava, "_PIECE", 16)
    monkeypatch.setattr(llava, "_MAX_ENTRY", 64)
    assert "entry 0 is no JSON (Unterminated string" in error_of(tmp_path, '["' + "x" * 10_000)


def test_files_that_are_no_text_or_not_there(tmp_path):
    file, images = write(tmp_path, [BUS])
    with pytest.raises(UserError, match=r"absent\.json.*LLaVA's instructions"):
        read_llava(tmp_path / "absent.json", images, name="llava")
    with pytest.raises(UserError, match=r"is not a folder; wanted: the folder that `image` in mix\.json"):
        read_llava(file, tmp_path / "absent", name="llava")
    file.write_bytes(b"[\xff\xfe")
    with pytest.raises(UserError, match=r"mix\.json cannot be read as text"):
        read_llava(file, images, name="llava")
