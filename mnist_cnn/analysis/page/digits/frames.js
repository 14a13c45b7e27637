// digits/frames.py in JavaScript.

/** Straight lines that come in from a side of the picture and go along another near its border. */
function lines(mask, width, height) {
  if (Math.min(width, height) < 48) return new Uint8Array(mask.length);
  const [across, acrossThin] = linesAcross(mask, width, height);
  const [down, downThin] = linesAcross(transpose(mask, width, height), height, width)
    .map(one => transpose(one, height, width));
  return across.map((one, i) => acrossThin[i] | downThin[i] | (one & down[i]));
}

function transpose(values, width, height) {
  const result = new values.constructor(values.length);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) result[x * height + y] = values[y * width + x];
  }
  return result;
}

/** The horizontal lines, and these without what crosses them. */
function linesAcross(mask, width, height) {
  const wide = grow(mask, width, height, Math.max(1, Math.floor(height / 48)), 0);
  const top = round(0.28 * height), rows = [], none = () => new Uint8Array(mask.length);
  for (let y = 0; y < height; y++) {
    if (y >= top && y < height - top) continue;
    if (count(wide.subarray(y * width, (y + 1) * width)) >= 0.4 * width) rows.push(y);
  }
  const long = none();
  for (const y of rows) {
    const found = longRun(wide.subarray(y * width, (y + 1) * width),
      round(0.6 * width), Math.floor(width / 8));
    for (let x = 0; x < width; x++) long[y * width + x] = found[x] & mask[y * width + x];
  }
  if (!some(long)) return [long, long];
  const crossing = upright(mask, width, height, round(0.12 * height) + 1);
  const thin = long.map((one, i) => one & (1 - crossing[i]));
  let columns = 0;
  for (let x = 0; x < width; x++) {
    for (let y = 0; y < height; y++) if (thin[y * width + x]) { columns++; break; }
  }
  return columns < 0.4 * width ? [none(), none()] : [long, thin];
}

/** Thin straight lines along this share of the width, inclined by up to 14 degrees. */
function inclined(mask, width, height, share) {
  const found = new Uint8Array(mask.length), places = [];
  if (Math.min(width, height) < 48) return found;
  mask.forEach((one, i) => { if (one) places.push(i); });
  const furthest = Math.floor(width / 4);
  for (let rise = -furthest; rise <= furthest; rise += 2) {
    const offset = places.map(i => Math.floor(i / width) - Math.floor(i % width * rise / width) + width);
    const covered = new Int32Array(height + 2 * width);
    for (const one of offset) covered[one]++;
    const enough = covered.map(n => n >= share * width ? 1 : 0), n = enough.length;
    if (!some(enough)) continue;
    places.forEach((place, i) => {
      const o = offset[i];
      if (enough[o] | enough[(o + n - 1) % n] | enough[(o + 1) % n]) found[place] = 1;
    });
  }
  if (!some(found)) return found;
  const crossing = upright(mask, width, height, round(0.08 * height) + 1);
  return found.map((one, i) => one & (1 - crossing[i]));
}

/** Thin straight lines that go on to both sides of all other ink, of which a digit is part. */
function ruled(mask, width, height) {
  const found = new Uint8Array(mask.length);
  for (const turned of [false, true]) {  // horizontal lines, then vertical ones
    const [w, h] = turned ? [height, width] : [width, height];
    const left = mask.map((one, i) => one & (1 - found[i]));
    const rest = turned ? transpose(left, width, height) : left;
    const crossing = upright(rest, w, h, round(0.08 * h) + 1), columns = new Uint8Array(w);
    rest.forEach((one, i) => { if (one && !crossing[i]) columns[i % w] = 1; });
    if (count(columns) < 0.5 * w) continue;
    const line = inclined(rest, w, h, 0.65), boxes = [];
    if (!some(line)) continue;
    label(rest.map((one, i) => one & (1 - line[i])), w, h).labels.forEach((part, i) => {
      if (!part) return;
      const x = i % w, y = Math.floor(i / w);
      const box = boxes[part] ??= {area: 0, left: x, right: x, top: y, bottom: y};
      box.area++;
      [box.left, box.right] = [Math.min(box.left, x), Math.max(box.right, x)];
      [box.top, box.bottom] = [Math.min(box.top, y), Math.max(box.bottom, y)];
    });
    const parts = boxes.filter(box => box), most = Math.max(0, ...parts.map(box => box.area));
    const large = parts.filter(box => box.area >= 0.05 * most);
    const extents = large.flatMap(box => [box.right - box.left + 1, box.bottom - box.top + 1]);
    if (Math.max(0, ...extents) < 0.2 * Math.min(w, h)) continue;
    const places = [];
    line.forEach((one, i) => { if (one) places.push(i % w); });
    const first = places.reduce((a, b) => Math.min(a, b)), last = places.reduce((a, b) => Math.max(a, b));
    const start = Math.min(...large.map(box => box.left));
    const stop = Math.max(...large.map(box => box.right)) + 1;
    if (first < start - 0.1 * w && last >= stop + 0.1 * w) {
      (turned ? transpose(line, w, h) : line).forEach((one, i) => { found[i] |= one; });
    }
  }
  return found;
}

/** Whether a part is where thin lines along the picture's sides cross or meet. */
function isCrossing({width, height, values}) {
  const part = Uint8Array.from(values), all = count(part);
  const thick = Math.floor(5 * all / (width + height));
  const length = Math.max(Math.floor(Math.max(width, height) / 5), thick, 6);
  if (Math.min(width, height) < 2 * length) return false;
  const down = upright(part, width, height, length);
  const across = transpose(
    upright(transpose(part, width, height), height, width, length), height, width);
  return count(down.map((one, i) => one | across[i])) >= 0.9 * all
    && Math.min(count(down), count(across)) >= 0.25 * all;
}

/** The vertical runs of at least this length. */
function upright(mask, width, height, length) {
  const runs = new Uint8Array(mask.length);
  for (let x = 0; x < width; x++) {
    for (let y = 0, start = 0; y <= height; y++) {
      if (y < height && mask[y * width + x]) continue;
      if (y - start >= length) for (let row = start; row < y; row++) runs[row * width + x] = 1;
      start = y + 1;
    }
  }
  return runs;
}

/** The runs of a row from a side of at least this length, with gaps up to this one. */
function longRun(row, length, gap) {
  const width = row.length, found = new Uint8Array(width), runs = [];
  for (let x = 0, start = -1; x <= width; x++) {
    if (x < width && row[x]) {
      if (start < 0) start = x;
    } else if (start >= 0) {
      const last = runs[runs.length - 1];
      if (last && start - last[1] <= gap) last[1] = x;
      else runs.push([start, x]);
      start = -1;
    }
  }
  for (const [start, stop] of runs) {
    const filled = count(row.subarray(start, stop));
    if (stop - start >= length && Math.min(start, width - stop) < 3 + Math.floor(gap / 2)
      && filled >= 0.8 * (stop - start)) found.fill(1, start, stop);
  }
  return found;
}

/** The mask, wider by a number of rows at its top and bottom, and of columns. */
function grow(mask, width, height, rows, columns) {
  for (const [n, stride, lines, step, reach] of [
    [height, width, width, 1, rows], [width, 1, height, width, columns],
  ]) {
    if (!reach) continue;
    const grown = new Uint8Array(mask.length);
    for (let line = 0; line < lines; line++) {
      for (let i = 0; i < n; i++) {
        const place = line * step + i * stride;
        if (!mask[place]) continue;
        for (let other = Math.max(0, i - reach); other <= Math.min(n - 1, i + reach); other++) {
          grown[line * step + other * stride] = 1;
        }
      }
    }
    mask = grown;
  }
  return mask;
}
