// Drives the page in headless Chromium: node drive.cjs PLAYWRIGHT CHROMIUM URL; prints what it saw.

const [, , playwright, executablePath, url] = process.argv;
const { chromium } = require(playwright);

const photograph = (name) => ({ name, mimeType: "image/png", buffer: Buffer.from(name) });

(async () => {
  const browser = await chromium.launch({ executablePath, args: ["--no-sandbox", "--disable-gpu"] });
  try {
    const page = await browser.newPage();
    const errors = [];
    page.on("pageerror", (error) => errors.push(error.message));
    await page.goto(url);
    const chosen = () => page.locator("#chosen li").allInnerTexts();
    const drop = (kind) =>
      page.evaluate((kind) => {
        const dataTransfer = new DataTransfer();
        if (kind === "text") dataTransfer.setData("text/plain", "a link");
        else dataTransfer.items.add(new File(["bob"], "bob.png"));
        document.dispatchEvent(new DragEvent("drop", { dataTransfer, bubbles: true }));
      }, kind);
    const answered = async () => {
      await page.locator("#answer .notice").first().waitFor();
      return page.locator("#answer").innerText();
    };

    await page.locator("#files").setInputFiles([photograph("ana.png")]);
    await page.locator("#name").fill("Ana");
    await page.locator("#enrol button").click();
    const whileAsked = await page.evaluate(() =>
      ["files", "camera-open", "still"].map((id) => document.getElementById(id).disabled),
    );
    await drop("file"); // the server has not answered yet
    const answer = await answered();
    const afterAnswer = await page.evaluate(() => document.getElementById("files").disabled);
    await drop("text");
    const afterText = await chosen();
    await drop("file");
    const afterFile = await chosen();
    const seen = { whileAsked, answer, afterAnswer, afterText, afterFile, errors };
    process.stdout.write(JSON.stringify(seen));
  } finally {
    await browser.close();
  }
})();
