// The animation of a plan: the tree grows, then the vehicle drives; a play button and a slider around a canvas.
(() => {
  const told = JSON.parse(document.getElementById("drive-data").textContent);
  const element = (id) => document.getElementById(id);
  const canvas = element("drive"), play = element("play"), slider = element("frame"), counter = element("counter");
  const growing = 2500, driving = told.states.length ? 3500 : 0, total = growing + driving; // ms
  const [width, height] = told.size;

  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const lengths = new Uint16Array(bytes(told.lengths).buffer), points = new Int16Array(bytes(told.points).buffer);
  const firsts = new Uint32Array(lengths.length + 1);
  lengths.forEach((n, i) => { firsts[i + 1] = firsts[i] + n; });

  const tree = document.createElement("canvas"); // what has grown is drawn once
  const slow = [240, 180, 41], fast = [181, 23, 158];
  const top = Math.max(1e-9, ...told.states.map((x) => x[told.speed]));
  let scale = 1, grown = 0, at = 0, playing = false, last = 0;

  const prepare = (context) => context.setTransform(scale, 0, 0, -scale, 0, scale * height);
  const blend = (share) => `rgb(${slow.map((a, i) => Math.round(a + share * (fast[i] - a)))})`;

  const grow = (edges) => {
    const context = tree.getContext("2d");
    if (edges < grown) { context.setTransform(1, 0, 0, 1, 0, 0); context.clearRect(0, 0, tree.width, tree.height); grown = 0; }
    prepare(context);
    context.lineWidth = 0.9 * devicePixelRatio / scale;
    context.globalAlpha = 0.6;
    for (; grown < edges; grown += 1) {
      const share = grown / Math.max(1, lengths.length - 1);
      context.strokeStyle = `hsl(${207 + 13 * share} ${49}% ${70 - 24 * share}%)`;
      context.beginPath();
      for (let i = firsts[grown]; i < firsts[grown + 1]; i += 1)
        context.lineTo(points[2 * i] * told.unit, points[2 * i + 1] * told.unit);
      context.stroke();
    }
  };

  const vehicle = (context, state) => {
    const ink = getComputedStyle(canvas).color;
    told.bodies.forEach((body) => {
      const angle = body.heading >= 0 ? state[body.heading] : 0, c = Math.cos(angle), s = Math.sin(angle);
      context.beginPath();
      body.outline.forEach(([x, y]) => context.lineTo(state[0] + c * x - s * y, state[1] + s * x + c * y));
      context.closePath();
      context.fillStyle = context.strokeStyle = ink;
      context.fill();
      const middle = [0, 1].map((k) => body.outline.reduce((sum, p) => sum + p[k], 0) / body.outline.length);
      context.beginPath(); // what joins a part to the vehicle's position
      context.moveTo(state[0], state[1]);
      context.lineTo(state[0] + c * middle[0] - s * middle[1], state[1] + s * middle[0] + c * middle[1]);
      context.lineWidth = 0.04;
      context.stroke();
    });
  };

  const draw = () => {
    const context = canvas.getContext("2d");
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, canvas.width, canvas.height);
    prepare(context);
    context.fillStyle = getComputedStyle(canvas).color;
    context.globalAlpha = 0.28;
    context.beginPath();
    told.boxes.forEach((box) => context.rect(...box)); // one path, so that no seams show
    context.fill();
    context.globalAlpha = 1;
    const share = Math.min(1, at / growing), edges = Math.round(share * lengths.length);
    grow(edges);
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.drawImage(tree, 0, 0);
    prepare(context);
    context.beginPath();
    context.arc(told.goal[0], told.goal[1], told.goal[2], 0, 2 * Math.PI);
    context.fillStyle = "rgb(31 161 135 / 0.35)";
    context.fill();
    context.strokeStyle = "rgb(31 161 135)";
    context.lineWidth = 2 * devicePixelRatio / scale;
    context.stroke();
    const frame = driving ? Math.round(Math.max(0, at - growing) / driving * (told.states.length - 1)) : 0;
    if (at > growing) {
      context.lineWidth = 4 * devicePixelRatio / scale;
      context.lineCap = "round";
      for (let i = 1; i <= frame; i += 1) {
        context.strokeStyle = blend(told.states[i][told.speed] / top);
        context.beginPath();
        context.moveTo(told.states[i - 1][0], told.states[i - 1][1]);
        context.lineTo(told.states[i][0], told.states[i][1]);
        context.stroke();
      }
    }
    vehicle(context, at > growing ? told.states[frame] : told.start);
    slider.value = Math.round(at);
    counter.value = at > growing
      ? `${(frame * told.dt).toFixed(1)} of ${((told.states.length - 1) * told.dt).toFixed(1)} s`
      : `${Math.round(share * told.nodes)} of ${told.nodes} nodes`;
  };

  const fit = () => {
    const wide = Math.round(canvas.clientWidth * devicePixelRatio);
    scale = wide / width;
    [canvas, tree].forEach((c) => { c.width = wide; c.height = Math.round(scale * height); });
    grown = 0;
    draw();
  };

  const setPlaying = (on) => {
    playing = on;
    play.textContent = on ? "Pause" : "Play";
    play.setAttribute("aria-pressed", String(on));
    if (on) { last = performance.now(); requestAnimationFrame(tick); }
  };

  const tick = (now) => {
    if (!playing) return;
    at = Math.min(total, at + Math.max(0, now - last));
    last = now;
    draw();
    if (at < total) requestAnimationFrame(tick); else setPlaying(false);
  };

  slider.max = total;
  play.addEventListener("click", () => { if (!playing && at >= total) at = 0; setPlaying(!playing); });
  slider.addEventListener("input", () => { setPlaying(false); at = Number(slider.value); draw(); });
  window.addEventListener("resize", fit);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  at = total; // what a reader who never presses the button sees
  fit();
})();
