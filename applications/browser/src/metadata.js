// The description that `keras-hybrid export` leaves in a .tflite file.
//
// The file is a FlatBuffer. Of LiteRT's schema this reads the model's metadata entries, of which
// each names a buffer, and the buffer whose entry is called "keras_hybrid": JSON with the keys that
// keras_hybrid/export/metadata.py documents.

const METADATA_NAME = "keras_hybrid";
const IDENTIFIER = "TFL3";

// The fields' places in their tables, from LiteRT's schema.fbs.
const MODEL = { buffers: 4, metadata: 6 };
const METADATA = { name: 0, buffer: 1 };
const BUFFER = { data: 0 };

/**
 * Read the description in a .tflite file.
 *
 * @param {Uint8Array} bytes The file.
 * @returns {object} model, input, outputs, quantization, keras_hybrid_version.
 * @throws {Error} If the file is no LiteRT file or was not written by keras-hybrid.
 */
export function readMetadata(bytes) {
  const text = (start, end) => new TextDecoder().decode(bytes.subarray(start, end));
  if (text(4, 8) !== IDENTIFIER) throw new Error("This is not a LiteRT (.tflite) file.");
  try {
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    const follow = (place) => place + view.getUint32(place, true);
    const field = (table, index) => {
      const fields = table - view.getInt32(table, true);
      const slot = 4 + 2 * index;
      const offset = slot < view.getUint16(fields, true) ? view.getUint16(fields + slot, true) : 0;
      return offset && table + offset;
    };
    const vector = (table, index) => {
      const place = field(table, index);
      if (!place) return { start: 0, length: 0 };
      const start = follow(place);
      return { start: start + 4, length: view.getUint32(start, true) };
    };
    const content = (table, index) => {
      const { start, length } = vector(table, index);
      return text(start, start + length);
    };
    const model = follow(0);
    const entries = vector(model, MODEL.metadata);
    const buffers = vector(model, MODEL.buffers);
    for (let index = 0; index < entries.length; index++) {
      const entry = follow(entries.start + 4 * index);
      if (content(entry, METADATA.name) !== METADATA_NAME) continue;
      const place = field(entry, METADATA.buffer);
      const number = place && view.getUint32(place, true);
      return JSON.parse(content(follow(buffers.start + 4 * number), BUFFER.data));
    }
  } catch (error) {
    throw new Error(`This .tflite file is damaged (${error.message}).`, { cause: error });
  }
  throw new Error(
    "This .tflite file was not written by `keras-hybrid export`: it does not say what it expects.",
  );
}
