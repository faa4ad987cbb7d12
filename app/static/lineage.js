/* The view Lineage: where each token comes from, as rows of descent, and what tokens read of each other beside it. */
(function () {
  "use strict";
  const vtviz = window.vtviz;
  const { make, help, format } = vtviz;

  const ATTENTION_HELP =
    "The transformer's attention: each row is a token, and its cells are how much it reads of every token, in × uniform. " +
    "1× everywhere would be a token that reads all alike. The framed row is the chosen token's.";
  const ROOM = 56;

  class LineageView {
    constructor(set) {
      this.set = set;
      this.lead = make("p", { class: "vtx-lead" });
      this.flow = make("div", { class: "vtx-flow" });
      this.grids = make("div", { class: "vtx-grids" });
      this.element = make("div", { class: "vtx-lineage" }, this.lead, make("div", { class: "vtx-flowbox" }, this.flow), this.grids);
    }

    load(scene) {
      this.pointed = this.scene = null; // a token of the scene before, which this one may not have
      if (!scene.descent) return;
      const { descent, layers } = scene;
      const rows = descent.rows();
      this.nodes = descent.tokens.flatMap((tokens, layer) => tokens.map((token) => this.buildNode(token, rows[layer][token.slot])));
      const heads = layers.map((layer, i) => {
        const head = make("h4", {}, `Layer ${i}`, scene.segments ? make("small", {}, layer.name) : null);
        head.style.gridArea = `1 / ${i + 1}`;
        return head;
      });
      this.flow.style.gridTemplateColumns = `repeat(${layers.length}, max-content)`;
      this.flow.classList.toggle("vtx-joint", descent.joint);
      this.flow.replaceChildren(...heads, ...this.nodes.map((node) => node.button));
      const matrices = descent.joint ? [layers] : layers.map((layer) => [layer]);
      this.matrices = matrices.filter(([layer]) => layer.attention).map((some) => this.buildMatrix(some, descent));
      this.grids.replaceChildren(...this.matrices.map((matrix) => matrix.element));
      this.lead.textContent = this.told(descent);
    }

    told({ joint, links }) {
      if (joint) return "The tokens of all levels meet in one transformer. Choose a token: the number beside each one says how much the chosen one reads of it.";
      const made = links.some((link) => link.kind === "made");
      const later = made
        ? "The first half of a layer's tokens become filters that gather new tokens (solid line), the others are kept (dashed)."
        : links.length ? "Half of a layer's tokens are kept (dashed line), the others end." : "";
      return `Each row is a line of descent. ${later} Choose a token to follow it: the number beside each other token says how much it reads of that.`;
    }

    buildNode(token, row) {
      const [layer, map] = token.gathered;
      const thumb = new vtviz.Thumb(layer, map);
      const value = make("span", { class: "vtx-reads" });
      const button = make(
        "button",
        {
          type: "button", class: "vtx-step", "data-kind": token.kind, "data-origin": token.origin !== null,
          onclick: () => this.set({ layer, token: map }),
          onpointerenter: (event) => event.pointerType === "mouse" && this.follow(token),
          onpointerleave: () => this.follow(null),
        },
        thumb.canvas,
        make("span", { class: "vtx-tag" }, make("b", {}, String(map)), token.kind === "kept" ? make("small", {}, "kept") : null),
        value,
      );
      button.style.gridArea = `${row + 2} / ${token.layer + 1}`;
      return { token, thumb, button, value };
    }

    /** Light the line of descent of a token that is pointed at; null lights the chosen one's. */
    follow(token) {
      this.pointed = token;
      if (this.scene) this.light(this.scene, this.state);
    }

    draw(scene, state) {
      Object.assign(this, { scene, state });
      for (const { thumb, button, token } of this.nodes) {
        thumb.draw(scene, state, ROOM);
        const chosen = token.gathered[0] === state.layer && token.gathered[1] === state.token;
        button.setAttribute("aria-current", String(chosen));
      }
      this.light(scene, state);
    }

    light({ descent, layers }, state) {
      const [layer, slot] = this.pointed
        ? [this.pointed.layer, this.pointed.slot]
        : [state.layer, descent.slot(state.layer, state.token)];
      const path = descent.path(layer, slot);
      const at = (i) => [...path].map((each) => each.split("/").map(Number)).find(([l]) => l === i)?.[1];
      const readers = layers.map((_, i) => at(i));
      const sizes = descent.tokens.map((tokens) => tokens.length);
      this.nodes.forEach(({ token, button, value }) => {
        const reader = descent.joint ? [layers[layer], slot] : [layers[token.layer], readers[token.layer]];
        const row = reader[1] === undefined ? null : vtviz.attentionRow(...reader, state.reader);
        const offset = descent.joint ? sizes.slice(0, token.layer).reduce((a, b) => a + b, 0) : 0;
        const read = row?.[offset + token.slot];
        value.textContent = read === undefined ? "" : format(read);
        value.style.setProperty("--share", `${read === undefined ? 0 : Math.min(100, 25 * read)}%`);
        button.classList.toggle("vtx-lit", path.has(`${token.layer}/${token.slot}`));
        const kind = descent.origin(token);
        button.setAttribute("aria-label", `Layer ${token.layer}, ${this.name(token)}, ${kind}${read === undefined ? "" : `, read ${format(read)}`}`);
        button.title = `${this.name(token)}: ${kind}`;
      });
      for (const matrix of this.matrices) {
        const index = matrix.layers.findIndex((each) => readers[each.index] !== undefined);
        const before = sizes.slice(matrix.layers[0].index, matrix.layers[Math.max(0, index)].index).reduce((a, b) => a + b, 0);
        matrix.draw(state, this.scene.luts[state.colormap], index < 0 ? null : before + readers[matrix.layers[index].index]);
      }
    }

    name({ gathered, layer }) {
      return `token ${gathered[1]}${gathered[0] === layer ? "" : ` of layer ${gathered[0]}`}`;
    }

    /** One transformer's attention as a grid; `layers` holds several where it is joint. */
    buildMatrix(layers, descent) {
      const tokens = layers.flatMap((layer) => descent.tokens[layer.index]);
      const name = (token) => (layers.length > 1 ? `${layers[token.layer].name} token ${token.gathered[1]}` : this.name(token));
      const canvas = make("canvas", { role: "img" });
      const text = make("p", { class: "vtx-note", "aria-live": "polite" });
      const title = layers.length > 1 ? "Attention, all levels" : `Attention, layer ${layers[0].index}`;
      const element = make("section", { class: "vtx-attention" }, make("h4", {}, title, help("attention", ATTENTION_HELP)), canvas, text);
      let rows = [];
      let idle = "";
      const cell = (event) => {
        const box = canvas.getBoundingClientRect();
        const at = (share) => Math.min(Math.max(Math.floor(share * tokens.length), 0), tokens.length - 1);
        return [at((event.clientY - box.top) / box.height), at((event.clientX - box.left) / box.width)];
      };
      canvas.onpointermove = (event) => {
        const [row, column] = cell(event);
        text.textContent = `${capital(name(tokens[row]))} reads ${name(tokens[column])}: ${format(rows[row][column])}`;
      };
      canvas.onpointerleave = () => (text.textContent = idle);
      canvas.onclick = (event) => {
        const [layer, token] = tokens[cell(event)[0]].gathered;
        this.set({ layer, token });
      };
      const draw = (state, lut, chosen) => {
        rows = tokens.map((token) => vtviz.attentionRow(layers.find((each) => each.index === token.layer), token.slot, state.reader));
        const top = Math.max(2, ...rows.flat());
        idle = `From 0 to ${format(top)} uniform. Rows read columns.`;
        text.textContent = idle;
        paint(canvas, rows, top, lut, chosen);
        const most = chosen === null ? "" : `; ${name(tokens[chosen])} reads most of ${name(tokens[largest(rows[chosen])])}`;
        canvas.setAttribute("aria-label", `${title}, ${tokens.length} by ${tokens.length}${most}`);
      };
      return { element, layers, draw };
    }
  }

  function paint(canvas, rows, top, lut, chosen) {
    const side = Math.max(8, Math.floor(288 / rows.length));
    const [width] = vtviz.resize(canvas, side * rows.length, side * rows.length);
    const step = width / rows.length;
    const pen = canvas.getContext("2d");
    rows.forEach((row, y) =>
      row.forEach((value, x) => {
        const entry = 3 * Math.min(255, Math.round((255 * value) / top));
        pen.fillStyle = `rgb(${lut[entry]} ${lut[entry + 1]} ${lut[entry + 2]})`;
        pen.fillRect(Math.round(x * step), Math.round(y * step), Math.ceil(step), Math.ceil(step));
      }),
    );
    if (chosen === null) return;
    pen.lineWidth = 2 * (width / (side * rows.length));
    for (const [colour, inset] of [["#000", 0.5], ["#fff", 1.5]]) {
      pen.strokeStyle = colour;
      pen.strokeRect(inset * pen.lineWidth, Math.round(chosen * step) + inset * pen.lineWidth, width - 2 * inset * pen.lineWidth, Math.ceil(step) - 2 * inset * pen.lineWidth);
    }
  }

  function largest(values) {
    return values.indexOf(Math.max(...values));
  }

  function capital(text) {
    return text[0].toUpperCase() + text.slice(1);
  }

  Object.assign(vtviz, { LineageView });
})();
