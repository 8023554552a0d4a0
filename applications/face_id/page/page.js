"use strict";

const MAX_BYTES = 20 * 2 ** 20;
const $ = (id) => document.getElementById(id);
let photographs = []; // { file, name, url }
let isAsked = false; // about these photographs: the next ones replace them
let isAnswering = false; // meanwhile the photographs stay: a later one might get this one's name
let gallery = { people: [], calibration: null };
let stream = null;

/** An element with properties and children; text is never read as markup. */
function element(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children.filter((child) => child !== null));
  return node;
}

async function call(method, path, photograph = null) {
  const options = { method };
  if (photograph) {
    if (photograph.size > MAX_BYTES) throw new Error("The file is larger than 20 MB.");
    options.body = photograph;
    options.headers = { "Content-Type": "application/octet-stream" };
  }
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Error("The program does not answer. Is it still running, and the file still there?");
  }
  const answer = await response.json().catch(() => ({}));
  if (response.ok) return answer;
  const error = new Error(answer.error?.message ?? `The program failed (status ${response.status}).`);
  error.code = answer.error?.code;
  throw error;
}

// Photographs

function add(files) {
  if (!files.length || isAnswering) return;
  if (isAsked) photographs.forEach(remove);
  isAsked = false;
  for (const file of files) {
    photographs.push({ file, name: file.name, url: URL.createObjectURL(file) });
  }
  showChosen();
}

function remove(photograph) {
  URL.revokeObjectURL(photograph.url);
  photographs = photographs.filter((other) => other !== photograph);
  showChosen();
}

function showChosen() {
  $("chosen").replaceChildren(
    ...photographs.map((photograph) => {
      const button = element("button", { type: "button", textContent: "Remove" });
      button.setAttribute("aria-label", `Remove ${photograph.name}`);
      button.addEventListener("click", () => {
        remove(photograph);
        $("files").focus();
      });
      return element("li", {}, picture(photograph.url, ""), photograph.name, button);
    }),
  );
}

function picture(url, alt) {
  const image = element("img", { alt });
  image.addEventListener("error", () => image.remove()); // what the browser cannot show either
  image.src = url;
  return image;
}

$("files").addEventListener("change", (event) => {
  add(event.target.files);
  event.target.value = "";
});

for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop") add(event.dataTransfer.files);
  });
}

// Camera

$("camera-open").addEventListener("click", async () => {
  $("camera-open").disabled = true; // a second click would open a camera that nothing closes
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "user" } });
  } catch (error) {
    const reasons = {
      NotAllowedError: "The browser was not allowed to use the camera.",
      NotFoundError: "There is no camera.",
      NotReadableError: "The camera is used by another program.",
    };
    show(problem(reasons[error.name] ?? "The browser does not give the camera to this page."));
    $("camera-open").disabled = false;
    return;
  }
  $("camera").hidden = false;
  $("video").srcObject = stream;
  await $("video").play().catch(() => {}); // closed before it began
  $("still").focus();
});

$("still").addEventListener("click", () => {
  const video = $("video");
  if (!video.videoWidth) return; // no picture has come yet
  const canvas = element("canvas", { width: video.videoWidth, height: video.videoHeight });
  canvas.getContext("2d").drawImage(video, 0, 0);
  canvas.toBlob(
    (blob) => add([new File([blob], `still ${new Date().toLocaleTimeString()}`)]),
    "image/jpeg",
    0.95,
  );
});

$("camera-close").addEventListener("click", closeCamera);
window.addEventListener("pagehide", closeCamera);

function closeCamera() {
  stream?.getTracks().forEach((track) => track.stop());
  stream = null;
  $("camera").hidden = true;
  $("camera-open").disabled = false;
  $("camera-open").focus();
}

// Questions

onSubmit("identify", () =>
  forEachPhotograph(async ({ file }) => facesFound(await call("POST", "api/identify", file), null)),
);

onSubmit("verify", () => {
  const number = $("person").value;
  const name = $("person").selectedOptions[0].textContent;
  return forEachPhotograph(async ({ file }) =>
    facesFound(await call("POST", `api/people/${number}/verify`, file), name),
  );
});

onSubmit("enrol", () => enrol($("name").value, false));

async function enrol(name, isKnown) {
  const keep = $("keep").checked;
  let known = isKnown;
  try {
    await forEachPhotograph(async ({ file }) => {
      const query = new URLSearchParams({ name, known, keep });
      const answer = await call("POST", `api/people?${query}`, file);
      known = true;
      return { boxes: [answer.box], notices: [enrolled(answer)] };
    });
  } catch (error) {
    if (error.code !== "same_name") throw error;
    return show(sameName(error, name));
  }
  if (known) $("name").value = "";
  await readGallery();
}

function onSubmit(form, action) {
  $(form).addEventListener("submit", (event) => {
    event.preventDefault();
    run(action);
  });
}

/** Run one question at a time, with the buttons off. */
async function run(action) {
  const buttons = [
    ...document.querySelectorAll("main button:not(#camera-close), #files"),
  ].filter((button) => !button.disabled);
  buttons.forEach((button) => (button.disabled = true));
  isAnswering = true;
  try {
    await action();
  } catch (error) {
    show(problem(error.message));
  } finally {
    isAnswering = false;
    buttons.forEach((button) => (button.disabled = false));
    showGallery();
    $("answer").focus({ preventScroll: true });
    const { top } = $("answer").getBoundingClientRect();
    if (top < 0 || top > innerHeight / 2) $("answer").parentElement.scrollIntoView();
  }
}

async function forEachPhotograph(ask) {
  if (!photographs.length) throw new Error("Choose a photograph first, or take one.");
  const results = [];
  for (const photograph of photographs) {
    show(element("p", { className: "hint" }, `Looking at ${photograph.name} …`));
    let outcome;
    try {
      outcome = await ask(photograph);
    } catch (error) {
      if (error.code === "same_name") throw error; // the same for all of them
      outcome = { boxes: [], notices: [problem(error.message)] };
    }
    const title = photographs.length > 1 ? element("p", { className: "hint" }, photograph.name) : null;
    results.push(
      element("div", { className: "result" }, title, framed(photograph, outcome.boxes), ...outcome.notices),
    );
  }
  show(...results);
  isAsked = true;
}

// Answers

function show(...nodes) {
  $("answer").replaceChildren(...nodes);
}

function notice(kind, title, ...lines) {
  return element(
    "div",
    { className: `notice ${kind}` },
    element("h3", {}, title),
    ...lines.map((line) => element("p", {}, line)),
  );
}

function problem(message) {
  return notice("bad", "No answer", message);
}

function sameName(error, name) {
  const button = element("button", { type: "button", textContent: `Add to ${name}` });
  button.addEventListener("click", () => run(() => enrol(name, true)));
  return notice("doubt", "Not enrolled yet", error.message, button);
}

function enrolled({ person, photograph, notes }) {
  const undo = element("button", { type: "button", textContent: "Take this photograph back" });
  undo.addEventListener("click", () =>
    run(async () => {
      await erase(`api/photographs/${photograph}`);
      undo.closest(".notice").replaceWith(notice("good", "Taken back", "Nothing of this photograph is left in the gallery."));
    }),
  );
  return notice(notes.length ? "doubt" : "good", `Enrolled: ${person.name}`, count(person), ...notes, undo);
}

function count({ photographs: number }) {
  return number === 1 ? "1 photograph" : `${number} photographs`;
}

function facesFound({ faces }, wanted) {
  const notices = faces.map((face, index) => verdict(face, wanted, faces.length > 1 ? `${index + 1}: ` : ""));
  const missing = gallery.people.filter(({ photographs }) => !photographs).map(({ name }) => name);
  if (wanted === null && missing.length) {
    notices.push(notice("doubt", "Not compared", `${missing.join(", ")}: enrolled with another model.`));
  }
  return { boxes: faces.map((face) => face.box), notices };
}

function verdict(face, wanted, number) {
  if (face.verdict === "too_small") {
    return notice("", `${number}Too small`, "This face has too few pixels to be compared.");
  }
  const score = face.score.toFixed(2);
  if (face.verdict === "uncalibrated") {
    return notice(
      "",
      `${number}Most similar: ${face.name}`,
      `Similarity ${score}. This model has not been calibrated, so nobody knows what that means: there is no verdict.`,
    );
  }
  const needed = face.threshold.toFixed(2);
  const errors = falseAccepts(face, wanted);
  if (face.verdict === "match") {
    const title = wanted === null ? face.name : `Yes, this is ${face.name}`;
    return notice("good", number + title, `Similarity ${score}; at least ${needed} is needed.`, errors);
  }
  const missed = face.true_accepts < 1 ? `About ${rate(1 - face.true_accepts)} comparisons of two photographs of one person stay below that.` : "";
  return wanted === null
    ? notice("bad", `${number}Unknown person`, `The most similar is ${face.name}: ${score}; at least ${needed} is needed. ${missed}`, errors)
    : notice("bad", `No, this is not ${face.name}`, `Similarity ${score}; at least ${needed} is needed. ${missed}`, errors);
}

function falseAccepts(face, wanted) {
  const compared = face.comparisons === 1 ? "one photograph" : `${face.comparisons} photographs`;
  const whom = wanted === null ? "is given a name" : `is taken for ${face.name}`;
  const text = `False accepts: at most about ${rate(face.false_accepts)} strangers ${whom} (compared with ${compared}).`;
  return face.false_accepts > gallery.false_accepts
    ? `${text} The calibration is too small to promise the ${rate(gallery.false_accepts)} asked for.`
    : text;
}

/** "1 of 1,000", "12 of 100": two figures, never fewer errors than `share` means. */
function rate(share) {
  if (share > 0.05) return `${Math.ceil(100 * share)} of 100`;
  const digits = 10 ** (Math.floor(Math.log10(1 / share)) - 1);
  return `1 of ${(Math.floor(1 / share / digits) * digits).toLocaleString("en")}`;
}

/** The photograph with the faces' boxes, given as shares of its sides. */
function framed(photograph, boxes) {
  const frame = element("div", { className: "framed" }, picture(photograph.url, photograph.name));
  boxes.forEach((box, index) => {
    const border = element("span", {}, boxes.length > 1 ? element("b", {}, String(index + 1)) : "");
    ["left", "top", "width", "height"].forEach((side, i) => (border.style[side] = `${100 * box[i]}%`));
    frame.append(border);
  });
  return frame;
}

// The gallery

async function readGallery() {
  gallery = await call("GET", "api/gallery");
  showGallery();
}

function showGallery() {
  const { people, calibration, model } = gallery;
  const chosen = $("person").value;
  $("person").replaceChildren(
    ...people.map(({ id, name }) => element("option", { value: id, textContent: name })),
  );
  if (people.some(({ id }) => String(id) === chosen)) $("person").value = chosen;
  document.querySelector("#verify button").disabled = !people.length;
  $("people").replaceChildren(
    ...(people.length ? people.map(row) : [element("li", { className: "hint" }, "Nobody yet.")]),
  );
  if (!model) return;
  const trust = calibration
    ? `Thresholds were measured on ${calibration.different_pairs.toLocaleString("en")} pairs of different people ` +
      `(${calibration.photographs.toLocaleString("en")} photographs of ${calibration.people.toLocaleString("en")} people, ${calibration.source}); ` +
      "on photographs of another kind they may be wrong more often."
    : "Not calibrated: similarities are shown without a verdict.";
  $("about").textContent = `Model ${model.name}, ${model.fingerprint.slice(0, 12)}. ${trust}`;
}

function row(person) {
  const button = element("button", { type: "button", textContent: "Delete" });
  button.setAttribute("aria-label", `Delete ${person.name}`);
  button.addEventListener("click", () => {
    if (confirm(`Delete ${person.name} and everything stored of this person?`)) run(() => forget(person));
  });
  const unusable = person.unusable
    ? element("p", {}, `${person.unusable} enrolled with another model cannot be compared: enrol again.`)
    : null;
  const crops = person.crops.map((number) => picture(`api/photographs/${number}/crop`, `Face of ${person.name}`));
  return element(
    "li",
    {},
    element("div", {}, element("strong", {}, person.name), ` · ${count(person)}`, unusable, element("div", {}, ...crops)),
    button,
  );
}

/** Delete something, and show what is left even if another page has deleted it before. */
async function erase(path) {
  try {
    await call("DELETE", path);
  } finally {
    await readGallery();
  }
}

async function forget(person) {
  await erase(`api/people/${person.id}`);
  show(notice("good", `Deleted: ${person.name}`, "Nothing of this person is left in the gallery."));
}

readGallery().catch((error) => show(problem(error.message)));
