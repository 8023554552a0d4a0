// The page: which files there are, and what comes out of comparing them.
//
// Files can also be named in the address: ?model=face.tflite&detector=yunet.onnx&threshold=0.4 loads
// those that lie beside the page.

import { FaceDetector } from "./detector.js";
import { FaceModel, similarity } from "./model.js";
import { Photograph } from "./photograph.js";

const DEFAULT_SIZE = 112;
const CACHE = "keras-hybrid-browser-models"; // of the files named in the address

const element = (id) => document.getElementById(id);
const photographs = ["First photograph", "Second photograph"].map(
  (title) => new Photograph(title, compare, attempt),
);
let model = null;
let detector = null;
let comparisons = 0; // of which only the last one counts

function showError(error) {
  console.error(error);
  element("error").textContent = error.message;
  element("error").hidden = false;
}

/** Do something that can fail; an error of before is gone once it succeeds. */
async function attempt(work) {
  try {
    await work();
    element("error").hidden = true;
  } catch (error) {
    showError(error);
  }
}

/** Do the same with one thing after the other; what fails keeps none of the others. */
async function each(things, work) {
  const problems = [];
  for (const thing of things) {
    try {
      await work(thing);
    } catch (error) {
      console.error(error);
      problems.push(error.message);
    }
  }
  if (problems.length) throw new Error(problems.join(" "));
}

async function loadModel(bytes, name) {
  element("model-note").textContent = `Loading ${name} …`;
  try {
    const loaded = await FaceModel.load(bytes);
    comparisons++;
    if (model) element("threshold").value = ""; // it was the former model's
    model?.delete();
    model = loaded;
  } catch (error) {
    throw new Error(`${name}: ${error.message}`, { cause: error });
  } finally {
    element("model-note").textContent = describeModel();
  }
  if (Number.isFinite(model.threshold)) element("threshold").value = model.threshold;
  await refresh();
}

function describeModel() {
  if (!model) return "No model is loaded.";
  const { name, size, quantization } = model;
  return `${name}, ${size}×${size}, ${quantization ?? "float32"}`;
}

async function loadDetector(bytes, name) {
  element("detector-note").textContent = `Loading ${name} …`;
  try {
    detector = await FaceDetector.load(bytes);
  } catch (error) {
    throw new Error(`${name}: ${error.message}`, { cause: error });
  } finally {
    element("detector-note").textContent = detector ? "YuNet is ready." : "No detector is loaded.";
  }
  await refresh();
}

async function refresh() {
  await Promise.all(
    photographs.map((photograph) => photograph.use(detector, model?.size ?? DEFAULT_SIZE)),
  );
  await compare();
}

/** Open a file as what its name says it is. */
async function open(file, photograph) {
  const bytes = async () => new Uint8Array(await file.arrayBuffer());
  if (file.name.endsWith(".tflite")) await loadModel(await bytes(), file.name);
  else if (file.name.endsWith(".onnx")) await loadDetector(await bytes(), file.name);
  else if (file.type.startsWith("image/")) await photograph.open(file);
  else {
    throw new Error(
      `${file.name} is neither a .tflite model, nor an .onnx detector, nor an image.`,
    );
  }
}

async function compare() {
  const comparison = ++comparisons;
  const missing = [];
  if (!model) missing.push("a face model");
  for (const { image, crop, isPlaced, title } of photographs) {
    if (!image) missing.push(`the ${title.toLowerCase()}`);
    else if (!crop || !isPlaced) missing.push(`the five points on the ${title.toLowerCase()}`);
  }
  if (missing.length) {
    showResult(`Still missing: ${missing.join(", ")}.`);
    return;
  }
  const embeddings = [];
  const milliseconds = [];
  try {
    for (const { crop } of photographs) {
      const started = performance.now();
      embeddings.push(await model.embed(crop));
      milliseconds.push(performance.now() - started);
    }
  } catch (error) {
    if (comparison === comparisons) {
      showResult("They could not be compared."); // not the verdict of the photographs before
      showError(error);
    }
    return;
  }
  if (comparison !== comparisons) return;
  const cosine = similarity(...embeddings);
  const [verdict, kind] = judge(cosine);
  const times = photographs.map(({ title, times: { detection, alignment } }, index) => {
    const found = detection ? `detection ${detection.toFixed(0)} ms, ` : "";
    const aligned = `alignment ${alignment.toFixed(1)} ms, `;
    return `${title}: ${found}${aligned}embedding ${milliseconds[index].toFixed(1)} ms.`;
  });
  showResult(`Similarity ${cosine.toFixed(3)}: ${verdict}.`, kind, times);
}

function judge(cosine) {
  const threshold = element("threshold").value;
  if (threshold === "") return ["no verdict without a threshold", ""];
  return cosine >= Number(threshold)
    ? [`same person at the threshold ${threshold}`, "same"]
    : [`different persons at the threshold ${threshold}`, "different"];
}

function showResult(text, kind = "", times = []) {
  const paragraph = (text, className) => {
    const made = document.createElement("p");
    made.textContent = text;
    made.className = className;
    return made;
  };
  element("result").replaceChildren(
    paragraph(text, `verdict ${kind}`.trim()),
    ...times.map((text) => paragraph(text, "times")),
  );
}

function acceptDrops(target, photograph) {
  target.addEventListener("dragover", (event) => {
    event.preventDefault();
    target.classList.add("over");
  });
  target.addEventListener("dragleave", () => target.classList.remove("over"));
  target.addEventListener("drop", (event) => {
    event.preventDefault();
    event.stopPropagation();
    target.classList.remove("over");
    const files = [...event.dataTransfer.files];
    attempt(async () => {
      const images = files.filter(({ type }) => type.startsWith("image/"));
      await each(files, async (file) => {
        const empty = photographs.find(({ image }) => !image) ?? photographs[0];
        const place = images.indexOf(file) % photographs.length; // several take both, in order
        await open(file, images.length > 1 ? photographs[place] : (photograph ?? empty));
      });
    });
  });
}

async function loadFromAddress() {
  const given = new URLSearchParams(location.search);
  if (given.has("threshold")) element("threshold").value = given.get("threshold");
  const loads = { model: loadModel, detector: loadDetector };
  await each(Object.entries(loads), async ([key, load]) => {
    if (given.has(key)) await load(await download(given.get(key)), given.get(key));
  });
}

/** Read a file named in the address, and keep it for the time when there is no network. */
async function download(address) {
  // There is no cache on an address that is not secure.
  const cache = await globalThis.caches?.open(CACHE).catch(() => undefined);
  let response;
  try {
    response = await fetch(address);
  } catch (error) {
    response = await cache?.match(address);
    if (!response) throw error;
    return new Uint8Array(await response.arrayBuffer());
  }
  if (!response.ok) throw new Error(`${address} cannot be read (${response.status}).`);
  if (!/\bno-store\b/i.test(response.headers.get("Cache-Control") ?? "")) {
    // A full disk must not cost the model; prepareOffline looks for what is missing.
    await cache?.put(address, response.clone()).catch(() => {});
  }
  return new Uint8Array(await response.arrayBuffer());
}

/** Wait until the page and, once they are loaded, the files named in the address are kept. */
async function prepareOffline(loading) {
  if (!("serviceWorker" in navigator)) {
    return "This address is not secure (https or localhost), so the page cannot be kept for offline use.";
  }
  const { installing } = await navigator.serviceWorker.register("service-worker.js");
  await Promise.race([navigator.serviceWorker.ready, failure(installing)]);
  await loading;
  const given = new URLSearchParams(location.search);
  const named = ["model", "detector"].map((key) => given.get(key)).filter((name) => name !== null);
  const cache = await caches.open(CACHE);
  const kept = await Promise.all(named.map((name) => cache.match(name)));
  const missing = named.filter((name, index) => !kept[index]);
  if (missing.length) throw new Error(`${missing.join(", ")} could not be stored.`);
  return "This page works without a network now.";
}

/** Fails when the worker cannot be installed, of which `ready` says nothing. */
function failure(worker) {
  return new Promise((resolve, reject) =>
    worker?.addEventListener("statechange", () => {
      if (worker.state === "redundant") reject(new Error("the page's files could not be stored."));
    }),
  );
}

element("photographs").append(...photographs.map((photograph) => photograph.element));
for (const id of ["model", "detector"]) {
  element(id).addEventListener("change", ({ target }) => {
    if (target.files[0]) attempt(() => open(target.files[0]));
  });
}
element("threshold").addEventListener("input", compare);
document.addEventListener("click", ({ target }) => {
  if (target.type === "file") target.value = ""; // else the same file, written anew, changes nothing
});
acceptDrops(document.body, null);
photographs.forEach((photograph) => acceptDrops(photograph.element, photograph));
refresh();
prepareOffline(attempt(loadFromAddress))
  .then((text) => (element("offline").textContent = text))
  .catch(
    (error) => (element("offline").textContent = `Not kept for offline use: ${error.message}`),
  );
