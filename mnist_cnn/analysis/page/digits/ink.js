// digits/ink.py in JavaScript.

const CONTRAST = 24;

/** Separates ink from paper, without frames, lines and scraps at the border. */
function findParts(picture) {
  const {width, height} = picture, size = width * height;
  let {difference, distance, noise} = compare(picture, true);
  const isEven = noise < EVEN;
  let parts = ink(distance, noise, width, height);
  if (parts && count(parts) > 0.7 * size) parts = null;
  let page = parts && makePage(picture, difference, noise, parts, false);
  let found = page;
  let beyond = parts && ruled(Uint8Array.from(parts, part => part > 0), width, height);
  if (page && !some(page.touching) && !some(beyond)) return page;
  if (!parts) {  // the border shows no paper, or a frame alone
    ({difference, distance, noise} = compare(picture, false));
    parts = ink(distance, noise, width, height);
  }
  const inShadow = !isEven && parts && hasShadow(parts, width, height);
  const lit = inShadow && withoutShadow(picture);
  if (lit) {
    ({difference, distance, noise} = lit.compared);
    [page, found, parts] = [lit.page, lit.page, lit.page.parts];
    beyond = ruled(Uint8Array.from(parts, part => part > 0), width, height);
  }
  const removed = new Uint8Array(size);
  for (let turn = 0; turn < 3 && parts; turn++) {
    const mask = Uint8Array.from(parts, part => part > 0), framed = some(removed);
    const line = lines(mask.map((one, i) => one | removed[i]), width, height)
      .map((one, i) => one & mask[i]);
    if (page && !framed) {
      const share = hasSizeOfDigit(page, true) ? 0.7 : 0.95;  // a digit may go to the sides
      const across = inclined(mask, width, height, share);
      const turned = inclined(transpose(mask, width, height), height, width, share);
      const down = transpose(turned, height, width);
      for (let i = 0; i < size; i++) line[i] |= across[i] | down[i] | beyond[i];
    }
    const hasLine = some(line);
    if (hasLine) parts = label(mask.map((one, i) => one & (1 - line[i])), width, height).labels;
    if (hasLine || !found || framed) found = makePage(picture, difference, noise, parts, framed);
    const more = line.map((one, i) => one | found.scraps[found.parts[i]]);
    if (!some(more)) break;
    if (page && !framed && 5 * noise > CONTRAST) {
      const other = compare(picture, false);
      const darker = ink(other.distance, other.noise, width, height);
      if (darker && count(darker) <= 1.5 * count(mask)) {  // else a shadow would be ink
        const whole = found.parts.map(part => +(part > 0 && !found.touching[part]));
        const kept = whole.map((one, i) => one && +(darker[i] > 0));
        if (count(kept) >= 0.5 * count(whole)) ({difference, distance, noise} = other);
      }
    }
    for (let i = 0; i < size; i++) removed[i] |= more[i];
    const around = grow(removed, width, height, 2, 2).map((one, i) => one & (more[i] | (1 - mask[i])));
    const channels = picture.channels;
    difference = difference.map((value, i) => around[Math.floor(i / channels)] ? 0 : value);
    distance = distance.map((value, i) => around[i] ? 0 : value);
    parts = ink(distance, noise, width, height);
  }
  if (!found) throw new PictureError("no digit found: nothing stands out from the paper");
  return page && !(parts && hasSizeOfDigit(found)) ? page : found;
}

/** The comparison with paper in shadow, if it shows a figure of a digit's size and no shadow. */
function withoutShadow(picture) {
  const {width, height} = picture, compared = compareInShadow(picture);
  const parts = ink(compared.distance, compared.noise, width, height);
  if (!parts || hasShadow(parts, width, height)) return null;
  const page = makePage(picture, compared.difference, compared.noise, parts, false);
  return hasSizeOfDigit(page, true) ? {compared, page} : null;
}

/** Whether something much wider than a pen comes in from the border. */
function hasShadow(parts, width, height) {
  if (Math.min(width, height) < 100) return false;
  const touching = touchingParts(parts, width, height);
  const mask = Uint8Array.from(parts, part => touching[part]);
  if (count(mask) < 0.04 * mask.length) return false;
  const reach = Math.floor(Math.min(width, height) / 16);
  return some(filterSquares({width, height, channels: 1, values: mask}, reach, Math.min));
}

/** Whether each part touches the border. */
function touchingParts(parts, width, height) {
  const touching = new Uint8Array(parts.reduce((a, b) => Math.max(a, b), 0) + 1);
  parts.forEach((part, i) => {
    const y = Math.floor(i / width), x = i % width;
    if (part && (y === 0 || x === 0 || y === height - 1 || x === width - 1)) touching[part] = 1;
  });
  return touching;
}

/** How much of each pixel is the ink of the digit: `width`, `height`, `values`; cropped. */
function strokes(page, digit) {
  const {channels} = page, box = bounds(digit, page.width);
  const margin = Math.max(1, round(0.06 * Math.max(...sides(box))));
  const top = Math.max(0, box.top - margin), left = Math.max(0, box.left - margin);
  const height = Math.min(page.height, box.bottom + margin) - top;
  const width = Math.min(page.width, box.right + margin) - left;
  const places = Array.from({length: width * height}, (_, i) =>
    (top + Math.floor(i / width)) * page.width + left + i % width);
  const inside = Uint8Array.from(places, place => digit[place]);
  const chosen = places.filter(place => digit[place]);
  const direction = Array(channels).fill(0);
  for (const place of chosen) {
    for (let c = 0; c < channels; c++) {
      direction[c] = f32(direction[c] + page.difference[place * channels + c]);
    }
  }
  for (let c = 0; c < channels; c++) direction[c] = f32(direction[c] / chosen.length);
  const norm = f32(Math.max(Math.sqrt(direction.reduce((t, one) => f32(t + f32(one * one)), 0)), 1e-6));
  for (let c = 0; c < channels; c++) direction[c] = f32(direction[c] / norm);
  const along = place => {
    let total = 0;
    for (let c = 0; c < channels; c++) total += page.difference[place * channels + c] * direction[c];
    return f32(total);
  };
  const sorted = Float32Array.from(chosen, along).sort();
  const full = sorted[Math.floor(sorted.length * 3 / 4)];
  if (full <= 2.5 * page.noise) {
    throw new PictureError("no digit found: its strokes have no colour in common");
  }
  const wide = grow(inside, width, height, margin, margin);
  let drawn = {width, height, values: new Float32Array(width * height)};
  places.forEach((place, i) => {
    if (wide[i] && (inside[i] || page.parts[place] === 0)) drawn.values[i] = f32(along(place) / full);
  });
  drawn = sharpen(drawn);
  const least = f32(Math.min(0.3, Math.max(0.05, 2.5 * page.noise / full)));
  const values = drawn.values.map(value => value > least ? clip(value, 0, 1) : 0);
  return crop({...drawn, values}, bounds(values, drawn.width));
}

function crop({width, values}, box) {
  const [height, across] = sides(box), cropped = new Float32Array(height * across);
  for (let y = 0; y < height; y++) {
    const start = (box.top + y) * width + box.left;
    cropped.set(values.subarray(start, start + across), y * across);
  }
  return {width: across, height, values: cropped};
}

function hasSizeOfDigit(page, inside = false) {
  const left = inside ? page.touching : page.scraps;
  const sizes = page.boxes.map((box, i) => left[i + 1] ? 0 : Math.max(...sides(box)));
  return Math.max(0, ...sizes) >= Math.max(5, 0.2 * Math.min(page.width, page.height));
}

/** The smallest box around the values that are not 0. */
function bounds(values, width) {
  const box = {top: Infinity, bottom: 0, left: width, right: 0};
  for (let i = 0; i < values.length; i++) if (values[i]) widen(box, Math.floor(i / width), i % width);
  return box;
}

function widen(box, y, x) {
  box.top = Math.min(box.top, y);
  box.bottom = Math.max(box.bottom, y + 1);
  box.left = Math.min(box.left, x);
  box.right = Math.max(box.right, x + 1);
}

/** How far apart boxes are, in the direction in which they are farther. */
function gap(a, b) {
  return Math.max(Math.max(a.top - b.bottom, b.top - a.bottom), Math.max(a.left - b.right, b.left - a.right));
}

/** The mask of the largest part and those close to it. */
function figure(page) {
  const size = page.width * page.height;
  const weight = n => page.areas[n] * (page.scraps[n] ? 0.05 : page.touching[n] ? 0.35 : 1);
  let largest = 0;
  for (let n = 0; n < page.areas.length; n++) if (weight(n) > weight(largest)) largest = n;
  const area = page.areas[largest], longest = Math.max(...sides(page.boxes[largest - 1]));
  if (longest < Math.max(5, 0.04 * Math.min(page.width, page.height))) {
    throw new PictureError("no digit found: only specks stand out from the paper");
  }
  if (area > 0.7 * size) throw new PictureError("no digit found: there is no paper around it");
  const inside = page.framed && isInside(page), thin = hairlines(page);
  let others = [];
  for (let n = 0; n < page.areas.length; n++) {
    if (page.areas[n] >= 0.05 * area && !page.scraps[n] && !thin[n] && n !== largest
      && (page.touching[largest] || !page.touching[n]) && (!inside || inside[n])) others.push(n);
  }
  const near = [largest];
  for (const number of near) {  // and those close to these
    const close = others.filter(n => gap(page.boxes[n - 1], page.boxes[number - 1]) <= 0.2 * longest);
    near.push(...close);
    others = others.filter(n => !close.includes(n));
  }
  return maskOf(page, near);
}

function maskOf(page, numbers) {
  const chosen = new Uint8Array(page.areas.length);
  for (const number of numbers) chosen[number] = 1;
  return Uint8Array.from(page.parts, part => chosen[part]);
}

/** The mean width of the strokes, in pixels. */
function strokeWidth({width, height, values}) {
  const mask = Uint8Array.from(values, value => value > 0.5);
  let outline = 0;
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const i = y * width + x;
      if (y > 0) outline += mask[i] ^ mask[i - width];
      if (x > 0) outline += mask[i] ^ mask[i - 1];
      if (mask[i]) outline += (y === 0) + (y === height - 1) + (x === 0) + (x === width - 1);
    }
  }
  return 2 * sum(values) / Math.max(1, outline * Math.PI / 4);
}

/** Parts that are much thinner than the pen of the largest part: pieces of printed lines. */
function hairlines(page) {
  let largest = 0;
  for (let n = 0; n < page.areas.length; n++) if (page.areas[n] > page.areas[largest]) largest = n;
  const maskIn = n => crop({
    width: page.width, values: Float32Array.from(page.parts, part => part === n ? 1 : 0),
  }, page.boxes[n - 1]);
  const pen = strokeWidth(maskIn(largest)), extents = n => sides(page.boxes[n - 1]);
  const crossings = page.areas.map((area, n) => {
    const [height, width] = n ? extents(n) : [0, 0];
    return area < 0.55 * pen * (height + width) && isCrossing(maskIn(n)) ? 1 : 0;
  });
  const share = some(crossings) ? 0.45 : 0.35;  // without crossings it may be a thin 1
  return crossings.map((one, n) =>
    one || (n && page.areas[n] < share * pen * Math.max(...extents(n))) ? 1 : 0);
}

/** Whether each part is mostly off the border. */
function isInside(page) {
  const inside = areasInside(page.parts, page.width, page.height, 0.24, page.areas.length);
  return inside.map((area, n) => area > 0.4 * page.areas[n] ? 1 : 0);
}

/** What stands out from the paper, in connected parts 1, 2, ...; null if nothing does. */
function ink(distance, noise, width, height) {
  const least = Math.max(8, Math.floor(distance.length / 500));
  if (distance.length <= least) throw new PictureError("too small to show a digit");
  const half = f32(0.5 * distance.reduce((a, b) => Math.max(a, b), 0));
  let strong = distance.filter(value => value > half);
  if (strong.length < least) strong = distance.slice();
  const darkest = f32(sum(strong.sort().slice(-least)) / least);
  if (darkest < Math.max(CONTRAST, 5 * noise)) return null;
  const high = f32(0.45 * darkest);
  const low = f32(Math.min(0.45 * darkest, Math.max(0.25 * darkest, 4 * noise, 8)));
  const {labels, number} = label(distance.map(value => value > low ? 1 : 0), width, height);
  const dark = new Uint8Array(number + 1), names = new Int32Array(number + 1);
  distance.forEach((value, i) => { if (value > high) dark[labels[i]] = 1; });
  for (let n = 0, last = dark[0]; n <= number; n++) {
    if (n) last += dark[n];
    names[n] = dark[n] * last;
  }
  return labels.map(n => names[n]);
}

/** The number of pixels of each part that are not in the edge. */
function areasInside(parts, width, height, share, length) {
  const edge = edgeWidth(width, height, share), areas = new Float64Array(length);
  for (let y = edge; y < height - edge; y++) {
    for (let x = edge; x < width - edge; x++) areas[parts[y * width + x]]++;
  }
  return areas;
}

function makePage({width, height, channels}, difference, noise, parts, framed) {
  const number = parts.reduce((a, b) => Math.max(a, b), 0);
  const areas = new Float64Array(number + 1), touching = touchingParts(parts, width, height);
  const boxes = Array.from({length: number}, () => ({top: Infinity, bottom: 0, left: Infinity, right: 0}));
  parts.forEach((part, i) => {
    if (!part) return;
    const y = Math.floor(i / width), x = i % width;
    areas[part]++;
    widen(boxes[part - 1], y, x);
  });
  const inside = areasInside(parts, width, height, 0.14, number + 1);
  const scraps = touching.map((one, n) => one && 1 - inside[n] / Math.max(areas[n], 1) > 0.5 ? 1 : 0);
  return {width, height, channels, difference, noise, parts, boxes, areas, touching, scraps, framed};
}

/** Opens the holes of a blurred digit, whose edges are all wider than a pixel of 20x20. */
function sharpen(drawn) {
  const {width, height, values} = drawn, size = Math.max(width, height);
  const step = Math.max(1, round(size / 20));
  let steepest = 0;
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const i = y * width + x;
      if (y >= step) steepest = Math.max(steepest, Math.abs(f32(values[i] - values[i - step * width])));
      if (x >= step) steepest = Math.max(steepest, Math.abs(f32(values[i] - values[i - step])));
    }
  }
  if (steepest >= 0.75) return drawn;
  const factor = Math.max(1, Math.floor(size / 32));
  const small = means(pad(drawn, Math.floor(size / 8)), factor);
  const soft = gaussian(small, Math.floor(size / factor) / 8);
  small.values = small.values.map((value, i) => value + f32(4 * f32(value - soft[i])));
  const dark = small.values.filter(value => value > f32(0.3)).sort();
  const full = dark[Math.floor(dark.length * 3 / 4)];
  return {...small, values: small.values.map(value => value / full)};
}
