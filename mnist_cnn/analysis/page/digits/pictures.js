// digits/pictures.py in JavaScript: an image has `width`, `height`, `data` (RGBA bytes) and `scale`.

class PictureError extends Error {}

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
