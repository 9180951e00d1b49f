/**
 * Elements without markup in text: `h` sets properties and adds text nodes, so no value of a job can become markup.
 *
 * @module
 */

/**
 * Return an element. `on…` properties are listeners; `class`, `aria-…`, `data-…` and `role` are attributes; all others
 * are properties of the element. Children: elements, texts, arrays of them; null and false are left out.
 */
export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties ?? {})) {
    if (value === undefined || value === null) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "class") element.className = value;
    else if (/^(aria-|data-|role$|for$|colspan$|capture$|list$)/.test(name)) element.setAttribute(name, String(value));
    else element[name] = value;
  }
  append(element, children);
  return element;
}

/** Return an element of SVG; all its properties are attributes. */
export function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, String(value));
  append(element, children);
  return element;
}

function append(element, children) {
  for (const child of children.flat(Infinity)) {
    if (child !== null && child !== undefined && child !== false) element.append(child);
  }
}

/** Replace the children of `element`, but leave it alone where nothing changes: a selection or a scroll stays. */
export function fill(element, ...children) {
  const wanted = children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false);
  const same = wanted.length === element.childNodes.length && wanted.every((child, index) => isSame(element.childNodes[index], child));
  if (!same) element.replaceChildren(...wanted);
}

function isSame(node, child) {
  if (node === child) return true;
  if (typeof child === "string") return node.nodeType === Node.TEXT_NODE && node.data === child;
  return child instanceof Node && node.isEqualNode(child) && !child.querySelector?.("button,input,select,a,video,audio");
}

/** Call `draw` at most every `ms`, and once more after the last request. */
export function throttled(draw, ms) {
  let timer = 0, drawnAt = 0;
  return () => {
    if (timer) return;
    const wait = Math.max(0, ms - (performance.now() - drawnAt));
    timer = setTimeout(() => {
      timer = 0;
      drawnAt = performance.now();
      requestAnimationFrame(draw);
    }, wait);
  };
}

/** Ask in a dialog; return the form's values, or null when it was closed. `fields`: elements with a name. */
export function askDialog(title, fields, confirm, cancel, isDanger = false) {
  return new Promise((resolve) => {
    const form = h("form", { method: "dialog", class: "stack" },
      h("h2", { id: "dialog-title" }, title), fields,
      h("div", { class: "buttons" },
        h("button", { value: "cancel", formNoValidate: true }, cancel),
        h("button", { value: "ok", class: isDanger ? "danger" : "primary" }, confirm)));
    const dialog = h("dialog", { "aria-labelledby": "dialog-title" }, form);
    dialog.addEventListener("close", () => {
      const values = dialog.returnValue === "ok" ? Object.fromEntries(new FormData(form)) : null;
      dialog.remove();
      resolve(values);
    });
    document.body.append(dialog);
    dialog.showModal();
  });
}
