/* The canvas component: a photo with the chosen token over it, and every token of every layer beside it.
 *
 * One TokenView per place on the page. `load(payload)` takes a new photo and its maps; `set(patch)` changes the choice
 * or an option; both end in `draw()`, at most once a frame. Later views read `scene` and `state` and call `set`.
 */
(function () {
  "use strict";
  const vtviz = window.vtviz;
  const { make, help, format } = vtviz;

  const NUMBERS = [
    ["peak", "Peak", "The map's highest value. 1× is the average over the photo."],
    ["entropy", "Spread", "Entropy of the map: 100 % = spread evenly over the photo, 0 % = all on one cell."],
    ["top10", "In top 10 %", "Share of the token's weight that falls on its strongest tenth of the photo. Even: 10 %."],
    ["here", "Under pointer", "The map's value at the pointer, in × uniform. Move over the photo."],
  ];
  const LAYER_HELP =
    "Mean peak: average over the tokens of their highest value. Correlation: how alike the tokens' maps are; near 1 they " +
    "all look at the same place. Dead: peak below 1.5×, so the token looks everywhere and nowhere. |AᵀV − T|: the tokens " +
    "recomputed from the maps drawn here, against those the model used; only rounding should be left.";

  class TokenView {
    constructor(root, colormaps, trigger) {
      this.luts = Object.fromEntries(Object.entries(colormaps).map(([k, text]) => [k, vtviz.decodeBytes(text)]));
      this.state = { layer: 0, token: 0, ...vtviz.DEFAULTS };
      this.trigger = trigger;
      this.scene = null;
      this.pointer = null;
      this.root = root;
      root.view = this;
      this.build();
      new ResizeObserver(() => this.schedule()).observe(root);
    }

    build() {
      const names = Object.keys(this.luts);
      this.options = vtviz.optionsBar(names, this.state, (patch) => this.set(patch));
      this.warning = make("p", { class: "vtx-warning", role: "alert", hidden: true },
        "Not trained. This model has random weights: neither its maps nor its prediction mean anything.");
      this.caption = make("h3", { class: "vtx-caption", "aria-live": "polite" });
      this.photo = make("canvas", { class: "vtx-photo", tabindex: 0, role: "img" });
      this.cross = make("span", { class: "vtx-cross", hidden: true });
      this.bar = make("canvas", { class: "vtx-bar", "aria-hidden": "true" });
      this.ticks = make("div", { class: "vtx-ticks" });
      this.numbers = {};
      const numbers = NUMBERS.map(([key, caption, text]) => {
        this.numbers[key] = make("dd", {}, "–");
        return make("div", {}, make("dt", {}, caption, help(caption.toLowerCase(), text)), this.numbers[key]);
      });
      this.guess = make("section", { class: "vtx-guess" });
      this.rows = make("section", { class: "vtx-rows", "aria-label": "Tokens of each layer" });
      const files = make(
        "div",
        { class: "vtx-files" },
        make("button", { type: "button", class: "vtx-button", onclick: () => this.savePanel() }, "Panel (PNG)"),
        make("button", { type: "button", class: "vtx-button", onclick: () => this.trigger("arrays") }, "Arrays (NPZ)"),
      );
      const stage = make(
        "section",
        { class: "vtx-stage" },
        make("div", { class: "vtx-frame" }, this.caption, make("div", { class: "vtx-mat" }, this.photo, this.cross)),
        make("div", { class: "vtx-scale" }, this.bar, this.ticks),
        make("dl", { class: "vtx-numbers" }, ...numbers),
        this.guess,
      );
      const wide = (this.wide = window.matchMedia("(min-width: 901px)"));
      const tools = make(
        "details",
        { class: "vtx-tools", open: wide.matches },
        make("summary", {}, "Display options and downloads"),
        make("div", { class: "vtx-panel" }, this.options.element, files),
      );
      wide.onchange = () => (tools.open = wide.matches);
      this.body = make("div", { class: "vtx-body" }, stage, this.rows);
      this.root.append(this.warning, tools, this.body);
      this.listen();
    }

    listen() {
      const move = (event) => {
        const box = this.photo.getBoundingClientRect();
        this.pointer = [(event.clientY - box.top) / box.height, (event.clientX - box.left) / box.width];
        this.drawPointer();
      };
      this.photo.onpointermove = this.photo.onpointerdown = move;
      this.photo.onpointerleave = () => {
        this.pointer = null;
        this.drawPointer();
      };
      this.body.onkeydown = (event) => this.walk(event);
    }

    /** Arrow keys: left and right walk the tokens of a layer, up and down the layers. */
    walk(event) {
      if (!this.scene?.layers.length || event.altKey || event.ctrlKey || event.metaKey) return;
      const { layer, token } = this.state;
      const layers = this.scene.layers;
      const steps = {
        ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0],
        Home: [0, -token], End: [0, layers[layer].tokens - 1 - token],
      };
      const step = steps[event.key];
      if (!step) return;
      event.preventDefault();
      const next = Math.min(Math.max(layer + step[0], 0), layers.length - 1);
      this.set({ layer: next, token: Math.min(Math.max(token + step[1], 0), layers[next].tokens - 1) });
      if (this.rows.contains(document.activeElement)) this.tiles[this.state.layer][this.state.token].button.focus();
    }

    /** Show a new payload (app/payload.py). The first one opens at its most selective token; afterwards options and the
     * chosen token stay, where the new model has it. */
    async load(payload) {
      const photo = new Image();
      photo.src = payload.photo;
      this.loading = photo;
      await photo.decode();
      if (this.loading !== photo) return; // a newer one came meanwhile
      const layers = payload.layers.map((layer, i) => new vtviz.Layer(layer, i));
      if (!this.scene && layers.length) this.state.token = layers[0].strongest();
      this.scene = { payload, photo, layers, luts: this.luts };
      this.warning.hidden = payload.trained;
      this.root.classList.toggle("vtx-plain", !layers.length);
      this.buildRows();
      this.buildGuess();
      const layer = Math.max(0, Math.min(this.state.layer, layers.length - 1));
      const last = (count) => Math.max(0, count - 1);
      this.set({
        layer,
        token: Math.min(this.state.token, last(layers[layer]?.tokens ?? 0)),
        head: Math.min(this.state.head, last(Math.max(0, ...layers.map((each) => each.heads)))),
      });
    }

    set(patch) {
      Object.assign(this.state, patch);
      this.schedule();
    }

    schedule() {
      if (!this.pending) this.pending = requestAnimationFrame(() => this.draw());
    }

    buildRows() {
      this.tiles = [];
      this.lines = [];
      this.lead = make("b", {});
      const lead = this.scene.layers.length
        ? ["Where each token looks. ", this.lead, "Click a token to see it large; arrow keys walk through them."]
        : ["This model has no tokens: it is a plain network, for comparing predictions."];
      this.rows.replaceChildren(
        make("p", { class: "vtx-lead" }, ...lead),
        ...this.scene.layers.map((layer) => this.buildRow(layer)),
      );
    }

    buildRow(layer) {
      const line = make("span", {});
      this.lines.push(line);
      const tiles = Array.from({ length: layer.tokens }, (_, token) => {
        const canvas = make("canvas", {});
        const dot = make("span", { class: "vtx-dot", hidden: true });
        const peak = make("span", {});
        const button = make(
          "button",
          {
            type: "button", class: "vtx-token", role: "option", tabindex: -1,
            onclick: () => this.set({ layer: layer.index, token }),
          },
          make("span", { class: "vtx-tile" }, canvas, dot),
          make("span", { class: "vtx-tag" }, make("b", {}, String(token)), peak),
        );
        return { button, canvas, dot, peak };
      });
      this.tiles.push(tiles);
      const title = vtviz.title(layer);
      return make(
        "section",
        { class: "vtx-row" },
        make("h4", {}, title, make("small", {}, `${layer.heads > 1 ? `dynamic, ${layer.heads} heads` : "static"} · ${layer.h} × ${layer.w} cells`)),
        make("p", { class: "vtx-line" }, line, help("this line", LAYER_HELP)),
        make("div", { class: "vtx-tokens", role: "listbox", "aria-label": title, "aria-orientation": "horizontal" },
          ...tiles.map((tile) => tile.button)),
      );
    }

    buildGuess() {
      const { prediction, model, trained, note } = this.scene.payload;
      this.guess.hidden = !prediction.length;
      const items = prediction.map(({ label, probability }, i) => {
        const bar = make("span", { class: "vtx-meter" });
        bar.style.setProperty("--share", `${(100 * probability).toFixed(2)}%`);
        const percent = `${(100 * probability).toFixed(probability < 0.0995 ? 1 : 0)} %`;
        return make("li", { class: i ? null : "vtx-best" },
          make("span", { class: "vtx-name" }, label), make("span", { class: "vtx-percent" }, percent), bar);
      });
      this.guess.classList.toggle("vtx-void", !trained);
      this.guess.replaceChildren(
        make("h4", {}, "Prediction", make("small", {}, model)),
        make("ol", {}, ...items),
        make("p", { class: "vtx-note" }, note || ""),
      );
    }

    draw() {
      this.pending = null;
      if (!this.scene || !this.root.clientWidth) return;
      const { scene, state } = this;
      this.drawStage();
      if (scene.layers.length) this.drawMaps();
      this.root.dataset.ready = scene.payload.id;
    }

    drawMaps() {
      const { scene, state } = this;
      this.options.sync(state, scene.layers);
      const bright = ["jet", "turbo"].includes(state.colormap) ? ["Red", "blue"] : ["Bright", "dark"];
      this.lead.textContent = `${bright[0]} = many times the average, ${bright[1]} = hardly at all. `;
      this.drawBar();
      for (const layer of scene.layers) this.drawRow(layer);
      this.drawPointer();
    }

    /** Size a canvas in CSS pixels and give back its size in device pixels. */
    resize(canvas, width, height) {
      const ratio = Math.min(window.devicePixelRatio || 1, 2);
      canvas.style.width = `${width}px`;
      canvas.style.height = `${height}px`;
      canvas.width = Math.max(1, Math.round(width * ratio));
      canvas.height = Math.max(1, Math.round(height * ratio));
      return [canvas.width, canvas.height];
    }

    drawStage() {
      const { scene, state } = this;
      const room = this.photo.parentElement.clientWidth;
      const page = window.innerHeight;
      const high = this.wide.matches ? Math.min(Math.max(0.6 * page, 300), 620) : 0.42 * page;
      const [width, height] = this.resize(this.photo, ...vtviz.fit(scene.payload.geometry, room, high));
      const context = this.photo.getContext("2d");
      if (!scene.layers.length) {
        context.drawImage(scene.photo, 0, 0, width, height);
        this.caption.textContent = "The photo";
        this.photo.setAttribute("aria-label", "The photo");
        return;
      }
      const layer = scene.layers[state.layer];
      vtviz.overlay(context, width, height, scene, state, layer, state.token);
      const head = vtviz.headOf(layer, state);
      const heads = layer.heads === 1 ? "" : head < 0 ? `, mean of ${layer.heads} heads` : `, head ${head}`;
      const text = `Layer ${state.layer}, token ${state.token}${heads}`;
      if (this.caption.textContent !== text) this.caption.textContent = text;
      const numbers = layer.numbers(head).tokens[state.token];
      const percent = (value) => `${(100 * value).toFixed(0)} %`;
      this.numbers.peak.textContent = format(numbers.peak);
      this.numbers.entropy.textContent = percent(numbers.entropy);
      this.numbers.top10.textContent = percent(numbers.top10);
      const about = `${text}: peak ${format(numbers.peak)}, ${percent(numbers.top10)} in its top 10 %`;
      this.photo.setAttribute("aria-label", `The photo under the map of ${about}`);
    }

    drawBar() {
      const { scene, state } = this;
      const [low, high] = vtviz.range(scene, state, scene.layers[state.layer], state.token);
      const width = this.bar.parentElement.clientWidth;
      const [wide, tall] = this.resize(this.bar, width, 12);
      vtviz.bar(this.bar.getContext("2d"), 0, 0, wide, tall, this.luts[state.colormap]);
      const whole = state.scale === "map" ? vtviz.ticks(low, high).map((v) => [v, vtviz.tickLabel(v)]) : vtviz.marks(low, high);
      const marks = whole.map(([value, label]) => {
        const share = high > low ? (value - low) / (high - low) : 0;
        const edge = share < 0.02 ? "vtx-first" : share > 0.98 ? "vtx-last" : null;
        const mark = make("span", { class: edge }, label);
        mark.style.left = `${100 * share}%`;
        return mark;
      });
      const whose = { shared: "for all tokens", map: "for this token alone", fixed: "fixed" }[state.scale];
      this.ticks.replaceChildren(...marks, make("em", {}, `× uniform, ${whose}`));
    }

    drawRow(layer) {
      const { scene, state } = this;
      const head = vtviz.headOf(layer, state);
      const all = layer.numbers(head);
      this.lines[layer.index].replaceChildren(
        `mean peak ${format(all.peak)} · correlation ${all.correlation.toFixed(2)} · `,
        all.dead ? make("b", {}, `${all.dead} dead`) : "none dead",
        ` · max |AᵀV − T| ${layer.error.toExponential(1)}`,
      );
      this.tiles[layer.index].forEach((tile, token) => {
        const chosen = layer.index === state.layer && token === state.token;
        const room = tile.canvas.parentElement.clientWidth;
        const [width, height] = this.resize(tile.canvas, ...vtviz.fit(scene.payload.geometry, room, 1.25 * room));
        vtviz.overlay(tile.canvas.getContext("2d"), width, height, scene, state, layer, token);
        const peak = `${all.tokens[token].peak.toFixed(1)}×`;
        tile.peak.textContent = peak;
        tile.button.tabIndex = chosen ? 0 : -1;
        tile.button.setAttribute("aria-selected", String(chosen));
        tile.button.setAttribute("aria-label", `Layer ${layer.index}, token ${token}, peak ${peak}`);
      });
    }

    /** The linked pointer: a cross on the photo, a dot on every token, and the value under it. */
    drawPointer() {
      if (!this.scene?.layers.length) return;
      const { scene, state, pointer } = this;
      const layer = scene.layers[state.layer];
      const place = (element, canvas) => {
        element.hidden = !pointer;
        if (!pointer) return;
        element.style.top = `${canvas.offsetTop + pointer[0] * canvas.offsetHeight}px`;
        element.style.left = `${canvas.offsetLeft + pointer[1] * canvas.offsetWidth}px`;
      };
      place(this.cross, this.photo);
      for (const tile of this.tiles.flat()) place(tile.dot, tile.canvas);
      let text = "–";
      if (pointer) {
        const [height, width] = scene.payload.geometry.original;
        const y = Math.min(Math.max(Math.floor(pointer[0] * height), 0), height - 1);
        const x = Math.min(Math.max(Math.floor(pointer[1] * width), 0), width - 1);
        const map = layer.map(state.token, vtviz.headOf(layer, state));
        const value = vtviz.valueAt(map, layer, scene.payload.geometry, y, x, state.align);
        text = Number.isNaN(value) ? "cut off" : format(value);
      }
      this.numbers.here.textContent = text;
    }

    savePanel() {
      if (!this.scene?.layers.length) return;
      vtviz.panel(this.scene, this.state).toBlob((blob) => vtviz.download(blob, "vtviz_panel.png"), "image/png");
    }
  }

  /** Called by gr.HTML's js_on_load. */
  function mount(element, props, trigger, watch) {
    const view = new TokenView(element.querySelector(".vtx"), props.colormaps, trigger);
    const update = () => props.value && view.load(props.value);
    watch("value", update);
    update();
  }

  Object.assign(vtviz, { TokenView, mount });
})();
