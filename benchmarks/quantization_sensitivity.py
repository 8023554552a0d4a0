"""Which operator's weights do not fit into eight bits: each is quantized alone.

    python benchmarks/quantization_sensitivity.py mobilefacenet_relu6 \
        --checkpoint mobilefacenet_relu6.pth --images faces.zip

Takes the float32 LiteRT file of the embedding, quantizes the weights of one convolution or matrix
product after the other to int8 (a scale for each output channel), activations staying in float32,
and compares embeddings of photographs. One row an operator is added to the CSV file. Operators
that cost much alone are the ones to leave in float32: see `--float-layers` of `quantized_lfw.py`.
"""

import argparse
import pathlib
import sys
import tempfile

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

from benchmarks.quantized_lfw import litert_embedder, load  # noqa: E402
from benchmarks.quantizer_recipes import quantize_one  # noqa: E402

WEIGHTED = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
COLUMNS = (
    "model",
    "position",
    "operator",
    "layer",
    "weights",
    "smallest_cosine",
    "mean_cosine",
    "images",
    "commit",
    "command",
)


def weighted_operators(path: pathlib.Path) -> list[dict]:
    """Return position, kind, output name and shape of the weights of a file's operators."""
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    names = {number: name for name, number in vars(schema.BuiltinOperator).items()}
    graph = model.subgraphs[0]
    found = []
    for position, operator in enumerate(graph.operators):
        code = model.operatorCodes[operator.opcodeIndex]
        kind = names[max(code.builtinCode, code.deprecatedBuiltinCode)]
        if kind in WEIGHTED:
            weights = graph.tensors[operator.inputs[1]].shape
            output = graph.tensors[operator.outputs[0]].name.decode()
            found.append(
                {
                    "position": position,
                    "operator": kind,
                    "output": output,
                    "weights": "x".join(str(n) for n in weights),
                }
            )
    return found


def main() -> None:
    """Quantize each operator alone and add what it costs to the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", help="a .keras file, or with --checkpoint a registered name")
    parser.add_argument("--checkpoint", help="weights of the original PyTorch code")
    parser.add_argument("--images", required=True, help="photographs: a folder or .zip")
    parser.add_argument("--count", type=int, default=16, help="photographs that are compared")
    parser.add_argument("--label", help="name of the model in the table")
    parser.add_argument(
        "--table",
        type=pathlib.Path,
        default=ROOT / "benchmarks/results/quantization_sensitivity.csv",
    )
    given = parser.parse_args()

    import keras_hybrid as kh
    from benchmarks.table import append_row
    from training.report import command, commit

    model = load(given)
    size = model.input_shape[1:3]
    source = kh.data.open_source(given.images)
    rows = np.random.default_rng(0).permutation(len(source))[: given.count]
    images = np.stack([kh.data.files.resize_image(source.read(int(i)), size) for i in rows])
    with tempfile.TemporaryDirectory() as name:
        float32 = pathlib.Path(name, "float32.tflite")
        kh.export.to_litert(model, float32, output="embedding")
        expected = litert_embedder(float32)(images)
        for operator in weighted_operators(float32):
            path = pathlib.Path(name, f"{operator['position']}.tflite")
            quantize_one(float32, path, operator["output"])
            # Unit vectors on both sides: activations are not quantized.
            cosines = (litert_embedder(path)(images) * expected).sum(axis=1)
            row = {
                "model": given.label or model.name,
                **operator,
                # The last part of the fused name that is a layer's, without the model's own.
                "layer": operator["output"].split(";")[-1].split("/")[1],
                "smallest_cosine": round(float(cosines.min()), 5),
                "mean_cosine": round(float(cosines.mean()), 5),
                "images": len(images),
                "commit": commit(),
                "command": command(),
            }
            append_row(given.table, COLUMNS, row)
            print(row["layer"], row["operator"], row["smallest_cosine"], flush=True)
            path.unlink()


if __name__ == "__main__":
    main()
