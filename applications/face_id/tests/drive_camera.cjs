// Drives the page's camera: node drive_camera.cjs PLAYWRIGHT CHROMIUM URL [FILM]; prints what it saw.
// FILM (.mjpeg) is what the camera sees. Without one there is a camera that is not allowed, then none.

const [, , playwright, executablePath, url, film] = process.argv;
const { chromium } = require(playwright);

const FAKE = "--use-fake-device-for-media-stream";

async function open(args, permissions) {
  const flags = ["--no-sandbox", "--disable-gpu", ...args];
  const browser = await chromium.launch({ executablePath, args: flags });
  const context = await browser.newContext({ permissions });
  const page = await context.newPage();
  page.errors = [];
  page.on("pageerror", (error) => page.errors.push(error.message));
  await page.goto(url);
  await page.locator("#camera-open").click();
  return { browser, page };
}

async function refused(args) {
  const { browser, page } = await open(args, []);
  try {
    await page.locator("#answer .notice").first().waitFor();
    const disabled = await page.locator("#camera-open").isDisabled();
    return { text: await page.locator("#answer").innerText(), disabled, errors: page.errors };
  } finally {
    await browser.close();
  }
}

async function filmed() {
  const camera = [FAKE, `--use-file-for-fake-video-capture=${film}`];
  const { browser, page } = await open(camera, ["camera"]);
  try {
    await page.waitForFunction(() => document.getElementById("video").videoWidth > 0);
    const focused = await page.evaluate(() => document.activeElement.id);
    await page.locator("#still").click();
    await page.locator("#chosen li").first().waitFor();
    const live = await page.evaluate(() => {
      window.track = document.getElementById("video").srcObject.getTracks()[0];
      return window.track.readyState;
    });
    await page.locator("#camera-close").click();
    const closed = await page.evaluate(() => [
      window.track.readyState,
      document.getElementById("camera").hidden,
      document.activeElement.id,
    ]);
    await page.locator("#name").fill("Ana");
    await page.locator("#enrol button").click();
    await page.locator("#answer .notice").first().waitFor();
    return { focused, live, closed, errors: page.errors };
  } finally {
    await browser.close();
  }
}

(async () => {
  const seen = film ? await filmed() : { denied: await refused([FAKE]), absent: await refused([]) };
  process.stdout.write(JSON.stringify(seen));
})();
