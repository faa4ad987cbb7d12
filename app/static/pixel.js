/* The view Pixel: a place in the photo, and for each layer which tokens read it and which it reads, as aligned bars. */
(function () {
  "use strict";
  const vtviz = window.vtviz;
  const { make, help, format } = vtviz;

  const BY_HELP =
    "How much the token reads this place: its map's value here, in × uniform. The dashed line is 1×, a token that looks " +
    "everywhere alike.";
  const READS_HELP =
    "How much this place reads the token when the layer writes back into the photo (the projector), in × uniform. The " +
    "dashed line is 1×, a place that reads all tokens alike.";

  class PixelView {
    constructor(set) {
      this.set = set;
      this.where = make("p", { class: "vtx-lead", "aria-live": "polite" });
      this.layers = make("div", { class: "vtx-charts" });
      this.element = make("div", {}, this.where, this.layers);
    }

    load(scene) {
      this.charts = scene.payload.lineage?.tokens.map((tokens, layer) => this.buildChart(scene, tokens, layer)) ?? [];
      this.layers.replaceChildren(...this.charts.map((chart) => chart.element));
    }

    buildChart(scene, tokens, layer) {
      const rows = tokens.map((token) => {
        const [from, map] = token.gathered;
        const thumb = new vtviz.Thumb(from, map);
        const by = bar("left");
        const reads = bar("right");
        const kept = token.kind === "kept";
        const button = make(
          "button",
          { type: "button", class: "vtx-node", onclick: () => this.set({ layer: from, token: map }) },
          thumb.canvas, make("b", {}, String(map)), kept ? make("small", {}, "kept") : null,
        );
        const element = make("div", { class: "vtx-both", role: "listitem" }, by.element, button, reads.element);
        return { token, thumb, by, reads, button, element };
      });
      const list = make("div", { role: "list" });
      const head = make(
        "div",
        { class: "vtx-both vtx-heads" },
        make("span", {}, "looks here", help("looks here", BY_HELP)),
        make("span", {}, "token"),
        make("span", {}, ...(scene.layers[layer].projector ? ["is read here", help("is read here", READS_HELP)] : [])),
      );
      const { name, projector } = scene.layers[layer];
      const note = projector ? (scene.segments ? name : null) : "the last one: it writes nothing back";
      const title = make("h4", {}, `Layer ${layer}`, note && make("small", {}, note));
      const element = make("section", { class: projector ? "vtx-chart" : "vtx-chart vtx-half" }, title, head, list);
      return { element, list, rows };
    }

    draw(scene, state) {
      const { geometry } = scene.payload;
      const answers = state.place
        && scene.layers.map((layer) => vtviz.query(layer, geometry, state.place, state.align, vtviz.headOf(layer, state)));
      const seen = Boolean(answers?.[0]);
      this.where.textContent = !state.place
        ? "Click a pixel of the photo, or drag a box: you see which tokens look there, and which tokens that place reads. "
          + "Or Tab to the photo: arrows move the pointer (with Shift by 10 pixels), Enter asks."
        : `${named(state.place)}${seen ? "" : " The crop cut it off: the model did not see it. Choose another place."}`;
      this.layers.hidden = !seen;
      if (!seen) return;
      const tops = ["readBy", "reads"].map((side) => Math.max(2, ...answers.flatMap((answer) => answer[side] ?? [])));
      tops.forEach((top, i) => this.layers.style.setProperty(["--one-left", "--one-right"][i], (1 / top).toFixed(4)));
      this.charts.forEach((chart, i) => this.drawChart(chart, answers[i], tops, scene, state));
    }

    drawChart(chart, { readBy, reads }, tops, scene, state) {
      for (const row of chart.rows) {
        const { slot, map, gathered, kind } = row.token;
        row.thumb.draw(scene, state, 44);
        row.byValue = map === null ? null : readBy[map];
        row.readsValue = reads && reads[slot];
        row.by.draw(row.byValue, tops[0], "–");
        row.reads.draw(row.readsValue, tops[1], "");
        const chosen = gathered[0] === state.layer && gathered[1] === state.token;
        row.button.setAttribute("aria-current", String(chosen));
        row.button.setAttribute(
          "aria-label",
          `Token ${gathered[1]} of layer ${gathered[0]}${kind === "kept" ? ", kept" : ""}: `
            + `${row.byValue === null ? "reads nothing in this layer" : `reads the place ${format(row.byValue)}`}`
            + `${row.readsValue === null ? "" : `, is read ${format(row.readsValue)}`}`,
        );
      }
      const score = (row) => row.byValue ?? -1;
      const order = state.order === "sorted" ? [...chart.rows].sort((a, b) => score(b) - score(a)) : chart.rows;
      vtviz.arrange(chart.list, order.map((row) => row.element));
    }
  }

  /** A bar that grows to the `side`, with its number at the far end. */
  function bar(side) {
    const fill = make("i", {});
    const text = make("span", {});
    const element = make("span", { class: `vtx-grow vtx-grow-${side}` }, fill, text);
    const draw = (value, top, none) => {
      fill.style.width = value === null ? "0" : `calc(${Math.min(1, value / top).toFixed(4)} * var(--span))`;
      text.textContent = value === null ? none : format(value);
    };
    return { element, draw };
  }

  function named([x0, y0, x1, y1]) {
    if (x1 - x0 === 1 && y1 - y0 === 1) return `The pixel at ${x0}, ${y0} (from the top left).`;
    return `The mean over the ${x1 - x0} × ${y1 - y0} pixels from ${x0}, ${y0} (from the top left).`;
  }

  Object.assign(vtviz, { PixelView });
})();
