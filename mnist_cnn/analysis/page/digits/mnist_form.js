// digits/mnist_form.py in JavaScript.

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
