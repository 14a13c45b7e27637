// What the Python files take of NumPy, SciPy and Pillow, with their rounding.
// A mask is a Uint8Array of 0 and 1.

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

/** SciPy's `maximum_filter` or `minimum_filter`: `choose` among what is at most `reach` away. */
function filterSquares({width, height, channels, values}, reach, choose) {
  const row = width * channels;
  for (const [n, stride] of [[height, row], [width, channels]]) {
    values = values.map((value, i) => {
      const place = Math.floor(i / stride) % n, first = i - Math.min(place, reach) * stride;
      const last = i + Math.min(n - 1 - place, reach) * stride;
      for (let j = first; j <= last; j += stride) value = choose(value, values[j]);
      return value;
    });
  }
  return values;
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

/** The mean of the middle one or two. */
function medianOf(values) {
  const sorted = Float64Array.from(values).sort(), n = sorted.length;
  return (sorted[(n - 1) >> 1] + sorted[n >> 1]) / 2;
}
