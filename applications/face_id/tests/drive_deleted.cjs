// Deletes a person whom another page has deleted: node drive_deleted.cjs PLAYWRIGHT CHROMIUM URL.

const [, , playwright, executablePath, url] = process.argv;
const { chromium } = require(playwright);

(async () => {
  const browser = await chromium.launch({ executablePath, args: ["--no-sandbox", "--disable-gpu"] });
  try {
    const page = await browser.newPage();
    page.on("dialog", (dialog) => dialog.accept());
    await page.goto(url);
    const list = page.locator("#people");
    await list.getByText("Ana").waitFor();
    await list.getByRole("button").first().click();
    await page.locator("#answer .notice").waitFor();
    const seen = { answer: await page.locator("#answer").innerText(), list: await list.innerText() };
    process.stdout.write(JSON.stringify(seen));
  } finally {
    await browser.close();
  }
})();
