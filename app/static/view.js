/* The canvas component: a photo with the chosen token over it, and a row of views of its tokens beside it (views.js). A
 * segmentation model's payload also brings the classes of the pixels: then photo, classes and token stand side by side,
 * with a legend and the matrix of tokens and classes.
 *
 * One TokenView per place on the page. `load(payload)` takes a new photo and its maps; `set(patch)` changes the choice
 * or an option; both end in `draw()`, at most once a frame. Its parts (pictures, legend, views) draw what they are given
 * of `scene` and `state` and call `set`.
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
    /** `linked`: whether the page's address says what is shown. */
    constructor(root, colormaps, trigger, linked = false) {
      this.luts = Object.fromEntries(Object.entries(colormaps).map(([k, text]) => [k, vtviz.decodeBytes(text)]));
      this.state = { layer: 0, token: 0, view: "tokens", place: null, hidden: [], lit: null, ...vtviz.DEFAULTS };
      this.trigger = trigger;
      this.scene = null;
      this.pointer = null;
      this.root = root;
      root.view = this;
      this.linked = linked;
      this.link = linked ? vtviz.readLink(window.location.search) : null;
      this.build();
      new ResizeObserver(() => this.schedule()).observe(root);
    }

    build() {
      const set = (patch) => this.set(patch);
      const point = (pointer) => this.point(pointer);
      this.options = vtviz.optionsBar(Object.keys(this.luts), this.state, set);
      this.warning = make("p", { class: "vtx-warning", role: "alert", hidden: true },
        "Not trained. This model has random weights: neither its maps nor its prediction mean anything.");
      const choose = (...drag) => this.choose(...drag);
      this.map = new vtviz.Picture("map", point, choose);
      this.map.canvas.tabIndex = 0;
      this.map.canvas.onblur = () => this.point(null);
      this.map.caption.setAttribute("aria-live", "polite");
      this.photo = new vtviz.Picture("photo", point, choose);
      this.classes = new vtviz.Picture("classes", point, choose);
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
      this.attribution = new vtviz.AttributionView(set, this.trigger, point);
      this.views = new vtviz.Views(set, {
        tokens: this.tokens(),
        lineage: new vtviz.LineageView(set),
        pixel: new vtviz.PixelView(set),
        ablation: new vtviz.AblationView(set, this.trigger),
        attribution: this.attribution,
      });
      this.report = new vtviz.Job("Report (ZIP)", "report", this.trigger, () => {});
      this.report.button.onclick = () => this.report.ask({ sections: this.sections() });
      this.report.button.title = "One offline page with maps, lineage and what you have computed of this photo, and its arrays";
      const files = make(
        "div",
        { class: "vtx-files" },
        make("button", { type: "button", class: "vtx-button", onclick: () => this.savePanel() }, "Panel (PNG)"),
        make("button", { type: "button", class: "vtx-button", onclick: () => this.trigger("arrays") }, "Arrays (NPZ)"),
        this.report.element,
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
      this.body = make("div", { class: "vtx-body" }, stage, this.views.element);
      this.body.onkeydown = (event) => this.walk(event);
      this.root.onclick = () => (this.link = null); // whoever chooses does not wait for it
      this.notice = make("p", { class: "vtx-notice", role: "alert", hidden: true });
      this.root.append(this.warning, this.notice, tools, this.body);
    }

    /** The view that a photo opens with: every token, and of a segmentation what each has of the classes. */
    tokens() {
      const { matrix, rows } = this;
      const element = make("div", { class: "vtx-overview" }, matrix.element, rows.element);
      const load = (scene) => {
        matrix.element.hidden = !scene.segments || !scene.layers.length;
        for (const part of scene.segments ? [matrix, rows] : [rows]) part.load(scene);
      };
      const draw = (scene, state) => {
        if (scene.layers.length) rows.draw(scene, state);
        if (scene.segments) matrix.draw(scene, state);
        };
      return { element, load, draw };
    }

    /** Arrow keys: left and right walk the tokens of a layer, up and down the layers; while Pixel is open and the photo has
     * the focus, they walk its pixels. */
    walk(event) {
      if (!this.scene?.layers.length || event.altKey || event.ctrlKey || event.metaKey) return;
      if (event.target.matches("select, input")) return; // whose own keys these are
      if (event.target === this.map.canvas && this.views.open(this.state).name === "pixel") return this.steer(event);
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

    /** Move the pointer by a pixel, with Shift by ten; Enter asks the pixel that it is on. */
    steer(event) {
      const size = this.scene.payload.geometry.original;
      const { place } = this.state;
      const start = this.pointer || !place ? vtviz.pixelAt(this.pointer ?? [0.5, 0.5], size) : [place[1], place[0]];
      const next = vtviz.pixelAfter(event, start, size);
      if (!next) return;
      event.preventDefault();
      this.point(next.map((pixel, i) => (pixel + 0.5) / size[i]));
      if (event.key === "Enter") this.set({ place: vtviz.boxBetween(this.pointer, this.pointer, size) });
    }

    /** Show a new payload (app/payload.py). The first one, and the first of another kind of model, opens at its most
     * selective token; otherwise options and the chosen token stay, where the new model has it. */
    async load(payload) {
      if (this.scene?.payload.id === payload.id) { // of a control that was set, or the example that is shown
        this.loading = null;
        return;
      }
      const photo = new Image();
      photo.src = payload.photo;
      this.loading = photo;
      const [segments] = await Promise.all([vtviz.decodeSegments(payload.segmentation), photo.decode()]);
      if (this.loading !== photo) return; // a newer one came meanwhile
      const layers = payload.layers.map((layer, i) => new vtviz.Layer(layer, i));
      if (layers.length && (!this.scene || Boolean(this.scene.segments) !== Boolean(segments))) {
        // of a VT-FPN its coarsest level, whose tokens look at things: those of the finest look at edges
        this.state.layer = segments ? layers.length - 1 : 0;
        this.state.token = layers[this.state.layer].strongest();
      }
      if (this.report.id && !this.report.heard) this.report.cancel("Another photo came before the report's turn.");
      this.report.element.hidden = !layers.length;
      const same = this.scene?.payload.model === payload.model;
      const descent = payload.lineage && new vtviz.Descent(payload.lineage);
      const photographed = this.scene?.payload.photo === payload.photo;
      this.scene = { payload, photo, layers, segments, descent, luts: this.luts, results: {} };
      this.warning.hidden = payload.trained;
      this.root.classList.toggle("vtx-plain", !layers.length);
      this.root.classList.toggle("vtx-segmented", Boolean(segments));
      const pictures = segments ? [this.photo, this.classes, ...(layers.length ? [this.map] : [])] : [this.map];
      this.pictures.replaceChildren(...pictures.map((each) => each.element));
      this.legend.element.hidden = !segments;
      if (segments) this.legend.load(this.scene);
      this.views.load(this.scene);
      this.buildGuess();
      const most = (counts) => Math.max(0, ...counts);
      const within = (chosen, count) => (count ? Math.min(chosen, count - 1) : chosen); // kept where there is none
      const several = (count) => (count > 1 ? count : 0); // of a single head there is no choice
      const layer = within(this.state.layer, layers.length);
      this.set({
        layer,
        token: within(this.state.token, layers[layer]?.tokens),
        head: within(this.state.head, several(most(layers.map((each) => each.heads)))),
        reader: within(this.state.reader, several(most(layers.map((each) => each.attention?.shape[0] ?? 0)))),
        source: segments?.sources.given ? this.state.source : "predicted",
        hidden: same ? this.state.hidden : [], // another model's classes are others
        lit: null,
        ...this.follow(layers),
        label: segments?.present("predicted")[0][0]?.index ?? 0, // the largest
        place: photographed ? this.state.place : null,
      });
    }

    /** What the link by which the page was opened chooses of a photo, once that one is shown. */
    follow(layers) {
      this.notice.hidden = true;
      if (!this.link || !vtviz.isLinked(this.scene.payload, this.link)) {
        if (this.missed) this.link = null; // the first photo is everybody's; the next one is what the link led to, or a choice
        this.missed = true;
        return {};
      }
      const { patch, line } = vtviz.followLink(this.link, { layers });
      this.link = null;
      this.notice.textContent = line;
      this.notice.hidden = !line;
      return patch;
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
      this.options.sync(state, scene, this.views.open(state).name);
      this.drawStage();
      if (scene.layers.length) this.drawBar();
      if (scene.segments) this.legend.draw(scene, state);
      this.views.draw(scene, state);
      this.drawPlace();
      this.drawPointer();
      this.say();
      this.root.dataset.ready = scene.payload.id;
    }

    /** Keep the address true, unless the link that it holds is yet to be shown. */
    say() {
      if (this.link || !this.linked) return;
      const { search, pathname, hash } = window.location;
      const text = vtviz.writeLink(search, this.scene, this.state, this.views.open(this.state).name);
      if (text !== search) window.history.replaceState(window.history.state, "", `${pathname}${text}${hash}`);
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
      const room = Math.max(0.085, 30 / width); // of a label, as a share of the bar
      const whole = state.scale === "map" ? vtviz.ticks(low, high, room).map((v) => [v, vtviz.tickLabel(v)]) : vtviz.marks(low, high, room);
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

    /** The pixels that a click or a drag on the photo chose, while Pixel is open. */
    choose(from, to, done) {
      if (this.views.open(this.state).name !== "pixel") return;
      const moved = Math.max((to[0] - from[0]) ** 2, (to[1] - from[1]) ** 2) > 0.01 ** 2; // a hand trembles
      if (!moved && !done) return;
      this.set({ place: vtviz.boxBetween(moved ? from : to, to, this.scene.payload.geometry.original) });
    }

    drawPlace() {
      const { place } = this.state;
      const open = place && this.views.open(this.state).name === "pixel";
      this.root.dataset.view = this.views.open(this.state).name;
      const [height, width] = this.scene.payload.geometry.original;
      const box = open && [place[1] / height, place[0] / width, place[3] / height, place[2] / width];
      for (const picture of [this.photo, this.classes, this.map]) picture.frame(box);
    }

    point(pointer) {
      this.pointer = pointer;
      this.drawPointer();
    }

    /** The linked pointer: a cross on each picture, a dot on every token, and what lies under it. */
    drawPointer() {
      if (!this.scene || (!this.scene.segments && !this.scene.layers.length)) return;
      const { scene, pointer } = this;
      for (const picture of [this.photo, this.map]) picture.mark(pointer, pointer && this.whereabouts());
      this.attribution.mark(pointer);
      this.rows.mark(pointer);
      if (scene.layers.length) this.numbers.here.textContent = pointer ? this.valueHere() : "–";
      if (!scene.segments) return;
      const found = pointer && scene.segments.at(pointer);
      this.classes.mark(pointer, pointer && (found ? sentence(found) : "cut off"));
      this.legend.mark(found);
    }

    /** The pixel under the pointer, while Pixel is open. */
    whereabouts() {
      if (this.views.open(this.state).name !== "pixel") return null;
      const [y, x] = vtviz.pixelAt(this.pointer, this.scene.payload.geometry.original);
      return `${x}, ${y}`;
    }

    valueHere() {
      const { scene, state, pointer } = this;
      const layer = scene.layers[state.layer];
      const [y, x] = vtviz.pixelAt(pointer, scene.payload.geometry.original);
      const map = layer.map(state.token, vtviz.headOf(layer, state));
      const value = vtviz.valueAt(map, layer, scene.payload.geometry, y, x, state.align);
      return Number.isNaN(value) ? "cut off" : format(value);
    }

    /** What has been computed of this photo: kind -> class, for a report to hold. */
    sections() {
      return Object.fromEntries(Object.entries(this.scene.results).map(([kind, { target }]) => [kind, target?.index ?? null]));
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
    const view = new TokenView(element.querySelector(".vtx"), props.colormaps, trigger, true);
    const update = () => props.value && view.load(props.value);
    watch("value", update);
    update();
  }

  Object.assign(vtviz, { TokenView, mount });
})();
