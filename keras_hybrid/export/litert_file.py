"""Reads and writes the LiteRT file format: a flatbuffer of tensors, operators and buffers."""

from collections import Counter
from typing import Any

import flatbuffers
from ai_edge_litert import schema_py_generated as schema

__all__: list[str] = []

_BUFFER_ALIGNMENT = 16
_IDENTIFIER = b"TFL3"
_NAMES = {
    value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)
}


class _Builder(flatbuffers.Builder):
    """Aligns what it copies from NumPy, weights above all, as LiteRT expects of a file."""

    def CreateNumpyVector(self, x):
        self.StartVector(x.itemsize, x.size, max(_BUFFER_ALIGNMENT, x.dtype.alignment))
        data = x if x.dtype.str[0] == "<" else x.byteswap(inplace=False)
        self.head -= x.itemsize * x.size
        self.Bytes[self.head : self.head + x.itemsize * x.size] = data.tobytes(order="C")
        self.vectorNumElems = x.size
        return self.EndVector()


def unpack(content: bytes) -> Any:
    """Return a file as the objects of its schema, which may be changed."""
    return schema.ModelT.InitFromPackedBuf(content, 0)


def pack(model: Any) -> bytes:
    """Return the file of what :func:`unpack` returned."""
    builder = _Builder(4096)
    builder.Finish(model.Pack(builder), file_identifier=_IDENTIFIER)
    return bytes(builder.Output())


def operator_names(model: Any) -> list[str]:
    """Return the name of each operator code of an unpacked model, built in or custom."""
    return [
        code.customCode.decode()
        if code.customCode
        else _NAMES[max(code.builtinCode, code.deprecatedBuiltinCode)]
        for code in model.operatorCodes
    ]


def count_operators(model: Any) -> dict[str, int]:
    """Count the operators of an unpacked model in all its subgraphs, sorted by name."""
    names = operator_names(model)
    counts = Counter(
        names[operator.opcodeIndex] for graph in model.subgraphs for operator in graph.operators
    )
    return dict(sorted(counts.items()))
