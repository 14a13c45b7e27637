// digits/paper.py in JavaScript.

const EVEN = 1.5;

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
  if (atBorder && noise < EVEN) {
    for (let i = 0; i < values.length; i++) difference[i] = values[i] - flat[i % channels];
  } else {
    const surface = fit(values, width, height, channels, around, anywhere);
    for (let i = 0; i < values.length; i++) difference[i] = values[i] - surface[i];
    if (atBorder) noise = deviation(each.map(c => region.map(i => difference[i * channels + c])));
  }
  return {difference, distance: distanceOf({width, height, channels}, difference), noise};
}

/** As `compare`, for dark ink on paper with the edges of shadows. */
function compareInShadow(picture) {
  const {width, height, channels, values} = picture;
  const reach = Math.floor(Math.min(width, height) / 8);  // what is narrower than twice this is filled
  const paper = filterSquares(
    {...picture, values: filterSquares(picture, reach, Math.max)}, reach, Math.min);
  const difference = values.map((value, i) => value - paper[i]);
  const step = Math.max(1, Math.floor(width * height / 4000));
  const some = Array.from({length: channels}, (_, c) => difference.filter(
    (_, i) => i % channels === c && Math.floor(i / channels) % step === 0));
  const flat = some.map(upperMedian);
  for (let i = 0; i < difference.length; i++) difference[i] -= flat[i % channels];
  const noise = deviation(some.map((one, c) => one.map(value => value - flat[c])));
  return {difference, distance: distanceOf(picture, difference), noise};
}

/** The length of the differences, without specks. */
function distanceOf({width, height, channels}, difference) {
  const distance = new Float32Array(width * height);
  for (let i = 0; i < distance.length; i++) {
    if (channels === 1) distance[i] = Math.abs(difference[i]);
    else {
      let total = 0;
      for (let c = 0; c < channels; c++) total = f32(total + f32(difference[i * channels + c] ** 2));
      distance[i] = Math.sqrt(total);
    }
  }
  return Math.max(width, height) >= 100 ? medianFilter(distance, width, height) : distance;
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

/** The standard deviation of the channel with the largest, from medians. */
function deviation(channels) {
  return 1.4826 * Math.max(...channels.map(one => upperMedian(one.map(Math.abs))));
}

function edgeWidth(width, height, share) {
  return Math.max(1, round(share * Math.min(width, height)));
}
