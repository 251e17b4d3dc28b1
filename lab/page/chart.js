// The curve of a training run: its loss, and the losses on the text's held-out end and on other prose.
const MEASURES = {
  training: { label: "training", smooth: true },
  heldOut: { label: "held-out end" },
  prose: { label: "other prose" },
};
const MARGIN = { left: 34, right: 104, top: 14, bottom: 30 };

// An SVG element.
function drawn(kind, attributes, text = "") {
  const element = document.createElementNS("http://www.w3.org/2000/svg", kind);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.textContent = text;
  return element;
}

// Draw runs into `box`, the last of them strong and the ones before it pale and dashed.
// A run: {steps, losses, measured: [{at, heldOut, prose}], best: its step}.
export function drawRuns(box, runs) {
  const [width, height] = [Math.max(280, box.clientWidth), 240];
  const svg = drawn("svg", { viewBox: `0 0 ${width} ${height}`, width, height });
  const all = runs.flatMap(run =>
    Object.keys(MEASURES).flatMap(measure => points(run, measure).map(([, y]) => y)),
  );
  const top = Math.min(Math.ceil(Math.max(1, ...all)), 12);
  const most = Math.max(1, ...runs.map(run => run.steps));
  const x = step => MARGIN.left + (step / most) * (width - MARGIN.left - MARGIN.right);
  const y = loss =>
    height - MARGIN.bottom - (Math.min(loss, top) / top) * (height - MARGIN.top - MARGIN.bottom);
  drawAxes(svg, { x, y, top, most, width, height });
  if (runs.length) drawKept(svg, runs.at(-1), { x, y });
  for (const run of runs) drawRun(svg, run, run === runs.at(-1), { x, y });
  box.replaceChildren(svg);
}

// [step, loss] of what a run measured; the training loss after a step belongs to the weights before it.
function points(run, measure) {
  if (measure === "training") return run.losses.map((loss, i) => [i, loss]);
  return run.measured.map(at => [at.at, at[measure]]);
}

function drawAxes(svg, { x, y, top, most, width, height }) {
  for (let loss = 0; loss <= top; loss += top > 6 ? 2 : 1) {
    svg.append(
      drawn("line", { x1: x(0), x2: width - MARGIN.right, y1: y(loss), y2: y(loss), class: "lab-rule" }),
    );
    svg.append(drawn("text", { x: MARGIN.left - 8, y: y(loss) + 4, "text-anchor": "end" }, loss));
  }
  const every = [1, 2, 5, 10, 20, 50, 100, 200, 500].find(step => most / step <= 6) ?? 1000;
  for (let step = 0; step <= most; step += every) {
    svg.append(drawn("text", { x: x(step), y: height - MARGIN.bottom + 18, "text-anchor": "middle" }, step));
  }
  svg.append(drawn("text", { x: width - MARGIN.right + 16, y: height - MARGIN.bottom + 18 }, "steps"));
}

// The step whose adapter is kept, and a shade over what came after it.
function drawKept(svg, { best, measured }, { x, y }) {
  const last = measured.at(-1)?.at;
  if (!best || best >= last) return;
  const [x1, x2, top, bottom] = [x(best), x(last), MARGIN.top, y(0)];
  svg.append(
    drawn("rect", { x: x1, y: top, width: x2 - x1, height: bottom - top, class: "lab-after-kept" }),
    drawn("line", { x1, x2: x1, y1: top, y2: bottom, class: "lab-kept-step" }),
    drawn("text", { x: x1 + 5, y: bottom - 6 }, `kept: step ${best}`),
  );
}

function drawRun(svg, run, latest, { x, y }) {
  const ends = [];
  for (const [measure, { label, smooth }] of Object.entries(MEASURES)) {
    const raw = points(run, measure);
    if (!raw.length) continue;
    const style = `lab-line lab-${measure}${latest ? "" : " lab-earlier"}`;
    if (smooth && latest) svg.append(polyline(raw, `${style} lab-raw`, x, y));
    svg.append(polyline(smooth ? smoothed(raw) : raw, style, x, y));
    if (!smooth && latest) {
      for (const [step, loss] of raw)
        svg.append(drawn("circle", { cx: x(step), cy: y(loss), r: 3, class: style }));
    }
    const [step, loss] = (smooth ? smoothed(raw) : raw).at(-1);
    ends.push({ at: y(loss), x: x(step), label, style });
  }
  if (!latest) return;
  const right = Math.max(...ends.map(end => end.x)) + 8;
  ends.sort((a, b) => a.at - b.at);
  ends.forEach((end, i) => {
    if (i > 0) end.at = Math.max(end.at, ends[i - 1].at + 15); // names do not overlap
    svg.append(drawn("text", { x: right, y: end.at + 4, class: `lab-name ${end.style}` }, end.label));
  });
}

function polyline(line, style, x, y) {
  const places = line.map(([step, loss]) => `${x(step).toFixed(1)},${y(loss).toFixed(1)}`);
  return drawn("polyline", { points: places.join(" "), class: style });
}

// Each loss with the ones before it, those further back counting less.
function smoothed(line) {
  let mean = line[0][1];
  return line.map(([step, loss]) => {
    mean += 0.3 * (loss - mean);
    return [step, mean];
  });
}
