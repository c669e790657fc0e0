for (const figure of document.querySelectorAll("[data-chart]")) {
  const chart = JSON.parse(figure.dataset.chart), svg = figure.querySelector("svg"), legend = figure.querySelector(".legend");
  const keys = legend.querySelectorAll("b"), rest = [...keys].map(k => k.textContent), cursor = svg.querySelector(".cursor");
  const [left, top, right, bottom] = chart.plot;
  svg.addEventListener("pointermove", event => {
    const box = svg.getBoundingClientRect();
    const at = ((event.clientX - box.left) / box.width * chart.width - left) / (right - left) * chart.last;
    chart.lines.forEach(([, points], i) => {
      const near = points.reduce((a, b) => Math.abs(b[0] - at) < Math.abs(a[0] - at) ? b : a);
      keys[i].textContent = Number(near[1].toPrecision(4)) + " (step " + near[0] + ")";
      if (i == 0) cursor.setAttribute("d", "M" + (left + (right - left) * near[0] / chart.last) + " " + top + "V" + bottom);
    });
  });
  svg.addEventListener("pointerleave", () => {
    cursor.setAttribute("d", "");
    keys.forEach((k, i) => k.textContent = rest[i]);
  });
}
