// The page: what the model is, pictures in, answers out.

import { counted, make } from "./dom.js";
import { Controls } from "./controls.js";
import { Picture } from "./picture.js";
import { Server } from "./server.js";

const MOST = 64; // pictures on the page
const AT_ONCE = 3; // pictures that are asked for
const QUIET = 700; // milliseconds without a change before it is said aloud
const at = (id) => document.getElementById(id);

class Page {
  pictures = [];
  waiting = [];
  asked = 0;

  constructor() {
    this.server = new Server((wrong) => token(wrong));
    this.drawing = false;
  }

  /** Ask what the model is; until it is known nothing can be chosen. */
  async begin() {
    at("again").hidden = true;
    at("wrong").textContent = "";
    try {
      this.card = await this.server.card();
    } catch (error) {
      at("wrong").textContent = error.message;
      at("again").hidden = false;
      return;
    }
    this.controls = new Controls(at("controls"), this.card, () => this.draw());
    this.#tell();
    at("choose").disabled = at("photograph").disabled = false;
  }

  #tell() {
    const { card } = this,
      film = card.videos;
    facts(card);
    const kind = film ? "video/*" : "image/*";
    at("files").accept = at("camera").accept = kind;
    if (film) {
      at("invitation").textContent = "Drop films anywhere on this page, or choose files.";
      at("choose").textContent = "Choose films";
      at("photograph").textContent = "Take a film";
    }
    const most = `${(card.limits.body / 1e6).toFixed(0)} MB`;
    at("limits").textContent = `Up to ${most} each. They go to this server alone, and it keeps none.`;
    const list = at("classes");
    list.hidden = false;
    list.querySelector("summary").textContent = counted(card.classes.length, "class").replace("classs", "classes");
    list.querySelector("ul").replaceChildren(...card.classes.map((name) => make("li", {}, name)));
  }

  /** Take files, as many as there are. */
  add(files) {
    if (!this.card || !files.length) return;
    document.body.classList.add("begun");
    at("work").hidden = at("clear").hidden = false;
    const taken = files.slice(0, Math.max(0, MOST - this.pictures.length)),
      left = files.length - taken.length;
    at("wrong").textContent = left
      ? `${MOST} pictures at most are held here, ${left} were left out: remove some first.`
      : "";
    for (const file of taken) {
      const picture = new Picture(file, {
        server: this.server,
        card: this.card,
        controls: this.controls,
        say: (text) => this.say(text),
        changed: () => this.#answered(),
        removed: (one) => this.remove(one),
        retried: (one) => this.#queue(one),
      });
      this.pictures.push(picture);
      at("pictures").append(picture.element);
      this.#queue(picture);
    }
    at("pictures").dataset.count = Math.min(2, this.pictures.length);
  }

  remove(picture) {
    const place = this.pictures.indexOf(picture);
    this.pictures.splice(place, 1);
    this.waiting = this.waiting.filter((one) => one !== picture);
    picture.close();
    const next = this.pictures[Math.min(place, this.pictures.length - 1)];
    (next?.element.querySelector("header button") ?? at("choose")).focus();
    at("pictures").dataset.count = Math.min(2, this.pictures.length);
    at("work").hidden = at("clear").hidden = this.pictures.length === 0;
    document.body.classList.toggle("begun", this.pictures.length > 0);
    this.say(`${picture.name} removed`);
    this.draw();
  }

  /** Draw all again, once before the next frame. */
  draw() {
    if (this.drawing) return;
    this.drawing = true;
    requestAnimationFrame(() => {
      this.drawing = false;
      for (const one of this.pictures) one.update(this.controls.wish);
      this.controls.tally(this.pictures.map((one) => one.found));
    });
    clearTimeout(this.telling);
    this.telling = setTimeout(() => this.#sum(), QUIET);
  }

  say(text) {
    at("said").textContent = text;
  }

  #answered() {
    for (const one of this.pictures) one.update(this.controls.wish);
    const found = this.pictures.map((one) => one.found);
    this.controls.offer(found);
    this.controls.tally(found);
    this.server.card().then(
      (card) => facts(card),
      () => {},
    ); // its latency is known now
  }

  #sum() {
    const shown = this.pictures.filter((one) => one.found?.shown);
    if (!shown.length || shown.every((one) => one.said === one.found.words)) return;
    const first = shown.some((one) => one.said === undefined);
    for (const one of shown) one.said = one.found.words;
    if (!first)
      this.say(
        `${counted(
          shown.reduce((sum, one) => sum + one.found.shown.length, 0),
          "object",
        )} shown`,
      );
  }

  #queue(picture) {
    this.waiting.push(picture);
    this.#next();
  }

  async #next() {
    if (this.asked === AT_ONCE || !this.waiting.length) return;
    this.asked++;
    await this.waiting.shift().ask();
    this.asked--;
    this.#next();
  }
}

/** What the model is, in the head of the page. */
function facts(card) {
  const latency = card.latency === null ? "none yet" : `${(1000 * card.latency).toFixed(0)} ms`;
  const { backbone, head, validation, input } = card.facts;
  const told = {
    Task: card.task.replaceAll("_", " "),
    Classes: String(card.classes.length),
    Validation: validation,
    Input: input,
    Model: [backbone, head].filter(Boolean).join(" + "),
    "Median answer": latency,
    patchform: card.patchform,
  };
  const rows = Object.entries(told).filter(([, value]) => value);
  at("facts").replaceChildren(
    ...rows.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value))),
  );
  document.title = `${told.Task} \u00b7 patchform`;
}

/** Ask for the token: it, or null. */
function token(wrong) {
  const door = at("door"),
    field = at("token");
  at("door-wrong").textContent = wrong ? "That is not it." : "";
  field.value = "";
  door.showModal();
  field.focus();
  return new Promise((resolve) => {
    let given = null;
    const form = door.querySelector("form");
    const sent = (event) => {
      event.preventDefault();
      given = field.value.trim();
      if (/^[\x20-\x7e]+$/.test(given)) return door.close();
      given = null;
      at("door-wrong").textContent = "A token has letters, digits and signs of ASCII.";
    };
    form.addEventListener("submit", sent);
    at("door-leave").onclick = () => door.close();
    door.addEventListener(
      "close",
      () => {
        form.removeEventListener("submit", sent);
        field.value = "";
        resolve(given);
      },
      { once: true },
    );
  });
}

function listen(page) {
  for (const [button, input] of [
    ["choose", "files"],
    ["photograph", "camera"],
  ]) {
    at(button).addEventListener("click", () => at(input).click());
    at(input).addEventListener("change", (event) => {
      page.add([...event.target.files]);
      event.target.value = ""; // the same file may be chosen again
    });
  }
  at("again").addEventListener("click", () => page.begin());
  at("clear").addEventListener("click", () => {
    for (const one of [...page.pictures]) page.remove(one);
  });
  addEventListener("paste", (event) => {
    const files = [...event.clipboardData.files];
    if (files.length && !event.target.matches?.("input")) event.preventDefault();
    page.add(files);
  });
  const files = (event) => event.dataTransfer?.types.includes("Files");
  addEventListener("dragover", (event) => {
    if (!files(event)) return;
    event.preventDefault();
    document.body.classList.add("over");
  });
  addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) document.body.classList.remove("over");
  });
  addEventListener("drop", (event) => {
    document.body.classList.remove("over");
    if (!files(event)) return;
    event.preventDefault();
    page.add([...event.dataTransfer.files]);
  });
}

const page = new Page();
listen(page);
page.begin();
