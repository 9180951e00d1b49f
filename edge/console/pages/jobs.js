/**
 * The list of jobs: filters in the address, live, and drawn only as far as it can be seen.
 *
 * @module
 */
import { can, errorText, get, owner, post } from "../api.js";
import { askDialog, fill, h, throttled } from "../dom.js";
import { duration, fullTime, secondsBetween, time } from "../format.js";
import { listen } from "../live.js";
import { statusPill } from "../parts.js";
import { has, t } from "../text.js";

const ROW_HEIGHT = 44, PAGE = 200, SPARE_ROWS = 8;
const STATUSES = ["scheduled", "queued", "running", "cancelling", "succeeded", "failed", "cancelled", "expired"];
const FINAL = new Set(["succeeded", "failed", "cancelled", "expired"]);
const FILTERS = ["status", "endpoint", "tag", "code", "text", "from", "to"];
const NARROW = matchMedia("(max-width: 700px)");

/** The jobs that are loaded, newest first, and what the list shows of them. */
class JobList {
  constructor(filters) {
    this.filters = filters;
    this.jobs = [];
    this.byId = new Map();
    this.cursor = null;
    this.isComplete = false;
    this.loading = null;
  }

  get isFiltered() {
    return FILTERS.some((name) => this.filters.getAll(name).some(Boolean));
  }

  query(extra) {
    const query = Object.fromEntries(FILTERS.map((name) => [name, this.filters.getAll(name)]));
    for (const edge of ["from", "to"]) query[edge] = query[edge].filter(Boolean).map((day) => new Date(day).toISOString());
    return { ...query, limit: PAGE, ...extra };
  }

  /** Load the next page; calls while one is loading share it. */
  more() {
    if (this.isComplete) return Promise.resolve();
    this.loading ??= get("/v1/jobs", this.query({ cursor: this.cursor })).then((page) => {
      for (const job of page.jobs) this.add(job);
      this.cursor = page.next_cursor;
      this.isComplete = !page.next_cursor;
    }).finally(() => (this.loading = null));
    return this.loading;
  }

  add(job) {
    if (this.byId.has(job.id)) return this.update(job);
    this.byId.set(job.id, job);
    this.jobs.push(job);
  }

  /** Take a state from the stream: change a job that is shown, or put a new one on top. */
  update(job) {
    const known = this.byId.get(job.id);
    if (known) {
      if (job.revision >= known.revision) Object.assign(known, job);
      return true;
    }
    if (this.isFiltered || (this.jobs[0] && job.created_at < this.jobs[0].created_at)) return false;
    this.byId.set(job.id, job);
    this.jobs.unshift(job);
    return true;
  }

  progress({ job_id: id, fraction, stage }) {
    const job = this.byId.get(id);
    if (job) job.progress = { fraction, stage };
    return Boolean(job);
  }
}

export function jobsPage(main, query) {
  let list = new JobList(query); // replaced as a whole, so that a page that still loads changes the old one
  const selected = new Set();
  let isAllSelected = false; // every job of the owner, also those that are not loaded
  const rows = h("div", { class: "rows", role: "rowgroup" }), spacer = h("div", { class: "spacer" }, rows);
  const viewport = h("div", { class: "viewport", tabIndex: 0, role: "table", "aria-label": t("page_jobs") }, spacer);
  const state = h("p", { class: "empty", role: "status" }, t("loading")), actions = h("div", { class: "bulk", hidden: true });
  const report = h("div", { role: "status" });

  function draw() {
    const top = Math.max(0, Math.floor(viewport.scrollTop / ROW_HEIGHT) - SPARE_ROWS);
    const shown = list.jobs.slice(top, top + Math.ceil(viewport.clientHeight / ROW_HEIGHT) + 2 * SPARE_ROWS);
    spacer.style.height = `${list.jobs.length * ROW_HEIGHT}px`;
    rows.style.transform = `translateY(${top * ROW_HEIGHT}px)`;
    const focused = document.activeElement?.closest?.("[data-id]")?.dataset.id;
    rows.replaceChildren(...shown.map((job) => row(job)));
    if (focused) rows.querySelector(`[data-id="${CSS.escape(focused)}"] a`)?.focus({ preventScroll: true });
    viewport.setAttribute("aria-rowcount", String(list.jobs.length));
    if (!list.isComplete && top + shown.length + PAGE / 4 > list.jobs.length) load();
  }

  function row(job) {
    const box = h("input", { type: "checkbox", checked: isAllSelected || selected.has(job.id), disabled: isAllSelected, "aria-label": t("select_job", { id: job.id }) });
    box.addEventListener("change", () => {
      if (box.checked) selected.add(job.id);
      else selected.delete(job.id);
      drawActions();
    });
    const what = job.status === "running" && job.progress ? `${Math.round(job.progress.fraction * 100)} % ${job.progress.stage ?? ""}` : job.error?.code ?? (FINAL.has(job.status) ? "" : job.message ?? "");
    return h("div", { class: "row", role: "row", "data-id": job.id },
      can("jobs:write") && h("span", { class: "box", role: "cell" }, box),
      h("span", { role: "cell", class: "status" }, statusPill(job.status)),
      h("span", { role: "cell", class: "id" }, h("a", { href: `#/jobs/${encodeURIComponent(job.id)}`, title: job.id }, job.id)),
      h("span", { role: "cell", class: "endpoint" }, job.endpoint),
      h("span", { role: "cell", class: "what soft", title: job.error?.message ?? job.message ?? "" }, what),
      h("span", { role: "cell", class: "num soft", title: fullTime(job.created_at) }, time(job.created_at)),
      h("span", { role: "cell", class: "num soft took" }, job.started_at ? duration(secondsBetween(job.started_at, job.finished_at)) : ""));
  }

  async function load() {
    try {
      await list.more();
      state.hidden = list.jobs.length > 0;
      fill(state, list.isFiltered ? t("no_jobs_match") : t("no_jobs"), !list.isFiltered && can("jobs:write") && h("a", { href: "#/new" }, t("page_new")));
      drawActions();
      drawSoon();
    } catch (error) {
      state.hidden = false;
      fill(state, errorText(error));
    }
  }

  function drawActions() {
    actions.hidden = !can("jobs:write") || !list.jobs.length;
    if (!selected.size && !list.isFiltered && !isAllSelected) {
      fill(actions, h("button", { class: "quiet", onclick: () => select(true) }, t("select_all")));
      return;
    }
    const count = selected.size ? t("selected_jobs", { n: selected.size }) : t(list.isFiltered ? "all_matching" : "all_jobs");
    fill(actions, h("span", { class: "soft" }, count),
      ["cancel", "retry", "delete"].map((action) => h("button", { class: action === "delete" ? "danger" : "", onclick: () => act(action) }, t(`do_${action}`))),
      (selected.size > 0 || isAllSelected) && h("button", { class: "quiet", onclick: () => select(false) }, t("clear_selection")));
  }

  function select(isAll) {
    isAllSelected = isAll;
    selected.clear();
    drawActions();
    draw();
  }

  async function act(action) {
    const ids = [...selected];
    const question = ids.length ? t(`ask_${action}_n`, { n: ids.length }) : t(list.isFiltered ? `ask_${action}_filter` : `ask_${action}_all`, { owner: owner() });
    if (!(await askDialog(question, [], t(`do_${action}`), t("back"), action === "delete"))) return;
    try {
      const body = ids.length ? { action, ids } : { action, filter: actionFilter(list.query({})) };
      let run = await post("/v1/jobs/actions", body);
      while (run.state === "running") {
        fill(report, h("p", { class: "panel" }, progressText(run), h("progress", { max: Math.max(run.total, 1), value: run.done + run.skipped + run.failed })));
        await new Promise((resolve) => setTimeout(resolve, 500));
        run = await get(`/v1/jobs/actions/${run.id}`);
      }
      select(false);
      fill(report, h("details", { class: "panel", open: run.failed > 0 }, h("summary", {}, progressText(run)),
        h("ul", {}, run.failures.map((failure) => h("li", {}, h("a", { href: `#/jobs/${encodeURIComponent(failure.id)}` }, failure.id), ` ${failure.code}: ${failure.detail}`)))));
      reload();
    } catch (error) {
      fill(report, h("p", { class: "error", role: "alert" }, errorText(error)));
    }
  }

  function reload() {
    list = new JobList(query);
    viewport.scrollTop = 0;
    load();
    drawActions();
  }

  const drawSoon = throttled(draw, 250);
  viewport.addEventListener("scroll", () => requestAnimationFrame(draw), { passive: true });
  const resizing = new ResizeObserver(() => draw());
  fill(main, h("div", { class: "title" }, h("h1", {}, t("page_jobs")), can("jobs:write") && h("a", { class: "button primary", href: "#/new" }, t("page_new"))),
    filterForm(query), actions, report, h("section", { class: "panel list" }, NARROW.matches ? null : head(), viewport, state));
  resizing.observe(viewport);
  drawActions();
  load();
  const stopListening = listen((event) => {
    if (event.kind === "state" ? list.update(event.data) : event.kind === "progress" && list.progress(event.data)) {
      state.hidden = list.jobs.length > 0;
      if (list.jobs.length === 1) drawActions();
      drawSoon();
    }
  });
  return () => {
    stopListening();
    resizing.disconnect();
  };
}

function head() {
  return h("div", { class: "row head soft", "aria-hidden": "true" }, can("jobs:write") && h("span", { class: "box" }), h("span", { class: "status" }, t("status")), h("span", { class: "id" }, t("job")),
    h("span", { class: "endpoint" }, t("endpoint")), h("span", { class: "what" }, t("what_happens")), h("span", { class: "num" }, t("created")), h("span", { class: "num took" }, t("run_time")));
}

function progressText(run) {
  const parts = [t("action_progress", { action: t(`do_${run.action}`), done: run.done, total: run.total })];
  if (run.skipped) parts.push(t("action_skipped", { n: run.skipped }));
  if (run.failed) parts.push(t("action_failed", { n: run.failed }));
  if (run.waits_for) parts.push(run.waits_for);
  return parts.join(" · ");
}

/** Return the conditions of the list in the words of an action's filter. */
function actionFilter({ status, endpoint, tag, code, text, from, to }) {
  const one = (values) => values.find(Boolean);
  const tags = Object.fromEntries(tag.filter(Boolean).map((pair) => [pair.slice(0, pair.indexOf(":")), pair.slice(pair.indexOf(":") + 1)]));
  const filter = { status: status.filter(Boolean), endpoint: one(endpoint), code: one(code), text: one(text), created_from: one(from), created_to: one(to) };
  return { ...Object.fromEntries(Object.entries(filter).filter(([, value]) => value !== undefined)), tags };
}

function filterForm(query) {
  const field = (name, properties = {}) => h("input", { name, value: query.get(name) ?? "", placeholder: t(`filter_${name}`), "aria-label": t(`filter_${name}`), ...properties });
  const status = h("select", { name: "status", "aria-label": t("status") }, h("option", { value: "" }, t("any_status")),
    STATUSES.map((one) => h("option", { value: one, selected: query.get("status") === one }, has(`status_${one}`) ? t(`status_${one}`) : one)));
  const form = h("form", { class: "filters", role: "search" }, field("text", { type: "search" }), status, field("endpoint"), h("details", { open: ["tag", "code", "from", "to"].some((name) => query.get(name)) },
    h("summary", {}, t("more_filters")), h("div", { class: "filters" }, field("tag"), field("code"), field("from", { type: "datetime-local", title: t("filter_from") }), field("to", { type: "datetime-local", title: t("filter_to") }))),
  h("button", {}, t("search")));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const values = [...new FormData(form)].filter(([, value]) => value);
    location.hash = `#/jobs${values.length ? `?${new URLSearchParams(values)}` : ""}`;
  });
  status.addEventListener("change", () => form.requestSubmit());
  return form;
}
