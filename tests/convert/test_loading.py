"""Checkpoints of other implementations: every format, and what does not fit is said."""

import importlib.util
import zipfile

import keras
import numpy as np
import pytest

import keras_hybrid as kh
from keras_hybrid.convert.loading import _mapping
from tests.cases import SMALL, predict, small_model


def torch_layout(variable, layout) -> np.ndarray:
    """An array of the shape a checkpoint has for ``variable``."""
    value = np.random.default_rng(0).normal(size=tuple(variable.shape)).astype("float32")
    if layout.__name__ == "linear":
        return value.T
    if layout.__name__ == "depthwise":
        return value.transpose(2, 3, 0, 1)
    return value.transpose(3, 2, 0, 1) if layout.__name__ == "convolution" else value


def checkpoint_of(model) -> dict[str, np.ndarray]:
    targets = _mapping(model, None).targets
    return {
        name: torch_layout(target.variable, target.layout)
        for name, target in targets.items()
        if target.variable is not None
    }


@pytest.fixture
def model():
    return small_model("vit_*")


@pytest.fixture
def checkpoint(model):
    return checkpoint_of(model)


def test_every_weight_comes_from_the_checkpoint(model, checkpoint):
    kh.convert.load_torch_weights(model, checkpoint)
    kernel = keras.ops.convert_to_numpy(model.get_layer("block1_mlp_dense1").kernel)
    np.testing.assert_array_equal(kernel, checkpoint["blocks.1.mlp.fc1.weight"].T)
    kernel = keras.ops.convert_to_numpy(model.get_layer("patch_embedding").kernel)
    weight = checkpoint["patch_embed.proj.weight"]
    assert kernel[2, 3, 1, 5] == weight[5, 1, 2, 3]


@pytest.mark.parametrize("container", [None, "state_dict", "model"])
def test_checkpoints_are_read_from_pytorch_files(model, checkpoint, tmp_path, container):
    torch = pytest.importorskip("torch")
    tensors = {f"module.{k}": torch.from_numpy(v.copy()) for k, v in checkpoint.items()}
    content = tensors if container is None else {container: tensors, "epoch": 3}
    torch.save(content, tmp_path / "weights.pth")
    kh.convert.load_torch_weights(model, tmp_path / "weights.pth")
    bias = keras.ops.convert_to_numpy(model.get_layer("norm").beta)
    np.testing.assert_array_equal(bias, checkpoint["norm.bias"])


def test_half_precision_tensors_are_read_as_float32():
    torch = pytest.importorskip("torch")
    read = kh.convert.read_torch_weights({"a": torch.tensor([0.5, 2.0], dtype=torch.bfloat16)})
    assert read["a"].dtype == np.float32
    np.testing.assert_array_equal(read["a"], [0.5, 2.0])


def test_npz_and_safetensors_files_are_read(model, checkpoint, tmp_path):
    np.savez(tmp_path / "weights.npz", **checkpoint)
    kh.convert.load_torch_weights(model, tmp_path / "weights.npz")
    expected = predict(model, np.zeros((1, 16, 16, 3), "float32"))
    safetensors = pytest.importorskip("safetensors.numpy")
    contiguous = {name: np.ascontiguousarray(value) for name, value in checkpoint.items()}
    safetensors.save_file(contiguous, tmp_path / "weights.safetensors")
    other = small_model("vit_*")
    kh.convert.load_torch_weights(other, tmp_path / "weights.safetensors")
    np.testing.assert_array_equal(predict(other, np.zeros((1, 16, 16, 3), "float32")), expected)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_torchscript_files_are_read(tmp_path):
    torch = pytest.importorskip("torch")
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    torch.jit.script(module).save(tmp_path / "scripted.pt")
    read = kh.convert.read_torch_weights(tmp_path / "scripted.pt")
    expected = module.state_dict()
    assert read.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(read[name], value.numpy())
    with (
        zipfile.ZipFile(tmp_path / "scripted.pt") as whole,
        zipfile.ZipFile(tmp_path / "damaged.pt", "w") as damaged,
    ):
        for entry in whole.namelist():
            damaged.writestr(entry, b"" if entry.endswith("/data.pkl") else whole.read(entry))
    with pytest.raises(ValueError, match=r"damaged\.pt"):
        kh.convert.read_torch_weights(tmp_path / "damaged.pt")


def test_a_file_with_code_in_it_is_refused(model, tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({"model": print}, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match="weights_only"):
        kh.convert.load_torch_weights(model, tmp_path / "weights.pt")


@pytest.mark.parametrize("content", [b"hello, no checkpoint", b"Qx", b"\x80\x02h\x05.", b"<html>"])
def test_a_file_that_is_no_checkpoint_is_named(content, tmp_path):
    pytest.importorskip("torch")
    (tmp_path / "other.pth").write_bytes(content)
    with pytest.raises(ValueError, match=r"other\.pth"):
        kh.convert.read_torch_weights(tmp_path / "other.pth")


def test_missing_unexpected_and_misshapen_tensors_are_listed_and_nothing_changes(model, checkpoint):
    before = model.get_weights()
    del checkpoint["norm.weight"]
    checkpoint["head.weight"] = np.zeros((7, 16), "float32")
    checkpoint["blocks.9.norm1.bias"] = np.zeros(16, "float32")
    with pytest.raises(ValueError) as error:
        kh.convert.load_torch_weights(model, checkpoint)
    message = str(error.value)
    assert "missing: norm.weight" in message
    assert "unexpected: blocks.9.norm1.bias" in message
    assert "wrong shape: head.weight is (7, 16)" in message
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_a_transposed_matrix_of_the_same_size_is_noticed(model, checkpoint):
    checkpoint["blocks.0.mlp.fc1.weight"] = checkpoint["blocks.0.mlp.fc1.weight"].T
    with pytest.raises(ValueError, match=r"wrong shape: blocks\.0.mlp.fc1.weight"):
        kh.convert.load_torch_weights(model, checkpoint)


def test_a_model_without_top_leaves_the_classifier_out(model, checkpoint):
    features = small_model("vit_*", include_top=False, pooling="native")
    kh.convert.load_torch_weights(features, checkpoint)
    kh.convert.load_torch_weights(model, checkpoint)
    image = np.full((1, 16, 16, 3), 100, "float32")
    embedding = keras.Model(model.input, model.get_layer("embedding").output)
    np.testing.assert_allclose(predict(features, image), predict(embedding, image), atol=1e-5)


def test_the_front_of_a_network_takes_the_weights_of_the_whole_strictly():
    stages = (("mbconv", 3, 1, 8, 1, 1), ("mbconv", 3, 2, 12, 2, 1), ("mbconv", 3, 2, 8, 1, 1))
    arguments = {**SMALL["efficientnet_*"], "embedding_dim": None, "stages": stages}
    checkpoint = checkpoint_of(kh.create_model("efficientnet_lite0", **arguments, classes=3))
    hybrid = kh.create_model(
        "efficientvit_face_small",
        **{**SMALL["efficientvit_*"], "stages": stages[:2], "patch_size": 4, "classes": 3},
    )
    before = {v.path: keras.ops.convert_to_numpy(v) for v in hybrid.weights}
    trunk = keras.Model(hybrid.input, hybrid.get_layer("block2a_project_bn").output)
    with pytest.raises(ValueError, match=r"missing: pt_model_trim\."):
        kh.convert.load_torch_weights(hybrid, checkpoint)
    lacking = {**checkpoint}
    del lacking["_blocks.1._bn2.running_var"]
    with pytest.raises(ValueError, match=r"missing: _blocks\.1\._bn2\.running_var"):
        kh.convert.load_torch_weights(trunk, lacking, family="efficientnet")
    foreign = {**checkpoint, "_conv_neck.weight": checkpoint["_conv_head.weight"]}
    with pytest.raises(ValueError, match=r"unexpected: _conv_neck\.weight"):
        kh.convert.load_torch_weights(trunk, foreign, family="efficientnet")
    for variable in hybrid.weights:
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(variable), before[variable.path])

    kh.convert.load_torch_weights(trunk, checkpoint, family="efficientnet")
    inside = {v.path for v in trunk.weights}
    assert len(inside) == 5 + 10 + 15
    for variable in hybrid.weights:
        same = np.array_equal(keras.ops.convert_to_numpy(variable), before[variable.path])
        assert same == (variable.path not in inside), variable.path
    kernel = keras.ops.convert_to_numpy(hybrid.get_layer("block2a_dwconv").kernel)
    np.testing.assert_array_equal(
        kernel[:, :, :, 0].transpose(2, 0, 1), checkpoint["_blocks.1._depthwise_conv.weight"][:, 0]
    )


def test_the_front_of_a_network_refuses_what_its_own_blocks_do_not_have():
    stages = (("mbconv", 3, 1, 8, 1, 1), ("mbconv", 3, 2, 12, 2, 1), ("mbconv", 3, 2, 8, 1, 1))
    arguments = {**SMALL["efficientnet_*"], "embedding_dim": None, "stages": stages, "classes": 3}
    lite = kh.create_model("efficientnet_lite0", **arguments)
    trunk = keras.Model(lite.input, lite.get_layer("block2a_project_bn").output)
    # Squeeze-and-excitation in every block, and all that the trunk has besides.
    other = checkpoint_of(kh.create_model("efficientnet_b0", **arguments))
    before = trunk.get_weights()
    with pytest.raises(ValueError, match=r"unexpected: _blocks\.0\._se_reduce") as error:
        kh.convert.load_torch_weights(trunk, other, family="efficientnet")
    assert "_blocks.1._se_expand.bias" in str(error.value)
    assert "_blocks.2" not in str(error.value) and "missing" not in str(error.value)
    for old, new in zip(before, trunk.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)

    checkpoint = {**checkpoint_of(lite), "_blocks.13._se_reduce.bias": np.zeros(2, "float32")}
    kh.convert.load_torch_weights(trunk, checkpoint, family="efficientnet")
    with pytest.raises(ValueError, match=r"unexpected: _blocks\.last\.bias"):
        kh.convert.load_torch_weights(
            trunk, {**checkpoint, "_blocks.last.bias": np.zeros(2)}, family="efficientnet"
        )


def test_the_family_of_a_renamed_model_has_to_be_given(checkpoint):
    renamed = small_model("vit_*", name="mine")
    with pytest.raises(ValueError, match="family="):
        kh.convert.load_torch_weights(renamed, checkpoint)
    kh.convert.load_torch_weights(renamed, checkpoint, family="vit")
    with pytest.raises(ValueError, match="No PyTorch checkpoints are known"):
        kh.convert.load_torch_weights(renamed, checkpoint, family="facerec_small")


@pytest.mark.parametrize(
    ("name", "message"), [("weights.h5", r"\.safetensors"), ("absent.pth", "no file")]
)
def test_what_is_no_checkpoint_is_refused(model, tmp_path, name, message):
    with pytest.raises(ValueError, match=message):
        kh.convert.load_torch_weights(model, tmp_path / name)


def test_a_truncated_file_is_refused_with_its_name(checkpoint, tmp_path):
    np.savez(tmp_path / "weights.npz", **checkpoint)
    files = [tmp_path / "weights.npz"]
    if importlib.util.find_spec("safetensors") is not None:
        from safetensors.numpy import save_file

        contiguous = {name: np.ascontiguousarray(value) for name, value in checkpoint.items()}
        save_file(contiguous, tmp_path / "weights.safetensors")
        files.append(tmp_path / "weights.safetensors")
    for file in files:
        file.write_bytes(file.read_bytes()[:-100])
        with pytest.raises(ValueError, match=rf"weights{file.suffix} is not a complete"):
            kh.convert.read_torch_weights(file)


def test_an_empty_dictionary_is_refused(model):
    with pytest.raises(ValueError, match="no tensors"):
        kh.convert.load_torch_weights(model, {"epoch": 3})
