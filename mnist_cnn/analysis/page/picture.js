// A picture -> the form of the network's images: mnist_cnn/digits/ in JavaScript.
// Functions have the names of the Python files, and compute the same steps in the same order;
// tests/commands/test_export_page.py compares their results. A mask is a Uint8Array of 0 and 1.

class PictureError extends Error {}

const f32 = Math.fround;

/** Python's round and NumPy's rint: half to even. */
function round(x) {
  const low = Math.floor(x), rest = x - low;
  return rest < 0.5 || (rest === 0.5 && low % 2 === 0) ? low : low + 1;
}

const clip = (x, low, high) => Math.min(Math.max(x, low), high);
const count = mask => mask.reduce((sum, one) => sum + (one ? 1 : 0), 0);
const some = mask => mask.some(one => one);
const sides = box => [box.bottom - box.top, box.right - box.left];

/** The sum as NumPy computes it, with float32's rounding: `n` values from `start`. */
function sum(values, start = 0, n = values.length) {
  let result = 0;
  if (n < 8) {
    for (let i = 0; i < n; i++) result = f32(result + values[start + i]);
    return result;
  }
  if (n > 128) {
    const half = (n >> 1) - (n >> 1) % 8;
    return f32(sum(values, start, half) + sum(values, start + half, n - half));
  }
  const r = Array.from(values.slice(start, start + 8));
  let i = 8;
  for (; i < n - n % 8; i += 8) for (let j = 0; j < 8; j++) r[j] = f32(r[j] + values[start + i + j]);
  result = f32(f32(f32(r[0] + r[1]) + f32(r[2] + r[3])) + f32(f32(r[4] + r[5]) + f32(r[6] + r[7])));
  for (; i < n; i++) result = f32(result + values[start + i]);
  return result;
}

// ink.py: a picture has `width`, `height`, `data` (RGBA bytes) and `scale`.

const CONTRAST = 24;

/** The grey (1 channel) or RGB values at the working size: `height`, `width`, `channels`, `values`. */
function colours(image, side = 320) {
  const factor = Math.ceil(Math.sqrt(image.width * image.height) / side);
  let transparent = false;
  for (let i = 3; i < image.data.length && !transparent; i += 4) transparent = image.data[i] < 255;
  const {width, height, data} = reduce(image, factor, transparent);
  let values = new Float32Array(3 * width * height), grey = true;
  for (let i = 0; i < width * height; i++) {
    for (let c = 0; c < 3; c++) values[3 * i + c] = data[4 * i + c];
  }
  if (transparent) blend(values, data);
  for (let i = 0; i < values.length && grey; i += 3) {
    grey = values[i] === values[i + 1] && values[i] === values[i + 2];
  }
  if (grey) values = values.filter((_, i) => i % 3 === 0);
  return {width, height, channels: grey ? 1 : 3, values};
}

/** The means of squares of pixels, as Pillow's `reduce` rounds them. */
function reduce(image, factor, transparent) {
  if (factor <= 1) return image;
  const width = Math.ceil(image.width / factor), height = Math.ceil(image.height / factor);
  const data = new Uint8ClampedArray(4 * width * height), from = image.data;
  for (let y = 0; y < height; y++) {
    const bottom = Math.min((y + 1) * factor, image.height);
    for (let x = 0; x < width; x++) {
      const right = Math.min((x + 1) * factor, image.width);
      let red = 0, green = 0, blue = 0, alpha = 0;
      for (let row = y * factor; row < bottom; row++) {
        let i = 4 * (row * image.width + x * factor);
        for (const end = 4 * (row * image.width + right); i < end; i += 4) {
          const opacity = from[i + 3];
          red += transparent ? times(from[i], opacity) : from[i];
          green += transparent ? times(from[i + 1], opacity) : from[i + 1];
          blue += transparent ? times(from[i + 2], opacity) : from[i + 2];
          alpha += opacity;
        }
      }
      const n = (bottom - y * factor) * (right - x * factor), i = 4 * (y * width + x);
      const weight = Math.floor(2 ** 24 / n), half = n >> 1;
      [red, green, blue, alpha].forEach((total, c) => {
        data[i + c] = Math.floor((total + half) * weight / 2 ** 24);
      });
      if (transparent && data[i + 3] > 0 && data[i + 3] < 255) {
        for (let c = 0; c < 3; c++) {
          data[i + c] = Math.min(255, Math.floor(255 * data[i + c] / data[i + 3]));
        }
      }
    }
  }
  return {...image, width, height, data};
}

/** Bytes of 0 to 255 as fractions, multiplied. */
function times(a, b) {
  const product = a * b + 128;
  return ((product >> 8) + product) >> 8;
}

/** Fills transparent parts with the paper's colour. */
function blend(values, data) {
  const visible = [];
  for (let i = 0; i < values.length / 3; i++) if (data[4 * i + 3] / 255 > 0.5) visible.push(i);
  let behind;
  if (visible.length > values.length / 6) {
    behind = [0, 1, 2].map(c => medianOf(visible.map(i => values[3 * i + c])));
  } else {
    const total = visible.reduce((t, i) => t + values[3 * i] + values[3 * i + 1] + values[3 * i + 2], 0);
    behind = Array(3).fill(!visible.length || total / visible.length / 3 < 128 ? 255 : 0);
  }
  for (let i = 0; i < values.length; i++) {
    const opacity = f32(data[4 * Math.floor(i / 3) + 3] / 255);
    values[i] = values[i] * opacity + behind[i % 3] * (1 - opacity);
  }
}

/** The mean of the middle one or two. */
function medianOf(values) {
  const sorted = Float64Array.from(values).sort(), n = sorted.length;
  return (sorted[(n - 1) >> 1] + sorted[n >> 1]) / 2;
}

/** Separates ink from paper, without frames, lines and scraps at the border. */
function findParts(picture) {
  const {width, height} = picture, size = width * height;
  let {difference, distance, noise} = compare(picture, true);
  let parts = ink(distance, noise, width, height);
  if (parts && count(parts) > 0.7 * size) parts = null;
  const page = parts && makePage(picture, difference, noise, parts, false);
  let found = page;
  if (page && !some(page.touching)) return page;
  if (!parts) {  // the border shows no paper, or a frame alone
    ({difference, distance, noise} = compare(picture, false));
    parts = ink(distance, noise, width, height);
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
      for (let i = 0; i < size; i++) line[i] |= across[i] | down[i];
    }
    const hasLine = some(line);
    if (hasLine) parts = label(mask.map((one, i) => one & (1 - line[i])), width, height).labels;
    if (hasLine || !found || framed) found = makePage(picture, difference, noise, parts, framed);
    const more = line.map((one, i) => one | found.scraps[found.parts[i]]);
    if (!some(more)) break;
    if (page && !framed && 5 * noise > CONTRAST) {
      const other = compare(picture, false);
      const darker = ink(other.distance, other.noise, width, height);
      if (darker && count(darker) <= 1.5 * count(mask)) ({difference, distance, noise} = other);
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
  const mask = Float32Array.from(page.parts, part => part === largest ? 1 : 0);
  const pen = strokeWidth(crop({width: page.width, values: mask}, page.boxes[largest - 1]));
  return page.areas.map((area, n) =>
    n && area < 0.35 * pen * Math.max(...sides(page.boxes[n - 1])) ? 1 : 0);
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

/** SciPy's `label`: parts that are connected, diagonally too, in the order of their first pixels. */
function label(mask, width, height) {
  const labels = new Int32Array(mask.length), stack = [];
  let number = 0;
  for (let start = 0; start < mask.length; start++) {
    if (!mask[start] || labels[start]) continue;
    labels[start] = ++number;
    stack.push(start);
    while (stack.length) {
      const place = stack.pop(), y = Math.floor(place / width), x = place % width;
      for (let row = Math.max(0, y - 1); row <= Math.min(height - 1, y + 1); row++) {
        for (let column = Math.max(0, x - 1); column <= Math.min(width - 1, x + 1); column++) {
          const next = row * width + column;
          if (mask[next] && !labels[next]) {
            labels[next] = number;
            stack.push(next);
          }
        }
      }
    }
  }
  return {labels, number};
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
  const areas = new Float64Array(number + 1), touching = new Uint8Array(number + 1);
  const boxes = Array.from({length: number}, () => ({top: Infinity, bottom: 0, left: Infinity, right: 0}));
  parts.forEach((part, i) => {
    if (!part) return;
    const y = Math.floor(i / width), x = i % width;
    areas[part]++;
    widen(boxes[part - 1], y, x);
    if (y === 0 || x === 0 || y === height - 1 || x === width - 1) touching[part] = 1;
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

function pad({width, height, values}, margin) {
  const across = width + 2 * margin, padded = new Float32Array(across * (height + 2 * margin));
  for (let y = 0; y < height; y++) {
    padded.set(values.subarray(y * width, (y + 1) * width), (y + margin) * across + margin);
  }
  return {width: across, height: height + 2 * margin, values: padded};
}

/** Pillow's `reduce` of float32 pixels. */
function means({width, height, values}, factor) {
  const across = Math.ceil(width / factor), down = Math.ceil(height / factor);
  const result = new Float32Array(across * down);
  for (let y = 0; y < down; y++) {
    for (let x = 0; x < across; x++) {
      let total = 0, n = 0;
      for (let row = y * factor; row < Math.min((y + 1) * factor, height); row++) {
        for (let column = x * factor; column < Math.min((x + 1) * factor, width); column++, n++) {
          total += values[row * width + column];
        }
      }
      result[y * across + x] = total * (1 / n);
    }
  }
  return {width: across, height: down, values: result};
}

/** SciPy's `gaussian_filter`. */
function gaussian({width, height, values}, sigma) {
  const radius = Math.floor(4 * sigma + 0.5);
  const kernel = Array.from({length: radius + 1}, (_, i) => Math.exp(-0.5 / (sigma * sigma) * i * i));
  const total = kernel.reduce((a, b) => a + b) * 2 - kernel[0];
  for (const [n, stride, lines, step] of [[height, width, width, 1], [width, 1, height, width]]) {
    const mirror = i => (i = ((i % (2 * n)) + 2 * n) % (2 * n), i < n ? i : 2 * n - 1 - i);
    const result = new Float32Array(values.length);
    for (let line = 0; line < lines; line++) {
      const at = i => values[line * step + mirror(i) * stride];
      for (let i = 0; i < n; i++) {
        let value = at(i) * kernel[0] / total;
        for (let j = radius; j > 0; j--) value += (at(i - j) + at(i + j)) * kernel[j] / total;
        result[line * step + i * stride] = value;
      }
    }
    values = result;
  }
  return values;
}

// paper.py

/** The difference from the paper's colour, its length, and the paper's standard deviation. */
function compare({width, height, channels, values}, atBorder) {
  const size = width * height, step = Math.max(1, round(Math.sqrt(size / 1000)));
  const edge = edgeWidth(width, height, atBorder ? 0.04 : 0.18);
  const isEdge = i => {
    const y = Math.floor(i / width), x = i % width;
    return y < edge || y >= height - edge || x < edge || x >= width - edge;
  };
  let anywhere = [];
  for (let y = 0; y < height; y += step) {
    for (let x = 0; x < width; x += step) anywhere.push(y * width + x);
  }
  const each = Array.from({length: channels}, (_, c) => c);
  const value = (i, c) => values[i * channels + c];
  let region, flat, noise, around;
  if (atBorder) {
    region = [];
    for (let i = 0; i < size; i++) if (isEdge(i)) region.push(i);
    flat = each.map(c => upperMedian(region.map(i => value(i, c))));
    noise = deviation(each.map(c => region.map(i => value(i, c) - flat[c])));
    const every = Math.max(1, Math.floor(region.length / 1000));
    around = region.filter((_, n) => n % every === 0);
  } else {
    region = anywhere.filter(i => !isEdge(i));
    if (!region.length) throw new PictureError("too small to show a digit");
    flat = each.map(c => upperMedian(region.map(i => value(i, c))));
    noise = deviation(each.map(c =>
      region.map(i => f32(value(i + 1, c) - value(i, c)) / f32(Math.SQRT2))));
    const n = region.length, near = each.map(c => {
      const sorted = Float32Array.from(region, i => value(i, c)).sort();
      const spread = sorted[n - 1 - Math.floor(n / 50)] - sorted[Math.floor(n / 50)];
      return Math.max(4, f32(0.25 * spread));
    });
    around = anywhere = region.filter(i => each.every(c => Math.abs(value(i, c) - flat[c]) <= near[c]));
  }
  const difference = new Float32Array(values.length);
  if (atBorder && noise < 1.5) {
    for (let i = 0; i < values.length; i++) difference[i] = values[i] - flat[i % channels];
  } else {
    const surface = fit(values, width, height, channels, around, anywhere);
    for (let i = 0; i < values.length; i++) difference[i] = values[i] - surface[i];
    if (atBorder) noise = deviation(each.map(c => region.map(i => difference[i * channels + c])));
  }
  let distance = new Float32Array(size);
  for (let i = 0; i < size; i++) {
    if (channels === 1) distance[i] = Math.abs(difference[i]);
    else {
      let total = 0;
      for (let c = 0; c < channels; c++) total = f32(total + f32(difference[i * channels + c] ** 2));
      distance[i] = Math.sqrt(total);
    }
  }
  if (Math.max(width, height) >= 100) distance = medianFilter(distance, width, height);
  return {difference, distance, noise};
}

/** The quadratic function of x and y closest to most of the pixels with these indices. */
function fit(values, width, height, channels, first, later) {
  const linear = n => i => n === 1 ? -1 : i === n - 1 ? 1 : i * (2 / (n - 1)) - 1;
  const atX = linear(width), atY = linear(height);
  let weights, terms, target;
  [first, first, first, later].forEach((pixels, turn) => {
    if (turn === 0 || pixels === later) {
      terms = pixels.map(i => {
        const x = atX(i % width), y = atY(Math.floor(i / width));
        return [1, x, y, x * y, x * x, y * y];
      });
      target = pixels.map(i => Array.from({length: channels}, (_, c) => values[i * channels + c]));
    }
    let kept = terms.map(() => 1);
    if (turn > 0) {
      const residual = terms.map((term, n) => Math.max(...target[n].map((value, c) =>
        Math.abs(value - term.reduce((t, one, k) => t + one * weights[k][c], 0)))));
      const limit = 2.5 * Math.max(1, 1.4826 * medianOf(residual));
      kept = residual.map(one => one <= limit ? 1 : 0);
    }
    const matrix = Array.from({length: 6}, (_, k) => [
      ...Array.from({length: 6}, (_, l) =>
        terms.reduce((t, term, n) => t + kept[n] * term[k] * term[l], k === l ? 1e-6 : 0)),
      ...Array.from({length: channels}, (_, c) =>
        terms.reduce((t, term, n) => t + kept[n] * term[k] * target[n][c], 0)),
    ]);
    weights = solve(matrix);
  });
  const surface = new Float32Array(values.length);
  for (let c = 0; c < channels; c++) {
    const [one, byX, byY, byXY, byXX, byYY] = weights.map(row => row[c]);
    for (let column = 0; column < width; column++) {
      const x = atX(column), r0 = f32(one + x * (byX + x * byXX)), r1 = f32(byY + x * byXY);
      for (let row = 0; row < height; row++) {
        const y = atY(row);
        surface[(row * width + column) * channels + c] = r0 + f32(y) * r1 + f32(y * y) * f32(byYY);
      }
    }
  }
  return surface;
}

/** Solves linear equations: rows of coefficients and right-hand sides. */
function solve(matrix) {
  const n = matrix.length;
  for (let k = 0; k < n; k++) {
    let pivot = k;
    for (let i = k; i < n; i++) if (Math.abs(matrix[i][k]) > Math.abs(matrix[pivot][k])) pivot = i;
    [matrix[k], matrix[pivot]] = [matrix[pivot], matrix[k]];
    matrix[k] = matrix[k].map(value => value / matrix[k][k]);
    for (let i = 0; i < n; i++) {
      if (i !== k) matrix[i] = matrix[i].map((value, j) => value - matrix[i][k] * matrix[k][j]);
    }
  }
  return matrix.map(row => row.slice(n));
}

function upperMedian(values) {
  return Float32Array.from(values).sort()[values.length >> 1];
}

/** The median of 3x3 pixels, as bytes. */
function medianFilter(values, width, height) {
  const bytes = Uint8Array.from(values, value => Math.floor(clip(value, 0, 255)));
  const result = new Float32Array(values.length), nine = new Uint8Array(9);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      let n = 0;
      for (let dy = -1; dy <= 1; dy++) {
        const row = clip(y + dy, 0, height - 1) * width;
        for (let dx = -1; dx <= 1; dx++) {
          const value = bytes[row + clip(x + dx, 0, width - 1)];
          let place = n++;
          for (; place > 0 && nine[place - 1] > value; place--) nine[place] = nine[place - 1];
          nine[place] = value;
        }
      }
      result[y * width + x] = nine[4];
    }
  }
  return result;
}

/** The standard deviation of the channel with the largest, from medians. */
function deviation(channels) {
  return 1.4826 * Math.max(...channels.map(one => upperMedian(one.map(Math.abs))));
}

function edgeWidth(width, height, share) {
  return Math.max(1, round(share * Math.min(width, height)));
}

// frames.py

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

// mnist_form.py

/** The pixels of a picture that has MNIST's form already, perhaps black on white; or null. */
function mnistsOwn(picture) {
  for (const values of [picture.values, picture.values.map(value => 255 - value)]) {
    if (hasMnistForm(picture, values)) return Uint8Array.from(values, round);
  }
  return null;
}

function hasMnistForm({width, height, channels}, values) {
  if (width !== 28 || height !== 28 || channels !== 1 || values.every(value => value < 250)) return false;
  const box = bounds(values, 28), digit = crop({width, values}, box);
  return Math.max(digit.width, digit.height) === 20
    && box.top === corner(rowSums(digit)) && box.left === corner(columnSums(digit));
}

/** A digit, given as how much of each pixel is ink, at MNIST's size and place: 28 x 28 bytes. */
function mnistForm(digit) {
  digit = thicken(digit);
  const scale = 20 / Math.max(digit.width, digit.height);
  const width = Math.max(1, round(digit.width * scale)), height = Math.max(1, round(digit.height * scale));
  const small = resize(digit, width, height, hamming, 1);
  const largest = small.values.reduce((a, b) => Math.max(a, b), -Infinity);
  small.values = small.values.map(value => value / largest);
  const form = new Uint8Array(28 * 28), top = corner(rowSums(small)), left = corner(columnSums(small));
  small.values.forEach((value, i) => {
    form[(top + Math.floor(i / width)) * 28 + left + i % width] = round(f32(clip(value, 0, 1) * 255));
  });
  return form;
}

function rowSums({width, height, values}) {
  return Float32Array.from({length: height}, (_, y) => sum(values, y * width, width));
}

function columnSums({width, values}) {
  const sums = new Float32Array(width);
  values.forEach((value, i) => { sums[i % width] += value; });
  return sums;
}

/** Where n <= 20 rows (or columns) start so that their centre of mass is in the middle of 28. */
function corner(weights) {
  const centre = weights.reduce((t, weight, i) => t + weight * i, 0) / sum(weights);
  return Math.min(Math.max(round(14 - centre), 0), 28 - weights.length);
}

/** Widens the strokes of a fine pen, which would nearly vanish at 20x20. */
function thicken(digit) {
  const longest = Math.max(digit.width, digit.height);
  const wide = strokeWidth(digit) * 20 / longest;
  if (wide >= 1.4) return digit;
  const radius = Math.max(1, round((2.4 - wide) / 2 * longest / 20));
  const {width, height, values} = pad(digit, radius);
  let result = values;
  for (const [n, stride, lines, step] of [[height, width, width, 1], [width, 1, height, width]]) {
    const from = result;
    result = new Float32Array(from.length);
    for (let line = 0; line < lines; line++) {
      for (let i = 0; i < n; i++) {
        let largest = 0;
        for (let j = Math.max(0, i - radius); j <= Math.min(n - 1, i + radius); j++) {
          largest = Math.max(largest, from[line * step + j * stride]);
        }
        result[line * step + i * stride] = largest;
      }
    }
  }
  return {width, height, values: result};
}

/** Pillow's `resize`, of float32 pixels or of bytes: first the rows, then the columns. */
function resize({width, height, values}, newWidth, newHeight, filter, support, bytes = false) {
  const store = total => bytes ? clip(Math.floor((total + 2 ** 21) / 2 ** 22), 0, 255) : total;
  const passes = [[width, newWidth, 1, height, width], [height, newHeight, newWidth, newWidth, 1]];
  passes.forEach(([size, newSize, stride, lines, step], pass) => {
    if (size === newSize) return;
    const coefficients = weightsOf(size, newSize, filter, support, bytes);
    const result = new Float32Array(lines * newSize), newStep = pass ? 1 : newSize;
    for (let i = 0; i < newSize; i++) {
      const {start, weights} = coefficients[i];
      for (let line = 0; line < lines; line++) {
        let total = 0;
        for (let k = 0; k < weights.length; k++) {
          total += values[line * step + (start + k) * stride] * weights[k];
        }
        result[line * newStep + i * stride] = store(total);
      }
    }
    values = result;
  });
  return {width: newWidth, height: newHeight, values};
}

/** For each pixel of the result, the first pixel that it is made of, and the weights. */
function weightsOf(size, newSize, filter, support, bytes) {
  const scale = size / newSize, wide = Math.max(1, scale), reach = support * wide;
  return Array.from({length: newSize}, (_, i) => {
    const centre = (i + 0.5) * scale;
    const start = Math.max(0, Math.trunc(centre - reach + 0.5));
    const stop = Math.min(size, Math.trunc(centre + reach + 0.5));
    const raw = Array.from({length: stop - start}, (_, k) => filter((k + start - centre + 0.5) / wide));
    const total = raw.reduce((a, b) => a + b, 0);
    const exact = one => bytes ? Math.sign(one) * Math.floor(0.5 + Math.abs(one) * 2 ** 22) : one;
    return {start, weights: raw.map(one => exact(one / total))};
  });
}

function hamming(x) {
  x = Math.abs(x);
  if (x === 0 || x >= 1) return x === 0 ? 1 : 0;
  x *= Math.PI;
  return Math.sin(x) / x * (0.54 + 0.46 * Math.cos(x));
}

function bicubic(x) {
  x = Math.abs(x);
  if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
  return x < 2 ? (((x - 5) * x + 8) * x - 4) * -0.5 : 0;
}

// lines.py

const MAX_DIGITS = 200, MAX_PIECES = 4;

/** What may be the digits of a picture: for each its `form` (28 x 28 bytes), its `box` in the file,
 * and its `pieces`: from the first to before the second, in reading order. */
function findDigits(image, single) {
  let picture = colours(image);
  const own = mnistsOwn(picture);
  const found = (form, mask, width, pieces = [0, 1]) =>
    ({form, box: inFile(image, picture, bounds(mask, width)), pieces});
  if (own) return [found(own, own, 28)];
  let page = findParts(picture), groups = single ? [] : groupsOf(page);
  if (groups.length > 1) {
    const height = medianOf(groups.map(({box}) => sides(box)[0]));
    const largest = Math.max(picture.width, picture.height, picture.channels);
    if (height < 24 && largest < Math.max(image.width, image.height)) {  // look more closely
      picture = colours(image, Math.min(1280, round(320 * 24 / height)));
      page = findParts(picture);
      groups = groupsOf(page);
    }
  }
  if (groups.length <= 1) {
    const mask = figure(page);
    return [found(mnistForm(strokes(page, mask)), mask, page.width)];
  }
  const masks = spans(groups).map(([first, last]) =>
    ({pieces: [first, last], mask: maskOf(page, groups.slice(first, last).flatMap(one => one.numbers))}));
  const whole = figure(page);
  if (masks.every(({mask}) => mask.every((one, i) => !one || whole[i]))) {  // with its small parts
    const all = masks.find(({pieces: [first, last]}) => first === 0 && last === groups.length);
    if (all) all.mask = whole;
    else masks.push({pieces: [0, groups.length], mask: whole});
  }
  return masks.flatMap(({pieces, mask}) => {
    try {
      return [found(mnistForm(strokes(page, mask)), mask, page.width, pieces)];
    } catch (error) {
      if (error instanceof PictureError) return [];
      throw error;
    }
  });
}

/** Each group by itself, and successive ones that are close enough to be of one digit. */
function spans(groups) {
  const highest = Math.max(...groups.map(({box}) => sides(box)[0])), pairs = [];
  groups.forEach((group, first) => {
    pairs.push([first, first + 1]);
    let wide = group.box;
    for (let last = first + 1; last < Math.min(groups.length, first + MAX_PIECES); last++) {
      const apart = gap(groups[last].box, wide);
      wide = around(wide, groups[last].box);
      if (apart > 0.25 * Math.max(...sides(wide)) || Math.max(...sides(wide)) > 2.5 * highest) break;
      pairs.push([first, last + 1]);
    }
  });
  return pairs;
}

/** A box at the working size, in pixels of the file. */
function inFile(image, picture, box) {
  const factor = Math.ceil(image.width / picture.width);
  return [[box.left, image.width], [box.top, image.height], [box.right, image.width], [box.bottom, image.height]]
    .map(([side, size]) => round(Math.min(side * factor, size) * image.scale));
}

/** The box and the parts of each digit, in the order in which they are read. */
function groupsOf(page) {
  const largest = page.areas.reduce((a, b) => Math.max(a, b), 0);
  const frames = framesOf(page), thin = hairlines(page);
  let large = [];
  page.areas.forEach((area, n) => {
    if (n && area >= 0.02 * largest && !page.scraps[n] && !frames[n] && !thin[n]) large.push(n);
  });
  if (large.some(n => !page.touching[n])) large = large.filter(n => !page.touching[n]);
  if (page.framed) {
    const inside = isInside(page);
    large = large.filter(n => inside[n]);
  }
  let groups = large.map(n => ({box: page.boxes[n - 1], numbers: [n]}));
  if (groups.length < 2 || groups.length > 3 * MAX_DIGITS) return groups;
  const highest = () => Math.max(...groups.map(({box}) => sides(box)[0]));
  groups = joined(groups, highest());
  const area = ({numbers}) => numbers.reduce((total, n) => total + page.areas[n], 0);
  const high = highest(), least = 0.08 * Math.max(...groups.map(area));
  groups = groups.filter(one => sides(one.box)[0] >= Math.max(8, 0.5 * high) && area(one) >= least);
  return groups.length <= MAX_DIGITS ? inOrder(groups) : [];
}

/** Whether each part is around others: a box or a grid. */
function framesOf(page) {
  const frames = new Uint8Array(page.areas.length);
  const heights = [0, ...page.boxes.map(box => sides(box)[0])];
  const highest = heights.reduce((a, b) => Math.max(a, b), 0);
  page.boxes.forEach((box, i) => {
    const [height, width] = sides(box);
    if (height < 0.25 * highest || page.areas[i + 1] > 0.4 * height * width) return;
    const inner = page.boxes.filter((other, j) => {
      const y = (other.top + other.bottom) / 2, x = (other.left + other.right) / 2;
      return j !== i && y > box.top && y < box.bottom && x > box.left && x < box.right;
    }).map(other => sides(other)[0]);
    frames[i + 1] = inner.some(one => one > 0.3 * height)
      || inner.filter(one => one > 0.04 * height).length >= 4 ? 1 : 0;
  });
  return frames;
}

/** Joins the parts of a digit: those above each other, such as the bar of a 5. */
function joined(groups, highest) {
  groups = [...groups].sort((a, b) => a.box.left - b.box.left);
  const done = [];
  while (groups.length) {
    const group = groups.pop();
    const index = groups.findIndex(other => belongTogether(group.box, other.box, highest));
    if (index < 0) {
      done.push(group);
      continue;
    }
    const {box, numbers} = groups[index];
    groups[index] = {box: around(group.box, box), numbers: [...group.numbers, ...numbers]};
  }
  return done;
}

/** The smallest box around both. */
function around(a, b) {
  return {
    top: Math.min(a.top, b.top), bottom: Math.max(a.bottom, b.bottom),
    left: Math.min(a.left, b.left), right: Math.max(a.right, b.right),
  };
}

function belongTogether(a, b, highest) {
  const overlap = Math.min(a.right, b.right) - Math.max(a.left, b.left);
  const above = Math.max(a.top, b.top) - Math.min(a.bottom, b.bottom);
  const narrower = Math.min(sides(a)[1], sides(b)[1]), lower = Math.min(sides(a)[0], sides(b)[0]);
  const isPart = lower < 0.6 * highest || above < 0.1 * highest;
  return overlap > 0.3 * narrower && above < 0.25 * highest && isPart;
}

/** Line by line: a digit whose middle is beside the first of a line belongs to that line. */
function inOrder(groups) {
  const lines = [], middle = ({box}) => (box.top + box.bottom) / 2;
  for (const group of [...groups].sort((a, b) => middle(a) - middle(b))) {
    const last = lines[lines.length - 1];
    if (last && middle(group) <= last[0].box.bottom) last.push(group);
    else lines.push([group]);
  }
  return lines.flatMap(line => line.sort((a, b) => a.box.left - b.box.left));
}

// fitted.py

/** The picture scaled to fit into the images' size, its aspect ratio kept: bytes [H, W, C]. */
function fitted(image, [height, width, channels]) {
  const planes = Array.from({length: channels}, () => new Float32Array(image.width * image.height));
  for (let i = 0; i < image.width * image.height; i++) {
    const [red, green, blue] = onWhite(image.data, 4 * i);
    if (channels === 1) planes[0][i] = (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16;
    else [red, green, blue].forEach((value, c) => { planes[c][i] = value; });
  }
  const scale = Math.min(width / image.width, height / image.height);
  const across = Math.max(1, round(image.width * scale)), down = Math.max(1, round(image.height * scale));
  const top = Math.floor((height - down) / 2), left = Math.floor((width - across) / 2);
  const form = new Uint8Array(height * width * channels);
  planes.forEach((values, c) => {
    const plane = {width: image.width, height: image.height, values};
    const small = resize(plane, across, down, bicubic, 2, true);
    const border = [];
    for (let i = 0; i < image.width; i++) border.push(values[i], values[values.length - 1 - i]);
    for (let i = 0; i < image.height; i++) {
      border.push(values[i * image.width], values[(i + 1) * image.width - 1]);
    }
    const paper = round(medianOf(border));
    for (let y = 0; y < height; y++) {
      for (let x = 0; x < width; x++) {
        const row = y - top, column = x - left;
        const inside = row >= 0 && row < down && column >= 0 && column < across;
        form[(y * width + x) * channels + c] = inside ? small.values[row * across + column] : paper;
      }
    }
  });
  return form;
}

/** The colour of a pixel on white, as Pillow's `alpha_composite` rounds it. */
function onWhite(data, i) {
  const opacity = data[i + 3];
  return [0, 1, 2].map(c => {
    const value = (data[i + c] * opacity + 255 * (255 - opacity)) * 128 + (0x80 << 7);
    return opacity === 0 ? 255 : ((value >> 8) + value) >> 8 >> 7;
  });
}
