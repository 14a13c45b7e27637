// The network: an interpreter of the graph of ONNX operators that `--format onnx` writes too.
// A tensor is {shape, data}; integers and truth values are an Int32Array, the pixels a Uint8Array.
// build.py reads which operators there are: the names after `OPERATORS.`.

const OPERATORS = {};

const product = (sizes, start = 0, end = sizes.length) =>
  sizes.slice(start, end).reduce((a, b) => a * b, 1);

/** The distance of neighbours along each axis. */
function stridesOf(shape) {
  return shape.map((_, axis) => product(shape, axis + 1));
}

/** An array of `shape` whose element (i, j, ..) is data[start + i * strides[0] + j * strides[1] ..]. */
function strided(data, shape, strides, start = 0) {
  const size = product(shape), result = new data.constructor(size);
  const index = new Int32Array(shape.length);
  for (let i = 0, place = start; i < size; i++) {
    result[i] = data[place];
    for (let axis = shape.length - 1; axis >= 0; axis--) {
      place += strides[axis];
      if (++index[axis] < shape[axis]) break;
      place -= strides[axis] * shape[axis];
      index[axis] = 0;
    }
  }
  return {shape, data: result};
}

/** The shape of two operands, of which one may be 1 where the other is larger. */
function common(a, b) {
  const rank = Math.max(a.length, b.length);
  const at = (shape, axis) => shape[axis - rank + shape.length] ?? 1;
  return Array.from({length: rank}, (_, axis) => at(a, axis) === 1 ? at(b, axis) : at(a, axis));
}

function expand({shape, data}, to) {
  if (product(to) === data.length) return {shape: to, data};
  const added = to.length - shape.length, own = stridesOf(shape);
  const strides = to.map((_, axis) => (shape[axis - added] ?? 1) === 1 ? 0 : own[axis - added]);
  return strided(data, to, strides);
}

function transposed({shape, data}, order) {
  const strides = stridesOf(shape);
  return strided(data, order.map(axis => shape[axis]), order.map(axis => strides[axis]));
}

// Operators on each element.

function elementwise(compute, type = null) {
  return inputs => {
    const shape = inputs.map(one => one.shape).reduce(common);
    const operands = inputs.map(one => one.data.length === 1 ? one.data : expand(one, shape).data);
    const steps = operands.map(one => one.length === 1 ? 0 : 1), size = product(shape);
    const like = operands.find(one => one instanceof Float32Array) ?? operands[operands.length - 1];
    const result = new (type ?? like.constructor)(size);
    const [a, b = a, c = a] = operands, [stepA, stepB = 0, stepC = 0] = steps;
    for (let i = 0; i < size; i++) result[i] = compute(a[i * stepA], b[i * stepB], c[i * stepC]);
    return {shape, data: result};
  };
}

/** The error function: a series of positive terms. */
function erf(x) {
  if (Math.abs(x) > 6) return Math.sign(x);
  let term = x, total = x;
  for (let n = 1; Math.abs(term) > 1e-17 * Math.abs(total); n++) total += term *= 2 * x * x / (2 * n + 1);
  return 2 / Math.sqrt(Math.PI) * Math.exp(-x * x) * total;
}

const nan = (a, b) => Number.isNaN(a) || Number.isNaN(b);

OPERATORS.Identity = ([one]) => one;
OPERATORS.Abs = elementwise(Math.abs);
OPERATORS.Acos = elementwise(Math.acos);
OPERATORS.Acosh = elementwise(Math.acosh);
OPERATORS.Add = elementwise((a, b) => a + b);
OPERATORS.And = elementwise((a, b) => a & b, Int32Array);
OPERATORS.Asin = elementwise(Math.asin);
OPERATORS.Asinh = elementwise(Math.asinh);
OPERATORS.Atan = elementwise(Math.atan);
OPERATORS.Atanh = elementwise(Math.atanh);
OPERATORS.Ceil = elementwise(Math.ceil);
OPERATORS.Cos = elementwise(Math.cos);
OPERATORS.Cosh = elementwise(Math.cosh);
OPERATORS.Div = elementwise((a, b) => a / b);
OPERATORS.Equal = elementwise((a, b) => a === b, Int32Array);
OPERATORS.Erf = elementwise(erf);
OPERATORS.Exp = elementwise(Math.exp);
OPERATORS.Floor = elementwise(Math.floor);
OPERATORS.Greater = elementwise((a, b) => a > b, Int32Array);
OPERATORS.GreaterOrEqual = elementwise((a, b) => a >= b, Int32Array);
OPERATORS.Less = elementwise((a, b) => a < b, Int32Array);
OPERATORS.LessOrEqual = elementwise((a, b) => a <= b, Int32Array);
OPERATORS.Log = elementwise(Math.log);
OPERATORS.Max = elementwise((a, b) => nan(a, b) ? NaN : a > b ? a : b);
OPERATORS.Min = elementwise((a, b) => nan(a, b) ? NaN : a < b ? a : b);
OPERATORS.Mod = elementwise((a, b) => a % b);
OPERATORS.Mul = elementwise((a, b) => a * b);
OPERATORS.Neg = elementwise(a => -a);
OPERATORS.Not = elementwise(a => !a, Int32Array);
OPERATORS.Or = elementwise((a, b) => a | b, Int32Array);
OPERATORS.Pow = elementwise((a, b) => a ** b);
OPERATORS.Reciprocal = elementwise(a => 1 / a);
OPERATORS.Relu = elementwise(a => a < 0 ? 0 : a);
OPERATORS.Round = elementwise(round);
OPERATORS.Sigmoid = elementwise(a => 1 / (1 + Math.exp(-a)));
OPERATORS.Sign = elementwise(Math.sign);
OPERATORS.Sin = elementwise(Math.sin);
OPERATORS.Sinh = elementwise(Math.sinh);
OPERATORS.Sqrt = elementwise(Math.sqrt);
OPERATORS.Sub = elementwise((a, b) => a - b);
OPERATORS.Tan = elementwise(Math.tan);
OPERATORS.Tanh = elementwise(Math.tanh);
OPERATORS.Where = elementwise((which, yes, no) => which ? yes : no);
OPERATORS.Xor = elementwise((a, b) => a ^ b, Int32Array);

const FLOATS = [1, 10, 11, 16], BOOL = 9;  // numbers of ONNX's types

OPERATORS.Cast = ([{shape, data}], {to}) => {
  if (FLOATS.includes(to)) return {shape, data: Float32Array.from(data)};
  return {shape, data: Int32Array.from(data, to === BOOL ? one => one !== 0 : Math.trunc)};
};

// Operators that move values.

OPERATORS.Shape = ([{shape}], {start = 0, end = shape.length}) => {
  const sizes = shape.slice(start, end);
  return {shape: [sizes.length], data: Int32Array.from(sizes)};
};

OPERATORS.Reshape = ([{data}, {data: sizes}]) => {
  const known = sizes.reduce((a, b) => b < 0 ? a : a * b, 1);
  return {shape: Array.from(sizes, size => size < 0 ? data.length / known : size), data};
};

OPERATORS.Unsqueeze = ([{shape, data}, {data: axes}]) => {
  const rest = [...shape], rank = shape.length + axes.length;
  const added = Array.from(axes, axis => (axis + rank) % rank);
  return {shape: Array.from({length: rank}, (_, axis) => added.includes(axis) ? 1 : rest.shift()), data};
};

OPERATORS.Squeeze = ([{shape, data}, {data: axes}]) => {
  const dropped = Array.from(axes, axis => (axis + shape.length) % shape.length);
  return {shape: shape.filter((_, axis) => !dropped.includes(axis)), data};
};

OPERATORS.Expand = ([one, {data: sizes}]) => expand(one, common(one.shape, Array.from(sizes)));

OPERATORS.Transpose = ([one], {perm}) => transposed(one, perm);

OPERATORS.Concat = (inputs, {axis}) => {
  const first = inputs[0].shape, shape = [...first];
  shape[axis] = inputs.reduce((total, one) => total + one.shape[axis], 0);
  const result = new inputs[0].data.constructor(product(shape)), rows = product(shape, 0, axis);
  let place = 0;
  for (let row = 0; row < rows; row++) {
    for (const {data} of inputs) {
      const size = data.length / rows;
      result.set(data.subarray(row * size, (row + 1) * size), place);
      place += size;
    }
  }
  return {shape, data: result};
};

OPERATORS.Gather = ([{shape, data}, places], {axis}) => {
  const size = product(shape, axis + 1), rows = product(shape, 0, axis), length = shape[axis];
  const result = new data.constructor(rows * places.data.length * size);
  let to = 0;
  for (let row = 0; row < rows; row++) {
    for (const place of places.data) {
      const from = (row * length + (place < 0 ? place + length : place)) * size;
      for (let i = 0; i < size; i++) result[to++] = data[from + i];
    }
  }
  return {shape: [...shape.slice(0, axis), ...places.shape, ...shape.slice(axis + 1)], data: result};
};

OPERATORS.Slice = ([{shape, data}, starts, ends, axes, steps]) => {
  const sizes = [...shape], strides = stridesOf(shape);
  let first = 0;
  axes.data.forEach((axis, i) => {
    const limit = value => Math.min(value < 0 ? value + shape[axis] : value, shape[axis]);
    const start = limit(starts.data[i]);
    sizes[axis] = Math.ceil((limit(ends.data[i]) - start) / steps.data[i]);
    first += start * strides[axis];
    strides[axis] *= steps.data[i];
  });
  return strided(data, sizes, strides, first);
};

OPERATORS.Pad = ([{shape, data}, {data: pads}, fill]) => {
  const rank = shape.length, sizes = shape.map((size, axis) => size + pads[axis] + pads[rank + axis]);
  const result = new data.constructor(product(sizes)).fill(fill.data[0]);
  const strides = stridesOf(shape), newStrides = stridesOf(sizes);
  for (let i = 0; i < result.length; i++) {
    let from = 0, inside = true;
    for (let axis = 0; axis < rank; axis++) {
      const place = Math.floor(i / newStrides[axis]) % sizes[axis] - pads[axis];
      inside &&= place >= 0 && place < shape[axis];
      from += place * strides[axis];
    }
    if (inside) result[i] = data[from];
  }
  return {shape: sizes, data: result};
};

// Sums and products.

/** The result of `combine` over some axes. */
function reduction(combine, initial) {
  return ([one, given], {axes = given.data}) => {
    const reduced = Array.from(axes), kept = one.shape.map((_, axis) => axis)
      .filter(axis => !reduced.includes(axis));
    const {data} = transposed(one, [...kept, ...reduced]), shape = kept.map(axis => one.shape[axis]);
    const result = new data.constructor(product(shape)), size = data.length / result.length;
    for (let i = 0; i < result.length; i++) {
      let value = initial;
      for (let j = i * size; j < (i + 1) * size; j++) value = combine(value, data[j]);
      result[i] = value;
    }
    return {shape, data: result};
  };
}

OPERATORS.ReduceSum = reduction((a, b) => a + b, 0);
OPERATORS.ReduceProd = reduction((a, b) => a * b, 1);
OPERATORS.ReduceMax = reduction((a, b) => nan(a, b) ? NaN : a > b ? a : b, -Infinity);
OPERATORS.ReduceMin = reduction((a, b) => nan(a, b) ? NaN : a < b ? a : b, Infinity);

/** A product of matrices of which many elements may be 0; the other axes are broadcast. */
OPERATORS.MatMul = ([left, right]) => {
  const [rows, depth] = left.shape.slice(-2), columns = right.shape[right.shape.length - 1];
  const batch = common(left.shape.slice(0, -2), right.shape.slice(0, -2));
  const a = expand(left, [...batch, rows, depth]).data;
  const b = expand(right, [...batch, depth, columns]).data;
  const result = new Float32Array(product(batch) * rows * columns), total = new Float64Array(columns);
  for (let row = 0; row < product(batch) * rows; row++) {
    total.fill(0);
    const matrix = Math.floor(row / rows) * depth;
    for (let k = 0; k < depth; k++) {
      const value = a[row * depth + k], start = (matrix + k) * columns;
      if (value !== 0) for (let i = 0; i < columns; i++) total[i] += value * b[start + i];
    }
    result.set(total, row * columns);
  }
  return {shape: [...batch, rows, columns], data: result};
};

OPERATORS.Gemm = ([left, right, bias]) => {
  const result = OPERATORS.MatMul([left, right]);
  return bias ? OPERATORS.Add([result, bias]) : result;
};

OPERATORS.Einsum = ([left, right], {equation}) => {
  const [terms, result] = equation.split("->"), [a, b] = terms.split(",");
  const letters = [...new Set([...result, ...a, ...b])];
  const size = letter => a.includes(letter) ? left.shape[a.indexOf(letter)] : right.shape[b.indexOf(letter)];
  const shape = letters.map(size), [x, y] = [[left, a], [right, b]].map(([one, term]) => {
    const strides = stridesOf(one.shape);
    return strided(one.data, shape, letters.map(letter => strides[term.indexOf(letter)] ?? 0));
  });
  const axes = letters.map((_, axis) => axis).slice(result.length);
  return OPERATORS.ReduceSum([OPERATORS.Mul([x, y])], {axes});
};

// Convolution and pooling.

/** The place of each pixel of each window in a plane of this shape, or -1: [windows, pixels]. */
function windowsOf(shape, {kernel_shape: kernel, strides, pads, dilations = kernel.map(() => 1)}) {
  const rank = shape.length, own = stridesOf(shape);
  const sizes = shape.map((size, axis) => Math.floor(
    (size + pads[axis] + pads[rank + axis] - dilations[axis] * (kernel[axis] - 1) - 1) / strides[axis]) + 1);
  const pixels = product(kernel), places = new Int32Array(product(sizes) * pixels);
  const ofKernel = stridesOf(kernel), ofWindow = stridesOf(sizes);
  for (let i = 0; i < places.length; i++) {
    const window = Math.floor(i / pixels), pixel = i % pixels;
    for (let axis = 0; axis < rank && places[i] >= 0; axis++) {
      const place = Math.floor(window / ofWindow[axis]) % sizes[axis] * strides[axis] - pads[axis]
        + Math.floor(pixel / ofKernel[axis]) % kernel[axis] * dilations[axis];
      places[i] = place < 0 || place >= shape[axis] ? -1 : places[i] + place * own[axis];
    }
  }
  return {sizes, pixels, places};
}

OPERATORS.Conv = ([images, kernel, bias], attributes) => {
  const [count, channels, ...plane] = images.shape, [filters, depth, ...shape] = kernel.shape;
  const {sizes, pixels, places} = windowsOf(plane, {...attributes, kernel_shape: shape});
  const windows = product(sizes), size = product(plane), length = depth * pixels;
  const groups = channels / depth, perGroup = filters / groups;
  const result = new Float32Array(count * filters * windows), column = new Float32Array(windows * length);
  for (let image = 0; image < count; image++) {
    for (let group = 0; group < groups; group++) {
      for (let c = 0; c < depth; c++) {
        const start = (image * channels + group * depth + c) * size;
        for (let window = 0; window < windows; window++) {
          const to = window * length + c * pixels, from = window * pixels;
          for (let i = 0; i < pixels; i++) {
            const place = places[from + i];
            column[to + i] = place < 0 ? 0 : images.data[start + place];
          }
        }
      }
      const weights = kernel.data.subarray(group * perGroup * length, (group + 1) * perGroup * length);
      const first = (image * filters + group * perGroup) * windows;
      convolve(weights, column, length, perGroup, windows, result.subarray(first));
    }
  }
  const shaped = {shape: [count, filters, ...sizes], data: result};
  if (!bias) return shaped;
  return OPERATORS.Add([shaped, {shape: [filters, ...sizes.map(() => 1)], data: bias.data}]);
};

/** result[f, w] = weights[f] . column[w]; four filters at once, which is twice as fast. */
function convolve(weights, column, length, filters, windows, result) {
  for (let f = 0; f < filters; f += 4) {
    const last = filters - 1, f1 = Math.min(f + 1, last), f2 = Math.min(f + 2, last);
    const f3 = Math.min(f + 3, last);
    const w0 = f * length, w1 = f1 * length, w2 = f2 * length, w3 = f3 * length;
    for (let window = 0; window < windows; window++) {
      const start = window * length;
      let a = 0, b = 0, c = 0, d = 0;
      for (let i = 0; i < length; i++) {
        const value = column[start + i];
        a += value * weights[w0 + i];
        b += value * weights[w1 + i];
        c += value * weights[w2 + i];
        d += value * weights[w3 + i];
      }
      result[f * windows + window] = a;
      result[f1 * windows + window] = b;
      result[f2 * windows + window] = c;
      result[f3 * windows + window] = d;
    }
  }
}

OPERATORS.ConvTranspose = ([images, kernel], {strides, pads, dilations, output_padding: added}) => {
  const [count, channels, ...plane] = images.shape, [, filters, ...shape] = kernel.shape;
  const rank = shape.length, extent = shape.map((size, axis) =>
    (plane[axis] - 1) * strides[axis] + (dilations?.[axis] ?? 1) * (size - 1) + 1
    - pads[axis] - pads[rank + axis] + added[axis]);
  const {pixels, places} = windowsOf(extent, {kernel_shape: shape, strides, pads, dilations});
  const windows = product(plane), size = product(extent), result = new Float32Array(count * filters * size);
  for (let i = 0; i < images.data.length; i++) {
    const image = Math.floor(i / windows / channels), channel = Math.floor(i / windows) % channels;
    for (let filter = 0; filter < filters; filter++) {
      const from = (channel * filters + filter) * pixels, to = (image * filters + filter) * size;
      for (let pixel = 0; pixel < pixels; pixel++) {
        const place = places[i % windows * pixels + pixel];
        if (place >= 0) result[to + place] += images.data[i] * kernel.data[from + pixel];
      }
    }
  }
  return {shape: [count, filters, ...extent], data: result};
};

function pooling(combine, initial, finish) {
  return ([{shape: [count, channels, ...plane], data}], attributes) => {
    const {sizes, pixels, places} = windowsOf(plane, attributes);
    const windows = product(sizes), size = product(plane);
    const result = new Float32Array(count * channels * windows);
    for (let i = 0; i < result.length; i++) {
      const start = Math.floor(i / windows) * size, from = i % windows * pixels;
      let value = initial;
      for (let j = from; j < from + pixels; j++) {
        if (places[j] >= 0) value = combine(value, data[start + places[j]]);
      }
      result[i] = finish(value, pixels);
    }
    return {shape: [count, channels, ...sizes], data: result};
  };
}

OPERATORS.MaxPool = pooling((a, b) => nan(a, b) ? NaN : a > b ? a : b, -Infinity, value => value);
OPERATORS.AveragePool = pooling((a, b) => a + b, 0, (value, pixels) => value / pixels);

/** A function from the bytes of an image to its logits. `weights` are those of all constants. */
function makeNetwork({nodes, constants}, weights, imageShape) {
  const TYPES = {float32: Float32Array, int32: Int32Array, int16: Int16Array, uint8: Uint8Array};
  const fixed = new Map(Object.entries(constants).map(([name, {type, shape, start}]) => {
    const data = new TYPES[type](weights.buffer, start, product(shape));
    return [name, {shape, data: type === "float32" ? data : Int32Array.from(data)}];
  }));
  return image => {
    const values = new Map([...fixed, ["images", {shape: [1, ...imageShape], data: image}]]);
    for (const {kind, inputs, output, attributes} of nodes) {
      values.set(output, OPERATORS[kind](inputs.map(name => values.get(name)), attributes));
    }
    return values.get("logits").data;
  };
}
