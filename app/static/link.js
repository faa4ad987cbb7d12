/* Links: what the address says is shown, and what is shown is said in the address. Only of examples: nobody else may see
 * an upload.
 */
(function () {
  "use strict";
  const vtviz = window.vtviz;
  const KEYS = ["photo", "model", "crop", "layer", "token", "view"];

  /** {key: text} of those keys that an address holds; null where it holds none. */
  function readLink(search) {
    const found = new URLSearchParams(search);
    const wanted = Object.fromEntries(KEYS.filter((key) => found.has(key)).map((key) => [key, found.get(key)]));
    return Object.keys(wanted).length ? wanted : null;
  }

  /** Whether a payload is the photo, model and crop that a link asks for. */
  function isLinked({ link }, wanted) {
    return ["photo", "model", "crop"].every((key) => !(key in wanted) || wanted[key] === link?.[key]);
  }

  /** What a link chooses of a scene, { layer, token, view } as far as it says so and it is there, and a line on the rest. */
  function followLink(wanted, { layers }) {
    const patch = {};
    const problems = [];
    const take = (key, value, there) => {
      if (!(key in wanted)) return;
      if (there) patch[key] = value;
      else problems.push(`${key} "${wanted[key].slice(0, 40)}"`);
    };
    const whole = (key) => (/^\d{1,4}$/.test(wanted[key]) ? Number(wanted[key]) : -1);
    const layer = whole("layer");
    take("layer", layer, layers[layer]);
    const token = whole("token");
    take("token", token, token >= 0 && token < (layers[patch.layer ?? 0]?.tokens ?? 0));
    if ("token" in patch) patch.layer ??= 0;
    else if ("layer" in patch) patch.token = 0;
    take("view", wanted.view, vtviz.VIEWS.some(([name, , needsTokens]) => name === wanted.view && (layers.length || !needsTokens)));
    const line = problems.length ? `There is no ${problems.join(" and no ")} here, which the link asks for.` : "";
    return { patch, line };
  }

  /** The address, after `search`, of what is shown; other keys stay. */
  function writeLink(search, { payload, layers }, { layer, token }, view) {
    const found = new URLSearchParams(search);
    for (const key of KEYS) found.delete(key);
    if (payload.link) {
      const said = { ...payload.link, ...(layers.length ? { layer, token } : {}), view };
      for (const key of KEYS) if (said[key] !== "" && said[key] !== undefined) found.set(key, said[key]);
    }
    const text = found.toString();
    return text ? `?${text}` : "";
  }

  Object.assign(vtviz, { readLink, isLinked, followLink, writeLink });
})();
