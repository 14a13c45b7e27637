// The network's answers to pictures: mnist_cnn/analysis/answers.py in JavaScript.

/** The probabilities of the classes; with `none` the rest to 1 is that of "no digit". */
function softmax(logits, none) {
  const all = none ? [...logits, 0] : [...logits], largest = Math.max(...all);
  const exponentials = all.map(one => Math.exp(one - largest));
  const total = exponentials.reduce((a, b) => a + b);
  return exponentials.slice(0, logits.length).map(one => one / total);
}

const STRAY = 0.25;  // how probable it is that a piece of ink beside others is none of a digit

/** The digits, in order, of the most probable of all ways to put the pieces of ink together. */
function bestReading(candidates) {
  const best = [{probability: 1, digits: []}];  // of the first pieces
  const count = Math.max(0, ...candidates.map(({pieces}) => pieces[1]));
  for (let last = 1; last <= count; last++) {
    const ways = candidates.filter(one => one.digit !== null && one.pieces[1] === last).map(one => {
      const before = best[one.pieces[0]];
      return {probability: before.probability * one.probability, digits: [...before.digits, one], one};
    });
    if (!ways.some(({one}) => one.pieces[0] === last - 1)) {
      const before = best[last - 1];
      ways.push({probability: before.probability * STRAY, digits: before.digits});
    }
    best.push(ways.reduce((a, b) => b.probability > a.probability ? b : a));
  }
  return best[count].digits;
}

const percent = (value, digits) => `${(100 * value).toFixed(digits)}%`;

/** A function from a picture to its answer; `about` is what build.py writes into the page. */
function makeReader(about, weights) {
  const network = makeNetwork(about.graph, weights, about.image_shape);
  const names = about.class_names;

  function look(image) {
    if (about.is_handwriting) return findDigits(image, !about.is_digits);
    const box = [0, 0, round(image.width * image.scale), round(image.height * image.scale)];
    return [{form: fitted(image, about.image_shape), box, pieces: [0, 1]}];
  }

  function answerOf(logits, temperature = 1) {
    const probabilities = softmax(logits.map(one => one / temperature), about.none);
    const order = probabilities.map((_, i) => i).sort((a, b) => probabilities[b] - probabilities[a]);
    const none = 1 - probabilities.reduce((a, b) => a + b);
    const digit = none >= about.noDigit ? null : order[0];
    return {probabilities, digit, probability: probabilities[order[0]], runnerUp: order[1]};
  }

  /** The answer of the network, and `members`: the digits of the members of an ensemble. */
  function recognized(form) {
    const logits = network(form), [own, ...members] = Array.from(
      {length: logits.length / names.length},
      (_, i) => answerOf(logits.slice(i * names.length, (i + 1) * names.length), about.temperatures[i]));
    return {...own, members: members.map(one => one.digit)};
  }

  /** How many members of an ensemble read another text, in words. */
  function agreement(digits) {
    const count = digits[0].members.length;
    const differ = digits[0].members.filter((_, i) => digits.some(one => one.members[i] !== one.digit)).length;
    if (!differ) return count ? `; all ${count} members agree` : "";
    return `; ${differ} of ${count} members differ${differ === 1 ? "s" : ""}`;
  }

  function read(image) {
    const found = look(image);
    const digits = bestReading(found
      .filter(({pieces: [first, last]}) => about.none || last - first === 1)
      .map(one => ({...one, ...recognized(one.form)})));
    if (!digits.length) {
      const seen = found.length === 1 ? found : [];
      return {error: "no digit found: the marks on the paper do not look like one", seen};
    }
    const text = digits.map(one => names[one.digit]).join("");
    const probability = digits.reduce((total, one) => total * one.probability, 1);
    const sure = digits.every(one => one.probability >= about.sure);
    let more = digits.map(one => `${one.digit} ${percent(one.probability, 1)}`).join(", ");
    if (digits.length === 1) {
      const {runnerUp, probabilities} = digits[0];
      more = `runner-up ${names[runnerUp]}, ${percent(probabilities[runnerUp], 2)}`;
    }
    const said = `${text}  ${percent(probability, 2)}  ${sure ? "" : "unsure  "}(${more}${agreement(digits)})`;
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
