// YuNet finds faces and their five landmarks, run by ONNX Runtime on the CPU (WebAssembly).
//
// Source: Wu, Peng and Yu, "YuNet: A Tiny Millisecond-level Face Detector", Machine Intelligence
// Research 20, 2023. Its outputs are decoded as in OpenCV's FaceDetectorYN.

import * as ort from "onnxruntime-web/wasm";

const RUNTIME = new URL("../vendor/onnxruntime/", import.meta.url).href;
const STRIDES = [8, 16, 32];
const MIN_SCORE = 0.7;
const MAX_OVERLAP = 0.3; // intersection over union of two boxes that are two faces
const MAX_SIDE = 640; // larger photographs are shrunk for the detector

ort.env.wasm.wasmPaths = RUNTIME;
ort.env.wasm.numThreads = 1; // more need headers that a plain file server does not send
ort.env.logLevel = "error";

/** @typedef {{score: number, box: number[], landmarks: number[][]}} Face
 * box: left, top, width, height; landmarks: five [x, y] in pixels of the photograph. */

export class FaceDetector {
  /**
   * @param {Uint8Array} bytes A YuNet .onnx file, of fixed or free input size.
   * @returns {Promise<FaceDetector>}
   * @throws {Error} If the file is no such network.
   */
  static async load(bytes) {
    let session;
    try {
      session = await ort.InferenceSession.create(bytes);
    } catch (error) {
      throw new Error(`ONNX Runtime cannot read this file: ${error.message}`, { cause: error });
    }
    const expected = STRIDES.flatMap((s) => [`cls_${s}`, `obj_${s}`, `bbox_${s}`, `kps_${s}`]);
    if (!expected.every((name) => session.outputNames.includes(name))) {
      await session.release();
      throw new Error("This .onnx file is not YuNet, the face detector that this page knows.");
    }
    return new FaceDetector(session);
  }

  constructor(session) {
    this.session = session;
    const [, , height, width] = session.inputMetadata[0].shape;
    this.fixedSize = typeof height === "number" && typeof width === "number" && { height, width };
  }

  /**
   * Find the faces of a photograph, the largest first.
   *
   * @param {ImageData} image
   * @returns {Promise<Face[]>}
   */
  async detect(image) {
    const limit = this.fixedSize || { height: MAX_SIDE, width: MAX_SIDE };
    const scale = Math.min(1, limit.width / image.width, limit.height / image.height);
    const small = scale < 1 ? shrink(image, scale) : image;
    const multiple = (side) => Math.ceil(side / 32) * 32;
    const width = this.fixedSize ? limit.width : multiple(small.width);
    const height = this.fixedSize ? limit.height : multiple(small.height);
    const shape = [1, 3, height, width];
    const input = new ort.Tensor("float32", blueGreenRed(small, width, height), shape);
    const outputs = await this.session.run({ [this.session.inputNames[0]]: input });
    const faces = withoutDoubles(decode(outputs, width, height));
    for (const face of faces) {
      face.box = face.box.map((value) => value / scale);
      // Whole numbers are the centres of pixels, before and after shrinking.
      const unshrink = (value) => (value + 0.5) / scale - 0.5;
      face.landmarks = face.landmarks.map((point) => point.map(unshrink));
    }
    return faces.sort((one, other) => other.box[2] * other.box[3] - one.box[2] * one.box[3]);
  }
}

function shrink(image, scale) {
  const source = new OffscreenCanvas(image.width, image.height);
  source.getContext("2d").putImageData(image, 0, 0);
  const [width, height] = [image.width, image.height].map((side) => Math.round(side * scale));
  const context = new OffscreenCanvas(width, height).getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(source, 0, 0, width, height);
  return context.getImageData(0, 0, width, height);
}

/** Planes (3, height, width) of blue, green, red, black to the right of and below the image. */
function blueGreenRed(image, width, height) {
  const planes = new Float32Array(3 * height * width);
  for (let y = 0; y < image.height; y++) {
    for (let x = 0; x < image.width; x++) {
      for (let channel = 0; channel < 3; channel++) {
        const plane = (2 - channel) * height * width;
        planes[plane + y * width + x] = image.data[(y * image.width + x) * 4 + channel];
      }
    }
  }
  return planes;
}

/** Every cell of the three grids may hold a face; its numbers are relative to the cell. */
function decode(outputs, width, height) {
  const faces = [];
  for (const stride of STRIDES) {
    const [cls, obj, bbox, kps] = ["cls", "obj", "bbox", "kps"].map(
      (name) => outputs[`${name}_${stride}`].data,
    );
    const columns = width / stride;
    for (let cell = 0; cell < columns * (height / stride); cell++) {
      const score = Math.sqrt(Math.min(cls[cell], 1) * Math.min(obj[cell], 1));
      if (!(score >= MIN_SCORE)) continue;
      const corner = [cell % columns, Math.floor(cell / columns)];
      const at = (axis, value) => (corner[axis] + value) * stride;
      const sides = [2, 3].map((index) => Math.exp(bbox[cell * 4 + index]) * stride);
      const centre = [0, 1].map((axis) => at(axis, bbox[cell * 4 + axis]));
      faces.push({
        score,
        box: [centre[0] - sides[0] / 2, centre[1] - sides[1] / 2, ...sides],
        landmarks: [0, 1, 2, 3, 4].map((point) =>
          [0, 1].map((axis) => at(axis, kps[cell * 10 + point * 2 + axis])),
        ),
      });
    }
  }
  return faces;
}

/** Keep the best of boxes that overlap. */
function withoutDoubles(faces) {
  const kept = [];
  for (const face of faces.sort((one, other) => other.score - one.score)) {
    if (kept.every((better) => overlap(better.box, face.box) <= MAX_OVERLAP)) kept.push(face);
  }
  return kept;
}

function overlap([left, top, width, height], [otherLeft, otherTop, otherWidth, otherHeight]) {
  const across = Math.min(left + width, otherLeft + otherWidth) - Math.max(left, otherLeft);
  const down = Math.min(top + height, otherTop + otherHeight) - Math.max(top, otherTop);
  const common = Math.max(across, 0) * Math.max(down, 0);
  return common / (width * height + otherWidth * otherHeight - common);
}
