/* The film that the tab Video made, played in the page. */
(function () {
  "use strict";
  const vtviz = window.vtviz;
  const { make } = vtviz;

  /** Called by gr.HTML's js_on_load: the value says what was made; its address comes by `play`. */
  function video(element, props, watch) {
    const root = element.querySelector(".vtx-video");
    const draw = () => {
      const film = props.value || null;
      if (!film) {
        root.replaceChildren(make("p", { class: "vtx-cost" }, "The film appears here: the frame, and each token's map over it " +
          "at a place of its own."));
        return;
      }
      const player = film.kind === "video"
        ? make("video", { controls: true, loop: true, muted: true, playsinline: true })
        : make("img", { alt: film.text });
      player.width = film.width;
      player.height = film.height;
      root.replaceChildren(make("div", { class: "vtx-film", tabindex: 0 }, player), make("p", { class: "vtx-cost" }, film.text));
    };
    watch("value", draw);
    draw();
  }

  /** Show the film of Gradio's file data; nothing where none was made. */
  function play(file) {
    const player = document.querySelector("#video .vtx-film > *");
    if (!player || !file?.url || player.src === file.url) return;
    player.src = file.url;
    if (player.play) player.play().catch(() => {}); // where a browser wants a click first, there are controls
  }

  Object.assign(vtviz, { video, play });
})();
