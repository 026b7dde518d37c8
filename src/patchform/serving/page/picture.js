// One picture or film that was given: sent, answered, shown.

import { copier, make } from "./dom.js";
import { read } from "./answers.js";
import { Stage } from "./stage.js";
import { typeOf } from "./server.js";

const LARGE = 6_000_000; // pixels from which a smaller copy is shown
let count = 0;

export class Picture {
  #leaving = new AbortController();

  /** file: given; around: {server, card, controls, say(text), changed(), removed(picture)}. */
  constructor(file, around) {
    this.file = file;
    this.name = file.name || "pasted picture";
    this.around = around;
    this.found = null;
    this.film = file.type.startsWith("video/");
    this.#build();
    this.seen = this.#look();
  }

  #build() {
    const id = `picture-${++count}`;
    this.note = make("span", { class: "note" });
    const remove = make(
      "button",
      { type: "button", class: "icon", "aria-label": `Remove ${this.name}`, title: "Remove" },
      "\u00d7",
    );
    remove.addEventListener("click", () => this.around.removed(this));
    this.state = make("p", { class: "state" }, "Waiting");
    this.again = make("button", { type: "button", class: "again", hidden: true }, "Try again");
    this.again.addEventListener("click", () => this.around.retried(this));
    this.veil = make("div", { class: "veil" }, this.state, this.again);
    this.box = make("div", { class: "stage" });
    if (this.film) {
      this.url = URL.createObjectURL(this.file);
      this.box.append(
        make("video", {
          src: this.url,
          controls: true,
          muted: true,
          loop: true,
          playsinline: true,
          "aria-label": this.name,
        }),
      );
    } else {
      this.stage = new Stage(this.box, this.name);
    }
    this.pointed = make("output", { class: "pointed", hidden: true, "aria-hidden": "true" });
    this.box.append(this.pointed, this.veil);
    this.words = make("p", { class: "words" }, "\u00a0");
    this.body = make("div", { class: "answer", id: `${id}-list` });
    this.texts = make("details", { class: "texts", hidden: true }, make("summary", {}, "JSON and curl"));
    this.texts.addEventListener("toggle", () => this.#write());
    const title = make("h2", { id, title: this.name }, this.name);
    const head = make("header", {}, title, this.note, remove);
    this.element = make(
      "article",
      { class: "picture", "aria-labelledby": id },
      head,
      this.box,
      this.words,
      this.body,
      this.texts,
    );
    this.stage?.canvas.setAttribute("aria-describedby", `${id}-list`);
    this.#label();
  }

  #label() {
    const keys = "Plus and minus zoom, arrows move, zero shows the whole.";
    this.stage?.canvas.setAttribute(
      "aria-label",
      `${this.name}. ${this.found?.words ?? this.state.textContent}. ${keys}`,
    );
  }

  /** What the browser makes of the file, turned as its camera says. */
  async #look() {
    if (this.film) return;
    try {
      const whole = await createImageBitmap(this.file);
      const size = [whole.height, whole.width],
        share = Math.sqrt(LARGE / (whole.height * whole.width));
      this.size = size;
      if (this.#leaving.signal.aborted) return whole.close();
      if (share >= 1) return this.stage.show(whole, size);
      const [resizeHeight, resizeWidth] = size.map((side) => Math.round(side * share));
      const small = await createImageBitmap(whole, { resizeHeight, resizeWidth, resizeQuality: "high" });
      whole.close();
      this.stage.show(small, size);
    } catch {
      this.size = null; // the server may still read it
    }
  }

  /** Ask the server; nothing is thrown. */
  async ask() {
    const { server, card, controls, say, changed } = this.around;
    const { signal } = this.#leaving;
    this.#wait("Looking");
    try {
      await this.seen;
      if (signal.aborted) return;
      await this.#check(card.limits);
      const asked = `?threshold=${controls.least}`;
      const begin = performance.now();
      const answer = await server.predict(this.file, controls.least, signal, (text) => this.#wait(text));
      const milliseconds = Math.round(performance.now() - begin);
      this.found = await read(answer, card, (index, button) => this.#pick(index, button), asked);
      if (signal.aborted) return;
      this.#answered(answer, milliseconds);
      changed();
      say(`${this.name}: ${this.found.words}`);
    } catch (error) {
      if (signal.aborted) return;
      this.#fail(error);
    }
  }

  /** Draw what the controls ask for. */
  update(wish) {
    if (!this.found) return;
    this.found.update(wish);
    if (this.stage) this.found.put(this.stage);
    this.words.textContent = this.found.words;
    this.#label();
    if (this.texts.open) this.#write();
  }

  close() {
    this.#leaving.abort();
    this.stage?.close();
    if (this.url) URL.revokeObjectURL(this.url);
    this.element.remove();
  }

  #wait(text) {
    this.state.textContent = text;
    this.veil.className = "veil waiting";
    this.again.hidden = true;
    this.#label();
  }

  /** What the server would refuse is said before megabytes are sent. */
  async #check(limits) {
    const refuse = (text) => {
      throw Object.assign(new Error(text), { again: false });
    };
    await this.file
      .slice(0, 1)
      .arrayBuffer()
      .catch(() => refuse("This cannot be read: a folder, or a file that is gone."));
    const size = (bytes) => `${(bytes / 1e6).toFixed(1)} MB`;
    if (this.file.size > limits.body) {
      const remedy = "Make it smaller, or start the server with a larger --limit body.";
      refuse(`This file has ${size(this.file.size)}, the server takes ${size(limits.body)}. ${remedy}`);
    }
    if (this.size && this.size[0] * this.size[1] > limits.pixels) {
      const millions = (pixels) => `${(pixels / 1e6).toFixed(0)} million pixels`;
      const has = millions(this.size[0] * this.size[1]);
      refuse(`This picture has ${has}, the server takes ${millions(limits.pixels)}. Make it smaller.`);
    }
  }

  #answered(answer, milliseconds) {
    const [height, width] = answer.size;
    if (this.stage && !this.stage.image) this.stage.show(null, answer.size);
    this.veil.className = "veil";
    this.state.textContent = "";
    this.note.textContent = `${width} \u00d7 ${height} \u00b7 ${milliseconds} ms`;
    this.body.replaceChildren(...(this.found.list ? [this.found.list] : []));
    this.texts.hidden = false;
    if (this.stage && this.size === null)
      this.#warn("This browser cannot show this kind of picture; what was found lies where it is on it.");
    if (this.size && (this.size[0] !== height || this.size[1] !== width)) {
      const [server, browser] = [answer.size, this.size].map(([down, across]) => `${across} \u00d7 ${down}`);
      this.#warn(`The server sees ${server} pixels, this browser ${browser}: the picture may be drawn amiss.`);
      this.stage.size = answer.size;
      this.stage.fit();
    }
    if (this.found.at) {
      this.stage.onpoint = (at) => {
        this.pointed.textContent = at ? this.found.at(at) : "";
        this.pointed.hidden = !this.pointed.textContent;
      };
    }
  }

  #warn(text) {
    this.body.prepend(make("p", { class: "warning" }, text));
  }

  #fail(error) {
    this.state.textContent = error.message;
    this.veil.className = "veil failed";
    this.again.hidden = !error.again;
    this.#label();
    this.around.say(`${this.name}: ${error.message}`);
  }

  /** Show one thing alone, or all again. */
  #pick(index, button) {
    const { stage } = this;
    stage.picked = stage.picked === index ? null : index;
    for (const one of this.body.querySelectorAll("[aria-pressed]")) {
      one.setAttribute("aria-pressed", String(one === button && stage.picked !== null));
    }
    this.found.put(stage);
  }

  #write() {
    if (!this.texts.open || !this.found) return;
    const json = written(this.found.record);
    const { query } = this.found,
      from = query && `, for all objects from ${query.split("=")[1]} on`;
    const block = (label, text, more) => {
      const code = make("pre", { tabindex: "0", role: "region", "aria-label": `${label} of ${this.name}` }, text);
      return make(
        "div",
        { class: "text" },
        make("h3", {}, label, more),
        copier(`${label} of ${this.name}`, () => text, code),
        code,
      );
    };
    const inside =
      document.activeElement?.closest?.(".texts") === this.texts && document.activeElement.tagName !== "SUMMARY";
    if (inside && this.texts.dataset.json === json) return; // what is focused stays
    this.texts.dataset.json = json;
    this.texts.replaceChildren(
      this.texts.firstElementChild,
      block("curl", this.#curl(), from),
      block("JSON", json, " of what is shown"),
    );
  }

  /** A line that asks the same; double quotes are read by all shells, others by those of Unix. */
  #curl() {
    const address = new URL(`predict${this.found.query}`, location.href).href;
    const plain = /^[\w .()+-]+$/.test(this.name);
    const file = plain ? `"@${this.name}"` : `'@${this.name.replaceAll("'", "'\\''")}'`;
    const token = this.around.server.locked ? '-H "Authorization: Bearer $PATCHFORM_TOKEN" ' : "";
    return `curl ${token}-H "Content-Type: ${typeOf(this.file)}" --data-binary ${file} "${address}"`;
  }
}

/** JSON with a line for each field, and for each object of a list. */
function written(record) {
  const list = (value) => Array.isArray(value) && value.length > 0 && typeof value[0] === "object";
  const text = (value) =>
    list(value) ? `[\n  ${value.map((one) => JSON.stringify(one)).join(",\n  ")}\n ]` : JSON.stringify(value);
  const fields = Object.entries(record).map(([name, value]) => ` ${JSON.stringify(name)}: ${text(value)}`);
  return `{\n${fields.join(",\n")}\n}`;
}
