/* One captioned picture of the photo: the canvas, the pointer's cross on it, and the flag that says what lies there. */
(function () {
  "use strict";
  const vtviz = window.vtviz;
  const { make } = vtviz;

  class Picture {
    /** `shows` names it for the style sheet; `point([y, x] or null)` hears of the pointer, in shares of the picture. */
    constructor(shows, point) {
      this.caption = make("h3", { class: "vtx-caption" });
      this.canvas = make("canvas", { class: "vtx-photo", role: "img" });
      this.cross = make("span", { class: "vtx-cross", hidden: true });
      this.flag = make("span", { class: "vtx-flag", hidden: true });
      this.element = make(
        "div",
        { class: "vtx-frame", "data-shows": shows },
        this.caption,
        make("div", { class: "vtx-mat" }, this.canvas, this.cross, this.flag),
      );
      this.canvas.onpointermove = this.canvas.onpointerdown = (event) => {
        const box = this.canvas.getBoundingClientRect();
        point([(event.clientY - box.top) / box.height, (event.clientX - box.left) / box.width]);
      };
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
