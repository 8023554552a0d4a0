// Drives the page in headless Chromium: node drive.js job.json answer.json.
//
// One browser, one walk through the page; what was seen goes into the answer, and test_browser.py
// judges it. Lines "stop the server" and "gone" are exchanged with it over the standard streams.

import { readFileSync, writeFileSync } from "node:fs";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { chromium } from "playwright-core";

const [jobFile, answerFile] = process.argv.slice(2);
const job = JSON.parse(readFileSync(jobFile, "utf-8"));
const answer = { requests: [], pageErrors: [] };
const IMAGES = 'input[accept="image/*"]';

const browser = await chromium.launch({
  executablePath: job.chromium,
  args: [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
  ],
});
try {
  const context = await browser.newContext({ viewport: { width: 1280, height: 900 } });
  const open = async (context) => {
    context.on("request", (request) => answer.requests.push(request.url()));
    const page = await context.newPage();
    page.setDefaultTimeout(120_000);
    page.on("pageerror", (error) => answer.pageErrors.push(error.message));
    return page;
  };
  let page = await open(context);

  const text = (selector) => page.locator(selector).innerText();
  const until = (selector, pattern) =>
    page.waitForFunction(
      ([selector, pattern]) => RegExp(pattern).test(document.querySelector(selector).textContent),
      [selector, pattern],
    );
  const choose = async (index, file) => {
    await page.locator(IMAGES).nth(index).setInputFiles(file);
    await until(`section:nth-child(${index + 1}) > .note`, ".");
  };
  const crop = (index) =>
    page
      .locator(".crop")
      .nth(index)
      .evaluate((canvas) =>
        Array.from(canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data),
      );

  await page.goto(job.url);
  await until("#offline", ".");
  answer.offlineNote = await text("#offline");
  answer.initially = await text("#result");

  // Embeddings of the same crop, from each file.
  answer.embeddings = await page.evaluate(
    async ({ models, crop }) => {
      const { FaceModel } = await import("./src/model.js");
      const embeddings = {};
      for (const name of models) {
        const bytes = new Uint8Array(await (await fetch(name)).arrayBuffer());
        const model = await FaceModel.load(bytes);
        embeddings[name] = Array.from(await model.embed(Uint8Array.from(crop)));
        model.delete();
      }
      return embeddings;
    },
    { models: job.models, crop: job.crop },
  );

  // What a stranger drops by mistake.
  answer.refusals = {};
  for (const [file, input] of job.wrong) {
    await page.locator(input).setInputFiles(file);
    await page.locator("#error").waitFor();
    answer.refusals[file] = await text("#error");
    await page.evaluate(() => (document.getElementById("error").hidden = true));
  }

  // A picture of the size that the page supposes while there is no model, and then a model.
  await choose(0, job.picture);
  answer.notes = [await text("section:nth-child(1) > .note")];
  await page.locator("#model").setInputFiles(job.withThreshold);
  await until("#model-note", "×");
  await until("section:nth-child(1) > .note", "points");
  answer.notes.push(await text("section:nth-child(1) > .note"));
  answer.thresholds = [await page.locator("#threshold").inputValue()];
  await page.locator("#model").setInputFiles([]);

  // The whole way: a model, two aligned crops, a threshold.
  await page.locator("#model").setInputFiles(job.model);
  await until("#model-note", "×");
  answer.modelNote = await text("#model-note");
  answer.thresholds.push(await page.locator("#threshold").inputValue());
  await choose(0, job.crops[0]);
  await choose(1, job.crops[1]);
  await until("#result", "Similarity");
  answer.withoutThreshold = await text("#result");
  await page.locator("#threshold").focus();
  await page.keyboard.type("-1");
  await until("#result", "threshold -1");
  answer.same = await text("#result");
  await page.locator("#threshold").fill("1");
  await until("#result", "threshold 1");
  answer.different = await text("#result");
  answer.crop = await crop(0);

  // By keyboard alone: the order of the focus, and a point that is moved.
  await page.locator("#model").focus();
  answer.focus = [];
  for (let step = 0; step < 17; step++) {
    answer.focus.push(
      await page.evaluate(() => {
        const { activeElement: at } = document;
        return at.ariaLabel ?? at.labels?.[0]?.innerText.split("\n")[0] ?? at.innerText;
      }),
    );
    await page.keyboard.press("Tab");
  }
  await page.locator(".point").first().focus();
  await page.keyboard.press("Shift+ArrowRight");
  await page.keyboard.press("ArrowDown");
  await page.waitForFunction(
    (before) => document.getElementById("result").innerText !== before,
    answer.different,
  );
  answer.landmarks = await page.evaluate(() =>
    [...document.querySelectorAll(".stage")[0].querySelectorAll(".point")].map((point) => [
      parseFloat(point.style.left),
      parseFloat(point.style.top),
    ]),
  );
  answer.movedCrop = await crop(0);

  // A phone's screen.
  await page.setViewportSize({ width: 390, height: 844 });
  answer.phone = await page.evaluate(() => ({
    width: document.documentElement.scrollWidth,
    smallest: Math.min(
      ...[...document.querySelectorAll("button, input")]
        .map((control) => control.getBoundingClientRect())
        .filter(({ width }) => width)
        .flatMap(({ width, height }) => [width, height]),
    ),
  }));
  await page.evaluate(readFileSync(fileURLToPath(import.meta.resolve("axe-core")), "utf-8"));
  answer.violations = await page.evaluate(async () =>
    (await window.axe.run()).violations.map(({ id, nodes }) => [id, nodes.map((n) => n.html)]),
  );
  await page.setViewportSize({ width: 1280, height: 900 });

  // A photograph, without a detector and with it.
  await choose(1, job.photographFile);
  await until("#result", "missing");
  answer.withoutDetector = await text("#result");
  await page.locator(".aligned").nth(1).click();
  await until("#result", "Similarity");
  if (job.detector) {
    await page.locator("#detector").setInputFiles(job.detector);
    await until("#detector-note", "is ready");
    answer.faces = await page.evaluate(async (url) => {
      const { FaceDetector } = await import("./src/detector.js");
      const read = async (url) => (await fetch(url)).arrayBuffer();
      const detector = await FaceDetector.load(new Uint8Array(await read("detector.onnx")));
      const bitmap = await createImageBitmap(new Blob([await read(url)]));
      const drawing = new OffscreenCanvas(bitmap.width, bitmap.height).getContext("2d");
      drawing.drawImage(bitmap, 0, 0);
      return detector.detect(drawing.getImageData(0, 0, bitmap.width, bitmap.height));
    }, job.photograph);
    await choose(0, job.photographFile);
    await until("section:nth-child(1) > .note", "face|Face");
    answer.detectionNote = await text("section:nth-child(1) > .note");
  }

  // Two photographs dropped at once, twice; and a large one that a small one overtakes.
  page = await open(await browser.newContext());
  await page.goto(job.url);
  answer.widths = await page.evaluate(async () => {
    const file = async (width, height = 8) => {
      const context = new OffscreenCanvas(width, height).getContext("2d");
      const pixels = context.createImageData(width, height);
      for (let i = 0; i < pixels.data.length; i++) pixels.data[i] = (i * 2654435761) >>> 24;
      context.putImageData(pixels, 0, 0);
      return new File([await context.canvas.convertToBlob()], `${width}.png`, { type: "image/png" });
    };
    const pictures = [...document.querySelectorAll(".picture")];
    const widths = () => pictures.map(({ width }) => width);
    const until = async (isThere) => {
      for (let tries = 0; tries < 100 && !isThere(); tries++) {
        await new Promise((resolve) => setTimeout(resolve, 50));
      }
      return widths();
    };
    const drop = (target, files) => {
      const dataTransfer = new DataTransfer();
      files.forEach((file) => dataTransfer.items.add(file));
      target.dispatchEvent(new DragEvent("drop", { dataTransfer, bubbles: true }));
    };
    const seen = [];
    for (const width of [101, 201]) {
      drop(document.body, [await file(width), await file(width + 1)]);
      seen.push(await until(() => pictures[1].width === width + 1));
    }
    // A file that is none of the three keeps none of those that come with it from being opened.
    const error = document.getElementById("error");
    drop(document.body, [new File(["text"], "notes.txt"), await file(301), await file(302)]);
    seen.push(await until(() => pictures[1].width === 302 && !error.hidden));
    seen.push(error.textContent);
    const [large, small] = [await file(3000, 3000), await file(50)];
    const section = document.querySelector("section");
    drop(section, [large]);
    drop(section, [small]);
    await until(() => pictures[0].width === 50);
    await createImageBitmap(large);
    await new Promise((resolve) => setTimeout(resolve, 300));
    return [...seen, widths()];
  });

  // A full disk.
  const named = `${job.url}?model=${job.models[0]}&threshold=1`;
  page = await open(await browser.newContext());
  await page.addInitScript(() => {
    Cache.prototype.put = () => Promise.reject(new DOMException("full", "QuotaExceededError"));
  });
  await page.goto(named);
  await until("#offline", ".");
  answer.fullDisk = { offlineNote: await text("#offline"), modelNote: await text("#model-note") };

  // A first visit with a model named in the address, after a version that kept every answer.
  page = await open(await browser.newContext());
  await page.goto(`${job.url}${job.photograph}`);
  await page.evaluate(async (url) => {
    await (await caches.open("keras-hybrid-browser")).put(url, new Response("kept"));
  }, job.photograph);
  await page.goto(named);
  await until("#offline", ".");
  answer.firstOfflineNote = await text("#offline");
  const isOldKept = () => page.evaluate(() => caches.has("keras-hybrid-browser"));
  for (let tries = 0; tries < 50 && (await isOldKept()); tries++) await page.waitForTimeout(100);
  // What another program at the same address would answer.
  for (const url of [job.photograph, "style.css?no-store"]) {
    await page.evaluate(async (url) => (await fetch(url)).arrayBuffer(), url);
  }
  answer.kept = await page.evaluate(async () => {
    const kept = {};
    for (const name of await caches.keys()) {
      const cache = await caches.open(name);
      for (const request of await cache.keys()) {
        kept[request.url] = (await cache.match(request)).headers.get("Cache-Control");
      }
    }
    return kept;
  });

  // Without the server.
  const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
  process.stdout.write("stop the server\n");
  await lines.next();
  await page.goto(named);
  await until("#offline", ".");
  answer.lastOfflineNote = await text("#offline");
  await until("#model-note", "×");
  await choose(0, job.crops[0]);
  await choose(1, job.crops[1]);
  await until("#result", "Similarity");
  answer.withoutServer = await text("#result");
} finally {
  await browser.close();
}
writeFileSync(answerFile, JSON.stringify(answer));
