/* The view "Does it matter?": each token of the chosen layer changed, beside the same token gathered elsewhere. */
(function () {
  "use strict";
  const vtviz = window.vtviz;
  const { make, help, labelled, select } = vtviz;

  const MODES = [
    ["absent", "taken out", "The token is taken out: no softmax reads it from there on, and no filter is made of it."],
    ["random", "random map", "Baseline: the token is gathered with its own map, the cells shuffled. It looks as selectively, but elsewhere."],
    ["gaussian", "centred map", "Baseline: the token is gathered with a soft spot on the middle. All that it knows is that photos have a middle."],
  ];
  /** Measure: caption, unit, and the change of a token (index) by a mode's effects. */
  const MEASURES = {
    probability: ["Probability", "percentage points", (effects, i) => scale(effects.probability[i])],
    logit: ["Logit", "logit", (effects, i) => effects.logit[i]],
    changed: ["Changed pixels", "% of the photo", (effects, i) => scale(effects.changed[i])],
    area: ["Area of a class", "percentage points of the photo", (effects, i, label) => scale(effects.areas[i]?.[label])],
    iou: ["IoU of a class", "IoU × 100", (effects, i, label) => scale(effects.iou?.[i]?.[label])],
  };
  const TARGET_HELP = "Whose probability is watched. The most probable class at first.";

  class AblationView {
    constructor(set, trigger) {
      this.set = set;
      this.lead = make("p", { class: "vtx-lead" });
      this.job = new vtviz.Job("Try every token", "analyse", trigger, (result) => this.receive(result), () => this.sync());
      this.job.button.onclick = () => this.ask();
      this.target = select([], "", () => (this.job.id || this.scene.results.ablation) && this.ask());
      this.field = labelled("Class", this.target, help("class", TARGET_HELP));
      this.told = make("p", { class: "vtx-told", "aria-live": "polite" });
      this.key = make("ul", { class: "vtx-key" },
        ...MODES.map(([mode, text, about]) => make("li", { "data-mode": mode }, make("i", {}), text, help(text, about))));
      this.unit = make("span", { class: "vtx-note" });
      this.list = make("div", { class: "vtx-effects", role: "list" });
      this.body = make("div", {}, this.told, this.key, this.unit, this.list);
      this.element = make("div", {}, this.lead, make("div", { class: "vtx-ask" }, this.field, this.job.element), this.body);
    }

    load(scene) {
      if (!this.same(scene)) this.job.cancel();
      this.scene = scene;
      this.rows = [];
      this.built = null; // an example's payload has the same id when it comes back
      this.kinds = scene.payload.lineage?.tokens;
      this.lead.textContent =
        "A map shows where a token looks, not whether that matters. Here each token is taken out in turn, and the model answers again; "
        + "beside it, the same token gathered from elsewhere. Only what exceeds these two baselines is due to where it looks.";
      this.field.hidden = Boolean(scene.segments);
      vtviz.offerClasses(this.target, scene.payload);
    }

    same(scene) {
      return this.scene?.payload.id === scene.payload.id;
    }

    ask() {
      this.job.ask({ kind: "ablation", label: this.scene.segments ? null : Number(this.target.value) });
    }

    receive(result) {
      this.scene.results.ablation = result;
      this.set({});
    }

    /** Let the control name the class whose result is shown, where another was asked for and will not come. */
    sync() {
      vtviz.chooseClass(this.target, this.scene?.results.ablation);
    }

    draw(scene, state) {
      const found = scene.results.ablation;
      this.body.hidden = !found;
      if (!found) return;
      const { layer } = state;
      const held = this.list.contains(document.activeElement);
      if (this.built !== `${scene.payload.id} ${layer}`) this.build(scene, layer);
      this.built = `${scene.payload.id} ${layer}`;
      const measure = vtviz.measureOf(scene, state);
      const [caption, unit, change] = MEASURES[measure];
      const values = found.layers.map(({ effects }, i) =>
        this.kinds[i].map((_, slot) => MODES.map(([mode]) => change(effects[mode], slot, state.label) ?? null)));
      const top = Math.max(1e-9, ...values.flat(2).filter((value) => value !== null).map(Math.abs));
      const signed = values.flat(2).some((value) => value !== null && value < 0);
      this.list.classList.toggle("vtx-signed", signed);
      this.unit.textContent = `${caption}, ${measure === "changed" ? "" : "change "}in ${unit}. Layer ${layer}, on one scale with all layers.`;
      this.told.textContent = this.tell(scene, found, layer, values[layer], measure);
      this.rows.forEach((row, slot) => this.drawRow(row, values[layer][slot], { top, signed, found, layer, slot, state, scene }));
      const order = state.order === "sorted"
        ? this.rows.map((_, i) => i).sort((a, b) => Math.abs(values[layer][b][0] ?? 0) - Math.abs(values[layer][a][0] ?? 0))
        : this.rows.map((_, i) => i);
      vtviz.arrange(this.list, order.map((i) => this.rows[i].element));
      if (held && !this.list.contains(document.activeElement)) { // arrows walk on from the chosen token
        (this.rows.find((row) => row.button.getAttribute("aria-current") === "true") ?? this.rows[0]).button.focus();
      }
    }

    build(scene, layer) {
      this.rows = this.kinds[layer].map((token) => {
        const [from, map] = token.gathered;
        const thumb = new vtviz.Thumb(from, map);
        const bars = MODES.map(([mode]) => {
          const fill = make("i", {});
          const text = make("span", {});
          return { fill, text, element: make("div", { class: "vtx-effect", "data-mode": mode }, fill, text) };
        });
        const flip = make("span", { class: "vtx-flip" });
        const button = make(
          "button",
          { type: "button", class: "vtx-node", onclick: () => this.set({ layer: from, token: map }) },
          thumb.canvas, make("b", {}, String(map)), token.kind === "kept" ? make("small", {}, "kept") : null,
        );
        const element = make("div", { class: "vtx-change", role: "listitem" }, button,
          make("div", {}, ...bars.map((bar) => bar.element)), flip);
        return { token, thumb, bars, flip, button, element };
      });
      this.list.replaceChildren(...this.rows.map((row) => row.element));
    }

    drawRow(row, values, { top, signed, found, layer, slot, state, scene }) {
      row.thumb.draw(scene, state, 56);
      const [from, map] = row.token.gathered;
      row.button.setAttribute("aria-current", String(from === state.layer && map === state.token));
      values.forEach((value, i) => {
        const { fill, text, element } = row.bars[i];
        element.classList.toggle("vtx-less", value !== null && value < 0);
        fill.style.width = value === null ? "0" : `calc(${(Math.abs(value) / top).toFixed(4)} * var(--span))`;
        text.textContent = value === null ? (i ? "does not apply" : "–") : signs(value, signed);
      });
      const kept = row.token.kind === "kept" ? ", kept" : "";
      const said = MODES.map(([, name], i) => `${name} ${values[i] === null ? "does not apply" : signs(values[i], signed)}`);
      row.button.setAttribute("aria-label", `Token ${map} of layer ${from}${kept}: ${said.join(", ")}`);
      const flips = MODES.flatMap(([mode, name]) => {
        const best = found.layers[layer].effects[mode].top1?.[slot];
        return typeof best === "number" && best !== found.top1.index ? [`${name}: ${scene.payload.classes[best]}`] : [];
      });
      row.flip.textContent = flips.length ? `→ ${flips.join("; ")}` : "";
      row.flip.title = flips.length ? "The most probable class would be another" : "";
    }

    /** The finding in a sentence. */
    tell(scene, found, layer, values, measure) {
      const absent = values.map((each) => Math.abs(each[0] ?? 0));
      const most = absent.indexOf(Math.max(...absent));
      const token = this.kinds[layer][most].gathered;
      const name = `token ${token[1]}${token[0] === layer ? "" : `, kept from layer ${token[0]},`}`;
      const flips = this.kinds[layer].filter((_, i) => {
        const best = found.layers[layer].effects.absent.top1?.[i];
        return typeof best === "number" && best !== found.top1.index;
      }).length;
      const elsewhere = values.filter((each, i) => each[1] !== null && Math.max(Math.abs(each[1]), Math.abs(each[2] ?? 0)) >= absent[i]).length;
      const there = values.filter((each) => each[1] !== null).length;
      const before = found.target ? `${found.target.label} has ${(100 * found.target.probability).toFixed(1)} %. ` : "";
      const changed = found.target ? ` ${flips ? `Taking out ${flips === 1 ? "one token" : `${flips} tokens`} of this layer changes the first guess.` : "No single token of this layer changes the first guess."}` : "";
      return `${before}In layer ${layer}, taking out ${name} changes most: ${signs(values[most][0] ?? 0, true)} ${MEASURES[measure][1]}.${changed} `
        + `For ${elsewhere} of the ${there} tokens gathered here, a baseline changes as much or more.`;
    }
  }

  /** Let a control offer a classifier's classes, the most probable ones first. */
  function offerClasses(control, { classes, prediction }) {
    const likely = prediction.map((each) => each.index);
    const order = [...likely, ...classes.map((_, i) => i).filter((i) => !likely.includes(i))];
    control.replaceChildren(...order.map((i) => make("option", { value: i }, classes[i])));
  }

  /** Let a control name the class of a result; without one, its first. */
  function chooseClass(control, result) {
    if (control.options.length) control.value = String(result?.target?.index ?? control.options[0].value);
  }

  /** The measure that is shown: the one chosen, where this model has it. */
  function measureOf(scene, { measure }) {
    const there = measures(scene).map(([name]) => name);
    return there.includes(measure) ? measure : there[0];
  }

  /** [name, caption] of the measures that the scene has. */
  function measures({ segments }) {
    const names = segments ? ["changed", "area", ...(segments.sources.given ? ["iou"] : [])] : ["probability", "logit"];
    return names.map((name) => [name, MEASURES[name][0]]);
  }

  function scale(share) {
    return typeof share === "number" ? 100 * share : null;
  }

  function signs(value, signed) {
    const size = Math.abs(value);
    const text = size >= 10 ? size.toFixed(0) : size.toFixed(size >= 1 ? 1 : 2);
    if (!Number(text)) return "0";
    return `${value < 0 ? "−" : signed ? "+" : ""}${text}`;
  }

  Object.assign(vtviz, { AblationView, measures, measureOf, offerClasses, chooseClass });
})();
