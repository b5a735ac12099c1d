// Scores against their threshold, the last five minutes, drawn on a canvas as they come.

const SPAN_MS = 5 * 60 * 1000;
// What is shown grows from this.
const LEAST_MS = 60 * 1000;
const FEW = 40;

export class Chart {
  constructor(canvas) {
    this.canvas = canvas;
    this.points = [];
    new ResizeObserver(() => this.draw()).observe(canvas);
  }

  add(points) {
    this.points.push(...points);
    const from = (this.points.at(-1)?.[0] ?? 0) - SPAN_MS;
    this.points = this.points.filter((point) => point[0] >= from);
    this.draw();
  }

  // The last score in words, for those who do not see the chart.
  words() {
    const last = this.points.at(-1);
    if (!last) return "no score yet";
    const [, score, threshold] = last;
    if (score === null) return "the model is learning: no score yet";
    if (threshold === null) return `score ${short(score)}, no threshold yet`;
    return `score ${short(score)}, ${score > threshold ? "ABOVE" : "below"} the threshold ${short(threshold)}`;
  }

  draw() {
    const { canvas, points } = this;
    const scale = window.devicePixelRatio || 1;
    const [width, height] = [canvas.clientWidth, canvas.clientHeight];
    if (!width || !height) return;
    canvas.width = width * scale;
    canvas.height = height * scale;
    const pen = canvas.getContext("2d");
    pen.scale(scale, scale);
    const style = getComputedStyle(canvas);
    const color = (name) => style.getPropertyValue(name).trim();
    pen.font = `12px ${style.fontFamily}`;
    const [left, right, top, bottom] = [48, 12, 10, 22];
    const end = points.at(-1)?.[0] ?? Date.now();
    const span = Math.min(SPAN_MS, Math.max(LEAST_MS, end - (points[0]?.[0] ?? end)));
    const most = Math.max(1e-9, ...points.flatMap((point) => [point[1] ?? 0, point[2] ?? 0])) * 1.15;
    const least = Math.min(0, ...points.map((point) => point[1] ?? 0));
    const x = (ms) => left + (1 - (end - ms) / span) * (width - left - right);
    const y = (value) => top + (1 - (value - least) / (most - least)) * (height - top - bottom);
    pen.strokeStyle = color("--line");
    pen.fillStyle = color("--quiet");
    pen.textBaseline = "middle";
    pen.textAlign = "right";
    for (const part of [0, 0.5, 1]) {
      const value = least + part * (most - least) / 1.15;
      pen.beginPath();
      pen.moveTo(left, y(value));
      pen.lineTo(width - right, y(value));
      pen.stroke();
      pen.fillText(short(value), left - 6, y(value));
    }
    pen.textAlign = "center";
    pen.textBaseline = "alphabetic";
    const labels = Math.max(2, Math.min(6, Math.floor((width - left) / 110)));
    for (let i = 0; i < labels; i += 1) {
      const ms = end - (span * i) / labels;
      pen.fillText(clock(ms), Math.min(x(ms), width - right - 26), height - 6);
    }
    const gap = this.gap();
    this.line(pen, 2, x, y, color("--warning"), [6, 4], gap);
    this.line(pen, 1, x, y, color("--accent"), [], gap);
    // A slow pipeline has few: each is seen, also the only one.
    if (points.length <= FEW) this.dots(pen, x, y, color("--accent"));
    pen.fillStyle = color("--critical");
    for (const [ms, score, threshold] of points) {
      if (score !== null && threshold !== null && score > threshold) {
        pen.beginPath();
        pen.arc(x(ms), y(score), 3, 0, 7);
        pen.fill();
      }
    }
    canvas.setAttribute("aria-label", this.words());
  }

  // A silence that is a gap in the line: three times what is usual here, ten seconds at least.
  gap() {
    const apart = this.points.slice(1).map((point, i) => point[0] - this.points[i][0]).sort((a, b) => a - b);
    return Math.max(10000, 3 * (apart[apart.length >> 1] ?? 0));
  }

  dots(pen, x, y, color) {
    const [first] = this.points;
    if (this.points.length === 1 && first[2] !== null) {
      pen.strokeStyle = getComputedStyle(this.canvas).getPropertyValue("--warning");
      pen.setLineDash([6, 4]);
      pen.beginPath();
      pen.moveTo(x(first[0] - LEAST_MS), y(first[2]));
      pen.lineTo(x(first[0]), y(first[2]));
      pen.stroke();
      pen.setLineDash([]);
    }
    pen.fillStyle = color;
    for (const [ms, score] of this.points) {
      if (score === null) continue;
      pen.beginPath();
      pen.arc(x(ms), y(score), 2.5, 0, 7);
      pen.fill();
    }
  }

  line(pen, member, x, y, color, dash, gap) {
    pen.strokeStyle = color;
    pen.lineWidth = 2;
    pen.setLineDash(dash);
    pen.beginPath();
    let before = null;
    for (const point of this.points) {
      const value = point[member];
      const joined = before !== null && point[0] - before < gap;
      if (value !== null) {
        if (joined) pen.lineTo(x(point[0]), y(value));
        else pen.moveTo(x(point[0]), y(value));
      }
      before = value === null ? null : point[0];
    }
    pen.stroke();
    pen.setLineDash([]);
    pen.lineWidth = 1;
  }
}

const clock = (ms) => new Date(ms).toLocaleTimeString([], { hour12: false });

export function short(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  return size >= 1000 || size < 0.01 ? value.toExponential(1) : value.toFixed(size >= 100 ? 0 : size >= 10 ? 1 : 2);
}
