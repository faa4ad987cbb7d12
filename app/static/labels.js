/* Class maps in the browser: decoding, lookup and colouring. No controls.
 *
 * payload.segmentation (app/payload.py) holds the class of every pixel as one 8-bit PNG, and the probability of that
 * class as another. A "source" says whose classes are meant: the model's ("predicted") or an uploaded mask's ("given").
 */
(function () {
  "use strict";
  const vtviz = window.vtviz;

  /** Opacity left to the other classes while one is highlighted. */
  const FADED = 0.15;

  /** An 8-bit PNG whose colours are greys equal to its values -> { width, height, values }. */
  async function decodeBytePng(address) {
    const image = new Image();
    image.src = address;
    await image.decode();
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
    const pen = canvas.getContext("2d", { willReadFrequently: true });
    pen.drawImage(image, 0, 0);
    const rgba = pen.getImageData(0, 0, canvas.width, canvas.height).data;
    const values = Uint8Array.from({ length: rgba.length / 4 }, (_, i) => rgba[4 * i]);
    return { width: canvas.width, height: canvas.height, values };
  }

  /** A payload's segmentation with its pictures decoded; null stays null. */
  async function decodeSegments(data) {
    if (!data) return null;
    const source = async (part, areas) => ({ ...part, areas, labels: await decodeBytePng(part.labels) });
    const [predicted, confidence, given] = await Promise.all([
      source(data, data.classes.map((each) => each.area)),
      decodeBytePng(data.confidence),
      data.given ? source(data.given, data.given.areas) : null,
    ]);
    return new Segments(data, confidence, given ? { predicted, given } : { predicted });
  }

  class Segments {
    constructor(data, confidence, sources) {
      this.classes = data.classes;
      this.miou = data.miou;
      this.confidence = confidence;
      this.sources = sources;
    }

    /** The classes of a source that have pixels in it (or a score), largest first, and the others. */
    present(source) {
      const { areas } = this.sources[source];
      const order = [...this.classes].sort((a, b) => areas[b.index] - areas[a.index] || a.index - b.index);
      const seen = (each) => areas[each.index] > 0 || typeof each.iou === "number";
      return [order.filter(seen), order.filter((each) => !seen(each))];
    }

    /** What lies at [y, x], shares of the photo from its top left corner; null where the model did not look. */
    at([y, x]) {
      const label = this.classes[valueOf(this.sources.predicted.labels, y, x)];
      if (!label) return null;
      const given = this.sources.given && this.classes[valueOf(this.sources.given.labels, y, x)];
      return { label, probability: valueOf(this.confidence, y, x) / 255, given };
    }
  }

  function valueOf(image, y, x) {
    const row = Math.min(Math.max(Math.floor(y * image.height), 0), image.height - 1);
    const column = Math.min(Math.max(Math.floor(x * image.width), 0), image.width - 1);
    return image.values[row * image.width + column];
  }

  /** Opacity (0-255) of each of the 256 labels: `hidden` classes and unseen pixels have none; `lit` makes the others fade. */
  function opacities(classes, { opacity, hidden, lit }) {
    const alpha = new Uint8Array(256);
    const alone = lit !== null && !hidden.includes(lit);
    for (const { index } of classes) {
      if (!hidden.includes(index)) alpha[index] = Math.round(255 * opacity * (alone && index !== lit ? FADED : 1));
    }
    return alpha;
  }

  /** Colour a class map into width x height RGBA bytes, nearest neighbour. Where `line` > 0, each class has an outline
   *  of so many pixels in its own colour, on its own side of the border.
   */
  function paint(labels, classes, options, width, height, line, rgba) {
    const alpha = opacities(classes, options);
    const outlined = opacities(classes, { ...options, opacity: 1 });
    const columns = Int32Array.from({ length: width }, (_, x) => Math.floor(((x + 0.5) * labels.width) / width));
    const indices = new Uint8Array(width * height);
    for (let y = 0; y < height; y++) {
      const row = Math.floor(((y + 0.5) * labels.height) / height) * labels.width;
      for (let x = 0; x < width; x++) indices[y * width + x] = labels.values[row + columns[x]];
    }
    for (let y = 0, i = 0; y < height; y++) {
      const up = y >= line ? -line * width : 0;
      const down = y + line < height ? line * width : 0;
      for (let x = 0; x < width; x++, i++) {
        const index = indices[i];
        const out = 4 * i;
        const border =
          line > 0 &&
          (indices[i + up] !== index ||
            indices[i + down] !== index ||
            indices[i - (x >= line ? line : 0)] !== index ||
            indices[i + (x + line < width ? line : 0)] !== index);
        rgba[out + 3] = border ? outlined[index] : alpha[index];
        if (!rgba[out + 3]) continue;
        [rgba[out], rgba[out + 1], rgba[out + 2]] = classes[index].colour;
      }
    }
  }

  Object.assign(vtviz, { decodeBytePng, decodeSegments, Segments, paint });
})();
