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

  /** The pixel of `count` along a side at which a share of it lies. */
  function cellOf(share, count) {
    return Math.min(Math.max(Math.floor(share * count), 0), count - 1);
  }

  /** The pixel [y, x] of a picture of `size` (height, width) at shares of it. */
  function pixelAt(shares, size) {
    return size.map((count, i) => cellOf(shares[i], count));
  }

  /** The pixels [x0, y0, x1, y1) of a box between two points, in shares of the picture. */
  function boxBetween(from, to, size) {
    const ends = [from, to].map((point) => pixelAt(point, size));
    const [top, left] = [0, 1].map((i) => Math.min(ends[0][i], ends[1][i]));
    const [bottom, right] = [0, 1].map((i) => Math.max(ends[0][i], ends[1][i]));
    return [left, top, right + 1, bottom + 1];
  }

  const STEPS = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0], Enter: [0, 0] };

  /** The pixel [y, x] that a key leads to: an arrow to the next, with Shift to the tenth; null for a key of other use. */
  function pixelAfter({ key, shiftKey }, pixel, size) {
    const step = STEPS[key];
    return step ? size.map((count, i) => Math.min(Math.max(pixel[i] + step[i] * (shiftKey ? 10 : 1), 0), count - 1)) : null;
  }

  Object.assign(vtviz, { query, cellOf, pixelAt, boxBetween, pixelAfter });
})();
