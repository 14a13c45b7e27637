// digits/fitted.py in JavaScript.

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
