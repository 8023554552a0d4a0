// A face model in a .tflite file, run by LiteRT.js on the CPU (WebAssembly).

import { loadAndCompile, loadLiteRt, Tensor } from "@litertjs/core";
import { readMetadata } from "./metadata.js";

const RUNTIME = new URL("../vendor/litert/", import.meta.url).href;

let runtime; // promise of LiteRT, loaded once

/** A compiled face model: RGB crops in, embeddings out. */
export class FaceModel {
  /**
   * @param {Uint8Array} bytes A file written by `keras-hybrid export --to litert --output embedding`.
   * @returns {Promise<FaceModel>}
   * @throws {Error} If the file is none of that kind, or LiteRT cannot run it.
   */
  static async load(bytes) {
    const metadata = readMetadata(bytes);
    const problem = findProblem(metadata);
    if (problem) throw new Error(problem);
    runtime ??= loadLiteRt(RUNTIME);
    try {
      await runtime;
    } catch (error) {
      runtime = undefined;
      throw new Error(`LiteRT.js could not be loaded: ${error.message ?? "no answer"}.`, {
        cause: error,
      });
    }
    const model = new FaceModel(metadata, await loadAndCompile(bytes, { accelerator: "wasm" }));
    await model.embed(new Uint8Array(model.size ** 2 * 3)); // the first call is slow
    return model;
  }

  constructor(metadata, compiled) {
    this.name = metadata.model;
    this.size = metadata.input.shape[1];
    this.quantization = metadata.quantization;
    this.threshold = metadata.threshold; // undefined in a file that states none
    this.input = metadata.input;
    this.output = metadata.outputs[0].name;
    this.compiled = compiled;
  }

  /**
   * @param {Uint8Array} crop RGB (size × size × 3).
   * @returns {Promise<Float32Array>} The embedding.
   */
  async embed(crop) {
    const [low, high] = this.input.value_range;
    const values =
      this.input.dtype === "uint8"
        ? crop
        : Float32Array.from(crop, (value) => low + (value / 255) * (high - low));
    const image = new Tensor(values, [1, this.size, this.size, 3]);
    try {
      const outputs = await this.compiled.run({ [this.input.name]: image });
      const embedding = Float32Array.from(await outputs[this.output].data());
      for (const output of Object.values(outputs)) output.delete();
      return embedding;
    } finally {
      image.delete();
    }
  }

  /** Free the memory that WebAssembly holds for the model. */
  delete() {
    this.compiled.delete();
  }
}

/** Why a file with this description cannot compare faces here; nothing if it can. */
function findProblem({ input, outputs }) {
  const [batch, height, width] = input.shape;
  if (outputs.length !== 1 || !outputs[0].l2_normalized) {
    return "This file does not put out an embedding: export it with `--output embedding`.";
  }
  if (batch !== 1) {
    return `This file takes ${batch ?? "any number of"} images a call: export it without \`--batch-size\`.`;
  }
  if (height !== width || input.color_order !== "RGB") {
    return `This page makes square RGB crops; the model takes ${height}×${width} ${input.color_order}.`;
  }
  return "";
}

/** The cosine of two embeddings. Those of an int8 file are rounded, so their length is near 1 only. */
export function similarity(first, second) {
  const dot = (one, other) => one.reduce((sum, value, index) => sum + value * other[index], 0);
  return dot(first, second) / Math.sqrt(dot(first, first) * dot(second, second));
}
