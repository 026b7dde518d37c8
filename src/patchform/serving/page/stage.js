// A picture that can be zoomed and moved, with what was found on it.

import { levelsOf } from "./masks.js";

const STEP = 1.35; // of a key or a button
const MOST = 40; // screen pixels of a pixel of the picture
const MOVE = 48; // screen pixels of an arrow key
const FAINT = 0.25; // of what is not pointed at
const FONT = "600 12px system-ui, sans-serif";

export class Stage {
  #pointers = new Map();
  #waiting = false;

  /** element: gets the canvas and its buttons; name: of the picture. */
  constructor(element, name) {
    this.canvas = document.createElement("canvas");
    this.canvas.tabIndex = 0;
    this.canvas.setAttribute("role", "img");
    this.context = this.canvas.getContext("2d");
    this.size = null; // [height, width] of the picture
    this.image = null;
    this.layer = null; // a painted canvas, as large as the picture
    this.boxes = []; // {box, color, text}, the surest first
    this.picked = null; // index of the box that is pointed at
    this.onpoint = () => {}; // told where the pointer is: x, y in pixels of the picture, or null
    this.tools = document.createElement("div");
    this.tools.className = "tools";
    this.tools.setAttribute("role", "group");
    this.tools.setAttribute("aria-label", `Zoom of ${name}`);
    this.#tool("\u2212", "Zoom out", () => this.#zoom(1 / STEP));
    this.#tool("+", "Zoom in", () => this.#zoom(STEP));
    this.#tool("Fit", "Fit the whole picture", () => this.fit());
    element.append(this.canvas, this.tools);
    this.#listen();
    this.observer = new ResizeObserver(() => this.#resized());
    this.observer.observe(this.canvas);
  }

  /** Show a picture; image: null where the browser cannot. */
  show(image, size) {
    this.image = image;
    this.size = size;
    this.fit();
  }

  /** Draw what changed, before the next frame. */
  draw() {
    if (this.#waiting) return;
    this.#waiting = true;
    requestAnimationFrame(() => {
      this.#waiting = false;
      this.#draw();
    });
  }

  /** The whole picture, in the middle. */
  fit() {
    this.place = null;
    this.#still();
    this.draw();
  }

  close() {
    this.observer.disconnect();
    this.image?.close();
    this.image = null;
  }

  #tool(text, label, act) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = text;
    button.setAttribute("aria-label", label);
    button.title = label;
    button.addEventListener("click", act);
    this.tools.append(button);
  }

  /** {scale, x, y}: screen pixels of a pixel of the picture, and where its left top corner is. */
  #placed() {
    if (this.place) return this.place;
    const [height, width] = this.size,
      { clientWidth: across, clientHeight: down } = this.canvas;
    const scale = Math.min(across / width, down / height);
    return { scale, x: (across - width * scale) / 2, y: (down - height * scale) / 2 };
  }

  #zoom(factor, x = this.canvas.clientWidth / 2, y = this.canvas.clientHeight / 2) {
    if (!this.size) return;
    const { place: before } = this,
      now = this.#placed();
    this.place = null;
    const least = this.#placed().scale;
    this.place = before;
    const scale = Math.min(Math.max(MOST, least), now.scale * factor);
    if (scale <= least * 1.001) return this.fit();
    const share = scale / now.scale;
    this.place = { scale, x: x - (x - now.x) * share, y: y - (y - now.y) * share };
    this.#bound();
  }

  #move(across, down) {
    if (!this.place) return;
    this.place.x += across;
    this.place.y += down;
    this.#bound();
  }

  /** The picture covers the stage, or is in its middle where it is smaller. */
  #bound() {
    const [height, width] = this.size,
      { scale } = this.place;
    const within = (at, all, room) => (all <= room ? (room - all) / 2 : Math.min(0, Math.max(room - all, at)));
    this.place.x = within(this.place.x, width * scale, this.canvas.clientWidth);
    this.place.y = within(this.place.y, height * scale, this.canvas.clientHeight);
    this.#still();
    this.draw();
  }

  /** While the whole is seen, fingers move the page. */
  #still() {
    this.canvas.classList.toggle("zoomed", Boolean(this.place));
  }

  #listen() {
    const { canvas } = this;
    canvas.addEventListener(
      "wheel",
      (event) => {
        const out = event.deltaY > 0 && !this.place; // it is all seen already
        const meant = event.ctrlKey || event.metaKey || (document.activeElement === canvas && !out);
        if (!meant || !this.size) return; // the page scrolls
        event.preventDefault();
        this.#zoom(Math.exp(-Math.max(-60, Math.min(60, event.deltaY)) / 200), event.offsetX, event.offsetY);
      },
      { passive: false },
    );
    canvas.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey || !this.size) return;
      const act = {
        "+": () => this.#zoom(STEP),
        "=": () => this.#zoom(STEP),
        "-": () => this.#zoom(1 / STEP),
        0: () => this.fit(),
        ...(this.place && {
          ArrowLeft: () => this.#move(MOVE, 0),
          ArrowRight: () => this.#move(-MOVE, 0),
          ArrowUp: () => this.#move(0, MOVE),
          ArrowDown: () => this.#move(0, -MOVE),
        }),
      }[event.key];
      if (!act) return;
      event.preventDefault();
      act();
    });
    canvas.addEventListener("dblclick", (event) => this.#zoom(STEP * STEP, event.offsetX, event.offsetY));
    canvas.addEventListener("pointerdown", (event) => {
      this.#pointers.set(event.pointerId, [event.clientX, event.clientY]);
      if (this.place || this.#pointers.size > 1) canvas.setPointerCapture(event.pointerId);
    });
    canvas.addEventListener("pointermove", (event) => this.#pointed(event));
    canvas.addEventListener("pointerleave", () => this.onpoint(null));
    for (const kind of ["pointerup", "pointercancel"]) {
      canvas.addEventListener(kind, (event) => this.#pointers.delete(event.pointerId));
    }
  }

  #pointed(event) {
    if (!this.size) return;
    const before = this.#pointers.get(event.pointerId),
      now = [event.clientX, event.clientY];
    if (!before) {
      const { scale, x, y } = this.#placed();
      return this.onpoint([(event.offsetX - x) / scale, (event.offsetY - y) / scale]);
    }
    this.#pointers.set(event.pointerId, now);
    if (this.#pointers.size === 1) return this.#move(now[0] - before[0], now[1] - before[1]);
    const other = [...this.#pointers].find(([id]) => id !== event.pointerId)[1];
    const distance = (at) => Math.hypot(at[0] - other[0], at[1] - other[1]) || 1;
    const frame = this.canvas.getBoundingClientRect();
    this.#zoom(
      distance(now) / distance(before),
      (now[0] + other[0]) / 2 - frame.left,
      (now[1] + other[1]) / 2 - frame.top,
    );
    this.#move((now[0] - before[0]) / 2, (now[1] - before[1]) / 2);
  }

  #resized() {
    const density = window.devicePixelRatio || 1;
    this.canvas.width = Math.round(this.canvas.clientWidth * density);
    this.canvas.height = Math.round(this.canvas.clientHeight * density);
    if (this.place) this.#bound();
    this.#draw(); // at once: a canvas is empty once its size is set
  }

  #draw() {
    const { canvas, context } = this,
      density = window.devicePixelRatio || 1;
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, canvas.width, canvas.height);
    if (!this.size || !canvas.width) return;
    const { scale, x, y } = this.#placed(),
      [height, width] = this.size;
    const frame = [x, y, width * scale, height * scale];
    context.setTransform(density, 0, 0, density, 0, 0);
    context.imageSmoothingQuality = "high";
    context.imageSmoothingEnabled = scale * density < 3; // larger pixels are shown as the squares they are
    if (this.image) {
      context.drawImage(this.image, ...frame);
    } else {
      context.fillStyle = "#8a8f94";
      context.fillRect(...frame);
    }
    context.imageSmoothingEnabled = false;
    if (this.layer) context.drawImage(this.layer, ...frame);
    this.#drawBoxes(scale, x, y);
  }

  #drawBoxes(scale, x, y) {
    const { context } = this,
      taken = [];
    const placed = this.boxes.map((one) => ({ ...one, frame: one.box.map((side) => side * scale) }));
    const strong = ({ index }) => this.picked === null || this.picked === index;
    for (const one of [...placed].reverse()) {
      const [left, top, across, down] = one.frame;
      context.globalAlpha = strong(one) ? 1 : FAINT;
      for (const [line, color] of [
        [4, "rgba(0, 0, 0, .55)"],
        [2, one.color],
      ]) {
        context.lineWidth = line;
        context.strokeStyle = color;
        context.strokeRect(x + left, y + top, across, down);
      }
    }
    context.font = FONT;
    context.textBaseline = "middle";
    const first = placed.filter((one) => one.index === this.picked);
    for (const one of [...first, ...placed]) {
      if (one.text) this.#name(one, x + one.frame[0], y + one.frame[1], taken, strong(one));
    }
    context.globalAlpha = 1;
  }

  /** The name of a box above it, unless that would hide another's. */
  #name(one, left, top, taken, strong) {
    const { context } = this,
      width = context.measureText(one.text).width + 10,
      height = 18;
    const [wide, tall] = [this.canvas.clientWidth, this.canvas.clientHeight];
    const [, , across, down] = one.frame;
    if (left > wide || top > tall || left + across < 0 || top + down < 0) return;
    const at = Math.max(0, Math.min(left - 1, this.canvas.clientWidth - width));
    const above = top >= height ? top - height : Math.max(0, top);
    const hides = ([x, y, wide]) => at < x + wide && x < at + width && above < y + height && y < above + height;
    if (!strong || taken.some(hides)) return;
    taken.push([at, above, width]);
    context.globalAlpha = 1;
    context.fillStyle = one.color;
    context.fillRect(at, above, width, height);
    context.fillStyle = inkOn(one.color);
    context.fillText(one.text, at + 5, above + height / 2 + 1);
  }
}

/** Black or white, whichever is seen better. */
export function inkOn(color) {
  const [red, green, blue] = levelsOf(color).map((level) => {
    const share = level / 255;
    return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.179 ? "#000000" : "#ffffff";
}
