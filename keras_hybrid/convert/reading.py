"""Checkpoint files to a dictionary of NumPy arrays."""

import os
import pathlib
import zipfile
import zlib
from collections.abc import Mapping

import numpy as np

__all__ = ["read_torch_weights"]

SUFFIXES = (".pth", ".pt", ".bin", ".safetensors", ".npz")
# Where training scripts put the weights beside optimizer and epoch.
CONTAINERS = ("state_dict", "model_state_dict", "model", "net", "module")


def read_torch_weights(source: str | os.PathLike | Mapping) -> dict[str, np.ndarray]:
    """Read weights as a flat dictionary.

    Args:
        source: A .pth, .pt or .bin file (read by PyTorch with ``weights_only=True``, which runs no
            code of the file, or, if it is TorchScript, by ``torch.jit.load``, which may run
            TorchScript's own operators but no Python), a .safetensors or .npz file, or a dictionary
            of arrays or tensors. A dictionary that holds the weights under "state_dict" or "model"
            is opened, and the prefix "module." that ``DataParallel`` writes is removed.

    Returns:
        Name → array; half-precision tensors as float32.

    Raises:
        ValueError: If the file has another suffix, does not exist, is damaged or holds no tensors.
        ImportError: If the format needs PyTorch or safetensors and it is not installed.
    """
    content = source if isinstance(source, Mapping) else _read_file(pathlib.Path(source))
    for key in CONTAINERS:
        if isinstance(content.get(key), Mapping):
            content = content[key]
            break
    weights = {name: _to_numpy(value) for name, value in content.items() if _is_array(value)}
    if not weights:
        raise ValueError(f"{_describe(source)} holds no tensors; its keys: {list(content)[:10]}.")
    if all(name.startswith("module.") for name in weights):
        weights = {name.removeprefix("module."): value for name, value in weights.items()}
    return weights


def _describe(source) -> str:
    return "The dictionary" if isinstance(source, Mapping) else str(source)


def _read_file(path: pathlib.Path) -> Mapping:
    if path.suffix not in SUFFIXES:
        raise ValueError(
            f"Weights must be a {', '.join(SUFFIXES)} file or a dictionary, got {path}."
        )
    if not path.is_file():
        raise ValueError(f"There is no file {path}.")
    if path.suffix == ".npz":
        try:
            with np.load(path, allow_pickle=False) as archive:
                return dict(archive)
        except (
            zipfile.BadZipFile,
            zlib.error,
            EOFError,
            RuntimeError,  # a member with a password
            TypeError,  # a single array, .npy
            ValueError,  # Python objects
        ) as error:
            raise ValueError(f"{path} is not a complete .npz file of numbers: {error}") from error
    if path.suffix == ".safetensors":
        try:
            from safetensors import SafetensorError
            from safetensors.numpy import load_file
        except ImportError as error:
            raise ImportError(
                f"{path} needs the package safetensors: pip install safetensors"
            ) from error
        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is not a complete .safetensors file: {error}") from error
    try:
        import torch
    except ImportError as error:
        raise ImportError(f"{path} needs PyTorch: pip install 'keras-hybrid[torch]'") from error
    try:
        if _is_torchscript(path):
            return torch.jit.load(path, map_location="cpu").state_dict()
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a file that is no checkpoint can provoke almost any
        raise ValueError(
            f"PyTorch cannot read {path} with weights_only=True, which runs no code of the file: "
            f"{error}"
        ) from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a dictionary of tensors.")
    return content


def _is_torchscript(path: pathlib.Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _is_array(value) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype")


def _to_numpy(value) -> np.ndarray:
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = (value.float() if value.is_floating_point() else value).numpy()
    array = np.asarray(value)
    # Also bfloat16, which NumPy knows as a kind of its own ("V").
    return array.astype("float32") if array.dtype.kind in "fV" else array
