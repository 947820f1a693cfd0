"""Pickles: plain data of Python 2 and 3 comes through, nothing else does, and nothing in them runs."""

import pickle
from contextlib import suppress

import numpy as np
import pytest

from evals.grounding.unpickle import load_plain_pickle
from pretrain.types import UserError

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)
PLAIN = [{"ref_id": 3, "split": "val", "sentences": [{"sent": "the left cup", "sent_id": 7}], "box": (1.5, None, True)}]


@pytest.fixture
def saved(tmp_path):
    def save(content: bytes):
        path = tmp_path / "refs(unc).p"
        path.write_bytes(content)
        return path

    return save


class Reduced:
    """Pickles as a call of `function` with these arguments, which is what an attacker writes."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def error_of(path) -> str:
    with pytest.raises(UserError) as caught:
        load_plain_pickle(path)
    text = str(caught.value)
    assert "\n" not in text
    assert str(path) in text
    return text


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_plain_data_of_every_protocol(saved, protocol):
    assert load_plain_pickle(saved(pickle.dumps(PLAIN, protocol))) == PLAIN


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_sets(saved, protocol):
    content = {"some": {1, 2}, "fixed": frozenset({3})}
    assert load_plain_pickle(saved(pickle.dumps(content, protocol))) == content


def test_byte_strings_of_python_2_become_texts(saved):
    # what Python 2 writes for [{'sent': 'caf\xe9', 'sent_id': 7L}] with protocol 0
    data = b"(lp0\n(dp1\nS'sent'\np2\nS'caf\\xe9'\np3\nsS'sent_id'\np4\nL7L\nsa."
    assert load_plain_pickle(saved(data)) == [{"sent": "caf\u00e9", "sent_id": 7}]


def test_a_set_of_python_2(saved):
    assert load_plain_pickle(saved(b"c__builtin__\nset\np0\n((lp1\nI3\naI4\natp2\nRp3\n.")) == {3, 4}


def python_2_number(code: bytes, data: bytes, order: bytes = b"<") -> bytes:
    """What Python 2 writes with protocol 2 for one of numpy's numbers (checked against numpy's own reading below)."""
    kind = b"cnumpy\ndtype\nU" + bytes([len(code)]) + code + b"K\x00K\x01\x87R"
    state = b"(K\x03U" + bytes([len(order)]) + order + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    return b"\x80\x02cnumpy.core.multiarray\nscalar\n" + kind + state + b"U" + bytes([len(data)]) + data + b"\x86R."


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("code", "order", "data", "value"),
    [
        (b"i8", b"<", b"\x2a\xff\0\0\0\0\0\0", 65_322),  # 0xff2a: a byte that is no ASCII
        (b"i4", b">", b"\0\0\x01\x02", 258),
        (b"f8", b"<", b"\0\0\0\0\0\0\xf8\xbf", -1.5),
        (b"b1", b"|", b"\x01", True),
    ],
)
def test_numbers_of_numpy_by_python_2(saved, code, order, data, value):
    written = python_2_number(code, data, order)
    assert pickle.loads(written, encoding="latin-1") == value
    found = load_plain_pickle(saved(written))
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("number", [np.int64(-7), np.uint8(250), np.float32(0.1), np.bool_(True)])
@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_numbers_of_numpy_by_python_3(saved, number, protocol):
    found = load_plain_pickle(saved(pickle.dumps([number], protocol)))
    assert found == [number.item()]
    assert type(found[0]) is type(number.item())


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_code_in_a_pickle_is_named_and_not_run(saved, tmp_path, protocol):
    made = tmp_path / "made"
    data = pickle.dumps([*PLAIN, {"sent": Reduced(open, str(made), "w")}], protocol)
    text = error_of(saved(data))
    assert not made.exists()
    assert "io.open" in text
    assert "code in it" in text
    pickle.loads(data)[1]["sent"].close()  # an unpickler that runs it does make the file
    assert made.exists()


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (pickle.dumps(Reduced(exec, "1")), "builtins.exec"),
        (b"c__builtin__\neval\n(S'1'\ntR.", "__builtin__.eval"),
        (b"cos\nsystem\n(S'true'\ntR.", "os.system"),
        # dots lead from what is allowed to what is not
        (b"\x80\x04\x8c\x08builtins\x8c\x0dset.__class__\x93.", "builtins.set.__class__"),
        (pickle.dumps(np.arange(3)), "_reconstruct"),  # arrays are none of the numbers
        (pickle.dumps(np.array(["x"], dtype=object)[:0].dtype), "numpy.dtype('O8')"),
        (pickle.dumps(np.array([("x", 1)], dtype=[("a", "O"), ("b", "i8")])[0]), "numpy"),
        (b"Pelsewhere\n.", "kept elsewhere"),
        (b"cnumpy.core.multiarray\nscalar\n(S'i8'\nS'12345678'\ntR.", "scalar of something else"),
        (python_2_number(b"i8", b"12345678", b"x"), "byte order 'x'"),
    ],
)
def test_what_else_is_refused(saved, data, named):
    text = error_of(saved(data))
    assert named in text
    assert "official release" in text


def test_names_made_up_to_spoil_the_terminal_stay_on_one_short_line(saved):
    module = "os\n\x1b[2Jpath" + "x" * 10_000
    encoded = module.encode()
    data = b"\x80\x04X" + len(encoded).to_bytes(4, "little") + encoded + b"\x8c\x04join\x93."
    text = error_of(saved(data))
    assert "\x1b" not in text
    assert r"os\n\x1b[2Jpath" in text
    assert len(text) < 500


def test_every_cut_of_a_pickle_is_told(saved):
    for protocol in (0, 2, 5):
        data = pickle.dumps([*PLAIN, np.int64(3)] if protocol == 5 else PLAIN, protocol)
        for length in range(len(data)):
            assert "is no pickle, or a cut one" in error_of(saved(data[:length]))


def test_every_damaged_byte_gives_data_or_one_line(saved):
    data = pickle.dumps([*PLAIN, np.float64(2.5), {4}], 4)
    rng = np.random.default_rng(0)
    for position in range(len(data)):
        changed = bytearray(data)
        changed[position] = int(rng.integers(256))
        with suppress(UserError):  # anything else would be raised
            load_plain_pickle(saved(bytes(changed)))


@pytest.mark.parametrize(
    "data", [b"", b'{"refs": []}', b"\xff\xd8\xff\xe0\0\x10JFIF", b"\0" * 100, b"version https://git-lfs"]
)
def test_a_file_that_is_none(saved, data):
    assert "is no pickle, or a cut one" in error_of(saved(data))


def test_no_such_file(tmp_path, saved):
    saved(pickle.dumps(PLAIN))
    text = error_of(tmp_path / "refs(umd).p")
    assert "is not there (did you mean 'refs(unc).p'?)" in text
    assert "wanted: a pickle of plain data" in text


def test_a_folder_is_no_pickle(tmp_path):
    assert "is not there" in error_of(tmp_path)
