// The page: a drawing or a picture goes to the network, its answer is shown.
"use strict";
(() => {
  const $ = id => document.getElementById(id);
  const about = JSON.parse($("about").textContent);
  const binary = atob($("weights").textContent), weights = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i++) weights[i] = binary.charCodeAt(i);
  const drawing = $("drawing"), pen = drawing.getContext("2d", {willReadFrequently: true});
  const names = about.class_names;
  let version = 0;  // of the drawing or picture: an answer to an older one is not shown

  // The network computes in a worker, so that the pen does not stop, or here if there is none.

  const answers = new Map();  // what to do with the answer of each number
  let ask, asked = 0;
  function askHere() {
    const reader = makeReader(about, weights);
    ask = (number, image) => setTimeout(() => receive(number, reader(image)));
  }
  function receive(number, answer) {
    answers.get(number)(answer);
    answers.delete(number);
  }
  try {
    const program = `${$("engine").textContent}
      let reader;
      onmessage = ({data}) => {
        if (data.about) reader = makeReader(data.about, data.weights);
        else postMessage({number: data.number, answer: reader(data.image)});
      };`;
    const worker = new Worker(URL.createObjectURL(new Blob([program], {type: "text/javascript"})));
    const open = new Map();
    worker.onmessage = ({data}) => {
      open.delete(data.number);
      receive(data.number, data.answer);
    };
    worker.onerror = () => {  // the browser does not allow it
      worker.terminate();
      askHere();
      open.forEach((image, number) => ask(number, image));
    };
    worker.postMessage({about, weights});
    ask = (number, image) => {
      open.set(number, image);
      worker.postMessage({number, image});
    };
  } catch {
    askHere();
  }

  /** Tells screen readers to wait. */
  const setBusy = is => $("status").setAttribute("aria-busy", is);

  /** The answer to a picture {width, height, data, scale}. */
  function recognize(image) {
    return new Promise(resolve => {
      const number = ++asked;
      answers.set(number, resolve);
      ask(number, image);
    });
  }

  // Showing an answer.

  const element = (tag, text = "") => Object.assign(document.createElement(tag), {textContent: text});

  function show(answer) {
    const {digits = [], seen = []} = answer, words = answer.error ?? answer.text;
    $("answer").textContent = words;
    $("answer").className = answer.error ? "words" : "";
    $("said").textContent = answer.error ? "" : answer.said.slice(answer.text.length + 2);
    $("unsure").hidden = answer.error !== undefined || answer.sure;
    $("bars").replaceChildren(...(digits.length === 1 ? bars(digits[0]) : []));
    $("bars").className = about.is_digits ? "bars" : "bars named";
    $("seen").replaceChildren(...seen.map(one => {
      const item = element("li");
      item.append(imageOf(one.form));
      if (digits.length > 1) item.append(`${names[one.digit]} ${percent(one.probability, 1)}`);
      return item;
    }));
    $("seen").className = seen.length === 1 ? "each one" : "each";
    $("seen-title").hidden = !seen.length;
  }

  /** The classes, or the ten most probable ones, with their probabilities. */
  function bars({probabilities}) {
    let classes = names.map((_, index) => index);
    if (classes.length > 10) {
      classes = classes.sort((a, b) => probabilities[b] - probabilities[a]).slice(0, 10);
    }
    return classes.map(index => {
      const item = element("li"), bar = element("span"), filled = element("i");
      filled.style.width = `${100 * probabilities[index]}%`;
      bar.append(filled);
      item.append(element("span", names[index]), bar, element("span", percent(probabilities[index], 2)));
      return item;
    });
  }

  function imageOf(form) {
    const [height, width, channels] = about.image_shape, canvas = element("canvas");
    Object.assign(canvas, {width, height});
    const data = new Uint8ClampedArray(4 * width * height).fill(255);
    for (let i = 0; i < 4 * width * height; i++) {
      if (i % 4 < 3) data[i] = form[channels * (i >> 2) + (channels === 3 ? i % 4 : 0)];
    }
    canvas.getContext("2d").putImageData(new ImageData(data, width, height), 0, 0);
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", "What the network sees");
    return canvas;
  }

  /** Frames around the digits, in what a canvas shows of a file of this width. */
  function drawBoxes({width, height}, digits, fileWidth = width) {
    const canvas = $("boxes"), scale = width / fileWidth;
    Object.assign(canvas, {width, height});
    const context = canvas.getContext("2d"), line = Math.max(1, width / 150);
    for (const [colour, wide] of [["#000", 3 * line], ["#ffb000", 1.5 * line]]) {
      Object.assign(context, {strokeStyle: colour, lineWidth: wide});
      for (const {box} of digits) {
        const [left, top, right, bottom] = box.map(side => side * scale);
        context.strokeRect(left - line, top - line, right - left + 2 * line, bottom - top + 2 * line);
      }
    }
  }

  // Drawing. A line of 24 pixels of 336 becomes MNIST's 2 to 3 pixels of 28.

  let last = null, busy = false, waiting = null;
  function clear() {
    version++;
    waiting = last = null;
    setBusy(false);
    pen.fillStyle = "#000";
    pen.fillRect(0, 0, drawing.width, drawing.height);
    drawing.hidden = !about.is_handwriting;
    $("picture").hidden = true;
    drawing.parentElement.style.removeProperty("--aspect");
    $("hint").hidden = !about.is_handwriting;
    drawBoxes(drawing, []);
    show({error: about.is_handwriting ? "Nothing is drawn yet." : "No picture is chosen yet."});
    $("answer").classList.add("soft");
    $("file").value = "";
  }

  /** Reads the drawing, again if it has changed when the answer is there. */
  async function readDrawing() {
    const {width, height} = drawing;
    waiting = {width, height, data: pen.getImageData(0, 0, width, height).data, scale: 1};
    setBusy(true);
    if (busy) return;
    busy = true;
    while (waiting) {
      const image = waiting, own = version;
      waiting = null;
      const answer = await recognize(image);
      if (own !== version) continue;
      show(answer);
      drawBoxes(drawing, answer.digits?.length > 1 ? answer.digits : []);
    }
    busy = false;
    if ($("picture").hidden) setBusy(false);
  }

  function draw(event) {
    if (!event.isPrimary) return;  // a second finger
    if (event.type === "pointerdown") {
      if (event.button) return;  // of a mouse, not the left one
      drawing.setPointerCapture(event.pointerId);
      Object.assign(pen, {strokeStyle: "#fff", lineWidth: 24, lineCap: "round", lineJoin: "round"});
      $("hint").hidden = true;
      last = null;
    } else if (last === null) return;
    const box = drawing.getBoundingClientRect(), scale = drawing.width / box.width;
    const events = event.getCoalescedEvents?.() ?? [];
    for (const one of events.length ? events : [event]) {
      const next = [(one.clientX - box.left) * scale, (one.clientY - box.top) * scale];
      pen.beginPath();
      pen.moveTo(...(last ?? next));
      pen.lineTo(...next);
      pen.stroke();
      last = next;
    }
    if (event.type === "pointerup" || event.type === "pointercancel") last = null;
    readDrawing();
  }

  // Pictures.

  /** The first bytes of a file say whether it is a JPEG, and whether it is a picture at all. */
  const KINDS = {JPEG: [0xff, 0xd8, 0xff], PNG: [0x89, 0x50, 0x4e, 0x47], GIF: [0x47, 0x49, 0x46, 0x38],
    WEBP: [0x52, 0x49, 0x46, 0x46], BMP: [0x42, 0x4d]};

  /** The pixels of a file {width, height, data, scale}; a PictureError if it has none. */
  async function decode(file) {
    if (!file.size) throw new PictureError("the file is empty");
    const bytes = new Uint8Array(await file.slice(0, 8).arrayBuffer());
    const kind = Object.keys(KINDS).find(name => KINDS[name].every((byte, i) => byte === bytes[i]));
    let bitmap;
    try {
      bitmap = await createImageBitmap(file, {colorSpaceConversion: "none"});
    } catch {
      throw new PictureError(kind ? "damaged: the browser cannot decode it"
        : "no picture that can be read, expected PNG, JPEG, WEBP, BMP or GIF");
    }
    const {width, height} = bitmap;
    if (width * height > about.max_pixels) {
      throw new PictureError(`larger than the limit of ${about.max_pixels.toLocaleString("en")} pixels`);
    }
    // Pillow reduces a large JPEG while it decodes it, too.
    const least = Math.floor(Math.min(width, height) / 640);
    const factor = kind === "JPEG" ? [8, 4, 2].find(one => one <= least) ?? 1 : 1;
    const image = {width: Math.ceil(width / factor), height: Math.ceil(height / factor)};
    image.data = new Uint8ClampedArray(4 * image.width * image.height);
    image.scale = width / image.width;
    const rows = factor * Math.max(1, Math.floor(1e6 / width / factor));  // in bands: a canvas is limited
    const canvas = Object.assign(element("canvas"), {width, height: rows});
    const band = canvas.getContext("2d", {willReadFrequently: true});
    for (let top = 0; top < height; top += rows) {
      const part = Math.min(rows, height - top);
      band.clearRect(0, 0, width, rows);
      band.drawImage(bitmap, 0, top, width, part, 0, 0, width, part);
      const {data} = band.getImageData(0, 0, width, part);
      const reduced = reduce({width, height: part, data}, factor, false);
      image.data.set(reduced.data, 4 * image.width * (top / factor));
    }
    bitmap.close();
    return image;
  }

  async function readFile(file) {
    clear();
    const own = version;
    $("hint").hidden = true;
    $("answer").textContent = "Reading the picture";
    setBusy(true);
    let image, answer;
    try {
      image = await decode(file);
      if (own !== version) return;
      showPicture(image);
      answer = await recognize(image);
    } catch (error) {
      answer = {error: error instanceof PictureError ? error.message : `cannot be read: ${error.message}`};
    }
    if (own !== version) return;
    setBusy(false);
    show(answer);
    $("answer").textContent = answer.error ? `${file.name}: ${answer.error}` : answer.text;
    if (image && about.is_handwriting) {
      drawBoxes($("picture"), answer.seen ?? [], image.width * image.scale);
    }
  }

  function showPicture(image) {
    const canvas = $("picture"), factor = Math.ceil(Math.max(image.width, image.height) / 1000);
    const {width, height, data} = reduce(image, factor, false);
    Object.assign(canvas, {width, height});
    canvas.parentElement.style.setProperty("--aspect", Math.min(1, image.width / image.height));
    canvas.getContext("2d").putImageData(new ImageData(data, width, height), 0, 0);
    canvas.hidden = false;
    drawing.hidden = true;
  }

  for (const type of ["pointerdown", "pointermove", "pointerup", "pointercancel"]) {
    drawing.addEventListener(type, draw);
  }
  drawing.addEventListener("keydown", event => {
    if (["Delete", "Backspace", "Escape"].includes(event.key)) clear();
  });
  $("clear").addEventListener("click", clear);
  $("file").addEventListener("change", () => { if ($("file").files[0]) readFile($("file").files[0]); });
  document.addEventListener("paste", event => {
    if (event.clipboardData.files[0]) readFile(event.clipboardData.files[0]);
  });
  document.addEventListener("dragover", event => {
    event.preventDefault();
    document.body.classList.add("over");
  });
  for (const type of ["dragleave", "drop"]) {
    document.addEventListener(type, () => document.body.classList.remove("over"));
  }
  document.addEventListener("drop", event => {
    event.preventDefault();
    if (event.dataTransfer.files[0]) readFile(event.dataTransfer.files[0]);
  });

  const [height, width] = about.image_shape;
  $("text").textContent = !about.is_handwriting
    ? `Choose, paste or drop one; it is scaled to ${width} x ${height} pixels.`
    : "Or choose, paste or drop a photo."
      + (about.is_digits ? " Several digits are read as a number." : "");
  $("unsure").textContent = `Unsure: a probability is under ${percent(about.sure, 0)}.`;
  clear();
})();
