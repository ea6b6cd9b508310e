"use strict";
// Draws FIGURES in the page's own colours, and again when the browser changes between light and dark.
const mix = (from, to, share) => {
  const parts = (color) => [1, 3, 5].map((i) => parseInt(color.slice(i, i + 2), 16));
  const [a, b] = [parts(from), parts(to)];
  return `rgb(${a.map((value, i) => Math.round(value + share * (b[i] - value))).join(",")})`;
};

function draw() {
  const style = getComputedStyle(document.documentElement);
  const color = (name) => style.getPropertyValue(`--${name}`).trim();
  const narrow = window.innerWidth < 820;
  FIGURES.forEach((figure, place) => {
    const traces = figure.traces.map(({ palette, ramp, ...trace }) => {
      const own = ramp === undefined ? color(`c${palette % 8}`) : mix(color("c4"), color("c0"), ramp);
      return { ...trace, line: { ...trace.line, color: own }, marker: { ...trace.marker, color: own } };
    });
    const axis = (given) => ({
      gridcolor: color("grid"), linecolor: color("line"), zerolinecolor: color("line"), ...given,
      title: { font: { size: 12 }, standoff: 6, ...(given?.title ?? {}) },
    });
    const layout = {
      hovermode: "x unified",
      showlegend: traces.length > 1,
      ...figure.layout,
      xaxis: axis(figure.layout.xaxis),
      yaxis: axis({ automargin: true, ...figure.layout.yaxis }),
      shapes: (figure.layout.shapes ?? []).map((shape) => ({ ...shape, line: { ...shape.line, color: color("soft") } })),
      font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: color("ink") },
      hoverlabel: { bgcolor: color("card"), bordercolor: color("line"), font: { color: color("ink") } },
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      margin: { l: 44, r: 10, t: figure.layout.annotations ? 22 : 8, b: 40 },
      legend: { orientation: "h", y: -0.2, yanchor: "top", x: 0, font: { size: narrow ? 11 : 12 }, ...figure.layout.legend },
    };
    if (layout.height) document.getElementById(`plot-${place}`).style.height = `${layout.height}px`;
    Plotly.react(`plot-${place}`, traces, layout, { responsive: true, displayModeBar: false });
  });
}

draw();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
