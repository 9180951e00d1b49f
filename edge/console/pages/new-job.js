/**
 * A new job: choose an endpoint, fill in its form, see the files, submit. What is filled in survives a reload. The files
 * are sent after the submit, so that a host that is off starts meanwhile.
 *
 * @module
 */
import { client, errorText, get, owner, session } from "../api.js";
import { askDialog, fill, h } from "../dom.js";
import { readJson, writeJson } from "../drafts.js";
import { descriptionOf, fieldFor } from "../form.js";
import { t } from "../text.js";
import { inputTimeoutS, startUpload } from "../uploads.js";

export function newJobPage(main, path, query) {
  let isGone = false;
  fill(main, h("p", { class: "empty", role: "status" }, t("loading")));
  build(main, query, () => isGone).catch((error) => {
    if (!isGone) fill(main, h("section", { class: "panel" }, h("p", { class: "error", role: "alert" }, errorText(error))));
  });
  return () => (isGone = true);
}

async function build(main, query, isGone) {
  const [endpoints, source] = await Promise.all([get("/v1/endpoints").then((answer) => answer.endpoints), query.get("from") ? get(`/v1/jobs/${encodeURIComponent(query.get("from"))}`) : null]);
  if (isGone()) return;
  if (!endpoints.length) {
    fill(main, h("section", { class: "panel" }, h("h1", {}, t("page_new")), h("p", {}, t("no_endpoints")), h("a", { href: "#/hosts" }, t("page_hosts"))));
    return;
  }
  const wanted = source?.endpoint ?? query.get("endpoint") ?? readJson("last_endpoint", null);
  const choice = h("select", { id: "endpoint" }, endpoints.map((one) => h("option", { value: one.name, selected: one.name === wanted }, one.name)));
  const place = h("div"), about = h("p", { class: "soft" });
  fill(main,
    h("section", { class: "panel stack narrow" }, h("h1", {}, source ? t("again_with_changes") : t("page_new")), h("div", { class: "field" }, h("label", { for: "endpoint" }, t("endpoint")), choice, about), place));
  const draw = (job) => {
    const endpoint = endpoints.find((one) => one.name === choice.value);
    writeJson("last_endpoint", endpoint.name);
    fill(about, descriptionOf(endpoint));
    place.replaceChildren(endpointForm(endpoint, job));
  };
  choice.addEventListener("change", () => draw(null));
  draw(source);
}

function endpointForm(endpoint, source) {
  const properties = Object.entries(endpoint.input.properties ?? {}), required = new Set(endpoint.input.required ?? []), draftName = `draft:${endpoint.name}`;
  const button = h("button", { class: "primary" }, t("submit")), hint = h("p", { class: "soft", role: "status" }), problem = h("p", { class: "error", role: "alert" });
  const presets = presetBar(endpoint.name, () => optionValues(), (values) => apply(values));
  const fields = properties.map(([name, schema]) => fieldFor(name, schema, required.has(name), endpoint.name, changed));
  const isMain = (field) => required.has(field.name) || field.file !== undefined || "digest" in field;
  const [first, options] = [fields.filter(isMain), fields.filter((field) => !isMain(field))];
  const extra = moreOptions(source);
  let isSending = false;

  function optionValues() {
    return Object.fromEntries(fields.filter((field) => !("digest" in field)).map((field) => [field.name, field.value()]).filter(([, value]) => value !== undefined));
  }

  function apply(values) {
    for (const field of fields) if (!("digest" in field)) field.restore(values[field.name]);
    changed();
  }

  function changed() {
    writeJson(draftName, optionValues());
    const waiting = fields.filter((field) => !field.isReady());
    const isReading = waiting.some((field) => field.file);
    button.disabled = isSending || waiting.length > 0;
    fill(hint, isReading ? t("reading_first") : waiting.length ? t("files_missing", { names: waiting.map((field) => field.name).join(", ") }) : "");
  }

  const form = h("form", { class: "stack" }, first.map((field) => field.element),
    options.length > 0 && h("details", { open: options.length <= 3 && !first.length }, h("summary", {}, t("options")), presets, h("div", { class: "stack" }, options.map((field) => field.element))),
    extra.element, problem, hint, owner() !== session().owner && h("p", { class: "soft" }, t("as_owner", { owner: session().owner })), h("div", { class: "buttons" }, button));
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    isSending = true;
    changed();
    problem.textContent = "";
    try {
      const input = Object.fromEntries(fields.map((field) => [field.name, field.value()]).filter(([, value]) => value !== undefined));
      const files = fields.filter((field) => field.file), size = files.reduce((sum, field) => sum + field.file.size, 0);
      const later = files.length ? { await_input: true, policy: { input_timeout_s: inputTimeoutS(size) } } : {};
      const job = await client().submit(endpoint.name, input, { ...extra.values(), ...later });
      for (const { digest, file } of files) if (job.missing.includes(digest)) startUpload(job.id, digest, file);
      for (const field of fields) field.clear?.();
      writeJson(draftName, null);
      location.hash = `#/jobs/${encodeURIComponent(job.id)}`;
    } catch (error) {
      problem.textContent = errorText(error);
    } finally {
      isSending = false;
      changed();
    }
  });
  const draft = source ? source.input : readJson(draftName, {});
  for (const field of fields) if (draft[field.name] !== undefined) field.restore(draft[field.name]);
  if (!source) for (const field of fields) field.resume?.();
  changed();
  return form;
}

/** Priority, time and tags: folded away, since most jobs need none of them. */
function moreOptions(source) {
  const priority = h("select", { id: "priority" }, ["high", "normal", "low"].map((one) => h("option", { value: one, selected: one === (source?.priority ?? "normal") }, t(`priority_${one}`))));
  const start = h("input", { id: "not-before", type: "datetime-local" });
  const tags = h("input", { id: "tags", placeholder: "project:winter", value: Object.entries(source?.tags ?? {}).map(([name, value]) => `${name}:${value}`).join(", ") });
  const field = (control, name) => h("div", { class: "field" }, h("label", { for: control.id }, t(name)), control);
  return {
    element: h("details", {}, h("summary", {}, t("when_and_tags")), h("div", { class: "stack" }, field(priority, "priority"), field(start, "not_before"), field(tags, "tags"))),
    values: () => {
      const pairs = tags.value.split(",").map((pair) => pair.trim()).filter(Boolean).map((pair) => [pair.split(":")[0], pair.split(":").slice(1).join(":")]);
      return { priority: priority.value, ...(start.value ? { not_before: new Date(start.value).toISOString() } : {}), ...(pairs.length ? { tags: Object.fromEntries(pairs) } : {}) };
    },
  };
}

function presetBar(endpoint, read, apply) {
  const name = `presets:${endpoint}`, bar = h("div", { class: "buttons" });
  const draw = () => {
    const presets = readJson(name, {}), choice = h("select", { "aria-label": t("presets") }, h("option", { value: "" }, t("presets")), Object.keys(presets).map((one) => h("option", { value: one }, one)));
    choice.addEventListener("change", () => choice.value && apply(presets[choice.value]));
    const save = async () => {
      const answer = await askDialog(t("save_preset"), [h("label", { for: "preset-name" }, t("name")), h("input", { id: "preset-name", name: "name", required: true, maxLength: 40, value: choice.value })], t("save"), t("back"));
      if (!answer) return;
      writeJson(name, { ...presets, [answer.name]: read() });
      draw();
    };
    const remove = () => {
      delete presets[choice.value];
      writeJson(name, presets);
      draw();
    };
    fill(bar, Object.keys(presets).length > 0 && choice, h("button", { type: "button", class: "quiet", onclick: save }, t("save_preset")), Object.keys(presets).length > 0 && h("button", { type: "button", class: "quiet", onclick: () => choice.value && remove() }, t("remove")));
  };
  draw();
  return bar;
}
