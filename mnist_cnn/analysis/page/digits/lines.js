// digits/lines.py in JavaScript.

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
