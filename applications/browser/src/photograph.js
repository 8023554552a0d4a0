// One photograph on the page: its pixels, the five points on it, and the aligned crop.

import { alignFace, faceTemplate } from "./alignment.js";

const POINTS = ["Left eye", "Right eye", "Nose", "Left mouth corner", "Right mouth corner"];
const MAX_SIDE = 4096; // pixels; larger photographs are shrunk
const STEP = 0.005; // of the longer side, for an arrow key; ten times as far with Shift
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

export class Photograph {
  /**
   * @param {string} title
   * @param {() => void} onChange Called when there is another crop, or none any more.
   * @param {(work: () => Promise) => void} attempt Does what can fail, and tells the user if it does.
   */
  constructor(title, onChange, attempt) {
    const template = document.getElementById("photograph");
    this.element = template.content.cloneNode(true).firstElementChild;
    this.element.setAttribute("aria-label", title);
    this.title = title;
    this.onChange = onChange;
    this.image = null; // ImageData
    this.landmarks = null;
    this.isPlaced = false; // whether the points are on the face, as far as anyone has said so
    this.isCropBySize = false; // whether nothing but the picture's size says so
    this.crop = null; // RGB bytes
    this.size = 112;
    this.detector = null;
    this.faces = [];
    this.times = {};
    this.openings = 0;
    const find = (selector) => this.element.querySelector(selector);
    find("h2").textContent = title;
    this.views = find(".views");
    this.stage = find(".stage");
    this.picture = find(".picture");
    this.picture.setAttribute("aria-label", title);
    this.cropCanvas = find(".crop");
    this.note = find(".note");
    this.actions = find(".actions");
    this.buttons = { find: find(".find"), next: find(".next"), aligned: find(".aligned") };

    const input = find("input");
    input.addEventListener(
      "change",
      () => input.files[0] && attempt(() => this.open(input.files[0])),
    );
    this.buttons.find.addEventListener("click", () => attempt(() => this.findFaces()));
    this.buttons.next.addEventListener("click", () => this.showFace(this.face + 1));
    this.buttons.aligned.addEventListener("click", () =>
      this.takeAsCrop("Taken as an aligned crop."),
    );
    this.points = POINTS.map((name, index) => this.makePoint(name, index));
    this.stage.append(...this.points);
  }

  /** Read an image file and put the points on it. */
  async open(file) {
    const opening = ++this.openings;
    let bitmap;
    try {
      bitmap = await createImageBitmap(file);
    } catch (error) {
      throw new Error(`${file.name} is not an image that this browser can read.`, { cause: error });
    }
    if (opening !== this.openings) return bitmap.close(); // a smaller file, chosen later, was faster
    const scale = Math.min(1, MAX_SIDE / Math.max(bitmap.width, bitmap.height));
    this.picture.width = Math.max(1, Math.round(bitmap.width * scale));
    this.picture.height = Math.max(1, Math.round(bitmap.height * scale));
    const context = this.picture.getContext("2d", { willReadFrequently: true });
    context.fillStyle = "white"; // what is transparent lies on white, as in Python
    context.fillRect(0, 0, this.picture.width, this.picture.height);
    context.drawImage(bitmap, 0, 0, this.picture.width, this.picture.height);
    bitmap.close();
    this.image = context.getImageData(0, 0, this.picture.width, this.picture.height);
    this.views.hidden = this.actions.hidden = false;
    this.takeAsCrop("", false);
    await this.locate();
  }

  /** Take the detector that was loaded, and the side that the model wants of a crop. */
  async use(detector, size) {
    const isForAnotherModel = this.isCropBySize && size !== this.size;
    [this.detector, this.size] = [detector, size];
    this.buttons.find.hidden = !detector;
    if (this.isPlaced && !isForAnotherModel) this.align();
    else if (this.image) await this.locate();
  }

  /** Put the points on the face: by the picture's size, by the detector, or by asking. */
  async locate() {
    const isCrop = this.image.width === this.size && this.image.height === this.size;
    if (isCrop) {
      this.takeAsCrop("Taken as it is: it has the size of the model's crops.");
      this.isCropBySize = true;
    } else if (this.detector) await this.findFaces();
    else this.askForPoints("There is no detector.");
  }

  async findFaces() {
    this.note.textContent = "Looking for a face …";
    const started = performance.now();
    const image = this.image;
    const before = JSON.stringify(this.landmarks);
    let faces;
    try {
      faces = await this.detector.detect(image);
    } catch (error) {
      if (image === this.image) this.askForPoints("The search for a face failed.");
      throw error;
    }
    if (image !== this.image) return; // another photograph was opened meanwhile
    if (before !== JSON.stringify(this.landmarks)) {
      this.note.textContent = "The points stay where they were moved.";
      return;
    }
    this.faces = faces;
    this.times = { detection: performance.now() - started };
    if (faces.length) this.showFace(0);
    else this.askForPoints("No face was found.");
  }

  showFace(index) {
    this.face = index % this.faces.length;
    const count = this.faces.length;
    this.buttons.next.hidden = count < 2;
    this.place(
      this.faces[this.face].landmarks,
      count > 1 ? `Face ${this.face + 1} of ${count}, the largest first.` : "One face was found.",
    );
  }

  /** Put the points where an aligned crop has them; a crop of the model's size stays as it is. */
  takeAsCrop(note, isPlaced = true) {
    const side = Math.min(this.image.width, this.image.height);
    const left = (this.image.width - side) / 2;
    const top = (this.image.height - side) / 2;
    this.buttons.next.hidden = true;
    this.times = {};
    this.place(
      faceTemplate(side).map(([x, y]) => [x + left, y + top]),
      note,
      isPlaced,
    );
  }

  askForPoints(reason) {
    const wish = "Move the five points onto the eyes, the nose and the corners of the mouth.";
    this.takeAsCrop(`${reason} ${wish}`, false);
  }

  place(landmarks, note, isPlaced = true) {
    this.landmarks = landmarks.map((point) => [...point]);
    this.isPlaced = isPlaced;
    this.isCropBySize = false;
    this.note.textContent = note;
    this.align();
    this.onChange();
  }

  align() {
    const started = performance.now();
    this.points.forEach((point, index) => {
      const [x, y] = this.landmarks[index];
      point.style.left = `${((x + 0.5) / this.image.width) * 100}%`;
      point.style.top = `${((y + 0.5) / this.image.height) * 100}%`;
    });
    try {
      this.crop = alignFace(this.image, this.landmarks, this.size);
    } catch (error) {
      this.crop = null;
      this.note.textContent = error.message;
    }
    this.times.alignment = performance.now() - started;
    this.drawCrop();
  }

  drawCrop() {
    this.cropCanvas.width = this.cropCanvas.height = this.size;
    if (!this.crop) return;
    const pixels = new ImageData(this.size, this.size);
    for (let pixel = 0; pixel < this.size ** 2; pixel++) {
      pixels.data.set(this.crop.subarray(pixel * 3, pixel * 3 + 3), pixel * 4);
      pixels.data[pixel * 4 + 3] = 255;
    }
    this.cropCanvas.getContext("2d").putImageData(pixels, 0, 0);
  }

  /** A point of the face that is dragged, or moved with the arrow keys. */
  makePoint(name, index) {
    const point = document.createElement("button");
    point.type = "button";
    point.className = "point";
    point.title = name;
    point.setAttribute(
      "aria-label",
      `${name}: move it with the arrow keys, with Shift in larger steps`,
    );
    const move = (x, y) => {
      const clip = (value, end) => Math.min(Math.max(value, 0), end - 1);
      this.landmarks[index] = [clip(x, this.image.width), clip(y, this.image.height)];
      this.isPlaced = true;
      this.isCropBySize = false;
      this.align();
    };
    point.addEventListener("keydown", (event) => {
      if (!(event.key in ARROWS)) return;
      event.preventDefault();
      const side = Math.max(this.image.width, this.image.height);
      const step = side * STEP * (event.shiftKey ? 10 : 1);
      const [x, y] = this.landmarks[index];
      move(x + ARROWS[event.key][0] * step, y + ARROWS[event.key][1] * step);
      this.onChange();
    });
    point.addEventListener("pointerdown", (event) => point.setPointerCapture(event.pointerId));
    point.addEventListener("pointermove", (event) => {
      if (!point.hasPointerCapture(event.pointerId)) return;
      const frame = this.picture.getBoundingClientRect();
      move(
        ((event.clientX - frame.left) / frame.width) * this.image.width - 0.5,
        ((event.clientY - frame.top) / frame.height) * this.image.height - 0.5,
      );
    });
    point.addEventListener("pointerup", () => this.onChange());
    return point;
  }
}
