/* The legend of a segmentation: a button for each class that is there, with its area and, given a mask, its IoU. */
(function () {
  "use strict";
  const vtviz = window.vtviz;
  const { make, help } = vtviz;

  const LEGEND_HELP =
    "The share of the photo that each class covers. Click a class to hide or show it; point at it to see it alone.";
  const MASK_HELP =
    "An 8-bit PNG of the photo's size, grey or palette, whose values are the numbers of this model's classes in the " +
    "order of its card (About); 255 is left out. You then see the IoU of each class: the area that prediction and mask " +
    "share, over the area of both together.";

  class Legend {
    /** `set(patch)` changes the view's state; `forget()` takes an uploaded mask back. */
    constructor(set, forget) {
      this.set = set;
      this.score = make("span", { class: "vtx-score" });
      this.remove = make("button", { type: "button", class: "vtx-button", onclick: forget }, "Remove the mask");
      this.chips = make("div", { class: "vtx-chips", role: "group", "aria-label": "Classes shown" });
      this.rest = make("details", { class: "vtx-rest" });
      const all = make("button", { type: "button", class: "vtx-button", onclick: () => set({ hidden: [] }) }, "All");
      const none = make(
        "button",
        { type: "button", class: "vtx-button", onclick: () => set({ hidden: this.every }) },
        "None",
      );
      const upload = make(
        "button",
        { type: "button", class: "vtx-button", onclick: () => document.querySelector("#mask input[type=file]")?.click() },
        "Compare with a mask…",
      );
      this.element = make(
        "section",
        { class: "vtx-legend", "aria-label": "Legend" },
        make("div", { class: "vtx-heading" },
          make("h4", {}, "Classes"), help("the list of classes", LEGEND_HELP), all, none,
          make("span", { class: "vtx-gap" }), this.score, this.remove, upload, help("a mask", MASK_HELP)),
        this.chips,
        this.rest,
      );
    }

    load({ segments }) {
      this.every = segments.classes.map((each) => each.index);
      this.remove.hidden = !segments.sources.given;
      this.score.textContent = typeof segments.miou === "number" ? `mean IoU ${segments.miou.toFixed(3)}` : "";
    }

    draw({ payload, segments }, state) {
      const shown = `${payload.id} ${state.source}`;
      if (this.shown !== shown) this.build(segments, state.source);
      this.shown = shown;
      for (const [index, button] of this.buttons) button.setAttribute("aria-pressed", String(!state.hidden.includes(index)));
      this.hidden = state.hidden;
    }

    build(segments, source) {
      const { areas } = segments.sources[source];
      const [there, absent] = segments.present(source);
      this.buttons = new Map(there.map((each) => [each.index, this.chip(each, areas[each.index])]));
      this.chips.replaceChildren(...this.buttons.values());
      this.rest.hidden = !absent.length;
      this.rest.replaceChildren(
        make("summary", {}, `${absent.length} class${absent.length === 1 ? "" : "es"} not seen`),
        make("p", {}, absent.map((each) => each.name).join(", ")),
      );
    }

    chip(each, area) {
      const unlight = () => this.set({ lit: null });
      const button = make(
        "button",
        {
          type: "button", class: "vtx-chip",
          onclick: () => this.toggle(each.index),
          onpointerenter: (event) => event.pointerType === "mouse" && this.set({ lit: each.index }), // a finger taps
          onpointerleave: unlight,
          onfocus: () => button.matches(":focus-visible") && this.set({ lit: each.index }),
          onblur: unlight,
        },
        vtviz.swatch(each),
        make("span", {}, each.name),
        " ",
        make("b", {}, percent(area)),
        typeof each.iou === "number" ? make("small", {}, ` IoU ${each.iou.toFixed(2)}`) : null,
      );
      return button;
    }

    toggle(index) {
      const hidden = this.hidden.includes(index) ? this.hidden.filter((each) => each !== index) : [...this.hidden, index];
      this.set({ hidden });
    }

    /** Mark the class under the pointer. */
    mark(found) {
      for (const [index, button] of this.buttons ?? []) button.classList.toggle("vtx-here", index === found?.label.index);
    }
  }

  /** A class's colour, as a small square. */
  function swatch({ colour }) {
    const square = make("i", { class: "vtx-swatch", "aria-hidden": "true" });
    square.style.background = `rgb(${colour.join(" ")})`;
    return square;
  }

  /** A share in per cent: "34 %", "2.4 %", "< 0.1 %". */
  function percent(share) {
    if (share > 0 && share < 0.0005) return "< 0.1 %";
    return `${(100 * share).toFixed(share > 0 && share < 0.0995 ? 1 : 0)} %`;
  }

  Object.assign(vtviz, { Legend, swatch, percent });
})();
