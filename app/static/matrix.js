/* Token x class: how each token's weight is shared out over the classes, as a table that is a heat map. */
(function () {
  "use strict";
  const vtviz = window.vtviz;
  const { make, help, labelled, select } = vtviz;

  const MATRIX_HELP =
    "Each row shares out a token's weight over the classes, in %. The first row is the photo's: a token that looks " +
    "everywhere alike would have the same. The framed cell is the class with most beyond its area: it names the token. " +
    "The colour is full from 50 % on.";
  const CELLS_HELP =
    "The weight itself, or the weight less the class's area: red where the token prefers a class, blue where it avoids it.";
  /** The share from which a cell has its full colour. */
  const FULL = 0.5;
  const CELLS = [
    ["mass", "Weight, %"],
    ["beyond", "Beyond the area, ± %"],
  ];

  class TokenMatrix {
    constructor(set, state) {
      this.set = set;
      this.cells = select(CELLS, state.cells, (cells) => set({ cells }));
      this.box = make("div", { class: "vtx-box" });
      this.box.onpointerover = (event) => this.preview(event);
      this.box.onpointerleave = () => this.restore();
      this.box.onclick = (event) => this.choose(event);
      this.box.onkeydown = (event) => this.walk(event);
      this.element = make(
        "section",
        { class: "vtx-matrix", "aria-label": "Tokens and classes" },
        make("div", { class: "vtx-heading" },
          make("h4", {}, "Tokens × classes"), help("this table", MATRIX_HELP), make("span", { class: "vtx-gap" }),
          labelled("Cells", this.cells, help("cells", CELLS_HELP))),
        this.box,
      );
    }

    load() {
      this.kept = null;
    }

    draw(scene, state) {
      const shown = `${scene.payload.id} ${state.source} ${state.cells}`;
      if (this.shown !== shown) this.build(scene, state);
      this.shown = shown;
      this.state = state;
      this.cells.value = state.cells;
      for (const { button, layer, token } of this.rows) {
        const chosen = layer === state.layer && token === state.token;
        button.setAttribute("aria-current", String(chosen));
        button.tabIndex = chosen ? 0 : -1;
      }
    }

    build(scene, state) {
      const source = scene.segments.sources[state.source];
      const columns = scene.segments.present(state.source)[0].filter((each) => source.areas[each.index] > 0);
      this.rows = [];
      const head = columns.map((each) =>
        make("th", { scope: "col", title: each.name }, make("span", {}, vtviz.swatch(each), make("span", {}, each.name))));
      const bodies = scene.layers.map((layer) =>
        make("tbody", {},
          make("tr", {}, make("th", { scope: "rowgroup", colspan: columns.length + 1 },
            make("span", {}, `Layer ${layer.index}, ${layer.name}`))),
          ...source.matrix[layer.index].map((masses, token) => {
            const name = vtviz.nameOf(scene, state, layer.index, token);
            return this.buildRow(layer.index, token, name, columns.map((each) => {
              const data = cell(masses[each.index], source.areas[each.index], state.cells);
              data.classList.toggle("vtx-namer", each === name);
              data.dataset.class = each.index;
              data.title = `${each.name}: ${vtviz.percent(masses[each.index])} of the weight`; // its head may be out of sight
              return data;
            }));
          }),
        ));
      const areas = columns.map((each) => cell(source.areas[each.index], source.areas[each.index], "mass"));
      this.box.replaceChildren(
        make("table", {},
          make("thead", {}, make("tr", {}, make("th", { scope: "col" }, "Token"), ...head)),
          make("tbody", {}, make("tr", { class: "vtx-areas" }, make("th", { scope: "row" }, "The photo"), ...areas)),
          ...bodies,
        ),
      );
    }

    buildRow(layer, token, name, cells) {
      const label = `Layer ${layer}, token ${token}${name ? `, ${name.name}` : ""}`;
      const button = make("button", { type: "button", tabindex: -1, "aria-label": label },
        make("b", {}, String(token)), ...(name ? [vtviz.swatch(name), name.name] : []));
      this.rows.push({ button, layer, token });
      return make("tr", { "data-layer": layer, "data-token": token }, make("th", { scope: "row" }, button), ...cells);
    }

    /** Pointing at a row shows its token (and lights the cell's class) until the pointer leaves; a click keeps it. */
    preview(event) {
      const row = event.target.closest("tr[data-token]");
      if (!row || event.pointerType !== "mouse") return;
      this.kept ??= { layer: this.state.layer, token: this.state.token };
      const label = event.target.closest("td")?.dataset.class;
      this.set({ layer: Number(row.dataset.layer), token: Number(row.dataset.token), lit: label ? Number(label) : null });
    }

    restore() {
      if (this.kept) this.set({ ...this.kept, lit: null });
      this.kept = null;
    }

    choose(event) {
      const row = event.target.closest("tr[data-token]");
      if (!row) return;
      const choice = { layer: Number(row.dataset.layer), token: Number(row.dataset.token) };
      if (this.kept) this.kept = choice;
      this.set(choice);
    }

    /** Up and down walk the rows; left and right are the scrolling box's own. */
    walk(event) {
      if (!event.key.startsWith("Arrow")) return;
      event.stopPropagation();
      const step = { ArrowUp: -1, ArrowDown: 1 }[event.key];
      if (!step) return;
      event.preventDefault();
      const at = this.rows.findIndex(({ layer, token }) => layer === this.state.layer && token === this.state.token);
      const { layer, token, button } = this.rows[Math.min(Math.max(at + step, 0), this.rows.length - 1)];
      this.set({ layer, token });
      button.focus();
    }
  }

  /** One cell of the table: `mass`, or what it has beyond `area`. */
  function cell(mass, area, shows) {
    const value = shows === "beyond" ? mass - area : mass;
    const rounded = Math.round(100 * value);
    const sign = shows === "beyond" && rounded ? (rounded > 0 ? "+" : "−") : "";
    const text = rounded ? `${sign}${Math.abs(rounded)}` : "";
    const data = make("td", { "data-sign": shows === "beyond" && value > 0 ? "more" : null }, text);
    data.style.setProperty("--share", `${Math.min(100, (100 * Math.abs(value)) / FULL).toFixed(1)}%`);
    return data;
  }

  /** The class that names a token by the source that is shown; null where none stands out or there are no classes. */
  function nameOf({ segments }, { source }, layer, token) {
    const index = segments?.sources[source].names[layer][token];
    return typeof index === "number" ? segments.classes[index] : null;
  }

  Object.assign(vtviz, { TokenMatrix, nameOf });
})();
