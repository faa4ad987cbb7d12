/* Drawing: the overlays of tokens and of classes, and the colour bar. Everything comes from a scene
 * { payload, photo, layers, segments, luts } and options { colormap, scale, fixed, opacity, align, head } for tokens,
 * { opacity, outlines, source, hidden, lit } for classes.
 */
(function () {
  "use strict";
  const vtviz = window.vtviz;
  const scratch = document.createElement("canvas");

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
    const map = layer.map(token, headOf(layer, options));
    const [low, high] = range(scene, options, layer, token);
    const values = vtviz.resample(map, layer, geometry, height, width, options.align);
    blend(context, width, height, scene, options.opacity, (rgba) =>
      vtviz.colorize(values, scene.luts[options.colormap], low, high, rgba),
    );
  }

  /** Photo with the classes over it, borders crisp. An outline is a CSS pixel thick, on either side of a border. */
  function classOverlay(context, width, height, scene, options) {
    const { classes, sources } = scene.segments;
    const line = options.outlines ? pixelRatio() : 0;
    blend(context, width, height, scene, 1, (rgba) =>
      vtviz.paint(sources[options.source].labels, classes, options, width, height, line, rgba),
    );
  }

  /** The photo in light grey, so that the colours are seen on it, and over it what `fill(rgba)` paints. */
  function signedOverlay(context, width, height, photo, geometry, fill) {
    blend(context, width, height, { photo, payload: { geometry } }, 1, fill, "grayscale(1) contrast(0.6) brightness(1.35)");
  }

  /** The photo, seen through a `filter`, and over it what `fill(rgba)` paints. */
  function blend(context, width, height, scene, opacity, fill, filter = "none") {
    context.imageSmoothingQuality = "high";
    context.clearRect(0, 0, width, height);
    context.filter = filter;
    context.drawImage(scene.photo, 0, 0, width, height);
    context.filter = "none";
    scratch.width = width;
    scratch.height = height;
    const pen = scratch.getContext("2d", { willReadFrequently: true });
    const image = pen.createImageData(width, height);
    fill(image.data);
    pen.putImageData(image, 0, 0);
    context.globalAlpha = opacity;
    context.drawImage(scratch, 0, 0);
    context.globalAlpha = 1;
    veil(context, width, height, scene.payload.geometry);
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

  /** Values to write on a colour bar: the ends, 1 (uniform), and round numbers that leave room: a share of the bar. */
  function ticks(low, high, room = 0.085) {
    const span = high - low;
    if (!(span > 0)) return [low];
    const rough = span / 5;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough);
    const wanted = [high, 1, low];
    for (let v = Math.ceil(low / step) * step; v < high; v += step) wanted.push(v);
    const kept = [];
    for (const value of wanted) {
      const crowded = kept.some((other) => Math.abs(other - value) < room * span);
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
  function marks(low, high, room) {
    const inner = ticks(low, high, room).filter((value) => high - value > Math.max(0.18, room ?? 0) * (high - low));
    return [...inner.map((value) => [value, tickLabel(value)]), [high, `${tickLabel(high)}+`]];
  }

  /** Device pixels per CSS pixel, a whole number; more than 2 are not seen. */
  function pixelRatio() {
    return Math.min(Math.max(Math.round(window.devicePixelRatio || 1), 1), 2);
  }

  /** Size a canvas in CSS pixels and give back its size in device pixels. */
  function resize(canvas, width, height) {
    const ratio = Math.min(window.devicePixelRatio || 1, 2);
    canvas.style.width = `${width}px`;
    canvas.style.height = `${height}px`;
    canvas.width = Math.max(1, Math.round(width * ratio));
    canvas.height = Math.max(1, Math.round(height * ratio));
    return [canvas.width, canvas.height];
  }

  /** Put an absolutely placed element where the pointer [y, x] is on a canvas; none hides it. */
  function place(element, canvas, pointer) {
    element.hidden = !pointer;
    if (!pointer) return;
    element.style.top = `${canvas.offsetTop + pointer[0] * canvas.offsetHeight}px`;
    element.style.left = `${canvas.offsetLeft + pointer[1] * canvas.offsetWidth}px`;
  }

  /** The largest width x height inside a box with the photo's aspect ratio (at least 1 pixel a side). */
  function fit(geometry, boxWidth, boxHeight) {
    const [h, w] = geometry.original;
    const factor = Math.min(boxWidth / w, boxHeight / h);
    return [Math.max(1, Math.round(w * factor)), Math.max(1, Math.round(h * factor))];
  }

  /** "Layer 1: 8 new tokens, 8 kept". Layers and tokens are numbered as in the Python API. */
  function title(layer) {
    const count = `${layer.tokens}${layer.kept ? " new" : ""} token${layer.tokens === 1 ? "" : "s"}`;
    return `Layer ${layer.index}: ${count}${layer.kept ? `, ${layer.kept} kept` : ""}`;
  }

  Object.assign(vtviz, { range, headOf, overlay, classOverlay, signedOverlay, bar, ticks, marks, format, tickLabel, resize, place, fit, title });
})();
