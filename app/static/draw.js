/* Drawing: one overlay, the colour bar, and the panel for download. Everything comes from a scene
 * { payload, photo, layers, luts } and options { colormap, scale, fixed, opacity, align, head }.
 */
(function () {
  "use strict";
  const vtviz = window.vtviz;
  const scratch = document.createElement("canvas");
  const FONT = "'Source Sans Pro', system-ui, sans-serif";
  const INK = "#18181b";

  /** The colour range [low, high] in times uniform for one map; the same rules as vtviz.render's. */
  function range(scene, options, layer, token) {
    if (options.scale === "fixed") return [0, options.fixed];
    if (options.scale === "map") {
      const map = layer.map(token, headOf(layer, options));
      const low = map.reduce((least, value) => Math.min(least, value));
      const high = map.reduce((most, value) => Math.max(most, value));
      return high > low ? [low, high] : [0, Math.max(2, high)];
    }
    // the median peak: one token that looks at a single cell must not leave all others blue; at least 2, so that maps
    // close to uniform look uniform
    const peaks = scene.layers.flatMap((each) => each.peaks(headOf(each, options))).sort((a, b) => a - b);
    const middle = (peaks[(peaks.length - 1) >> 1] + peaks[peaks.length >> 1]) / 2;
    return [0, Math.max(2, middle)];
  }

  /** The chosen head where the layer has it, else the heads' mean (a static tokenizer has a single head). */
  function headOf(layer, options) {
    return options.head < layer.heads ? options.head : -1;
  }

  /** Photo with one token's map over it, filling width x height device pixels of `context`. */
  function overlay(context, width, height, scene, options, layer, token) {
    const geometry = scene.payload.geometry;
    context.imageSmoothingQuality = "high";
    context.clearRect(0, 0, width, height);
    context.drawImage(scene.photo, 0, 0, width, height);
    const map = layer.map(token, headOf(layer, options));
    const [low, high] = range(scene, options, layer, token);
    scratch.width = width;
    scratch.height = height;
    const pen = scratch.getContext("2d", { willReadFrequently: true });
    const image = pen.createImageData(width, height);
    const values = vtviz.resample(map, layer, geometry, height, width, options.align);
    vtviz.colorize(values, scene.luts[options.colormap], low, high, image.data);
    pen.putImageData(image, 0, 0);
    context.globalAlpha = options.opacity;
    context.drawImage(scratch, 0, 0);
    context.globalAlpha = 1;
    veil(context, width, height, geometry);
  }

  /** Dim what the crop cut off and outline what the model saw. */
  function veil(context, width, height, geometry) {
    const [gh, gw] = geometry.resized;
    const [top, left] = geometry.offset;
    const [ih, iw] = geometry.input;
    if (ih === gh && iw === gw) return;
    const box = [(left / gw) * width, (top / gh) * height, (iw / gw) * width, (ih / gh) * height];
    context.save();
    context.beginPath();
    context.rect(0, 0, width, height);
    context.rect(...box);
    context.fillStyle = "rgba(0, 0, 0, 0.65)";
    context.fill("evenodd");
    context.setLineDash([6, 4]);
    context.lineWidth = Math.max(1, width / 500);
    context.strokeStyle = "rgba(255, 255, 255, 0.9)";
    context.strokeRect(...box);
    context.restore();
  }

  /** A colour bar, low to high. */
  function bar(context, x, y, width, height, lut) {
    for (let i = 0; i < width; i++) {
      const k = 3 * Math.round((255 * i) / Math.max(1, width - 1));
      context.fillStyle = `rgb(${lut[k]}, ${lut[k + 1]}, ${lut[k + 2]})`;
      context.fillRect(x + i, y, 1, height);
    }
  }

  /** Values to write on a colour bar: the ends, 1 (uniform), and round numbers that leave room. */
  function ticks(low, high) {
    const span = high - low;
    if (!(span > 0)) return [low];
    const rough = span / 5;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough);
    const wanted = [high, 1, low];
    for (let v = Math.ceil(low / step) * step; v < high; v += step) wanted.push(v);
    const kept = [];
    for (const value of wanted) {
      const crowded = kept.some((other) => Math.abs(other - value) < 0.085 * span);
      if (value >= low && value <= high && !crowded) kept.push(value);
    }
    return kept.sort((a, b) => a - b);
  }

  function format(value) {
    if (!Number.isFinite(value)) return "–";
    return `${value >= 99.5 ? Math.round(value) : value >= 9.95 ? value.toFixed(1) : value.toFixed(2)}×`;
  }

  function tickLabel(value) {
    return `${Number(value >= 10 ? value.toFixed(0) : value.toFixed(1))}×`;
  }

  /** Ticks with their labels; the end is marked "+", for higher values take the last colour too. */
  function marks(low, high) {
    const inner = ticks(low, high).filter((value) => high - value > 0.18 * (high - low));
    return [...inner.map((value) => [value, tickLabel(value)]), [high, `${tickLabel(high)}+`]];
  }

  /** The largest width x height inside a box with the photo's aspect ratio (at least 1 pixel a side). */
  function fit(geometry, boxWidth, boxHeight) {
    const [h, w] = geometry.original;
    const factor = Math.min(boxWidth / w, boxHeight / h);
    return [Math.max(1, Math.round(w * factor)), Math.max(1, Math.round(h * factor))];
  }

  /** A Figure 6 panel on its own canvas: the photo, then a row of tokens for each layer, and one colour bar. */
  function panel(scene, options) {
    const columns = Math.min(16, Math.max(...scene.layers.map((layer) => layer.tokens)));
    const cell = fit(scene.payload.geometry, 240, 240);
    const [gap, head, line, edge] = [10, 32, 26, 36];
    const wide = Math.max(columns * (cell[0] + gap) - gap, 900);
    const rows = scene.layers.map((layer) => Math.ceil(layer.tokens / columns));
    const high = rows.reduce((sum, n) => sum + head + n * (cell[1] + gap) + 14, -24);
    const top = edge + Math.max(cell[1], 160) + 28;
    const canvas = document.createElement("canvas");
    canvas.width = wide + 2 * edge;
    canvas.height = top + high + edge;
    const pen = canvas.getContext("2d");
    pen.fillStyle = "#ffffff";
    pen.fillRect(0, 0, canvas.width, canvas.height);
    pen.drawImage(scene.photo, edge, edge, ...cell);
    caption(pen, scene, options, edge + cell[0] + 24, edge, line);
    const tile = document.createElement("canvas");
    [tile.width, tile.height] = cell;
    let y = top;
    scene.layers.forEach((layer, i) => {
      pen.font = `700 20px ${FONT}`;
      pen.fillText(title(layer), edge, y + 18);
      y += head;
      for (let token = 0; token < layer.tokens; token++) {
        overlay(tile.getContext("2d"), ...cell, scene, options, layer, token);
        const column = token % columns;
        pen.drawImage(tile, edge + column * (cell[0] + gap), y + Math.floor(token / columns) * (cell[1] + gap));
      }
      y += rows[i] * (cell[1] + gap) + 14;
    });
    return canvas;
  }

  function caption(pen, scene, options, x, y, line) {
    const { payload } = scene;
    pen.fillStyle = INK;
    pen.font = `700 26px ${FONT}`;
    pen.fillText(payload.trained ? payload.model : `${payload.model} (NOT TRAINED)`, x, y + 20);
    pen.font = `19px ${FONT}`;
    const best = payload.prediction[0];
    const head = options.head < 0 ? "mean of the heads" : `head ${options.head}`;
    const lines = [`Where each token looks, × uniform (1× = looks everywhere alike); ${head}`];
    if (best) lines.unshift(`Prediction: ${best.label}, ${(100 * best.probability).toFixed(1)} %`);
    lines.forEach((text, i) => pen.fillText(text, x, y + 20 + (i + 1) * line));
    const under = y + 20 + (lines.length + 1) * line;
    bar(pen, x, under, 420, 16, scene.luts[options.colormap]);
    pen.fillStyle = INK;
    if (options.scale === "map") {
      pen.fillText("each map from its least to its greatest value", x, under + 38);
      return;
    }
    const [low, high] = range(scene, options, scene.layers[0], 0);
    pen.textAlign = "center";
    for (const [value, label] of marks(low, high)) {
      pen.fillText(label, x + (420 * (value - low)) / (high - low), under + 38);
    }
    pen.textAlign = "start";
  }

  /** "Layer 1: 8 new tokens, 8 kept". Layers and tokens are numbered as in the Python API. */
  function title(layer) {
    const count = `${layer.tokens}${layer.kept ? " new" : ""} token${layer.tokens === 1 ? "" : "s"}`;
    return `Layer ${layer.index}: ${count}${layer.kept ? `, ${layer.kept} kept` : ""}`;
  }

  Object.assign(vtviz, { range, headOf, overlay, bar, ticks, marks, format, tickLabel, fit, panel, title });
})();
