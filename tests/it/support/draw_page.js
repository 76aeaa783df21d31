// Runs the scripts of a page of ours without a browser, and prints how many points each chart was given.
// usage: node draw_page.js PAGE.html
const html = require("fs").readFileSync(process.argv[2], "utf8");
const scripts = [...html.matchAll(/<script( [^>]*)?>([^]*?)<\/script>/g)];
const data = scripts.find(([, attributes]) => attributes)[2];
const element = () => ({
  style: { setProperty() {} }, classList: { add() {}, remove() {} }, clientWidth: 900, children: [],
  appendChild(child) { this.children.push(child); return child; }, addEventListener() {}, setAttribute() {},
});
const page = element();
Object.assign(globalThis, {
  window: globalThis, navigator: { language: "en" }, devicePixelRatio: 1, addEventListener() {}, removeEventListener() {}, dispatchEvent() {},
  matchMedia: () => ({ matches: false, addEventListener() {}, removeEventListener() {} }),
  getComputedStyle: () => ({ getPropertyValue: () => "#000" }),
  document: {
    documentElement: element(), createElement: element, addEventListener() {},
    getElementById: id => (id === "data" ? { textContent: data } : page),
  },
});
const [library, ours] = scripts.filter(([, attributes]) => !attributes).map(script => script[2]);
const run = new Function("uPlot", ours);
const uPlot = new Function(library + "; return uPlot;")();
// The drawing itself needs a canvas; what it is given does not.
class Plot {
  constructor(options, table) {
    options.scales.x.range(this, null, null);
    options.scales.y.range(this, 1, 2);
    console.log(options.series.length - 1, table[0].length);
  }
}
Plot.join = uPlot.join;
Plot.paths = { stepped: () => null, linear: () => null };
run(Plot);
