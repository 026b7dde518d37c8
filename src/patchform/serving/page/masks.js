// Which pixel belongs to what: masks of objects and classes of pixels, as a picture to lay over another.

const MOST = 2_000_000; // pixels of a layer: of larger pictures every second or third is looked at
const EDGE = 0.35; // by which the edge of a mask is less transparent than what is inside

/** Lengths of runs, outside and inside in turn, column by column, of COCO's compressed text. */
export function runsOf(text) {
  const runs = [];
  for (let at = 0; at < text.length;) {
    let value = 0,
      shift = 0,
      code;
    do {
      code = text.charCodeAt(at++) - 48;
      value |= (code & 31) << shift;
      shift += 5;
    } while (code & 32);
    if (code & 16 && shift < 32) value |= -1 << shift;
    if (runs.length > 2) value += runs[runs.length - 2];
    runs.push(value);
  }
  return runs;
}

/** Owners of pixels: 0 is nobody. */
export class Layer {
  /** height, width: of the picture, pixels. */
  constructor(height, width) {
    const share = Math.min(1, Math.sqrt(MOST / (height * width)));
    this.picture = [height, width];
    this.height = Math.max(1, Math.round(height * share));
    this.width = Math.max(1, Math.round(width * share));
    this.owners = new Uint16Array(this.height * this.width);
    this.canvas = new OffscreenCanvas(this.width, this.height);
  }

  clear() {
    this.owners.fill(0);
  }

  /** The pixels of a mask belong to `owner`; `runs` of `runsOf`, of a picture of this size. */
  take(owner, runs) {
    const [height, width] = this.picture;
    const across = this.width / width,
      down = this.height / height;
    for (let index = 0, begin = 0; index < runs.length; begin += runs[index++]) {
      const end = begin + runs[index];
      if (index % 2 === 0 || end === begin) continue;
      const first = Math.floor(begin / height),
        last = Math.floor((end - 1) / height);
      // a pixel of the layer shows the pixel of the picture below its middle
      for (let column = Math.ceil(first * across - 0.5); column < (last + 1) * across - 0.5; column++) {
        const place = Math.floor((column + 0.5) / across);
        const top = place === first ? begin - first * height : 0;
        const bottom = place === last ? end - last * height : height;
        for (let row = Math.ceil(top * down - 0.5); row < bottom * down - 0.5; row++) {
          this.owners[row * this.width + column] = owner;
        }
      }
    }
  }

  /** Each pixel belongs to what `owner` says of its class; `classes` row by row. */
  takeClasses(classes, owner) {
    const [height, width] = this.picture;
    for (let row = 0, at = 0; row < this.height; row++) {
      const start = Math.floor(((row + 0.5) * height) / this.height) * width;
      for (let column = 0; column < this.width; column++, at++) {
        this.owners[at] = owner(classes[start + Math.floor(((column + 0.5) * width) / this.width)]);
      }
    }
  }

  /** Paint `canvas`: colors [red, green, blue] and opacity in 0..1, by owner; with edges or without. */
  paint(colors, opacity, edges) {
    const { width, height, owners } = this;
    const image = new ImageData(width, height),
      words = new Uint32Array(image.data.buffer);
    const word = ([red, green, blue], share) =>
      ((Math.min(255, Math.round(255 * share)) << 24) | (blue << 16) | (green << 8) | red) >>> 0; // little-endian
    const inside = colors.map((color, owner) => color && word(color, opacity[owner]));
    const outline = colors.map((color, owner) => color && word(color, opacity[owner] && opacity[owner] + EDGE));
    for (let row = 0, at = 0; row < height; row++) {
      for (let column = 0; column < width; column++, at++) {
        const owner = owners[at];
        if (owner === 0) continue;
        const edge =
          edges &&
          (column === 0 ||
            owners[at - 1] !== owner ||
            column === width - 1 ||
            owners[at + 1] !== owner ||
            row === 0 ||
            owners[at - width] !== owner ||
            row === height - 1 ||
            owners[at + width] !== owner);
        words[at] = edge ? outline[owner] : inside[owner];
      }
    }
    this.canvas.getContext("2d").putImageData(image, 0, 0);
  }
}

/** [red, green, blue] of "#rrggbb". */
export function levelsOf(color) {
  return [1, 3, 5].map((at) => parseInt(color.slice(at, at + 2), 16));
}
