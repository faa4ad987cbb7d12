/* One captioned picture of the photo: the canvas, the pointer's cross on it, the flag that says what lies there, and the
 * place that was asked about.
 */
(function () {
  "use strict";
  const vtviz = window.vtviz;
  const { make } = vtviz;

  class Picture {
    /** `shows` names it for the style sheet; `point([y, x] or null)` hears of the pointer, in shares of the picture, and
     *  `choose([y0, x0], [y1, x1], done)` of a click or of a box while it is dragged. */
    constructor(shows, point, choose) {
      this.caption = make("h3", { class: "vtx-caption" });
      this.canvas = make("canvas", { class: "vtx-photo", role: "img" });
      this.cross = make("span", { class: "vtx-cross", hidden: true });
      this.flag = make("span", { class: "vtx-flag", hidden: true });
      this.region = make("span", { class: "vtx-region", hidden: true });
      this.element = make(
        "div",
        { class: "vtx-frame", "data-shows": shows },
        this.caption,
        make("div", { class: "vtx-mat" }, this.canvas, this.region, this.cross, this.flag),
      );
      const where = (event) => {
        const box = this.canvas.getBoundingClientRect();
        return [(event.clientY - box.top) / box.height, (event.clientX - box.left) / box.width];
      };
      let start = null;
      this.canvas.onpointerdown = (event) => {
        start = event.button ? null : where(event);
        this.canvas.setPointerCapture(event.pointerId);
        point(where(event));
      };
      this.canvas.onpointermove = (event) => {
        point(where(event));
        if (start) choose(start, where(event), false);
      };
      this.canvas.onpointerup = (event) => {
        if (start) choose(start, where(event), true);
        start = null;
      };
      this.canvas.onpointercancel = () => (start = null); // it scrolls the page
      this.canvas.onpointerleave = () => point(null);
    }

    /** Size the canvas for a photo in the room that there is, at most `high` CSS pixels; [context, width, height]. */
    open(geometry, high) {
      const room = this.canvas.parentElement.clientWidth;
      const [width, height] = vtviz.resize(this.canvas, ...vtviz.fit(geometry, room, high));
      return [this.canvas.getContext("2d"), width, height];
    }

    describe(caption, label) {
      if (this.caption.textContent !== caption) this.caption.textContent = caption;
      this.canvas.setAttribute("aria-label", label);
    }

    /** Frame a box in shares of the picture, [y0, x0, y1, x1]; null frames nothing. */
    frame(box) {
      this.region.hidden = !box;
      if (!box) return;
      const { offsetTop, offsetLeft, offsetHeight, offsetWidth } = this.canvas;
      const { style } = this.region;
      [style.top, style.left] = [`${offsetTop + box[0] * offsetHeight}px`, `${offsetLeft + box[1] * offsetWidth}px`];
      [style.height, style.width] = [`${(box[2] - box[0]) * offsetHeight}px`, `${(box[3] - box[1]) * offsetWidth}px`];
    }

    /** Show the pointer here, with a word on what lies there. */
    mark(pointer, text) {
      vtviz.place(this.cross, this.canvas, pointer);
      vtviz.place(this.flag, this.canvas, text ? pointer : null);
      if (!text || !pointer) return;
      this.flag.textContent = text;
      this.flag.classList.toggle("vtx-left", pointer[1] > 0.5);
      this.flag.classList.toggle("vtx-above", pointer[0] > 0.5);
    }
  }

  Object.assign(vtviz, { Picture });
})();
