/* The display options: what there is, in plain words, and the bar of controls. None of them asks the server. */
(function () {
  "use strict";
  const vtviz = window.vtviz;
  const { make, help, labelled, select } = vtviz;

  const DEFAULTS = {
    colormap: "jet", scale: "shared", fixed: 10, opacity: 0.5, align: "receptive_field", head: -1, // of tokens
    outlines: true, source: "predicted", cells: "mass", // of classes
    reader: -1, order: "grid", measure: "probability", label: 0, // of views
  };

  const SCALES = [
    ["shared", "Shared by all"],
    ["map", "Each its own"],
    ["fixed", "Fixed, up to …"],
  ];
  const ALIGNMENTS = [
    ["receptive_field", "Receptive field"],
    ["resize", "Plain resize"],
  ];

  const SOURCES = [
    ["predicted", "Prediction"],
    ["given", "Mask"],
  ];

  const ORDERS = [
    ["grid", "As numbered"],
    ["sorted", "Largest first"],
  ];

  const HELP = {
    colormap:
      "Jet is the paper's: red high, blue low. The others grow evenly brighter, which reads more truly and suits " +
      "colour-blind eyes.",
    opacity: "How strongly the colours cover the photo.",
    scale:
      "Shared: one scale for every token and layer, so that colours can be compared. Each its own: from that map's " +
      "least value to its greatest; faint maps show, but so does noise. Fixed: you set the top, to compare photos.",
    align:
      "Receptive field: each cell is drawn where the network sees it. Plain resize is what most tools draw, half a " +
      "cell too far down and right.",
    head:
      "A dynamic tokenizer looks with several heads at once; Mean is their average. A static one has a single head.",
    outlines: "A line in each class's colour along its borders; with opacity 0 the lines stand alone on the photo.",
    reader: "The transformer reads tokens with several heads at once; Mean is their average.",
    order: "The tokens by their numbers, or those with the longest bars first.",
    measure: "What is compared before and after: each bar is the change.",
    label: "The class whose area or IoU is compared.",
    source: "Whose classes are drawn, listed and set against the tokens: the model's, or those of the mask you gave.",
  };

  /** Controls for `options`; every change calls `onchange(patch)`. `sync(options, scene)` shows the current values
   * and those controls that the scene has a use for. */
  function optionsBar(colormaps, options, onchange) {
    const pick = (key, choices) => select(choices, options[key], (value) => onchange({ [key]: value }));
    const names = colormaps.map((name) => [name, name[0].toUpperCase() + name.slice(1)]);
    const colormap = pick("colormap", names);
    const scale = pick("scale", SCALES);
    const align = pick("align", ALIGNMENTS);
    const head = select([["-1", "Mean"]], "-1", (value) => onchange({ head: Number(value) }));
    const top = make("input", {
      type: "number", min: 0.5, max: 1000, step: 0.5, class: "vtx-top", "aria-label": "Top of the fixed scale, × uniform",
      oninput: () => top.valueAsNumber > 0 && onchange({ fixed: top.valueAsNumber }),
      onblur: () => onchange({}), // what is no scale is not left standing
    });
    const opacity = make("input", {
      type: "range", min: 0, max: 1, step: 0.01,
      oninput: () => onchange({ opacity: opacity.valueAsNumber }),
    });
    const field = (caption, control, key) => labelled(caption, control, help(caption.toLowerCase(), HELP[key]));
    const outlines = make("input", { type: "checkbox", onchange: () => onchange({ outlines: outlines.checked }) });
    const source = pick("source", SOURCES);
    const scaleField = field("Scale", scale, "scale");
    scaleField.append(top);
    const heads = field("Heads", head, "head");
    const ofTokens = [field("Colours", colormap, "colormap"), scaleField, field("Alignment", align, "align"), heads];
    const ofClasses = field("Outlines", outlines, "outlines");
    const ofMask = field("Classes from", source, "source");
    const reader = select([["-1", "Mean"]], "-1", (value) => onchange({ reader: Number(value) }));
    const readers = field("Attention", reader, "reader");
    const order = pick("order", ORDERS);
    const orders = field("Order", order, "order");
    const measure = select([], "", (value) => onchange({ measure: value }));
    const measured = field("Measure", measure, "measure");
    const label = select([], "", (value) => onchange({ label: Number(value) }));
    const labels = field("Of class", label, "label");
    const element = make(
      "div",
      { class: "vtx-options", role: "group", "aria-label": "Display options" },
      ofTokens[0],
      field("Opacity", opacity, "opacity"),
      ...ofTokens.slice(1),
      ofClasses,
      ofMask,
      readers,
      measured,
      labels,
      orders,
    );
    let offered = null;
    const sync = (values, scene, view) => {
      const { layers, segments } = scene;
      for (const each of ofTokens) each.hidden = !layers.length;
      ofClasses.hidden = !segments;
      ofMask.hidden = !segments?.sources.given;
      outlines.checked = values.outlines;
      source.value = values.source;
      const count = Math.max(1, ...layers.map((layer) => layer.heads));
      offerHeads(head, count);
      const readerCount = Math.max(0, ...layers.map((layer) => layer.attention?.shape[0] ?? 0));
      offerHeads(reader, readerCount);
      readers.hidden = view !== "lineage" || readerCount < 2;
      orders.hidden = !["pixel", "ablation"].includes(view);
      const chosen = layers.length && vtviz.measureOf(scene, values);
      measured.hidden = view !== "ablation";
      labels.hidden = measured.hidden || !["area", "iou"].includes(chosen);
      if (offered !== scene) {
        offer(measure, vtviz.measures(scene));
        const there = segments ? Object.keys(segments.sources).flatMap((source) => segments.present(source)[0]) : [];
        offer(label, [...new Set(there)].map((each) => [each.index, each.name]));
      }
      offered = scene;
      if (count === 1) heads.hidden = true;
      Object.assign(colormap, { value: values.colormap });
      Object.assign(scale, { value: values.scale });
      Object.assign(align, { value: values.align });
      Object.assign(head, { value: String(values.head) });
      Object.assign(reader, { value: String(values.reader) });
      Object.assign(order, { value: values.order });
      Object.assign(measure, { value: chosen });
      Object.assign(label, { value: String(values.label) });
      if (document.activeElement !== top) top.value = values.fixed;
      opacity.value = values.opacity;
      opacity.setAttribute("aria-valuetext", `${Math.round(100 * values.opacity)} %`);
      scaleField.classList.toggle("vtx-fixed", values.scale === "fixed");
    };
    return { element, sync };
  }

  function offer(control, choices) {
    control.replaceChildren(...choices.map(([value, text]) => make("option", { value }, text)));
  }

  /** Let a control offer the mean and each of `count` heads. */
  function offerHeads(control, count) {
    if (control.options.length === count + 1) return;
    offer(control, [[-1, "Mean"], ...Array.from({ length: count }, (_, i) => [i, `Head ${i}`])]);
  }

  Object.assign(vtviz, { DEFAULTS, optionsBar });
})();
