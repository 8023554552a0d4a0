// Aligned face crops from five landmarks, pixel for pixel as keras_hybrid.data.align_face makes them
// with antialias=True, which is what `keras-hybrid align` does.
//
// Landmarks are [x, y] in pixels, in the order image-left eye, image-right eye, nose, image-left and
// image-right mouth corner. Whole numbers are the centres of pixels.

const TEMPLATE_SIZE = 112;
const TEMPLATE = [
  [38.2946, 51.6963],
  [73.5318, 51.5014],
  [56.0252, 71.7366],
  [41.5493, 92.3655],
  [70.7299, 92.2041],
];

/** Where ArcFace's crops of a size have the five landmarks. */
export function faceTemplate(size) {
  return TEMPLATE.map((point) => point.map((value) => (value * size) / TEMPLATE_SIZE));
}

/**
 * The similarity without reflection that brings points closest to a target, by least squares.
 *
 * In the plane it is q = (a + ib) p + t over complex numbers, which has a closed form.
 *
 * @returns {{a: number, b: number, x: number, y: number}} q = [a −b; b a] p + [x, y].
 * @throws {Error} If the points coincide or every rotation fits equally well.
 */
export function similarityTransform(points, target) {
  const mean = (list, axis) => list.reduce((sum, point) => sum + point[axis], 0) / list.length;
  const [px, py, qx, qy] = [mean(points, 0), mean(points, 1), mean(target, 0), mean(target, 1)];
  let [spread, real, imaginary] = [0, 0, 0];
  points.forEach((point, index) => {
    const [x, y] = [point[0] - px, point[1] - py];
    const [u, v] = [target[index][0] - qx, target[index][1] - qy];
    spread += x * x + y * y;
    real += x * u + y * v;
    imaginary += x * v - y * u;
  });
  const [a, b] = [real / spread, imaginary / spread];
  if (!(Math.hypot(a, b) > 1e-9)) throw new Error("The five points fit no face.");
  return { a, b, x: qx - a * px + b * py, y: qy - b * px - a * py };
}

/** Average squares of pixels, as Pillow does: those at the right and lower edge may be cut. */
function reduced({ data, width, height }, factor) {
  const [columns, rows] = [Math.ceil(width / factor), Math.ceil(height / factor)];
  const smaller = new Uint8ClampedArray(columns * rows * 4);
  for (let row = 0; row < rows; row++) {
    const bottom = Math.min((row + 1) * factor, height);
    for (let column = 0; column < columns; column++) {
      const right = Math.min((column + 1) * factor, width);
      const sums = [0, 0, 0];
      for (let y = row * factor; y < bottom; y++) {
        for (let place = (y * width + column * factor) * 4; place < (y * width + right) * 4; place += 4) {
          sums[0] += data[place];
          sums[1] += data[place + 1];
          sums[2] += data[place + 2];
        }
      }
      const count = (bottom - row * factor) * (right - column * factor);
      const inverse = Math.floor(2 ** 24 / count); // Pillow's division, and so its rounding
      const pixel = (row * columns + column) * 4;
      sums.forEach((sum, channel) => {
        smaller[pixel + channel] = Math.floor(((sum + (count >> 1)) * inverse) / 2 ** 24);
      });
    }
  }
  return { data: smaller, width: columns, height: rows };
}

/**
 * Cut a face out of a photograph so that its landmarks lie where ArcFace's crops have them.
 *
 * Where the face is more than twice as large as the crop, pixels are averaged first.
 *
 * @param {ImageData} image RGBA pixels with width and height.
 * @param {number[][]} landmarks Five [x, y].
 * @param {number} size Side of the crop.
 * @returns {Uint8Array} RGB (size × size × 3), black where the photograph ends.
 */
export function alignFace(image, landmarks, size) {
  let { a, b, x, y } = similarityTransform(landmarks, faceTemplate(size));
  const factor = Math.floor(1 / Math.hypot(a, b));
  if (factor >= 2) {
    image = reduced(image, factor);
    // Whole numbers are the centres of pixels: x = factor · (x' + 1/2) − 1/2.
    const centre = factor / 2 - 0.5;
    [x, y] = [x + (a - b) * centre, y + (b + a) * centre];
    [a, b] = [factor * a, factor * b];
  }
  const { data, width, height } = image;
  const norm = a * a + b * b;
  const crop = new Uint8ClampedArray(size * size * 3); // rounds halves to even numbers, as NumPy does
  for (let row = 0; row < size; row++) {
    for (let column = 0; column < size; column++) {
      const [u, v] = [column - x, row - y];
      const sourceX = (a * u + b * v) / norm;
      const sourceY = (a * v - b * u) / norm;
      // The photograph ends at the edges of its outer pixels, half a pixel from their centres.
      if (!(sourceX >= -0.5 && sourceX < width - 0.5)) continue;
      if (!(sourceY >= -0.5 && sourceY < height - 0.5)) continue;
      const [left, top] = [Math.floor(sourceX), Math.floor(sourceY)];
      const [fractionX, fractionY] = [sourceX - left, sourceY - top];
      const near = Math.max(left, 0);
      const far = Math.min(left + 1, width - 1);
      const above = Math.max(top, 0) * width;
      const below = Math.min(top + 1, height - 1) * width;
      for (let channel = 0; channel < 3; channel++) {
        const pixel = (place) => data[place * 4 + channel];
        const upper = between(pixel(above + near), pixel(above + far), fractionX);
        const lower = between(pixel(below + near), pixel(below + far), fractionX);
        crop[(row * size + column) * 3 + channel] = between(upper, lower, fractionY);
      }
    }
  }
  return new Uint8Array(crop.buffer);
}

function between(first, second, fraction) {
  return first + (second - first) * fraction;
}
