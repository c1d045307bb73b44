// The browser's half of emo/camera.py: film, send small JPEGs to the kernel, draw its answers.

const WIDTH = 320; // pixels of the frames that are sent
const QUALITY = 0.7; // of their JPEG
const WAITING = 1500; // ms without an answer until the page says so
const GIVE_UP = 20000; // ms after which an unanswered frame is forgotten
const LET_GO = 50000; // ms of silence after which the camera is released
const STALE = 1000; // ms after which a box is no longer shown
const TRAIL = 4000; // ms of valence and arousal that stay visible
const SPAN = 20000; // ms on the timeline
const GONE = "The kernel does not answer. It may be busy, or it was restarted: then run this " +
  "cell again.";

// Words of the circumplex of affect (Russell 1980) at rounded angles.
const CIRCUMPLEX = {
  happy: 8, delighted: 30, excited: 52, tense: 101, afraid: 122, distressed: 145,
  sad: 205, bored: 233, tired: 259, calm: 305, relaxed: 326, content: 347,
};

const PAGE = `
  <div class="emo-head">
    <button data-do="toggle" class="emo-primary">Start</button>
    <select data-is="camera" aria-label="Camera">
      <option value="">Camera of this computer</option>
      <option value="synthetic">Simulated camera</option>
    </select>
    <select data-is="model" aria-label="Model" title="Model file"></select>
    <label title="Time constant of the average: raw values at 0, calm ones to the right">Smoothing
      <input data-is="smoothing" type="range" min="0" max="1.5" step="0.05">
      <output></output></label>
    <button data-do="bars" title="Key p">Bars</button>
    <button data-do="plane" title="Key v">Plane</button>
    <button data-do="shot" title="Key s: save the picture as PNG">Screenshot</button>
    <button data-do="record" title="Numbers only, never pictures">Record CSV</button>
    <span class="emo-rate"></span>
  </div>
  <div class="emo-body">
    <div class="emo-main">
      <div class="emo-stage">
        <video playsinline muted></video><canvas data-is="overlay"></canvas>
        <div class="emo-card"></div><div class="emo-status" role="status" hidden></div>
      </div>
      <canvas data-is="timeline" role="img" aria-label="The last 20 seconds"></canvas>
    </div>
    <div class="emo-side">
      <canvas data-is="bars" role="img" aria-label="Probabilities"></canvas>
      <figure><canvas data-is="plane" role="img" aria-label="Valence and arousal"></canvas>
        <figcaption></figcaption></figure>
    </div>
  </div>`;

export default {
  render({ model, el }) {
    const view = new CameraView(model, el);
    return () => view.dispose();
  },
};

class CameraView {
  constructor(model, el) {
    this.model = model;
    this.id = Math.random().toString(36).slice(2);
    this.state = "idle"; // idle, starting, running
    this.run = 0; // grows with every start and stop, so that late promises notice
    this.sequence = 0;
    this.pending = new Map(); // sequence number -> when and which frame
    this.base64 = false;
    this.recording = null;
    this.build(el);
    this.listen();
    this.hello();
  }

  // ---------------------------------------------------------------- the page

  build(el) {
    this.root = document.createElement("div");
    this.root.className = "emo-camera";
    this.root.tabIndex = 0;
    this.root.dataset.lmSuppressShortcuts = "true"; // or p, v and s would edit the notebook
    this.root.innerHTML = PAGE;
    el.append(this.root);
    const find = (selector) => this.root.querySelector(selector);
    this.video = find("video");
    this.stage = find(".emo-stage");
    this.card = find(".emo-card");
    this.status = find(".emo-status");
    this.rate = find(".emo-rate");
    this.caption = find("figcaption");
    this.figure = find("figure");
    this.part = Object.fromEntries(
      [...this.root.querySelectorAll("[data-is]")].map((node) => [node.dataset.is, node]));
    this.button = Object.fromEntries(
      [...this.root.querySelectorAll("[data-do]")].map((node) => [node.dataset.do, node]));
    this.small = document.createElement("canvas");
  }

  listen() {
    const heard = {
      "msg:custom": (message, buffers) => this.receive(message, buffers),
      "change:retired": () => this.retire(),
      "change:source": () => this.refresh(),
    };
    for (const name of ["bars", "plane", "va", "smoothing", "model_file", "model_files"])
      heard[`change:${name}`] = () => this.refresh();
    for (const [name, answer] of Object.entries(heard)) this.model.on(name, answer);
    this.forget = () => {
      for (const [name, answer] of Object.entries(heard)) this.model.off(name, answer);
    };
    this.root.addEventListener("click", (event) => {
      const name = event.target.closest("[data-do]")?.dataset.do;
      if (name) this.act(name);
    });
    this.root.addEventListener("keydown", (event) => {
      const name = { p: "bars", v: "plane", s: "shot" }[event.key];
      const typing = event.target.tagName === "SELECT";
      if (!name || typing || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      event.stopPropagation();
      this.act(name);
    });
    this.part.smoothing.addEventListener("input", () =>
      this.set("smoothing", Number(this.part.smoothing.value)));
    this.part.model.addEventListener("change", () =>
      this.set("model_file", this.part.model.value));
    this.part.camera.addEventListener("change", () => {
      const simulated = this.part.camera.value === "synthetic";
      const running = this.state !== "idle";
      this.stop();
      this.set("source", simulated ? "synthetic" : "browser");
      if (running) this.start();
    });
    this.resizing = new ResizeObserver(() => { this.dirty = true; this.paint(); });
    this.resizing.observe(this.root);
    this.timer = setInterval(() => this.watch(), 500);
    this.refresh();
    this.idle();
  }

  set(name, value) {
    this.model.set(name, value);
    this.model.save_changes();
    this.refresh();
  }

  act(name) {
    if (name === "toggle") this.state === "idle" ? this.start() : this.stop();
    if (name === "live" || name === "synthetic") {
      this.part.camera.value = name === "live" ? "" : "synthetic";
      this.set("source", name === "live" ? "browser" : "synthetic");
      this.start();
    }
    if (name === "bars" || name === "plane") this.set(name, !this.model.get(name));
    if (name === "shot") this.screenshot();
    if (name === "record") this.record();
  }

  refresh() {
    const get = (name) => this.model.get(name);
    const hasPlane = get("va") !== "none";
    this.part.smoothing.value = get("smoothing");
    this.root.querySelector("output").textContent = `${get("smoothing").toFixed(2)} s`;
    if ((this.part.camera.value === "synthetic") !== this.simulated)
      this.part.camera.value = this.simulated ? "synthetic" : "";
    const files = get("model_files");
    this.part.model.hidden = files.length < 2;
    this.part.model.replaceChildren(...files.map((name) => new Option(name)));
    this.part.model.value = get("model_file");
    this.part.bars.hidden = !get("bars");
    this.figure.hidden = !get("plane") || !hasPlane;
    this.button.plane.hidden = !hasPlane;
    this.button.bars.setAttribute("aria-pressed", get("bars"));
    this.button.plane.setAttribute("aria-pressed", get("plane"));
    this.caption.textContent = get("va") === "derived" ? "derived from the class" : "";
    if (this.state === "idle" && this.simulated !== this.offered) this.idle();
    this.dirty = true;
    this.paint();
  }

  get simulated() { return this.model.get("source") === "synthetic"; }

  // ---------------------------------------------------------- start and stop

  /** Show what will happen to the frames, before any camera opens; or what went wrong. */
  idle(problem = "") {
    const retired = this.model.get("retired");
    this.offered = this.simulated;
    this.card.hidden = false;
    this.card.replaceChildren();
    const add = (tag, text, rest = {}) => {
      const node = Object.assign(document.createElement(tag), { textContent: text });
      Object.assign(node.dataset, rest);
      this.card.append(node);
      return node;
    };
    if (retired || problem) add("p", retired || problem).className = "emo-problem";
    if (retired) return;
    const where = isLocal() ? "on this machine" : `on the machine behind ${location.hostname}`;
    add("p", "The simulated camera shows a drawn face and its true emotion; no camera opens.");
    add("p", `Your own camera: each picture goes to the Python kernel ${where}, stays in memory ` +
      "for one moment and is never saved. Only numbers are kept.");
    add("p", "EU law (AI Act, Article 5) forbids inferring people's emotions in schools and at " +
      "work: use the simulated camera there.");
    const row = add("div", "");
    const choices = { synthetic: "Use the simulated camera", live: "Use my camera" };
    for (const [name, text] of Object.entries(choices)) {
      const button = Object.assign(document.createElement("button"), { textContent: text });
      button.dataset.do = name;
      button.className = (name === "synthetic") === this.simulated ? "emo-primary" : "";
      row.append(button);
    }
  }

  async start() {
    if (this.model.get("retired") || this.state !== "idle") return;
    const run = ++this.run;
    this.change("starting");
    this.card.hidden = true;
    this.film = null;
    try {
      this.send({ kind: "start", time: performance.now() / 1000 });
      await (this.simulated ? this.openFilm(run) : this.openCamera(run));
      if (run !== this.run) return;
      await this.video.play();
    } catch (error) {
      if (run === this.run) this.fail(explain(error));
      return;
    }
    if (run !== this.run) return;
    this.stage.style.aspectRatio = `${this.video.videoWidth} / ${this.video.videoHeight}`;
    Object.assign(this, { shown: null, trail: [], past: [], arrivals: [], delays: [] });
    this.dirty = true;
    this.change("running");
    this.say("");
    this.next(run);
    this.animate(run);
  }

  async openCamera(run) {
    this.say("opening the camera");
    if (!navigator.mediaDevices?.getUserMedia) throw new DOMException("", "NoAccess");
    const chosen = this.part.camera.value;
    const size = { width: { ideal: 640 }, height: { ideal: 480 } };
    const which = chosen ? { deviceId: { exact: chosen } } : { facingMode: "user" };
    const video = { ...size, ...which };
    const stream = await navigator.mediaDevices.getUserMedia({ video, audio: false });
    if (run !== this.run) return stream.getTracks().forEach((track) => track.stop());
    const [track] = stream.getVideoTracks();
    track.addEventListener("ended", () => {
      if (this.run === run) this.fail("The camera was unplugged.");
    });
    this.mirrored = track.getSettings().facingMode !== "environment";
    this.stream = stream;
    this.video.srcObject = stream;
    await this.listCameras(track.getSettings().deviceId);
  }

  async listCameras(current) {
    const devices = await navigator.mediaDevices.enumerateDevices();
    const cameras = devices.filter((device) => device.kind === "videoinput" && device.deviceId);
    if (!cameras.length) return;
    const options = cameras.map(
      (device, i) => new Option(device.label || `Camera ${i + 1}`, device.deviceId));
    this.part.camera.replaceChildren(...options, new Option("Simulated camera", "synthetic"));
    this.part.camera.value = current;
  }

  async openFilm(run) {
    this.mirrored = false;
    this.film = this.kept;
    if (!this.film) {
      this.say("asking the kernel for the simulated camera");
      this.asked = performance.now();
      const answer = new Promise((resolve, reject) => { this.waiting = { resolve, reject }; });
      this.send({ kind: "film" });
      const [message, bytes] = await answer;
      const blob = new Blob([bytes], { type: "video/webm" });
      const names = Object.keys(this.model.get("colours"));
      const truth = message.truth.map((row) => ({
        ...row,
        emotion: names[row.emotion],
        box: [row.x / 640, row.y / 480, row.width / 640, row.height / 480],
      }));
      this.kept = { ...message, truth, url: URL.createObjectURL(blob) };
      if (run !== this.run) return;
      this.film = this.kept;
    }
    this.video.src = this.film.url;
    this.video.loop = true;
  }

  stop(problem = "") {
    this.run++;
    this.stream?.getTracks().forEach((track) => track.stop());
    this.stream = null;
    this.video.pause();
    this.video.srcObject = null;
    this.video.removeAttribute("src");
    this.video.load();
    this.pending.clear();
    this.shown = this.asked = null;
    if (this.recording) this.record();
    this.change("idle");
    this.say("");
    this.rate.textContent = "";
    this.idle(problem);
    this.dirty = true;
    this.paint();
  }

  fail(problem) { this.stop(problem); }

  retire() { this.stop(); this.button.toggle.disabled = true; }

  change(state) {
    this.state = this.root.dataset.state = state;
    this.button.toggle.textContent = state === "idle" ? "Start" : "Stop";
    this.button.shot.disabled = this.button.record.disabled = state !== "running";
  }

  dispose() {
    this.stop();
    clearInterval(this.timer);
    clearTimeout(this.again);
    this.resizing.disconnect();
    this.forget();
    if (this.kept) URL.revokeObjectURL(this.kept.url);
  }

  // ------------------------------------------------------------ to the kernel

  send(content, buffers = []) {
    try {
      this.model.send({ ...content, view: this.id }, undefined, buffers);
    } catch { // a restarted kernel knows this widget no more
      if (this.state !== "idle") this.fail(GONE);
    }
  }

  /** Greet twice: JupyterLab may lose the first message of a new widget. */
  hello() {
    this.say("");
    this.change("idle");
    if (this.model.get("retired")) return this.retire();
    this.send({ kind: "ready", local: isLocal() });
    this.again = setTimeout(() => this.send({ kind: "ready", local: isLocal() }), 500);
  }

  next(run) {
    const see = (_, frame) => {
      if (run !== this.run) return;
      this.next(run);
      if (this.pending.size < this.model.get("max_in_flight"))
        this.capture(run, frame?.mediaTime ?? this.video.currentTime);
    };
    if (this.video.requestVideoFrameCallback) this.video.requestVideoFrameCallback(see);
    else setTimeout(see, 50);
  }

  async capture(run, mediaTime) {
    const { video, small } = this;
    const sequence = ++this.sequence;
    const sent = performance.now();
    const index = this.film ? Math.round(mediaTime * this.film.fps) % this.film.truth.length : null;
    this.pending.set(sequence, { sent, index });
    small.width = WIDTH;
    small.height = Math.round((WIDTH * video.videoHeight) / video.videoWidth);
    small.getContext("2d", { willReadFrequently: true })
      .drawImage(video, 0, 0, small.width, small.height);
    const blob = await new Promise((done) => small.toBlob(done, "image/jpeg", QUALITY));
    const jpeg = await blob.arrayBuffer();
    if (run !== this.run) return;
    const content = { kind: "frame", seq: sequence, time: sent / 1000, index };
    if (this.base64) this.send({ ...content, jpeg: toBase64(jpeg) });
    else this.send(content, [jpeg]);
  }

  // ---------------------------------------------------------- from the kernel

  receive(message, buffers) {
    if (message.kind === "stop" && message.except !== this.id && this.state !== "idle") this.stop();
    if (message.view !== this.id) return;
    this.heard = performance.now();
    if (message.kind === "ready") this.root.dataset.ready = "true";
    if (message.kind === "status") {
      this.say((this.told = message.text));
      if (this.asked) this.asked = performance.now();
    }
    if (message.kind === "nobuffers") this.base64 = true;
    if (message.kind === "error") this.complain(message);
    if (message.kind === "film") {
      this.asked = null;
      this.waiting?.resolve([message, buffers[0]]);
    }
    if (message.seq == null || !this.pending.has(message.seq)) return;
    const frame = this.pending.get(message.seq);
    for (const number of [...this.pending.keys()]) // an answer clears every older frame
      if (number <= message.seq) this.pending.delete(number);
    if (message.kind === "result") this.show(message, frame);
  }

  complain(message) {
    this.waiting?.reject(new Error(message.text));
    if (message.fatal) this.fail(message.text);
    else this.say(message.text);
    this.told = "";
  }

  show(message, frame) {
    const now = performance.now();
    const truth = this.film?.truth[frame.index] ?? null;
    this.told = "";
    this.say("");
    this.shown = { ...message, truth, at: now, sent: frame.sent };
    this.arrivals = [...this.arrivals.filter((at) => now - at < 3000), now];
    const face = message.faces[0];
    if (face?.valence != null)
      this.trail.push({ at: now, face: face.face, v: face.valence, a: face.arousal });
    this.trail = this.trail.filter((point) => now - point.at < TRAIL);
    const share = face?.probabilities ? Math.max(...face.probabilities) : 0;
    this.past.push({ at: now, share, emotion: face?.emotion, truth: truth?.emotion });
    this.past = this.past.filter((point) => now - point.at < SPAN);
    for (const found of message.faces) this.recording?.push(row(message.time, found, truth));
    this.dirty = true;
    this.root.dispatchEvent(new CustomEvent("emo-result", { bubbles: true, detail: this.shown }));
  }

  /** Say when the kernel is slow or gone; nothing is sent again. */
  watch() {
    const now = performance.now();
    if (this.state === "running" && this.video.paused) this.video.play().catch(() => {});
    const since = this.asked ?? this.pending.values().next().value?.sent;
    if (since == null) return;
    const age = now - since;
    if (age > GIVE_UP && (this.asked || now - this.heard > LET_GO)) this.fail(GONE);
    else if (age > GIVE_UP) {
      this.pending.clear();
      this.say(GONE);
    } else if (age > WAITING)
      this.say(`${this.told || "waiting for the kernel"} (${Math.round(age / 1000)} s)`);
  }

  say(text) {
    this.status.textContent = text;
    this.status.hidden = !text;
  }

  // ------------------------------------------------------------------ drawing

  animate(run) {
    if (run !== this.run) return;
    requestAnimationFrame(() => this.animate(run));
    const now = performance.now();
    if (!this.dirty && now - (this.painted ?? 0) < 200) return; // the trail fades by itself
    if (this.shown && !this.shown.drawn) {
      this.shown.drawn = true;
      this.delays = [...this.delays.slice(-29), now - this.shown.sent];
    }
    this.paint();
  }

  paint() {
    if (!this.root.offsetWidth) return; // not laid out yet, or scrolled away
    const now = performance.now();
    this.painted = now;
    this.dirty = false;
    const shown = this.shown && now - this.shown.at < STALE ? this.shown : null;
    const theme = readTheme(this.root);
    this.drawOverlay(shown, theme);
    if (!this.part.bars.hidden) this.drawBars(shown, theme);
    if (!this.figure.hidden) this.drawPlane(shown, theme, now);
    this.drawTimeline(theme, now);
    if (this.state === "running" && this.arrivals.length > 1) {
      const seconds = Math.max(now - this.arrivals[0], 1) / 1000;
      const rate = ((this.arrivals.length - 1) / seconds).toFixed(0);
      this.rate.textContent = `${rate} results/s · ${median(this.delays).toFixed(0)} ms`;
    }
  }

  drawOverlay(shown, theme) {
    const [context, width, height] = fit(this.part.overlay, this.stage);
    this.video.classList.toggle("emo-mirrored", !!this.mirrored);
    if (!shown) return;
    const unit = Math.max(width / 640, 0.6);
    const place = ([x, y, w, h]) =>
      [(this.mirrored ? 1 - x - w : x) * width, y * height, w * width, h * height];
    if (shown.truth) {
      const [x, y, w, h] = place(shown.truth.box);
      frame(context, [x, y, w, h], "#fff", unit, true);
      const text = `truth: ${shown.truth.emotion}`;
      label(context, text, x, y + h + 24 * unit, "#fff", unit * 0.85, width);
    }
    for (const face of shown.faces) {
      const sure = face.state === "ok";
      const colour = sure ? this.colour(face.emotion) : "#8a8a8a";
      const [x, y, w, h] = place(face.box);
      frame(context, [x, y, w, h], colour, unit, false);
      const share = sure ? percent(Math.max(...face.probabilities)) : "";
      const text = sure ? `${face.emotion} ${share}` : face.state;
      label(context, text, x, y, colour, unit, width);
    }
  }

  drawBars(shown, theme) {
    const [context, width, height] = fit(this.part.bars);
    const names = Object.keys(this.model.get("colours"));
    const values = shown?.faces[0]?.probabilities;
    const line = height / names.length;
    const size = Math.min(line * 0.62, width * 0.06, 17);
    context.font = font(size, true);
    const wide = (text) => context.measureText(text).width;
    const left = Math.max(...names.map(wide)) + 10;
    const room = Math.max(width - left - wide("100 %") - 8, 0);
    const best = values ? values.indexOf(Math.max(...values)) : -1;
    context.textBaseline = "middle";
    names.forEach((name, i) => {
      const y = i * line + line / 2;
      context.font = font(size, i === best);
      context.fillStyle = theme.text;
      context.textAlign = "right";
      context.fillText(name, left - 10, y);
      context.fillStyle = theme.track;
      context.fillRect(left, y - line * 0.3, room, line * 0.6);
      if (shown?.truth?.emotion === name) {
        context.strokeStyle = theme.text;
        context.setLineDash([4, 3]);
        context.strokeRect(left + 0.5, y - line * 0.38, room, line * 0.76);
        context.setLineDash([]);
      }
      if (!values) return;
      context.fillStyle = this.colour(name);
      context.fillRect(left, y - line * 0.3, room * values[i], line * 0.6);
      context.strokeStyle = theme.text; // black Fear must be seen on black
      const inside = Math.max(room * values[i] - 1, 0);
      context.strokeRect(left + 0.5, y - line * 0.3 + 0.5, inside, line * 0.6 - 1);
      context.fillStyle = theme.text;
      context.textAlign = "left";
      context.fillText(percent(values[i]), left + room + 6, y);
    });
  }

  drawPlane(shown, theme, now) {
    const [context, width, height] = fit(this.part.plane);
    const side = Math.min(width, height);
    const radius = Math.max(side / 2 - 18, 0);
    const at = (v, a) => [width / 2 + v * radius, height / 2 - a * radius];
    drawAxes(context, at, radius, theme);
    const face = shown?.faces[0];
    const points = this.trail?.filter((point) => point.face === face?.face) ?? [];
    points.forEach((point, i) => {
      if (!i) return;
      context.globalAlpha = Math.max(0, 1 - (now - point.at) / TRAIL);
      context.strokeStyle = theme.text;
      context.lineWidth = 2;
      line(context, at(points[i - 1].v, points[i - 1].a), at(point.v, point.a));
    });
    context.globalAlpha = 1;
    if (shown?.truth) {
      const [x, y] = at(shown.truth.valence, shown.truth.arousal);
      ring(context, x, y, 9, theme);
    }
    if (face?.valence != null)
      dot(context, ...at(face.valence, face.arousal), 8, this.colour(face.emotion), theme);
    if (shown?.truth) {
      context.font = font(12);
      context.fillStyle = theme.text;
      context.textAlign = "left";
      ring(context, 10, height - 10, 6, theme);
      context.fillText("truth", 22, height - 9);
    }
  }

  /** The last seconds: the most probable class, as high as it is probable, above the truth. */
  drawTimeline(theme, now) {
    const [context, width, height] = fit(this.part.timeline);
    const left = 76;
    const both = { estimate: [0, 0.62], truth: [0.72, 0.28] };
    const rows = this.film || this.simulated ? both : { estimate: [0, 1] };
    context.textBaseline = "middle";
    context.textAlign = "right";
    context.font = font(14);
    for (const [name, [top, share]] of Object.entries(rows)) {
      const [y, high] = [top * height, share * height];
      context.fillStyle = theme.track;
      context.fillRect(left, y, width - left, high);
      context.fillStyle = theme.text;
      context.fillText(name, left - 8, y + high / 2);
      (this.past ?? []).forEach((point, i) => {
        const emotion = name === "truth" ? point.truth : point.emotion;
        if (!emotion) return;
        const x = (at) => left + (width - left) * Math.max(0, 1 - (now - at) / SPAN);
        const tall = name === "truth" ? high : high * point.share;
        const end = x(Math.min(this.past[i + 1]?.at ?? now, point.at + STALE));
        context.fillStyle = this.colour(emotion);
        context.fillRect(x(point.at), y + high - tall, end - x(point.at) + 0.5, tall);
      });
    }
  }

  colour(emotion) { return this.model.get("colours")[emotion] ?? "#8a8a8a"; }

  // ------------------------------------------------------------------ to disk

  screenshot() {
    if (this.state !== "running") return;
    this.paint();
    const body = this.root.querySelector(".emo-body").getBoundingClientRect();
    const scale = Math.max(2, devicePixelRatio);
    const size = { width: body.width * scale, height: body.height * scale };
    const sheet = Object.assign(document.createElement("canvas"), size);
    const context = sheet.getContext("2d");
    context.fillStyle = readTheme(this.root).page;
    context.fillRect(0, 0, sheet.width, sheet.height);
    context.scale(scale, scale);
    const { overlay, bars, plane, timeline } = this.part;
    for (const part of [this.video, overlay, bars, plane, timeline]) {
      const box = part.getBoundingClientRect();
      if (!box.width) continue;
      context.save();
      context.translate(box.left - body.left, box.top - body.top);
      if (part === this.video && this.mirrored) context.transform(-1, 0, 0, 1, box.width, 0);
      context.drawImage(part, 0, 0, box.width, box.height);
      context.restore();
    }
    sheet.toBlob((blob) => download(blob, "png"));
  }

  record() {
    if (!this.recording) {
      this.recording = [];
    } else {
      const truth = this.film ? ["true_emotion", "true_valence", "true_arousal"] : [];
      const names = Object.keys(this.model.get("colours")).map((name) => `p_${name.toLowerCase()}`);
      const head = ["time", "face", "emotion", ...names, "valence", "arousal", ...truth];
      const lines = [head, ...this.recording].map((cells) => cells.join(","));
      download(new Blob([lines.join("\n") + "\n"], { type: "text/csv" }), "csv");
      this.recording = null;
    }
    this.button.record.setAttribute("aria-pressed", !!this.recording);
    this.button.record.textContent = this.recording ? "Stop and save CSV" : "Record CSV";
  }
}

function row(time, face, truth) {
  const numbers = face.probabilities ?? Array(8).fill("");
  const cells = [time, face.face, face.emotion, ...numbers, face.valence, face.arousal];
  if (truth) cells.push(truth.emotion, truth.valence, truth.arousal);
  return cells.map((cell) => (typeof cell === "number" ? Number(cell.toFixed(5)) : (cell ?? "")));
}

function explain(error) {
  const simulated = "The simulated camera works without.";
  if (error.name === "NoAccess")
    return isSecureContext
      ? "This page may not use cameras. In VS Code, open the notebook in a browser " +
        `(jupyter lab). ${simulated}`
      : "Browsers open cameras only on https:// or localhost, and this is " +
        `http://${location.hostname}. Use https or an SSH tunnel to localhost. ${simulated}`;
  if (error.name === "NotAllowedError")
    return "The browser was not allowed to use the camera. Allow it beside the address bar and " +
      `start again. ${simulated}`;
  if (["NotFoundError", "OverconstrainedError"].includes(error.name))
    return `No camera was found. ${simulated}`;
  if (["NotReadableError", "AbortError"].includes(error.name))
    return `The camera is in use by another program. Close that and start again. ${simulated}`;
  return error.message || String(error);
}

function isLocal() {
  return ["localhost", "127.0.0.1", "[::1]", "::1"].includes(location.hostname);
}

function toBase64(buffer) {
  let text = "";
  for (const byte of new Uint8Array(buffer)) text += String.fromCharCode(byte);
  return btoa(text);
}

function download(blob, suffix) {
  const stamp = new Date().toISOString().slice(0, 19).replace(/[:T-]/g, "");
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = `emo-${stamp}.${suffix}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

const percent = (share) => `${Math.round(100 * share)} %`;
const font = (size, bold = false) => `${bold ? "600" : "400"} ${size}px system-ui, sans-serif`;

function median(values) {
  return [...values].sort((a, b) => a - b)[Math.floor(values.length / 2)] ?? 0;
}

function readTheme(node) {
  const style = getComputedStyle(node);
  const get = (name) => style.getPropertyValue(name).trim();
  const [muted, track] = [get("--emo-muted"), get("--emo-track")];
  return { text: style.color, page: style.backgroundColor, muted, track };
}

/** Give a canvas the resolution of the screen; returns [context, width, height] in CSS pixels. */
function fit(canvas, box = canvas) {
  const { width, height } = box.getBoundingClientRect();
  const scale = window.devicePixelRatio || 1;
  const [w, h] = [Math.round(width * scale), Math.round(height * scale)];
  if (canvas.width !== w) canvas.width = w;
  if (canvas.height !== h) canvas.height = h;
  const context = canvas.getContext("2d");
  context.setTransform(scale, 0, 0, scale, 0, 0);
  context.clearRect(0, 0, width, height);
  return [context, width, height];
}

function frame(context, box, colour, unit, dashed) {
  context.lineWidth = 5 * unit;
  context.setLineDash([]);
  context.strokeStyle = dashed ? "#0009" : "#fff";
  if (dashed) context.setLineDash([9 * unit, 6 * unit]);
  context.strokeRect(...box);
  context.lineWidth = 3 * unit;
  context.strokeStyle = colour;
  context.strokeRect(...box);
  context.setLineDash([]);
}

/** Write on a pill of the class's colour, kept inside the picture. */
function label(context, text, x, y, colour, unit, width) {
  context.font = font(18 * unit, true);
  const wide = context.measureText(text).width + 14 * unit;
  const high = 25 * unit;
  const left = Math.max(2, Math.min(x - 2 * unit, width - wide - 2));
  const top = Math.max(2, y - high - 2 * unit);
  context.fillStyle = colour;
  context.fillRect(left, top, wide, high);
  context.lineWidth = 1;
  context.strokeStyle = "#fff";
  context.strokeRect(left, top, wide, high);
  context.fillStyle = isLight(colour) ? "#000" : "#fff";
  context.textAlign = "left";
  context.textBaseline = "middle";
  context.fillText(text, left + 7 * unit, top + high / 2);
}

function isLight(colour) {
  const value = parseInt(colour.slice(1).replace(/^(.)(.)(.)$/, "$1$1$2$2$3$3"), 16);
  return 0.3 * (value >> 16) + 0.59 * ((value >> 8) & 255) + 0.11 * (value & 255) > 125;
}

function line(context, from, to) {
  context.beginPath();
  context.moveTo(...from);
  context.lineTo(...to);
  context.stroke();
}

function dot(context, x, y, radius, colour, theme) {
  context.beginPath();
  context.arc(x, y, radius, 0, 7);
  context.fillStyle = colour;
  context.fill();
  context.lineWidth = 2;
  context.strokeStyle = theme.text;
  context.stroke();
}

function ring(context, x, y, radius, theme) {
  context.beginPath();
  context.arc(x, y, radius, 0, 7);
  context.lineWidth = 2;
  context.strokeStyle = theme.text;
  context.setLineDash([4, 3]);
  context.stroke();
  context.setLineDash([]);
}

function drawAxes(context, at, radius, theme) {
  const [x, y] = at(0, 0);
  context.lineWidth = 1;
  context.strokeStyle = theme.muted;
  context.globalAlpha = 0.45;
  context.strokeRect(x - radius, y - radius, 2 * radius, 2 * radius);
  context.beginPath();
  context.arc(x, y, radius, 0, 7);
  context.stroke();
  context.globalAlpha = 1;
  line(context, at(-1, 0), at(1, 0));
  line(context, at(0, -1), at(0, 1));
  context.font = font(Math.max(11, radius / 12));
  context.fillStyle = theme.muted;
  context.textAlign = "center";
  context.textBaseline = "middle";
  for (const [word, angle] of Object.entries(CIRCUMPLEX)) {
    const turn = (angle * Math.PI) / 180;
    context.fillText(word, ...at(0.8 * Math.cos(turn), 0.9 * Math.sin(turn)));
  }
  context.fillStyle = theme.text;
  context.font = font(Math.max(12, radius / 11), true);
  context.fillText("arousal", x, y - radius - 9);
  context.textAlign = "right";
  context.fillText("valence", x + radius, y + radius + 9);
}
