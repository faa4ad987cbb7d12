/* The token strips: for each layer a line of numbers and every token's map, small. */
(function () {
  "use strict";
  const vtviz = window.vtviz;
  const { make, help, format } = vtviz;

  const LAYER_HELP =
    "Mean peak: average over the tokens of their highest value. Correlation: how alike the tokens' maps are; near 1 they " +
    "all look at the same place. Dead: peak below 1.5×, so the token looks everywhere and nowhere. |AᵀV − T|: the tokens " +
    "recomputed from the maps drawn here, against those the model used; only rounding should be left.";

  class TokenRows {
    constructor(set) {
      this.set = set;
      this.tiles = [];
      this.element = make("section", { class: "vtx-rows", "aria-label": "Tokens of each layer" });
    }

    load(scene) {
      this.tiles = [];
      this.lines = [];
      this.lead = make("b", {});
      const plain = scene.segments ? "for comparing segmentations" : "for comparing predictions";
      const lead = scene.layers.length
        ? ["Where each token looks. ", this.lead, "Click a token to see it large.",
          scene.segments ? " A token is named by the class it looks at well beyond that class's area." : ""]
        : [`This model has no tokens: it is a plain network, ${plain}.`];
      this.element.replaceChildren(
        make("p", { class: "vtx-lead" }, ...lead),
        ...scene.layers.map((layer) => this.buildRow(layer, Boolean(scene.segments))),
      );
    }

    buildRow(layer, named) {
      const line = make("span", {});
      this.lines.push(line);
      const tiles = Array.from({ length: layer.tokens }, (_, token) => {
        const thumb = new vtviz.Thumb(layer.index, token);
        const dot = make("span", { class: "vtx-dot", hidden: true });
        const peak = make("span", {});
        const name = named ? make("span", { class: "vtx-class" }) : null;
        const button = make(
          "button",
          {
            type: "button", class: "vtx-token", role: "option", tabindex: -1,
            onclick: () => this.set({ layer: layer.index, token }),
          },
          make("span", { class: "vtx-tile" }, thumb.canvas, dot),
          make("span", { class: "vtx-tag" }, make("b", {}, String(token)), peak),
          name,
        );
        return { button, thumb, dot, peak, name };
      });
      this.tiles.push(tiles);
      const title = vtviz.title(layer);
      const kind = layer.heads > 1 ? `dynamic, ${layer.heads} heads` : "static";
      const level = named ? `${layer.name}, stride ${layer.stride} · ` : "";
      return make(
        "section",
        { class: "vtx-row" },
        make("h4", {}, title, make("small", {}, `${level}${kind} · ${layer.h} × ${layer.w} cells`)),
        make("p", { class: "vtx-line" }, line, help("this line", LAYER_HELP)),
        make("div", { class: "vtx-tokens", role: "listbox", "aria-label": title, "aria-orientation": "horizontal" },
          ...tiles.map((tile) => tile.button)),
      );
    }

    draw(scene, state) {
      const bright = ["jet", "turbo"].includes(state.colormap) ? ["Red", "blue"] : ["Bright", "dark"];
      this.lead.textContent = `${bright[0]} = many times the average, ${bright[1]} = hardly at all. `;
      for (const layer of scene.layers) this.drawRow(layer, scene, state);
    }

    drawRow(layer, scene, state) {
      const all = layer.numbers(vtviz.headOf(layer, state));
      this.lines[layer.index].replaceChildren(
        `mean peak ${format(all.peak)} · correlation ${all.correlation.toFixed(2)} · `,
        all.dead ? make("b", {}, `${all.dead} dead`) : "none dead",
        ` · max |AᵀV − T| ${layer.error.toExponential(1)}`,
      );
      this.tiles[layer.index].forEach((tile, token) => {
        const chosen = layer.index === state.layer && token === state.token;
        tile.thumb.draw(scene, state, tile.thumb.canvas.parentElement.clientWidth);
        const peak = `${all.tokens[token].peak.toFixed(1)}×`;
        const name = vtviz.nameOf(scene, state, layer.index, token);
        tile.peak.textContent = peak;
        tile.name?.replaceChildren(...(name ? [vtviz.swatch(name), name.name] : ["\u00a0"]));
        tile.button.tabIndex = chosen ? 0 : -1;
        tile.button.setAttribute("aria-selected", String(chosen));
        const label = `Layer ${layer.index}, token ${token}, peak ${peak}`;
        tile.button.setAttribute("aria-label", name ? `${label}, ${name.name}` : label);
      });
    }

    /** A dot on every map where the pointer is. */
    mark(pointer) {
      for (const tile of this.tiles.flat()) vtviz.place(tile.dot, tile.thumb.canvas, pointer);
    }

    holds(element) {
      return this.element.contains(element);
    }

    focus({ layer, token }) {
      this.tiles[layer][token].button.focus();
    }
  }

  Object.assign(vtviz, { TokenRows });
})();
