/* The canvas component: a photo with the chosen token over it, and every token of every layer beside it. A segmentation
 * model's payload also brings the classes of the pixels: then photo, classes and token stand side by side, with a legend
 * and the matrix of tokens and classes.
 *
 * One TokenView per place on the page. `load(payload)` takes a new photo and its maps; `set(patch)` changes the choice
 * or an option; both end in `draw()`, at most once a frame. Its parts (pictures, rows, legend, matrix) draw what they
 * are given of `scene` and `state` and call `set`; later views do the same.
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

  class TokenView {
    constructor(root, colormaps, trigger) {
      this.luts = Object.fromEntries(Object.entries(colormaps).map(([k, text]) => [k, vtviz.decodeBytes(text)]));
      this.state = { layer: 0, token: 0, hidden: [], lit: null, ...vtviz.DEFAULTS };
      this.trigger = trigger;
      this.scene = null;
      this.pointer = null;
      this.root = root;
      root.view = this;
      this.build();
      new ResizeObserver(() => this.schedule()).observe(root);
    }

    build() {
      const set = (patch) => this.set(patch);
      const point = (pointer) => this.point(pointer);
      this.options = vtviz.optionsBar(Object.keys(this.luts), this.state, set);
      this.warning = make("p", { class: "vtx-warning", role: "alert", hidden: true },
        "Not trained. This model has random weights: neither its maps nor its prediction mean anything.");
      this.map = new vtviz.Picture("map", point);
      this.map.canvas.tabIndex = 0;
      this.map.caption.setAttribute("aria-live", "polite");
      this.photo = new vtviz.Picture("photo", point);
      this.classes = new vtviz.Picture("classes", point);
      this.pictures = make("div", { class: "vtx-pictures" });
      this.bar = make("canvas", { class: "vtx-bar", "aria-hidden": "true" });
      this.ticks = make("div", { class: "vtx-ticks" });
      this.numbers = {};
      const numbers = NUMBERS.map(([key, caption, text]) => {
        this.numbers[key] = make("dd", {}, "–");
        return make("div", {}, make("dt", {}, caption, help(caption.toLowerCase(), text)), this.numbers[key]);
      });
      const measures = make(
        "div",
        { class: "vtx-measures" },
        make("div", { class: "vtx-scale" }, this.bar, this.ticks),
        make("dl", { class: "vtx-numbers" }, ...numbers),
      );
      this.guess = make("section", { class: "vtx-guess" });
      this.legend = new vtviz.Legend(set, () => this.trigger("unmask"));
      this.matrix = new vtviz.TokenMatrix(set, this.state);
      this.rows = new vtviz.TokenRows(set);
      const files = make(
        "div",
        { class: "vtx-files" },
        make("button", { type: "button", class: "vtx-button", onclick: () => this.savePanel() }, "Panel (PNG)"),
        make("button", { type: "button", class: "vtx-button", onclick: () => this.trigger("arrays") }, "Arrays (NPZ)"),
      );
      const wide = (this.wide = window.matchMedia("(min-width: 901px)"));
      const tools = make(
        "details",
        { class: "vtx-tools", open: wide.matches },
        make("summary", {}, "Display options and downloads"),
        make("div", { class: "vtx-toolbar" }, this.options.element, files),
      );
      wide.onchange = () => (tools.open = wide.matches);
      const stage = make("section", { class: "vtx-stage" }, this.pictures, this.legend.element, measures, this.guess);
      this.body = make("div", { class: "vtx-body" }, stage, this.matrix.element, this.rows.element);
      this.body.onkeydown = (event) => this.walk(event);
      this.root.append(this.warning, tools, this.body);
    }

    /** Arrow keys: left and right walk the tokens of a layer, up and down the layers. */
    walk(event) {
      if (!this.scene?.layers.length || event.altKey || event.ctrlKey || event.metaKey) return;
      if (event.target.matches("select, input")) return; // whose own keys these are
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
      if (this.rows.holds(document.activeElement)) this.rows.focus(this.state);
    }

    /** Show a new payload (app/payload.py). The first one opens at its most selective token; afterwards options and the
     * chosen token stay, where the new model has it. */
    async load(payload) {
      const photo = new Image();
      photo.src = payload.photo;
      this.loading = photo;
      const [segments] = await Promise.all([vtviz.decodeSegments(payload.segmentation), photo.decode()]);
      if (this.loading !== photo) return; // a newer one came meanwhile
      const layers = payload.layers.map((layer, i) => new vtviz.Layer(layer, i));
      if (!this.scene && layers.length) this.state.token = layers[0].strongest();
      const same = this.scene?.payload.model === payload.model;
      this.scene = { payload, photo, layers, segments, luts: this.luts };
      this.warning.hidden = payload.trained;
      this.root.classList.toggle("vtx-plain", !layers.length);
      this.root.classList.toggle("vtx-segmented", Boolean(segments));
      const pictures = segments ? [this.photo, this.classes, ...(layers.length ? [this.map] : [])] : [this.map];
      this.pictures.replaceChildren(...pictures.map((each) => each.element));
      this.legend.element.hidden = !segments;
      this.matrix.element.hidden = !segments || !layers.length;
      for (const part of [this.rows, ...(segments ? [this.legend, this.matrix] : [])]) part.load(this.scene);
      this.buildGuess();
      const layer = Math.max(0, Math.min(this.state.layer, layers.length - 1));
      const last = (count) => Math.max(0, count - 1);
      this.set({
        layer,
        token: Math.min(this.state.token, last(layers[layer]?.tokens ?? 0)),
        head: Math.min(this.state.head, last(Math.max(0, ...layers.map((each) => each.heads)))),
        source: segments?.sources.given ? this.state.source : "predicted",
        hidden: same ? this.state.hidden : [], // another model's classes are others
        lit: null,
      });
    }

    set(patch) {
      Object.assign(this.state, patch);
      this.schedule();
    }

    schedule() {
      if (!this.pending) this.pending = requestAnimationFrame(() => this.draw());
    }

    buildGuess() {
      const { prediction, model, trained, note } = this.scene.payload;
      this.guess.hidden = !prediction.length && !note;
      const items = prediction.map(({ label, probability }, i) => {
        const bar = make("span", { class: "vtx-meter" });
        bar.style.setProperty("--share", `${(100 * probability).toFixed(2)}%`);
        const percent = `${(100 * probability).toFixed(probability < 0.0995 ? 1 : 0)} %`;
        return make("li", { class: i ? null : "vtx-best" },
          make("span", { class: "vtx-name" }, label), make("span", { class: "vtx-percent" }, percent), bar);
      });
      this.guess.classList.toggle("vtx-void", !trained);
      const list = [make("h4", {}, "Prediction", make("small", {}, model)), make("ol", {}, ...items)];
      this.guess.replaceChildren(...(prediction.length ? list : []), make("p", { class: "vtx-note" }, note || ""));
    }

    draw() {
      this.pending = null;
      if (!this.scene || !this.root.clientWidth) return;
      const { scene, state } = this;
      this.options.sync(state, scene);
      this.drawStage();
      if (scene.layers.length) {
        this.drawBar();
        this.rows.draw(scene, state);
      }
      if (scene.segments) {
        this.legend.draw(scene, state);
        this.matrix.draw(scene, state);
      }
      this.drawPointer();
      this.root.dataset.ready = scene.payload.id;
    }

    drawStage() {
      const { scene } = this;
      const { geometry } = scene.payload;
      const page = window.innerHeight;
      const [share, least, most] = scene.segments ? [0.45, 240, 460] : [0.6, 300, 620];
      const high = this.wide.matches ? Math.min(Math.max(share * page, least), most) : (scene.segments ? 0.3 : 0.42) * page;
      if (scene.layers.length) this.drawToken(...this.map.open(geometry, high));
      const plain = scene.segments ? this.photo : scene.layers.length ? null : this.map;
      if (plain) {
        const [context, width, height] = plain.open(geometry, high);
        context.drawImage(scene.photo, 0, 0, width, height);
        plain.describe("The photo", "The photo");
      }
      if (scene.segments) this.drawClasses(...this.classes.open(geometry, high));
    }

    drawToken(context, width, height) {
      const { scene, state } = this;
      const layer = scene.layers[state.layer];
      vtviz.overlay(context, width, height, scene, state, layer, state.token);
      const head = vtviz.headOf(layer, state);
      const heads = layer.heads === 1 ? "" : head < 0 ? `, mean of ${layer.heads} heads` : `, head ${head}`;
      const name = vtviz.nameOf(scene, state, state.layer, state.token);
      const text = `Layer ${state.layer}, token ${state.token}${heads}${name ? `: ${name.name}` : ""}`;
      const numbers = layer.numbers(head).tokens[state.token];
      const percent = (value) => `${(100 * value).toFixed(0)} %`;
      this.numbers.peak.textContent = format(numbers.peak);
      this.numbers.entropy.textContent = percent(numbers.entropy);
      this.numbers.top10.textContent = percent(numbers.top10);
      const about = `${text}: peak ${format(numbers.peak)}, ${percent(numbers.top10)} in its top 10 %`;
      this.map.describe(text, `The photo under the map of ${about}`);
    }

    drawClasses(context, width, height) {
      const { scene, state } = this;
      vtviz.classOverlay(context, width, height, scene, state);
      const { areas } = scene.segments.sources[state.source];
      const there = scene.segments.present(state.source)[0].filter((each) => areas[each.index] > 0);
      const list = there.map((each) => `${each.name} ${vtviz.percent(areas[each.index])}`).join(", ");
      const text = state.source === "given" ? "Classes of the mask" : "Predicted classes";
      this.classes.describe(text, `The photo under the ${text.toLowerCase()}: ${list}`);
    }

    drawBar() {
      const { scene, state } = this;
      const [low, high] = vtviz.range(scene, state, scene.layers[state.layer], state.token);
      const width = this.bar.parentElement.clientWidth;
      const [wide, tall] = vtviz.resize(this.bar, width, 12);
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

    point(pointer) {
      this.pointer = pointer;
      this.drawPointer();
    }

    /** The linked pointer: a cross on each picture, a dot on every token, and what lies under it. */
    drawPointer() {
      if (!this.scene || (!this.scene.segments && !this.scene.layers.length)) return;
      const { scene, pointer } = this;
      for (const picture of [this.photo, this.map]) picture.mark(pointer);
      this.rows.mark(pointer);
      if (scene.layers.length) this.numbers.here.textContent = pointer ? this.valueHere() : "–";
      if (!scene.segments) return;
      const found = pointer && scene.segments.at(pointer);
      this.classes.mark(pointer, pointer && (found ? sentence(found) : "cut off"));
      this.legend.mark(found);
    }

    valueHere() {
      const { scene, state, pointer } = this;
      const layer = scene.layers[state.layer];
      const [height, width] = scene.payload.geometry.original;
      const y = Math.min(Math.max(Math.floor(pointer[0] * height), 0), height - 1);
      const x = Math.min(Math.max(Math.floor(pointer[1] * width), 0), width - 1);
      const map = layer.map(state.token, vtviz.headOf(layer, state));
      const value = vtviz.valueAt(map, layer, scene.payload.geometry, y, x, state.align);
      return Number.isNaN(value) ? "cut off" : format(value);
    }

    savePanel() {
      if (!this.scene?.layers.length && !this.scene?.segments) return;
      vtviz.panel(this.scene, this.state).toBlob((blob) => vtviz.download(blob, "vtviz_panel.png"), "image/png");
    }
  }

  /** "road, 93 %", and what an uploaded mask says. */
  function sentence({ label, probability, given }) {
    const text = `${label.name}, ${Math.round(100 * probability)} %`;
    return given ? `${text} · mask: ${given.name}` : text;
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
