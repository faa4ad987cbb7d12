/* A place in the photo, asked both ways, as vtviz.query does: which tokens read it, and which it reads. No DOM. */
(function () {
  "use strict";
  const vtviz = window.vtviz;

  /** How much each cell along an axis has of samples [from, to), their mean; null where the model saw none of them. */
  function weights({ low, high, mix, inside }, from, to, cells) {
    const out = new Float32Array(cells);
    let count = 0;
    for (let i = from; i < to; i++) {
      if (!inside[i]) continue;
      out[low[i]] += 1 - mix[i];
      out[high[i]] += mix[i];
      count += 1;
    }
    return count ? out.map((value) => value / count) : null;
  }

  /** Ask a layer about pixels [x0, y0, x1, y1) of the original image.
   *
   * { readBy, reads }, both in times uniform: how much each new token of the layer reads them (by the tokenizer's `head`,
   * -1 = the heads' mean), and how much they read each of the L tokens (null for a layer without projector). null where a
   * crop cut them all off.
   */
  function query(layer, geometry, [x0, y0, x1, y1], align, head) {
    const [ys, xs] = vtviz.axes(layer, geometry, ...geometry.original, align);
    const down = weights(ys, y0, y1, layer.h);
    const across = weights(xs, x0, x1, layer.w);
    if (!down || !across) return null;
    const mean = (values, start) => {
      let sum = 0;
      for (let y = 0; y < layer.h; y++) {
        for (let x = 0; x < layer.w; x++) sum += down[y] * across[x] * values[start + y * layer.w + x];
      }
      return sum;
    };
    const readBy = Array.from({ length: layer.tokens }, (_, token) => mean(layer.map(token, head), 0));
    const [slots] = layer.projector?.shape ?? [0];
    const read = (slot) => slots * mean(layer.projector.values, slot * layer.h * layer.w);
    return { readBy, reads: layer.projector && Array.from({ length: slots }, (_, slot) => read(slot)) };
  }

  Object.assign(vtviz, { query });
})();
