"""Verification files written here opcode by opcode, and pickles that want more than to be read."""

import io
import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_hybrid.data import read_bin
from keras_hybrid.evaluation import evaluate_pairs

pytestmark = pytest.mark.any_backend

Image = pytest.importorskip("PIL.Image")


def picture(number):
    """An encoded image whose colour is its number; in a pickle a long or a short string."""
    buffer = io.BytesIO()
    size = (4, 3) if number % 2 else (40, 30)
    Image.new("RGB", size, (number, 255 - number, 7)).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def python_2(images, same, protocol):
    """The bytes that Python 2's pickle.dump((images, same)) writes."""
    if protocol == 0:
        strings = [f"S{image!r}\n".replace("Sb", "S", 1).encode("latin1") for image in images]
        truths = [b"I01\n" if value else b"I00\n" for value in same]
        lists = [b"(l" + b"".join(item + b"a" for item in items) for items in (strings, truths)]
        return b"(" + b"".join(lists) + b"t."
    strings = [
        b"U" + bytes([len(image)]) + image
        if len(image) < 256
        else b"T" + struct.pack("<i", len(image)) + image
        for image in images
    ]
    truths = [b"\x88" if value else b"\x89" for value in same]
    lists = [b"](" + b"".join(items) + b"e" for items in (strings, truths)]
    return b"\x80\x02" + b"".join(lists) + b"\x86."


def numpy_1(content: bytes) -> bytes:
    """A pickle of protocol 2 as the numpy of that time wrote it, which named its modules so."""
    return content.replace(b"numpy._core.", b"numpy.core.")


def save(folder, content):
    path = folder / "lfw.bin"
    path.write_bytes(content)
    return path


SAME = [True, False, True, True]
IMAGES = [picture(20 * i) for i in range(8)]


def as_arrays(images):
    return [np.frombuffer(image, np.uint8) for image in images]


FILES = {
    "python 2, protocol 0": python_2(IMAGES, SAME, 0),
    "python 2, protocol 2": python_2(IMAGES, SAME, 2),
    **{f"python 3, protocol {p}": pickle.dumps((IMAGES, SAME), p) for p in range(6)},
    **{
        f"numpy arrays and truth values, protocol {p}": pickle.dumps(
            (as_arrays(IMAGES), [np.bool_(value) for value in SAME]), p
        )
        for p in range(6)
    },
    **{
        f"an array of truth values, protocol {p}": pickle.dumps((IMAGES, np.array(SAME)), p)
        for p in range(6)
    },
    **{
        f"arrays of bytes and of objects, protocol {p}": pickle.dumps(
            (np.array(IMAGES, kind), np.array(SAME, object)), p
        )
        for p in range(6)
        for kind in (object, "S")
    },
    "numpy 1": numpy_1(pickle.dumps((as_arrays(IMAGES), np.array(SAME)), 2)),
    "tuples of bytearrays and numbers": pickle.dumps(
        (tuple(map(bytearray, IMAGES)), tuple(map(int, SAME))), 5
    ),
}


@pytest.mark.parametrize("content", FILES.values(), ids=FILES)
def test_every_writer_s_file_gives_the_pairs(tmp_path, content):
    pairs = read_bin(save(tmp_path, content), folds=2)
    assert pairs.left == ("lfw.bin[0]", "lfw.bin[2]", "lfw.bin[4]", "lfw.bin[6]")
    assert pairs.right == ("lfw.bin[1]", "lfw.bin[3]", "lfw.bin[5]", "lfw.bin[7]")
    np.testing.assert_array_equal(pairs.same, SAME)
    assert pairs.same.dtype == bool
    np.testing.assert_array_equal(pairs.fold, [0, 0, 1, 1])
    for number, name in enumerate(pairs.names):
        colour = pairs.read(name)[0, 0].astype(int)
        assert np.abs(colour - [20 * number, 255 - 20 * number, 7]).max() < 4
    assert pairs.read_images(5).shape == (8, 5, 5, 3)


def test_the_order_of_names_is_that_of_the_file(tmp_path):
    images = [picture(i) for i in range(24)]
    pairs = read_bin(save(tmp_path, python_2(images, [True, False] * 6, 2)), folds=3)
    assert pairs.names[2] == "lfw.bin[02]" and pairs.names[23] == "lfw.bin[23]"
    left, right = pairs.indices
    np.testing.assert_array_equal(left, np.arange(0, 24, 2))
    np.testing.assert_array_equal(right, np.arange(1, 24, 2))


@settings(max_examples=30, deadline=None)
@given(count=st.integers(2, 60), folds=st.integers(2, 12))
def test_folds_are_those_of_kfold(tmp_path_factory, count, folds):
    model_selection = pytest.importorskip("sklearn.model_selection")
    path = tmp_path_factory.getbasetemp() / "folds.bin"
    path.write_bytes(python_2([b"x"] * (2 * count), [True] * count, 2))
    if folds > count:
        with pytest.raises(ValueError, match=f"`folds` must lie in 1 … {count}"):
            read_bin(path, folds)
        return
    fold = read_bin(path, folds).fold
    for number, (_, test) in enumerate(model_selection.KFold(folds).split(np.arange(count))):
        np.testing.assert_array_equal(np.flatnonzero(fold == number), test)


def test_a_file_can_be_verified(tmp_path):
    images = [picture(10 + 3 * (i // 2)) for i in range(16)]
    for i in range(1, 16, 4):  # every second pair shows two colours
        images[i] = picture(200 + i)
    pairs = read_bin(save(tmp_path, python_2(images, [False, True] * 4, 2)), folds=2)
    result = evaluate_pairs(lambda batch: batch.mean(axis=(1, 2)), pairs, image_size=8)
    assert result.accuracy == 1


# what is broken


def test_an_image_that_cannot_be_decoded_stops_with_its_number(tmp_path):
    images = [*IMAGES]
    images[5] = images[5][:60]
    pairs = read_bin(save(tmp_path, python_2(images, SAME, 2)), folds=2)
    with pytest.raises(ValueError, match=r"lfw\.bin\[5\]"):
        pairs.read_images(8)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ((IMAGES[:-1], SAME), "7 images for 4 pairs"),
        ((IMAGES, SAME[:-1]), "8 images for 3 pairs"),
        ((IMAGES, SAME, 1), r"must hold \(images, same\), got tuple"),
        (IMAGES, r"must hold \(images, same\), got list"),
        ({"images": IMAGES}, r"must hold \(images, same\), got dict"),
        (([*IMAGES[:-1], "text"], SAME), "image 7 must be an encoded image in bytes, got str"),
        ((IMAGES, [True, None, True, True]), "pair 1 must be True or False, got None"),
        ((IMAGES, [True, 2, True, True]), "pair 1 must be True or False, got 2"),
        ((IMAGES, [True, 1.0, True, True]), "pair 1 must be True or False, got 1.0"),
        ((IMAGES[0], SAME), "the images must be a list, got bytes"),
        ((IMAGES, np.array(SAME, np.int64)), "what is the same: numpy values of type 'i8'"),
        ((np.zeros((8, 4, 4, 3), np.uint8), SAME), "the images: numpy values of type 'u1'"),
        (([np.zeros(3, np.float32)] * 8, SAME), "image 0 must be .* got 'f4' array"),
        ((IMAGES, [np.float64(1)] * 4), "numpy values of type 'f8'"),
        (([], []), "`folds` must lie in 1 … 0"),
    ],
)
def test_other_contents_are_named(tmp_path, content, message):
    path = tmp_path / "lfw.bin"
    path.write_bytes(pickle.dumps(content, 2))
    with pytest.raises(ValueError, match=message):
        read_bin(path)


@pytest.mark.parametrize("folds", [0, -1, 5, 2.0, True])
def test_impossible_folds_are_named(tmp_path, folds):
    with pytest.raises(ValueError, match="folds"):
        read_bin(save(tmp_path, python_2(IMAGES, SAME, 2)), folds=folds)


def test_a_missing_an_empty_and_a_cut_file_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"there is no file .*none\.bin"):
        read_bin(tmp_path / "none.bin")
    whole = FILES["python 3, protocol 4"]
    for content in (b"", b"\xff\xd8\xff", whole[:-1], whole[: len(whole) // 2]):
        with pytest.raises(ValueError, match=r"lfw\.bin is not a verification file"):
            read_bin(save(tmp_path, content))


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_changed_bytes_give_pairs_or_a_value_error(tmp_path_factory, data):
    content = bytearray(FILES[data.draw(st.sampled_from(sorted(FILES)))])
    for _ in range(data.draw(st.integers(1, 5))):
        place = data.draw(st.one_of(st.integers(0, 60), st.integers(0, len(content) - 1)))
        content[min(place, len(content) - 1)] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "changed.bin"
    path.write_bytes(content)
    try:
        pairs = read_bin(path, folds=1)
    except ValueError as error:
        assert "changed.bin" in str(error) or "folds" in str(error)
    else:
        assert len(pairs.left) == len(pairs.right) == len(pairs.same)


# what wants to be run


class Calls:
    """Pickles as a call of a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 5])
@pytest.mark.parametrize(
    ("function", "arguments", "name"),
    [
        (os.system, ("touch {}",), r"(posix|nt)\.system"),
        (eval, ("open({!r}, 'w')",), r"_*builtins?_*\.eval"),
        (open, ("{}", "w"), r"io\.open"),
        (np.save, ("{}", [1]), r"numpy\.save"),
        (getattr, (IMAGES, "append"), r"_*builtins?_*\.getattr"),
        (Path, ("{}",), r"pathlib.*Path"),
    ],
)
def test_a_pickle_that_calls_anything_else_is_refused_and_nothing_is_run(
    tmp_path, protocol, function, arguments, name
):
    trace = tmp_path / "trace"
    arguments = [a.format(str(trace)) if isinstance(a, str) else a for a in arguments]
    content = pickle.dumps(([Calls(function, *arguments), *IMAGES[1:]], SAME), protocol)
    with pytest.raises(ValueError, match=f"it asks for {name}; lists, bytes"):
        read_bin(save(tmp_path, content))
    assert not list(tmp_path.glob("trace*"))


def test_a_pickle_cannot_change_what_stands_in_for_numpy(tmp_path):
    whole = save(tmp_path, FILES["numpy 1"])
    for state in (b"}U\x04nameU\x01xs", b"N}U\x08__call__K\x01s\x86"):
        evil = tmp_path / "evil.bin"
        evil.write_bytes(b"\x80\x02cnumpy\ndtype\n" + state + b"b0](e](e\x86.")
        with pytest.raises(ValueError, match="sets the state of a function"):
            read_bin(evil)
    np.testing.assert_array_equal(read_bin(whole, 2).same, SAME)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x80\x02Pabc\n.", "not a verification file"),
        (b"\x80\x02K\x07Q.", "refers to objects outside"),
        (b"\x80\x02c_codecs\nencode\nU\x01xU\x05utf-7\x86R.", "not a verification file"),
        (b"\x80\x03c_codecs\nencode\nX\x01\0\0\0xX\x05\0\0\0utf-7\x86R.", "encodes text as"),
        (b"\x80\x02cnumpy\ndtype\n)\x81.", "not a verification file"),
        (b"\x80\x02\x82\x01.", "not a verification file"),
    ],
)
def test_other_doors_are_closed(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        read_bin(save(tmp_path, content))
