// Answers as lists that are read, heard and walked through with the keyboard.

import { bar, counted, make, percent, swatch } from "./dom.js";
import { decode } from "./indexed.js";
import { Layer, levelsOf, runsOf } from "./masks.js";

const SAID = 4; // classes in a line of words
const LONG = 24; // letters of a name on a picture
const DIGITS = 6; // of scores: thresholds are compared as they would be written

/** The answer as one of the classes below; pick(index or null): something is pointed at; asked: with what. */
export async function read(answer, card, pick, asked) {
  if (answer.objects) return new Objects(answer, card, pick);
  if (answer.files?.["classes.png"]) {
    const bytes = Uint8Array.from(atob(answer.files["classes.png"]), (one) => one.charCodeAt(0));
    return new Regions(answer, card, pick, await decode(bytes));
  }
  return answer.top ? new Labels(answer) : new Other(answer, asked);
}

/** What all have: `list` for the page, `words` for one line, `record` as JSON has it, `query` to ask for the same. */
class Other {
  constructor(answer, query = "") {
    this.record = answer;
    this.words = "The answer is in the JSON below.";
    this.list = null;
    this.query = query;
  }

  update() {}

  put(stage) {
    stage.draw();
  }
}

class Labels extends Other {
  constructor(answer) {
    super(answer);
    const chosen = answer.labels ?? [answer.label];
    this.words = answer.labels ? answer.labels.join(", ") || "No label" : `${answer.label}, ${percent(answer.score)}`;
    const rows = answer.top.map(({ label, score }) =>
      make(
        "li",
        { class: chosen.includes(label) ? "chosen" : null },
        make("span", { class: "name" }, label),
        bar(score),
        make("span", { class: "score" }, percent(score)),
      ),
    );
    this.list = make("ol", { class: "labels", "aria-label": "Labels, the best first" }, ...rows);
  }
}

class Objects extends Other {
  constructor(answer, card, pick) {
    super(answer);
    this.answer = answer;
    this.colors = card.colors;
    this.own = card.thresholds;
    this.objects = answer.objects.map((one, index) => ({ ...one, index })).sort((one, two) => two.score - one.score);
    const masks = this.objects.filter((one) => one.segmentation);
    this.layer = masks.length ? new Layer(...answer.size) : null;
    for (const one of masks) one.runs = runsOf(one.segmentation.counts);
    this.rows = this.objects.map((one) => row(one, this.colors[one.class_id], pick));
    const head = ["Object", "Score", "Box: x, y, width, height"].map((text) => make("th", { scope: "col" }, text));
    const caption = make("caption", { class: "unseen" }, "Objects, the surest first");
    this.list = make("table", {}, caption, make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...this.rows));
  }

  update(wish) {
    this.wish = wish;
    this.shown = this.objects.filter(
      (one) => wish.seen[one.class_id] && counts(one.score, wish.thresholds[one.class_id]),
    );
    const indices = new Set(this.shown.map((one) => one.index));
    this.objects.forEach((one, place) => {
      this.rows[place].hidden = !indices.has(one.index);
    });
    const totals = new Map();
    for (const one of this.shown) totals.set(one.name, (totals.get(one.name) ?? 0) + 1);
    const each = [...totals]
      .sort((one, two) => two[1] - one[1])
      .map(([name, count]) => (count === 1 ? name : `${name} \u00d7 ${count}`));
    const named = each.length > SAID + 1 ? [...each.slice(0, SAID), `${each.length - SAID} more classes`] : each;
    this.words = this.shown.length
      ? `${counted(this.shown.length, "object")}: ${named.join(", ")}`
      : "No objects from this threshold on";
    this.counts = new Map();
    for (const one of this.shown) this.counts.set(one.class_id, (this.counts.get(one.class_id) ?? 0) + 1);
    this.record = { ...this.answer, objects: this.answer.objects.filter((_, index) => indices.has(index)) };
    const least = Math.min(...wish.thresholds);
    this.query = wish.thresholds.every((one, place) => one === this.own[place]) ? "" : `?threshold=${least}`;
  }

  put(stage) {
    const { wish, shown } = this;
    stage.boxes = shown.map((one) => ({
      index: one.index,
      box: one.box,
      color: this.colors[one.class_id],
      text: wish.names ? `${short(one.name)} ${percent(one.score)}` : "",
    }));
    if (this.layer) {
      this.layer.clear();
      for (const one of [...shown].reverse()) this.layer.take(one.index + 1, one.runs); // the surest are on top
      const colors = [null],
        opacity = [0];
      for (const one of this.objects) {
        colors[one.index + 1] = levelsOf(this.colors[one.class_id]);
        opacity[one.index + 1] = wish.opacity * (stage.picked === null || stage.picked === one.index ? 1 : 0.2);
      }
      this.layer.paint(colors, opacity, true);
      stage.layer = this.layer.canvas;
    }
    stage.draw();
  }
}

function short(name) {
  return name.length > LONG ? `${name.slice(0, LONG - 1)}\u2026` : name;
}

function counts(score, threshold) {
  return score >= Number(threshold.toFixed(DIGITS));
}

function row(one, color, pick) {
  const button = make("button", { type: "button", class: "name", "aria-pressed": "false" }, swatch(color), one.name);
  button.addEventListener("click", () => pick(one.index, button));
  const cells = [
    button,
    make("span", { class: "scored" }, bar(one.score), percent(one.score)),
    one.box.map(Math.round).join(", "),
  ];
  return make(
    "tr",
    {},
    make("th", { scope: "row" }, cells[0]),
    make("td", {}, cells[1]),
    make("td", { class: "box" }, cells[2]),
  );
}

class Regions extends Other {
  constructor(answer, card, pick, map) {
    const { files, ...record } = answer;
    super(record);
    this.card = card;
    this.map = map;
    this.layer = new Layer(map.height, map.width);
    const shares = Object.entries(answer.shares);
    const best = shares.slice(0, 3).map(([name, share]) => `${name} ${percent(share)}`);
    this.words = best.join(", ") + (shares.length > 3 ? `, ${shares.length - 3} more` : "");
    this.rows = shares.map(([name, share]) => {
      const number = card.classes.indexOf(name),
        color = card.colors[number];
      const button = make("button", { type: "button", class: "name", "aria-pressed": "false" }, swatch(color), name);
      button.addEventListener("click", () => pick(number, button));
      const item = make("li", {}, button, bar(share, color), make("span", { class: "score" }, percent(share)));
      return { number, item };
    });
    this.list = make(
      "ol",
      { class: "labels", "aria-label": "Classes and their shares of the pixels" },
      ...this.rows.map((one) => one.item),
    );
  }

  update(wish) {
    this.wish = wish;
    for (const { number, item } of this.rows) item.hidden = !wish.seen[number];
  }

  put(stage) {
    const { seen, opacity } = this.wish,
      { classes, colors } = this.card;
    this.layer.takeClasses(this.map.classes, (number) => (seen[number] ? number + 1 : 0)); // 255 is no class
    const strength = classes.map(
      (_, number) => opacity * (stage.picked === null || stage.picked === number ? 1 : 0.15),
    );
    this.layer.paint([null, ...colors.map(levelsOf)], [0, ...strength], false);
    stage.layer = this.layer.canvas;
    stage.draw();
  }

  /** The class of a pixel of the picture. */
  at([x, y]) {
    const { height, width, classes } = this.map,
      column = Math.floor(x),
      row = Math.floor(y);
    const inside = column >= 0 && row >= 0 && column < width && row < height;
    return inside ? (this.card.classes[classes[row * width + column]] ?? "") : "";
  }
}
