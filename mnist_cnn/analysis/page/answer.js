// The network's answers to pictures: mnist_cnn/analysis/answers.py in JavaScript.

/** The probabilities of the classes; with `none` the rest to 1 is that of "no digit". */
function softmax(logits, none) {
  const all = none ? [...logits, 0] : [...logits], largest = Math.max(...all);
  const exponentials = all.map(one => Math.exp(one - largest));
  const total = exponentials.reduce((a, b) => a + b);
  return exponentials.slice(0, logits.length).map(one => one / total);
}

const percent = (value, digits) => `${(100 * value).toFixed(digits)}%`;

/** A function from a picture to its answer; `about` is what build.py writes into the page. */
function makeReader(about, weights) {
  const network = makeNetwork(about.graph, weights, about.image_shape);
  const names = about.class_names;

  function look(image) {
    if (about.is_handwriting) return findDigits(image, !about.is_digits);
    const box = [0, 0, round(image.width * image.scale), round(image.height * image.scale)];
    return [{form: fitted(image, about.image_shape), box}];
  }

  function read(image) {
    const seen = look(image), digits = [];
    for (const one of seen) {
      const probabilities = softmax(network(one.form), about.none);
      const none = 1 - probabilities.reduce((a, b) => a + b);
      if (none > 0.5) continue;
      const order = probabilities.map((_, i) => i).sort((a, b) => probabilities[b] - probabilities[a]);
      const probability = probabilities[order[0]];
      digits.push({...one, digit: order[0], probability, runnerUp: order[1], probabilities});
    }
    if (!digits.length) return {error: "no digit found: what stands out from the paper is none", seen};
    const text = digits.map(one => names[one.digit]).join("");
    const probability = digits.reduce((total, one) => total * one.probability, 1);
    const sure = digits.every(one => one.probability >= about.sure);
    let more = digits.map(one => `${one.digit} ${percent(one.probability, 1)}`).join(", ");
    if (digits.length === 1) {
      const {runnerUp, probabilities} = digits[0];
      more = `runner-up ${names[runnerUp]}, ${percent(probabilities[runnerUp], 2)}`;
    }
    const said = `${text}  ${percent(probability, 2)}  ${sure ? "" : "unsure  "}(${more})`;
    return {text, probability, sure, said, digits, seen: digits};
  }

  return image => {
    try {
      return read(image);
    } catch (error) {
      if (error instanceof PictureError) return {error: error.message};
      return {error: `unexpected: ${error.name}: ${error.message}`};
    }
  };
}
