/* Below the maps of Attribution: do they point at what counts? Deletion and insertion on this photo, beside baselines. */
(function () {
  "use strict";
  const vtviz = window.vtviz;
  const { make, help } = vtviz;

  const TESTS = [
    ["deletion", "Hidden, highest first", "Deletion", "lower is better",
      "Area under the class's probability as the places that the map ranks highest are blurred away first: low where it falls at once."],
    ["insertion", "Shown, highest first", "Insertion", "higher is better",
      "Area under the class's probability as the places that the map ranks highest come back first into the blurred photo: high where it rises at once."],
  ];
  const BASELINE_HELP = "It knows nothing of the model: a method that is no better than this says nothing about why the model answers so.";
  /** Of a panel, in units of its viewBox: left, top, right, bottom of the axes. */
  const [LEFT, TOP, RIGHT, BOTTOM] = [34, 6, 288, 140];

  class MapTest {
    constructor(set, trigger) {
      this.set = set;
      this.job = new vtviz.Job("Test them", "analyse", trigger, (result) => this.receive(result));
      this.job.button.onclick = () => this.job.ask({ kind: "faithfulness", label: this.scene.results.attribution.target.index });
      this.found = make("div", {});
      this.element = make("section", { class: "vtx-test" },
        make("h4", {}, "Do they point at what counts?"),
        make("p", { class: "vtx-lead" },
          "Hide the photo, or show it, in each map's order: whose order makes the class's probability fall or rise fastest? ",
          "A random map and one that marks the photo's middle are tested too."),
        this.job.element, this.found);
    }

    load(scene) {
      if (this.scene?.payload.id !== scene.payload.id) this.job.cancel();
      this.scene = scene;
    }

    /** Other maps came, which have not been tested. */
    reset() {
      this.job.cancel();
      delete this.scene.results.faithfulness;
    }

    receive(result) {
      const { results } = this.scene;
      results.faithfulness = { ...result, target: results.attribution.target };
      this.set({});
    }

    draw(scene) {
      const found = scene.results.faithfulness;
      this.element.hidden = !scene.results.attribution;
      this.found.hidden = !found;
      if (found && this.built !== found) this.build(found);
      this.built = found;
    }

    build(found) {
      const percent = (share) => `${(100 * share).toFixed(1)} %`;
      const { target, probability, probability_blurred: blurred } = found;
      this.found.replaceChildren(
        make("p", { class: "vtx-told", "aria-live": "polite" },
          `${target.label}: ${percent(probability)} in the photo, ${percent(blurred)} where all of it is blurred. ${tell(found)}`),
        make("div", { class: "vtx-panels" }, ...TESTS.map((test) => panel(found, ...test))),
        table(found),
        make("p", { class: "vtx-note" },
          "This is one photo, so there is no interval, and which method wins may be chance: ",
          make("code", {}, "vtviz faithfulness --data DIR"),
          " measures many, and docs/faithfulness.md holds what it found for the shipped models."),
      );
    }
  }

  /** Which methods beat both baselines, by each test. */
  function tell({ methods }) {
    const [ours, baselines] = [false, true].map((kind) => methods.filter((each) => each.baseline === kind));
    const beat = { deletion: (a, b) => a < b, insertion: (a, b) => a > b };
    return TESTS.map(([name, , caption]) => {
      const better = ours.filter((each) => baselines.every((other) => beat[name](each[name], other[name])));
      const who = better.length === ours.length ? "all methods" : better.map((each) => each.title).join("; ") || "no method";
      return `Better than both baselines by ${caption.toLowerCase()}: ${who}.`;
    }).join(" ");
  }

  /** The curves of one test: the class's probability by the share of the photo that is hidden or shown. */
  function panel({ methods, probability, target, ...found }, name, caption) {
    const curves = found[`${name}_curves`];
    const top = Math.max(0.01, probability, ...Object.values(curves).flat());
    const x = (share) => LEFT + (RIGHT - LEFT) * share;
    const y = (value) => BOTTOM - ((BOTTOM - TOP) * value) / top;
    const percent = (share) => `${+(100 * share).toPrecision(2)} %`;
    const line = ({ method }) => svg("polyline", {
      "data-method": method,
      points: curves[method].map((value, i, { length }) => `${x(i / (length - 1)).toFixed(1)},${y(value).toFixed(1)}`).join(" "),
    });
    const label = (text, at, anchor) => svg("text", { x: at[0], y: at[1], "text-anchor": anchor }, text);
    const drawn = svg("svg", { viewBox: "0 0 300 172", role: "img", "aria-label": `${caption}: the probability of ${target.label}, by each map's order` },
      svg("path", { d: `M${LEFT} ${TOP}V${BOTTOM}H${RIGHT}` }),
      label(percent(top), [LEFT - 4, TOP + 6], "end"), label("0", [LEFT - 4, BOTTOM], "end"),
      label("0", [LEFT, BOTTOM + 13], "middle"), label("50", [x(0.5), BOTTOM + 13], "middle"), label("100", [RIGHT, BOTTOM + 13], "middle"),
      label(`% of the photo that is ${name === "deletion" ? "hidden" : "shown"}`, [x(0.5), BOTTOM + 28], "middle"),
      ...[...methods].reverse().map(line)); // the baselines below the others
    return make("figure", {}, make("figcaption", {}, caption), drawn);
  }

  /** Methods and baselines with their areas; each row's colour is its curve's. */
  function table({ methods }) {
    const heads = TESTS.map(([, , caption, better, about]) =>
      make("th", { scope: "col" }, make("span", { class: "vtx-method" }, caption, help(caption.toLowerCase(), about)), make("small", {}, better)));
    const ours = methods.filter((each) => !each.baseline);
    const best = { deletion: Math.min(...ours.map((each) => each.deletion)), insertion: Math.max(...ours.map((each) => each.insertion)) };
    const rows = methods.map((each) =>
      make("tr", { "data-method": each.method },
        make("th", { scope: "row" },
          make("span", { class: "vtx-method" }, make("i", {}),
            make("span", {}, each.title, ...(each.baseline ? [" ", make("small", {}, "baseline")] : [])),
            each.baseline ? help("a baseline", BASELINE_HELP) : null)),
        ...TESTS.map(([name]) => make("td", { class: !each.baseline && each[name] === best[name] ? "vtx-first" : null }, each[name].toFixed(3)))));
    return make("table", {}, make("thead", {}, make("tr", {}, make("td", {}), ...heads)), make("tbody", {}, ...rows));
  }

  function svg(tag, attributes, ...children) {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  }

  Object.assign(vtviz, { MapTest });
})();
