// The 3D player: three paths, a play button, a slider and a frame counter around a 3Dmol viewer.
(() => {
  const paths = JSON.parse(document.getElementById("player-data").textContent);
  const element = (id) => document.getElementById(id);
  const box = element("viewer"), play = element("play"), slider = element("frame"), counter = element("counter");
  const choosers = [...document.querySelectorAll("[data-path]")];
  const period = 80; // ms a frame
  let viewer, current = 0, frame = 0, playing = false;

  const failed = () => { box.textContent = "The 3D view needs WebGL, which this browser does not offer."; };
  try { viewer = $3Dmol.createViewer(box, { backgroundAlpha: 0, antialias: true }); } catch { viewer = null; }
  if (!viewer) { failed(); return; }

  const style = (atoms) => {
    const big = atoms > 300;
    viewer.setStyle({}, big ? { stick: { radius: 0.12 } } : { stick: { radius: 0.13 }, sphere: { scale: 0.24 } });
    if (big) viewer.setStyle({ atom: ["N", "CA", "C", "O"] }, { stick: { radius: 0.22 } });
  };

  const show = (i) => {
    frame = i;
    slider.value = i;
    counter.value = `frame ${i + 1} of ${paths[current].frames}`;
    return viewer.setFrame(i).then(() => viewer.render());
  };

  const choose = (i) => {
    current = i;
    choosers.forEach((b, j) => b.setAttribute("aria-pressed", String(i === j)));
    slider.max = paths[i].frames - 1;
    viewer.removeAllModels();
    viewer.addModelsAsFrames(paths[i].pdb, "pdb", { keepH: true });
    style(viewer.getModel().selectedAtoms({}).length);
    viewer.zoomTo();
    show(0);
  };

  const setPlaying = (on) => {
    playing = on;
    play.textContent = on ? "Pause" : "Play";
    play.setAttribute("aria-pressed", String(on));
  };

  const tick = () => {
    if (!playing) return;
    show((frame + 1) % paths[current].frames).then(() => setTimeout(tick, period));
  };

  play.addEventListener("click", () => { setPlaying(!playing); tick(); });
  slider.addEventListener("input", () => { setPlaying(false); show(Number(slider.value)); });
  choosers.forEach((b, i) => b.addEventListener("click", () => { setPlaying(false); choose(i); }));
  window.addEventListener("resize", () => viewer.resize());
  choose(0);
})();
