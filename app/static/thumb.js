/* A token's map, small: drawn again only when it would look different. */
(function () {
  "use strict";
  const vtviz = window.vtviz;
  const { make } = vtviz;

  class Thumb {
    constructor(layer, token) {
      Object.assign(this, { layer, token });
      this.canvas = make("canvas", {});
    }

    /** Draw at most `room` CSS pixels wide. The choice and the classes leave it as it is. */
    draw(scene, state, room) {
      const { colormap, scale, fixed, opacity, align, head } = state;
      const look = JSON.stringify([scene.payload.id, colormap, scale, fixed, opacity, align, head, room]);
      if (this.look === look) return;
      this.look = look;
      const [width, height] = vtviz.resize(this.canvas, ...vtviz.fit(scene.payload.geometry, room, 1.25 * room));
      vtviz.overlay(this.canvas.getContext("2d"), width, height, scene, state, scene.layers[this.layer], this.token);
    }
  }

  Object.assign(vtviz, { Thumb });
})();
