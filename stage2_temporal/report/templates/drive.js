// What JavaScript adds to a drive's page: the frame and its values, stepping, and the marker in the charts.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const one = (selector, inside = document) => inside.querySelector(selector);
  const all = (selector, inside = document) => [...inside.querySelectorAll(selector)];
  const viewer = document.getElementById("viewer");
  const [image, slider, output, play] = ["img", "input", "output", ".play"].map((selector) => one(selector, viewer));
  const moments = data.moments, last = moments.length - 1, template = document.getElementById("reading");
  const pictures = new Map(Object.entries(data.pictures).map(([i, jpeg]) => [Number(i), `data:image/jpeg;base64,${jpeg}`]));
  for (const still of all(".stills img")) pictures.set(Number(still.dataset.position), still.src);
  document.documentElement.classList.add("scripted");
  viewer.hidden = false;

  const charts = all(".plot > svg[data-across]").map((svg) => {
    const [zero, unit] = svg.dataset.across.split(" ").map(Number);
    const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
    path.setAttribute("class", "cursor");
    const column = one(".column", svg), top = column.y.baseVal.value, height = column.height.baseVal.value;
    svg.append(path);
    return { svg, path, zero, unit: unit - zero, top, bottom: top + height };
  });

  function reading({ vehicle, targets, unlike }) {
    const element = one(".reading", template.content).cloneNode(true);
    one("h3", element).hidden = !vehicle;
    one("h3 span", element).textContent = vehicle;
    all("dd", element).forEach((cell, k) => {
      const { value, interval, above } = targets[k];
      one("b", cell).textContent = value;
      one(".interval", cell).textContent = interval;
      one(".above", cell).textContent = above === null ? "" : `${above} likely above the threshold`;
    });
    one(".unlike", element).hidden = !unlike;
    return element;
  }

  let current = 0, timer = 0;
  function show(i) {
    current = Math.max(0, Math.min(i, last));
    const moment = moments[current];
    slider.value = current;
    output.textContent = `frame ${moment.frame}`;
    slider.setAttribute("aria-valuetext", output.textContent);
    if (pictures.has(current)) image.src = pictures.get(current);
    image.alt = `Frame ${moment.frame}`;
    one(".when", viewer).textContent = `${moment.time.toFixed(2)} s, frame ${moment.frame}`;
    one(".readings", viewer).replaceChildren(...moment.readings.map(reading));
    one(".previous", viewer).disabled = current === 0;
    one(".next", viewer).disabled = current === last;
    for (const { path, zero, unit, top, bottom } of charts) path.setAttribute("d", `M${zero + moment.time * unit} ${top}V${bottom}`);
    for (const still of all(".stills img")) still.parentNode.classList.toggle("current", Number(still.dataset.position) === current);
  }

  function stop() {
    clearInterval(timer);
    timer = 0;
    play.textContent = "▶▶";
    play.setAttribute("aria-label", "Play");
  }
  function step(to) { stop(); show(to); }

  one(".previous", viewer).addEventListener("click", () => step(current - 1));
  one(".next", viewer).addEventListener("click", () => step(current + 1));
  slider.addEventListener("input", () => step(Number(slider.value)));
  play.addEventListener("click", () => {
    if (timer) return stop();
    if (current === last) show(0);
    const seconds = last ? (moments[last].time - moments[0].time) / last : 1;
    timer = setInterval(() => (current === last ? stop() : show(current + 1)), Math.max(40, 1000 * seconds));
    play.textContent = "❚❚";
    play.setAttribute("aria-label", "Pause");
  });
  document.addEventListener("keydown", (event) => {
    const to = { ArrowLeft: current - 1, ArrowRight: current + 1, Home: 0, End: last }[event.key];
    if (to === undefined || event.altKey || event.ctrlKey || event.metaKey || one(".rows").contains(event.target)) return;
    event.preventDefault();
    step(to);
  });
  for (const still of all(".stills img")) still.addEventListener("click", () => step(Number(still.dataset.position)));
  for (const { svg, zero, unit } of charts) {
    svg.addEventListener("click", (event) => {
      const x = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse()).x;
      const time = (x - zero) / unit;
      const distance = (i) => Math.abs(moments[i].time - time);
      step(moments.reduce((nearest, _, i) => (distance(i) < distance(nearest) ? i : nearest), 0));
    });
  }
  show(0);
})();
