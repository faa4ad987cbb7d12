/* Two canvas components side by side, linked: pointer, layer, colours and scale are one for both, and a token chosen on
 * one side chooses the token on the other whose map it shares most with (matched by the server, one to one).
 */
(function () {
  "use strict";
  const vtviz = window.vtviz;
  const { make, help } = vtviz;

  const LINKED = ["colormap", "opacity", "align", "scale", "fixed"];
  const HELP =
    "Each token of one side is matched with one of the other, so that all pairs together share as much of their weight as " +
    "possible (0 % = they look at different places, 100 % = the same map). By chance: the same after the maps of one side " +
    "were moved about at random.";
  const percent = (share) => `${Math.round(100 * share)} %`;

  class Compare {
    constructor(root, colormaps) {
      this.top = make("div", { class: "vtx vtx-compare-top" });
      this.roots = [0, 1].map(() => make("div", { class: "vtx" }));
      this.titles = this.roots.map(() => make("h3", {}));
      const sides = this.roots.map((side, i) => make("section", {}, this.titles[i], side));
      root.append(this.top, make("div", { class: "vtx-sides" }, ...sides));
      this.views = this.roots.map((side) => new vtviz.TokenView(side, colormaps, () => {}));
      this.pairs = make("div", { class: "vtx-pairs" });
      this.top.append(this.roots[0].querySelector(".vtx-tools"), this.pairs); // one set of options serves both
      this.loading = 0;
      this.views.forEach((view, i) => {
        const { set, point } = view;
        this.apply = [...(this.apply ?? []), set.bind(view)];
        view.set = (patch) => this.set(i, patch);
        view.point = (pointer) => this.views.forEach((each) => point.call(each, pointer));
      });
    }

    async load(data) {
      if (!data) return;
      this.data = data;
      this.loading++;
      await Promise.all(this.views.map((view, i) => view.load(data.sides[i])));
      this.loading--;
      if (this.data !== data) return; // a newer one came meanwhile
      this.titles.forEach((title, i) => (title.textContent = data.match.labels[i]));
      if (this.views[0].state.scale !== "map" && !this.own) this.share({ scale: "fixed", fixed: this.high() });
      const layer = Math.min(this.views[0].state.layer, data.match.layers.length - 1);
      const { tokens } = this.views[0].scene.layers[layer].numbers(-1);
      const [plainest] = [...data.match.layers[layer].pairs].sort((a, b) => tokens[b.first].peak - tokens[a.first].peak);
      this.set(0, { layer, token: (this.pairOf(0, layer, this.views[0].state.token) ?? plainest).first });
      this.top.dataset.ready = data.id;
    }

    /** The top of the scale that both share, 0.1 fine. */
    high() {
      return Math.round(10 * this.data.high) / 10;
    }

    share(patch) {
      for (const apply of this.apply) apply(patch);
    }

    /** What is set on side i holds for both: options as they are, a token as its partner. */
    set(i, patch) {
      if (this.loading) return this.apply[i](patch);
      if (patch.scale === "shared") [patch, this.own] = [{ scale: "fixed", fixed: this.high() }, false];
      else if ("scale" in patch || "fixed" in patch) this.own = true;
      this.apply[i](patch);
      const linked = Object.fromEntries(Object.entries(patch).filter(([key]) => LINKED.includes(key)));
      if ("layer" in patch || "token" in patch) Object.assign(linked, this.follow(i));
      if (Object.keys(linked).length) this.apply[1 - i](linked);
      this.describe();
    }

    /** Layer and token of the other side, as far as it has them. */
    follow(i) {
      const { layer, token } = this.views[i].state;
      if (!this.data.match.layers[layer]) return {};
      const pair = this.pairOf(i, layer, token);
      const other = this.views[1 - i];
      const last = other.scene.layers[layer].tokens - 1;
      return { layer, token: pair ? (i ? pair.first : pair.second) : Math.min(other.state.token, last) };
    }

    pairOf(i, layer, token) {
      return this.data.match.layers[layer]?.pairs.find((pair) => (i ? pair.second : pair.first) === token);
    }

    /** What one sees here, in a line. */
    tell({ pairs }) {
      const { same, match } = this.data;
      const [a, b] = match.labels;
      if (!same.model) return `Beside each token of ${a} stands the one of ${b} that looks at the most similar places.`;
      if (same.photo) return "One model, one photo: both sides show the same. Choose another model or photo for one of them.";
      const own = pairs.filter((pair) => pair.first === pair.second).length;
      return `One model, two photos: beside each token stands the one that looks at the most similar places. ${own} of ${pairs.length} `
        + "find the token of their own number, so that they keep their part from photo to photo (by chance 1 would).";
    }

    describe() {
      const [left, right] = this.views.map((view) => view.state);
      const [a, b] = this.data.match.labels;
      if (left.layer !== right.layer) { // chosen where one side has more layers than the other, which could not follow
        const [shorter, layer] = left.layer > right.layer ? [b, left.layer] : [a, right.layer];
        this.listed = null;
        this.pairs.replaceChildren(make("p", {}, `${shorter} has no layer ${layer}: nothing to match.`));
        return;
      }
      const match = this.data.match.layers[left.layer];
      if (match !== this.listed) this.list(match, left.layer);
      match.pairs.forEach((pair, k) => {
        this.chips[k].setAttribute("aria-pressed", String(pair.first === left.token && pair.second === right.token));
      });
      const chosen = this.chips.find((chip) => chip.getAttribute("aria-pressed") === "true");
      if (chosen) reveal(chosen);
    }

    /** The pairs of a layer. They stay while one after the other is chosen, and with them the focus. */
    list(match, layer) {
      const [a, b] = this.data.match.labels;
      this.listed = match;
      this.chips = match.pairs.map((pair) =>
        make("button", { type: "button", class: "vtx-chip", title: `${a}: token ${pair.first}; ${b}: token ${pair.second}`,
          onclick: () => this.set(0, { layer, token: pair.first }) },
        `${pair.first} ↔ ${pair.second} `, make("b", {}, percent(pair.overlap))));
      const alone = match.unmatched.map((tokens, i) => tokens.length &&
        `${this.data.match.labels[i]}: ${tokens.join(", ")}`).filter(Boolean);
      this.pairs.replaceChildren(
        make("p", { class: "vtx-lead" }, this.tell(match)),
        make("p", {}, `Layer ${layer} (${[...new Set(match.names)].join(" and ")}): the ${match.pairs.length} pairs share `,
          make("b", {}, percent(match.mean)), ` of their weight on average; by chance ${percent(match.chance)} `,
          help("a pair", HELP), alone.length ? ` · without a partner: ${alone.join("; ")}` : ""),
        make("div", { class: "vtx-chips", role: "group", "aria-label": "Pairs, left ↔ right, the best first" }, ...this.chips),
      );
    }
  }

  /** Scroll a row that is wider than the screen to one of its items; the page itself stays. */
  function reveal(item) {
    const row = item.parentElement;
    const [{ left, right }, shown] = [item.getBoundingClientRect(), row.getBoundingClientRect()];
    if (left < shown.left || right > shown.right) row.scrollLeft += left - shown.left;
  }

  /** Called by gr.HTML's js_on_load. */
  function compare(element, props, watch) {
    const view = new Compare(element.querySelector(".vtx-compare"), props.colormaps);
    watch("value", () => view.load(props.value || null));
    view.load(props.value || null);
  }

  Object.assign(vtviz, { compare });
})();
