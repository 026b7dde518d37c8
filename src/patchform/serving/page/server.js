// What is asked of the server.

const KEPT = "patchform-token";
const TRIES = 5; // of a picture that comes back because the server is busy
const PATIENCE = 8; // seconds between two of them at most

/** An answer that is none: `message` is for people. */
export class Refused extends Error {
  constructor(message, again) {
    super(message);
    this.again = again;
  }
}

export class Server {
  #token = remembered();
  #asking = null;

  /** askToken(wrong): promises a token, or null where nobody gives one. */
  constructor(askToken) {
    this.askToken = askToken;
  }

  /** Whether it asks for a token, as far as is known. */
  get locked() {
    return this.#token !== null;
  }

  /** What the model is. */
  async card() {
    return read(await this.#ask("card", {}));
  }

  /** The answer to a file, with all objects from `threshold` on; say(text): what is waited for. */
  async predict(file, threshold, signal, say) {
    const body = { method: "POST", body: file, headers: { "content-type": typeOf(file) }, signal };
    for (let tries = 1; ; tries++) {
      const response = await this.#ask(`predict?threshold=${threshold}&files=true`, body);
      const pause = Number(response.headers.get("retry-after"));
      if (response.status !== 503 || !pause || tries === TRIES) return read(response);
      const seconds = Math.min(PATIENCE, pause * tries);
      say(`The server is busy; asked again in ${seconds} s`);
      await passed(1000 * seconds, signal);
    }
  }

  async #ask(path, options) {
    for (;;) {
      const token = this.#token;
      const headers = { ...options.headers, ...(token ? { authorization: `Bearer ${token}` } : {}) };
      const response = await reached(path, { ...options, headers, credentials: "omit", cache: "no-store" });
      if (response.status !== 401) return response;
      if (this.#token !== token) continue; // given meanwhile
      this.#asking ??= this.askToken(Boolean(token)).finally(() => {
        this.#asking = null;
      });
      const given = await this.#asking;
      if (given === null) throw new Refused("This server answers those who have its token.", true);
      this.#token = given;
      remember(given);
    }
  }
}

/** What a file is sent as. */
export function typeOf(file) {
  return /^(image|video)\/[\w.+-]+$/.test(file.type) ? file.type : "application/octet-stream";
}

async function reached(path, options) {
  try {
    return await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused("The server was not reached, or it ended the connection. Is it still running?", true);
  }
}

async function read(response) {
  let content = null;
  try {
    content = await response.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
  }
  if (response.ok && content !== null) return content;
  const said = content?.message ?? `the server answered ${response.status}, and nothing that this page can read`;
  throw new Refused(said[0].toUpperCase() + said.slice(1) + ".", response.status >= 500);
}

function passed(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, milliseconds);
    signal.addEventListener(
      "abort",
      () => {
        clearTimeout(timer);
        reject(new DOMException("removed", "AbortError"));
      },
      { once: true },
    );
  });
}

// A browser may forbid pages to keep anything: then the token lasts as long as the page.
function remembered() {
  try {
    return sessionStorage.getItem(KEPT);
  } catch {
    return null;
  }
}

function remember(token) {
  try {
    sessionStorage.setItem(KEPT, token);
  } catch {
    /* see above */
  }
}
