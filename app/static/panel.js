/* The panel for download: what the page shows of a photo, as one picture on white (Figures 5 and 6). */
(function () {
  "use strict";
  const vtviz = window.vtviz;
  const FONT = "'Source Sans Pro', system-ui, sans-serif";
  const INK = "#18181b";
  const [CELL, GAP, HEAD, LINE, EDGE] = [240, 10, 32, 26, 36];

  /** The photo (and its classes), then a row of tokens for each layer, and one colour bar, on a canvas of its own. */
  function panel(scene, options) {
    const columns = Math.min(16, Math.max(1, ...scene.layers.map((layer) => layer.tokens)));
    const cell = vtviz.fit(scene.payload.geometry, CELL, CELL);
    const foot = scene.segments ? LINE : 0;
    const wide = Math.max(columns * (cell[0] + GAP) - GAP, 900 + (scene.segments ? cell[0] + GAP : 0));
    const rows = scene.layers.map((layer) => Math.ceil(layer.tokens / columns));
    const tokens = rows.reduce((sum, n) => sum + HEAD + n * (cell[1] + foot + GAP) + 14, 0);
    const left = EDGE + cell[0] + 24 + (scene.segments ? cell[0] + GAP : 0);
    const canvas = document.createElement("canvas");
    canvas.width = wide + 2 * EDGE;
    const top = EDGE + Math.max(cell[1], caption(canvas.getContext("2d"), scene, options, left, EDGE)) + 28;
    canvas.height = top + tokens - 24 + EDGE;
    const pen = canvas.getContext("2d");
    pen.fillStyle = "#ffffff";
    pen.fillRect(0, 0, canvas.width, canvas.height);
    pen.drawImage(scene.photo, EDGE, EDGE, ...cell);
    const tile = document.createElement("canvas");
    [tile.width, tile.height] = cell;
    if (scene.segments) {
      vtviz.classOverlay(tile.getContext("2d"), ...cell, scene, options);
      pen.drawImage(tile, EDGE + cell[0] + GAP, EDGE);
    }
    caption(pen, scene, options, left, EDGE);
    let y = top;
    scene.layers.forEach((layer, i) => {
      pen.font = `700 20px ${FONT}`;
      pen.fillText(vtviz.title(layer), EDGE, y + 18);
      y += HEAD;
      for (let token = 0; token < layer.tokens; token++) {
        vtviz.overlay(tile.getContext("2d"), ...cell, scene, options, layer, token);
        const x = EDGE + (token % columns) * (cell[0] + GAP);
        const at = y + Math.floor(token / columns) * (cell[1] + foot + GAP);
        pen.drawImage(tile, x, at);
        const name = vtviz.nameOf(scene, options, layer.index, token);
        if (name) entry(pen, name, name.name, x, at + cell[1] + 19);
      }
      y += rows[i] * (cell[1] + foot + GAP) + 14;
    });
    return canvas;
  }

  /** Model, prediction or classes, and the colour bar; the height it takes. */
  function caption(pen, scene, options, x, y) {
    const { payload, segments } = scene;
    pen.fillStyle = INK;
    pen.font = `700 26px ${FONT}`;
    pen.fillText(payload.trained ? payload.model : `${payload.model} (NOT TRAINED)`, x, y + 20);
    pen.font = `19px ${FONT}`;
    const best = payload.prediction[0];
    const head = options.head < 0 ? "; mean of the heads" : `; head ${options.head}`;
    const heads = scene.layers.some((layer) => layer.heads > 1) ? head : "";
    const lines = scene.layers.length ? [`Where each token looks, × uniform (1× = looks everywhere alike)${heads}`] : [];
    if (best) lines.unshift(`Prediction: ${best.label}, ${(100 * best.probability).toFixed(1)} %`);
    lines.forEach((text, i) => pen.fillText(text, x, y + 20 + (i + 1) * LINE));
    let under = y + 20 + (lines.length + 1) * LINE;
    if (scene.layers.length) {
      scale(pen, scene, options, x, under);
      under += 38 + LINE;
    }
    return (segments ? legend(pen, segments, options, x, under, pen.canvas.width - EDGE) : under + 20) - y;
  }

  function scale(pen, scene, options, x, y) {
    vtviz.bar(pen, x, y, 420, 16, scene.luts[options.colormap]);
    pen.fillStyle = INK;
    if (options.scale === "map") {
      pen.fillText("each map from its least to its greatest value", x, y + 38);
      return;
    }
    const [low, high] = vtviz.range(scene, options, scene.layers[0], 0);
    pen.textAlign = "center";
    for (const [value, label] of vtviz.marks(low, high)) {
      pen.fillText(label, x + (420 * (value - low)) / (high - low), y + 38);
    }
    pen.textAlign = "start";
  }

  /** The classes shown, each with its area and score, in as many lines as it takes; where they end. */
  function legend(pen, segments, options, left, y, right) {
    const { areas } = segments.sources[options.source];
    let [x, line] = [left, y + 14 + LINE];
    pen.fillText(options.source === "given" ? "Classes of the mask:" : "Predicted classes:", left, y + 14);
    for (const each of segments.present(options.source)[0]) {
      if (options.hidden.includes(each.index)) continue;
      const score = typeof each.iou === "number" ? `, IoU ${each.iou.toFixed(2)}` : "";
      const text = `${each.name} ${vtviz.percent(areas[each.index])}${score}`;
      const wide = 22 + pen.measureText(text).width + 20;
      if (x > left && x + wide > right) [x, line] = [left, line + LINE];
      entry(pen, each, text, x, line);
      x += wide;
    }
    return line + 10;
  }

  /** A class's colour and a text beside it, on the baseline y. */
  function entry(pen, { colour }, text, x, y) {
    pen.fillStyle = INK;
    pen.fillRect(x, y - 14, 16, 16); // a rim, for a class may be white
    pen.fillStyle = `rgb(${colour.join(" ")})`;
    pen.fillRect(x + 1, y - 13, 14, 14);
    pen.fillStyle = INK;
    pen.font = `19px ${FONT}`;
    pen.fillText(text, x + 22, y);
  }

  Object.assign(vtviz, { panel });
})();
