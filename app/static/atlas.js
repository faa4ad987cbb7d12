/* The atlas: a card for each token of a layer, with its numbers beside their baselines and the photos it peaks on most.
 * A click on a card asks the server for all of its photos, with the token's map over them, and shows them below it.
 */
(function () {
  "use strict";
  const vtviz = window.vtviz;
  const { make, help, labelled, select, format } = vtviz;

  const share = (value) => `${Math.round(100 * value)} %`;
  const number = (value) => value.toFixed(2);

  /** Of each measure: caption, what it is, how to write it, and its values [this model, untrained, shuffled]. */
  const MEASURES = {
    peak: ["Peak", "The map's highest value, mean over the photos. 1× is the average over the photo; below 1.5× a token is " +
      "dead: it looks everywhere alike.", format],
    entropy: ["Spread", "Entropy of the map: 100 % = spread evenly over the photo, 0 % = all on one cell.", share],
    shared: ["Shared", "How much of its weight lies where another token of the layer looks too, mean over the others: high " +
      "for all means that the tokens repeat each other.", share],
    best: ["IoU", "How well the token's region (its map above {threshold}× uniform) covers one class of the masks: the area " +
      "that both share, over the area of both together. The class is the one with most beyond the shuffled masks.", number],
  };
  const COLUMNS = [
    ["trained", "model", "The model as it is."],
    ["untrained", "untrained", "The same model before any training: random weights, and norms that have seen no photo."],
    ["shuffled", "shuffled", "Maps and masks (or maps and maps) of photos that do not belong together."],
  ];
  const ORDERS = [["number", "Number"], ["peak", "Peak"], ["entropy", "Least spread"], ["shared", "Least shared"], ["best", "IoU"]];

  class Atlas {
    constructor(root, pick) {
      this.root = root;
      this.pick = pick;
      this.order = "number";
    }

    load(atlas) {
      this.atlas = atlas;
      this.layer = Math.min(this.layer ?? 0, (atlas?.layers.length ?? 1) - 1);
      this.open = this.detail = null;
      this.draw();
    }

    draw() {
      const { atlas } = this;
      if (!atlas) return this.root.replaceChildren();
      const masked = Boolean(atlas.masks);
      if (!masked && this.order === "best") this.order = "number";
      this.tabs = atlas.layers.map((layer, i) =>
        make("button", { type: "button", class: "vtx-button", onclick: () => this.turn(i) }, `Layer ${i}: ${layer.name}`));
      const orders = ORDERS.filter(([key]) => masked || key !== "best");
      const order = select(orders, this.order, (value) => this.sort(value));
      const legend = Object.entries(MEASURES).filter(([key]) => masked || key !== "best").map(([, [caption, text]]) =>
        make("span", {}, caption, help(caption.toLowerCase(), text.replace("{threshold}", atlas.threshold))));
      this.line = make("p", { class: "vtx-line" });
      this.grid = make("div", { class: "vtx-atlas-grid" });
      this.root.replaceChildren(
        make("p", { class: "vtx-lead" }, describe(atlas)),
        atlas.note ? make("p", { class: "vtx-message", role: "note" }, atlas.note) : "",
        make("div", { class: "vtx-atlas-bar" },
          make("div", { class: "vtx-atlas-layers", role: "group", "aria-label": "Layer" }, ...this.tabs),
          make("div", { class: "vtx-atlas-legend" }, ...legend), labelled("Sort by", order)),
        this.line,
        this.grid,
      );
      this.turn(this.layer);
      this.root.dataset.ready = atlas.id;
    }

    /** Show a layer. What stands above its tokens stays, and with it the focus. */
    turn(layer) {
      this.layer = layer;
      this.open = this.detail = null;
      this.tabs.forEach((tab, i) => tab.setAttribute("aria-pressed", String(i === layer)));
      const { redundancy, untrained, shuffled, tokens } = this.atlas.layers[layer];
      const dead = tokens.filter((each) => each.dead).length;
      this.line.replaceChildren(
        `Two tokens share ${share(redundancy)} of their weight (untrained ${share(untrained)}; those of two different ` +
        `photos ${share(shuffled)}) · `, dead ? make("b", {}, `${dead} dead`) : "none dead",
        " · Click a token for all of its photos.");
      this.cards = tokens.map((token, i) => this.card(token, i));
      this.grid.replaceChildren(...this.sorted());
    }

    sort(order) {
      this.order = order;
      this.grid.replaceChildren(...this.sorted());
      this.drawDetail();
    }

    sorted() {
      const { tokens } = this.atlas.layers[this.layer];
      const key = { number: (t, i) => i, peak: (t) => -t.peak[0], entropy: (t) => t.entropy[0], shared: (t) => t.shared[0],
        best: (t) => -t.best.iou[0] }[this.order];
      return tokens.map((token, i) => [key(token, i), i]).sort((a, b) => a[0] - b[0] || a[1] - b[1])
        .map(([, i]) => this.cards[i]);
    }

    card(token, i) {
      const named = token.name ? `: ${token.name}` : "";
      const rows = [["peak", token.peak], ["entropy", token.entropy], ["shared", token.shared]];
      if (token.best) rows.push(["best", token.best.iou]);
      const head = COLUMNS.map(([, caption, text]) => make("th", { scope: "col", title: text }, caption));
      const body = rows.map(([key, values]) => {
        const [caption, , write] = MEASURES[key];
        const label = key === "best" ? `IoU ${token.best.class}` : caption;
        const cells = COLUMNS.map((_, k) => make("td", {}, k < values.length ? write(values[k]) : ""));
        return make("tr", {}, make("th", { scope: "row", title: label }, label), ...cells);
      });
      return make("article", { class: "vtx-card", "data-token": i },
        make("button", { type: "button", class: "vtx-card-head", "aria-expanded": "false", onclick: () => this.choose(i) },
          make("b", {}, `Token ${i}`), named, token.dead ? make("span", { class: "vtx-dead" }, "dead") : ""),
        photos(token.photos),
        make("table", {}, make("thead", {}, make("tr", {}, make("td", {}), ...head)), make("tbody", {}, ...body)));
    }

    choose(i) {
      this.open = this.open === i ? null : i;
      this.detail = null;
      this.drawDetail();
      if (this.open !== null) this.pick({ layer: this.layer, token: i });
    }

    show(detail) {
      if (!detail || detail.atlas !== this.atlas?.id || detail.layer !== this.layer || detail.token !== this.open) return;
      this.detail = detail;
      this.drawDetail();
    }

    /** All photos of the token that is open, right after its card's row, so that nothing else moves sideways. */
    drawDetail() {
      this.cards.forEach((card, i) => card.querySelector("button").setAttribute("aria-expanded", String(i === this.open)));
      this.grid.querySelector(".vtx-opened")?.remove();
      if (this.open === null) return;
      const { detail } = this;
      const drawn = detail?.photos.some((each) => each.photo);
      const text = !detail ? "Looking at its photos again …" : drawn
        ? `with its map over them: red from ${format(detail.limits[1])}, blue at 0×` : "by file name";
      const box = make("section", { class: "vtx-opened", "aria-live": "polite" },
        make("h4", {}, `The photos that token ${this.open} peaks on most`, make("small", {}, text)),
        make("div", { class: "vtx-opened-photos" }, ...(detail?.photos ?? []).map((each) =>
          make("figure", {}, each.photo ? make("img", { src: each.photo, alt: `Photo ${each.file}` }) : "",
            make("figcaption", {}, make("b", {}, format(each.peak)), ` ${each.file}`)))));
      const order = this.sorted();
      const columns = getComputedStyle(this.grid).gridTemplateColumns.split(" ").length;
      const place = order.indexOf(this.cards[this.open]);
      const last = Math.min(order.length, (Math.floor(place / columns) + 1) * columns) - 1;
      order[last].after(box);
    }
  }

  /** The first photos of a token, with a dot where it peaks; their names where there is no photo. */
  function photos(list) {
    if (!list.some((each) => each.photo)) {
      return make("ol", { class: "vtx-files-only" }, ...list.map((each) =>
        make("li", { title: each.file }, make("b", {}, format(each.peak)), ` ${each.file.split("/").pop()}`)));
    }
    return make("div", { class: "vtx-thumbs-of" }, ...list.map((each) => {
      const dot = make("span", { class: "vtx-dot" });
      [dot.style.left, dot.style.top] = [`${100 * each.x}%`, `${100 * each.y}%`];
      return make("span", { class: "vtx-thumb-of", title: `${each.file}, peak ${format(each.peak)}` },
        ...(each.photo ? [make("span", {}, make("img", { src: each.photo, alt: each.file }), dot)] : []));
    }));
  }

  function describe(atlas) {
    const { model, data, masks, skipped } = atlas;
    const many = (n) => n.toLocaleString("en");
    const left = skipped ? `, ${many(skipped)} could not be read` : "";
    const outlined = masks ? ` Classes by ${many(masks.n)} masks of ${masks.name}.` : "";
    return `What the tokens of ${model} stood for over ${many(data.n)} photos of ${data.name} (${data.split})${left}.` +
      `${outlined} A dot marks where the token peaks.`;
  }

  /** Called by gr.HTML's js_on_load: the value is the atlas, the property `token` what is shown of an opened token. */
  function atlas(element, props, pick, watch) {
    const view = new Atlas(element.querySelector(".vtx-atlas"), pick);
    watch("value", () => view.load(props.value || null)); // no value comes as ""
    watch("token", () => view.show(props.token));
    view.load(props.value || null);
  }

  Object.assign(vtviz, { atlas });
})();
