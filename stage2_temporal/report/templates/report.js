// What JavaScript adds to the report: values under the pointer, the distance filter, and the viewer. It loads no files.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const one = (selector, inside = document) => inside.querySelector(selector);
  const all = (selector, inside = document) => [...inside.querySelectorAll(selector)];
  const number = (v, digits = 2) => (Number.isFinite(v) ? v.toFixed(digits).replace("-", "−") : "–");
  const signed = (v) => (v >= 0 ? "+" : "") + number(v);
  const error = (c) => Math.hypot(...c.true.map((v, k) => c.predicted[k] - v));
  const frame = (c, position) => c.first + position * c.stride;
  const clips = data.clips;
  const dots = clips.slice(0, data.dots).map((_, i) => i);
  const filter = document.getElementById("filter");
  const viewer = document.getElementById("viewer");
  let selected = new Set(dots);  // the clips within the filter's distances

  document.documentElement.classList.add("scripted");
  for (const part of all("#filter, #selection, #viewer, .hint")) part.hidden = false;

  // ---- the plots: dots and bars of the selected clips, and the values under the pointer

  const clouds = all(".plot > svg").filter((svg) => one(".points", svg)).map((svg) => {
    const path = one(".points", svg);
    const places = path.getAttribute("d").split("M").slice(1).map((p) => p.split(/[ h]/, 2).map(Number));
    return { svg, path, places, pointed: mark(svg, "mark"), opened: mark(svg, "mark opened") };
  });
  const histograms = all(".plot > svg[data-component]").filter((svg) => one(".bars", svg)).map((svg) => {
    const [zero, unit] = svg.dataset.across.split(" ").map(Number);
    return {
      svg, zero, unit: unit - zero, component: Number(svg.dataset.component),
      ends: all(".column", svg).map((rect) => rect.x.baseVal.value + rect.width.baseVal.value),
      originalPaths: all(".bars, .steps", svg).map((path) => [path, path.getAttribute("d")]),
      originalTexts: all(".column title", svg).map((title) => [title.parentNode, title.textContent]),
    };
  });

  function mark(svg, name) {
    const circle = document.createElementNS("http://www.w3.org/2000/svg", "circle");
    circle.setAttribute("class", name);
    circle.setAttribute("r", 0);
    return svg.appendChild(circle);
  }

  function moveMark(circle, place) {
    circle.setAttribute("r", place ? 6 : 0);
    if (place) ["cx", "cy"].forEach((name, i) => circle.setAttribute(name, place[i]));
  }

  function count(histogram, values) {  // values in each column
    const { ends, zero, unit } = histogram, counts = ends.map(() => 0);
    for (const v of values) {
      const x = zero + v * unit;
      counts[Math.max(0, Math.min(ends.findIndex((end) => x < end - 0.01), counts.length - 1))] += 1;
    }
    return counts;
  }

  function redraw() {
    for (const { path, places } of clouds) {
      const visible = dots.filter((i) => selected.has(i));
      path.setAttribute("d", visible.map((i) => `M${places[i][0]} ${places[i][1]}h0`).join(""));
    }
    for (const h of histograms) {
      const k = h.component, examples = [...selected].map((i) => clips[i]);
      const everything = selected.size === dots.length;
      const model = count(h, examples.map((c) => c.predicted[k] - c.true[k]));
      const constant = data.constant && count(h, examples.map((c) => data.constant[k] - c.true[k]));
      const [base, above] = h.svg.dataset.up.split(" ").map(Number);
      for (const [path, original] of h.originalPaths) {
        const steps = path.classList.contains("steps"), counts = steps ? constant : model;
        let left = one(".column", h.svg).x.baseVal.value, d = steps ? `M${left} ${base}` : "";
        h.ends.forEach((right, i) => {
          const y = (base + counts[i] * (above - base)).toFixed(1), inset = 0.05 * (right - left);
          d += steps ? `V${y}H${right}` : `M${left + inset} ${base}V${y}H${right - inset}V${base}Z`;
          left = right;
        });
        path.setAttribute("d", everything ? original : steps ? `${d}V${base}` : d);
      }
      h.originalTexts.forEach(([rect, text], i) => {
        const values = `model ${model[i]}${constant ? `, constant ${constant[i]}` : ""}`;
        rect.dataset.text = everything ? text : `${text.split(": ")[0]}: ${values}`;
      });
    }
    if (filter) updateMetrics();
  }

  function updateMetrics() {
    const squares = (answer) => [...selected].reduce(
      (sum, i) => sum + clips[i].true.reduce((s, v, k) => s + (answer(i, k) - v) ** 2, 0), 0);
    const model = squares((i, k) => clips[i].predicted[k]);
    const constant = data.constant ? squares((_, k) => data.constant[k]) : NaN;
    const rmse = (sum) => number(Math.sqrt(sum / (selected.size * data.target.length)));
    const texts = {
      count: `${selected.size} of ${dots.length}`,
      rmse: rmse(model),
      "constant-rmse": rmse(constant),
      skill: number(1 - model / constant),
      "constant-skill": constant > 0 ? number(0) : "–",
    };
    for (const [name, text] of Object.entries(texts)) one(`#selection .${name}`).textContent = text;
  }

  const tip = document.getElementById("tip");
  function showTip(text, event) {
    tip.hidden = !text;
    if (!text) return;
    tip.textContent = text;
    const { width, height } = tip.getBoundingClientRect();
    const x = event.clientX + 14 + width > innerWidth ? event.clientX - width - 10 : event.clientX + 14;
    const y = event.clientY + 14 + height > innerHeight ? event.clientY - height - 10 : event.clientY + 14;
    tip.style.translate = `${Math.max(4, x)}px ${Math.max(4, y)}px`;
  }

  const distance = (c) => (c.distance === null ? "" : `, ${number(c.distance, 1)} m away`);
  const frames = (c) => `frames ${c.first}–${frame(c, c.length - 1)}${c.stride > 1 ? `, every ${c.stride}` : ""}`;
  function describe(i) {
    const c = clips[i];
    const values = data.target.map((name, k) => {
      const unit = data.units[k] ? ` ${data.units[k]}` : "", difference = signed(c.predicted[k] - c.true[k]);
      return `${name}: true ${number(c.true[k])}, predicted ${number(c.predicted[k])}${unit} (${difference})`;
    });
    return [c.name, frames(c) + distance(c), ...values].join("\n");
  }

  function nearestDot({ svg, places }, event) {
    const pointer = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
    let nearest = null, smallest = 14 ** 2;
    for (const i of selected) {
      const squared = (places[i][0] - pointer.x) ** 2 + (places[i][1] - pointer.y) ** 2;
      if (squared < smallest) [nearest, smallest] = [i, squared];
    }
    return nearest;
  }

  for (const cloud of clouds) {
    const plot = cloud.svg.parentNode;
    const pointAt = (i) => {
      plot.classList.toggle("near", i !== null);
      for (const { pointed, places } of clouds) moveMark(pointed, i === null ? null : places[i]);
    };
    plot.addEventListener("pointermove", (event) => {
      const i = nearestDot(cloud, event);
      pointAt(i);
      showTip(i === null ? "" : describe(i), event);
    });
    plot.addEventListener("pointerleave", () => { pointAt(null); showTip(""); });
    plot.addEventListener("click", (event) => {
      const i = nearestDot(cloud, event);
      if (i === null) return;
      plot.closest(".panels").after(viewer);
      open(i);
      viewer.scrollIntoView({ block: "nearest" });
    });
  }

  for (const rect of all(".plot .column")) {
    const title = one("title", rect);
    rect.dataset.text = title.textContent;
    title.remove();  // otherwise the browser shows it too
    rect.addEventListener("pointermove", (event) => showTip(rect.dataset.text, event));
    rect.addEventListener("pointerleave", () => showTip(""));
  }

  // ---- the filter

  if (filter) {
    const [from, to] = all("input", filter);
    const presets = all("button", filter);
    const limit = Number(to.max);
    const apply = () => {
      const low = Number(from.value), high = Number(to.value);
      const everything = low === 0 && high === limit;
      const inside = (c) => c.distance !== null && c.distance >= low && (c.distance < high || high === limit);
      selected = new Set(dots.filter((i) => everything || inside(clips[i])));
      for (const input of [from, to]) input.nextElementSibling.textContent = `${input.value} m`;
      for (const button of presets) {
        const active = Number(button.dataset.from) === low && Number(button.dataset.to || limit) === high;
        button.setAttribute("aria-pressed", active);
      }
      redraw();
      updateNeighbours();
    };
    from.addEventListener("input", () => { to.value = Math.max(to.value, from.value); apply(); });
    to.addEventListener("input", () => { from.value = Math.min(to.value, from.value); apply(); });
    for (const button of presets) {
      button.addEventListener("click", () => {
        from.value = button.dataset.from || 0;
        to.value = button.dataset.to || limit;
        apply();
      });
    }
  }

  // ---- the viewer

  const [image, slider, play, output] = ["img", "input", ".play", "output"].map((selector) => one(selector, viewer));
  const pictures = new Map(Object.entries(data.pictures).map(([row, jpeg]) => [Number(row), `data:image/jpeg;base64,${jpeg}`]));
  for (const picture of all(".strip img")) pictures.set(Number(picture.dataset.row), picture.src);
  let current = null, positions = [], timer = 0;  // positions of the current clip's frames that are included

  function arrow(values, x, y) {  // as svg.py draws it
    const [vx, vy] = data.arrow.columns.map((k) => values[k] * data.arrow.scale);
    const right = vy, down = -vx;
    const length = Math.hypot(right, down), head = Math.min(4, 0.6 * length), angle = Math.atan2(down, right);
    const [a, b] = [-0.6, 0.6].map((side) =>
      `L${x + right - head * Math.cos(angle + side)} ${y + down - head * Math.sin(angle + side)}`);
    return `M${x} ${y}L${x + right} ${y + down}${a}M${x + right} ${y + down}${b}`;
  }

  function drawArrows(drawing, c, box) {
    [["true", c.true, -1], ["model", c.predicted, 1]].forEach(([kind, values, side]) => {
      const [left, top, width, height] = box ?? [0, 0, 0, 0];
      const x = left + width / 2 + side * Math.max(width / 2 + 1.5, 3);
      one(`.${kind}`, drawing)?.setAttribute("d", box ? arrow(values, x, top + height / 2) : "");
    });
  }

  function show(k) {  // the k-th included frame
    const c = clips[current], position = positions[k], box = c.boxes[position];
    slider.value = k;
    image.src = pictures.get(c.row + position * c.stride);
    image.alt = `${c.name}, frame ${frame(c, position)}`;
    output.textContent = `frame ${frame(c, position)}`;
    slider.setAttribute("aria-valuetext", output.textContent);
    const rect = one(".box", viewer);
    ["x", "y", "width", "height"].forEach((name, i) => rect.setAttribute(name, box ? box[i] : 0));
    drawArrows(one(".over", viewer), c, box);
  }

  function open(i, position = -1) {
    stop();
    current = i;
    const c = clips[i];
    positions = [...Array(c.length).keys()].filter((p) => pictures.has(c.row + p * c.stride));
    one("h4", viewer).textContent = c.name;
    one("h4 + .where", viewer).textContent = `${frames(c)}, ${c.label}${distance(c)}`;
    all("tbody tr", viewer).forEach((row, k) => {
      const values = [number(c.true[k]), number(c.predicted[k]), signed(c.predicted[k] - c.true[k])];
      if (data.constant) values.push(signed(data.constant[k] - c.true[k]));
      all("td", row).forEach((cell, j) => { cell.textContent = values[j]; });
    });
    all(".bars svg", viewer).forEach((bars, k) => {
      const [zero, scale] = [Number(bars.dataset.zero), Number(bars.dataset.scale)];
      [["true", c.true], ["model", c.predicted]].forEach(([kind, values], line) =>
        one(`.${kind}`, bars).setAttribute("d", `M${zero} ${8 * line + 5}H${zero + values[k] * scale}`));
    });
    const top = one(".top", viewer);
    if (top) drawArrows(top, c, [0, 0, 0, 0]);
    one(".over", viewer).setAttribute("viewBox", `0 0 160 ${c.height}`);
    for (const { opened, places } of clouds) moveMark(opened, places[i]);
    slider.max = Math.max(0, positions.length - 1);
    slider.disabled = play.disabled = positions.length < 2;
    for (const part of all(".stage, .controls", viewer)) part.hidden = positions.length === 0;
    one(".missing", viewer).hidden = positions.length === c.length;
    if (positions.length) show(position < 0 ? positions.length - 1 : Math.max(0, positions.indexOf(position)));
    updateNeighbours();
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
    if (!by || event.target === slider || positions.length < 2) return;  // the slider handles these keys itself
    event.preventDefault();
    stop();
    step(by);
  });

  const ranked = clips.map((_, i) => i).sort((a, b) => error(clips[b]) - error(clips[a]));
  const [worse, better] = [one(".worse", viewer), one(".better", viewer)];
  const neighbour = (by) => {
    for (let k = ranked.indexOf(current) + by; k >= 0 && k < ranked.length; k += by) {
      if (selected.has(ranked[k])) return ranked[k];
    }
    return null;
  };
  function updateNeighbours() {
    worse.disabled = neighbour(-1) === null;
    better.disabled = neighbour(1) === null;
  }
  worse.addEventListener("click", () => open(neighbour(-1)));
  better.addEventListener("click", () => open(neighbour(1)));

  for (const clip of all(".clip")) {
    clip.addEventListener("click", (event) => {
      const clicked = event.target.closest(".strip .frame, button.hint");
      if (!clicked) return;
      clip.append(viewer);
      open(Number(clip.dataset.clip), Number(clicked.dataset.position ?? 0));
      viewer.scrollIntoView({ block: "nearest" });
      slider.focus({ preventScroll: true });
    });
  }

  redraw();
  open(Number(one(".clip").dataset.clip));
})();
