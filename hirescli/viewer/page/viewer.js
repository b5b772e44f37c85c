// The page of `hires view`. It asks the server for its state, shows the pictures that stand, and
// exchanges them when newer ones do, without moving. All text of files goes in as text.
"use strict";

(() => {
  const BUSY_MS = 700; // between two questions while something is made
  const IDLE_MS = 4000;
  const EXCHANGE_MS = 8000; // at most, until an old picture under a new one goes
  const NOT_IN_TABLE = ["prompt", "negative_prompt"];
  const MOST_PIXEL_ZOOM = 8; // points of the screen for a pixel of the picture
  const RULER_PX = 110; // the longest

  const $ = (id) => document.getElementById(id);
  const panes = [];
  let leader = null; // the picture whose place the other follows
  let linked = true;
  let over = false;
  let moved = false; // from the whole picture
  let told = null; // the last state, as text

  // --- pictures --------------------------------------------------------------------------------

  function tileSource(index, picture) {
    const g = picture.geometry;
    return {
      width: g.width_px,
      height: g.height_px,
      tileSize: g.tile_px,
      tileOverlap: g.overlap_px,
      minLevel: g.min_level,
      maxLevel: g.max_level,
      getTileUrl: (level, x, y) =>
        `tiles/${index}/${picture.version}/${level}/${x}_${y}.${g.suffix}`,
    };
  }

  function makePane(root, index, count) {
    const view = root.appendChild(element("div", "view"));
    const label = root.appendChild(element("div", "name chip"));
    const viewer = new OpenSeadragon({
      element: view,
      drawer: "canvas",
      showNavigationControl: false,
      showNavigator: count === 1,
      navigatorId: count === 1 ? "map" : undefined,
      animationTime: 0.7,
      springStiffness: 9,
      blendTime: 0.15,
      zoomPerScroll: 1.25,
      maxZoomPixelRatio: MOST_PIXEL_ZOOM,
      minZoomImageRatio: 0.6,
      smoothTileEdgesMinZoom: Infinity, // tiles overlap; its own way shows a line at some zooms
      visibilityRatio: 0.4,
      imageLoaderLimit: 6,
      gestureSettingsMouse: { clickToZoom: false, dblClickToZoom: true },
    });
    const pane = { index, root, label, viewer, item: null, version: null, picture: null };
    viewer.addHandler("canvas-press", () => { leader = pane; });
    for (const event of ["canvas-drag", "canvas-scroll", "canvas-pinch", "canvas-double-click"]) {
      viewer.addHandler(event, () => {
        leader = pane;
        moved = true;
      });
    }
    // A window of another size still shows the whole picture, if it did. OpenSeadragon zooms
    // after it has told of the size.
    viewer.addHandler("after-resize", () => queueMicrotask(() => {
      if (pane.item && !moved) viewer.viewport.goHome(true);
      follow(leader || panes[0]);
    }));
    viewer.addHandler("canvas-key", (event) => { event.preventDefaultAction = true; });
    viewer.addHandler("viewport-change", () => { follow(pane); measure(); });
    viewer.addHandler("resize", measure);
    viewer.addHandler("tile-load-failed", (event) => {
      const gone = event.tiledImage !== pane.item || /timeout/i.test(event.message || "");
      if (!gone) noteDamage(pane, pane.version);
    });
    return pane;
  }

  function exchange(pane, picture) {
    const before = pane.item;
    pane.version = picture.version;
    pane.viewer.addTiledImage({
      tileSource: tileSource(pane.index, picture),
      x: 0,
      y: 0,
      width: 1, // of the same place, whatever its pixels
      success: ({ item }) => {
        pane.item = item;
        pane.root.dataset.version = picture.version;
        if (before) whenLoaded(item, () => pane.viewer.world.removeItem(before));
        setMostZoom();
        shapeMap(picture.geometry);
        measure();
      },
    });
  }

  // A tile that does not come stays dark. If the server is there, the file is the cause.
  async function noteDamage(pane, version) {
    const there = await fetch("state.json", { cache: "no-store" }).catch(() => null);
    if (!there || version !== pane.version || pane.damaged === version) return;
    pane.damaged = version;
    const { kind } = pane.picture.status;
    describe(pane, kind, lineOf(pane.picture));
  }

  // Two pictures zoom together: as far as the larger one allows.
  function setMostZoom() {
    const items = panes.map((each) => each.item).filter(Boolean);
    if (panes.length < 2 || !items.length) return;
    const most = Math.max(...items.map((item) => item.imageToViewportZoom(MOST_PIXEL_ZOOM)));
    for (const each of panes) each.viewer.viewport.maxZoomLevel = most;
  }

  function whenLoaded(item, then) {
    let due = true;
    const once = () => {
      if (due) then();
      due = false;
    };
    if (item.getFullyLoaded()) once();
    item.addHandler("fully-loaded-change", (event) => { if (event.fullyLoaded) once(); });
    setTimeout(once, EXCHANGE_MS);
  }

  function follow(pane) {
    if (!linked || panes.length < 2 || pane !== (leader || panes[0])) return;
    const from = pane.viewer.viewport;
    for (const other of panes) {
      if (other === pane || !other.item) continue;
      other.viewer.viewport.zoomTo(from.getZoom(true), null, true);
      other.viewer.viewport.panTo(from.getCenter(true), true);
    }
  }

  function current() {
    const pane = leader || panes[0];
    return pane && pane.item ? pane : panes.find((each) => each.item);
  }

  // --- zoom and scale --------------------------------------------------------------------------

  // Pixels of the screen for one of the picture.
  function zoomOf(pane) {
    const zoom = pane.viewer.viewport.getZoom(true);
    return pane.item.viewportToImageZoom(zoom) * (window.devicePixelRatio || 1);
  }

  function measure() {
    const pane = current();
    if (!pane) return;
    showMap();
    const zoom = zoomOf(pane);
    const percent = zoom * 100;
    $("percent").textContent = `${percent >= 9.95 ? Math.round(percent) : percent.toFixed(1)}%`;
    // Pixels are seen as what they are when they are large.
    for (const each of panes) {
      if (each.item) each.viewer.drawer.setImageSmoothingEnabled(zoomOf(each) < 2.5);
    }
    const perCssPx = (window.devicePixelRatio || 1) / zoom;
    const length = nice(RULER_PX * perCssPx);
    $("ruler").style.width = `${length / perCssPx}px`;
    $("ruler-px").textContent = `${length.toLocaleString("en")} px`;
  }

  // The largest of 1, 2, 5, 10, ... that is not above a number.
  function nice(most) {
    const ten = 10 ** Math.floor(Math.log10(Math.max(most, 1)));
    return [5, 2, 1].map((n) => n * ten).find((n) => n <= most) || 1;
  }

  function shapeMap(geometry) {
    if (panes.length > 1) return;
    const most = 148;
    const scale = most / Math.max(geometry.width_px, geometry.height_px);
    $("map").style.width = `${Math.round(geometry.width_px * scale)}px`;
    $("map").style.height = `${Math.round(geometry.height_px * scale)}px`;
    panes[0].viewer.navigator.updateSize();
  }

  // It helps where a part is seen, and is in the way where all of it is.
  function showMap() {
    const pane = panes[0];
    const { viewport } = pane.viewer;
    const part = pane.item && viewport.getZoom() > viewport.getHomeZoom() * 1.15;
    $("map").classList.toggle("shown", Boolean(part) && panes.length === 1 && $("panel").hidden);
  }

  function zoomBy(factor) {
    const pane = current();
    if (!pane) return;
    moved = true;
    pane.viewer.viewport.zoomBy(factor);
    pane.viewer.viewport.applyConstraints();
  }

  function zoomToPixels() {
    const pane = current();
    if (!pane) return;
    moved = true;
    const zoom = pane.item.imageToViewportZoom(1 / (window.devicePixelRatio || 1));
    for (const { viewer } of panes) {
      const { viewport } = viewer; // a small picture at 100% is smaller than the window
      viewport.minZoomLevel = Math.min(zoom, viewport.getMinZoom());
    }
    pane.viewer.viewport.zoomTo(zoom);
    pane.viewer.viewport.applyConstraints();
  }

  function home() {
    moved = false;
    for (const pane of linked ? [current()] : panes) pane?.viewer.viewport.goHome();
  }

  function move(x, y) {
    const pane = current();
    if (!pane) return;
    moved = true;
    const bounds = pane.viewer.viewport.getBounds();
    const by = new OpenSeadragon.Point(x * bounds.width * 0.2, y * bounds.height * 0.2);
    pane.viewer.viewport.panBy(by);
    pane.viewer.viewport.applyConstraints();
  }

  // --- state -----------------------------------------------------------------------------------

  async function ask() {
    let wait = IDLE_MS;
    try {
      const answer = await fetch("state.json", { cache: "no-store" });
      const text = await answer.text();
      const state = JSON.parse(text);
      if (text !== told) take(state);
      told = text;
      const busy = state.pictures.some((each) => !["done", "failed"].includes(each.status.kind));
      if (busy) wait = BUSY_MS;
    } catch {
      told = null;
      for (const pane of panes) describe(pane, "failed", "the viewer has ended");
    }
    setTimeout(ask, wait);
  }

  function take(state) {
    if (!panes.length) {
      const roots = state.pictures.map(() => element("div", "pane"));
      $("panes").append(...roots); // all before the first is looked at: they share the width
      roots.forEach((root, index) => panes.push(makePane(root, index, roots.length)));
      $("compare").hidden = panes.length < 2;
      document.title = state.pictures.map((each) => each.name).join(" | ");
    }
    state.pictures.forEach((picture, index) => {
      const pane = panes[index];
      pane.picture = picture;
      if (picture.version && picture.version !== pane.version) exchange(pane, picture);
      describe(pane, picture.status.kind, lineOf(picture));
    });
    showProgress(state.pictures);
    tell(state.pictures);
  }

  function lineOf(picture) {
    const { kind, text, shown } = picture.status;
    const g = picture.geometry;
    const size = g ? `${g.width_px.toLocaleString("en")} × ${g.height_px.toLocaleString("en")}` : "";
    if (kind === "done") return [text, size].filter(Boolean).join(" · ");
    return [text, shown && `${shown} (${size})`].filter(Boolean).join(" · ");
  }

  function describe(pane, kind, line) {
    if (kind === "done" && pane.damaged === pane.version && pane.version) {
      kind = "failed";
      line = "parts of the file cannot be read: it is damaged";
    }
    pane.label.dataset.kind = kind;
    const title = element("h1");
    title.append(element("span", "dot"), pane.picture ? pane.picture.name : "");
    pane.label.replaceChildren(title, element("p", "", line));
  }

  function showProgress(pictures) {
    const making = pictures.filter((each) => each.status.kind === "making");
    $("bar").hidden = !making.length;
    const done = making.length ? Math.min(...making.map((each) => each.status.fraction)) : 1;
    $("bar").style.setProperty("--done", String(done));
    $("bar").setAttribute("aria-valuenow", String(Math.round(done * 100)));
    const waiting = pictures.length === 1 && !pictures[0].version ? pictures[0].status : null;
    $("message").hidden = !waiting;
    $("message").textContent = waiting ? waiting.text : "";
  }

  // --- recipe ----------------------------------------------------------------------------------

  function tell(pictures) {
    const two = pictures.length > 1;
    $("panel").classList.toggle("two", two);
    const recipes = pictures.map((each) => each.recipe);
    const prompts = distinct(pictures, "prompt");
    const parts = [section("Prompt", quotes(prompts, ""))];
    const without = distinct(pictures, "negative_prompt").filter(([text]) => text);
    if (without.length) parts.push(section("Without", quotes(without, "without")));
    const facts = unite(pictures.map((each) => Object.fromEntries(each.facts)));
    parts.push(section("Picture", [table(facts)]));
    const rows = unite(recipes.map((each) => each || {}), NOT_IN_TABLE);
    if (two) rows.sort((a, b) => Number(differs(b)) - Number(differs(a)));
    if (rows.length) parts.push(section("Recipe", [table(rows)]));
    $("told").replaceChildren(...parts);
  }

  // The different texts of a key, each with the names of the pictures that have it.
  function distinct(pictures, key) {
    const found = new Map();
    for (const picture of pictures) {
      if (!picture.recipe) continue;
      const text = String(picture.recipe[key] ?? "");
      found.set(text, [...(found.get(text) || []), picture.name]);
    }
    return [...found];
  }

  function quotes(texts, name) {
    if (!texts.length) return [element("p", "none", "The file holds no recipe.")];
    const some = texts.length > 1;
    return texts.flatMap(([text, names]) => {
      const quote = element("blockquote", name, text || "–");
      return some ? [quote, element("p", "from", names.join(", "))] : [quote];
    });
  }

  // Rows of a key and its value in each of several dictionaries, those without any left out.
  function unite(all, but = []) {
    const keys = [...new Set(all.flatMap((each) => Object.keys(each)))];
    return keys
      .filter((key) => !but.includes(key))
      .map((key) => [key, ...all.map((each) => shownValue(each[key]))])
      .filter((row) => row.slice(1).some((text) => text !== ""));
  }

  function shownValue(value) {
    if (value === null || value === undefined || value === "") return "";
    if (Array.isArray(value)) return value.map(shownValue).join(", ");
    if (typeof value === "boolean") return value ? "yes" : "no";
    return typeof value === "object" ? JSON.stringify(value) : String(value);
  }

  function differs(row) {
    return row.slice(2).some((text) => text !== row[1]);
  }

  function table(rows) {
    const made = element("table");
    for (const row of rows) {
      const line = made.appendChild(element("tr", differs(row) ? "differs" : ""));
      line.append(element("th", "", row[0].replaceAll("_", " ").replace(/ px$/, "")));
      line.append(...row.slice(1).map((text) => element("td", "", text || "–")));
    }
    return made;
  }

  function section(title, parts) {
    const made = element("section");
    made.append(element("h2", "", title), ...parts);
    return made;
  }

  function element(kind, name = "", text = null) {
    const made = document.createElement(kind);
    if (name) made.className = name;
    if (text !== null) made.textContent = text;
    return made;
  }

  // --- buttons and keys ------------------------------------------------------------------------

  function showPanel(shown) {
    $("panel").hidden = !shown;
    $("info").setAttribute("aria-pressed", String(shown));
    if (panes.length) showMap();
  }

  function setOver(now) {
    over = now && panes.length > 1;
    $("panes").classList.toggle("over", over);
    $("cut").hidden = !over;
    $("layout").setAttribute("aria-pressed", String(over));
    if (over) setLinked(true);
  }

  function setLinked(now) {
    linked = now || over; // one over the other shows one place
    $("link").setAttribute("aria-pressed", String(linked));
    const pane = current();
    if (pane) follow(pane);
  }

  function setCut(percent) {
    const cut = Math.min(100, Math.max(0, percent));
    document.documentElement.style.setProperty("--cut", `${cut}%`);
    $("cut").setAttribute("aria-valuenow", String(Math.round(cut)));
  }

  function toggleFull() {
    if (document.fullscreenElement) document.exitFullscreen();
    else document.documentElement.requestFullscreen?.().catch(() => {});
  }

  const KEYS = {
    "+": () => zoomBy(1.5),
    "=": () => zoomBy(1.5),
    "-": () => zoomBy(1 / 1.5),
    0: home,
    1: zoomToPixels,
    i: () => showPanel($("panel").hidden),
    f: toggleFull,
    s: () => setOver(!over),
    l: () => setLinked(!linked),
    Escape: () => showPanel(false),
    ArrowLeft: () => move(-1, 0),
    ArrowRight: () => move(1, 0),
    ArrowUp: () => move(0, -1),
    ArrowDown: () => move(0, 1),
  };

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target === $("cut") && event.key.startsWith("Arrow")) return;
    if (event.target.closest?.("#panel") && event.key.startsWith("Arrow")) return;
    const action = KEYS[event.key] || KEYS[event.key.toLowerCase()];
    if (!action) return;
    event.preventDefault();
    action();
  });
  $("cut").addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -2, ArrowRight: 2 }[event.key];
    if (step) setCut(Number($("cut").getAttribute("aria-valuenow")) + step);
  });
  $("cut").addEventListener("pointerdown", (event) => $("cut").setPointerCapture(event.pointerId));
  $("cut").addEventListener("pointermove", (event) => {
    if ($("cut").hasPointerCapture(event.pointerId)) setCut((event.clientX / innerWidth) * 100);
  });
  const buttons = {
    in: () => zoomBy(1.5),
    out: () => zoomBy(1 / 1.5),
    zoom: zoomToPixels,
    home,
    full: toggleFull,
    info: KEYS.i,
    close: KEYS.Escape,
    layout: KEYS.s,
    link: KEYS.l,
  };
  for (const [id, action] of Object.entries(buttons)) $(id).addEventListener("click", action);
  // For tests and the curious.
  window.hires = { panes, exchangeMs: EXCHANGE_MS };
  ask();
})();
