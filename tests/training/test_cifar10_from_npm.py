"""The npm package's layout, written here byte for byte, and what is wrong with a broken one."""

import io
import json
import struct
import tarfile
import zlib

import numpy as np
import pytest

from keras_hybrid import data
from training import cifar10_from_npm

pytestmark = pytest.mark.any_backend

pytest.importorskip("PIL.Image")
ROWS = 20


def png(pixels):
    """A PNG of uint8 (height, width, 3), by the format's definition."""

    def chunk(kind, content):
        checksum = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)

    height, width, _ = pixels.shape
    lines = b"".join(b"\0" + line.tobytes() for line in pixels)  # 0: no filter
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(lines))
        + chunk(b"IEND", b"")
    )


def pixel(image, y, x, channel):
    """The value that the tests expect there; no two places of an image are confused by chance."""
    return (image * 7 + y * 37 + x * 5 + channel * 83) % 251


def batch(first):
    """A PNG of ROWS images: row after row, pixel after pixel, channel after channel."""
    values = [
        pixel(first + row, y, x, channel)
        for row in range(ROWS)
        for y in range(32)
        for x in range(32)
        for channel in range(3)
    ]
    return png(np.array(values, "uint8").reshape(ROWS, 1024, 3))


@pytest.fixture(scope="module")
def contents():
    files = {f"data_batch_{i + 1}.png": batch(i * ROWS) for i in range(5)}
    files["test_batch.png"] = batch(1000)
    files["train_lables.json"] = json.dumps([i * 3 % 10 for i in range(5 * ROWS)]).encode()
    files["test_lables.json"] = json.dumps([i % 10 for i in range(ROWS)]).encode()
    return files


@pytest.fixture(autouse=True)
def _few_rows(monkeypatch):
    monkeypatch.setattr(cifar10_from_npm, "ROWS", ROWS)


def pack(path, contents):
    with tarfile.open(path, "w:gz") as archive:
        for name, content in contents.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def test_a_package_becomes_an_npz_that_recipes_read(tmp_path, contents, capsys):
    package = pack(tmp_path / "cifar.tgz", {"README.md": b"", **contents})
    out = tmp_path / "cifar10.npz"
    assert cifar10_from_npm.main([str(package), str(out)]) == 0
    assert "100 training and 20 test images of 10 classes" in capsys.readouterr().out
    train = data.open_source(str(out), split="train")
    test = data.open_source(str(out), split="test")
    assert train.class_names == test.class_names == list(cifar10_from_npm.CLASSES)
    assert train.labels.tolist() == [i * 3 % 10 for i in range(100)]
    assert test.labels.tolist() == [i % 10 for i in range(20)]
    for source, index, number in ((train, 0, 0), (train, 47, 47), (test, 19, 1019)):
        y, x, channel = np.indices((32, 32, 3))
        np.testing.assert_array_equal(source.read(index), pixel(number, y, x, channel))


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"data_batch_3.png": None, "test_lables.json": None}, "lacks data_batch_3.png, test_lab"),
        ({"data_batch_2.png": b"\x89PNG\r\n"}, "data_batch_2.png: not an image"),
        ({"test_batch.png": png(np.zeros((5, 1024, 3), "uint8"))}, "test_batch.png must.*5 high"),
        ({"test_lables.json": b"[1, 2"}, "test_lables.json is not a JSON list"),
        ({"test_lables.json": b"[0, 1, 2]"}, r"test_lables.json must be a list of 20.*\(3,\)"),
        ({"test_lables.json": json.dumps(["cat"] * 20).encode()}, "whole numbers.*U3"),
        ({"test_lables.json": json.dumps([0, *range(1, 10), *range(1, 10), 9]).encode()},
         "each label from 0 to 9 2 times; it has 0 1 times.*9 3 times"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_package_is_named(tmp_path, contents, capsys, broken, message):
    files = {name: broken.get(name, content) for name, content in contents.items()}
    package = pack(tmp_path / "cifar.tgz", {k: v for k, v in files.items() if v is not None})
    assert cifar10_from_npm.main([str(package), str(tmp_path / "out.npz")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    with pytest.raises(ValueError, match=message):
        cifar10_from_npm.convert(package, tmp_path / "out.npz")
    assert not (tmp_path / "out.npz").exists()


def test_a_truncated_download_and_a_missing_one_are_named(tmp_path, contents, capsys):
    package = pack(tmp_path / "cifar.tgz", contents)
    package.write_bytes(package.read_bytes()[:-5000])
    for path in (package, tmp_path / "nothing.tgz"):
        assert cifar10_from_npm.main([str(path), str(tmp_path / "out.npz")]) == 1
        assert path.name in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cifar10_from_npm.main([str(package), str(tmp_path / "out")])
    assert "must end in .npz" in capsys.readouterr().err
