// What is shown of answers: thresholds, opacity, classes.

import { make, swatch } from "./dom.js";

const LOW = 0.05; // score from which objects are asked for, so that sliders need not ask again
const MANY = 8; // classes from which there is a field to find one

export class Controls {
  /** element: gets them; card: of the model; changed(): something else is to be shown. */
  constructor(element, card, changed) {
    this.card = card;
    this.changed = changed;
    this.own = card.thresholds;
    this.least = Math.floor(100 * Math.min(LOW, ...this.own)) / 100;
    this.wish = { thresholds: [...this.own], seen: card.classes.map(() => true), opacity: 0.5, names: true };
    this.element = element;
    this.kinds = "";
  }

  /** Offer what fits the answers; found: of all pictures. */
  offer(found) {
    const objects = (this.objects ||= found.some((one) => one?.counts)); // what was offered once stays
    const layers = (this.layers ||= found.some((one) => one?.layer));
    const kinds = `${objects}${layers}`;
    if (kinds !== this.kinds && (objects || layers)) {
      this.kinds = kinds;
      this.#build(objects, layers);
    }
    this.element.hidden = !found.some((one) => one?.counts || one?.layer);
  }

  /** Write how many objects of each class are shown. */
  tally(found) {
    if (!this.rows) return;
    this.rows.forEach(({ count }, number) => {
      const total = found.reduce((sum, one) => sum + (one?.counts?.get(number) ?? 0), 0);
      count.textContent = total || "";
    });
  }

  #build(objects, layers) {
    const wide = matchMedia("(min-width: 60rem)").matches;
    const parts = [];
    if (objects) parts.push(this.#threshold());
    if (layers) parts.push(this.#opacity());
    if (objects) parts.push(this.#names());
    parts.push(this.#classes(objects));
    const summary = make("summary", {}, objects ? "Thresholds and classes" : "Classes and opacity");
    this.element.replaceChildren(
      make("details", { class: "panel", open: wide }, summary, make("div", { class: "parts" }, ...parts)),
    );
    this.#written();
  }

  #threshold() {
    this.whole = make("input", { type: "range", id: "threshold", min: this.least, max: 1, step: 0.01 });
    this.whole.addEventListener("input", () => {
      this.wish.thresholds.fill(Number(this.whole.value));
      this.#changed();
    });
    this.wholeSaid = make("output", { for: "threshold" });
    this.reset = make(
      "button",
      { type: "button", class: "small", "aria-label": "Back to the model's own thresholds" },
      "Model's own",
    );
    this.reset.addEventListener("click", () => {
      this.wish.thresholds = [...this.own];
      this.#changed();
    });
    const label = make("label", { for: "threshold" }, "Threshold");
    return make(
      "div",
      { class: "part" },
      make("div", { class: "line" }, label, this.wholeSaid),
      this.whole,
      this.reset,
    );
  }

  #opacity() {
    const slider = make("input", { type: "range", id: "opacity", min: 0, max: 100, step: 1 });
    slider.value = 100 * this.wish.opacity;
    const said = make("output", { for: "opacity" });
    const write = () => {
      said.textContent = `${slider.value}\u00a0%`;
    };
    slider.addEventListener("input", () => {
      this.wish.opacity = slider.value / 100;
      write();
      this.changed();
    });
    write();
    return make(
      "div",
      { class: "part" },
      make("div", { class: "line" }, make("label", { for: "opacity" }, "Opacity"), said),
      slider,
    );
  }

  #names() {
    const box = make("input", { type: "checkbox", checked: this.wish.names });
    box.addEventListener("change", () => {
      this.wish.names = box.checked;
      this.changed();
    });
    return make("div", { class: "part" }, make("label", { class: "check" }, box, "Names on the picture"));
  }

  #classes(objects) {
    this.rows = this.card.classes.map((name, number) => this.#row(name, number, objects));
    const list = make("ul", { class: "classes" }, ...this.rows.map((one) => one.item));
    const all = (shown) => () => {
      this.rows.forEach(({ box, item }, number) => {
        if (item.hidden) return; // a search acts on what it found
        box.checked = this.wish.seen[number] = shown;
      });
      this.changed();
    };
    const buttons = make(
      "span",
      { class: "row" },
      make(
        "button",
        { type: "button", class: "small", onclick: all(true), "aria-label": "All classes are shown" },
        "All",
      ),
      make(
        "button",
        { type: "button", class: "small", onclick: all(false), "aria-label": "None of the classes is shown" },
        "None",
      ),
    );
    const legend = make("div", { class: "line" }, make("span", { id: "classes-title" }, "Classes"), buttons);
    const each = make("input", { type: "checkbox", checked: this.each });
    const open = () => list.classList.toggle("each", (this.each = each.checked));
    each.addEventListener("change", open);
    open();
    const choice = objects ? make("label", { class: "check" }, each, "A threshold for each class") : null;
    return make(
      "div",
      { class: "part", role: "group", "aria-labelledby": "classes-title" },
      legend,
      choice,
      this.#search(),
      list,
    );
  }

  #search() {
    if (this.rows.length <= MANY) return null;
    const field = make("input", {
      type: "search",
      "aria-label": "Find a class",
      placeholder: "Find a class",
      spellcheck: "false",
    });
    field.addEventListener("input", () => {
      const wanted = field.value.trim().toLowerCase();
      this.rows.forEach(({ item }, number) => {
        item.hidden = !this.card.classes[number].toLowerCase().includes(wanted);
      });
    });
    return field;
  }

  #row(name, number, objects) {
    const box = make("input", { type: "checkbox", checked: this.wish.seen[number] });
    box.addEventListener("change", () => {
      this.wish.seen[number] = box.checked;
      this.changed();
    });
    const count = make("span", { class: "count" });
    const label = make(
      "label",
      { class: "check" },
      box,
      swatch(this.card.colors[number]),
      make("span", { class: "name" }, name),
      count,
    );
    if (!objects) return { item: make("li", {}, label), box, count };
    const slider = make("input", {
      type: "range",
      min: this.least,
      max: 1,
      step: 0.01,
      "aria-label": `Threshold of ${name}`,
    });
    const said = make("output", { "aria-hidden": "true" });
    slider.addEventListener("input", () => {
      this.wish.thresholds[number] = Number(slider.value);
      this.#changed();
    });
    return { item: make("li", {}, label, make("div", { class: "one" }, slider, said)), box, count, slider, said };
  }

  #changed() {
    this.#written();
    this.changed();
  }

  #written() {
    if (!this.whole) return;
    const { thresholds } = this.wish,
      least = Math.min(...thresholds),
      most = Math.max(...thresholds);
    const own = thresholds.every((one, number) => one === this.own[number]);
    const range = least === most ? least.toFixed(2) : `${least.toFixed(2)} to ${most.toFixed(2)}`;
    const middle = thresholds.reduce((sum, one) => sum + one, 0) / thresholds.length;
    if (Math.abs(this.whole.value - middle) >= 0.005) this.whole.value = middle;
    this.wholeSaid.textContent = range;
    this.whole.setAttribute("aria-valuetext", own ? `${range}, the model's own` : range);
    this.reset.disabled = own;
    this.rows?.forEach(({ slider, said }, number) => {
      if (!slider) return;
      if (Math.abs(slider.value - thresholds[number]) >= 0.005) slider.value = thresholds[number];
      said.textContent = thresholds[number].toFixed(2);
    });
  }
}
