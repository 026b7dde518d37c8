// Numbers of classes in a PNG file. Browsers decode such a file to colours, of which several classes may have the same.

const HEAD = 8; // bytes of the signature

/** {height, width, classes: Uint8Array row by row} of a PNG of 8 bits a pixel, one number each, not interlaced. */
export async function decode(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  let width = 0,
    height = 0;
  const pieces = [];
  for (let at = HEAD; at < bytes.length;) {
    const length = view.getUint32(at),
      kind = String.fromCharCode(...bytes.subarray(at + 4, at + 8)),
      from = at + 8;
    if (kind === "IHDR") {
      width = view.getUint32(from);
      height = view.getUint32(from + 4);
      const [bits, color, , , interlaced] = bytes.subarray(from + 8, from + 13);
      if (bits !== 8 || (color !== 3 && color !== 0) || interlaced) throw new Error("a PNG of another kind");
    } else if (kind === "IDAT") {
      pieces.push(bytes.subarray(from, from + length));
    }
    at = from + length + 4;
  }
  const stream = new Blob(pieces).stream().pipeThrough(new DecompressionStream("deflate"));
  const rows = new Uint8Array(await new Response(stream).arrayBuffer());
  if (rows.length !== height * (width + 1)) throw new Error("a PNG that is cut short");
  return { height, width, classes: unfiltered(rows, height, width) };
}

/** Each row has a number in front that says what is added to its bytes (PNG, section 9). */
function unfiltered(rows, height, width) {
  const classes = new Uint8Array(height * width);
  for (let row = 0; row < height; row++) {
    const filter = rows[row * (width + 1)];
    for (let column = 0; column < width; column++) {
      const at = row * width + column;
      const left = column ? classes[at - 1] : 0,
        above = row ? classes[at - width] : 0;
      const corner = column && row ? classes[at - width - 1] : 0;
      const added = [0, left, above, (left + above) >> 1, filter === 4 ? nearest(left, above, corner) : 0][filter];
      classes[at] = rows[row * (width + 1) + 1 + column] + added;
    }
  }
  return classes;
}

/** Paeth's predictor. */
function nearest(left, above, corner) {
  const guess = left + above - corner;
  const far = [left, above, corner].map((one) => Math.abs(guess - one));
  if (far[0] <= far[1] && far[0] <= far[2]) return left;
  return far[1] <= far[2] ? above : corner;
}
