// What the report adds to its still pictures: hovering, the distance filter, and the viewer. Nothing is fetched.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const one = (what, inside = document) => inside.querySelector(what);
  const all = (what, inside = document) => [...inside.querySelectorAll(what)];
  const number = (v, digits = 2) => (Number.isFinite(v) ? v.toFixed(digits).replace("-", "−") : "–");
  const signed = (v) => (v >= 0 ? "+" : "") + number(v);
  const error = (c) => Math.hypot(...c.true.map((v, k) => c.predicted[k] - v));
  const frame = (c, position) => c.first + position * c.stride;
  const clips = data.clips;
  const dots = clips.slice(0, data.drawn).map((_, i) => i);
  const filter = document.getElementById("filter");
  const viewer = document.getElementById("viewer");
  let shown = new Set(dots);  // those that pass the filter

  document.documentElement.classList.add("scripted");
  for (const part of all("#filter, #shown, #viewer, .hint")) part.hidden = false;

  // ---- the plots: dots and bars that come and go, and what is under the pointer

  const clouds = all(".plot > svg").filter((svg) => one(".points", svg)).map((svg) => {
    const path = one(".points", svg);
    const places = path.getAttribute("d").split("M").slice(1).map((p) => p.split(/[ h]/, 2).map(Number));
    return { svg, path, places, ring: mark(svg, "mark"), at: mark(svg, "mark at") };
  });
  const histograms = all(".plot > svg[data-component]").filter((svg) => one(".bars", svg)).map((svg) => {
    const [zero, unit] = svg.dataset.across.split(" ").map(Number);
    return {
      svg, zero, unit: unit - zero, component: Number(svg.dataset.component),
      columns: all(".column", svg).map((rect) => rect.x.baseVal.value + rect.width.baseVal.value),
      still: all(".bars, .steps", svg).map((path) => [path, path.getAttribute("d")]),
      said: all(".column title", svg).map((title) => [title.parentNode, title.textContent]),
    };
  });

  function mark(svg, name) {
    const circle = document.createElementNS("http://www.w3.org/2000/svg", "circle");
    circle.setAttribute("class", name);
    circle.setAttribute("r", 0);
    return svg.appendChild(circle);
  }

  function ring(circle, place) {
    circle.setAttribute("r", place ? 6 : 0);
    if (place) ["cx", "cy"].forEach((name, i) => circle.setAttribute(name, place[i]));
  }

  function count(h, values) {  // examples in each column of a histogram
    const counts = h.columns.map(() => 0);
    for (const v of values) {
      const x = h.zero + v * h.unit;
      counts[Math.max(0, Math.min(h.columns.findIndex((end) => x < end - 0.01), counts.length - 1))] += 1;
    }
    return counts;
  }

  function redraw() {
    for (const { path, places } of clouds) {
      path.setAttribute("d", dots.filter((i) => shown.has(i)).map((i) => `M${places[i][0]} ${places[i][1]}h0`).join(""));
    }
    for (const h of histograms) {
      const k = h.component, some = [...shown].map((i) => clips[i]);
      const whole = shown.size === dots.length;
      const model = count(h, some.map((c) => c.predicted[k] - c.true[k]));
      const blank = data.constant && count(h, some.map((c) => data.constant[k] - c.true[k]));
      const [base, above] = h.svg.dataset.up.split(" ").map(Number);
      for (const [path, still] of h.still) {
        const steps = path.classList.contains("steps"), counts = steps ? blank : model;
        let left = 0, d = "";
        h.columns.forEach((right, i) => {
          if (i === 0) left = one(".column", h.svg).x.baseVal.value;
          const y = (base + counts[i] * (above - base)).toFixed(1), inset = 0.05 * (right - left);
          if (steps) d += `${i ? "" : `M${left} ${base}`}V${y}H${right}`;
          else d += `M${left + inset} ${base}V${y}H${right - inset}V${base}Z`;
          left = right;
        });
        path.setAttribute("d", whole ? still : steps ? `${d}V${base}` : d);
      }
      h.said.forEach(([rect, text], i) => {
        const values = `model ${model[i]}${blank ? `, constant ${blank[i]}` : ""}`;
        rect.dataset.say = whole ? text : `${text.split(": ")[0]}: ${values}`;
      });
    }
    if (filter) figures();
  }

  function figures() {
    const square = (of) => [...shown].reduce((sum, i) => sum + clips[i].true.reduce((s, v, k) => s + (of(i, k) - v) ** 2, 0), 0);
    const model = square((i, k) => clips[i].predicted[k]);
    const blank = data.constant ? square((_, k) => data.constant[k]) : NaN;
    const root = (sum) => number(Math.sqrt(sum / (shown.size * data.target.length)));
    const say = { n: `${shown.size} of ${dots.length}`, rmse: root(model), blank: root(blank) };
    say.skill = number(1 - model / blank);
    say["no-skill"] = blank > 0 ? number(0) : "–";
    for (const [name, text] of Object.entries(say)) one(`#shown .${name}`).textContent = text;
  }

  const tip = document.getElementById("tip");
  function tell(text, event) {
    tip.hidden = !text;
    if (!text) return;
    tip.textContent = text;
    const { width, height } = tip.getBoundingClientRect();
    const x = event.clientX + 14 + width > innerWidth ? event.clientX - width - 10 : event.clientX + 14;
    const y = event.clientY + 14 + height > innerHeight ? event.clientY - height - 10 : event.clientY + 14;
    tip.style.translate = `${Math.max(4, x)}px ${Math.max(4, y)}px`;
  }

  const away = (c) => (c.distance === null ? "" : `, ${number(c.distance, 1)} m away`);
  const frames = (c) => `frames ${c.first}–${frame(c, c.length - 1)}${c.stride > 1 ? `, every ${c.stride}` : ""}`;
  function about(i) {
    const c = clips[i];
    const values = data.target.map((name, k) => {
      const [unit, error] = [data.units[k] ? ` ${data.units[k]}` : "", signed(c.predicted[k] - c.true[k])];
      return `${name}: true ${number(c.true[k])}, predicted ${number(c.predicted[k])}${unit} (${error})`;
    });
    return [c.name, frames(c) + away(c), ...values].join("\n");
  }

  function nearest({ svg, places }, event) {
    const here = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
    let found = null, least = 14 ** 2;
    for (const i of shown) {
      const distance = (places[i][0] - here.x) ** 2 + (places[i][1] - here.y) ** 2;
      if (distance < least) [found, least] = [i, distance];
    }
    return found;
  }

  for (const cloud of clouds) {
    const plot = cloud.svg.parentNode;
    const point = (i) => {
      plot.classList.toggle("near", i !== null);
      for (const { ring: circle, places } of clouds) ring(circle, i === null ? null : places[i]);
    };
    plot.addEventListener("pointermove", (event) => {
      const i = nearest(cloud, event);
      point(i);
      tell(i === null ? "" : about(i), event);
    });
    plot.addEventListener("pointerleave", () => { point(null); tell(""); });
    plot.addEventListener("click", (event) => {
      const i = nearest(cloud, event);
      if (i === null) return;
      plot.closest(".panels").after(viewer);
      open(i);
      viewer.scrollIntoView({ block: "nearest" });
    });
  }

  for (const rect of all(".plot .column")) {
    const title = one("title", rect);
    rect.dataset.say = title.textContent;
    title.remove();  // else the browser shows it as well
    rect.addEventListener("pointermove", (event) => tell(rect.dataset.say, event));
    rect.addEventListener("pointerleave", () => tell(""));
  }

  // ---- the filter

  if (filter) {
    const [from, to] = all("input", filter);
    const presets = all("button", filter);
    const most = Number(to.max);
    const apply = () => {
      const low = Number(from.value), high = Number(to.value);
      const every = low === 0 && high === most;
      const within = ({ distance }) => distance !== null && distance >= low && (distance < high || high === most);
      shown = new Set(dots.filter((i) => every || within(clips[i])));
      for (const input of [from, to]) input.nextElementSibling.textContent = `${input.value} m`;
      for (const button of presets) {
        const chosen = Number(button.dataset.from) === low && Number(button.dataset.to || most) === high;
        button.setAttribute("aria-pressed", chosen);
      }
      redraw();
      turns();
    };
    from.addEventListener("input", () => { to.value = Math.max(to.value, from.value); apply(); });
    to.addEventListener("input", () => { from.value = Math.min(to.value, from.value); apply(); });
    for (const button of presets) {
      button.addEventListener("click", () => {
        from.value = button.dataset.from || 0;
        to.value = button.dataset.to || most;
        apply();
      });
    }
  }

  // ---- the viewer

  const [image, slider, play, spoken] = ["img", "input", ".play", "output"].map((what) => one(what, viewer));
  const embedded = new Map(Object.entries(data.pictures).map(([row, jpeg]) => [Number(row), `data:image/jpeg;base64,${jpeg}`]));
  for (const still of all(".strip img")) embedded.set(Number(still.dataset.row), still.src);
  let current = null, positions = [], timer = 0;

  function arrow(values, x, y) {  // as glyphs.py draws it
    const [vx, vy] = data.arrow.columns.map((k) => values[k] * data.arrow.scale);
    const right = vy, down = -vx;
    const length = Math.hypot(right, down), head = Math.min(4, 0.6 * length), turn = Math.atan2(down, right);
    const [a, b] = [-0.6, 0.6].map((side) =>
      `L${x + right - head * Math.cos(turn + side)} ${y + down - head * Math.sin(turn + side)}`);
    return `M${x} ${y}L${x + right} ${y + down}${a}M${x + right} ${y + down}${b}`;
  }

  function arrows(drawing, c, box) {
    [["true", c.true, -1], ["model", c.predicted, 1]].forEach(([kind, values, side]) => {
      const [left, top, width, height] = box ?? [0, 0, 0, 0];
      const x = left + width / 2 + side * Math.max(width / 2 + 1.5, 3);
      one(`.${kind}`, drawing)?.setAttribute("d", box ? arrow(values, x, top + height / 2) : "");
    });
  }

  function show(k) {  // the k-th of the frames that are here
    const c = clips[current], position = positions[k], box = c.boxes[position];
    slider.value = k;
    image.src = embedded.get(c.row + position * c.stride);
    image.alt = `${c.name}, frame ${frame(c, position)}`;
    spoken.textContent = `frame ${frame(c, position)}`;
    slider.setAttribute("aria-valuetext", spoken.textContent);
    const rect = one(".box", viewer);
    ["x", "y", "width", "height"].forEach((name, i) => rect.setAttribute(name, box ? box[i] : 0));
    arrows(one(".over", viewer), c, box);
  }

  function open(i, wanted = -1) {
    stop();
    current = i;
    const c = clips[i];
    positions = [...Array(c.length).keys()].filter((p) => embedded.has(c.row + p * c.stride));
    one("h4", viewer).textContent = c.name;
    one("h4 + .where", viewer).textContent = `${frames(c)}, ${c.label}${away(c)}`;
    all("tbody tr", viewer).forEach((row, k) => {
      const values = [number(c.true[k]), number(c.predicted[k]), signed(c.predicted[k] - c.true[k])];
      if (data.constant) values.push(signed(data.constant[k] - c.true[k]));
      all("td", row).forEach((cell, j) => { cell.textContent = values[j]; });
    });
    all(".bars svg", viewer).forEach((bars, k) => {
      const [zero, scale] = [Number(bars.dataset.zero), Number(bars.dataset.scale)];
      [["true", c.true], ["model", c.predicted]].forEach(([kind, of], line) =>
        one(`.${kind}`, bars).setAttribute("d", `M${zero} ${8 * line + 5}H${zero + of[k] * scale}`));
    });
    const top = one(".top", viewer);
    if (top) arrows(top, c, [0, 0, 0, 0]);
    one(".over", viewer).setAttribute("viewBox", `0 0 160 ${c.height}`);
    for (const { at, places } of clouds) ring(at, places[i]);
    slider.max = Math.max(0, positions.length - 1);
    slider.disabled = play.disabled = positions.length < 2;
    for (const part of all(".stage, .controls", viewer)) part.hidden = positions.length === 0;
    one(".missing", viewer).hidden = positions.length === c.length;
    if (positions.length) show(wanted < 0 ? positions.length - 1 : Math.max(0, positions.indexOf(wanted)));
    turns();
  }

  const step = (by) => show((Number(slider.value) + by + positions.length) % positions.length);
  function stop() {
    clearInterval(timer);
    timer = 0;
    play.textContent = "▶";
    play.setAttribute("aria-label", "Play");
  }
  play.addEventListener("click", () => {
    if (timer) return stop();
    timer = setInterval(() => step(1), Math.max(100, 1000 * clips[current].seconds));
    play.textContent = "❚❚";
    play.setAttribute("aria-label", "Pause");
  });
  slider.addEventListener("input", () => { stop(); show(Number(slider.value)); });
  viewer.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!by || event.target === slider || positions.length < 2) return;  // the slider has these keys by itself
    event.preventDefault();
    stop();
    step(by);
  });

  const ranked = clips.map((_, i) => i).sort((a, b) => error(clips[b]) - error(clips[a]));
  const [before, after] = [one(".before", viewer), one(".after", viewer)];
  const next = (by) => {
    for (let k = ranked.indexOf(current) + by; k >= 0 && k < ranked.length; k += by) {
      if (shown.has(ranked[k])) return ranked[k];
    }
    return null;
  };
  function turns() {
    before.disabled = next(-1) === null;
    after.disabled = next(1) === null;
  }
  before.addEventListener("click", () => open(next(-1)));
  after.addEventListener("click", () => open(next(1)));

  for (const clip of all(".clip")) {
    clip.addEventListener("click", (event) => {
      const chosen = event.target.closest(".strip .frame, button.hint");
      if (!chosen) return;
      clip.append(viewer);
      open(Number(clip.dataset.clip), Number(chosen.dataset.position ?? 0));
      viewer.scrollIntoView({ block: "nearest" });
      slider.focus({ preventScroll: true });
    });
  }

  redraw();
  open(Number(one(".clip").dataset.clip));
})();
