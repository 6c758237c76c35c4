// Looks at a report in headless Chromium: screenshots at two widths in both schemes, axe's findings, requests.
// Run by hand, outside of the repository: npm install puppeteer-core axe-core, then
//   node page_check.cjs /path/to/report.html /tmp/shot [/usr/bin/chromium]
const fs = require("fs");
const puppeteer = require("puppeteer-core");
const [, , file, prefix, chromium = "/usr/bin/chromium"] = process.argv;
const policy = /<meta http-equiv="Content-Security-Policy"[^>]*>/; // forbids axe too, so it looks at a copy

async function look(browser, name, width, height, scheme) {
  const open = async (path) => {
    const page = await browser.newPage();
    page.on("request", (request) => {
      const url = request.url();
      if (!url.startsWith("data:") && url !== `file://${path}`) console.log("asks for", url);
    });
    page.on("console", (message) => console.log("console:", message.text()));
    page.on("pageerror", (error) => console.log("error:", error));
    await page.setViewport({ width, height });
    await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: scheme }]);
    await page.goto(`file://${path}`);
    return page;
  };
  const page = await open(file);
  await page.screenshot({ path: `${prefix}-${name}-${scheme}.png`, fullPage: true });
  const overflow = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
  console.log(name, scheme, overflow > 0 ? `is ${overflow} pixels too wide` : "fits");
  await page.close();

  fs.writeFileSync(`${prefix}-copy.html`, fs.readFileSync(file, "utf8").replace(policy, ""));
  const copy = await open(`${prefix}-copy.html`);
  await copy.addScriptTag({ path: require.resolve("axe-core/axe.min.js") });
  await copy.evaluate(() => document.querySelectorAll("details").forEach((part) => (part.open = true)));
  for (const enlarged of [false, true]) {
    if (enlarged) await copy.evaluate(() => document.querySelector("button.tile")?.click());
    const { violations } = await copy.evaluate(() => axe.run(document));
    console.log("axe,", enlarged ? "picture enlarged:" : "page:", violations.length, "violations");
    for (const found of violations) console.log(" ", found.impact, found.id, found.nodes[0].html);
  }
  await copy.close();
}

(async () => {
  const browser = await puppeteer.launch({ executablePath: chromium, args: ["--no-sandbox", "--disable-gpu"] });
  for (const [name, width, height] of [["desktop", 1240, 900], ["phone", 390, 844]]) {
    for (const scheme of ["light", "dark"]) await look(browser, name, width, height, scheme);
  }
  await browser.close();
})();
