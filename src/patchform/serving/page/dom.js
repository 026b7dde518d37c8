// Pieces of the page. Names of classes and files are text of strangers: they become text and attributes, never markup.

/** An element: make("p", {class: "note"}, "text", another); properties that start with "on" are listeners. */
export function make(tag, properties = {}, ...content) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...content.filter((one) => one !== null));
  return element;
}

/** A square of a color. */
export function swatch(color) {
  const square = make("span", { class: "swatch", "aria-hidden": "true" });
  square.style.background = color;
  return square;
}

/** A bar as long as a share of 1. */
export function bar(share, color) {
  const inner = make("span");
  inner.style.width = `${100 * Math.max(0, Math.min(1, share))}%`;
  if (color) inner.style.background = color;
  return make("span", { class: "bar", "aria-hidden": "true" }, inner);
}

/** A share of 1 as people read it. */
export function percent(share) {
  return `${(100 * share).toFixed(share < 0.0995 || share > 0.995 ? 1 : 0)}\u00a0%`;
}

/** "3 objects", "1 object". */
export function counted(count, noun) {
  return `${count} ${noun}${count === 1 ? "" : "s"}`;
}

/** A button that copies what text() gives. */
export function copier(label, text, source) {
  const button = make("button", { type: "button", "aria-label": `Copy ${label}` }, "Copy");
  button.addEventListener("click", async () => {
    button.textContent = (await copied(text(), source)) ? "Copied" : "Select and copy";
    setTimeout(() => {
      button.textContent = "Copy";
    }, 2000);
  });
  return button;
}

/** Pages that came over plain HTTP from elsewhere have no clipboard, but may copy what is selected. */
async function copied(text, source) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    getSelection().selectAllChildren(source);
    return document.execCommand("copy");
  }
}
